"""Nothing is sent to anybody: no library that we load may open a connection."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

RUN = """
import sys
import numpy as np
from lightship.engine.runner import load_runner

runner = load_runner(open(sys.argv[1], "rb").read())
spec = runner.interface.inputs[0]
row = np.zeros([dim if isinstance(dim, int) else 1 for dim in spec.shape], np.float32)
for _ in range(50):
    runner.run({spec.name: row})
runner.close()
"""
QUANTIZE = """
import sys
from lightship.optimize.variant_pass import load_pass

load_pass("int8-dynamic").apply(open(sys.argv[1], "rb").read(), calibration=())
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace (Debian package strace)")
@pytest.mark.parametrize("program", [RUN, QUANTIZE], ids=["run", "quantize"])
def test_running_a_graph_connects_to_nobody(program, linear_graph, tmp_path):
    """The engine's maker gets no reports: the system calls of a fresh process show no connection to any address."""
    graph, trace = tmp_path / "graph.onnx", tmp_path / "trace"
    graph.write_bytes(linear_graph)

    subprocess.run(
        [
            "strace",
            "-f",
            "-qq",
            "-e",
            "trace=connect,sendto,sendmmsg",
            "-o",
            trace,
            sys.executable,
            "-c",
            program,
            graph,
        ],
        check=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )

    assert not re.findall(r"^.*AF_INET6?,.*$", trace.read_text(), flags=re.MULTILINE)
