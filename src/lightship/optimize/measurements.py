"""What is known of the reference and each candidate of a search: made, run and timed once, and kept in its ledger."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lightship.data.files import sha256_hex
from lightship.engine.measure import PairedTiming, combined
from lightship.errors import LightshipError, Refused
from lightship.optimize.answers import answers_of, quality_of, random_operators, require_same_interface, up_to
from lightship.optimize.candidate import Candidate, Quality, Rows, Speed
from lightship.optimize.floor import floor_of
from lightship.optimize.ledger import Ledger
from lightship.optimize.maker import Maker
from lightship.optimize.plan import Plan
from lightship.optimize.settings import SearchSettings
from lightship.optimize.timing import Call, Clockwork, Sweep, Way
from lightship.optimize.variant_pass import PassFailed, read_note
from lightship.tasks.npz import write_npz
from lightship.types import Interface, Json
from lightship.validate.meters import Kind

__all__ = ["REFERENCE", "Measurements"]

REFERENCE = "reference"
_LOOK_SHARE, _SWEEP_SHARE, _PAIRS_SHARE = 0.004, 0.012, 0.004  # of the time: for one process that looks, sweeps, pairs
_REFERENCE_SWEEPS = 3
_TIMED_ROWS = 64
_CHECKED_SHARE = 0.008  # of the time: what a look at the answers of the reference may cost
_LEAST_CHECKED = 64
_MOST_ANSWER_BYTES = 256 << 20


class Measurements:
    """Measures the reference when it is made, and candidates when asked.

    Args:
        reference: ONNX bytes.
        selection: rows that answers are compared on, and that are timed.
        settings: of the search.
        ledger: keeps everything.
        scratch: for files of the processes that measure.

    Raises:
        LightshipError: the reference cannot be run.
    """

    def __init__(
        self, reference: bytes, selection: Rows, settings: SearchSettings, ledger: Ledger, scratch: Path
    ) -> None:
        self._graph, self._selection, self._settings, self._ledger = reference, selection, settings, ledger
        self._threads = max(settings.threads)
        rows = ledger.folder / "rows.npz"
        rows.write_bytes(write_npz(selection.repeated(min(selection.count, _TIMED_ROWS))))
        self._clockwork = Clockwork(rows, scratch=scratch, batched=selection.batched)
        self._looks: dict[str, dict[str, PairedTiming]] = {}
        self._sweeps: dict[str, dict[str, Sweep]] = {}  # by name and process
        self._timings: dict[tuple[str, str], list[PairedTiming]] = {}
        ledger.keep_graph(REFERENCE, reference)
        self.base = Candidate(REFERENCE, size_bytes=len(reference), sha256=sha256_hex(reference))
        """The reference as a candidate, with its figures."""
        self._interface = self._interface_of(self.base)
        self.require_runs(self.base)
        for process in range(_REFERENCE_SWEEPS):  # a wrong word on the reference would be one on every candidate
            self.base = self.swept(self.base, process=process)
        self.sweep_all(self.base)
        self.base = replace(self.base, quality=self.quality(self.base))

    def _interface_of(self, candidate: Candidate) -> Interface:
        runner = self._loaded(candidate).runner(batched=self._selection.batched)
        try:
            return runner.interface
        finally:
            runner.close()

    # ---- the reference ----------------------------------------------------------------------------------------------

    def reference_calls(self) -> dict[str, Json]:
        """Return how the reference is best called, and what that takes."""
        sweep = self._sweep_of(REFERENCE)
        quick, busy = sweep.quickest(self._settings.batch), sweep.busiest()
        return {
            "latency": {"p50_ms": sweep.call_ms[quick], "threads": quick.threads, "batch": quick.batch},
            "throughput": {
                "rows_per_s": 1000 * busy.batch / sweep.call_ms[busy],
                "threads": busy.threads,
                "batch": busy.batch,
            },
        }

    def floor(self) -> Mapping[str, Json] | None:
        """Return the least time of a call of the reference on this machine (``floor``); None if nobody can tell."""
        floor = floor_of(self._graph, self._selection.repeated(self._settings.batch), call_ms=self.base_ms)
        return floor.to_json(call_ms=self.base_ms) if floor else None

    @property
    def base_ms(self) -> float:
        """What a call of the reference takes."""
        sweep = self._sweep_of(REFERENCE)
        return sweep.call_ms[sweep.quickest(self._settings.batch)]

    # ---- one candidate ----------------------------------------------------------------------------------------------

    def made(self, candidate: Candidate, plan: Plan, maker: Maker, *, limit_s: float) -> Candidate:
        """Make the graph of a plan.

        Raises:
            PassFailed: it cannot be made, or not within the limit.
        """

        def work() -> Json:
            graph = maker.make(plan.passes, self._graph, limit_s=limit_s) if plan.passes else self._graph
            self._ledger.keep_graph(chain_of(candidate), graph)
            return {"size_bytes": len(graph), "sha256": sha256_hex(graph), "note": _note(graph) if plan.passes else ""}

        key = f"make {chain_of(candidate)}"
        if not self._ledger.graph(chain_of(candidate)).exists() and not self._ledger.failed(key):
            self._ledger.forget(key)
        try:
            found: Any = self._ledger.recall(key, work)
        except LightshipError as exc:
            raise PassFailed(str(exc)) from exc
        notes = (found["note"],) if found["note"] else ()
        return replace(candidate, size_bytes=found["size_bytes"], sha256=found["sha256"], notes=notes)

    def given(self, candidate: Candidate, graph: bytes) -> Candidate:
        """Take a graph that was made elsewhere."""
        self._ledger.keep_graph(chain_of(candidate), graph)
        return replace(candidate, size_bytes=len(graph), sha256=sha256_hex(graph))

    def require_runs(self, candidate: Candidate) -> None:
        """Run it once under a limit: the timed runs have none but that of their process.

        Raises:
            LightshipError: the engine does not run it, or it has another interface than the reference.
        """

        def work() -> Json:
            runner = self._loaded(candidate).runner(batched=self._selection.batched, limited=True)
            try:
                require_same_interface(runner.interface, self._interface)
                runner.run(self._selection.repeated(self._settings.batch))
            finally:
                runner.close()
            return None

        self._ledger.recall(f"run {candidate.name}", work)

    def require_no_chance(self, candidate: Candidate) -> None:
        """Refuse what draws random numbers where the reference does not: it may be right whenever somebody looks.

        Raises:
            PassFailed: names the operators.
        """

        def work() -> Json:
            return [*sorted(random_operators(self._loaded(candidate).graph) - random_operators(self._graph))]

        drawn: Any = self._ledger.recall(f"chance {candidate.name}", work)
        if drawn:
            raise PassFailed(
                f"it draws random numbers ({', '.join(drawn)}), which the reference does not: no test can tell "
                "what it answers next"
            )

    @property
    def kind(self) -> Kind:
        """What the labels of the selection rows are, if they have some."""
        return self._selection.kind

    def lost(self, candidate: Candidate) -> float | None:
        """Return what it loses against the labels: a share of rows or tags; of numbers, by which share errors grow."""
        quality, base = candidate.quality, self.base.quality
        if quality is None or base is None:
            return None
        if quality.correct is not None and base.correct is not None:
            return (base.correct - quality.correct) / max(quality.rows, 1)
        if quality.loss is None or base.loss is None:
            return None
        if self.kind == "tags":
            return quality.loss - base.loss
        return quality.loss / base.loss - 1 if base.loss > 0 else 0.0 if quality.loss == 0 else math.inf

    def quality(self, candidate: Candidate) -> Quality:
        """Hold its answers to the selection rows against the reference's."""

        def work() -> Json:
            rows = self._looked_at_rows
            if candidate.name == REFERENCE:
                return quality_of(self._expected, self._expected, rows).to_json()
            loaded = self._loaded(candidate)
            runner = loaded.runner(threads=self._threads, batched=self._selection.batched, limited=True)
            try:
                return quality_of(answers_of(runner, rows), self._expected, rows).to_json()
            finally:
                runner.close()

        found: Any = self._ledger.recall(f"answers {candidate.name}", work)
        return Quality.from_json(found)

    @cached_property
    def _looked_at_rows(self) -> Rows:
        """The selection rows that every variant is looked at on: as many as the time allows."""
        sweep = self._sweep_of(REFERENCE)
        busy = sweep.busiest()
        row_s = sweep.call_ms[busy] / busy.batch / 1000
        return self._selection.first(int(max(_LEAST_CHECKED, self.seconds(_CHECKED_SHARE) / row_s)))

    @cached_property
    def _expected(self) -> list[Mapping[str, np.ndarray]]:
        """What the reference answers to them, batch by batch."""
        runner = self._loaded(self.base).runner(threads=self._threads, batched=self._selection.batched, limited=True)
        try:
            return up_to(answers_of(runner, self._looked_at_rows), _MOST_ANSWER_BYTES)
        finally:
            runner.close()

    @property
    def _batches(self) -> list[int]:
        return sorted({self._settings.batch, *self._settings.batches}) if self._selection.batched else [1]

    def look(self, candidate: Candidate) -> None:
        """Time it beside the reference, called as that one is called best."""
        self._looks[candidate.name] = {
            goal: self._paired(
                f"look {goal} {candidate.name}", candidate, goal, self._call(REFERENCE, goal), _LOOK_SHARE
            )
            for goal in self._settings.objective.timed
        }

    def was_looked_at(self, candidate: Candidate) -> bool:
        """Return whether ``look`` came that far."""
        return candidate.name in self._looks

    def rough_cost(self, candidate: Candidate) -> float:
        """Return the cost by a look at one process, which chance may have made half as slow or twice."""
        return self._settings.objective.rough_cost(
            {goal: timing.ratio.estimate for goal, timing in self._looks[candidate.name].items()}
            | {"size": candidate.size_bytes / self.base.size_bytes, "memory": 0.0}  # nobody knows the memory yet
        )

    def swept(self, candidate: Candidate, *, process: int = 0) -> Candidate:
        """Find how it is best called for the objective, and how much memory that takes."""
        batches = self._batches if "throughput" in self._settings.objective.weights else [self._settings.batch]
        sweep = self._swept_over("calls", candidate, batches, process)
        return replace(candidate, memory_bytes=sweep.memory_bytes)

    def sweep_all(self, candidate: Candidate) -> None:
        """Find how it is best called for whatever goal, where that is not known."""
        if "throughput" not in self._settings.objective.weights:
            self._swept_over("sweep", candidate, self._batches, 0)

    def _swept_over(self, what: str, candidate: Candidate, batches: Sequence[int], process: int) -> Sweep:
        def work() -> Json:
            sweep = self._clockwork.sweep(
                self._way(candidate),
                threads=self._settings.threads,
                batches=batches,
                budget_s=self.seconds(_SWEEP_SHARE),
            )
            calls = [[call.threads, call.batch, ms] for call, ms in sweep.call_ms.items()]
            return {"calls": calls, "memory_bytes": sweep.memory_bytes}  # type: ignore[dict-item]

        key = f"{what} {candidate.name}" + (f" {process}" if process else "")
        found: Any = self._ledger.recall(key, work)
        calls = {Call(threads, batch): ms for threads, batch, ms in found["calls"]}
        sweep = self._sweeps.setdefault(candidate.name, {})[key] = Sweep(calls, found["memory_bytes"])
        return sweep

    def _sweep_of(self, name: str) -> Sweep:
        """Return the median of what its processes say."""
        sweeps = self._sweeps[name].values()
        calls = dict.fromkeys(call for sweep in sweeps for call in sweep.call_ms)
        told = {call: [sweep.call_ms[call] for sweep in sweeps if call in sweep.call_ms] for call in calls}
        return Sweep(
            {call: float(np.median(times)) for call, times in told.items()}, max(each.memory_bytes for each in sweeps)
        )

    def timed_for(self, candidate: Candidate, goals: Sequence[str]) -> Candidate:
        """Time a candidate against the reference in one more fresh process for each of these goals."""
        for goal in goals:
            speed = self._speed(candidate, goal)
            candidate = replace(candidate, latency=speed) if goal == "latency" else replace(candidate, throughput=speed)
        return candidate

    def _speed(self, candidate: Candidate, goal: str) -> Speed:
        mine, base = self._call(candidate.name, goal), self._call(REFERENCE, goal)
        timings = self._timings.setdefault((candidate.name, goal), [])
        key = f"pairs {goal} {candidate.name} {len(timings)}"
        timings.append(self._paired(key, candidate, goal, mine, _PAIRS_SHARE))
        return Speed(combined(timings), mine.threads, mine.batch, base.threads, base.batch)

    def _paired(self, key: str, candidate: Candidate, goal: str, call: Call, share: float) -> PairedTiming:
        """Time it in pairs with the reference at its best, in a fresh process."""

        def work() -> Json:
            return self._clockwork.pairs(
                (self._way(self.base), self._call(REFERENCE, goal)),
                (self._way(candidate), call),
                budget_s=self.seconds(share),
                most_pairs=self._settings.pairs,
            ).to_json()

        found: Any = self._ledger.recall(key, work)
        return PairedTiming.from_json(found)

    def _call(self, name: str, goal: str) -> Call:
        return self._sweep_of(name).best(goal, batch=self._settings.batch)

    def count(self, candidate: Candidate, goal: str) -> int:
        """Return in how many processes it was timed for a goal."""
        return len(self._timings.get((candidate.name, goal), ()))

    def stands_written(self, candidate: Candidate, goal: str) -> bool:
        """Return whether one more process for a goal stands in the ledger: to time it again takes no time."""
        return self._ledger.knows(f"pairs {goal} {candidate.name} {self.count(candidate, goal)}")

    def was_begun(self, candidate: Candidate) -> bool:
        """Return whether an earlier run came so far as to make it."""
        return self._ledger.failed(f"make {chain_of(candidate)}") or self._ledger.knows(f"run {candidate.name}")

    def _way(self, candidate: Candidate) -> Way:
        return Way(self._ledger.graph(chain_of(candidate)), candidate.engine, candidate.options)

    def _loaded(self, candidate: Candidate) -> Candidate:
        return candidate if candidate.graph else self.with_graph(candidate)

    def with_graph(self, candidate: Candidate) -> Candidate:
        """Return it with the bytes of its graph.

        Raises:
            Refused: they are not the bytes that were measured.
        """
        path = self._ledger.graph(chain_of(candidate))
        graph = path.read_bytes()
        if sha256_hex(graph) != candidate.sha256:
            raise Refused(f"{path} is not the graph that was made and measured. Remove its folder and search again.")
        return replace(candidate, graph=graph)

    # ---- the time ---------------------------------------------------------------------------------------------------

    @property
    def spent_s(self) -> float:
        """How long everything took, all runs together."""
        return self._ledger.spent_s

    def is_late(self, share: float) -> bool:
        """Return whether this share of the time is over, all runs together."""
        return self._ledger.spent_s > self.seconds(share)

    def seconds(self, share: float) -> float:
        """Return a share of the time."""
        return share * 60 * self._settings.minutes


def chain_of(candidate: Candidate) -> str:
    """Name the graph's file: one for each chain of passes, whichever engines run it."""
    return "-then-".join(candidate.passes) or REFERENCE


def _note(graph: bytes) -> str:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return read_note(graph)
    except DecodeError:  # what somebody's pass gave is no graph; the engine says so
        return ""
