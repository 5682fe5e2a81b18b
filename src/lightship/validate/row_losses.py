"""How wrong each row is, where an answer is a number, a set of tags, or a class without scores.

- numbers: the mean absolute error of the row's values
- tags: the share of its tags that is wrong
- classes: 1 for a wrong one

A row without a finite answer is infinitely wrong in numbers, wholly wrong in the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lightship.errors import InvalidTensor
from lightship.validate.meters import Kind, tags_of

__all__ = ["LOSS_NAMES", "RowLosses", "are_shares"]

LOSS_NAMES: Mapping[Kind, str] = {
    "numbers": "mean absolute error",
    "tags": "share of wrong tags",
    "classes": "share of wrong rows",
}

_MOST_VALUES = 64  # a row; of wider answers the losses alone are kept


def are_shares(scores: np.ndarray) -> bool:
    """Return whether scores of tags are probabilities."""
    return bool(scores.size and np.nanmin(scores) >= 0 and np.nanmax(scores) <= 1)


class RowLosses:
    """The loss of each row, and of narrow answers labels and answers too; batch by batch, in any order of the rows.

    Args:
        kind: what the labels are.
        shares: of tags: scores are probabilities; ``None``: the first batch tells.
    """

    def __init__(self, kind: Kind, *, shares: bool | None = None) -> None:
        self.kind, self.shares = kind, shares
        self._rows: list[int] = []
        self._losses: list[np.ndarray] = []
        self._kept: list[tuple[np.ndarray, np.ndarray]] = []
        self._wide = False

    def add(self, rows: Sequence[int], truth: np.ndarray, answers: np.ndarray) -> None:
        """Take a batch: which rows, their labels, and the answers; as many values a row in both.

        Raises:
            InvalidTensor: unequal sizes.
        """
        if not len(rows) == len(truth) == len(answers) or truth.size != answers.size:
            raise InvalidTensor(
                f"Labels and answers must have as many values. Got {list(truth.shape)} and {list(answers.shape)}."
            )
        true, given = truth.reshape(len(rows), -1), answers.reshape(len(rows), -1)
        if self.shares is None and given.size and self.kind == "tags":
            self.shares = are_shares(given)
        self._rows += rows
        self._losses.append(self._loss(true, given))
        self._wide = self._wide or true.shape[1] > _MOST_VALUES
        if not self._wide:
            self._kept.append((true, given))

    @property
    def values(self) -> np.ndarray:
        """The losses in the order of the rows, float64 (rows,)."""
        return np.concatenate(self._losses)[np.argsort(self._rows)]

    @property
    def answers(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Labels and answers in the order of the rows, both (rows, values); ``None`` of wide ones."""
        if self._wide:
            return None
        order = np.argsort(self._rows)
        truth, answers = (np.concatenate(each)[order] for each in zip(*self._kept, strict=True))
        return truth, answers

    def _loss(self, truth: np.ndarray, answers: np.ndarray) -> np.ndarray:
        if self.kind == "classes":
            return np.asarray((truth != answers).any(axis=1), dtype=np.float64)
        finite = np.isfinite(answers).all(axis=1)
        if self.kind == "tags":
            wrong = tags_of(answers, shares=bool(self.shares)) != (truth > 0)
            return np.where(finite, wrong.mean(axis=1), 1.0)
        off = np.abs(np.where(finite[:, None], answers, 0).astype(np.float64) - truth)
        return np.where(finite, off.mean(axis=1), np.inf)
