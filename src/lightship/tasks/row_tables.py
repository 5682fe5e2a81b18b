"""Rows in a Parquet table: columns by the name of the input, numbers or lists of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightship.data.sources import read_source
from lightship.errors import InvalidData, MissingExtra
from lightship.tasks.row_reader import (
    GivenLabels,
    ImageRows,
    NumberedRows,
    RowReader,
    require_few_enough,
    require_plausible,
)
from lightship.tasks.task import Task, Tensors
from lightship.types import Interface

__all__ = ["parquet_rows"]

_GROUP_BYTES = 1 << 30
_VALUE_BYTES = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT96": 12}
"""Of a value in memory, by its physical type; others have 8, of texts where they stand."""


def parquet_rows(path: Path, task: Task, interface: Interface, label: str) -> RowReader:
    """Open a Parquet table; of a model of images, one with a column of images may do.

    Raises:
        InvalidData: it is no such table, or has other columns than the model takes.
        MissingExtra: it needs the extra ``parquet``.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as exc:
        raise MissingExtra(extra="parquet", needed_for=f"Reading {str(path)!r}") from exc
    names = {spec.name for spec in interface.inputs}
    try:
        file = pyarrow.parquet.ParquetFile(path)
        require_few_enough(file.metadata.num_rows, f"The table {str(path)!r}")
        columns = file.schema_arrow.names
        if task.labels and not (names <= set(columns) and _is_numbers(file.schema_arrow, names)):
            labeled = label in columns
            return ImageRows(
                read_source(str(path.resolve()), base=Path.cwd(), label_column=label), task, labeled=labeled
            )
        texts = [each.path for each in _columns(file, {*names, label}) if each.physical_type == "BYTE_ARRAY"]
        if texts:  # a dictionary of one long text is small, and would be large for each row
            file = pyarrow.parquet.ParquetFile(path, read_dictionary=texts)
        return _Table(path, file, interface, label)
    except (pyarrow.ArrowException, OSError) as exc:
        raise InvalidData(f"{str(path)!r} is not a readable Parquet file: {str(exc)[:300]}.") from exc


def _is_numbers(schema: Any, names: set[str]) -> bool:
    """Whether columns hold tensors; else a column of that name holds images, as their bytes or paths."""
    import pyarrow

    others = (pyarrow.types.is_binary, pyarrow.types.is_large_binary, pyarrow.types.is_string, pyarrow.types.is_struct)
    return not any(is_other(schema.field(name).type) for name in names for is_other in others)


def _columns(file: Any, names: set[str]) -> list[Any]:
    """Return the leaf columns that some of the named ones consist of."""
    leaves = [file.schema.column(number) for number in range(len(file.schema.names))]
    return [each for each in leaves if each.path.partition(".")[0] in names or each.path in names]


