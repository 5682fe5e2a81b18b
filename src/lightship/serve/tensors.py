"""Tensors as bytes: the binary form of V2, which is also how they cross to the worker.

Row-major, little-endian, no padding; ``BYTES`` elements each have their length before them (4 bytes, little-endian).
Source: the binary tensor data extension of the Open Inference Protocol.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from lightship.errors import InvalidTensor, LightshipError
from lightship.types import DTYPES

__all__ = ["ITEM_BYTES", "PackedTensor", "join_rows", "pack", "pack_bytes", "unpack", "unpack_bytes"]

Buffer = bytes | memoryview

ITEM_BYTES = {name: np.dtype(numpy).itemsize for name, numpy in DTYPES.items() if name != "BYTES"}
_LITTLE = {name: np.dtype(numpy).newbyteorder("<") for name, numpy in DTYPES.items() if name != "BYTES"}
_LENGTH = struct.Struct("<I")
_COPIED_BYTES = 4 * 1024


class PackedTensor(msgspec.Struct, frozen=True, gc=False):
    """A tensor in its binary form.

    Attributes:
        dtype: a key of ``DTYPES``.
        data: as many bytes as shape and dtype say; for ``BYTES``, as many elements.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Buffer

    def split(self, rows: Sequence[int]) -> list[PackedTensor]:
        """Return so many rows, and so many, one after the other."""
        name, dtype = self.name, self.dtype
        found, at = [], 0
        if dtype == "BYTES":
            for count in rows:
                found.append(self.rows(at, at + count))
                at += count
            return found
        row_bytes = len(self.data) // self.shape[0] if self.shape[0] else 0
        # So few bytes are copied in less time than a view of them is made and given up.
        data = bytes(self.data) if row_bytes <= _COPIED_BYTES else memoryview(self.data)
        shapes = {count: (count, *self.shape[1:]) for count in set(rows)}
        for count in rows:
            stop = at + count * row_bytes
            found.append(PackedTensor(name, dtype, shapes[count], data[at:stop]))
            at = stop
        return found

    def rows(self, start: int, stop: int) -> PackedTensor:
        """Return the rows [start, stop) along the first axis, without copying."""
        if start == 0 and stop == self.shape[0]:
            return self
        view = memoryview(self.data)
        if self.dtype == "BYTES":
            per_row = math.prod(self.shape[1:])
            bounds = list(_element_bounds(view, self.shape[0] * per_row))
            first, last = bounds[start * per_row][0], bounds[stop * per_row - 1][1] if stop > start else 0
            part = view[first:last] if stop > start else view[:0]
        else:
            row_bytes = len(view) // self.shape[0]
            part = view[start * row_bytes : stop * row_bytes]
        return PackedTensor(self.name, self.dtype, (stop - start, *self.shape[1:]), part)


def join_rows(parts: Sequence[PackedTensor]) -> PackedTensor:
    """Return the rows of ``parts``, one after the other. All have the same name and dtype.

    Raises:
        LightshipError: their rows have different shapes: joined, the bytes of one request would go to another.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if any(part.shape[1:] != first.shape[1:] for part in parts):
        shapes = ", ".join(sorted({str(list(part.shape[1:])) for part in parts}))
        raise LightshipError(
            f"The rows of output {first.name!r} have different shapes in parts of a request: {shapes}."
        )
    rows = sum(part.shape[0] for part in parts)
    return PackedTensor(first.name, first.dtype, (rows, *first.shape[1:]), b"".join(part.data for part in parts))


def pack(name: str, dtype: str, array: np.ndarray) -> PackedTensor:
    """Return ``array`` in its binary form. Object arrays (``BYTES``) may hold bytes or text."""
    if dtype == "BYTES":
        return PackedTensor(name, dtype, array.shape, pack_bytes(array.ravel().tolist()))
    data = np.ascontiguousarray(array, dtype=_LITTLE[dtype])
    # A view of zero bytes cannot be cast.
    return PackedTensor(name, dtype, array.shape, data.view(np.uint8).data.cast("B") if data.size else b"")


def pack_bytes(elements: Sequence[bytes | str]) -> bytes:
    """Return ``BYTES`` elements with their lengths; text is encoded as UTF-8."""
    out = bytearray()
    for element in elements:
        data = element.encode() if isinstance(element, str) else bytes(element)
        out += _LENGTH.pack(len(data))
        out += data
    return bytes(out)


def unpack(tensor: PackedTensor) -> np.ndarray:
    """Return the tensor as an array that shares its memory; ``BYTES`` as an object array of ``bytes``.

    Raises:
        InvalidTensor: the bytes are not as many as shape and dtype need.
    """
    count = math.prod(tensor.shape)
    if tensor.dtype == "BYTES":
        array = np.empty(count, dtype=object)
        array[:] = unpack_bytes(tensor.data, count, what=f"tensor {tensor.name!r}")
        return array.reshape(tensor.shape)
    if len(tensor.data) != count * ITEM_BYTES[tensor.dtype]:
        raise InvalidTensor(
            f"Tensor {tensor.name!r} of shape {list(tensor.shape)} and dtype {tensor.dtype} must have "
            f"{count * ITEM_BYTES[tensor.dtype]} bytes. Got {len(tensor.data)}."
        )
    return np.frombuffer(tensor.data, dtype=_LITTLE[tensor.dtype]).reshape(tensor.shape)


def unpack_bytes(data: Buffer, count: int, *, what: str) -> list[bytes]:
    """Return the ``count`` elements of a ``BYTES`` tensor.

    Raises:
        InvalidTensor: a length points past the end, or there are more or fewer elements.
    """
    view = memoryview(data)
    elements = []
    try:
        for start, stop in _element_bounds(view, count):
            elements.append(bytes(view[start + _LENGTH.size : stop]))
    except InvalidTensor as exc:
        raise InvalidTensor(f"The data of {what} is wrong: {exc}") from None
    if (left := len(view) - sum(len(e) + _LENGTH.size for e in elements)) != 0:
        raise InvalidTensor(f"The data of {what} is wrong: {left} bytes follow its {count} BYTES elements.")
    return elements


def _element_bounds(view: memoryview, count: int) -> Iterator[tuple[int, int]]:
    at = 0
    for index in range(count):
        if at + _LENGTH.size > len(view):
            raise InvalidTensor(f"it ends before the length of element {index} of {count}.")
        stop = at + _LENGTH.size + int(_LENGTH.unpack_from(view, at)[0])
        if stop > len(view):
            raise InvalidTensor(f"element {index} says {stop - at - _LENGTH.size} bytes, which is past the end.")
        yield at, stop
        at = stop
