"""How good answers are beside true labels, batch by batch: memory does not grow with the rows.

``kind_of`` and ``metric_for`` choose by the form of labels and answers: classes, tags (several 0/1 labels a row), or
numbers.
Each meter takes ``add(truth, answers)`` and gives its figures, with intervals, as often as they are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, Protocol, TypeAlias

import numpy as np

from lightship.errors import InvalidInput, InvalidTensor
from lightship.types import Dim, Interval, Json, TensorSpec
from lightship.validate.statistics import wilson

__all__ = [
    "KINDS",
    "ClassMeter",
    "Kind",
    "Metric",
    "NumberMeter",
    "Reliability",
    "TagMeter",
    "are_probabilities",
    "class_scores",
    "kind_of",
    "mean_interval",
    "metric_for",
    "tags_of",
]

_BINS = 15
_MOST_CONFUSED = 2_000  # classes; beyond, the confusion matrix alone would take more than 32 MB
_LEAST_PROBABILITY = 1e-12  # 27.6 nats: a log loss of infinity would be no number
_SUM_TOLERANCE = 1e-2  # float16 and int8 softmax


class Metric(Protocol):
    """What a meter is, whatever it measures.

    Attributes:
        rows: how many were added.
    """

    rows: int

    def add(self, truth: np.ndarray, answers: np.ndarray) -> None:
        """Take a batch: first axis rows, as many labels as answers."""

    def to_json(self, *, confidence: float = 0.95) -> dict[str, Json]:
        """Return all figures with their intervals."""


AnyMeter: TypeAlias = "ClassMeter | TagMeter | NumberMeter"

Kind: TypeAlias = Literal["classes", "tags", "numbers"]
"""What the labels of rows are."""

KINDS: tuple[Kind, ...] = ("classes", "tags", "numbers")


def kind_of(labels: np.ndarray, output: TensorSpec, *, wanted: Kind | None = None) -> Kind | None:
    """Return what labels are beside the answers of an output, by dtypes and shapes; ``None`` if they do not fit.

    - one whole number a row, beside scores of classes or beside the classes themselves: ``classes``; so are 0 and 1
      beside one score a row
    - 0 and 1 for each of several values of the answer: ``tags``
    - a number for each value of the answer: ``numbers``

    Args:
        labels: numbers of all rows or of some, first axis rows.
        output: of the graph, first dimension rows.
        wanted: what a person says that they are; it decides between what is possible.

    Raises:
        InvalidInput: every row has a single 1 among its tags: these may be classes as well.
    """
    fitting = [kind for kind, fits in _FITS.items() if fits(labels, output)]
    if wanted is not None:
        return wanted if wanted in fitting else None
    if labels.ndim > 1 and "classes" in fitting:
        raise InvalidInput(
            "Every label has a single 1 and else 0. That may be a class of each row, or tags of which each row happens "
            "to have one. Say which: `--label-kind classes` or `--label-kind tags`."
        )
    if "numbers" in fitting and "classes" in fitting and not _is_binary(labels):
        return "numbers"  # one value a row that is no truth value
    return fitting[0] if fitting else None


def _is_binary(labels: np.ndarray) -> bool:
    return bool(((labels == 0) | (labels == 1)).all())


def _fit_classes(labels: np.ndarray, output: TensorSpec) -> bool:
    if labels.ndim == 2 and labels.shape[1] > 1:
        one_of_them = _is_binary(labels) and bool((labels.sum(axis=1) == 1).all())
        return one_of_them and _is_float(output) and _sizes(output) == labels.shape[1:]
    if labels.ndim != 1 or not bool((labels == np.floor(labels)).all()) or bool((labels < 0).any()):
        return False
    if _is_single(output):
        return _is_binary(labels) if _is_float(output) else output.dtype != "BYTES"
    return _is_float(output) and len(output.shape) == 2


def _fit_tags(labels: np.ndarray, output: TensorSpec) -> bool:
    several = labels.ndim == 2 and labels.shape[1] > 1
    return several and _is_binary(labels) and _is_float(output) and _sizes(output) == labels.shape[1:]


def _fit_numbers(labels: np.ndarray, output: TensorSpec) -> bool:
    alike = (labels.ndim == 1 and _is_single(output)) or labels.shape[1:] == _sizes(output)
    return _is_float(output) and alike


_FITS: dict[Kind, Callable[[np.ndarray, TensorSpec], bool]] = {
    "classes": _fit_classes,
    "tags": _fit_tags,
    "numbers": _fit_numbers,
}


def _is_float(output: TensorSpec) -> bool:
    return output.dtype.startswith("FP")


def _sizes(output: TensorSpec) -> tuple[Dim, ...]:
    return tuple(output.shape[1:])


def _is_single(output: TensorSpec) -> bool:
    """Whether it has one value a row."""
    return all(size == 1 for size in output.shape[1:])


def metric_for(
    labels: np.ndarray, output: TensorSpec, *, classes: int | None = None, wanted: Kind | None = None
) -> AnyMeter:
    """Return the meter that fits these labels and this output; see ``kind_of``.

    Args:
        labels: of all rows or of the first ones; they decide the kind.
        output: of the graph, first dimension rows.
        classes: how many there are, where the output does not say.
        wanted: see ``kind_of``.

    Raises:
        InvalidInput: labels and output that do not go together.
    """
    kind = kind_of(labels, output, wanted=wanted)
    if kind == "numbers":
        return NumberMeter()
    if kind == "tags":
        return TagMeter()
    if kind == "classes":
        width = output.shape[1] if len(output.shape) == 2 else None
        scores = 2 if _is_single(output) else width if isinstance(width, int) else None
        given = int(labels.max(initial=0)) + 1
        return ClassMeter(classes or (scores if _is_float(output) else None) or given)
    raise InvalidInput(
        f"Labels {labels.dtype} {list(labels.shape)} do not go with output {output.name!r}, {output.dtype} "
        f"{list(output.shape)}. A classifier takes one whole number a row, tags a 0 or 1 for each value of the answer, "
        "and numbers one for each."
    )


def are_probabilities(scores: np.ndarray, *, tolerance: float = _SUM_TOLERANCE) -> bool:
    """Whether every row of class scores is a distribution: none negative, sums of 1 (up to the rounding of int8)."""
    finite = scores[np.isfinite(scores).all(axis=1)]
    if not finite.size or finite.min() < 0:
        return False
    return bool((np.abs(finite.sum(axis=1, dtype=np.float64) - 1) <= tolerance).all())


def class_scores(answers: np.ndarray) -> np.ndarray:
    """Return one score for each class; of one value a row two: ``1 - p, p`` of a probability, ``0, z`` of a logit.

    Raises:
        InvalidTensor: more than two axes.
    """
    if answers.ndim == 2 and answers.shape[1] > 1:
        return answers
    if answers.ndim > 2:
        raise InvalidTensor(f"Class scores must have the shape [rows, classes]. Got {list(answers.shape)}.")
    one = answers.reshape(len(answers))
    finite = one[np.isfinite(one)]
    share = bool(finite.size) and finite.min() >= 0 and finite.max() <= 1
    return np.stack([1 - one if share else np.zeros_like(one), one], axis=1)


def tags_of(scores: np.ndarray, *, shares: bool) -> np.ndarray:
    """Return which tags the scores give: above 0.5 if they are probabilities, else above 0. NaN gives none."""
    return np.asarray(scores > (0.5 if shares else 0.0))


@dataclass(frozen=True, slots=True)
class Reliability:
    """One bin of the reliability diagram: rows whose largest probability lies in (low, high]."""

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "low": self.low,
            "high": self.high,
            "rows": self.rows,
            "confidence": self.confidence,
            "accuracy": self.accuracy,
        }


class ClassMeter:
    """Accuracy, counts by class, confusion, log loss, Brier score and calibration of a classifier.

    Args:
        classes: how many there are.
    """

    def __init__(self, classes: int) -> None:
        self.rows = 0
        self.classes = classes
        self.nonfinite_rows = 0
        self.support = np.zeros(classes, dtype=np.int64)
        self.predicted = np.zeros(classes, dtype=np.int64)
        self.right = np.zeros(classes, dtype=np.int64)
        self.confusion = np.zeros((classes, classes), dtype=np.int64) if classes <= _MOST_CONFUSED else None
        self._shares: bool | None = None
        self._log, self._brier = _Moments(), _Moments()
        self._bins = np.zeros((3, _BINS))  # rows, sum of confidence, right

    def add(self, truth: np.ndarray, answers: np.ndarray) -> None:
        """Take a batch: int classes (rows,), and scores (rows, classes), one score a row, or int classes.

        Raises:
            InvalidTensor: unequal lengths, a class that is none, or another number of scores.
        """
        truth = _whole(truth, self.classes, what="True classes")
        if len(truth) != len(answers):
            raise InvalidTensor(f"There must be one label for each answer. Got {len(truth)} and {len(answers)}.")
        if answers.dtype.kind == "f":
            scores = class_scores(answers)
            if scores.shape[1] != self.classes:
                raise InvalidTensor(f"Scores must be of {self.classes} classes. Got {scores.shape[1]}.")
            finite = np.isfinite(scores).all(axis=1)
            given = np.where(finite, scores.argmax(axis=1), -1)
            self._sureness(truth[finite], scores[finite])
        else:
            given = _whole(answers.reshape(len(answers)), self.classes, what="Predicted classes")
        found = given >= 0
        self.nonfinite_rows += int((~found).sum())
        self.rows += len(truth)
        self.support += np.bincount(truth, minlength=self.classes)
        self.predicted += np.bincount(given[found], minlength=self.classes)
        self.right += np.bincount(truth[given == truth], minlength=self.classes)
        if self.confusion is not None:
            np.add.at(self.confusion, (truth[found], given[found]), 1)

    def _sureness(self, truth: np.ndarray, scores: np.ndarray) -> None:
        if not len(scores):
            return
        if self._shares is None:
            self._shares = are_probabilities(scores)
        wide = scores.astype(np.float64)
        if not self._shares:
            with np.errstate(over="ignore", under="ignore"):
                wide = np.exp(wide - wide.max(axis=1, keepdims=True))
        shares = np.clip(wide, 0, None)
        shares = shares / np.maximum(shares.sum(axis=1, keepdims=True), _LEAST_PROBABILITY)
        at_truth = shares[np.arange(len(truth)), truth]
        self._log.add(-np.log(np.maximum(at_truth, _LEAST_PROBABILITY)))
        self._brier.add((shares**2).sum(axis=1) - 2 * at_truth + 1)
        sure = shares.max(axis=1)
        place = np.clip(np.ceil(sure * _BINS).astype(int) - 1, 0, _BINS - 1)
        right = shares.argmax(axis=1) == truth
        for row, weight in enumerate((np.ones(len(sure)), sure, right)):
            self._bins[row] += np.bincount(place, weights=weight, minlength=_BINS)

    def accuracy(self, *, confidence: float = 0.95) -> Interval:
        """Return the share of right rows, with Wilson's interval; a row without finite scores is wrong."""
        return wilson(int(self.right.sum()), self.rows, confidence)

    def log_loss(self, *, confidence: float = 0.95) -> Interval | None:
        """Return the mean of ``-log p`` of the true class, a p below 1e-12 counting as that; Student's t."""
        return self._log.interval(confidence, low=0.0)

    def brier(self, *, confidence: float = 0.95) -> Interval | None:
        """Return the mean of ``sum_k (p_k - y_k)^2``, in [0, 2]; Student's t."""
        return self._brier.interval(confidence, low=0.0, high=2.0)

    def reliability(self) -> tuple[Reliability, ...]:
        """Return the bins that hold rows: 15 of equal width."""
        return tuple(
            Reliability(k / _BINS, (k + 1) / _BINS, int(rows), float(sure / rows), float(right / rows))
            for k, (rows, sure, right) in enumerate(self._bins.T.tolist())
            if rows
        )

    def ece(self) -> float | None:
        """Return the expected calibration error, ``sum_bins rows/n |accuracy - confidence|`` (Guo et al., ICML 2017).

        No interval: it is biased upwards when bins hold few rows. ``None`` without probabilities.
        """
        rows = self._bins[0].sum()
        return float(np.abs(self._bins[2] - self._bins[1]).sum() / rows) if rows else None

    def to_json(self, *, confidence: float = 0.95) -> dict[str, Json]:
        """Return all figures with their intervals."""
        log, brier = self.log_loss(confidence=confidence), self.brier(confidence=confidence)
        return {
            "kind": "classes",
            "rows": self.rows,
            "nonfinite_rows": self.nonfinite_rows,
            "accuracy": self.accuracy(confidence=confidence).to_json(),
            "log_loss": None if log is None else log.to_json(),
            "brier": None if brier is None else brier.to_json(),
            "ece": self.ece(),
            "reliability": [each.to_json() for each in self.reliability()],
            "support": [int(k) for k in self.support],
            "predicted": [int(k) for k in self.predicted],
            "right": [int(k) for k in self.right],
        }


