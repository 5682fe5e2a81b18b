"""The floor: the graph in a bare ONNX Runtime loop, as a process that is told when to run.

    taskset -c 1 python benchmarks/serve/floor.py graph.onnx inputs.npz

Reads lines `{"batch": 32, "seconds": 1.0}` and answers `{"samples": .., "wall_s": .., "cpu_s": ..}`. Between two lines
it sleeps, so it may stay alive beside the server that it is compared with. Session options are those of the server's
engine; nothing of Lightship runs here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

__all__ = ["BATCHES", "Floor", "FloorWindow", "bare_session"]

BATCHES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class FloorWindow:
    """One timed loop."""

    batch: int
    samples: int
    wall_s: float
    cpu_s: float

    @property
    def per_s(self) -> float:
        """Samples per second of wall clock."""
        return self.samples / self.wall_s

    @property
    def per_cpu_s(self) -> float:
        """Samples per second of CPU time; steadier than the wall clock on a machine that others use too."""
        return self.samples / self.cpu_s


class Floor:
    """The loop's process, pinned on ``core``."""

    def __init__(self, graph: Path, inputs: Path, *, core: int | None) -> None:
        pin = () if core is None else ("taskset", "-c", str(core))
        self._process = subprocess.Popen(
            (*pin, sys.executable, __file__, str(graph), str(inputs)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def run(self, batch: int, seconds: float) -> FloorWindow:
        """Run the graph for ``seconds``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"batch": batch, "seconds": seconds}) + "\n")
        self._process.stdin.flush()
        return FloorWindow(batch, **json.loads(self._process.stdout.readline()))

    def best_batches(self, seconds: float, *, count: int = 2, rounds: int = 3) -> tuple[int, ...]:
        """Return the batch sizes of the highest rate, best first: the median of several short windows of each."""
        rates: dict[int, list[float]] = {batch: [] for batch in BATCHES}
        for _ in range(rounds):
            for batch in BATCHES:
                rates[batch].append(self.run(batch, seconds).per_cpu_s)
        return tuple(sorted(BATCHES, key=lambda batch: -float(np.median(rates[batch]))))[:count]


def bare_session(graph: bytes) -> Any:
    """Return a session with one thread, the same options as the server's engine."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def main() -> None:
    session = bare_session(Path(sys.argv[1]).read_bytes())
    row = dict(np.load(sys.argv[2]))
    names = [output.name for output in session.get_outputs()]
    for line in sys.stdin:
        wanted = json.loads(line)
        batch: int = wanted["batch"]
        feeds = {name: np.ascontiguousarray(np.repeat(value, batch, axis=0)) for name, value in row.items()}
        session.run(names, feeds)  # the first run of a shape allocates
        runs, cpu, began = 0, time.process_time(), time.perf_counter()
        while (now := time.perf_counter()) - began < wanted["seconds"]:
            session.run(names, feeds)
            runs += 1
        figures = {"samples": runs * batch, "wall_s": now - began, "cpu_s": time.process_time() - cpu}
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