class _Table:
    """Rows of a Parquet file, of which one row group is in memory at a time."""

    def __init__(self, path: Path, file: Any, interface: Interface, label: str) -> None:
        self._file = file
        self._names = [spec.name for spec in interface.inputs]
        what = f"The table {str(path)!r}"
        there = file.schema_arrow.names
        if missing := sorted(set(self._names) - set(there)):
            raise InvalidData(
                f"{what} must have the columns {', '.join(map(repr, sorted(self._names)))}, and {label!r} for labels. "
                f"Missing: {', '.join(map(repr, missing))}. It has {', '.join(map(repr, there[:20])) or 'none'}."
            )
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        used = {each.path for each in _columns(file, {*self._names, label})}
        sizes = [_unpacked(group, used) for group in groups]
        for number, size in enumerate(sizes):
            if size > _GROUP_BYTES:
                raise InvalidData(
                    f"{what}: a row group may unpack to {_GROUP_BYTES:,} bytes at most. Number {number} has "
                    f"{size:,}. Write it with smaller ones (`row_group_size`)."
                )
        require_plausible(sum(sizes), path.stat().st_size, what)
        self._starts = np.cumsum([0, *(group.num_rows for group in groups)])
        count = int(self._starts[-1])
        if not count:
            raise InvalidData(f"{what} has no rows.")
        self.ids: Sequence[str] = NumberedRows(path.name, count)
        self._group, self._held = -1, None
        self.broken: dict[int, str] = {}
        self.labels: GivenLabels = None
        if label in there:
            column = file.read(columns=[label]).column(0)
            _require_short_texts(column, f"{what}: the column {label!r}")
            self.labels = column.to_pylist()

    def row(self, index: int) -> Tensors:
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        held: Any = self._held
        if group != self._group or held is None:
            self._held = held = self._read(group)
            self._group = group
        at = index - int(self._starts[group])
        return {name: self._cell(held.column(name)[at], name) for name in self._names}

    def _read(self, group: int) -> Any:
        import pyarrow

        try:
            found = self._file.read_row_group(group, columns=self._names)
        except (pyarrow.ArrowException, OSError) as exc:
            raise InvalidData(f"row group {group} cannot be read: {str(exc)[:200]}") from exc
        for name in self._names:
            _require_short_texts(found.column(name), f"the column {name!r} of row group {group}")
        return found

    @staticmethod
    def _cell(cell: Any, name: str) -> np.ndarray:
        try:
            return _cell_array(cell)
        except (InvalidData, ValueError, TypeError) as exc:
            raise InvalidData(f"the column {name!r} {exc}") from exc


def _unpacked(group: Any, used: set[str]) -> int:
    """Return the bytes of a row group in memory: values that are alike take next to nothing in the file."""
    size = 0
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema in used:
            size += max(column.total_uncompressed_size, column.num_values * _VALUE_BYTES.get(column.physical_type, 8))
    return size


def _require_short_texts(column: Any, what: str) -> None:
    """Refuse texts that a dictionary repeats beyond measure."""
    import pyarrow
    import pyarrow.compute

    for chunk in column.chunks:
        values = chunk
        while hasattr(values, "offsets") and hasattr(values, "flatten"):
            values = values.flatten()
        if pyarrow.types.is_dictionary(values.type):
            lengths = pyarrow.compute.binary_length(values.dictionary).take(values.indices)
            size = pyarrow.compute.sum(lengths.cast("int64")).as_py() or 0
            if size > _GROUP_BYTES:
                raise InvalidData(f"{what} unpacks to {size:,} bytes; {_GROUP_BYTES:,} are allowed")


def _cell_array(cell: Any) -> np.ndarray:
    """Return a number, a text or a list of lists as an array."""
    import pyarrow

    if not cell.is_valid:
        raise InvalidData("has an empty cell")
    if isinstance(cell.type, pyarrow.FixedShapeTensorType):
        return _cell_array(cell.value).reshape(cell.type.shape)
    if not hasattr(cell, "values"):
        value = cell.as_py()
        if isinstance(value, str | bytes):
            text = np.empty((), dtype=object)
            text[()] = value.encode() if isinstance(value, str) else value
            return text
        if not isinstance(value, bool | int | float):
            raise InvalidData(f"holds {cell.type}; numbers, texts and lists of them are allowed")
        return np.asarray(value)
    values = cell.values
    if values.null_count:
        raise InvalidData("has an empty value in a list")
    if pyarrow.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pyarrow.types.is_string(values.type) or pyarrow.types.is_binary(values.type):
        texts = np.empty(len(values), dtype=object)
        texts[:] = [item.encode() if isinstance(item, str) else item for item in values.to_pylist()]
        return texts
    if pyarrow.types.is_primitive(values.type) and not pyarrow.types.is_temporal(values.type):
        return np.asarray(values.to_numpy(zero_copy_only=False))
    inner = [_cell_array(item) for item in values]
    if len({array.shape for array in inner}) > 1:
        raise InvalidData(f"has lists of unequal lengths inside of one row: {[list(a.shape) for a in inner[:4]]}")
    return np.stack(inner) if inner else np.empty(0)