class TagMeter:
    """How many of a row's tags are wrong, and how often a row has none that is."""

    def __init__(self) -> None:
        self.rows = 0
        self.nonfinite_rows = 0
        self._shares: bool | None = None
        self._exact = 0
        self._wrong = _Moments()

    def add(self, truth: np.ndarray, answers: np.ndarray) -> None:
        """Take a batch of labels 0 and 1 and of scores, both of shape (rows, tags).

        Raises:
            InvalidTensor: unequal shapes.
        """
        if truth.shape != answers.shape or truth.ndim != 2:
            raise InvalidTensor(
                f"Tags and their scores must have one shape [rows, tags]. Got {truth.shape}, {answers.shape}."
            )
        if self._shares is None and len(answers):
            self._shares = bool(np.nanmin(answers) >= 0 and np.nanmax(answers) <= 1)
        wrong = tags_of(answers, shares=bool(self._shares)) != (truth > 0)
        broken = ~np.isfinite(answers).all(axis=1)
        share = np.where(broken, 1.0, wrong.mean(axis=1))
        self.rows += len(truth)
        self.nonfinite_rows += int(broken.sum())
        self._exact += int((share == 0).sum())
        self._wrong.add(share)

    def wrong(self, *, confidence: float = 0.95) -> Interval | None:
        """Return the mean share of a row's tags that is wrong (Hamming loss); Student's t."""
        return self._wrong.interval(confidence, low=0.0, high=1.0)

    def to_json(self, *, confidence: float = 0.95) -> dict[str, Json]:
        """Return all figures with their intervals."""
        wrong = self.wrong(confidence=confidence)
        return {
            "kind": "tags",
            "rows": self.rows,
            "nonfinite_rows": self.nonfinite_rows,
            "exact": wilson(self._exact, self.rows, confidence).to_json(),
            "hamming": None if wrong is None else wrong.to_json(),
        }


