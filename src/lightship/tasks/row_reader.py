"""What every reader of given rows is, and the bounds that hold for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from lightship.data.rows import Dataset
from lightship.errors import InvalidData
from lightship.tasks.task import Task, Tensors

__all__ = [
    "MOST_GIVEN",
    "GivenLabels",
    "ImageRows",
    "NumberedRows",
    "RowReader",
    "require_few_enough",
    "require_plausible",
]

MOST_GIVEN = 1_000_000
"""Rows of a source. Each is read once to be hashed, and no more than some ten thousand are used."""

_PACKED = 100
_LEAST_REFUSED = 1 << 30
"""What unpacks to more than this, and to more than ``_PACKED`` times what it takes on the disk, is no data."""

GivenLabels: TypeAlias = "Sequence[object] | np.ndarray | None"
"""A label of each row, as it stands in the source; None: there are none."""


class RowReader(Protocol):
    """Rows of one source, as they stand there."""

    ids: Sequence[str]
    labels: GivenLabels
    broken: dict[int, str]
    """Rows that were found to be bad while the source was opened, and why."""

    def row(self, index: int) -> Tensors:
        """Return the arrays of a row, or raise ``InvalidInput``."""


def require_few_enough(rows: int, what: str) -> None:
    """Refuse a source of more rows than are read.

    Raises:
        InvalidData: names the source.
    """
    if rows > MOST_GIVEN:
        raise InvalidData(f"{what} has {rows:,} rows; at most {MOST_GIVEN:,} are read. Give a part of them.")


def require_plausible(unpacked: int, on_disk: int, what: str) -> None:
    """Refuse what a few bytes say that it is.

    Args:
        unpacked, on_disk: bytes.

    Raises:
        InvalidData: names the source.
    """
    if unpacked > max(_LEAST_REFUSED, _PACKED * on_disk):
        raise InvalidData(
            f"{what} has {on_disk:,} bytes and would unpack to {unpacked:,}; {_PACKED} times as many are allowed. "
            "Give fewer rows."
        )


class NumberedRows(Sequence[str]):
    """Names of rows by their number, made when they are asked for."""

    def __init__(self, prefix: str, count: int) -> None:
        self._prefix, self._count = prefix, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(self._count)[index]]
        return f"{self._prefix}#{range(self._count)[index] + 1}"


class ImageRows:
    """Images, which the task of the model encodes."""

    def __init__(self, dataset: Dataset, task: Task, *, labeled: bool) -> None:
        self._dataset, self._encode = dataset, task.encode
        broken = [(row.id, row.reason) for row in dataset.bad]
        self.ids: Sequence[str] = [*dataset.ids, *(name for name, _ in broken)]
        self.broken = {len(dataset.ids) + place: reason for place, (_, reason) in enumerate(broken)}
        labels: list[object] = [*dataset.row_labels, *(None for _ in broken)]
        self.labels: GivenLabels = labels if labeled else None

    def row(self, index: int) -> Tensors:
        """Return an image as the model takes it."""
        return self._encode(self._dataset.rows[index].raw)
