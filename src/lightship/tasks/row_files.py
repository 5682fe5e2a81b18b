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
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any, Protocol, TypeAlias

import numpy as np

from lightship.data.rows import BadRow, Dataset
from lightship.data.sources import IMAGE_SUFFIXES, read_images, read_source
from lightship.errors import InvalidData, InvalidInput, MissingExtra, NotFound
from lightship.tasks.npz import read_npz
from lightship.tasks.task import Task, Tensors
from lightship.tasks.tensors import is_batched
from lightship.types import DTYPES, Dim, Interface, TensorSpec

__all__ = ["LABEL", "MOST_GIVEN", "GivenLabels", "RowFile", "few_of", "read_rows"]

LABEL = "label"
"""The array or column that holds labels, unless the caller names another one."""

MOST_GIVEN = 1_000_000
"""Rows of a source. Each is read once to be hashed, and no more than some ten thousand are used."""

_WHOLE_BYTES = 256 << 20
"""A ``.npz`` file that unpacks to this much is read at once; of a larger one rows are read one by one."""
_GROUP_BYTES = 1 << 30
_PACKED = 100
_LEAST_REFUSED = 1 << 30
"""What unpacks to more than this, and to more than ``_PACKED`` times what it takes on the disk, is no data."""
_HELD_BYTES = 256 << 20
_MOST_FILES = 200_000
_FEW, _SHARE = 3, 0.05
"""Bad rows that are skipped: so many, or this share of all."""
_SHOWN = 3


GivenLabels: TypeAlias = "Sequence[object] | np.ndarray | None"
"""A label of each row, as it stands in the source; None: there are none."""


class _Reader(Protocol):
    """Rows of one source, as they stand there."""

    ids: Sequence[str]
    labels: GivenLabels
    broken: dict[int, str]
    """Rows that were found to be bad while the source was opened, and why."""

    def row(self, index: int) -> Tensors:
        """Return the arrays of a row, or raise ``InvalidInput``."""


class RowFile:
    """Rows of tensors for one interface, read when they are asked for.

    Attributes:
        source: as it was given.
        ids: a name of each row for people.
        labels: of each row as they stand there, None where the row is bad; None if there are no labels.
        bad: rows that were found to be bad while the source was opened. ``row`` finds the others.
    """

    def __init__(self, source: str, reader: _Reader, interface: Interface) -> None:
        _require_few_enough(len(reader.ids), source)
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


def _require_few_enough(rows: int, what: str) -> None:
    if rows > MOST_GIVEN:
        raise InvalidData(f"{what} has {rows:,} rows; at most {MOST_GIVEN:,} are read. Give a part of them.")


def _require_plausible(unpacked: int, on_disk: int, what: str) -> None:
    """Refuse what a few bytes say that it is."""
    if unpacked > max(_LEAST_REFUSED, _PACKED * on_disk):
        raise InvalidData(
            f"{what} has {on_disk:,} bytes and would unpack to {unpacked:,}; {_PACKED} times as many are allowed. "
            "Give fewer rows."
        )


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
        return RowFile("arrays", _Arrays(given, interface, label=label, what=what, prefix="row"), interface)
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


def _reader(path: Path, task: Task, interface: Interface, label: str) -> _Reader:
    if path.is_dir():
        return _folder(path, task, interface, label)
    if not path.is_file():
        raise InvalidData(f"{str(path)!r} is no regular file. Give a .npz file, a .parquet file or a folder.")
    begin = _beginning(path)
    if begin.startswith(b"PK\x03\x04"):
        return _npz(path, interface, label=label)
    if begin.startswith(b"PAR1"):
        return _parquet(path, task, interface, label)
    if path.suffix.lower() == ".csv" and task.labels:
        return _Images(read_source(str(path.resolve()), base=Path.cwd(), label_column=label), task, labeled=True)
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
                raise InvalidData(f"{dim} of the input {spec.name!r} was proven for {low} to {high}. Got {size}")
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


# -- arrays by name ---------------------------------------------------------------------------------------------------


