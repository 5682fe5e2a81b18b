"""Make variants, measure them on the machine at hand, and propose at most three to the gate.

Only selection rows are looked at. Cheap looks come first and losers go early: a variant is made, called a few times,
and its answers are held against the reference's; the best find out how they are best called and are timed in fresh
processes, in more of them the longer they stay (successive halving, Jamieson and Talwalkar 2016, arXiv:1502.07943).
Each variant that is not proposed says why in one line; the reference is always an honest way out. What was done is kept
in a folder, so a search that was stopped goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lightship.data.files import sha256_hex
from lightship.engine.machine import usable_cores
from lightship.engine.measure import PairedTiming, combined
from lightship.errors import InvalidInput, LightshipError, Refused
from lightship.optimize.answers import answers_of, quality_of, require_same_interface, up_to
from lightship.optimize.candidate import NOT_BEGUN, Candidate, Quality, Rows, Speed
from lightship.optimize.floor import floor_of
from lightship.optimize.front import with_front
from lightship.optimize.ledger import Ledger
from lightship.optimize.maker import Maker, PassProcess
from lightship.optimize.objective import TIMED, Objective
from lightship.optimize.plan import Plan
from lightship.optimize.timing import Call, Clockwork, Sweep, Way
from lightship.optimize.variant_pass import PassFailed, read_note
from lightship.tasks.npz import write_npz
from lightship.types import Json, Progress, Silent
from lightship.validate.fidelity import FidelityBudget

__all__ = ["MOST_PROPOSED", "SearchResult", "SearchSettings", "measure_file", "search"]

MOST_PROPOSED = 3
REFERENCE = "reference"
_PLAIN_LOSS = 0.05  # selection accuracy lost beyond which a gate look would be wasted, whatever the margin
_TIE = 0.05  # costs that differ by less are taken for equal, and the better answers go first
_ROUNDS = (1, 3, 7)  # fresh processes a candidate has been timed in after each round; 6 give a 95 % interval
_ROUNDS_NAMED = (3,)  # the gate does not ask of a named variant that it be faster
_KEPT = 0.5  # share that stays after each round, never fewer than may be proposed
_MAKING, _MADE = 0.6, 0.75  # shares of the time: no further variant is begun; the one that is being made is stopped
_PASS_SHARE, _LEAST_PASS_S = 0.2, 20.0  # of the time, and in seconds: what one variant may take to be made
_LONGEST_PASS_S = 3600.0  # of a named variant
_LOOK_SHARE, _SWEEP_SHARE, _PAIRS_SHARE = 0.004, 0.012, 0.004  # of the time: for one process that looks, sweeps, pairs
_LOOKED_AT = 6  # the best by a first look are swept and timed
_TIMED_ROWS = 64
_CHECKED_SHARE = 0.008  # of the time: what a look at the answers of the reference may cost
_LEAST_CHECKED = 64
_MOST_ANSWER_BYTES = 256 << 20
_NO_GAIN = 1.2  # of the cost by a first look: what is no faster than this is not worth making
_PLAINLY_DEAR = 2.0  # processes differ by this much by chance; what is dearer is not looked at any further


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """What is preferred and how it is measured.

    Attributes:
        objective: what a variant must be better at than the reference.
        minutes: of the whole search; what is under way is finished, what was not begun is said.
        batch: rows in a call whose latency counts.
        batches: rows in a call that are tried for throughput; none beyond what the model was proven for.
        pairs: most interleaved timing pairs a process.
        threads: of the engines, each tried.
        budget: how far answers may be from the reference's; None leaves that to the labels.
        named: a person asked for these variants: what can be made is proposed, however fast it is and however it
            answers, and the gate alone decides.
    """

    objective: Objective = field(default_factory=Objective)
    minutes: float = 5.0
    batch: int = 1
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    pairs: int = 200
    threads: tuple[int, ...] = field(default_factory=lambda: tuple(sorted({1, usable_cores()})))
    budget: FidelityBudget | None = None
    named: bool = False


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What was found.

    Attributes:
        reference: the reference's own figures; its speeds are told as times a call and rows a second.
        candidates: all that were tried, the proposed first and best first.
        minutes: that it took, all runs together.
        reference_calls: how the reference is best called, and what that takes.
        floor: the least time of a call of the reference on this machine, see ``floor``; None when it cannot be told.
    """

    reference: Candidate
    candidates: tuple[Candidate, ...]
    objective: Objective
    minutes: float
    reference_calls: Mapping[str, Json]
    floor: Mapping[str, Json] | None

    @property
    def proposed(self) -> tuple[Candidate, ...]:
        """The candidates that the gate shall look at, best first."""
        return tuple(each for each in self.candidates if not each.dropped)

    def to_json(self) -> dict[str, Json]:
        """Return what evidence and programs read: all but the graphs' bytes."""
        reference = self.reference
        return {
            "objective": dict(self.objective.weights),
            "minutes": round(self.minutes, 2),
            "cores": usable_cores(),
            "reference": {
                **self.reference_calls,
                "size_bytes": reference.size_bytes,
                "memory_bytes": reference.memory_bytes,
                "quality": reference.quality.to_json() if reference.quality else None,
            },
            "candidates": [each.to_json() for each in self.candidates],
            "floor": dict(self.floor) if self.floor else None,
        }


