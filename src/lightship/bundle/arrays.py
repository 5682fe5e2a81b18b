"""Golden arrays: ``.npy`` files of version 1.0, little-endian, C order, numbers only. One array has one byte form.

Numpy's own reader would evaluate the header and, asked wrongly, unpickle; this one matches the header against a
pattern, takes the dtypes of ``types.DTYPES`` without objects, and the bytes must be exactly as many as the shape says.
Source: numpy.lib.format, "Format Version 1.0".
"""

from __future__ import annotations

import math
import re

import numpy as np

from lightship.errors import BundleRefused, InvalidTensor
from lightship.types import DTYPES

__all__ = ["array_from_npy", "npy_from_array"]

_MAGIC = b"\x93NUMPY\x01\x00"
_PREFIX_BYTES = 10  # magic, version, two bytes for the length of the header
_ALIGNMENT = 64
_HEADER = re.compile(rb"\{'descr': '([<|][biuf][1248]1?)', 'fortran_order': False, 'shape': \(([0-9, ]*)\), \} *\n")
_DTYPES = {np.dtype(name).newbyteorder("<").str: np.dtype(name) for name in DTYPES.values() if name != "object"}


def npy_from_array(array: np.ndarray) -> bytes:
    """Return the bytes of the ``.npy`` file of ``array``: any shape, a dtype of ``DTYPES`` other than BYTES.

    Raises:
        InvalidTensor: another dtype.
    """
    if array.dtype.newbyteorder("<").str not in _DTYPES:
        raise InvalidTensor(
            f"A golden array must hold numbers or truth values ({', '.join(_DTYPES)}). Got {array.dtype}."
        )
    little = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    # By hand: how far numpy pads the header has changed between its versions, and a digest notices every space.
    text = f"{{'descr': '{little.dtype.str}', 'fortran_order': False, 'shape': {little.shape}, }}".encode("ascii")
    header = text + b" " * (-(_PREFIX_BYTES + len(text) + 1) % _ALIGNMENT) + b"\n"
    return _MAGIC + len(header).to_bytes(2, "little") + header + little.tobytes()


def array_from_npy(data: bytes, *, what: str) -> np.ndarray:
    """Return the array in ``data``, read-only. ``what`` names the file in a refusal.

    Raises:
        BundleRefused: not exactly what ``npy_from_array`` writes.
    """
    start = _PREFIX_BYTES + int.from_bytes(data[8:_PREFIX_BYTES], "little")
    header = _HEADER.fullmatch(data[_PREFIX_BYTES:start]) if data[:8] == _MAGIC else None
    dtype = _DTYPES.get(header[1].decode("ascii")) if header else None
    if header is None or dtype is None:
        raise BundleRefused(f"{what} must be a .npy file of version 1.0 in C order with one of {', '.join(_DTYPES)}.")
    shape = tuple(int(size) for size in re.findall(rb"[0-9]{1,18}", header[2]))
    if len(data) - start != math.prod(shape) * dtype.itemsize:
        raise BundleRefused(
            f"{what} has {len(data) - start:,} bytes of values, which is not what its shape {shape} needs."
        )
    array = np.frombuffer(data, dtype=dtype, offset=start).reshape(shape)
    # One array, one form: padding, spaces and digits of the header are no place for differences.
    if npy_from_array(array) != data:
        raise BundleRefused(f"{what} is not in its only form: check spaces and digits in its header.")
    return array
