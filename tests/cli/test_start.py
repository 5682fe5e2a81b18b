"""Starting is quick, and loads nothing that it does not need."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from lightship.extensions import places_of

HEAVY = ("torch", "onnx", "onnxruntime", "numpy", "sqlalchemy", "alembic", "pydantic", "jinja2", "PIL", "httpx", "rich")


def _loaded_by(code: str) -> set[str]:
    program = f"import json, sys\n{code}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import lightship",
        "from click.testing import CliRunner; from lightship.cli.main import cli; CliRunner().invoke(cli, ['--help'])",
    ],
    ids=["import", "help"],
)
def test_no_heavy_library_is_loaded(code):
    """People import and ask for help often; one eager import would cost every one of them a second."""
    assert not _loaded_by(code) & set(HEAVY)


def test_serving_loads_neither_torch_nor_sqlalchemy():
    """The server and the client run in an installation without the training extra, and start quickly."""
    loaded = _loaded_by("import lightship.serve.run, lightship.serve.worker, lightship.apply.model")

    assert not loaded & {"torch", "sqlalchemy", "alembic", "accelerate", "onnxscript"}


def test_a_worker_that_is_told_where_its_parts_are_does_not_look_for_them():
    """To look through all that is installed took a tenth of a worker's start; the server has done it."""
    parts = (("tasks", "image-classification"), ("engines", "onnxruntime"), ("tasks", "none"))
    code = f"""
import lightship.serve.worker_start, lightship.serve.worker
from lightship.extensions import load_extension, take_places
take_places({places_of(parts)!r})
for part in {parts[:2]!r}:
    load_extension(*part)
assert "importlib.metadata" not in sys.modules
"""

    assert "onnxruntime" in _loaded_by(code)


@pytest.mark.parametrize(
    ("arguments", "allowed_s"),
    [(["-c", "import lightship"], 0.1), (["-m", "lightship.cli.main", "--help"], 0.3)],
    ids=["import", "help"],
)
def test_starting_costs_little_more_than_the_interpreter(arguments, allowed_s):
    """CPU time over a bare interpreter, the least of several runs: noise only adds."""
    bare = min(_cpu_s(["-c", "pass"]) for _ in range(5))

    ours = min(_cpu_s(arguments) for _ in range(5))

    assert ours - bare <= allowed_s


def _cpu_s(arguments: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
