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
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lightship.engine.machine import usable_cores
from lightship.errors import InvalidInput, LightshipError, Refused
from lightship.optimize.candidate import NOT_BEGUN, Candidate, Quality, Rows
from lightship.optimize.front import with_front
from lightship.optimize.ledger import Interrupted, Ledger
from lightship.optimize.maker import Maker, PassProcess
from lightship.optimize.measurements import Measurements
from lightship.optimize.objective import TIMED, Objective
from lightship.optimize.plan import Plan, for_graph
from lightship.optimize.settings import SearchSettings
from lightship.optimize.variant_pass import PassFailed
from lightship.types import Json, Progress, Silent
from lightship.validate.fidelity import FidelityBudget

__all__ = ["MOST_PROPOSED", "SearchResult", "measure_file", "search"]

MOST_PROPOSED = 3
_UNSEEN_GROWTH = 0.005  # of a mean loss: numbers that are rounded otherwise err by a little more or less
_TIE = 0.05  # costs that differ by less are taken for equal, and the better answers go first
_ROUNDS = (1, 3, 7)  # fresh processes a candidate has been timed in after each round; 6 give a 95 % interval
_UNDECIDED = 15  # processes of one that is left, seems to be better and is not shown to be: 3 of them may be unlucky
_ROUNDS_NAMED = (3,)  # the gate does not ask of a named variant that it be faster
_KEPT = 0.5  # share that stays after each round, never fewer than may be proposed
_MAKING, _MADE = 0.6, 0.75  # shares of the time: no further variant is begun; the one that is being made is stopped
_PASS_SHARE, _LEAST_PASS_S = 0.2, 20.0  # of the time, and in seconds: what one variant may take to be made
_LONGEST_PASS_S = 3600.0  # of a named variant
_LOOKED_AT = 6  # the best by a first look are swept and timed
_NO_GAIN = 1.2  # of the cost by a first look: what is no faster than this is not worth making
_PLAINLY_DEAR = 2.0  # processes differ by this much by chance; what is dearer is not looked at any further


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
        progress.start("Measure the reference")
        try:
            known = Measurements(reference, selection, settings, Ledger(folder), scratch)
        except Interrupted as exc:
            raise LightshipError(
                f"The reference could not be measured: {exc}. Run it again on a machine that does less, or give rows "
                "of smaller sizes."
            ) from exc
        progress.done(f"{known.base_ms:.3g} ms a call")
        maker = maker or PassProcess(scratch, calibration)
        try:
            return _Search(known, settings, progress, judged=judged).run(for_graph(plans, reference), maker)
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
            known = Measurements(reference, selection, settings, Ledger(folder), scratch)
            return _Search(known, settings, Silent(), judged=True).measure_given(name, graph)
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

    def __init__(self, known: Measurements, settings: SearchSettings, progress: Progress, *, judged: bool) -> None:
        self._known, self._settings, self._progress, self._judged = known, settings, progress, judged

    def run(self, plans: Sequence[Plan], maker: Maker) -> SearchResult:
        self._progress.start("Make variants and look at their answers", len(plans))
        tried: list[Candidate] = []
        for plan in plans:
            tried.append(each := self._looked_at(plan, tried, maker))
            self._progress.advance(note=f"{each.name}: {each.dropped or self._front_words(tried)}")
        self._progress.done(f"{sum(not each.dropped for each in tried)} of {len(tried)} answer well enough to be timed")
        timed = self._completed(self._halved(self._best_swept(tried)))
        return self._result(self._proposed(self._ranked(self._decided(timed))))

    def _result(self, candidates: Sequence[Candidate]) -> SearchResult:
        return SearchResult(
            reference=self._known.base,
            candidates=with_front(self._known.base, candidates),
            objective=self._settings.objective,
            minutes=self._known.spent_s / 60,
            reference_calls=self._known.reference_calls(),
            floor=self._known.floor(),
        )

    def measure_given(self, name: str, graph: bytes) -> SearchResult:
        """Measure a graph that was made elsewhere; a failure is an error here."""
        known = self._known
        candidate = known.given(Candidate(name, ("given",), precision="as given"), graph)
        known.require_runs(candidate)
        candidate = known.swept(replace(candidate, quality=known.quality(candidate)))
        known.sweep_all(candidate)
        return self._result([known.with_graph(known.timed_for(candidate, TIMED))])

    # ---- one candidate ----------------------------------------------------------------------------------------------

    def _looked_at(self, plan: Plan, before: Sequence[Candidate], maker: Maker) -> Candidate:
        """Make a candidate, call it a few times, compare its answers; dropped as soon as it has lost."""
        candidate = Candidate(
            plan.name, tuple(each.name for each in plan.passes), plan.engine, plan.options, plan.precision
        )
        named, known = self._settings.named, self._known
        if known.is_late(_MAKING) and before and not named and not known.was_begun(candidate):
            minutes = f"{self._settings.minutes:g} minutes"
            return replace(candidate, dropped=f"{NOT_BEGUN}: too little was left of the {minutes}. Give it more")
        if (reason := self._needless(plan, before)) and not named:
            return replace(candidate, dropped=reason)
        try:
            candidate = known.made(candidate, plan, maker, limit_s=self._pass_s())
            if (twin := self._twin(candidate, before)) and not named:
                return replace(candidate, dropped=f"the same graph as {twin}, run in the same way")
            known.require_runs(candidate)
            known.require_no_chance(candidate)
            known.look(candidate)
            if (reason := self._too_dear(candidate)) and not named:
                return replace(candidate, dropped=reason)
            candidate = replace(candidate, quality=known.quality(candidate))
            if (reason := self._too_different(candidate)) and not named:
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
        other = next((each for each in alike if self._known.was_looked_at(each)), None)
        if other is None:
            return ""
        if (cost := self._known.rough_cost(other)) > _NO_GAIN:
            return f"not needed: it is no faster than {other.name}, and that takes {self._rough_words(cost)}"
        return "" if other.dropped or not self._is_true(other) else f"not needed: {other.name} answers well enough"

    def _is_true(self, candidate: Candidate) -> bool:
        """Return whether nothing seems lost on the selection rows."""
        quality, base = candidate.quality, self._known.base.quality
        if quality is None or base is None:
            return False
        lost = self._known.lost(candidate)
        if lost is not None:
            return lost <= (_UNSEEN_GROWTH if self._known.kind == "numbers" else 0)
        return not _missed(quality, self._settings.budget or FidelityBudget(), surely=True)

    def _pass_s(self) -> float:
        """Return how long a variant may take to be made: so long that the others can be tried too."""
        if self._settings.named:
            return _LONGEST_PASS_S
        left_s = self._known.seconds(_MADE) - self._known.spent_s
        return max(min(self._known.seconds(_PASS_SHARE), left_s), _LEAST_PASS_S)

    def _twin(self, candidate: Candidate, before: Sequence[Candidate]) -> str | None:
        for other in (self._known.base, *before):
            if (other.sha256, other.engine, dict(other.options)) == (
                candidate.sha256,
                candidate.engine,
                dict(candidate.options),
            ):
                return other.name
        return None

    def _too_dear(self, candidate: Candidate) -> str:
        """Say that a candidate is so far behind the reference in one process that no luck explains it."""
        cost = self._known.rough_cost(candidate)
        return "" if cost < _PLAINLY_DEAR else self._rough_words(cost)

    def _rough_words(self, cost: float) -> str:
        objective = str(self._settings.objective)
        what = {"throughput": "time a row"}.get(objective, objective)
        return f"about {float(f'{cost:.2g}'):,g} times the reference's {what} in a first look"

    # ---- all candidates ---------------------------------------------------------------------------------------------

    def _best_swept(self, tried: Sequence[Candidate]) -> list[Candidate]:
        """Find how the best by a first look are best called; the others go."""
        ranked = sorted((each for each in tried if not each.dropped), key=self._known.rough_cost)
        settings = self._settings
        keep = len(ranked) if settings.named or "memory" in settings.objective.weights else _LOOKED_AT
        found = [each for each in tried if each.dropped]
        found += [
            replace(each, dropped=f"behind others: {self._rough_words(self._known.rough_cost(each))}")
            for each in ranked[keep:]
        ]
        self._progress.start(f"Find how the best {len(ranked[:keep])} are best called", len(ranked[:keep]))
        for each in ranked[:keep]:
            try:
                found.append(self._known.swept(each))
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
            if any(self._known.count(each, self._settings.objective.timed[0]) < processes for each in alive):
                break  # the time is over
        return [*alive, *lost]

    def _decided(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Give more processes to what could be better, while there is time: the first of these may be proposed."""
        undecided = [each for each in candidates if not each.dropped and self._is_undecided(each)]
        if not undecided:
            return list(candidates)
        decided, failed = self._round(sorted(undecided, key=self._cost), _UNDECIDED)
        return [*(each for each in candidates if each not in undecided), *decided, *failed]

    def _is_undecided(self, candidate: Candidate) -> bool:
        """Return whether it seems to be better than the reference, and chance could still be why."""
        if self._settings.named:
            return False
        objective, base = self._settings.objective, self._known.base
        return objective.promising(candidate, base) and not objective.shown(candidate, base)

    def _rounds(self) -> tuple[int, ...]:
        return _ROUNDS_NAMED if self._settings.named else _ROUNDS

    def _round(self, alive: Sequence[Candidate], processes: int) -> tuple[list[Candidate], list[Candidate]]:
        times = "1 fresh process each" if processes == 1 else f"{processes} fresh processes each"
        self._progress.start(f"Time {len(alive)} variants in {times}", len(alive))
        goals = self._settings.objective.timed
        fine, failed = [], []
        for each in alive:
            candidate = each
            try:
                while self._known.count(candidate, goals[0]) < processes and self._may_time(candidate, goals[0]):
                    candidate = self._known.timed_for(candidate, goals)
                fine.append(candidate)
            except LightshipError as exc:
                failed.append(replace(candidate, dropped=f"the engine does not run it: {exc}"))
            self._progress.advance(note=f"{each.name}: {self._settings.objective.words(candidate, self._known.base)}")
        self._progress.done()
        return fine, failed

    def _may_time(self, candidate: Candidate, goal: str) -> bool:
        """Return whether there is time for one more process: always for the first, and for one that stands written."""
        known = self._known
        return not known.count(candidate, goal) or not known.is_late(1.0) or known.stands_written(candidate, goal)

    def _completed(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Time what is left for the goals too that were not asked for, and what lost while there is time."""
        known = self._known
        swept = [each for each in candidates if each.memory_bytes is not None]
        found = [each for each in candidates if each.memory_bytes is None]
        self._progress.start("Time what else the front shows", len(swept))
        for each in sorted(swept, key=lambda each: (bool(each.dropped), self._cost(each))):
            goals = [goal for goal in TIMED if getattr(each, goal) is None]
            completed = each
            if goals and (not each.dropped or not known.is_late(1.0) or known.stands_written(each, goals[0])):
                try:
                    known.sweep_all(each)
                    completed = known.timed_for(each, goals)
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
                found.append(self._known.with_graph(each))
        return found

    def _reason(self, candidate: Candidate) -> str:
        objective = self._settings.objective
        if self._settings.named or objective.shown(candidate, self._known.base):
            return ""
        return f"not shown to be better than the reference: {objective.words(candidate, self._known.base)}"

    def _behind(self, candidate: Candidate, best: Candidate) -> str:
        words, base = self._settings.objective.words, self._known.base
        return f"behind others: {words(candidate, base)}; the best, {best.name}: {words(best, base)}"

    def _too_different(self, candidate: Candidate) -> str:
        """Say why a look at the gate rows would be wasted on this candidate; empty when it would not."""
        quality, base = candidate.quality, self._known.base.quality
        if quality is None or base is None or not self._judged:
            return ""
        if quality.nonfinite_rows and quality.correct is None:
            return f"answers {quality.nonfinite_rows} of {quality.rows} selection rows with NaN or infinity"
        lost = self._known.lost(candidate)
        if lost is not None and lost > self._settings.most_lost:
            if self._known.kind == "numbers":
                return f"errs by {lost:.1%} more than the reference on the selection rows"
            what = "accuracy" if self._known.kind == "classes" else "of the tags"
            return f"loses {lost:.1%} {what} on the selection rows"
        return _missed(quality, self._settings.budget) if self._settings.budget else ""

    def _cost(self, candidate: Candidate) -> float:
        return self._settings.objective.cost(candidate, self._known.base)

    def _front_words(self, tried: Sequence[Candidate]) -> str:
        """Say which candidate leads so far, by a first look."""
        alive = [each for each in tried if not each.dropped]
        if not alive or tried[-1].dropped:
            return "made"
        leader = min(alive, key=self._known.rough_cost)
        return f"{1 / self._known.rough_cost(tried[-1]):.2g}x; leading: {leader.name}"


def _missed(quality: Quality, budget: FidelityBudget, *, surely: bool = False) -> str:
    """Say which figure misses its budget; ``surely`` holds the low ends of the intervals against it.

    No number of selection rows shows that hardly any is broken, so surely none must be.
    """
    for name, found, least in (
        ("agreement", quality.agreement, budget.min_agreement),
        ("cosine", quality.cosine, budget.min_cosine),
        ("SNR in dB", quality.snr_db, budget.min_snr_db),
    ):
        if found is not None and least is not None and (found.low if surely else found.estimate) < least:
            return f"{name} to the reference is {found.estimate:.4g} on the selection rows, below the {least:g} allowed"
    if quality.broken is not None and budget.max_broken is not None:
        most = 0 if surely else budget.max_broken
        if quality.broken.estimate > most:
            return f"{quality.broken.estimate:.1%} of the selection rows are broken, above the {most:.0%} allowed"
    return ""


def _truth(candidate: Candidate) -> float:
    quality = candidate.quality
    if quality is None:
        return 0.0
    if quality.correct is not None:
        return float(quality.correct)
    if quality.loss is not None:
        return -quality.loss
    return quality.cosine.estimate if quality.cosine else 0.0
