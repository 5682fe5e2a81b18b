"""A fresh process that times graphs and ends: ``python -m lightship.optimize.timing_process JOB.json``.

A process keeps the luck of its start: where its memory lies, how its threads were placed. So one process is one
observation, and the search starts several. The job names files; what was measured goes to standard output as JSON.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lightship.engine.measure import calls_in_a_row, interleaved
from lightship.engine.runner import EngineOptions, Runner, load_runner
from lightship.errors import LightshipError
from lightship.tasks.npz import read_npz
from lightship.types import Json

_PR_SET_PDEATHSIG = 1
_WARMUP = 2
_LEAST_CALLS, _LEAST_PAIRS, _MOST_CALLS = 3, 6, 300
_FALLING = 0.8  # two batches in a row that serve so much less than the best one end the sweep: larger ones do as well
_LONGEST_CALL_S = 2.0
_LONG_ENOUGH_S = 0.5  # for the median of one way to call it


def main() -> int:
    """Do the job that the one argument names."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # whoever asked is gone: nobody wants the answer
    job = json.loads(Path(sys.argv[1]).read_bytes())
    try:
        answer = _alone(job) if job["reference"] is None else _pairs(job)
    except LightshipError as exc:
        answer = {"error": str(exc)}
    sys.stdout.write(json.dumps(answer))
    return 0


def _load(way: Mapping[str, Any], *, threads: int, batched: bool) -> Runner:
    options = replace(EngineOptions.from_json(way["options"], threads=threads), batched=batched)
    return load_runner(Path(way["graph"]).read_bytes(), engine=way["engine"], options=options)


def _rows(job: Mapping[str, Any], count: int) -> dict[str, np.ndarray]:
    rows = read_npz(Path(job["rows"]).read_bytes())
    if not job["batched"]:
        return rows
    order = np.arange(count) % len(next(iter(rows.values())))
    return {name: np.ascontiguousarray(array[order]) for name, array in rows.items()}


def _pairs(job: Mapping[str, Any]) -> dict[str, Json]:
    """Time the reference and the candidate, each at its own threads and batch, as milliseconds a row."""
    sides: list[Callable[[], object]] = []
    counts = []
    for key in ("reference", "candidate"):
        way = job[key]
        runner = _load(way, threads=way["threads"], batched=job["batched"])
        inputs = _rows(job, way["batch"])
        sides.append(lambda runner=runner, inputs=inputs: runner.run(inputs))  # type: ignore[misc]
        counts.append(way["batch"] if job["batched"] else 1)
    in_a_row = (_in_a_row(sides[0]), _in_a_row(sides[1]))
    started = time.perf_counter()
    for side, count in zip(sides, in_a_row, strict=True):
        for _ in range(count + (count > 1)):
            side()
    pair_s = time.perf_counter() - started
    pairs = int(min(max(job["budget_s"] / max(pair_s, 1e-6), _LEAST_PAIRS), job["most_pairs"]))
    rows = (counts[0], counts[1])
    timing = interleaved(sides[0], sides[1], pairs=pairs, warmup=_WARMUP, rows=rows, in_a_row=in_a_row)
    return {"timing": timing.to_json()}


def _in_a_row(side: Callable[[], object]) -> int:
    """Warm a side up, and return how often it is called in a turn."""
    for _ in range(_WARMUP):
        side()
    started = time.perf_counter()
    side()
    return calls_in_a_row(time.perf_counter() - started)


def _alone(job: Mapping[str, Any]) -> dict[str, Json]:
    """Find the best threads and batch of the candidate, and how much memory it takes."""
    before = _peak_bytes()
    way = job["candidate"]
    calls: list[Json] = []
    best = 0.0
    for threads in sorted(job["threads"], reverse=True):
        runner = _load(way, threads=threads, batched=job["batched"])
        found, best = _sweep(runner, job, threads=threads, best=best)
        calls += found
        runner.close()
    return {"calls": calls, "memory_bytes": max(0, _peak_bytes() - before)}


def _sweep(runner: Runner, job: Mapping[str, Any], *, threads: int, best: float) -> tuple[list[Json], float]:
    """Call it in growing batches until they fall behind ``best``, the most rows a second so far, which is returned."""
    found: list[Json] = []
    falling, budget_s = 0, job["budget_s"] / len(job["threads"])
    until = time.perf_counter() + budget_s
    for batch in job["batches"]:
        inputs = _rows(job, batch)
        call_s = _call_s(lambda inputs=inputs: runner.run(inputs), budget_s / len(job["batches"]))  # type: ignore[misc]
        found.append({"threads": threads, "batch": batch, "call_ms": call_s * 1000})
        best = max(best, batch / call_s)
        falling = falling + 1 if batch / call_s < _FALLING * best else 0
        if falling == 2 or call_s > _LONGEST_CALL_S or time.perf_counter() > until:
            break
    return found, best


def _call_s(call: Callable[[], object], budget_s: float) -> float:
    call()  # an engine may prepare itself for this size
    taken: list[float] = []
    until = time.perf_counter() + min(budget_s, _LONG_ENOUGH_S)
    while len(taken) < _LEAST_CALLS or (time.perf_counter() < until and len(taken) < _MOST_CALLS):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
        if taken[-1] > _LONGEST_CALL_S:
            break
    return float(np.median(taken))


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    sys.exit(main())
