"""Small requests with large answers, read by nobody: what they cost those beside them, and how much is held for them.

    python benchmarks/reliability/large_answers.py --quick     # 15 s
    python benchmarks/reliability/large_answers.py             # 30 s

The model looks up rows of 512 numbers, as an embedding does: 128 KiB of row numbers become 165 MB of JSON or 32 MiB of
binary. Good traffic asks another model.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from releases import import_graph, network, release
from rig import Figures, Rig, post, run_script, scratch_home, tensor_question, until
from traffic import Traffic

from lightship.data.home import Home

ROWS, WIDTH = 16_384, 512
WRITE_S = 3.0
HELD_MB = 512.0


def release_wide(home: Home, scratch: Path) -> None:
    """Import a model of small inputs and large outputs."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Gather", ["rows", "at"], ["y"])],
        "wide",
        [info("at", TensorProto.INT64, ["N"])],
        [info("y", TensorProto.FLOAT, ["N", WIDTH])],
        [numpy_helper.from_array(np.random.default_rng(0).normal(size=(100, WIDTH)).astype(np.float32), "rows")],
    )
    import_graph(home, scratch, "wide", graph, {"at": np.arange(4)}, upto=64)


def wide_request(*, binary: bool) -> bytes:
    """Return the request; the answer is binary or JSON."""
    entry = {"name": "at", "shape": [ROWS], "datatype": "INT64", "parameters": {"binary_data_size": 8 * ROWS}}
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": binary}}).encode()
    length = f"Inference-Header-Content-Length: {len(head)}"
    return post("/v2/models/wide/infer", head + bytes(8 * ROWS), length, "Connection: close")


def one_read(rig: Rig, figures: Figures, traffic_of: list, *, binary: bool) -> None:  # type: ignore[type-arg]
    """One answer that is read at once, and how long everybody else waits."""
    form = "binary" if binary else "JSON"
    with Traffic(rig.address, traffic_of, rate=100, connections=8) as traffic:
        time.sleep(1)
        began = time.monotonic()
        size = 0
        with socket.create_connection(rig.address, timeout=30) as sock:
            sock.sendall(wide_request(binary=binary))
            first = sock.recv(1 << 20)
            size = len(first)
            while piece := sock.recv(1 << 20):
                size += len(piece)
        took = time.monotonic() - began
        ended = time.monotonic()
        time.sleep(0.5)
    result = traffic.result
    figures.add(f"one {form} answer: {first[9:12].decode()}, MB, seconds", f"{size / 1e6:.0f}, {took:.2f}")
    figures.exactly(f"one {form} answer: good failed {result.why or ''}", len(result.failed), 0)
    figures.at_most(f"one {form} answer: slowest good one", result.between(began - 0.01, ended).ms(1.0), 250, "ms")


def many_unread(rig: Rig, figures: Figures, traffic_of: list, *, count: int, binary: bool) -> None:  # type: ignore[type-arg]
    """Answers that nobody reads: held up to a bound, and not for long."""
    form = "binary" if binary else "JSON"
    before = most = rig.rss_mb()
    ended = threading.Event()
    with Traffic(rig.address, traffic_of, rate=50, connections=8, fresh=0.2) as traffic:
        time.sleep(1)
        began = time.monotonic()
        socks = [socket.create_connection(rig.address) for _ in range(count)]
        for sock in socks:
            sock.sendall(wide_request(binary=binary))
        while time.monotonic() < began + 20 and not ended.is_set():
            most = max(most, rig.rss_mb())
            if time.monotonic() > began + WRITE_S and rig.fds() < 40 + count // 2 and rig.model("wide")["waiting"] == 0:
                ended.set()
            time.sleep(0.02)
        gone_s = time.monotonic() - began
        for sock in socks:
            sock.close()
        time.sleep(0.5)
    result = traffic.result
    figures.at_most(f"{count} unread {form} answers: server's memory grown", most - before, HELD_MB, "MiB")
    figures.exactly(f"{count} unread {form} answers: good failed {result.why or ''}", len(result.failed), 0)
    figures.at_most(f"{count} unread {form} answers: slowest good one", result.ms(1.0), 1000, "ms")
    figures.add(f"{count} unread {form} answers: given up after (write_s={WRITE_S:g})", gone_s)


def measure(quick: bool, figures: Figures) -> None:
    """JSON and binary, one and many."""
    graphs = {1: network(1)}
    with scratch_home() as (home, scratch):
        release(home, "digits", graphs[1])
        release_wide(home, scratch)
        options = ("--limit", f"write_s={WRITE_S:g}", "--worker-memory", "2g")
        with Rig(home, "digits", "wide", *options, log=scratch / "large.log") as rig:
            until(lambda: rig.control("/readyz")[0] == 200)
            questions = [tensor_question("digits", seed, graphs) for seed in range(4)]
            for binary in (True, False):
                one_read(rig, figures, questions, binary=binary)
            many_unread(rig, figures, questions, count=24 if quick else 48, binary=True)
            if not quick:
                many_unread(rig, figures, questions, count=12, binary=False)


if __name__ == "__main__":
    run_script(measure, __doc__)
