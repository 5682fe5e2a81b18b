"""Whether the model is accurate enough. The budget applies to the lower end of the interval, not to the estimate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

from lightship.bundle.statement import Evidence
from lightship.types import Interval, Json, Verdict
from lightship.validate.metrics import accuracy, class_metrics, confusion_matrix, macro_f1

__all__ = ["check_accuracy"]


def check_accuracy(
    truth: np.ndarray,
    predicted: np.ndarray,
    *,
    labels: Sequence[str],
    min_accuracy: float,
    subjects: Mapping[str, str],
    confidence: float = 0.95,
) -> Evidence:
    """Compare the accuracy on the gate rows with its budget.

    ``PASSED`` when the interval's lower end reaches ``min_accuracy``, ``FAILED`` when its upper end stays below,
    ``UNDECIDED`` between; then ``measured["rows_needed"]`` says how many rows of the same accuracy would pass
    (``None``: no number would).

    Args:
        truth: int classes, shape (n,).
        predicted: int classes, shape (n,).
        labels: the task's labels, by class.
        min_accuracy: the budget, in [0, 1].
        subjects: what was judged, with its SHA-256.
        confidence: of all intervals.
    """
    matrix = confusion_matrix(truth, predicted, classes=len(labels))
    overall = accuracy(matrix, confidence=confidence)
    per_class = class_metrics(matrix, labels, confidence=confidence)
    verdict = Verdict.UNDECIDED
    if overall.low >= min_accuracy:
        verdict = Verdict.PASSED
    elif overall.high < min_accuracy:
        verdict = Verdict.FAILED
    rows = _rows_needed(overall, min_accuracy) if verdict is Verdict.UNDECIDED else None
    confusion: list[Json] = [[int(cell) for cell in line] for line in matrix]
    return Evidence(
        check="accuracy",
        verdict=verdict,
        subjects=subjects,
        summary=(
            f"Accuracy {overall.estimate:.4f} ({overall.low:.4f} to {overall.high:.4f}) on {overall.n} gate rows; "
            f"the lower end must reach {min_accuracy:g}"
        ),
        measured={
            "accuracy": overall.to_json(),
            "macro_f1": macro_f1(per_class),
            "classes": [item.to_json() for item in per_class],
            "confusion": confusion,
            "rows_needed": rows,
        },
        method={
            "min_accuracy": min_accuracy,
            "confidence": confidence,
            "interval": "Wilson; F1 by F1 = 2F/(1+F) of the Wilson limits of F = TP/(TP+FP+FN)",
        },
    )


def _rows_needed(overall: Interval, budget: float) -> int | None:
    """Solve ``(p - p0) / sqrt(p0 (1 - p0) / n) = z``, which is Wilson's lower limit at the budget p0."""
    if overall.estimate <= budget:
        return None
    z = NormalDist().inv_cdf(0.5 + overall.confidence / 2)
    return math.ceil(z * z * budget * (1 - budget) / (overall.estimate - budget) ** 2) + 1
