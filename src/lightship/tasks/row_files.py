"""Rows that a person gives for a released model: as a ``.npz`` file, a Parquet table, or a folder.

    rows.npz        arrays by the name of the input, the first axis are rows; ``label`` if there are labels
    rows.parquet    columns by the name of the input: numbers, or lists of them; a column ``label``
    folder          ``.npz`` files of one row or several each; for a model of images, images, in folders by class or not
    table.csv       for a model of images: a column of paths, a column ``label``

Whatever lies there was made by others. A row that cannot be used is named with the reason, and a source with more
than a few of them is refused. Rows are read when they are asked for, so memory does not depend on their number; how
many there are, and what they unpack to, is told by headers and held against bounds before anything is read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lightship.data.rows import BadRow
from lightship.data.sources import read_source
from lightship.errors import InvalidData, NotFound
from lightship.tasks.row_arrays import ArrayRows, npz_rows
from lightship.tasks.row_folders import folder_rows
from lightship.tasks.row_reader import GivenLabels, ImageRows, RowReader, require_few_enough
from lightship.tasks.row_tables import parquet_rows
from lightship.tasks.task import Task, Tensors
from lightship.tasks.tensors import is_batched
from lightship.types import DTYPES, Dim, Interface, TensorSpec

__all__ = ["LABEL", "GivenLabels", "RowFile", "few_of", "read_rows"]

LABEL = "label"
"""The array or column that holds labels, unless the caller names another one."""

_HELD_BYTES = 256 << 20
_FEW, _SHARE = 3, 0.05
"""Bad rows that are skipped: so many, or this share of all."""
_SHOWN = 3


class RowFile:
    """Rows of tensors for one interface, read when they are asked for.

    Attributes:
        source: as it was given.
        ids: a name of each row for people.
        labels: of each row as they stand there, None where the row is bad; None if there are no labels.
        bad: rows that were found to be bad while the source was opened. ``row`` finds the others.
    """

    def __init__(self, source: str, reader: RowReader, interface: Interface) -> None:
        require_few_enough(len(reader.ids), source)
        self.source = source
        self.ids = reader.ids
        self.bad = dict(reader.broken)
        self.labels = reader.labels
        self._reader = reader
        self._interface = interface
        self._batched = is_batched(interface.inputs, interface.outputs)
        self._held: dict[int, Tensors] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, index: int) -> Tensors:
        """Return one row, without a batch axis; of a graph without a batch dimension, the whole inputs.

        Raises:
            InvalidInput: the row cannot be used; the message says which input, what it takes and what came.
        """
        if index in self.bad:
            raise InvalidData(self.bad[index])
        if index in self._held:
            return self._held[index]
        found = self._reader.row(index)
        sizes: dict[str, int] = {}
        return {
            spec.name: _fitting(spec, self._row_shape(spec), found[spec.name], sizes, self._interface)
            for spec in self._interface.inputs
        }

    def hold(self, indices: Sequence[int]) -> None:
        """Keep rows in memory, as far as they go there; they are read in the order in which they lie.

        Rows are asked for in the order of their hashes, and a table has to unpack a whole group for each.
        """
        left = _HELD_BYTES
        for index in sorted(indices):
            row = self.row(index)
            left -= sum(array.nbytes for array in row.values())
            if left < 0:
                return
            self._held[index] = row

    def stacked(self, indices: Sequence[int]) -> Tensors:
        """Return rows of one shape with the batch axis in front; of a graph without one, the single row as it is."""
        rows = [self.row(index) for index in indices]
        if not self._batched:
            return rows[0]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def require_usable(self, bad: Sequence[BadRow], *, of: int) -> None:
        """Refuse a source of which more than a few rows are bad.

        Raises:
            InvalidData: names the first of them.
        """
        most = few_of(of)
        if of > len(bad) and len(bad) <= most:
            return
        shown = "; ".join(f"{row.id}: {row.reason}" for row in bad[:_SHOWN])
        raise InvalidData(
            f"{len(bad)} of {of} rows of {self.source} cannot be used; at most {min(most, max(of - 1, 0))} may be bad. "
            f"The first: {shown}."
        )

    def _row_shape(self, spec: TensorSpec) -> tuple[Dim, ...]:
        return spec.shape[1:] if self._batched else spec.shape


def few_of(rows: int) -> int:
    """Return how many of so many rows may be bad."""
    return max(_FEW, int(_SHARE * rows))


def read_rows(
    path: Path | str | Mapping[str, np.ndarray], *, task: Task, interface: Interface, label: str = LABEL
) -> RowFile:
    """Open the rows at ``path`` for a model.

    Args:
        path: see the module; or arrays by the name of the input.
        task: of the model; it encodes images.
        interface: of the model; rows beyond its proven sizes are bad.
        label: the array or column of labels.

    Raises:
        NotFound: there is nothing at the path.
        InvalidData: it holds no rows that the model could take; the message says what was allowed and what came.
        MissingExtra: Parquet needs the extra ``parquet``.
    """
    if isinstance(path, Mapping):
        what = "The rows"
        given = {name: array.astype(object) if array.dtype.kind in "SU" else array for name, array in path.items()}
        return RowFile("arrays", ArrayRows(given, interface, label=label, what=what, prefix="row"), interface)
    path = Path(path)
    source = str(path)
    if not os.path.lexists(path):
        raise NotFound(f"There are no rows at {source!r}. Give a .npz file, a .parquet file or a folder.")
    if any(spec.name == label for spec in interface.inputs):
        raise InvalidData(
            f"The model has an input that is called {label!r}, as the labels are. Name the labels otherwise, with "
            "`--label NAME`."
        )
    return RowFile(source, _reader(path, task, interface, label), interface)


def _reader(path: Path, task: Task, interface: Interface, label: str) -> RowReader:
    if path.is_dir():
        return folder_rows(path, task, interface, label)
    if not path.is_file():
        raise InvalidData(f"{str(path)!r} is no regular file. Give a .npz file, a .parquet file or a folder.")
    begin = _beginning(path)
    if begin.startswith(b"PK\x03\x04"):
        return npz_rows(path, interface, label=label)
    if begin.startswith(b"PAR1"):
        return parquet_rows(path, task, interface, label)
    if path.suffix.lower() == ".csv" and task.labels:
        return ImageRows(read_source(str(path.resolve()), base=Path.cwd(), label_column=label), task, labeled=True)
    raise InvalidData(
        f"{str(path)!r} is no .npz file, as `numpy.savez` writes it, and no Parquet file: it begins with {begin!r}."
        + (" A model that was imported takes no .csv file." if path.suffix.lower() == ".csv" else "")
    )


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError as exc:
        raise InvalidData(f"{str(path)!r} cannot be read: {exc.strerror}.") from exc


# -- one row ----------------------------------------------------------------------------------------------------------


def _fitting(
    spec: TensorSpec, shape: Sequence[Dim], array: np.ndarray, sizes: dict[str, int], interface: Interface
) -> np.ndarray:
    """Return ``array`` as the input takes it, or say why it cannot be."""
    fixed = [dim for dim in shape if isinstance(dim, int)]
    if array.ndim <= 1 and len(fixed) == len(shape) and array.size == math.prod(fixed):
        array = array.reshape(fixed)  # tables hold lists; an image of 3 x 224 x 224 comes as one of 150,528
    if array.ndim != len(shape):
        raise InvalidData(f"the input {spec.name!r} takes rows of the shape {_shown(shape)}. Got {list(array.shape)}")
    for dim, size in zip(shape, array.shape, strict=True):
        if isinstance(dim, int):
            if dim != size:
                raise InvalidData(
                    f"the input {spec.name!r} takes rows of the shape {_shown(shape)}. Got {list(array.shape)}"
                )
        elif sizes.setdefault(dim, size) != size:
            raise InvalidData(f"{dim} of the input {spec.name!r} is {size}, and {sizes[dim]} in an input before it")
        else:
            low, high = interface.proven.get(dim, (1, size))
            if not low <= size <= high:
                upto = f"--upto {dim}={size} or " if size > high else ""
                raise InvalidData(
                    f"{dim} of the input {spec.name!r} was proven for {low} to {high}. Got {size}; import the model "
                    f"again with {upto}such rows as --golden"
                )
    return _as_dtype(spec, array)


def _as_dtype(spec: TensorSpec, array: np.ndarray) -> np.ndarray:
    """Return the values in the dtype of the input, if none of them changes but by rounding of floats."""
    wanted = np.dtype(DTYPES[spec.dtype])
    if array.dtype == wanted:
        return np.ascontiguousarray(array).reshape(array.shape)
    numbers = array.dtype.kind in "biuf" and wanted.kind in "biuf"
    whole = array.dtype.kind in "biu"
    if not numbers or (wanted.kind in "biu" and not whole) or (wanted.kind == "b") != (array.dtype.kind == "b"):
        raise InvalidData(f"the input {spec.name!r} takes {spec.dtype}. Got {_dtype_words(array)}")
    if wanted.kind in "iu" and array.size:
        allowed = np.iinfo(wanted)
        low, high = int(array.min()), int(array.max())
        if low < allowed.min or high > allowed.max:
            raise InvalidData(f"the input {spec.name!r} takes {spec.dtype}. Got values from {low} to {high}")
    with np.errstate(over="ignore"):
        return array.astype(wanted)


def _dtype_words(array: np.ndarray) -> str:
    return "texts" if array.dtype.kind in "OSU" else str(array.dtype)


def _shown(shape: Sequence[Dim]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
