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

runner = load_runner(open(sys.argv[1], "rb").read(), engine=ENGINE)
runner.run({"x": np.zeros((2, 3), np.float32)})
runner.close()
"""
QUANTIZE = """
import sys
from lightship.optimize.variant_pass import load_pass

load_pass("int8-dynamic").apply(open(sys.argv[1], "rb").read(), calibration=())
"""
QUANTIZE_FOR_OPENVINO = """
import sys
import numpy as np
from lightship.optimize.variant_pass import load_pass

graph = open(sys.argv[1], "rb").read()
load_pass("nncf-int8").apply(graph, calibration=[{"x": np.ones((2, 3), np.float32)}])
load_pass("nncf-int8-weights").apply(graph, calibration=())
"""
# Whoever asks for a connection or an address leaves a file where nothing may be; in processes that are forked too.
WATCHED = """
import pathlib, socket

def asked(self, *args, **kwargs):
    (pathlib.Path.home() / "asked").write_text(repr(args))
    raise OSError("no network in this test")

socket.socket.connect = socket.socket.connect_ex = asked
socket.getaddrinfo = socket.gethostbyname = lambda *args, **kwargs: asked(None, *args)
"""
# In these the engine keeps still by itself; the test must not be quiet for that reason.
CI_VARIABLES = (
    "CI",
    "TF_BUILD",
    "JENKINS_URL",
    "NNCF_CI",
    "NNCF_DEV",
    "GITHUB_ACTIONS",
    "GITLAB_CI",
    "CIRCLECI",
    "ORT_DISABLE_TELEMETRY",
)


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(RUN.replace("ENGINE", "'onnxruntime'"), id="run"),
        pytest.param(QUANTIZE, id="quantize"),
        pytest.param(RUN.replace("ENGINE", "'openvino'"), id="run-openvino"),
        pytest.param(QUANTIZE_FOR_OPENVINO, id="quantize-openvino"),
    ],
)
def test_nothing_is_reported_to_a_maker(program, linear_graph, tmp_path):
    """ONNX Runtime queues reports in the user's cache folder; OpenVINO writes an identity of him and sends at import.

    Both unless they are told not to, and a report would need one of the two: a file or a connection.
    """
    graph, home = tmp_path / "graph.onnx", tmp_path / "home"
    graph.write_bytes(linear_graph)
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in CI_VARIABLES}

    subprocess.run([sys.executable, "-c", WATCHED + program, graph], check=True, env={**environment, "HOME": str(home)})

    assert not list(home.rglob("*"))


def test_what_reports_is_hidden_only_while_the_engine_is_loaded():
    """A program that uses OpenVINO's own tools beside us finds them as they were."""
    program = (
        "import sys, types; mine = sys.modules['openvino_telemetry'] = types.ModuleType('openvino_telemetry');"
        "from lightship.engine.openvino_library import load_openvino;"
        "import_module = load_openvino(); print(sys.modules['openvino_telemetry'] is mine)"
    )

    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert said.stdout.strip() == "True"


def test_a_missing_engine_says_how_to_install_it():
    """Who lacks the extra gets the line to type."""
    program = (
        "import sys; sys.modules['openvino'] = sys.modules['nncf'] = None\n"
        "from lightship.engine import openvino_library as library\n"
        "for load in library.load_openvino, library.load_nncf:\n"
        "    try: load()\n"
        "    except library.MissingExtra as exc: print(exc)"
    )

    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    assert said.count("pip install 'lightship[openvino]'") == 2
