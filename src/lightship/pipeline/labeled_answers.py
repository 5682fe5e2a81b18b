"""Answers of the reference and of a variant to labeled rows, by what the labels are; and how good they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Protocol

import numpy as np

from lightship.bundle.statement import Evidence
from lightship.errors import InvalidInput
from lightship.pipeline.given_rows import GivenRows
from lightship.pipeline.row_labels import RowLabels
from lightship.types import Interval, Verdict
from lightship.validate.checks.accuracy import check_accuracy
from lightship.validate.judge import Look
from lightship.validate.logits import labels_of
from lightship.validate.looks import Speed, look_at_classes, look_at_losses, require_finite_reference
from lightship.validate.meters import Kind, NumberMeter, TagMeter, are_probabilities, class_scores, tags_of
from lightship.validate.paired_losses import PairedNumbers, PairedTags
from lightship.validate.row_losses import RowLosses
from lightship.validate.statistics import wilson

__all__ = ["MARGINS", "LabeledAnswers", "ScoredClasses", "answers_to_labels", "require_fitting", "scores_as_logits"]

MARGINS: Mapping[Kind, float] = {"classes": 0.01, "tags": 0.01, "numbers": 0.02}
"""What is too much to lose, unless somebody says otherwise: of accuracy, of right tags, and how much larger errors."""

_BATCH = 32
_ROUNDED_SUM = 0.25  # by which the sum of a variant's probabilities may be off: a softmax of int8 rounds every class


class LabeledAnswers(Protocol):
    """Answers to the gate rows."""

    def add(self, rows: Sequence[int], truth: np.ndarray, reference: np.ndarray, variant: np.ndarray) -> None:
        """Take a batch: which rows, their labels, and what both answer."""

    def look(self, name: str, *, margin: float, harm_alpha: float, subjects: Mapping[str, str], speed: Speed) -> Look:
        """Return what the variant must show, when all rows were added."""

    def quality(self, *, min_accuracy: float, confidence: float, subjects: Mapping[str, str]) -> Evidence:
        """Return how good the variant's answers are, whatever the reference's."""


def answers_to_labels(labels: RowLabels) -> ScoredClasses | PlainClasses | Values:
    """Return what takes the answers to such labels."""
    if labels.kind != "classes":
        return Values(labels.kind)
    return ScoredClasses(labels.names) if labels.scored else PlainClasses()


class _Collected:
    """Answers of all rows, in the order of the rows, whatever their batches were."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, rows: Sequence[int], truth: np.ndarray, reference: np.ndarray, variant: np.ndarray) -> None:
        """Take a batch: which rows, their labels, and what both answer."""
        self._rows += rows
        self._parts.append((truth, reference, variant))

    def _all(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        order = np.argsort(self._rows)
        truth, reference, variant = (np.concatenate(each)[order] for each in zip(*self._parts, strict=True))
        return truth, reference, variant


class ScoredClasses(_Collected):
    """Scores of classes."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._names = names

    @property
    def truth(self) -> np.ndarray:
        """The classes, int64 (rows,)."""
        return self._all()[0]

    @property
    def logits(self) -> tuple[np.ndarray, np.ndarray]:
        """What the reference and the variant answer, (rows, classes)."""
        _, reference, variant = self._all()
        return scores_as_logits(reference), scores_as_logits(variant, like=reference)

    def look(self, name: str, *, margin: float, harm_alpha: float, subjects: Mapping[str, str], speed: Speed) -> Look:
        """Return the look at accuracy, probabilities and every class."""
        reference, variant = self.logits
        require_finite_reference(reference)
        if other := self._other_scores():
            return lambda _: (Evidence("probabilities", Verdict.FAILED, subjects, other, {}, {}),)
        return look_at_classes(
            name,
            self.truth,
            reference,
            variant,
            labels=self._names,
            margin=margin,
            harm_alpha=harm_alpha,
            subjects=subjects,
            speed=speed,
        )

    def _other_scores(self) -> str:
        """Say that one side gives probabilities and the other side does not: a softmax was lost, or put in."""
        _, reference, variant = self._all()
        were = are_probabilities(class_scores(reference))
        if not np.isfinite(variant).all() or were == _are_probabilities(variant, like=reference):
            return ""
        one, other = ("probabilities", "other numbers") if were else ("other numbers", "probabilities")
        return f"It answers {other} where the reference answers {one}, whatever classes they make likely"

    def quality(self, *, min_accuracy: float, confidence: float, subjects: Mapping[str, str]) -> Evidence:
        """Return the accuracy."""
        _, variant = self.logits
        return check_accuracy(
            self.truth,
            labels_of(variant),
            labels=self._names,
            min_accuracy=min_accuracy,
            subjects=subjects,
            confidence=confidence,
        )


class PlainClasses(_Collected):
    """Classes without scores: what a tree or an ``ArgMax`` gives."""

    def look(self, name: str, *, margin: float, harm_alpha: float, subjects: Mapping[str, str], speed: Speed) -> Look:
        """Return the look at accuracy and every class."""
        places, names = self._places()
        return look_at_classes(
            name, *places, labels=names, margin=margin, harm_alpha=harm_alpha, subjects=subjects, speed=speed
        )

    def quality(self, *, min_accuracy: float, confidence: float, subjects: Mapping[str, str]) -> Evidence:
        """Return the accuracy."""
        (truth, _, variant), names = self._places()
        return check_accuracy(
            truth, variant, labels=names, min_accuracy=min_accuracy, subjects=subjects, confidence=confidence
        )

    @property
    def losses(self) -> tuple[RowLosses, RowLosses]:
        """Which rows the reference and the variant have wrong."""
        truth, *both = self._all()
        losses = RowLosses("classes"), RowLosses("classes")
        for found, answers in zip(losses, both, strict=True):
            found.add(range(len(truth)), truth, answers)
        return losses

    def _places(self) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], Sequence[str]]:
        """Return all three as places among the classes that occur: a wrecked graph may answer any number."""
        truth, reference, variant = (each.reshape(len(each)).astype(np.int64) for each in self._all())
        known = np.unique(np.concatenate([truth, reference, variant]))
        one, two, three = (np.searchsorted(known, each) for each in (truth, reference, variant))
        return (one, two, three), [str(number) for number in known.tolist()]


class Values:
    """Numbers or tags; sums are kept, the loss of each row, and short answers."""

    def __init__(self, kind: Kind) -> None:
        self.losses = RowLosses(kind), RowLosses(kind)
        """Of the reference and of the variant."""
        self._sums = PairedNumbers() if kind == "numbers" else PairedTags()
        self._meter = NumberMeter() if kind == "numbers" else TagMeter()

    def add(self, rows: Sequence[int], truth: np.ndarray, reference: np.ndarray, variant: np.ndarray) -> None:
        """Take a batch: which rows, their labels, and what both answer."""
        self._sums.add(truth, reference, variant)
        self._meter.add(truth, variant)
        base, own = self.losses
        base.add(rows, truth, reference)
        own.shares = base.shares  # what scores are is the reference's to say
        own.add(rows, truth, variant)

    def look(self, name: str, *, margin: float, harm_alpha: float, subjects: Mapping[str, str], speed: Speed) -> Look:
        """Return the look at the errors of both."""
        del harm_alpha  # there are no classes
        return look_at_losses(name, self._sums, margin=margin, subjects=subjects, speed=speed)

    def quality(self, *, min_accuracy: float, confidence: float, subjects: Mapping[str, str]) -> Evidence:
        """Return the errors: figures, as there is no limit that they could be held against."""
        del min_accuracy
        found = self._meter.to_json(confidence=confidence)
        meter = self._meter
        if isinstance(meter, NumberMeter):
            figures = [("Mean absolute error", meter.mae(confidence=confidence)),
                       ("root mean squared error", meter.rmse(confidence=confidence))]  # fmt: skip
            r2 = meter.r2()
            words = ", ".join(f"{name} {_shown(each)}" for name, each in figures if each)
            words += f", R² {r2:.4f}" if r2 is not None else ""
        else:
            words = f"{_shown(meter.wrong(confidence=confidence), percent=True)} of the tags are wrong"
        words += f" on {meter.rows} gate rows; it was measured, and no limit was asked for"
        return Evidence("accuracy", Verdict.UNPROVEN, subjects, words, found, {"confidence": confidence})


def _shown(figure: Interval | None, *, percent: bool = False) -> str:
    if figure is None:
        return "unknown"
    middle, low, high = (f"{each * (100 if percent else 1):.4g}" for each in (figure.estimate, figure.low, figure.high))
    return f"{middle} % ({low} to {high})" if percent else f"{middle} ({low} to {high})"


def scores_as_logits(answers: np.ndarray, *, like: np.ndarray | None = None) -> np.ndarray:
    """Return scores of classes as logits: of probabilities (no value below 0, every row sums to 1) their logarithm.

    One score a row is that of two classes. ``like`` are the reference's, where these are a variant's.
    """
    scores = class_scores(answers)
    if not _are_probabilities(answers, like=like):
        return scores
    finite = np.isfinite(scores).all(axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(finite[:, None], np.log(np.maximum(scores.astype(np.float64), 1e-30)), scores)


def _are_probabilities(answers: np.ndarray, *, like: np.ndarray | None) -> bool:
    if like is not None and are_probabilities(class_scores(like)):
        return are_probabilities(class_scores(answers), tolerance=_ROUNDED_SUM)
    return are_probabilities(class_scores(answers))


def require_fitting(rows: GivenRows, *, alpha: float) -> None:
    """Refuse labels that the reference is shown to answer worse than one who knows nothing but them.

    Who has almost nothing right can lose nothing: against such labels any variant would pass.

    Raises:
        InvalidInput: says how the reference and that other one do.
    """
    labels = rows.labels
    if labels is None:
        return
    answers: list[np.ndarray] = []
    order: list[int] = []
    for indices, _, found in rows.answered("selection", _BATCH):
        answers.append(found[labels.output])
        order += indices
    truth, given = rows.truth(order), np.concatenate(answers)
    unfitting = {"classes": _unfitting_classes, "tags": _unfitting_tags, "numbers": _unfitting_numbers}[labels.kind]
    problem = unfitting(truth, given, alpha)
    if problem:
        raise InvalidInput(
            f"The labels do not fit the model: {problem} Correct them, or leave them out to judge by the reference's "
            "own answers."
        )


def _unfitting_classes(truth: np.ndarray, answers: np.ndarray, alpha: float) -> str:
    said = labels_of(class_scores(answers)) if answers.dtype.kind == "f" else answers.reshape(len(truth))
    right, frequent = int((said == truth).sum()), int(np.bincount(truth).max())
    if wilson(right, len(truth), 1 - alpha).high >= frequent / len(truth):
        return ""
    return (
        f"its reference answers {right} of {len(truth)} rows as they say, and the most frequent class alone has "
        f"{frequent}. They must be the places of the classes among the scores, from 0 on, row by row."
    )


def _unfitting_tags(truth: np.ndarray, answers: np.ndarray, alpha: float) -> str:
    shares = bool(answers.min() >= 0 and answers.max() <= 1)
    wrong = (tags_of(answers, shares=shares) != (truth > 0)).mean(axis=1)
    frequent = ((truth.mean(axis=0) > 0.5) != (truth > 0)).mean(axis=1)
    if not _is_larger(wrong, frequent, alpha):
        return ""
    return (
        f"of its reference's tags {wrong.mean():.0%} are wrong on {len(truth)} rows, of the most frequent ones "
        f"{frequent.mean():.0%}. They must stand in the order of the scores, row by row."
    )


def _unfitting_numbers(truth: np.ndarray, answers: np.ndarray, alpha: float) -> str:
    true, given = (each.reshape(len(truth), -1).astype(np.float64) for each in (truth, answers))
    errors = np.abs(given - true).mean(axis=1)
    constant = np.abs(np.median(true, axis=0) - true).mean(axis=1)
    if not _is_larger(errors, constant, alpha):
        return ""
    return (
        f"its reference errs by {errors.mean():.4g} on average on {len(truth)} rows, and one who always answers the "
        f"median by {constant.mean():.4g}. They must be in the unit of the answers, row by row."
    )


def _is_larger(one: np.ndarray, other: np.ndarray, alpha: float) -> bool:
    """Whether the first are shown to be larger on average: by the normal distribution of the pairs' mean difference."""
    apart = one - other
    return bool(apart.mean() > -NormalDist().inv_cdf(alpha / 2) * apart.std() / math.sqrt(len(apart)))
