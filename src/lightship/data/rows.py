"""Labelled rows, the rows that could not be used, and the rules for a label.

A row that cannot be used is never dropped in silence: it becomes a ``BadRow`` with its name and the reason, and a
source with more bad rows than good ones is refused. Rows may be lazy: ``LazyRows`` knows names and labels, and
reads an input from the disk only when it is asked for, so a folder of images need not fit into memory.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, overload

import numpy as np

from lightship.errors import InvalidData

__all__ = ["BadRow", "Dataset", "LazyRows", "RawInput", "Row", "clean_label", "refuse_mostly_bad"]

RawInput: TypeAlias = "bytes | np.ndarray"
"""What a row holds: the bytes of a file, or an array. The task decides what they mean."""

MAX_LABEL_CHARS = 200
_SHOWN_BAD_ROWS = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled input.

    Attributes:
        id: a stable name for people and reports: a path in the folder, or ``table.csv#17`` (first row: 1).
        raw: the input as it was found.
        label: the class, in Unicode normal form C.
    """

    id: str
    raw: RawInput
    label: str


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why."""

    id: str
    reason: str


class LazyRows(Sequence[Row]):
    """Rows whose inputs are read when they are asked for; every access reads again.

    Args:
        ids: one name a row.
        row_labels: one label a row.
        load: gives the input of the row at an index.
    """

    def __init__(self, ids: Sequence[str], row_labels: Sequence[str], load: Callable[[int], RawInput]) -> None:
        self.ids = tuple(ids)
        self.row_labels = tuple(row_labels)
        self._load = load

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            chosen = range(len(self))[index]
            return LazyRows(
                [self.ids[i] for i in chosen],
                [self.row_labels[i] for i in chosen],
                lambda i: self._load(chosen[i]),
            )
        position = range(len(self))[index]
        return Row(id=self.ids[position], raw=self._load(position), label=self.row_labels[position])

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True)
class Dataset:
    """The rows of one source.

    Attributes:
        rows: the usable rows, in the order of the source. An access may raise ``InvalidData`` when a file has gone.
        bad: the rows that cannot be used.
        source: the name that was read, e.g. ``folder:images``.
    """

    rows: Sequence[Row]
    bad: tuple[BadRow, ...]
    source: str

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The name of each row, without reading the inputs."""
        return self.rows.ids if isinstance(self.rows, LazyRows) else tuple(row.id for row in self.rows)

    @cached_property
    def row_labels(self) -> tuple[str, ...]:
        """The label of each row, without reading the inputs."""
        return self.rows.row_labels if isinstance(self.rows, LazyRows) else tuple(row.label for row in self.rows)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The classes, sorted by code point."""
        return tuple(sorted(set(self.row_labels)))


def clean_label(text: str) -> str:
    """Return ``text`` in Unicode normal form C, or refuse it.

    Two spellings of one accented word become one class. Space around a label is refused, not stripped: ``"cat"`` and
    ``"cat "`` in one table are more often a slip than two classes, and the person who owns the table should decide.
    Capital and small letters stay different.

    Raises:
        InvalidData: the label is empty, too long, has space around it, or holds control characters.
    """
    label = unicodedata.normalize("NFC", text)
    if not label.strip():
        raise InvalidData("the label is empty")
    if len(label) > MAX_LABEL_CHARS:
        raise InvalidData(f"the label has {len(label)} characters; at most {MAX_LABEL_CHARS} are allowed")
    if label != label.strip():
        raise InvalidData(f"the label {label!r} has space around it; remove it in the source")
    if any(unicodedata.category(char) in {"Cc", "Cs"} for char in label):
        raise InvalidData(f"the label {label!r} holds control characters or is not valid Unicode")
    return label


def refuse_mostly_bad(*, good: int, bad: Sequence[BadRow], source: str) -> None:
    """Refuse a source without a good row, or with more bad rows than good ones.

    Raises:
        InvalidData: names the first bad rows and their reasons.
    """
    if good and len(bad) <= good:
        return
    if not good and not bad:
        raise InvalidData(f"{source} holds no rows. Check the path, and that images lie in one folder per class.")
    shown = "; ".join(f"{row.id}: {row.reason}" for row in bad[:_SHOWN_BAD_ROWS])
    raise InvalidData(
        f"{len(bad)} of {good + len(bad)} rows of {source} cannot be used; at most half may be bad. "
        f"The first: {shown}. Mend the source or point the recipe to another one."
    )
