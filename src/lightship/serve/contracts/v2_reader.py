"""Reads a V2 request out of parsed JSON, and checks all of it.

simdjson is generous where V2 is not, so this is checked here: duplicate and unknown keys, ragged nesting (its buffers
are flattened silently), the range of small integers and of FP32.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
import simdjson

from lightship.errors import InvalidInput, InvalidTensor
from lightship.serve.tensors import ITEM_BYTES, PackedTensor, pack, pack_bytes, unpack_bytes
from lightship.types import DTYPES, TensorSpec

__all__ = ["INTEGERS", "RequestReader", "Slice", "V2Request", "Wanted", "binary_tensor", "number_bytes"]

Buffer = bytes | memoryview

INTEGERS = frozenset({"UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"})
_MOST_DIMENSIONS = 32
_LARGEST_DIMENSION = (1 << 31) - 1
_MOST_TIMEOUT_US = 600_000_000
_MOST_ID_CHARACTERS = 1_024
_SAFE_SQUARES = float(np.finfo(np.float32).max) ** 2  # numbers whose squares sum up to less are all in FP32's range
_REQUEST_KEYS = frozenset({"id", "parameters", "inputs", "outputs"})
_INPUT_KEYS = frozenset({"name", "shape", "datatype", "parameters", "data"})
_OUTPUT_KEYS = frozenset({"name", "parameters"})
_KINDS = {name: "d" if name not in INTEGERS else "u" if name.startswith("U") else "i" for name in DTYPES}
_WIDE = {"d": np.dtype(np.float64), "u": np.dtype(np.uint64), "i": np.dtype(np.int64)}  # what simdjson reads them as
_FP32 = np.dtype("<f4")


class Wanted(NamedTuple):
    """An output that was asked for, and whether in binary form."""

    name: str
    binary: bool


class V2Request(msgspec.Struct, frozen=True):
    """A checked request. ``inputs`` are in the order of the interface; their shapes are not yet held against it."""

    id: str | None
    inputs: tuple[PackedTensor, ...]
    wanted: tuple[Wanted, ...]
    timeout_us: int | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """Where a tensor lies in the binary part."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class RequestReader:
    """Reads one request. Counts the arrays it has seen, to know that there are no others inside the numbers."""

    def __init__(self, text: bytes, tail: Buffer) -> None:
        self._text = text
        self._tail = tail
        self._at = 0
        self._arrays = 0
        self._leaves: list[tuple[str, Any]] = []
        self.slices: dict[str, Slice] = {}  # of the tensors in the binary part

    def read(self, document: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> V2Request:
        """Read the whole request, as simdjson has parsed it.

        Raises:
            InvalidInput: the message names the field.
        """
        keys = _keys(document, _REQUEST_KEYS, at="the request")
        parameters = _parameters(document["parameters"], at="parameters") if "parameters" in keys else {}
        if "inputs" not in keys:
            raise InvalidInput("The request must have 'inputs'.")
        tensors = self._read_inputs(document["inputs"], {spec.name: spec for spec in inputs})
        binary = _flag(parameters, "binary_data_output", at="parameters")
        names = [spec.name for spec in outputs]
        if "outputs" in keys:
            wanted = self._read_outputs(document["outputs"], names, binary=binary)
        else:
            wanted = tuple(Wanted(name, binary) for name in names)
        self._refuse_hidden_arrays()
        if self._at != len(self._tail):
            raise InvalidInput(
                f"The binary part must have as many bytes as the 'binary_data_size' of all inputs ({self._at}). "
                f"Got {len(self._tail)}."
            )
        return V2Request(
            id=_id(document["id"]) if "id" in keys else None,
            inputs=tuple(tensors[spec.name] for spec in inputs),
            wanted=wanted,
            timeout_us=_timeout(parameters),
        )

    def _read_inputs(self, array: Any, specs: Mapping[str, TensorSpec]) -> dict[str, PackedTensor]:
        if not isinstance(array, simdjson.Array):
            raise InvalidInput("'inputs' must be a list.")
        self._arrays += 1
        if len(array) > len(specs):
            raise InvalidInput(f"'inputs' must have {len(specs)} entries: {_names(specs)}. Got {len(array)}.")
        tensors: dict[str, PackedTensor] = {}
        for index, entry in enumerate(array):
            at = f"inputs[{index}]"
            keys = _keys(entry, _INPUT_KEYS, at=at)
            name = _text(entry, "name", keys, at=at)
            spec = specs.get(name)
            if spec is None:
                raise InvalidInput(f"{at}.name must be one of {_names(specs)}. Got {name[:80]!r}.")
            if name in tensors:
                raise InvalidInput(f"{at}.name {name!r} is there twice.")
            tensors[name] = self._read_input(entry, keys, spec, at=at)
        if missing := [name for name in specs if name not in tensors]:
            raise InvalidInput(f"'inputs' must have {_names(specs)}. Missing: {_names(missing)}.")
        return tensors

    def _read_input(self, entry: Any, keys: frozenset[str], spec: TensorSpec, *, at: str) -> PackedTensor:
        dtype = _text(entry, "datatype", keys, at=at)
        if dtype != spec.dtype:
            raise InvalidTensor(f"{at}.datatype of {spec.name!r} must be {spec.dtype}. Got {dtype[:40]!r}.")
        if "shape" not in keys:
            raise InvalidInput(f"{at} must have 'shape'.")
        self._arrays += 1
        shape = _shape(entry["shape"], at=f"{at}.shape")
        parameters = _parameters(entry["parameters"], at=f"{at}.parameters") if "parameters" in keys else {}
        if "binary_data_size" in parameters:
            if "data" in keys:
                raise InvalidInput(f"{at} must have either 'data' or the parameter 'binary_data_size', not both.")
            return self._binary(spec, shape, parameters["binary_data_size"], at=at)
        if "data" not in keys:
            raise InvalidInput(f"{at} must have 'data', or the parameter 'binary_data_size'.")
        return self._json(spec, shape, entry["data"], parameters, at=at)

    def _binary(self, spec: TensorSpec, shape: tuple[int, ...], size: object, *, at: str) -> PackedTensor:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InvalidInput(f"{at}.parameters.binary_data_size must be a number of bytes. Got {size!r}.")
        left = len(self._tail) - self._at
        if size > left:
            raise InvalidInput(f"{at}.parameters.binary_data_size is {size}; only {left} bytes are left in the body.")
        start, self._at = self._at, self._at + size
        count = math.prod(shape)
        if spec.dtype == "BYTES":
            if count * 4 > size:
                raise InvalidTensor(f"{at}.shape {list(shape)} needs at least {count * 4} bytes. Got {size}.")
        elif count * ITEM_BYTES[spec.dtype] != size:
            raise InvalidTensor(
                f"{at}.shape {list(shape)} of {spec.dtype} needs {count * ITEM_BYTES[spec.dtype]} bytes. Got {size}."
            )
        piece = self.slices[spec.name] = Slice(spec.name, spec.dtype, shape, start, self._at)
        return binary_tensor(piece, self._tail[start : self._at])

    def _json(
        self, spec: TensorSpec, shape: tuple[int, ...], data: Any, parameters: Mapping[str, object], *, at: str
    ) -> PackedTensor:
        if spec.dtype == "FP16":
            raise InvalidTensor(f"{at}: FP16 has no JSON form in V2. Send {spec.name!r} in binary form.")
        if not isinstance(data, simdjson.Array):
            raise InvalidInput(f"{at}.data must be a list.")
        self._check_nesting(data, shape, at=f"{at}.data")
        if spec.dtype == "BYTES":
            return PackedTensor(spec.name, spec.dtype, shape, pack_bytes(_texts(data, shape, parameters, at=at)))
        if spec.dtype == "BOOL":
            return pack(spec.name, spec.dtype, _booleans(data, shape, at=f"{at}.data"))
        values = number_bytes(data, spec.dtype, math.prod(shape), at=f"{at}.data")
        return PackedTensor(spec.name, spec.dtype, shape, values)

    def _check_nesting(self, data: Any, shape: tuple[int, ...], *, at: str) -> None:
        """Data is flat, or nested exactly as its shape says."""
        if len(shape) <= 1 or not (len(data) and isinstance(data[0], simdjson.Array)):
            self._leaf(data, math.prod(shape), at=at)
        else:
            self._nested(data, shape, at=at)

    def _nested(self, data: Any, shape: tuple[int, ...], *, at: str) -> None:
        if len(shape) == 1:
            self._leaf(data, shape[0], at=at)
            return
        self._arrays += 1
        if len(data) != shape[0]:
            raise InvalidTensor(f"{at} must have {shape[0]} entries, as its shape says. Got {len(data)}.")
        for index, entry in enumerate(data):
            if not isinstance(entry, simdjson.Array):
                raise InvalidTensor(f"{at}[{index}] must be a list of {shape[1]} entries, as the shape says.")
            self._nested(entry, shape[1:], at=f"{at}[{index}]")

    def _leaf(self, data: Any, size: int, *, at: str) -> None:
        if len(data) != size:
            raise InvalidTensor(f"{at} must have {size} values, as its shape says. Got {len(data)}.")
        self._arrays += 1
        self._leaves.append((at, data))

    def _read_outputs(self, array: Any, names: Sequence[str], *, binary: bool) -> tuple[Wanted, ...]:
        if not isinstance(array, simdjson.Array):
            raise InvalidInput("'outputs' must be a list.")
        self._arrays += 1
        if len(array) > len(names):
            raise InvalidInput(f"'outputs' must have at most {len(names)} entries: {_names(names)}. Got {len(array)}.")
        wanted: dict[str, Wanted] = {}
        entry: Any
        for index, entry in enumerate(array):
            at = f"outputs[{index}]"
            keys = _keys(entry, _OUTPUT_KEYS, at=at)
            name = _text(entry, "name", keys, at=at)
            if name not in names:
                raise InvalidInput(f"{at}.name must be one of {_names(names)}. Got {name[:80]!r}.")
            if name in wanted:
                raise InvalidInput(f"{at}.name {name!r} is there twice.")
            parameters = _parameters(entry["parameters"], at=f"{at}.parameters") if "parameters" in keys else {}
            if "classification" in parameters:
                raise InvalidInput(f"{at}.parameters.classification is not offered here. Ask for the output itself.")
            wanted[name] = Wanted(name, _flag(parameters, "binary_data", at=f"{at}.parameters", default=binary))
        return tuple(wanted.values()) or tuple(Wanted(name, binary) for name in names)

    def _refuse_hidden_arrays(self) -> None:
        """Refuse lists inside what should be numbers: simdjson would take ``[[1], 2]`` for ``[1, 2]``.

        Every array has one ``[``. As many in the text as arrays were seen: there can be no others. More: there are, or
        a string holds one, and only a look at each value tells.
        """
        if self._text.count(b"[") == self._arrays:
            return
        for at, leaf in self._leaves:
            if any(isinstance(value, simdjson.Array) for value in leaf):
                raise InvalidTensor(f"{at} must hold plain values here; it holds a list.")


def _keys(value: Any, allowed: frozenset[str], *, at: str) -> frozenset[str]:
    if not isinstance(value, simdjson.Object):
        raise InvalidInput(f"{at} must be a JSON object.")
    keys = list(value.keys())
    found = frozenset(keys)
    if len(keys) != len(found):
        raise InvalidInput(f"{at} has a key twice.")
    if unknown := found - allowed:
        raise InvalidInput(f"{at} must have only the keys {_names(sorted(allowed))}. Got {sorted(unknown)[0][:80]!r}.")
    return found


def binary_tensor(piece: Slice, data: Buffer) -> PackedTensor:
    """Return the tensor with these bytes, of the right size. Two dtypes have bytes that are no values.

    Raises:
        InvalidTensor: says which element.
    """
    dtype = piece.dtype
    if dtype == "BYTES":
        unpack_bytes(data, math.prod(piece.shape), what=f"input {piece.name!r}")
    elif dtype == "BOOL" and data and max(data) > 1:
        raise InvalidTensor(f"Input {piece.name!r}: a byte of BOOL must be 0 or 1. Got {max(data)}.")
    return PackedTensor(piece.name, dtype, piece.shape, data)


def _parameters(value: Any, *, at: str) -> dict[str, object]:
    if not isinstance(value, simdjson.Object):
        raise InvalidInput(f"{at} must be a JSON object.")
    keys = list(value.keys())
    if len(keys) != len(set(keys)):
        raise InvalidInput(f"{at} has a key twice.")
    members: Any = value
    found: dict[str, object] = {}
    for key in keys:
        item: object = members[key]
        if isinstance(item, simdjson.Object | simdjson.Array):
            raise InvalidInput(f"{at}.{key[:80]} must be a text, a number or a truth value.")
        found[key] = item
    return found


def _text(entry: Any, key: str, keys: frozenset[str], *, at: str) -> str:
    value: object = entry[key] if key in keys else None
    if not isinstance(value, str):
        raise InvalidInput(f"{at} must have a text {key!r}.")
    return value


def _flag(parameters: Mapping[str, object], key: str, *, at: str, default: bool = False) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise InvalidInput(f"{at}.{key} must be true or false. Got {str(value)[:40]!r}.")
    return value


def _id(value: object) -> str:
    if not isinstance(value, str) or len(value) > _MOST_ID_CHARACTERS:
        raise InvalidInput(f"'id' must be a text of at most {_MOST_ID_CHARACTERS} characters.")
    return value


def _timeout(parameters: Mapping[str, object]) -> int | None:
    value = parameters.get("timeout")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST_TIMEOUT_US:
        raise InvalidInput(
            f"parameters.timeout must be microseconds from 1 to {_MOST_TIMEOUT_US}. Got {str(value)[:40]!r}."
        )
    return value


def _shape(value: object, *, at: str) -> tuple[int, ...]:
    if not isinstance(value, simdjson.Array) or len(value) > _MOST_DIMENSIONS:
        raise InvalidTensor(f"{at} must be a list of at most {_MOST_DIMENSIONS} sizes.")
    shape = []
    for size in value:
        if type(size) is not int or not 1 <= size <= _LARGEST_DIMENSION:
            got = "a list or an object" if isinstance(size, simdjson.Array | simdjson.Object) else repr(str(size)[:40])
            raise InvalidTensor(f"{at} must hold whole numbers from 1 on. Got {got}.")
        shape.append(size)
    return tuple(shape)


def number_bytes(data: Any, dtype: str, count: int, *, at: str) -> bytes:
    """Return flat or nested JSON numbers in the binary form of ``dtype``.

    Raises:
        InvalidTensor: they are not all numbers, not ``count``, or not all in the range.
    """
    kind = _KINDS[dtype]
    try:
        wide = np.frombuffer(data.as_buffer(of_type=kind), _WIDE[kind])
    except (TypeError, ValueError):
        raise InvalidTensor(f"{at} must hold {_what(kind)} in the range of {dtype}; it holds something else.") from None
    if wide.size != count:
        raise InvalidTensor(f"{at} must have {count} values, as its shape says. Got {wide.size}.")
    if dtype == "FP32" and wide.dot(wide) <= _SAFE_SQUARES:
        return wide.astype(_FP32).tobytes()
    with np.errstate(over="ignore"):
        array = wide.astype(np.dtype(DTYPES[dtype]).newbyteorder("<"))
        if kind == "d":
            # The sum of squares is finite if all are; if it is not, a large number may be the reason.
            exact = math.isfinite(float(np.dot(array, array))) or bool(np.isfinite(array).all())
        else:
            exact = array.itemsize == wide.itemsize or bool((array == wide).all())
    if not exact:
        raise InvalidTensor(f"{at} must hold {_what(kind)} in the range of {dtype}; one is out of it.")
    return array.tobytes()


def _what(kind: str) -> str:
    return "numbers" if kind == "d" else "whole numbers"


def _flat(data: Any) -> list[Any]:
    values: list[Any] = []
    for value in data:
        if isinstance(value, simdjson.Array):
            values += _flat(value)
        else:
            values.append(value)
    return values


def _booleans(data: Any, shape: tuple[int, ...], *, at: str) -> np.ndarray:
    values = _flat(data)
    if any(type(value) is not bool and not (type(value) is int and value in (0, 1)) for value in values):
        raise InvalidTensor(f"{at} must hold true and false (or 1 and 0).")
    if len(values) != math.prod(shape):
        raise InvalidTensor(f"{at} must have {math.prod(shape)} values, as its shape says. Got {len(values)}.")
    return np.array(values, dtype=np.bool_).reshape(shape)


def _texts(data: Any, shape: tuple[int, ...], parameters: Mapping[str, object], *, at: str) -> list[bytes]:
    """Return the elements of a BYTES tensor: texts as UTF-8, or what base64 texts stand for."""
    values = _flat(data)
    if any(not isinstance(value, str) for value in values):
        raise InvalidTensor(f"{at}.data of BYTES must hold texts.")
    if len(values) != math.prod(shape):
        raise InvalidTensor(f"{at}.data must have {math.prod(shape)} values, as its shape says. Got {len(values)}.")
    content_type = parameters.get("content_type")
    if content_type is None:
        return [value.encode() for value in values]
    if content_type != "base64":
        raise InvalidInput(f"{at}.parameters.content_type must be 'base64' or absent. Got {str(content_type)[:40]!r}.")
    try:
        return [base64.b64decode(value, validate=True) for value in values]
    except (binascii.Error, ValueError):
        raise InvalidTensor(f"{at}.data must hold base64 (RFC 4648, with padding, without line breaks).") from None


def _names(names: Sequence[str] | Mapping[str, object] | list[str]) -> str:
    return ", ".join(repr(name) for name in names)
