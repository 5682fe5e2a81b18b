"""Tensors in the binary form of the V2 protocol: a JSON head, then the bytes of each tensor in its order.

Source: KServe "Open Inference Protocol" V2 and its binary tensor data extension. Numbers are little-endian in C order;
``BYTES`` is, for each element, its length as uint32 and then its bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightship.errors import InvalidTensor, LightshipError
from lightship.types import DTYPES

__all__ = ["HEAD_LENGTH", "pack_request", "pack_tensor", "unpack_response", "unpack_tensor"]

HEAD_LENGTH = "inference-header-content-length"
"""The header that says how long the JSON head is."""

_NAMES = {np.dtype(numpy_name): name for name, numpy_name in DTYPES.items() if name != "BYTES"}
_LENGTH = struct.Struct("<I")


def pack_request(inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None) -> tuple[bytes, int]:
    """Return (body, length of its JSON head) of an inference request.

    Args:
        inputs: by name, with batch axis; numbers, booleans, or objects that are bytes or text.
        outputs: the outputs wanted, all when None. They are asked for in binary form.

    Raises:
        InvalidTensor: no input, or a dtype that the protocol does not have.
    """
    if not inputs:
        raise InvalidTensor("An inference needs at least one input tensor. Got none.")
    heads, bodies = [], []
    for name, array in inputs.items():
        datatype, data = pack_tensor(name, np.asarray(array))
        heads.append(
            {
                "name": name,
                "shape": list(np.shape(array)),
                "datatype": datatype,
                "parameters": {"binary_data_size": len(data)},
            }
        )
        bodies.append(data)
    head: dict[str, Any] = {"inputs": heads}
    if outputs is None:
        head["parameters"] = {"binary_data_output": True}
    else:
        head["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    encoded = json.dumps(head).encode()
    return b"".join([encoded, *bodies]), len(encoded)


def pack_tensor(name: str, array: np.ndarray) -> tuple[str, bytes]:
    """Return the datatype of an array, and its bytes as the protocol has them.

    Raises:
        InvalidTensor: a dtype that the protocol does not have.
    """
    if array.dtype.kind in "OSU":
        items = [item.encode() if isinstance(item, str) else item for item in array.ravel().tolist()]
        if not all(isinstance(item, bytes) for item in items):
            raise InvalidTensor(f"The elements of {name!r} must be bytes or text. Got other objects among them.")
        return "BYTES", b"".join(_LENGTH.pack(len(item)) + item for item in items)
    native = array.dtype.newbyteorder("=")
    if native not in _NAMES:
        raise InvalidTensor(f"The dtype of {name!r} must be one of {', '.join(DTYPES.values())}. Got {array.dtype}.")
    return _NAMES[native], array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def unpack_response(body: bytes, head_length: str | None) -> tuple[Mapping[str, Any], dict[str, np.ndarray]]:
    """Return the JSON head of an inference answer, and its outputs by name.

    Args:
        body: of the answer.
        head_length: value of the header ``HEAD_LENGTH``; None when the whole body is JSON.

    Raises:
        LightshipError: the answer contradicts itself; nothing of it can be trusted then.
    """
    try:
        length = len(body) if head_length is None else int(head_length)
        if not 0 <= length <= len(body):
            raise ValueError(f"its head of {length} bytes does not fit into {len(body)}")
        outputs, at = {}, length
        head = json.loads(body[:length])
        for item in head["outputs"]:
            size = (item.get("parameters") or {}).get("binary_data_size")
            data = item.get("data") if size is None else body[at : at + size]
            outputs[str(item["name"])] = unpack_tensor(item, data)
            at += size or 0
        if at != len(body):
            raise ValueError(f"{len(body)} bytes came and {at} are accounted for")
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as exc:
        raise LightshipError(f"The server's answer is not what the V2 protocol says: {exc}.") from exc
    return head, outputs


def unpack_tensor(item: Mapping[str, Any], data: Any) -> np.ndarray:
    """Return the array that ``name``, ``datatype`` and ``shape`` and the data say: bytes, or nested lists.

    Raises:
        ValueError: they contradict each other.
    """
    datatype, shape = item["datatype"], tuple(int(size) for size in item["shape"])
    if datatype not in DTYPES or min(shape, default=0) < 0:
        raise ValueError(f"output {item['name']!r} has the datatype {datatype!r} and the shape {shape}")
    if not isinstance(data, bytes):
        if datatype == "BYTES":
            return _objects([text.encode() for text in _flat(data)], shape)
        return np.array(data, dtype=DTYPES[datatype]).reshape(shape)
    if datatype == "BYTES":
        return _objects(_split(data), shape)
    return np.frombuffer(data, dtype=np.dtype(DTYPES[datatype]).newbyteorder("<")).reshape(shape)


def _objects(items: list[bytes], shape: tuple[int, ...]) -> np.ndarray:
    if len(items) != math.prod(shape):
        raise ValueError(f"{len(items)} elements came for the shape {shape}")
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(shape)


def _split(data: bytes) -> list[bytes]:
    items, at = [], 0
    while at < len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + length > len(data):
            raise ValueError("an element is longer than its tensor")
        items.append(data[at : at + length])
        at += length
    return items


def _flat(data: Any) -> list[Any]:
    return [leaf for item in data for leaf in _flat(item)] if isinstance(data, list) else [data]
