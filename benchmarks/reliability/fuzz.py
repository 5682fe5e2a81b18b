"""Generated requests against the control plane, by its own OpenAPI document; right ones and wrong ones.

    python benchmarks/reliability/fuzz.py --quick     # 20 s
    python benchmarks/reliability/fuzz.py             # 2,000 cases

Needs schemathesis (``pip install schemathesis``); without it the table says so.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from releases import network, release
from rig import Figures, Rig, run_script, scratch_home, until

__all__ = ["fuzz_control_plane"]

_CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def fuzz_control_plane(rig: Rig, scratch: Path, *, examples: int, seed: int) -> subprocess.CompletedProcess[str]:
    """Run schemathesis on the document that the server gives, ``examples`` an operation at most."""
    status, document = rig.control("/openapi.json")
    assert status == 200, status
    file = scratch / "openapi.json"
    file.write_bytes(document)
    host, port = rig.control_address
    options = ("--checks", _CHECKS, "--max-examples", str(examples), "--seed", str(seed), "--no-color")
    return subprocess.run(
        (sys.executable, "-m", "schemathesis.cli", "run", str(file), "--url", f"http://{host}:{port}", *options),
        cwd=scratch,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def measure(quick: bool, figures: Figures) -> None:
    """Fuzz a small server."""
    if importlib.util.find_spec("schemathesis") is None:
        figures.add("control plane", "not run: no schemathesis")
        return
    with scratch_home() as (home, scratch):
        release(home, "digits", network(1))
        with Rig(home, "digits", log=scratch / "fuzz.log") as rig:
            until(lambda: rig.control("/readyz")[0] == 200)
            done = fuzz_control_plane(rig, scratch, examples=50 if quick else 400, seed=7)
            alive = rig.control("/livez")[0]
    cases = re.findall(r"([0-9,]+) generated", done.stdout)
    figures.add("control plane: generated cases", cases[-1] if cases else "?")
    figures.exactly("control plane: exit code of schemathesis", done.returncode, 0)
    figures.exactly("control plane: alive", alive, 200)
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:])


if __name__ == "__main__":
    run_script(measure, __doc__)
