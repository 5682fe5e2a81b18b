"""Asks fresh processes how fast a graph is; see ``timing_process``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightship.engine.measure import PairedTiming
from lightship.engine.runner import LONGEST_RUN_S
from lightship.errors import LightshipError
from lightship.optimize.ledger import Interrupted
from lightship.types import Json

__all__ = ["Call", "Clockwork", "Sweep", "Way"]


@dataclass(frozen=True, slots=True)
class Way:
    """A graph's file with the way to run it."""

    graph: Path
    engine: str
    options: Mapping[str, Json]

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form for a job."""
        return {"graph": str(self.graph), "engine": self.engine, "options": dict(self.options)}


@dataclass(frozen=True, slots=True)
class Call:
    """How a graph is called: threads of its engine, and rows in a call."""

    threads: int
    batch: int


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one process found of one graph.

    Attributes:
        call_ms: median time of a call, by how it was called.
        memory_bytes: most memory in use beyond that of the idle process.
    """

    call_ms: Mapping[Call, float]
    memory_bytes: int

    def quickest(self, batch: int) -> Call:
        """Return the threads at which a call of ``batch`` rows takes least time."""
        calls = [call for call in self.call_ms if call.batch == batch]
        return min(calls or self.call_ms, key=lambda call: self.call_ms[call])

    def best(self, goal: str, *, batch: int) -> Call:
        """Return the call for ``latency`` (of ``batch`` rows) or ``throughput``."""
        return self.quickest(batch) if goal == "latency" else self.busiest()

    def busiest(self) -> Call:
        """Return the call at which most rows a second are served; of nearly equal ones the smallest batch."""
        rates = {call: call.batch / ms for call, ms in self.call_ms.items()}
        good = [call for call, rate in rates.items() if rate >= 0.97 * max(rates.values())]
        return min(good, key=lambda call: (call.batch, call.threads))


class Clockwork:
    """Times graphs on the same rows.

    Args:
        rows: a ``.npz`` file with rows of every input.
        scratch: where the files of the processes may lie while they run.
        batched: whether the first axis of the graph are rows.
    """

    def __init__(self, rows: Path, *, scratch: Path, batched: bool = True) -> None:
        self._rows, self._scratch, self._batched = rows, scratch, batched

    def sweep(self, way: Way, *, threads: Sequence[int], batches: Sequence[int], budget_s: float) -> Sweep:
        """Call a graph at all threads and batches, in a process of its own.

        Raises:
            LightshipError: the engine does not run it, or the process took too long or died.
        """
        found = self._ask(None, way.to_json(), budget_s, threads=[*threads], batches=[*batches])
        calls = {Call(each["threads"], each["batch"]): each["call_ms"] for each in found["calls"]}
        return Sweep(calls, found["memory_bytes"])

    def pairs(
        self, reference: tuple[Way, Call], candidate: tuple[Way, Call], *, budget_s: float, most_pairs: int
    ) -> PairedTiming:
        """Time both in a fresh process, in interleaved pairs; milliseconds a *row*.

        Raises:
            LightshipError: as ``sweep``.
        """
        found = self._ask(_called(*reference), _called(*candidate), budget_s, most_pairs=most_pairs)
        return PairedTiming.from_json(found["timing"])

    def _ask(
        self, reference: dict[str, Json] | None, candidate: dict[str, Json], budget_s: float, **more: Json
    ) -> dict[str, Any]:
        job = {"reference": reference, "candidate": candidate, "rows": str(self._rows), "batched": self._batched}
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            path = Path(folder) / "job.json"
            path.write_text(json.dumps({**job, "budget_s": budget_s, **more}))
            try:
                done = subprocess.run(  # noqa: S603 - our own interpreter and module, no shell
                    (sys.executable, "-P", "-m", "lightship.optimize.timing_process", str(path)),
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=LONGEST_RUN_S + 3 * budget_s,
                    check=False,
                    cwd=folder,
                    env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
                )
            except subprocess.TimeoutExpired as exc:
                raise Interrupted(f"it was stopped after {exc.timeout:.0f} s of being timed") from exc
        return _answer(done)


def _called(way: Way, call: Call) -> dict[str, Json]:
    return {**way.to_json(), "threads": call.threads, "batch": call.batch}


def _answer(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    if done.returncode < 0:
        raise Interrupted(
            f"the process that timed it was killed by signal {-done.returncode}; that happens when memory runs out"
        )
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError as exc:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise LightshipError(f"the process that timed it ended with {done.returncode}: {last[:300]}") from exc
    if "error" in found:
        raise LightshipError(found["error"])
    return found
