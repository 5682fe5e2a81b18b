"""Weights that an ONNX file keeps beside itself, read once and put into it.

Where they lie is text in the file, and so an attack: every part of it is opened below the folder of the model without
following links, what is opened must be a regular file with one name, and numbers are held against its size. After
this the graph needs nothing but its own bytes, and the audit holds it to that.
"""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # the stubs are one more dependency

from lightship.bundle.folder import Folder
from lightship.data.files import sha256_hex
from lightship.engine.onnx_audit import element_bits, refuse_excess
from lightship.errors import BundleRefused, Refused, TooLarge

__all__ = ["inlined"]

_KEYS = {"location", "offset", "length", "checksum"}
_NUMBER = re.compile(r"[0-9]{1,18}")
_MAX_BYTES = (1 << 31) - (1 << 20)  # protobuf's limit of a message, less what is not weights
_MAX_FILES = 1_000


def inlined(data: bytes, folder: Path) -> tuple[bytes, dict[str, str]]:
    """Return the model with the external weights of its main graph inside, and the SHA-256 of each file by its place.

    Its parts are counted before it is parsed. A model without any, or one that cannot be parsed, comes back as it is:
    the audit judges it.

    Raises:
        Refused: a place outside of the folder, a link, a file with two names, a range that is not in the file, unknown
            or doubled keys, a wrong checksum.
        TooLarge: all together are more than an ONNX file can hold.
    """
    refuse_excess(data)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return data, {}
    tensors = [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if not tensors:
        return data, {}
    files: dict[str, bytes] = {}
    left = _MAX_BYTES
    with Folder(folder) as opened:
        for tensor in tensors:
            location, start, length, checksum = _place(tensor)
            if location not in files:
                if len(files) == _MAX_FILES:
                    raise Refused(f"The weights of the model lie in more than {_MAX_FILES:,} files.")
                files[location] = _read(opened, location, max_bytes=_MAX_BYTES - sum(map(len, files.values())))
            left -= length
            if left < 0:
                raise TooLarge(f"The weights of the model are more than {_MAX_BYTES:,} bytes together.")
            _fill(tensor, files[location], start, length, checksum)
    return model.SerializeToString(deterministic=True), {place: sha256_hex(held) for place, held in files.items()}


def _place(tensor: Any) -> tuple[str, int, int, str | None]:
    """Return (location, offset, length in bytes, checksum) of a tensor's weights."""
    what = f"Tensor {tensor.name[:80]!r} of the graph"
    keys = [entry.key for entry in tensor.external_data]
    if len(set(keys)) != len(keys) or not {"location"} <= set(keys) <= _KEYS:
        raise Refused(f"{what} must say its place by {', '.join(sorted(_KEYS))}, each once. Got {keys!r:.200}.")
    said = {entry.key: entry.value for entry in tensor.external_data}
    location = said["location"]
    if "\\" in location or ":" in location or "\0" in location or not location:
        raise Refused(f"{what} lies at {location[:80]!a}. A place must be a path below the folder of the model.")
    bits = element_bits(tensor.data_type)
    if not bits or len(tensor.dims) > 64 or any(dim < 0 for dim in tensor.dims):
        raise Refused(f"{what} has the element type {tensor.data_type} and the shape {list(tensor.dims[:64])}.")
    needed = -(-math.prod(tensor.dims) * bits // 8)
    for key in ("offset", "length"):
        if key in said and not _NUMBER.fullmatch(said[key]):
            raise Refused(f"{what} has the {key} {said[key][:40]!r}. It must be a number of bytes, 0 or more.")
    if int(said.get("length", needed)) != needed:
        raise Refused(f"{what} has the shape {list(tensor.dims)}, {needed:,} bytes; its length says {said['length']}.")
    return location, int(said.get("offset", 0)), needed, said.get("checksum")


def _read(folder: Folder, location: str, *, max_bytes: int) -> bytes:
    try:
        return folder.read(location, max_bytes=max_bytes)
    except BundleRefused as exc:
        raise Refused(f"The weights of the model lie in another file, which is not read: {exc}") from exc


def _fill(tensor: Any, held: bytes, start: int, length: int, checksum: str | None) -> None:
    if start + length > len(held):
        raise Refused(
            f"Tensor {tensor.name[:80]!r} of the graph lies at bytes {start:,} to {start + length:,} of a file that "
            f"has {len(held):,}."
        )
    if checksum is not None and hashlib.sha1(held, usedforsecurity=False).hexdigest() != checksum:  # as ONNX says
        raise Refused(f"The file of tensor {tensor.name[:80]!r} has another checksum than the model says.")
    del tensor.external_data[:]
    tensor.ClearField("data_location")
    tensor.raw_data = held[start : start + length]
