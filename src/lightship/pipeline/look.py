"""One look at the gate rows: every check over the same rows, the same task and the same loaded graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lightship.bundle.manifest import REFERENCE, TaskRef
from lightship.bundle.statement import TASK_SUBJECT, Evidence, summary_of
from lightship.data.files import sha256_hex
from lightship.errors import InvalidInput, LightshipError, Refused
from lightship.optimize.answers import scores_of
from lightship.optimize.candidate import Candidate as Variant
from lightship.optimize.candidate import Rows
from lightship.pipeline.analysis import Analysis, PreparedRows, near_duplicates
from lightship.pipeline.bench import Bench
from lightship.pipeline.search_evidence import search_evidence
from lightship.pipeline.stages.optimize import Optimized
from lightship.pipeline.stages.prepare import Prepared
from lightship.pipeline.stages.train import Trained, require_torch
from lightship.tasks.image_classification import PIXEL_MAX
from lightship.types import Json, ValueRange, Verdict
from lightship.validate.checks.accuracy import check_accuracy
from lightship.validate.checks.data import check_data
from lightship.validate.checks.golden import check_golden
from lightship.validate.checks.overfitting import check_overfitting
from lightship.validate.checks.parity import check_parity, parity_tolerance
from lightship.validate.checks.shapes import check_shapes, proven_batch
from lightship.validate.checks.values import Seen, proven_values
from lightship.validate.gate import Policy, policy_named
from lightship.validate.judge import Candidate, Judgement, judge
from lightship.validate.logits import labels_of
from lightship.validate.looks import Speed, look_at_classes, require_finite_reference

__all__ = ["Judged", "Look"]


@dataclass(frozen=True, slots=True)
class Judged:
    """A variant with its answers to the gate rows."""

    variant: Variant
    logits: np.ndarray
    subjects: Mapping[str, str]

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.variant.name

    @property
    def graph(self) -> bytes:
        """The variant's graph."""
        return self.variant.graph