class _Stored:
    """An array inside of a large ``.npz`` file; rows are read from the disk when they are asked for."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.path, self.shape, self.dtype, self.ndim = path, shape, dtype, len(shape)
        self._offset = offset
        self._row_bytes = math.prod(shape[1:]) * dtype.itemsize

    def __getitem__(self, index: int) -> np.ndarray:
        with self.path.open("rb") as file:
            data = os.pread(file.fileno(), self._row_bytes, self._offset + index * self._row_bytes)
        if len(data) != self._row_bytes:
            raise InvalidData(f"{str(self.path)!r} was cut short since it was opened")
        found = np.frombuffer(data, dtype=self.dtype).reshape(self.shape[1:])
        return found.astype(self.dtype.newbyteorder("="))


class _Arrays:
    """Arrays whose first axis are rows."""

    def __init__(
        self, arrays: Mapping[str, np.ndarray | _Stored], interface: Interface, *, label: str, what: str, prefix: str
    ) -> None:
        names = {spec.name for spec in interface.inputs}
        _require_names(names, set(arrays), label, what=what)
        self._arrays = {name: arrays[name] for name in names}
        self._as_slice = False
        count = self._count(interface, what)
        self.broken: dict[int, str] = {}
        self.labels: GivenLabels = None
        if label in arrays:
            self.labels = _label_array(arrays[label], count, label, what)
        self.ids: Sequence[str] = _Numbered(prefix, count)

    def row(self, index: int) -> Tensors:
        if self._count_is_whole:
            return {name: array for name, array in self._arrays.items() if isinstance(array, np.ndarray)}
        rows = {name: _row_of(array, index) for name, array in self._arrays.items()}
        return {name: row[np.newaxis] for name, row in rows.items()} if self._as_slice else rows

    def _count(self, interface: Interface, what: str) -> int:
        """Return how many rows there are, as the first axis of all arrays says."""
        self._count_is_whole = False
        ranks = {spec.name: len(spec.shape) for spec in interface.inputs}
        if not is_batched(interface.inputs, interface.outputs):
            flush = all(self._arrays[name].ndim == rank for name, rank in ranks.items())
            if flush and all(spec.shape[:1] == (1,) for spec in interface.inputs):
                self._as_slice = True  # the graph takes one row at a time, and the arrays hold many
            elif flush and not any(isinstance(array, _Stored) for array in self._arrays.values()):
                self._count_is_whole = True
                return 1
        counts = {name: array.shape[0] if array.ndim else None for name, array in self._arrays.items()}
        if None in counts.values() or len(set(counts.values())) != 1:
            said = ", ".join(f"{name!r} {list(array.shape)}" for name, array in sorted(self._arrays.items()))
            raise InvalidData(f"{what}: the first axis of all arrays are rows, as many in each. Got {said}.")
        count = next(iter(counts.values())) or 0
        if not count:
            raise InvalidData(f"{what} holds arrays with 0 rows. Give at least one.")
        _require_few_enough(count, what)
        return count


def _row_of(array: np.ndarray | _Stored, index: int) -> np.ndarray:
    """Return one row as an array, also where nothing is left but one value, or one text."""
    return array[index] if isinstance(array, _Stored) else array[index : index + 1].reshape(array.shape[1:])


class _Numbered(Sequence[str]):
    """Names of rows by their number, made when they are asked for."""

    def __init__(self, prefix: str, count: int) -> None:
        self._prefix, self._count = prefix, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(self._count)[index]]
        return f"{self._prefix}#{range(self._count)[index] + 1}"


def _require_names(wanted: set[str], there: set[str], label: str, *, what: str) -> None:
    """Refuse arrays that are missing, and those that nobody asked for: a misspelled label would go unnoticed."""
    if missing := sorted(wanted - there):
        raise InvalidData(
            f"{what} must hold the arrays {', '.join(map(repr, sorted(wanted)))}, and {label!r} for labels. "
            f"Missing: {', '.join(map(repr, missing))}. Got {', '.join(map(repr, sorted(there)[:20])) or 'none'}."
        )
    if extra := sorted(there - wanted - {label}):
        raise InvalidData(
            f"{what} must hold the arrays {', '.join(map(repr, sorted(wanted)))}, and {label!r} for labels, and no "
            f"others. Got {', '.join(map(repr, extra[:20]))} besides; if these are the labels: `--label NAME`."
        )


def _label_array(array: np.ndarray | _Stored, count: int, label: str, what: str) -> np.ndarray:
    if array.shape[:1] != (count,):
        raise InvalidData(
            f"{what}: {label!r} must hold the label of each row, [{count}, ...]. Got {list(array.shape)}."
        )
    if isinstance(array, _Stored):
        if math.prod(array.shape) * array.dtype.itemsize > _WHOLE_BYTES:
            raise InvalidData(f"{what}: {label!r} has more than {_WHOLE_BYTES >> 20} MiB. Labels are small.")
        array = np.array([array[index] for index in range(count)])
    return array


def _npz(path: Path, interface: Interface, *, label: str) -> _Arrays:
    what = f"The file {str(path)!r}"
    return _Arrays(_arrays_in(path, what), interface, label=label, what=what, prefix=path.name)


def _arrays_in(path: Path, what: str) -> Mapping[str, np.ndarray | _Stored]:
    """Return the arrays of a ``.npz`` file: read, or by their places in a large one."""
    try:
        whole = max(path.stat().st_size, _unpacked_bytes(path)) <= _WHOLE_BYTES
        return read_npz(path.read_bytes(), what=what) if whole else _stored_arrays(path, what)
    except _BROKEN as exc:
        raise InvalidData(f"{what} must be a .npz file, as `numpy.savez` writes it. {str(exc)[:200]}.") from exc
    except OSError as exc:
        raise InvalidData(f"{what} cannot be read: {exc.strerror}.") from exc


def _unpacked_bytes(path: Path) -> int:
    """Return what the directory of a zip file says that its members unpack to."""
    with zipfile.ZipFile(path) as archive:
        return sum(member.file_size for member in archive.infolist())


def _stored_arrays(path: Path, what: str) -> dict[str, _Stored]:
    """Return the arrays of a large file by their places in it. Their members must stand there as they are."""
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
                raise InvalidData(
                    f"{what} has more than {_WHOLE_BYTES >> 20} MiB and its array {name[:80]!r} is compressed. "
                    "Write it with `numpy.savez`, or as a folder of files."
                )
            arrays[name] = _stored(path, archive, member, name, what)
    return arrays


_BROKEN = (
    zipfile.BadZipFile,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    SyntaxError,
    TokenError,
    MemoryError,
)
"""What a file that is no sound zip of arrays may raise."""


def _stored(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, what: str) -> _Stored:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(file)
        header = file.tell()
    rows_first = not fortran_order or len(shape) < 2
    if dtype.hasobject or dtype.kind not in "biuf" or dtype.newbyteorder("=") not in _NUMBERS or not rows_first:
        raise InvalidData(
            f"{what} has more than {_WHOLE_BYTES >> 20} MiB; such a file may hold arrays of numbers in C order. "
            f"Got {name[:80]!r} of dtype {str(dtype)[:40]}{', in Fortran order' if fortran_order else ''}."
        )
    if member.file_size - header != math.prod(shape) * dtype.itemsize:
        raise InvalidData(f"{what}: its array {name[:80]!r} has not as many bytes as its shape {shape} needs.")
    with path.open("rb") as file:
        local = os.pread(file.fileno(), _LOCAL_HEADER, member.header_offset)
    if len(local) != _LOCAL_HEADER or local[:4] != b"PK\x03\x04":
        raise InvalidData(f"{what} is damaged at its array {name[:80]!r}.")
    start = member.header_offset + _LOCAL_HEADER + int.from_bytes(local[26:28], "little")
    return _Stored(path, start + int.from_bytes(local[28:30], "little") + header, shape, dtype)


_LOCAL_HEADER = 30  # bytes of a zip's local header before its name; the two lengths stand at its end
_NUMBERS = {np.dtype(name) for name in DTYPES.values() if name != "object"}


# -- Parquet ----------------------------------------------------------------------------------------------------------


def _parquet(path: Path, task: Task, interface: Interface, label: str) -> _Reader:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as exc:
        raise MissingExtra(extra="parquet", needed_for=f"Reading {str(path)!r}") from exc
    names = {spec.name for spec in interface.inputs}
    try:
        file = pyarrow.parquet.ParquetFile(path)
        _require_few_enough(file.metadata.num_rows, f"The table {str(path)!r}")
        columns = file.schema_arrow.names
        if task.labels and not (names <= set(columns) and _is_numbers(file.schema_arrow, names)):
            labeled = label in columns
            return _Images(read_source(str(path.resolve()), base=Path.cwd(), label_column=label), task, labeled=labeled)
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


_VALUE_BYTES = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT96": 12}
"""Of a value in memory, by its physical type; others have 8, of texts where they stand."""


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
        _require_plausible(sum(sizes), path.stat().st_size, what)
        self._starts = np.cumsum([0, *(group.num_rows for group in groups)])
        count = int(self._starts[-1])
        if not count:
            raise InvalidData(f"{what} has no rows.")
        self.ids: Sequence[str] = _Numbered(path.name, count)
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


# -- folders ----------------------------------------------------------------------------------------------------------


def _folder(path: Path, task: Task, interface: Interface, label: str) -> _Reader:
    entries = _entries(path)
    files = [entry for entry in entries if entry.suffix.lower() == ".npz"]
    if files:
        return _Files(path, entries, interface, label)
    if task.labels:
        if any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in entries):
            return _Images(read_images(path), task, labeled=False)
        return _Images(read_source(f"folder:{path.resolve()}", base=Path.cwd()), task, labeled=True)
    raise InvalidData(
        f"The folder {str(path)!r} must hold .npz files, with arrays by the name of the input. "
        f"It has {', '.join(repr(entry.name[:40]) for entry in entries[:5]) or 'nothing'}."
    )


def _entries(path: Path) -> list[Path]:
    try:
        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as exc:
        raise InvalidData(f"The folder {str(path)!r} cannot be read: {exc.strerror}.") from exc
    if len(entries) > _MOST_FILES:
        raise InvalidData(f"The folder {str(path)!r} may hold at most {_MOST_FILES:,} files. It has {len(entries):,}.")
    return entries


class _Files:
    """``.npz`` files of one row or several each; one file is in memory at a time."""

    def __init__(self, folder: Path, entries: Sequence[Path], interface: Interface, label: str) -> None:
        self._interface, self._label = interface, label
        self._held: tuple[Path, _Arrays] | None = None
        self._places: list[tuple[Path, int]] = []
        self.broken: dict[int, str] = {}
        ids: list[str] = []
        labels: list[object] = []
        labeled = unpacked = on_disk = 0
        for entry in entries:
            _require_few_enough(len(ids), f"The folder {str(folder)!r}")
            size = _sizes_of(entry)
            unpacked, on_disk = unpacked + size[0], on_disk + size[1]
            _require_plausible(unpacked, on_disk, f"The folder {str(folder)!r}")
            for name, at, found, reason in self._rows_of(entry, folder):
                if reason:
                    self.broken[len(ids)] = reason
                labeled += found is not None
                ids.append(name)
                labels.append(found)
                self._places.append((entry, at))
        self.ids: Sequence[str] = ids
        if labeled not in (0, len(ids) - len(self.broken)):
            raise InvalidData(
                f"{labeled} of the {len(ids)} rows in {str(folder)!r} have the array {label!r}. "
                "Give labels for all of them, or for none."
            )
        self.labels: GivenLabels = labels if labeled else None

    def row(self, index: int) -> Tensors:
        path, at = self._places[index]
        return self._open(path).row(at)

    def _rows_of(self, entry: Path, folder: Path) -> Iterator[tuple[str, int, object, str]]:
        name = entry.relative_to(folder).as_posix()
        if entry.suffix.lower() != ".npz" or not entry.is_file():
            yield name, 0, None, "is no .npz file"
            return
        try:
            arrays = self._open(entry)
        except InvalidInput as exc:
            yield name, 0, None, str(exc)
            return
        count = len(arrays.ids)
        for at in range(count):
            label = None if arrays.labels is None else arrays.labels[at]
            yield name if count == 1 else f"{name}#{at + 1}", at, label, ""

    def _open(self, path: Path) -> _Arrays:
        if self._held is None or self._held[0] != path:
            self._held = (path, self._read(path))
        return self._held[1]

    def _read(self, path: Path) -> _Arrays:
        arrays = _arrays_in(path, "it")
        read = {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
        if len(read) == len(arrays):
            arrays = self._with_rows(read)
        return _Arrays(arrays, self._interface, label=self._label, what="it", prefix=path.name)

    def _with_rows(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the arrays of one row with an axis of rows, its label too; those of several as they are."""
        batched = is_batched(self._interface.inputs, self._interface.outputs)
        ranks = {spec.name: len(spec.shape) - batched for spec in self._interface.inputs}
        if all(name in arrays and arrays[name].ndim == rank for name, rank in ranks.items()):
            if batched:
                arrays = {name: array[np.newaxis] if name in ranks else array for name, array in arrays.items()}
            label = arrays.get(self._label)
            if label is not None and label.shape[:1] != (1,):
                arrays = {**arrays, self._label: label[np.newaxis]}
        return arrays


def _sizes_of(entry: Path) -> tuple[int, int]:
    """Return the bytes that a file unpacks to, and those that it has; none of one that is no zip file."""
    try:
        return _unpacked_bytes(entry), entry.stat().st_size
    except (*_BROKEN, OSError):
        return 0, 0


class _Images:
    """Images, which the task of the model encodes."""

    def __init__(self, dataset: Dataset, task: Task, *, labeled: bool) -> None:
        self._dataset, self._encode = dataset, task.encode
        broken = [(row.id, row.reason) for row in dataset.bad]
        self.ids: Sequence[str] = [*dataset.ids, *(name for name, _ in broken)]
        self.broken = {len(dataset.ids) + place: reason for place, (_, reason) in enumerate(broken)}
        labels: list[object] = [*dataset.row_labels, *(None for _ in broken)]
        self.labels: GivenLabels = labels if labeled else None

    def row(self, index: int) -> Tensors:
        return self._encode(self._dataset.rows[index].raw)
