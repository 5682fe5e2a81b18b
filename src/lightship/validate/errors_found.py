"""What a classifier gets wrong: which classes it takes for which, and the rows whose answers are worst.

Rows are named by id and never carried: evidence travels with a release, and rows may be anybody's. Who has the rows
(the report) shows them by position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightship.types import Json
from lightship.validate.logits import labels_of, nonfinite_rows, probabilities_of
from lightship.validate.metrics import confusion_matrix

__all__ = ["ErrorsFound", "Mistake", "WorstRow", "find_errors"]

MOST_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Mistake:
    """Rows of one class that were taken for another: ``rows`` of the ``of`` rows of class ``truth``."""

    truth: str
    predicted: str
    rows: int
    of: int

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {"truth": self.truth, "predicted": self.predicted, "rows": self.rows, "of": self.of}


@dataclass(frozen=True, slots=True)
class WorstRow:
    """A row with a high loss: the model is surest of a wrong answer, or the label is wrong.

    Attributes:
        position: among the rows given.
        probability: of the answer; NaN and infinity count as 0.
        of_truth: of the true class.
        loss: ``-log of_truth``.
    """

    position: int
    row: str
    truth: str
    predicted: str
    probability: float
    of_truth: float
    loss: float

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form; without the position, which means nothing elsewhere."""
        return {
            "row": self.row,
            "truth": self.truth,
            "predicted": self.predicted,
            "probability": self.probability,
            "of_truth": self.of_truth,
            "loss": self.loss,
        }


@dataclass(frozen=True, slots=True)
class ErrorsFound:
    """All that is wrong.

    Attributes:
        confusion: int64 (classes, classes), rows by true class, columns by answer.
        mistakes: the most frequent first.
        worst: wrong rows, the highest loss first.
    """

    rows: int
    wrong: int
    confusion: np.ndarray
    mistakes: tuple[Mistake, ...]
    worst: tuple[WorstRow, ...]


def find_errors(
    logits: np.ndarray, truth: np.ndarray, *, labels: Sequence[str], rows: Sequence[str], most: int = MOST_SHOWN
) -> ErrorsFound:
    """Find the most frequent mistakes and the worst rows.

    Args:
        logits: (rows, classes); a row that is not finite is wrong, whatever its largest value is.
        truth: int classes, (rows,).
        labels: of the classes.
        rows: ids of the rows.
        most: of each list.
    """
    predicted = labels_of(logits)
    broken = np.zeros(len(truth), dtype=bool)
    broken[nonfinite_rows(logits)] = True
    matrix = confusion_matrix(truth, predicted, classes=len(labels))
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    cells = [divmod(int(cell), len(labels)) for cell in np.argsort(-off, axis=None, kind="stable")[:most]]
    shares = probabilities_of(np.where(broken[:, None], 0.0, logits.astype(np.float64)))
    shares[broken] = 0
    of_truth = shares[np.arange(len(truth)), truth]
    loss = -np.log(np.maximum(of_truth, np.finfo(np.float64).tiny))
    wrong = np.flatnonzero((predicted != truth) | broken)
    order = wrong[np.argsort(-loss[wrong], kind="stable")][:most]
    return ErrorsFound(
        rows=len(truth),
        wrong=len(wrong),
        confusion=matrix,
        mistakes=tuple(
            Mistake(labels[i], labels[j], int(off[i, j]), int(matrix[i].sum())) for i, j in cells if off[i, j]
        ),
        worst=tuple(
            WorstRow(
                position=int(at),
                row=rows[at],
                truth=labels[truth[at]],
                predicted=labels[predicted[at]],
                probability=float(shares[at, predicted[at]]),
                of_truth=float(of_truth[at]),
                loss=float(loss[at]),
            )
            for at in order
        ),
    )
