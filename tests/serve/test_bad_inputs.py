"""Wrong and hostile requests against a running server (BI-045 to BI-076), but for those that unit tests hold.

The cases and what is looked at after each are those of ``benchmarks/reliability/bad_inputs.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks" / "reliability"
for folder in (SCRIPTS, SCRIPTS.parent / "serve"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

from bad_inputs import CASES, MODELS, Attack, Case, home_of_models  # noqa: E402 - the path comes first
from fuzz import fuzz_control_plane  # noqa: E402
from rig import Rig, until  # noqa: E402


def cases() -> Iterator[object]:
    """Yield what is not held elsewhere."""
    for case in CASES:
        if not case.held:
            yield pytest.param(case, id=f"{case.ident} {case.name}")


@pytest.fixture(scope="module")
def rig(tmp_path_factory) -> Iterator[Rig]:
    """Return a server with an image model, imported models, and two that ask for too much of the machine."""
    from lightship.data.home import Home

    scratch = tmp_path_factory.mktemp("bad-inputs")
    home = Home(scratch / "home").ensure()
    home_of_models(home, scratch)
    with Rig(home, *MODELS, log=scratch / "serve.log") as running:
        until(lambda: running.control("/readyz")[0] == 200)
        yield running


@pytest.fixture(scope="module")
def attack(rig) -> Attack:
    """Return what plays cases against it."""
    return Attack(rig)


@pytest.mark.parametrize("case", list(cases()))
def test_it_is_refused_and_nobody_notices(attack: Attack, case: Case):
    """The right status in time, the sentinel exact, no worker dead, memory within its bound, no insides told."""
    assert attack.play(case).wrong == []


def test_the_log_has_no_traces(rig):
    """Nothing of all that was a surprise to the server."""
    assert '"trace"' not in rig.log.read_text()


def test_the_control_plane_answers_what_its_document_says(rig, tmp_path):
    """Generated requests, right and wrong ones, against every operation: no 5xx, no undocumented answer."""
    pytest.importorskip("schemathesis")

    done = fuzz_control_plane(rig, tmp_path, examples=20, seed=7)

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