class NumberMeter:
    """Mean absolute error, root mean squared error and R² of answers that are numbers."""

    def __init__(self) -> None:
        self.rows = 0
        self.nonfinite_rows = 0
        self._absolute, self._squared, self._truth = _Moments(), _Moments(), _Moments()

    def add(self, truth: np.ndarray, answers: np.ndarray) -> None:
        """Take a batch of true and given numbers, as many values a row.

        Raises:
            InvalidTensor: another number of values.
        """
        if truth.size != answers.size or len(truth) != len(answers):
            raise InvalidTensor(
                f"There must be as many labels as answers. Got shapes {list(truth.shape)} and {list(answers.shape)}."
            )
        true = truth.reshape(len(truth), -1).astype(np.float64)
        error = answers.reshape(len(truth), -1).astype(np.float64) - true
        finite = np.isfinite(error).all(axis=1)
        self.rows += len(truth)
        self.nonfinite_rows += int((~finite).sum())
        self._absolute.add(np.abs(error[finite]).mean(axis=1))
        self._squared.add((error[finite] ** 2).mean(axis=1))
        self._truth.add(true[finite].ravel())

    def mae(self, *, confidence: float = 0.95) -> Interval | None:
        """Return the mean absolute error; Student's t. ``None`` without a finite row."""
        return self._absolute.interval(confidence, low=0.0)

    def rmse(self, *, confidence: float = 0.95) -> Interval | None:
        """Return the root of the mean squared error: the root of its limits by Student's t."""
        found = self._squared.interval(confidence, low=0.0)
        if found is None:
            return None
        low, middle, high = (math.sqrt(each) for each in (found.low, found.estimate, found.high))
        return Interval(middle, low, high, confidence=confidence, n=found.n)

    def r2(self) -> float | None:
        """Return the share of the labels' variance that the answers explain; of several values a row, of all in one."""
        spread = self._truth.variance * (self._truth.n - 1)
        if self._truth.n < 2 or spread <= 0:
            return None
        values = self._truth.n / self._squared.n
        return 1 - self._squared.mean * self._squared.n * values / spread

    def to_json(self, *, confidence: float = 0.95) -> dict[str, Json]:
        """Return all figures with their intervals."""
        mae, rmse = self.mae(confidence=confidence), self.rmse(confidence=confidence)
        return {
            "kind": "numbers",
            "rows": self.rows,
            "nonfinite_rows": self.nonfinite_rows,
            "mae": None if mae is None else mae.to_json(),
            "rmse": None if rmse is None else rmse.to_json(),
            "r2": self.r2(),
        }


