"""Arrays by name in a ``.npz`` file: a zip of ``.npy`` files, numbers and texts, never a pickle.

Numpy's own reader allocates what a header promises before it looks at the data; here sizes are held against the bytes
first. Texts (dtype BYTES) stand in the file as numpy's ``S``, and are read from ``S`` and ``U``; so a text cannot end
with a NUL character.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from tokenize import TokenError

import numpy as np

from lightship.errors import InvalidInput, InvalidTensor, TooLarge
from lightship.types import DTYPES

__all__ = ["MAX_NPZ_BYTES", "read_npz", "write_npz"]

MAX_NPZ_BYTES = 1 << 30
_MAX_ARRAYS = 1_000
_SUFFIX = ".npy"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say: the same arrays are the same bytes
_NUMBERS = {np.dtype(name) for name in DTYPES.values() if name != "object"}


def read_npz(data: bytes, *, what: str = "The file", max_bytes: int = MAX_NPZ_BYTES) -> dict[str, np.ndarray]:
    """Return the arrays in the bytes of a ``.npz`` file; texts as object arrays of ``bytes``.

    Raises:
        InvalidInput: it is no such file; the message says what is wrong. ``what`` names the file in it.
        TooLarge: unpacked, it has more than ``max_bytes``.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _read(archive, what=what, max_bytes=max_bytes)
    except (
        zipfile.BadZipFile,
        EOFError,
        NotImplementedError,
        RuntimeError,
        OSError,
        ValueError,
        SyntaxError,
        TokenError,
        MemoryError,
    ) as exc:
        raise InvalidInput(
            f"{what} must be a .npz file, as `numpy.savez` writes it. {str(exc)[:200] or type(exc).__name__}."
        ) from exc


def write_npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the bytes of a ``.npz`` file; the same arrays give the same bytes.

    Raises:
        InvalidTensor: an array of another dtype than those of ``types.DTYPES``, or a text that ends with NUL.
    """
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, _plain(name, arrays[name]), version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(name + _SUFFIX, _EPOCH), member.getvalue())
    return out.getvalue()


def _read(archive: zipfile.ZipFile, *, what: str, max_bytes: int) -> dict[str, np.ndarray]:
    members = archive.infolist()
    if len(members) > _MAX_ARRAYS:
        raise TooLarge(f"{what} may hold at most {_MAX_ARRAYS} arrays. It has {len(members)}.")
    if sum(member.file_size for member in members) > max_bytes:
        raise TooLarge(f"{what} may have at most {max_bytes:,} bytes unpacked. It has more; give fewer rows.")
    arrays: dict[str, np.ndarray] = {}
    for member in members:
        name = member.filename.removesuffix(_SUFFIX)
        if name in arrays or name == member.filename:
            raise ValueError(f"Its member {member.filename[:80]!r} stands there twice, or is no .npy file")
        with archive.open(member) as file:
            unpacked = file.read(member.file_size + 1)
        if len(unpacked) != member.file_size:
            raise ValueError(f"Its member {name[:80]!r} has another size than the file says")
        arrays[name] = _array(name, unpacked)
    return arrays


def _array(name: str, data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in {(1, 0), (2, 0)}:
        raise ValueError(f"The array {name[:80]!r} is of .npy version {version}; 1.0 and 2.0 are read")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = header(file)
    start = file.tell()
    if dtype.kind not in "SU" and dtype.newbyteorder("=") not in _NUMBERS:
        raise ValueError(
            f"The array {name[:80]!r} has the dtype {dtype}. Allowed are {', '.join(DTYPES)}; texts as 'S' or 'U'"
        )
    if dtype.itemsize == 0 or len(data) - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"The array {name[:80]!r} has not as many bytes as its shape {shape} needs")
    array = np.frombuffer(data, dtype=dtype, offset=start).reshape(shape, order="F" if fortran_order else "C")
    if dtype.kind in "SU":
        return _texts(array)
    return np.ascontiguousarray(array.astype(dtype.newbyteorder("="))).reshape(shape)


def _texts(array: np.ndarray) -> np.ndarray:
    texts = np.empty(array.size, dtype=object)
    texts[:] = [item.encode() if isinstance(item, str) else bytes(item) for item in array.ravel().tolist()]
    return texts.reshape(array.shape)


def _plain(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype in _NUMBERS:
        little = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
        return little.reshape(array.shape)
    if array.dtype.kind in "SU":
        array = _texts(array)
    items = array.ravel().tolist()
    if array.dtype != object or not all(isinstance(item, bytes | str) for item in items):
        raise InvalidTensor(f"The array {name!r} must hold numbers, truth values or texts. Got {array.dtype}.")
    encoded = [item.encode() if isinstance(item, str) else item for item in items]
    if any(item.endswith(b"\0") for item in encoded):
        raise InvalidTensor(f"A text of the array {name!r} ends with a NUL character, which a .npz file cannot keep.")
    return np.array(encoded, dtype=f"S{max([1, *map(len, encoded)])}").reshape(array.shape)