def search(
    reference: bytes,
    plans: Sequence[Plan],
    *,
    calibration: Sequence[Mapping[str, np.ndarray]],
    selection: Rows,
    judged: bool = True,
    settings: SearchSettings,
    folder: Path,
    progress: Progress,
    maker: Maker | None = None,
) -> SearchResult:
    """Try each plan on ``reference``; at most ``MOST_PROPOSED`` of the candidates have an empty ``dropped``.

    Args:
        reference: ONNX bytes.
        plans: what to try.
        calibration: batches of training rows by the name of the input, for passes that need them.
        selection: rows that answers are compared on, and that are timed.
        judged: False when the rows are only there to be timed (they are drawn, not data): answers are compared all the
            same, and what a lossless variant may not differ by is not judged here.
        settings: see there.
        folder: keeps what was made and measured; a later search with the same arguments goes on from it.
        progress: hears what is done.
        maker: applies the passes; by default a process that finds them by their names.

    Raises:
        LightshipError: the reference itself cannot be run.
    """
    with _scratch(folder) as scratch:
        maker = maker or PassProcess(scratch, calibration)
        try:
            at_work = _Search(reference, selection, settings, Ledger(folder), scratch, progress, judged=judged)
            return at_work.run(plans, maker)
        finally:
            maker.close()


