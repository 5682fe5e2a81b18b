"""What a classifier got right: confusion matrix, accuracy, and precision, recall and F1 of every class.

Classes are their positions in the task's labels. A ratio with nothing below its line is 0 here; its interval, which
says that nothing is known, is [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightship.errors import InvalidTensor
from lightship.types import Interval, Json
from lightship.validate.statistics import f1_interval, wilson

__all__ = ["ClassMetrics", "accuracy", "class_metrics", "confusion_matrix", "macro_f1"]


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """How one class fared.

    Attributes:
        support: rows whose true class this is.
        predicted: rows that were given to this class.
    """

    label: str
    support: int
    predicted: int
    precision: Interval
    recall: Interval
    f1: Interval

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form that evidence and reports carry."""
        return {
            "label": self.label,
            "support": self.support,
            "predicted": self.predicted,
            "precision": self.precision.to_json(),
            "recall": self.recall.to_json(),
            "f1": self.f1.to_json(),
        }


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, *, classes: int) -> np.ndarray:
    """Return how often each true class (row) was given to each class (column).

    Args:
        truth: integers in [0, classes), shape (n,).
        predicted: the same.
        classes: how many there are.

    Returns:
        int64, shape (classes, classes).

    Raises:
        InvalidTensor: unequal lengths, or a value that is no class.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.shape != predicted.shape or truth.ndim != 1:
        raise InvalidTensor(
            f"True and predicted classes must be two arrays of one length. Got {truth.shape} and {predicted.shape}."
        )
    for name, array in (("True", truth), ("Predicted", predicted)):
        if array.size and (array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= classes):
            raise InvalidTensor(
                f"{name} classes must be integers in [0, {classes}). Got {array.dtype}, {array[:5]} ..."
            )
    cells = truth.astype(np.int64) * classes + predicted.astype(np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def accuracy(matrix: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """Return the share of rows on the diagonal, with Wilson's interval."""
    return wilson(int(np.trace(matrix)), int(matrix.sum()), confidence)


def class_metrics(matrix: np.ndarray, labels: Sequence[str], *, confidence: float = 0.95) -> tuple[ClassMetrics, ...]:
    """Return precision, recall (Wilson) and F1 of every class, each with its interval."""
    found = []
    for index, label in enumerate(labels):
        tp, support, predicted = int(matrix[index, index]), int(matrix[index].sum()), int(matrix[:, index].sum())
        found.append(
            ClassMetrics(
                label=label,
                support=support,
                predicted=predicted,
                precision=wilson(tp, predicted, confidence),
                recall=wilson(tp, support, confidence),
                f1=f1_interval(tp, predicted - tp, support - tp, confidence),
            )
        )
    return tuple(found)


def macro_f1(metrics: Sequence[ClassMetrics]) -> float:
    """Return the mean F1 over the classes, each counting alike. No interval: the classes share rows."""
    return float(np.mean([item.f1.estimate for item in metrics])) if metrics else 0.0
