"""Rows as arrays by the name of the input, whose first axis are rows: in memory, or in a ``.npz`` file.

Of a large file rows are read one by one, from their places in it.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from lightship.errors import InvalidData
from lightship.tasks.npz import read_npz
from lightship.tasks.row_reader import GivenLabels, NumberedRows, require_few_enough
from lightship.tasks.task import Tensors
from lightship.tasks.tensors import is_batched
from lightship.types import DTYPES, Interface

__all__ = ["BROKEN_NPZ", "ArrayRows", "StoredArray", "arrays_in", "npz_rows", "unpacked_bytes"]

_WHOLE_BYTES = 256 << 20
"""A file that unpacks to this much is read at once; of a larger one rows are read one by one."""
_LOCAL_HEADER = 30  # bytes of a zip's local header before its name; the two lengths stand at its end
_NUMBERS = {np.dtype(name) for name in DTYPES.values() if name != "object"}

BROKEN_NPZ = (
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


class StoredArray:
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


class ArrayRows:
    """Arrays whose first axis are rows."""

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray | StoredArray],
        interface: Interface,
        *,
        label: str,
        what: str,
        prefix: str,
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
        self.ids: Sequence[str] = NumberedRows(prefix, count)

    def row(self, index: int) -> Tensors:
        """Return the arrays of a row."""
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
            elif flush and not any(isinstance(array, StoredArray) for array in self._arrays.values()):
                self._count_is_whole = True
                return 1
        counts = {name: array.shape[0] if array.ndim else None for name, array in self._arrays.items()}
        if None in counts.values() or len(set(counts.values())) != 1:
            said = ", ".join(f"{name!r} {list(array.shape)}" for name, array in sorted(self._arrays.items()))
            raise InvalidData(f"{what}: the first axis of all arrays are rows, as many in each. Got {said}.")
        count = next(iter(counts.values())) or 0
        if not count:
            raise InvalidData(f"{what} holds arrays with 0 rows. Give at least one.")
        require_few_enough(count, what)
        return count


def _row_of(array: np.ndarray | StoredArray, index: int) -> np.ndarray:
    """Return one row as an array, also where nothing is left but one value, or one text."""
    return array[index] if isinstance(array, StoredArray) else array[index : index + 1].reshape(array.shape[1:])


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


def _label_array(array: np.ndarray | StoredArray, count: int, label: str, what: str) -> np.ndarray:
    if array.shape[:1] != (count,):
        raise InvalidData(
            f"{what}: {label!r} must hold the label of each row, [{count}, ...]. Got {list(array.shape)}."
        )
    if isinstance(array, StoredArray):
        if math.prod(array.shape) * array.dtype.itemsize > _WHOLE_BYTES:
            raise InvalidData(f"{what}: {label!r} has more than {_WHOLE_BYTES >> 20} MiB. Labels are small.")
        array = np.array([array[index] for index in range(count)])
    return array


def npz_rows(path: Path, interface: Interface, *, label: str) -> ArrayRows:
    """Open a ``.npz`` file.

    Raises:
        InvalidData: it is none, or holds other arrays than the model takes.
    """
    what = f"The file {str(path)!r}"
    return ArrayRows(arrays_in(path, what), interface, label=label, what=what, prefix=path.name)


def arrays_in(path: Path, what: str) -> Mapping[str, np.ndarray | StoredArray]:
    """Return the arrays of a ``.npz`` file: read, or by their places in a large one."""
    try:
        whole = max(path.stat().st_size, unpacked_bytes(path)) <= _WHOLE_BYTES
        return read_npz(path.read_bytes(), what=what) if whole else _stored_arrays(path, what)
    except BROKEN_NPZ as exc:
        raise InvalidData(f"{what} must be a .npz file, as `numpy.savez` writes it. {str(exc)[:200]}.") from exc
    except OSError as exc:
        raise InvalidData(f"{what} cannot be read: {exc.strerror}.") from exc


def unpacked_bytes(path: Path) -> int:
    """Return what the directory of a zip file says that its members unpack to."""
    with zipfile.ZipFile(path) as archive:
        return sum(member.file_size for member in archive.infolist())


def _stored_arrays(path: Path, what: str) -> dict[str, StoredArray]:
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


def _stored(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, what: str) -> StoredArray:
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
    return StoredArray(path, start + int.from_bytes(local[28:30], "little") + header, shape, dtype)
