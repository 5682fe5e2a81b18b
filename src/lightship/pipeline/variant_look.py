"""What a proposed variant of any bundle must show: its sizes, its golden examples, and its answers to the gate rows.

Cheap looks come first: a variant that cannot do a size, or whose engine crashes on it, costs no look at the gate rows.
Without rows there is one look left: a variant that should lose nothing must answer drawn inputs as the reference does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from lightship.bundle.manifest import REFERENCE
from lightship.bundle.statement import TASK_SUBJECT, Evidence, summary_of
from lightship.data.files import sha256_hex
from lightship.engine.difference import largest_difference
from lightship.engine.runner import LONGEST_RUN_S, EngineOptions, Runner, load_runner
from lightship.errors import InvalidData, InvalidInput, LightshipError
from lightship.imports.drawn import STYLES, draw
from lightship.imports.sizes import Sizes
from lightship.imports.trial_process import try_sizes_apart
from lightship.optimize.candidate import Candidate
from lightship.optimize.objective import Objective
from lightship.pipeline.analysis import Analysis, divergence, explained
from lightship.pipeline.given_rows import GivenRows
from lightship.pipeline.golden_answers import VariantGolden, answers_to, golden_of
from lightship.pipeline.labeled_answers import LabeledAnswers, PlainClasses, ScoredClasses, Values, answers_to_labels
from lightship.pipeline.labeled_rows import GivenClasses, GivenValues
from lightship.pipeline.row_labels import RowLabels
from lightship.pipeline.value_analysis import ValueAnalysis
from lightship.tasks.task import Tensors
from lightship.tasks.tensors import BATCH, is_batched
from lightship.types import Interface, Json, Verdict
from lightship.validate.checks.values import check_values
from lightship.validate.fidelity import FidelityBudget, FidelityMeter
from lightship.validate.looks import Speed, look_at_fidelity

__all__ = ["GateRows", "Subject", "VariantLook"]

_GATE_BATCH = 16
_DRAWN_ROWS = 24
_FLOOR_ULPS = 64.0
_MOST_MIXED = 1 / 8
"""Of the largest answer. A scale taken from the whole batch moves an answer by a step of its rounding, some hundredths;
what moves it more gives people each other's answers."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The model whose variants are looked at.

    Attributes:
        graph: the reference.
        interface: with the proven ranges.
        task_digest: of the task's configuration.
        golden: its golden inputs as tensors: one row each, or the whole inputs of a graph without a batch dimension.
        tolerance: of its golden examples.
    """

    graph: bytes
    interface: Interface
    task_digest: str
    golden: tuple[Tensors, ...]
    tolerance: float

    @property
    def batched(self) -> bool:
        """Whether rows are stacked into batches."""
        return is_batched(self.interface.inputs, self.interface.outputs)

    def subjects(self, candidate: Candidate | None = None) -> dict[str, str]:
        """Return what evidence is about: the task, the reference, and the variant."""
        named = {} if candidate is None else {candidate.name: sha256_hex(candidate.graph)}
        return {TASK_SUBJECT: self.task_digest, "reference": sha256_hex(self.graph), **named}

    def runner(self, *, threads: int) -> Runner:
        """Load the reference for answers: with a limit of time."""
        return load_runner(
            self.graph, options=EngineOptions(threads=threads, limit_s=LONGEST_RUN_S, batched=self.batched)
        )


@dataclass(frozen=True, slots=True)
class GateRows:
    """The rows that judge, and by which limits.

    Attributes:
        rows: in their parts.
        budget: what answers must keep of the reference's; None asks that, by default, of what no labels judge.
        margin: what is too much to lose, of labeled rows.
        alpha: of harm, and of the analysis: the whole, no share.
        labeled: the same rows as an analysis takes them, if they have labels.
        analysis: of all candidates, likewise.
    """

    rows: GivenRows
    budget: FidelityBudget | None
    margin: float
    alpha: float
    labeled: GivenClasses | GivenValues | None = None
    analysis: Analysis | ValueAnalysis | None = None


class VariantLook:
    """The look at one candidate; called by the judge with its share of alpha.

    Attributes:
        golden: what it answers to the golden inputs; None until it was looked at, or when it failed before.
        sizes: what it can do; likewise.
        answers: to labeled gate rows; likewise, and None without labels.
    """

    def __init__(
        self,
        subject: Subject,
        candidate: Candidate,
        *,
        gate: GateRows | None,
        objective: Objective,
        threads: int,
    ) -> None:
        self.candidate = candidate
        self.golden: VariantGolden | None = None
        self.sizes: Sizes | None = None
        self.answers: LabeledAnswers | None = None
        self._subject, self._gate = subject, gate
        self._objective, self._threads = objective, threads
        self._subjects = subject.subjects(candidate)

    def __call__(self, alpha: float) -> Sequence[Evidence]:
        """Return the evidence, the main one first."""
        try:
            self.golden = golden_of(self.candidate, self._subject.golden, batched=self._subject.batched)
            self.sizes = self._tried_sizes(self.golden)
        except LightshipError as exc:
            return (self._failed("shapes", f"the engine does not run it: {exc}"),)
        mixed = bool(self.sizes.mixed)
        form = (self.golden.evidence(self._subjects, mixed=mixed), self._shapes(self.sizes))
        if form[1].verdict is not Verdict.PASSED:
            return form[::-1]
        try:
            odd = self._values()
            if any(each.verdict is not Verdict.PASSED for each in odd):
                return (*odd, *form)
            main = self._answers(alpha)
        except InvalidData:
            raise  # too many bad rows: that is the fault of the rows
        except LightshipError as exc:
            main = (self._failed("equivalence" if self._gate is None else "fidelity", f"it failed: {exc}"),)
            return (*main, *form)
        return (*main, *form, *odd)

    @property
    def speed(self) -> Speed:
        """How fast it is, by the goal that was asked for."""
        timed = self._objective.timed
        found = self.candidate.throughput if timed == ("throughput",) else self.candidate.latency
        if found is None:
            return Speed(asked=len(self._objective.weights) == 1 and bool(timed))
        setup: dict[str, Json] = {
            "engine": self.candidate.engine,
            "threads": found.threads,
            "batch": found.batch,
            "reference_threads": found.reference_threads,
            "reference_batch": found.reference_batch,
        }
        return Speed(asked=len(self._objective.weights) == 1 and bool(timed), timing=found.timing, setup=setup)

    @property
    def budget(self) -> FidelityBudget | None:
        """What answers must keep of the reference's; None where there is nothing but labels to judge them by."""
        if self._gate is None:
            return None
        labels = self._gate.rows.labels
        return self._gate.budget or (FidelityBudget() if labels is None or self._unlabeled(labels) else None)

    # -- sizes --------------------------------------------------------------------------------------------------

    def _tried_sizes(self, golden: VariantGolden) -> Sizes:
        subject = self._subject
        rows = list(subject.golden) if self._gate is None else self._gate.rows.some(8) or list(subject.golden)
        return try_sizes_apart(
            self.candidate.graph,
            engine=self.candidate.engine,
            options=self.candidate.options,
            reference=subject.graph,
            interface=subject.interface,
            rows=rows,
            tolerance=golden.tolerance(),
            given=None if self._gate is None else self._gate.rows.sizes(),
        )

    @property
    def tolerance(self) -> float:
        """What its golden examples may be off on another machine."""
        assert self.golden is not None  # noqa: S101 - asked for after the look
        assert self.sizes is not None  # noqa: S101
        return self.golden.tolerance(mixed=bool(self.sizes.mixed))

    @property
    def batch(self) -> int:
        """The largest batch that the new version may run."""
        assert self.sizes is not None  # noqa: S101 - asked for after the look
        if self.sizes.mixed and "throughput" not in self._objective.weights:
            return 1
        return self.sizes.batch

    @property
    def runs_alone(self) -> bool:
        """Whether a server will run its rows one at a time, while those of the reference run in batches."""
        return self._subject.batched and self.batch == 1 < self._subject.interface.proven.get(BATCH, (1, 1))[1]

    @property
    def proven(self) -> dict[str, tuple[int, int]]:
        """The ranges of the new version: the parent's, or smaller ones, never larger."""
        assert self.sizes is not None  # noqa: S101 - asked for after the look
        proven = {**self._subject.interface.proven, **self.sizes.proven}
        if BATCH in proven and self._subject.batched:
            low, high = proven[BATCH]
            proven[BATCH] = (low, max(low, min(high, self.batch)))
        return proven

    def _shapes(self, sizes: Sizes) -> Evidence:
        wanted = self.candidate.throughput.batch if self.candidate.throughput else 1
        problem, words = sizes.problem, list(sizes.words)
        if not problem and sizes.mixed > _MOST_MIXED * self._largest():
            problem = f"an answer changes by {sizes.mixed:.3g} with the rows beside it: it mixes rows"
        if not problem and "throughput" in self._objective.weights and self.batch < wanted:
            problem = f"it is fast in batches of {wanted} rows, and right in those of up to {self.batch}"
        if sizes.mixed:
            moved = f"an answer moves by up to {sizes.mixed:.2g} with the rows beside it (dynamic quantization)"
            words.append(moved + ("; rows run one at a time" if self.runs_alone else ""))
        ranges = self.proven
        said = ", ".join(f"{name} {low} to {high}" for name, (low, high) in sorted(ranges.items()))
        summary = problem or "; ".join([f"Works for {said or 'its one size'}", *words])
        return Evidence(
            check="shapes",
            verdict=Verdict.FAILED if problem else Verdict.PASSED,
            subjects=self._subjects,
            summary=summary_of(summary),
            measured={
                "proven": {name: [low, high] for name, (low, high) in ranges.items()},
                "mixed": sizes.mixed,
                "tried": list(sizes.tried),
                "words": list(words),
            },
            method={"compared": "every row's answer with its answer alone, and beside other rows"},
        )

    def _largest(self) -> float:
        """Return the largest value of its answers to the golden inputs."""
        assert self.golden is not None  # noqa: S101 - it was looked at before
        floats = [array for array in self.golden.answers.values() if array.dtype.kind == "f"]
        return max((float(np.abs(array[np.isfinite(array)]).max(initial=0.0)) for array in floats), default=0.0)

    def _values(self) -> Sequence[Evidence]:
        """Try odd values among usual rows, in batches as large as may be: no row may spoil another one's answer."""
        subject = self._subject
        if self.golden is None:
            return ()
        variant = self.candidate.runner(threads=1, batched=subject.batched, limited=True)
        reference = subject.runner(threads=1)
        try:
            return (
                check_values(
                    reference.run if subject.batched else partial(_run_alone, reference),
                    variant.run if subject.batched else partial(_run_alone, variant),
                    self._stacked(),
                    tolerance=self.golden.tolerance(),
                    subjects=self._subjects,
                    batch=self.batch,
                ),
            )
        finally:
            variant.close()
            reference.close()

    def _stacked(self) -> Tensors:
        """Return some rows of one shape, first axis rows: real ones, else the golden inputs, which may be drawn."""
        alike = _alike(self._subject.golden if self._gate is None else self._gate.rows.some(8))
        return {name: np.stack([row[name] for row in alike]) for name in alike[0]}

    def _usual(self) -> Tensors:
        """Return such rows as the graph takes them at once; none if it takes no rows."""
        if self._subject.batched:
            return self._stacked()
        return {} if self._gate is None else self._gate.rows.few()

    # -- answers ------------------------------------------------------------------------------------------------

    def _answers(self, alpha: float) -> Sequence[Evidence]:
        runner = self.candidate.runner(threads=self._threads, batched=self._subject.batched, limited=True)
        try:
            if self._gate is None:
                speed = self.speed.evidence(self.candidate.name, subjects=self._subjects)
                return explained((self._equivalence(runner), *speed), self._divergence)
            if self._gate.rows.labels is not None:
                return self._labeled(runner, self._gate, self._gate.rows.labels, alpha)
            return explained(self._fidelity(runner, self._gate, alpha), self._divergence)
        finally:
            runner.close()

    def _divergence(self) -> dict[str, Json] | None:
        subject = self._subject
        inputs = self._usual()
        return divergence(Candidate(REFERENCE, graph=subject.graph), self.candidate, inputs) if inputs else None

    def _gate_batch(self) -> int:
        """Return the rows of a batch of gate rows: as it will be served, where that changes the answers."""
        assert self.sizes is not None  # noqa: S101 - the sizes were tried before
        if self.sizes.mixed:
            return self.candidate.throughput.batch if self.batch > 1 and self.candidate.throughput else 1
        return min(self.batch, _GATE_BATCH)

    def _fidelity(self, runner: Runner, gate: GateRows, alpha: float) -> Sequence[Evidence]:
        meter, rows = FidelityMeter(), gate.rows
        for _, inputs, expected in rows.answered("gate", self._gate_batch()):
            meter.add(expected, rows.as_rows(runner.run(inputs)))
        rows.require_usable()
        look = look_at_fidelity(
            self.candidate.name,
            meter,
            budget=self.budget or FidelityBudget(),
            subjects=self._subjects,
            speed=self.speed,
        )
        return look(alpha)

    def _labeled(self, runner: Runner, gate: GateRows, labels: RowLabels, alpha: float) -> Sequence[Evidence]:
        rows, name, unlabeled = gate.rows, self.candidate.name, self._unlabeled(labels)
        meter, answers = FidelityMeter(unlabeled), answers_to_labels(labels)
        for indices, inputs, expected in rows.answered("gate", self._gate_batch()):
            found = rows.as_rows(runner.run(inputs))
            if unlabeled:
                meter.add(expected, found)
            answers.add(indices, rows.truth(indices), expected[labels.output], found[labels.output])
        rows.require_usable()
        self.answers = answers
        subjects = self._subjects
        look = answers.look(name, margin=gate.margin, harm_alpha=gate.alpha, subjects=subjects, speed=self.speed)
        assert gate.analysis is not None  # noqa: S101 - labeled rows are analyzed
        self._note(runner, answers, gate)
        evidence = gate.analysis.look(self.candidate, look, subjects=subjects)(alpha)
        if self.budget is None:
            return evidence
        faithful = look_at_fidelity(name, meter, budget=self.budget, subjects=subjects)(alpha)
        of = f"{faithful[0].summary} (of {', '.join(unlabeled)})"
        return (*evidence, *explained((replace(faithful[0], summary=summary_of(of)),), self._divergence))

    def _unlabeled(self, labels: RowLabels) -> list[str]:
        """Return the outputs that must stay the reference's: those that no labels judge, and all if that was asked."""
        outputs = [spec.name for spec in self._subject.interface.outputs]
        return [name for name in outputs if (self._gate and self._gate.budget) or name != labels.output]

    def _note(self, runner: Runner, answers: ScoredClasses | PlainClasses | Values, gate: GateRows) -> None:
        """Give the analysis what is known: it would run rows in batches, which may change the answers."""
        analysis, labeled, size = gate.analysis, gate.labeled, self._gate_batch()
        reference = Candidate(REFERENCE)
        if isinstance(answers, ScoredClasses):
            assert isinstance(analysis, Analysis)  # noqa: S101 - as the gate was made
            assert isinstance(labeled, GivenClasses)  # noqa: S101
            for variant, logits in zip((reference, self.candidate), answers.logits, strict=True):
                analysis.note("gate", variant, logits)
            analysis.note("selection", self.candidate, labeled.logits("selection", runner.run, size))
            return
        assert isinstance(analysis, ValueAnalysis)  # noqa: S101
        assert isinstance(labeled, GivenValues)  # noqa: S101
        for candidate, losses in zip((reference, self.candidate), answers.losses, strict=True):
            analysis.note("gate", candidate, losses)
        shares = answers.losses[0].shares
        analysis.note("selection", self.candidate, labeled.losses_of("selection", runner.run, size, shares=shares))

    def _equivalence(self, runner: Runner) -> Evidence:
        """Compare its answers with the reference's on golden and drawn inputs: it must differ by rounding alone."""
        subject = self._subject
        base = subject.runner(threads=1)
        worst, allowed_there, compared = 0.0, subject.tolerance, 0
        problem = ""
        for row in (*subject.golden, *self._drawn()):
            try:
                expected = answers_to(base, row, batched=subject.batched)
            except LightshipError:
                continue
            found = answers_to(runner, row, batched=subject.batched)
            compared += 1
            for name, array in expected.items():
                off = largest_difference(found[name], array)
                allowed = max(subject.tolerance, _rounding(array))
                if off / (allowed or 1.0) > worst / (allowed_there or 1.0):
                    worst, allowed_there = off, allowed
                if off > allowed and not problem:
                    problem = f"{name!r} differs by {off:.3g}, allowed {allowed:.3g}"
        base.close()
        return Evidence(
            check="equivalence",
            verdict=Verdict.FAILED if problem else Verdict.PASSED,
            subjects=self._subjects,
            summary=problem
            or f"Answers {compared} golden and drawn inputs as the reference does (off by {worst:.2g}, "
            f"allowed {allowed_there:.2g})",
            measured={"inputs": compared, "largest_difference": worst, "allowed": allowed_there},
            method={"inputs": "golden examples, and values drawn by seed", "of": "passes that only round otherwise"},
        )

    def _drawn(self) -> list[Tensors]:
        """Return inputs of the shape of the golden ones, with other values."""
        subject = self._subject
        first = subject.golden[0]
        sizes: dict[str, int] = {}
        for spec in subject.interface.inputs:
            shape = spec.shape[1:] if subject.batched else spec.shape
            sizes |= {d: n for d, n in zip(shape, first[spec.name].shape, strict=True) if isinstance(d, str)}
        rows = []
        for style in STYLES[:3]:
            for number in range(_DRAWN_ROWS // 3):
                inputs = draw(subject.interface.inputs, {**sizes, BATCH: 1}, number=1_000 + number, style=style)
                if subject.batched:
                    inputs = {name: array.reshape(array.shape[1:]) for name, array in inputs.items()}
                rows.append(inputs)
        return rows

    def _failed(self, check: str, why: str) -> Evidence:
        return Evidence(check, Verdict.FAILED, self._subjects, summary_of(why), {}, {})


def _run_alone(runner: Runner, rows: Tensors) -> Tensors:
    """Run a graph without a batch dimension on a batch of one row."""
    if len(next(iter(rows.values()))) != 1:
        raise InvalidInput("A graph without a batch dimension runs one row at a time.")
    return answers_to(runner, {name: array[0] for name, array in rows.items()}, batched=False)


def _alike(rows: Sequence[Tensors]) -> list[Tensors]:
    """Return the rows that have the shape of the first."""
    return [row for row in rows if all(row[name].shape == array.shape for name, array in rows[0].items())]


def _rounding(array: np.ndarray) -> float:
    if array.dtype.kind != "f":
        return 0.0
    finite = np.abs(array[np.isfinite(array)].astype(np.float64))
    largest = min(float(finite.max(initial=0.0)), float(np.finfo(np.float32).max))
    return _FLOOR_ULPS * float(np.spacing(np.float32(largest)))