class Look:
    """The checks of one look, over the same rows and the same loaded graphs."""

    def __init__(self, bench: Bench, prepared: Prepared, trained: Trained, optimized: Optimized) -> None:
        require_torch(needed_for="Comparing the graph with the trained model")
        from lightship.train.export import torch_outputs

        self._bench, self._prepared, self._trained, self._optimized = bench, prepared, trained, optimized
        self._gate = bench.recipe.gate
        self._speed_asked = not optimized.must_pass and bool(optimized.objective.timed)
        self._images, self._truth = prepared.images("gate"), prepared.labels("gate")
        self._near_duplicates = near_duplicates(bench, prepared)
        self._float32, self._float64 = torch_outputs(trained.model.module(), self._images)
        self.tolerance = parity_tolerance(self._float32, self._float64)
        task = {TASK_SUBJECT: TaskRef.of(prepared.task).digest}
        reference = {"reference": sha256_hex(trained.reference)}
        base = Variant(REFERENCE, graph=trained.reference)
        self._reference = Judged(base, self._run(base), {**task, **reference})
        self._analysis = Analysis(
            PreparedRows(prepared), base, alpha=1 - self._gate.confidence, margin=self._gate.margin
        )
        self._analysis.note("gate", base, self._reference.logits)
        self._candidates = [
            Judged(each, self._run(each), {**task, **reference, each.name: sha256_hex(each.graph)})
            for each in optimized.proposed
        ]

    def _run(self, variant: Variant) -> np.ndarray:
        runner = variant.runner(limited=True)
        try:
            return scores_of(runner, Rows({"image": self._images}, self._truth, "logits"))
        except (InvalidInput, Refused):
            raise
        except LightshipError as exc:  # it answered the selection rows and fails on these: nothing can be judged
            raise Refused(f"The variant {variant.name!r} is refused, the engine does not run it: {exc}") from exc
        finally:
            runner.close()

    def judgement(self) -> Judgement:
        """Let the candidates pass, or not, against the reference."""
        require_finite_reference(self._reference.logits)
        return judge(
            [self._candidate(each) for each in self._candidates],
            alpha=1 - self._gate.confidence,
            named=self._named(),
        )

    def _candidate(self, judged: Judged) -> Candidate:
        speed = self._optimized.speed(judged.variant)
        if speed is None:
            return Candidate(judged.name, self._look(judged, Speed(self._speed_asked)))
        setup: dict[str, Json] = {
            "engine": judged.variant.engine,
            "threads": speed.threads,
            "batch": speed.batch,
            "reference_threads": speed.reference_threads,
            "reference_batch": speed.reference_batch,
            "processes": speed.timing.processes,
        }
        return Candidate(judged.name, self._look(judged, Speed(self._speed_asked, speed.timing, setup)))

    def _look(self, judged: Judged, speed: Speed) -> Callable[[float], Sequence[Evidence]]:
        self._analysis.note("gate", judged.variant, judged.logits)
        look = look_at_classes(
            judged.name,
            self._truth,
            self._reference.logits,
            judged.logits,
            labels=self._prepared.task.labels,
            margin=self._gate.margin,
            harm_alpha=1 - self._gate.confidence,
            subjects=judged.subjects,
            speed=speed,
        )
        return self._analysis.look(judged.variant, look, subjects=judged.subjects)

    def _named(self) -> str | None:
        return self._candidates[0].name if self._optimized.must_pass else None

    def pick(self, judgement: Judgement) -> Judged:
        """Return the graph that would be released; a named one that fails is still the one to be refused."""
        wanted = judgement.chosen
        return next((each for each in self._candidates if each.name == wanted), self._reference)

    def evidence_about(self, judgement: Judgement, chosen: Judged) -> Sequence[Evidence]:
        """Return the evidence that compares the chosen variant with the reference."""
        return next((o.evidence for o in judgement.outcomes if o.name == chosen.name), ())

    def policy(self, judgement: Judgement, chosen: Judged) -> Policy:
        """Return what the chosen variant must show."""
        policy = policy_named(
            "standard",
            min_accuracy=self._gate.min_accuracy,
            margin=self._gate.margin,
            alpha=judgement.alpha,
            confidence=self._gate.confidence,
            speed_asked=self._speed_asked,
            overfitting_required=self._gate.overfitting == "require",
        )
        return policy.for_reference() if chosen.name == REFERENCE else policy

    def data(self, looks: int) -> Evidence:
        """The rows, and how often the gate part was looked at."""
        split = self._prepared.split
        return check_data(
            class_counts=split.class_counts,
            labels=self._prepared.task.labels,
            duplicates=split.duplicates,
            conflicts=split.conflicts,
            bad=[(row.id, row.reason) for row in self._prepared.bad],
            gate_looks=looks,
            subjects=self._reference.subjects,
            near_duplicates=self._near_duplicates,
        )

    def accuracy(self, chosen: Judged) -> Evidence:
        """Accuracy and F1 of what would be released."""
        return check_accuracy(
            self._truth,
            labels_of(chosen.logits),
            labels=self._prepared.task.labels,
            min_accuracy=self._gate.min_accuracy,
            subjects=chosen.subjects,
            confidence=self._gate.confidence,
        )

    def parity(self) -> Evidence:
        """The reference graph against the trained model."""
        rows = [self._prepared.dataset.ids[index] for index in self._prepared.split.gate]
        found = check_parity(
            self._reference.logits, self._float32, self._float64, rows=rows, subjects=self._reference.subjects
        )
        if found.verdict is Verdict.PASSED:
            return found
        # The graph is run again as it is written: where that differs, the engine's rewriting is to blame, not export.
        layer = self._analysis.divergence(self._reference.variant, threshold=1e-3, optimization="none")
        if layer is None:
            return replace(found, measured={**found.measured, "divergence": None})
        words = summary_of(f"{summary_of(found.summary, most=500)}; the engine rewrites the graph: {layer['words']}")
        return replace(found, summary=words, measured={**found.measured, "divergence": layer})

    def golden(self) -> Evidence:
        """Today's preprocessing against the answers that were recorded when the model was trained."""
        golden = self._trained.golden
        runner = self._reference.variant.runner(limited=True)
        return check_golden(
            self._prepared.task,
            golden.files,
            golden.logits,
            lambda images: runner.run({"image": images})["logits"],
            tolerance=self.tolerance,
            names=golden.names,
            subjects=self._reference.subjects,
        )

    def shapes(self, chosen: Judged) -> Evidence:
        """Batch sizes that the chosen graph answers as it answers single rows."""
        runner = chosen.variant.runner(limited=True)
        return check_shapes(
            lambda images: runner.run({"image": images})["logits"],
            self._images,
            tolerance=self.tolerance,
            subjects=chosen.subjects,
        )

    def values(self, chosen: Judged, shapes: Evidence) -> Evidence:
        """What NaN, infinities and extremes do, in batches as large as are proven."""
        batch = proven_batch(shapes)[1] if shapes.verdict is Verdict.PASSED else 1
        return self._analysis.values(chosen.variant, tolerance=self.tolerance, batch=batch, subjects=chosen.subjects)

    def proven_values(self, values: Evidence) -> dict[str, ValueRange]:
        """Return the values that a server may run: all that an image can have, at least."""
        task, seen = self._prepared.task, Seen()
        for shade in (0, PIXEL_MAX):
            seen.add(task.encode(np.full((task.height, task.width, task.channels), shade, np.uint8)))
        seen.add({"image": self._images})
        return proven_values(values, seen)

    def analysis(self, chosen: Judged) -> Sequence[Evidence]:
        """What the chosen variant gets wrong: its worst slices, its calibration, its errors."""
        calm = self._gate.temperature == "apply"
        return self._analysis.of(chosen.variant, subjects=chosen.subjects, calm=calm)

    def search(self, judgement: Judgement, chosen: Judged) -> Evidence:
        """What was tried, how fast each variant is against the reference, and why each other one lost."""
        found, optimize = self._optimized, self._bench.recipe.optimize
        return search_evidence(
            found.candidates,
            judgement.outcomes,
            chosen=chosen.name,
            subjects=chosen.subjects,
            found=found.found,
            method={
                "rows": "selection",
                "pairs": optimize.pairs,
                "minutes": optimize.minutes,
                "timing": "fresh processes, interleaved pairs, medians",
            },
        )

    def overfitting(self) -> Evidence:
        """Training against validation accuracy."""
        scores = self._trained.scores
        return check_overfitting(
            train_right=scores["train_correct"],
            train_rows=scores["train_rows"],
            validation_right=scores["validation_correct"],
            validation_rows=scores["validation_rows"],
            limit=self._gate.overfitting_limit,
            subjects=self._reference.subjects,
            confidence=self._gate.confidence,
        )