def measure_file(
    name: str, graph: bytes, *, reference: bytes, selection: Rows, settings: SearchSettings, folder: Path
) -> SearchResult:
    """Return a graph that somebody else made as the one candidate, measured and proposed.

    Raises:
        InvalidInput: the engine cannot load it, or it has another interface than the reference.
        Refused: it reaches outside of itself, or it fails while it runs, or runs too long.
    """
    settings = replace(settings, named=True)
    with _scratch(folder) as scratch:
        try:
            at_work = _Search(reference, selection, settings, Ledger(folder), scratch, Silent(), judged=True)
            return at_work.measure_given(name, graph)
        except (InvalidInput, Refused):
            raise
        except LightshipError as exc:  # of a graph that somebody gave, a run that fails is the graph's fault, not ours
            raise Refused(f"The variant {name!r} is refused, the engine does not run it: {exc}") from exc


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Lend a folder for what lies about while processes run; what a killed search left there goes first."""
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _Search:
    """One search at work."""

    def __init__(
        self,
        reference: bytes,
        selection: Rows,
        settings: SearchSettings,
        ledger: Ledger,
        scratch: Path,
        progress: Progress,
        *,
        judged: bool,
    ) -> None:
        self._selection, self._settings = selection, settings
        self._ledger, self._progress, self._judged = ledger, progress, judged
        self._graph = reference
        self._threads = max(settings.threads)
        rows = ledger.folder / "rows.npz"
        rows.write_bytes(write_npz(selection.repeated(min(selection.count, _TIMED_ROWS))))
        self._clockwork = Clockwork(rows, scratch=scratch, batched=selection.batched)
        self._looks: dict[str, dict[str, PairedTiming]] = {}
        self._sweeps: dict[str, Sweep] = {}
        self._timings: dict[tuple[str, str], list[PairedTiming]] = {}
        ledger.keep_graph(REFERENCE, reference)
        self._base = Candidate(REFERENCE, size_bytes=len(reference), sha256=sha256_hex(reference))

    def run(self, plans: Sequence[Plan], maker: Maker) -> SearchResult:
        self._measure_reference()
        self._progress.start("Make variants and look at their answers", len(plans))
        tried: list[Candidate] = []
        for plan in plans:
            tried.append(each := self._looked_at(plan, tried, maker))
            self._progress.advance(note=f"{each.name}: {each.dropped or self._front_words(tried)}")
        self._progress.done(f"{sum(not each.dropped for each in tried)} of {len(tried)} answer well enough to be timed")
        return self._result(self._proposed(self._ranked(self._completed(self._halved(self._best_swept(tried))))))

    def _result(self, candidates: Sequence[Candidate]) -> SearchResult:
        return SearchResult(
            reference=self._base,
            candidates=with_front(self._base, candidates),
            objective=self._settings.objective,
            minutes=self._ledger.spent_s / 60,
            reference_calls=self._reference_calls(),
            floor=self._floor(),
        )

    def measure_given(self, name: str, graph: bytes) -> SearchResult:
        """Measure a graph that was made elsewhere; a failure is an error here."""
        self._measure_reference()
        candidate = Candidate(name, ("given",), precision="as given", size_bytes=len(graph), sha256=sha256_hex(graph))
        self._ledger.keep_graph(_chain(candidate), graph)
        self._require_runs(candidate)
        candidate = self._swept(replace(candidate, quality=self._quality(candidate)))
        self._sweep_all(candidate)
        return self._result([self._with_graph(self._timed_for(candidate, TIMED))])

    # ---- the reference ----------------------------------------------------------------------------------------------

    def _measure_reference(self) -> None:
        self._progress.start("Measure the reference")
        runner = self._loaded(self._base).runner(batched=self._selection.batched)
        self._interface = runner.interface
        runner.close()
        self._require_runs(self._base)
        self._base = self._swept(self._base)
        self._sweep_all(self._base)
        self._base = replace(self._base, quality=self._quality(self._base))
        call = self._sweeps[REFERENCE]
        self._progress.done(f"{call.call_ms[call.quickest(self._settings.batch)]:.3g} ms a call")

    def _reference_calls(self) -> dict[str, Json]:
        sweep = self._sweeps[REFERENCE]
        quick, busy = sweep.quickest(self._settings.batch), sweep.busiest()
        return {
            "latency": {"p50_ms": sweep.call_ms[quick], "threads": quick.threads, "batch": quick.batch},
            "throughput": {
                "rows_per_s": 1000 * busy.batch / sweep.call_ms[busy],
                "threads": busy.threads,
                "batch": busy.batch,
            },
        }

    def _floor(self) -> Mapping[str, Json] | None:
        settings, sweep = self._settings, self._sweeps[REFERENCE]
        call_ms = sweep.call_ms[sweep.quickest(settings.batch)]
        floor = floor_of(self._graph, self._selection.repeated(settings.batch), call_ms=call_ms)
        return floor.to_json(call_ms=call_ms) if floor else None

    # ---- one candidate ----------------------------------------------------------------------------------------------

    def _looked_at(self, plan: Plan, before: Sequence[Candidate], maker: Maker) -> Candidate:
        """Make a candidate, call it a few times, compare its answers; dropped as soon as it has lost."""
        candidate = Candidate(
            plan.name, tuple(each.name for each in plan.passes), plan.engine, plan.options, plan.precision
        )
        begun = self._ledger.failed(f"make {_chain(candidate)}") or self._ledger.knows(f"run {candidate.name}")
        if self._is_late(_MAKING) and before and not begun and not self._settings.named:
            minutes = f"{self._settings.minutes:g} minutes"
            return replace(candidate, dropped=f"{NOT_BEGUN}: too little was left of the {minutes}. Give it more")
        if (reason := self._needless(plan, before)) and not self._settings.named:
            return replace(candidate, dropped=reason)
        try:
            candidate = self._made(candidate, plan, maker)
            if (twin := self._twin(candidate, before)) and not self._settings.named:
                return replace(candidate, dropped=f"the same graph as {twin}, run in the same way")
            self._require_runs(candidate)
            self._look(candidate)
            if (reason := self._too_dear(candidate)) and not self._settings.named:
                return replace(candidate, dropped=reason)
            candidate = replace(candidate, quality=self._quality(candidate))
            if (reason := self._too_different(candidate)) and not self._settings.named:
                return replace(candidate, dropped=reason)
            return candidate
        except PassFailed as exc:
            return replace(candidate, dropped=str(exc))
        except LightshipError as exc:
            return replace(candidate, dropped=f"the engine does not run it: {exc}")

    def _needless(self, plan: Plan, before: Sequence[Candidate]) -> str:
        """Say why a plan that would only bring another one's answers nearer to the reference's is not worth making."""
        alike = (
            each for each in before if plan.rescues and (each.passes, each.engine) == ((plan.rescues,), plan.engine)
        )
        other = next((each for each in alike if each.name in self._looks), None)
        if other is None:
            return ""
        if (cost := self._rough_cost(other)) > _NO_GAIN:
            return f"not tried: it is no faster than {other.name}, and that takes {self._rough_words(cost)}"
        return "" if other.dropped or not self._is_true(other) else f"not tried: {other.name} answers well enough"

    def _is_true(self, candidate: Candidate) -> bool:
        """Return whether nothing seems lost on the selection rows."""
        quality, base = candidate.quality, self._base.quality
        if quality is None or base is None:
            return False
        if quality.correct is not None and base.correct is not None:
            return quality.correct >= base.correct
        return not _missed(quality, self._settings.budget or FidelityBudget(), surely=True)

    def _made(self, candidate: Candidate, plan: Plan, maker: Maker) -> Candidate:
        def work() -> Json:
            graph = maker.make(plan.passes, self._graph, limit_s=self._pass_s()) if plan.passes else self._graph
            self._ledger.keep_graph(_chain(candidate), graph)
            return {"size_bytes": len(graph), "sha256": sha256_hex(graph), "note": _note(graph) if plan.passes else ""}

        key = f"make {_chain(candidate)}"
        if not self._ledger.graph(_chain(candidate)).exists() and not self._ledger.failed(key):
            self._ledger.forget(key)
        try:
            found: Any = self._ledger.recall(key, work)
        except LightshipError as exc:
            raise PassFailed(str(exc)) from exc
        notes = (found["note"],) if found["note"] else ()
        return replace(candidate, size_bytes=found["size_bytes"], sha256=found["sha256"], notes=notes)

    def _pass_s(self) -> float:
        """Return how long a variant may take to be made: so long that the others can be tried too."""
        if self._settings.named:
            return _LONGEST_PASS_S
        left_s = self._seconds(_MADE) - self._ledger.spent_s
        return max(min(self._seconds(_PASS_SHARE), left_s), _LEAST_PASS_S)

    def _twin(self, candidate: Candidate, before: Sequence[Candidate]) -> str | None:
        for other in (self._base, *before):
            if (other.sha256, other.engine, dict(other.options)) == (
                candidate.sha256,
                candidate.engine,
                dict(candidate.options),
            ):
                return other.name
        return None

    def _require_runs(self, candidate: Candidate) -> None:
        """Run it once under a limit: the timed runs have none but that of their process."""

        def work() -> Json:
            runner = self._loaded(candidate).runner(batched=self._selection.batched, limited=True)
            try:
                require_same_interface(runner.interface, self._interface)
                runner.run(self._selection.repeated(self._settings.batch))
            finally:
                runner.close()
            return None

        self._ledger.recall(f"run {candidate.name}", work)

    def _quality(self, candidate: Candidate) -> Quality:
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
        sweep = self._sweeps[REFERENCE]
        busy = sweep.busiest()
        row_s = sweep.call_ms[busy] / busy.batch / 1000
        return self._selection.first(int(max(_LEAST_CHECKED, self._seconds(_CHECKED_SHARE) / row_s)))

    @cached_property
    def _expected(self) -> list[Mapping[str, np.ndarray]]:
        """What the reference answers to them, batch by batch."""
        runner = self._loaded(self._base).runner(threads=self._threads, batched=self._selection.batched, limited=True)
        try:
            return up_to(answers_of(runner, self._looked_at_rows), _MOST_ANSWER_BYTES)
        finally:
            runner.close()

    @property
    def _batches(self) -> list[int]:
        return sorted({self._settings.batch, *self._settings.batches}) if self._selection.batched else [1]

    def _too_dear(self, candidate: Candidate) -> str:
        """Say that a candidate is so far behind the reference in one process that no luck explains it."""
        cost = self._rough_cost(candidate)
        return "" if cost < _PLAINLY_DEAR else self._rough_words(cost)

    def _rough_cost(self, candidate: Candidate) -> float:
        """Return the cost by one process, which chance may have made half as slow or twice."""
        return self._settings.objective.rough_cost(
            {goal: timing.ratio.estimate for goal, timing in self._looks[candidate.name].items()}
            | {"size": candidate.size_bytes / self._base.size_bytes, "memory": 0.0}  # nobody knows the memory yet
        )

    def _rough_words(self, cost: float) -> str:
        return f"about {cost:.2g} times the reference's {self._settings.objective} in a first look"

    def _look(self, candidate: Candidate) -> None:
        """Time it beside the reference, called as that one is called best."""
        self._looks[candidate.name] = {
            goal: self._paired(
                f"look {goal} {candidate.name}", candidate, goal, self._call(REFERENCE, goal), _LOOK_SHARE
            )
            for goal in self._settings.objective.timed
        }

    def _swept(self, candidate: Candidate) -> Candidate:
        """Find how it is best called for the objective, and how much memory that takes."""
        batches = self._batches if "throughput" in self._settings.objective.weights else [self._settings.batch]
        sweep = self._swept_over("calls", candidate, batches)
        return replace(candidate, memory_bytes=sweep.memory_bytes)

    def _sweep_all(self, candidate: Candidate) -> None:
        """Find how it is best called for whatever goal, where that is not known."""
        if "throughput" not in self._settings.objective.weights:
            self._swept_over("sweep", candidate, self._batches)

    def _swept_over(self, what: str, candidate: Candidate, batches: Sequence[int]) -> Sweep:
        def work() -> Json:
            sweep = self._clockwork.sweep(
                self._way(candidate),
                threads=self._settings.threads,
                batches=batches,
                budget_s=self._seconds(_SWEEP_SHARE),
            )
            calls = [[call.threads, call.batch, ms] for call, ms in sweep.call_ms.items()]
            return {"calls": calls, "memory_bytes": sweep.memory_bytes}  # type: ignore[dict-item]

        found: Any = self._ledger.recall(f"{what} {candidate.name}", work)
        calls = {Call(threads, batch): ms for threads, batch, ms in found["calls"]}
        self._sweeps[candidate.name] = Sweep(calls, found["memory_bytes"])
        return self._sweeps[candidate.name]

    def _timed_for(self, candidate: Candidate, goals: Sequence[str]) -> Candidate:
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
                (self._way(self._base), self._call(REFERENCE, goal)),
                (self._way(candidate), call),
                budget_s=self._seconds(share),
                most_pairs=self._settings.pairs,
            ).to_json()

        found: Any = self._ledger.recall(key, work)
        return PairedTiming.from_json(found)

    def _call(self, name: str, goal: str) -> Call:
        return self._sweeps[name].best(goal, batch=self._settings.batch)

    def _way(self, candidate: Candidate) -> Way:
        return Way(self._ledger.graph(_chain(candidate)), candidate.engine, candidate.options)

    def _loaded(self, candidate: Candidate) -> Candidate:
        return candidate if candidate.graph else self._with_graph(candidate)

    def _with_graph(self, candidate: Candidate) -> Candidate:
        path = self._ledger.graph(_chain(candidate))
        graph = path.read_bytes()
        if sha256_hex(graph) != candidate.sha256:
            raise Refused(f"{path} is not the graph that was made and measured. Remove its folder and search again.")
        return replace(candidate, graph=graph)

    # ---- all candidates ---------------------------------------------------------------------------------------------

    def _best_swept(self, tried: Sequence[Candidate]) -> list[Candidate]:
        """Find how the best by a first look are best called; the others go."""
        ranked = sorted((each for each in tried if not each.dropped), key=self._rough_cost)
        settings = self._settings
        keep = len(ranked) if settings.named or "memory" in settings.objective.weights else _LOOKED_AT
        found = [each for each in tried if each.dropped]
        found += [
            replace(each, dropped=f"behind others: {self._rough_words(self._rough_cost(each))}")
            for each in ranked[keep:]
        ]
        self._progress.start(f"Find how the best {len(ranked[:keep])} are best called", len(ranked[:keep]))
        for each in ranked[:keep]:
            try:
                found.append(self._swept(each))
            except LightshipError as exc:
                found.append(replace(each, dropped=f"the engine does not run it: {exc}"))
            self._progress.advance(note=each.name)
        self._progress.done()
        return found

    def _halved(self, tried: Sequence[Candidate]) -> list[Candidate]:
        """Time what is left, in more processes each round, and let the slower half go; sizes need no time."""
        if not self._settings.objective.timed:
            return list(tried)
        alive = [each for each in tried if not each.dropped]
        lost = [each for each in tried if each.dropped]
        for processes in self._rounds():
            alive, failed = self._round(alive, processes)
            lost += failed
            keep = len(alive) if self._settings.named else max(MOST_PROPOSED, round(len(alive) * _KEPT))
            ranked = sorted(alive, key=self._cost)
            lost += [replace(each, dropped=self._behind(each, ranked[0])) for each in ranked[keep:]]
            alive = ranked[:keep]
            if any(self._count(each) < processes for each in alive):
                break  # the time is over
        return [*alive, *lost]

    def _rounds(self) -> tuple[int, ...]:
        return _ROUNDS_NAMED if self._settings.named else _ROUNDS

    def _round(self, alive: Sequence[Candidate], processes: int) -> tuple[list[Candidate], list[Candidate]]:
        self._progress.start(f"Time {len(alive)} variants in {processes} fresh processes each", len(alive))
        fine, failed = [], []
        for each in alive:
            candidate = each
            try:
                while self._count(candidate) < processes and self._may_time(candidate):
                    candidate = self._timed_for(candidate, self._settings.objective.timed)
                fine.append(candidate)
            except LightshipError as exc:
                failed.append(replace(candidate, dropped=f"the engine does not run it: {exc}"))
            self._progress.advance(note=f"{each.name}: {self._settings.objective.words(candidate, self._base)}")
        self._progress.done()
        return fine, failed

    def _may_time(self, candidate: Candidate) -> bool:
        """Return whether there is time for one more process: always for the first, and for one that stands written."""
        goal, count = self._settings.objective.timed[0], self._count(candidate)
        return not count or not self._is_late(1.0) or self._ledger.knows(f"pairs {goal} {candidate.name} {count}")

    def _count(self, candidate: Candidate) -> int:
        return len(self._timings.get((candidate.name, self._settings.objective.timed[0]), ()))

    def _completed(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Time what is left for the goals too that were not asked for, and what lost while there is time."""
        known = [each for each in candidates if each.memory_bytes is not None]
        found = [each for each in candidates if each.memory_bytes is None]
        self._progress.start("Time what else the front shows", len(known))
        for each in sorted(known, key=lambda each: (bool(each.dropped), self._cost(each))):
            goals = [goal for goal in TIMED if getattr(each, goal) is None]
            completed = each
            written = self._ledger.knows(f"pairs {goals[0]} {each.name} 0") if goals else True
            if goals and (not each.dropped or not self._is_late(1.0) or written):
                try:
                    self._sweep_all(each)
                    completed = self._timed_for(each, goals)
                except LightshipError as exc:
                    completed = replace(each, dropped=f"the engine does not run it: {exc}")
            found.append(completed)
            self._progress.advance(note=each.name)
        self._progress.done()
        return found

    def _ranked(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Give each loser its reason and sort: what may be proposed first, cheapest first, of equals the truest."""
        judged = [each if each.dropped else replace(each, dropped=self._reason(each)) for each in candidates]
        best = min((self._cost(each) for each in judged if not each.dropped), default=1.0)

        def key(each: Candidate) -> tuple[bool, float, float, str]:
            cost = self._cost(each)
            step = cost if each.dropped or cost == float("inf") else float(int((cost / best - 1) / _TIE))
            return (bool(each.dropped), step, -_truth(each), each.name)

        return sorted(judged, key=key)

    def _proposed(self, ranked: Sequence[Candidate]) -> list[Candidate]:
        found = []
        for place, each in enumerate(ranked):
            if each.dropped:
                found.append(each)
            elif place >= MOST_PROPOSED:
                found.append(replace(each, dropped=f"{MOST_PROPOSED} better ones are proposed"))
            else:
                found.append(self._with_graph(each))
        return found

    def _reason(self, candidate: Candidate) -> str:
        objective = self._settings.objective
        if self._settings.named or objective.shown(candidate, self._base):
            return ""
        return f"not shown to be better than the reference: {objective.words(candidate, self._base)}"

    def _behind(self, candidate: Candidate, best: Candidate) -> str:
        words = self._settings.objective.words
        return f"behind others: {words(candidate, self._base)}; the best, {best.name}: {words(best, self._base)}"

    def _too_different(self, candidate: Candidate) -> str:
        """Say why a look at the gate rows would be wasted on this candidate; empty when it would not."""
        quality, base = candidate.quality, self._base.quality
        if quality is None or base is None or not self._judged:
            return ""
        if quality.nonfinite_rows and quality.correct is None:
            return f"answers {quality.nonfinite_rows} of {quality.rows} selection rows with NaN or infinity"
        if quality.correct is not None and base.correct is not None:
            lost = (base.correct - quality.correct) / max(quality.rows, 1)
            if lost > _PLAIN_LOSS:
                return f"loses {lost:.1%} accuracy on the selection rows"
        return _missed(quality, self._settings.budget) if self._settings.budget else ""

    def _cost(self, candidate: Candidate) -> float:
        return self._settings.objective.cost(candidate, self._base)

    def _front_words(self, tried: Sequence[Candidate]) -> str:
        """Say which candidate leads so far, by a first look."""
        alive = [each for each in tried if not each.dropped]
        if not alive or tried[-1].dropped:
            return "made"
        leader = min(alive, key=self._rough_cost)
        return f"{1 / self._rough_cost(tried[-1]):.2g}x; leading: {leader.name}"

    def _is_late(self, share: float) -> bool:
        return self._ledger.spent_s > self._seconds(share)

    def _seconds(self, share: float) -> float:
        return share * 60 * self._settings.minutes


def _missed(quality: Quality, budget: FidelityBudget, *, surely: bool = False) -> str:
    """Say which figure is below its budget; ``surely`` holds the low ends of the intervals against it."""
    for name, found, least in (
        ("agreement", quality.agreement, budget.min_agreement),
        ("cosine", quality.cosine, budget.min_cosine),
        ("SNR in dB", quality.snr_db, budget.min_snr_db),
    ):
        if found is not None and least is not None and (found.low if surely else found.estimate) < least:
            return f"{name} to the reference is {found.estimate:.4g} on the selection rows, below the {least:g} allowed"
    return ""


def _chain(candidate: Candidate) -> str:
    """Name the graph's file: one for each chain of passes, whichever engines run it."""
    return "-then-".join(candidate.passes) or REFERENCE


def _truth(candidate: Candidate) -> float:
    quality = candidate.quality
    if quality is None:
        return 0.0
    if quality.correct is not None:
        return float(quality.correct)
    return quality.cosine.estimate if quality.cosine else 0.0


def _note(graph: bytes) -> str:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return read_note(graph)
    except DecodeError:  # what somebody's pass gave is no graph; the engine says so
        return ""
