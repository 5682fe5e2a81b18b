"""From the start of the process to the first right answer, self-test included.

    python benchmarks/serve/cold_start.py --starts 9

Files are in the page cache: the first start of each kind is thrown away. The floor is a process that does no more than
import ONNX Runtime, load the graph from memory and run it once; the two take turns.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from floor import bare_session
from graphs import SUBJECTS, Subject, build_subject
from server import Server, release
from share_of_floor import CACHE, middle, say
from wires import question

from lightship.data.home import Home
from lightship.engine.machine import fingerprint

FLOOR = """
import sys, numpy
sys.path.insert(0, sys.argv[1])
from floor import bare_session
from pathlib import Path
bare_session(Path(sys.argv[2]).read_bytes()).run(None, dict(numpy.load(sys.argv[3])))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SUBJECTS), default="tiny")
    parser.add_argument("--starts", type=int, default=9)
    parser.add_argument("--core", type=int, default=1, help="of the pinned starts")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    subject = build_subject(arguments.model, cache=arguments.cache)
    with tempfile.TemporaryDirectory(prefix="lightship-bench-") as scratch:
        rows = [measure(subject, Path(scratch), core, arguments.starts) for core in (arguments.core, None)]
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": fingerprint(), "rows": rows}, indent=1) + "\n")


def measure(subject: Subject, scratch: Path, core: int | None, starts: int) -> dict[str, Any]:
    """Start ``starts`` times and the floor as often, in turns."""
    home = Home(scratch / f"home-{core}").ensure()
    release(home, subject)
    row = subject.row(0)
    graph, inputs = scratch / "graph.onnx", scratch / "inputs.npz"
    graph.write_bytes(subject.graph)
    np.savez(inputs, **row)
    expected = bare_session(subject.graph).run(None, row)[0]
    took: list[tuple[float, float, float]] = []
    for _ in range(starts + 1):
        bare = floor_s(graph, inputs, core)
        took.append((bare, *first_answer_s(home, subject, expected, core, scratch / "serve.log")))
    bare_s, ready_s, answer_s = (list(column) for column in zip(*took[1:], strict=True))
    row_out = {
        "pinned": core is not None,
        "answer_s": asdict(middle(answer_s)) | {"best": min(answer_s)},
        "ready_s": asdict(middle(ready_s)) | {"best": min(ready_s)},
        "floor_s": asdict(middle(bare_s)) | {"best": min(bare_s)},
        "starts": took[1:],
    }
    for name in ("answer_s", "ready_s", "floor_s"):
        one = row_out[name]
        say(
            f"{'one core' if core is not None else 'unpinned':9} {name:9} median {one['median']:.3f} "
            f"[{one['low']:.3f}, {one['high']:.3f}]  best {one['best']:.3f}"
        )
    return row_out


def floor_s(graph: Path, inputs: Path, core: int | None) -> float:
    """Return how long a process takes that only loads the engine and runs the graph once."""
    pin = () if core is None else ("taskset", "-c", str(core))
    command = (*pin, sys.executable, "-c", FLOOR, str(Path(__file__).parent), str(graph), str(inputs))
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - began


def first_answer_s(
    home: Home, subject: Subject, expected: np.ndarray, core: int | None, log: Path
) -> tuple[float, float]:
    """Start a server; return the seconds until it said that it is ready, and until the first right answer."""
    asked = question(subject.name, subject.row(0), "binary")
    began = time.perf_counter()
    with Server(home, subject.name, core=core, log=log) as server:
        ready_s = time.perf_counter() - began
        connection = http.client.HTTPConnection(*server.address, timeout=60)
        got = asked.ask(connection)
        answer_s = time.perf_counter() - began
        connection.close()
    if not np.allclose(got, expected, rtol=1e-3, atol=1e-4):
        raise RuntimeError("The first answer is wrong.")
    return ready_s, answer_s


if __name__ == "__main__":
    main()
