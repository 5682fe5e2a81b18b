"""Given rows with labels, as an analysis takes them: labels, names, features, and what a variant answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from lightship.optimize.candidate import Candidate
from lightship.pipeline.analysis import features_of
from lightship.pipeline.given_rows import GivenRows
from lightship.pipeline.labeled_answers import scores_as_logits
from lightship.tasks.task import Task, Tensors
from lightship.validate.meters import Kind
from lightship.validate.row_losses import RowLosses
from lightship.validate.slices import Features

__all__ = ["GivenClasses", "GivenValues", "LabeledRows"]

_BATCH = 32
_TABLE = 64


class LabeledRows:
    """Given rows with labels of any kind, as an analysis takes them."""

    def __init__(self, rows: GivenRows, task: Task) -> None:
        self._rows, self._task = rows, task
        assert rows.labels is not None  # noqa: S101 - these are analyzed because they have labels
        self.labels: Sequence[str] = rows.labels.names
        self.kind: Kind = rows.labels.kind

    def truth(self, part: str) -> np.ndarray:
        """Return the labels of the rows; classes as int64."""
        return self._rows.truth(self._order(part))

    def ids(self, part: str) -> Sequence[str]:
        """Return what people call the rows."""
        return [self._rows.name(row) for row in self._order(part)]

    def features(self, part: str) -> Features:
        """Return what is known of the rows without their labels."""
        columns = self._columns(part)
        if part == "selection":
            return Features(columns)
        # Rows of other sizes may have other columns; slices are told by those of the rows that they were found on.
        there = self._columns("selection")
        nothing = np.zeros(len(self._order(part)))
        return Features({name: columns.get(name, nothing) for name in there})

    def _columns(self, part: str) -> dict[str, np.ndarray]:
        order = {row: place for place, row in enumerate(self._order(part))}
        columns: dict[str, np.ndarray] = {}
        for rows, inputs in self._rows.tables(part, _TABLE):
            places = [order[row] for row in rows]
            for name, values in features_of(self._task, inputs).numbers.items():
                columns.setdefault(name, np.zeros(len(order)))[places] = values
        return columns

    def few(self) -> Tensors:
        """Return some selection rows of one shape, first axis rows."""
        return self._rows.few()

    def _order(self, part: str) -> list[int]:
        return sorted(self._rows.usable(part))

    def _asked(
        self, part: str, run: Callable[[Tensors], Tensors], size: int
    ) -> Iterator[tuple[Sequence[int], np.ndarray]]:
        """Yield (rows, answers) in batches of at most so many rows."""
        for rows, inputs in self._rows.inputs(part, size):
            yield rows, self._rows.as_rows(run(inputs))[self._rows.output]


class GivenClasses(LabeledRows):
    """Given rows with classes and scores."""

    def scores(self, part: str, variant: Candidate) -> np.ndarray:
        """Return what a variant answers: logits, (rows, classes)."""
        with _running(self._rows, variant) as run:
            return self.logits(part, run, _BATCH)

    def logits(self, part: str, run: Callable[[Tensors], Tensors], size: int) -> np.ndarray:
        """Return what ``run`` answers, in batches of at most so many rows."""
        order: list[int] = []
        found = []
        for rows, answers in self._asked(part, run, size):
            order += rows
            found.append(answers)
        return scores_as_logits(np.concatenate(found)[np.argsort(order)])


class GivenValues(LabeledRows):
    """Given rows with numbers, tags, or classes that come without scores."""

    def losses(self, part: str, variant: Candidate, *, shares: bool | None) -> RowLosses:
        """Return how wrong a variant's answers are."""
        with _running(self._rows, variant) as run:
            return self.losses_of(part, run, _BATCH, shares=shares)

    def losses_of(self, part: str, run: Callable[[Tensors], Tensors], size: int, *, shares: bool | None) -> RowLosses:
        """Return how wrong the answers of ``run`` are, in batches of at most so many rows."""
        found = RowLosses(self.kind, shares=shares)
        for rows, answers in self._asked(part, run, size):
            found.add(rows, self._rows.truth(rows), answers)
        return found


@contextmanager
def _running(rows: GivenRows, variant: Candidate) -> Iterator[Callable[[Tensors], Tensors]]:
    """Load a variant to answer rows."""
    runner = variant.runner(batched=rows.batched, limited=True)
    try:
        yield runner.run
    finally:
        runner.close()
