"""V2 inference requests and answers as gRPC messages, with the checks that ``v2_codec`` makes of their HTTP forms.

Tensors come raw (all inputs in ``raw_input_contents``) or typed (each in its own ``contents``), never both; an answer
has the form of its request. Fields that we do not know are passed over, as protobuf does everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # no types

from lightship.errors import InvalidInput, InvalidTensor, TooLarge
from lightship.serve.contracts.v2_codec import V2Request, Wanted
from lightship.serve.tensors import ITEM_BYTES, PackedTensor, pack, pack_bytes, unpack, unpack_bytes
from lightship.types import DTYPES, TensorSpec
from lightship.v2.grpc_messages import message_class

__all__ = ["GrpcCodec", "parsed", "timeout_us"]

_MOST_DIMENSIONS = 32
_LARGEST_DIMENSION = (1 << 31) - 1
_MOST_TIMEOUT_US = 600_000_000
_MOST_ID_CHARACTERS = 1_024
_SMALL_BYTES = 1 << 20  # a message of this size may be parsed, whatever is in it
_RAW_FIELD = 7  # raw_input_contents
_LENGTH_DELIMITED = 2
_FIELD_BYTES = 64  # what a field takes when it is parsed, however little there is in it

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_WIDE = {"int_contents": np.int32, "uint_contents": np.uint32}  # wider than some of the dtypes that they carry


def parsed(kind: str, data: bytes) -> Any:
    """Return the message that ``data`` is.

    Raises:
        InvalidInput: it is none.
    """
    try:
        return message_class(kind).FromString(data)
    except DecodeError:
        raise InvalidInput(f"The request is not a message {kind}.") from None


class GrpcCodec:
    """Reads requests and writes answers.

    Args:
        described_bytes: of one request, all but its raw contents. An empty message of two bytes takes fifty times as
            many when it is parsed, and a typed value some Python work, which raw contents do not.
    """

    def __init__(self, *, described_bytes: int) -> None:
        self._described_bytes = described_bytes
        self._response = message_class("ModelInferResponse")

    def parse(self, data: bytes) -> Any:
        """Return a ``ModelInferRequest``.

        Raises:
            InvalidInput, TooLarge: it is none, or too much of it is not raw.
        """
        if len(data) > _SMALL_BYTES:
            self._refuse_large_description(data)
        return parsed("ModelInferRequest", data)

    def read(self, message: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> V2Request:
        """Check a request for a model with these inputs and outputs.

        Raises:
            InvalidInput: the message names the field.
        """
        if len(message.id) > _MOST_ID_CHARACTERS:
            raise InvalidInput(f"'id' must be a text of at most {_MOST_ID_CHARACTERS} characters.")
        raw = message.raw_input_contents
        if raw and len(raw) != len(message.inputs):
            raise InvalidInput(
                f"'raw_input_contents' must have one entry for each of the {len(message.inputs)} inputs, or none. "
                f"Got {len(raw)}."
            )
        tensors = _read_inputs(message.inputs, raw, {spec.name: spec for spec in inputs})
        return V2Request(
            id=message.id or None,
            inputs=tuple([tensors[spec.name] for spec in inputs]),
            wanted=_read_outputs(message.outputs, [spec.name for spec in outputs], binary=bool(raw)),
            timeout_us=timeout_us(message.parameters),
        )

    def write(self, model: tuple[str, str], request: V2Request, tensors: Sequence[PackedTensor]) -> Any:
        """Return the ``ModelInferResponse`` of a model's name and version, with the outputs that were asked for."""
        name, version = model
        message = self._response(model_name=name, model_version=version, id=request.id or "")
        raw = any(wanted.binary for wanted in request.wanted) or any(one.dtype not in _CONTENTS for one in tensors)
        if not raw and (values := sum(math.prod(one.shape) for one in tensors)) > (most := self._described_bytes // 4):
            raise InvalidTensor(
                f"The answer has {values} values; typed contents take at most {most} (a sixteenth of the limit "
                "`json_bytes`). Send a raw request, and the answer is raw."
            )
        for tensor in tensors:
            entry = message.outputs.add(name=tensor.name, datatype=tensor.dtype, shape=tensor.shape)
            if raw:
                message.raw_output_contents.append(bytes(tensor.data))
            else:
                getattr(entry.contents, _CONTENTS[tensor.dtype]).extend(unpack(tensor).ravel().tolist())
        return message

    def _refuse_large_description(self, data: bytes) -> None:
        described = 0
        for number, size in _top_fields(data):
            described += _FIELD_BYTES + (size if number != _RAW_FIELD else 0)
            if described > self._described_bytes:
                raise TooLarge(
                    f"A request has at most {self._described_bytes} bytes beside 'raw_input_contents' (a quarter of "
                    "the limit `json_bytes`). Send the tensors raw."
                )


def _top_fields(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield number and size of each field of a message that has length-delimited fields only, as requests do.

    Raises:
        InvalidInput: it is another message, or none.
    """
    at = 0
    while at < len(data):
        tag, start = _varint(data, at)
        size, start = _varint(data, start)
        if tag & 7 != _LENGTH_DELIMITED or start + size > len(data):
            raise InvalidInput("The request is not a message ModelInferRequest.")
        yield tag >> 3, size
        at = start + size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise InvalidInput("The request is not a message ModelInferRequest.")


def _read_inputs(entries: Any, raw: Any, specs: Mapping[str, TensorSpec]) -> dict[str, PackedTensor]:
    if len(entries) > len(specs):
        raise InvalidInput(f"'inputs' must have {len(specs)} entries: {_names(specs)}. Got {len(entries)}.")
    tensors: dict[str, PackedTensor] = {}
    for index, entry in enumerate(entries):
        at, name = f"inputs[{index}]", entry.name
        spec = specs.get(name)
        if spec is None:
            raise InvalidInput(f"{at}.name must be one of {_names(specs)}. Got {name[:80]!r}.")
        if name in tensors:
            raise InvalidInput(f"{at}.name {name!r} is there twice.")
        if entry.datatype != spec.dtype:
            raise InvalidTensor(f"{at}.datatype of {name!r} must be {spec.dtype}. Got {entry.datatype[:40]!r}.")
        if entry.parameters:
            _refuse_shared_memory(entry.parameters, at=at)
        shape = _shape(entry.shape, at=f"{at}.shape")
        if raw:
            if entry.HasField("contents"):
                raise InvalidInput(f"{at} must have either 'contents' or an entry in 'raw_input_contents', not both.")
            tensors[name] = _raw_tensor(spec, shape, raw[index], at=f"raw_input_contents[{index}]")
        else:
            tensors[name] = _typed_tensor(spec, shape, entry.contents, at=at)
    if missing := [name for name in specs if name not in tensors]:
        raise InvalidInput(f"'inputs' must have {_names(specs)}. Missing: {_names(missing)}.")
    return tensors


def _raw_tensor(spec: TensorSpec, shape: tuple[int, ...], data: bytes, *, at: str) -> PackedTensor:
    count = math.prod(shape)
    if spec.dtype == "BYTES":
        if count * 4 > len(data):
            raise InvalidTensor(f"{at} of shape {list(shape)} needs at least {count * 4} bytes. Got {len(data)}.")
        unpack_bytes(data, count, what=at)
    elif count * ITEM_BYTES[spec.dtype] != len(data):
        raise InvalidTensor(
            f"{at} of {spec.dtype} and shape {list(shape)} needs {count * ITEM_BYTES[spec.dtype]} bytes. "
            f"Got {len(data)}."
        )
    elif spec.dtype == "BOOL" and max(data) > 1:
        raise InvalidTensor(f"{at}: a byte of BOOL must be 0 or 1. Got {max(data)}.")
    return PackedTensor(spec.name, spec.dtype, shape, data)


def _typed_tensor(spec: TensorSpec, shape: tuple[int, ...], contents: Any, *, at: str) -> PackedTensor:
    field = _CONTENTS.get(spec.dtype)
    if field is None:
        raise InvalidTensor(f"{at}: {spec.dtype} has no typed contents in V2. Send {spec.name!r} raw.")
    for given, _ in contents.ListFields():
        if given.name != field:
            raise InvalidInput(f"{at}.contents of {spec.dtype} must be in '{field}'. Got {given.name!r}.")
    values = getattr(contents, field)
    if len(values) != math.prod(shape):
        raise InvalidTensor(
            f"{at}.contents.{field} must have {math.prod(shape)} values, as the shape says. Got {len(values)}."
        )
    if spec.dtype == "BYTES":
        return PackedTensor(spec.name, spec.dtype, shape, pack_bytes(values))
    wide = np.fromiter(values, dtype=_WIDE.get(field, DTYPES[spec.dtype]), count=len(values))
    array = wide.astype(DTYPES[spec.dtype], copy=False)
    if field in _WIDE and not (array == wide).all():
        raise InvalidTensor(f"{at}.contents.{field} must be in the range of {spec.dtype}; one value is out of it.")
    return pack(spec.name, spec.dtype, array.reshape(shape))


def _read_outputs(entries: Any, names: Sequence[str], *, binary: bool) -> tuple[Wanted, ...]:
    if len(entries) > len(names):
        raise InvalidInput(f"'outputs' must have at most {len(names)} entries: {_names(names)}. Got {len(entries)}.")
    wanted: dict[str, Wanted] = {}
    for index, entry in enumerate(entries):
        at, name = f"outputs[{index}]", entry.name
        if name not in names:
            raise InvalidInput(f"{at}.name must be one of {_names(names)}. Got {name[:80]!r}.")
        if name in wanted:
            raise InvalidInput(f"{at}.name {name!r} is there twice.")
        _refuse_shared_memory(entry.parameters, at=at)
        if "classification" in entry.parameters:
            raise InvalidInput(f"{at}.parameters.classification is not offered here. Ask for the output itself.")
        wanted[name] = Wanted(name, binary)
    return tuple(wanted.values()) or tuple([Wanted(name, binary) for name in names])


def _refuse_shared_memory(parameters: Any, *, at: str) -> None:
    # Passed over, it would leave the client with a region that nobody read or wrote.
    if "shared_memory_region" in parameters:
        raise InvalidInput(f"{at}.parameters.shared_memory_region is not offered here. Send and take the data itself.")


def timeout_us(parameters: Any) -> int | None:
    """Return the parameter ``timeout`` of a request, if it has one.

    Raises:
        InvalidInput: it is no number of microseconds.
    """
    if "timeout" not in parameters:
        return None
    kind = parameters["timeout"].WhichOneof("parameter_choice")
    value = getattr(parameters["timeout"], kind) if kind in ("int64_param", "uint64_param") else kind
    if not isinstance(value, int) or not 1 <= value <= _MOST_TIMEOUT_US:
        raise InvalidInput(
            f"parameters.timeout must be microseconds from 1 to {_MOST_TIMEOUT_US}, as int64_param or uint64_param. "
            f"Got {value}."
        )
    return value


def _shape(sizes: Any, *, at: str) -> tuple[int, ...]:
    shape = tuple(sizes)
    if len(shape) > _MOST_DIMENSIONS:
        raise InvalidTensor(f"{at} must have at most {_MOST_DIMENSIONS} sizes. Got {len(shape)}.")
    for size in shape:
        if not 1 <= size <= _LARGEST_DIMENSION:
            raise InvalidTensor(f"{at} must hold whole numbers from 1 on. Got {size}.")
    return shape


def _names(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(repr(name) for name in names)
