"""Nothing is sent to anybody, and no file is kept for sending later."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

RUN = """
import sys
import numpy as np
from lightship.engine.runner import load_runner

runner = load_runner(open(sys.argv[1], "rb").read())
runner.run({"x": np.zeros((2, 3), np.float32)})
runner.close()
"""
QUANTIZE = """
import sys
from lightship.optimize.variant_pass import load_pass

load_pass("int8-dynamic").apply(open(sys.argv[1], "rb").read(), calibration=())
"""
# In these the engine keeps still by itself; the test must not be quiet for that reason.
CI_VARIABLES = ("CI", "TF_BUILD", "GITHUB_ACTIONS", "GITLAB_CI", "CIRCLECI", "ORT_DISABLE_TELEMETRY")


@pytest.mark.parametrize("program", [RUN, QUANTIZE], ids=["run", "quantize"])
def test_the_engine_keeps_no_reports_for_its_maker(program, linear_graph, tmp_path):
    """ONNX Runtime queues reports in the user's cache folder and sends them later, unless it is told not to."""
    graph, home = tmp_path / "graph.onnx", tmp_path / "home"
    graph.write_bytes(linear_graph)
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in CI_VARIABLES}

    subprocess.run([sys.executable, "-c", program, graph], check=True, env={**environment, "HOME": str(home)})

    assert not list(home.rglob("*"))