def mean_interval(
    values: np.ndarray, confidence: float, *, low: float = -math.inf, high: float = math.inf
) -> Interval | None:
    """Return the mean of values with Student's interval, cut to [low, high]; ``None`` of none."""
    moments = _Moments()
    moments.add(values)
    return moments.interval(confidence, low=low, high=high)


class _Moments:
    """Mean and variance, by Chan, Golub and LeVeque's update: no large sums are subtracted."""

    def __init__(self) -> None:
        self.n, self.mean, self._squares = 0, 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        if not values.size:
            return
        total, mean = self.n + values.size, float(values.mean())
        apart = mean - self.mean
        self._squares += float(((values - mean) ** 2).sum()) + apart * apart * self.n * values.size / total
        self.mean += apart * values.size / total
        self.n = total

    @property
    def variance(self) -> float:
        return self._squares / (self.n - 1) if self.n > 1 else 0.0

    def interval(self, confidence: float, *, low: float = -math.inf, high: float = math.inf) -> Interval | None:
        """Student's t, by Cornish and Fisher's expansion; ``None`` of no values, all that is possible of one."""
        if not self.n:
            return None
        if self.n == 1:
            top = high if math.isfinite(high) else max(self.mean * 1e3, 1e3)
            return Interval(self.mean, low, top, confidence=confidence, n=1)
        z = NormalDist().inv_cdf(0.5 + confidence / 2)
        t = z + (z**3 + z) / (4 * (self.n - 1)) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * (self.n - 1) ** 2)
        radius = t * math.sqrt(self.variance / self.n)
        return Interval(
            self.mean, max(self.mean - radius, low), min(self.mean + radius, high), confidence=confidence, n=self.n
        )


def _whole(values: np.ndarray, classes: int, *, what: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or (
        values.size and (values.dtype.kind not in "iub" or int(values.min()) < 0 or int(values.max()) >= classes)
    ):
        raise InvalidTensor(
            f"{what} must be whole numbers in [0, {classes}), one a row. Got {values.dtype}, {values[:5]}."
        )
    return values.astype(np.int64)
