"""What an ONNX file says on the outside, read from its bytes without parsing the rest: its fields, its interface.

A server's worker reads no ONNX but this: the package ``onnx`` costs it a tenth of a second, and a parsed graph a second
copy of all weights. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from lightship.errors import InvalidInput
from lightship.types import Dim, Interface, TensorSpec

__all__ = [
    "UNNAMED",
    "Operator",
    "inputs_without_shape",
    "interface_of",
    "named_dims",
    "operators_of",
    "top_fields",
    "varint",
]

UNNAMED = ("", "?")
"""What stands in place of the name of a dimension that a file leaves open."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_GRAPH, _FUNCTION = 7, 25
_NODE, _FUNCTION_NODE = 1, 7
_OPERATOR, _ATTRIBUTE = 4, 5
_INTEGERS, _STRING, _GRAPHS = (3, 8), 4, (6, 11)  # of an attribute: one, or a list
_INITIALIZER, _INPUT, _OUTPUT = 5, 11, 12
_TENSOR_NAME = 8
_NAME, _TYPE = 1, 2
_TENSOR = 1
_ELEMENT, _SHAPE = 1, 2
_DIM = 1
_DIM_VALUE, _DIM_NAME = 1, 2
_DTYPES = {
    1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 8: "BYTES", 9: "BOOL",
    10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64",
}  # fmt: skip

Field = tuple[int, int, int]


def interface_of(graph: bytes) -> Interface:
    """Return the inputs that must be given and the outputs of a model. A dimension that it leaves open is "".

    An output that has no shape has none here either; inputs that have a default (an initializer) are left out.

    Raises:
        InvalidInput: the bytes are no ONNX model, or one with an input or output that is no tensor of known type.
    """
    parts: dict[int, list[Field]] = {_INITIALIZER: [], _INPUT: [], _OUTPUT: []}
    for number, start, stop in top_fields(graph):
        if number == _GRAPH:
            for field in top_fields(graph, start, stop):
                if field[0] in parts:
                    parts[field[0]].append(field)
    given = {_text(graph, field, _TENSOR_NAME) for field in parts[_INITIALIZER]}
    specs = {part: [_spec(graph, field) for field in parts[part]] for part in (_INPUT, _OUTPUT)}
    return Interface(
        inputs=tuple(spec for spec in specs[_INPUT] if spec.name not in given), outputs=tuple(specs[_OUTPUT])
    )


def inputs_without_shape(graph: bytes) -> list[str]:
    """Return the inputs that do not even say how many dimensions they have; ``interface_of`` calls them scalars."""
    found = []
    for number, start, stop in top_fields(graph):
        for field in top_fields(graph, start, stop) if number == _GRAPH else ():
            if field[0] == _INPUT:
                kind = _inside(graph, field, _TYPE)
                tensor = kind and _inside(graph, kind, _TENSOR)
                if tensor and _inside(graph, tensor, _SHAPE) is None:
                    found.append(_text(graph, field, _NAME))
    return found


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator of a file: its type, and where its attributes stand."""

    kind: str
    _data: bytes
    _attributes: dict[str, Field]

    def integers(self, name: str) -> list[int]:
        """Return an attribute that is an integer, or some; without it none. Negative ones are not told from large."""
        found = self._attributes.get(name)
        numbers: list[int] = []
        for number, start, stop in top_fields(self._data, *found[1:]) if found else ():
            at = start
            while number in _INTEGERS and at < stop:  # a list may stand in one piece
                value, at = varint(self._data, at, stop)
                numbers.append(value)
        return numbers

    def text(self, name: str) -> str:
        """Return an attribute that is a text; without it an empty one."""
        found = self._attributes.get(name)
        return _text(self._data, found, _STRING) if found else ""


def operators_of(graph: bytes) -> Iterator[Operator]:
    """Yield every operator, those of graphs inside of operators and of functions as well."""
    waiting = [
        (start, stop, _FUNCTION_NODE if number == _FUNCTION else _NODE)
        for number, start, stop in top_fields(graph)
        if number in (_GRAPH, _FUNCTION)
    ]
    while waiting:
        start, stop, nodes = waiting.pop()
        for node in top_fields(graph, start, stop):
            if node[0] != nodes:
                continue
            attributes = {}
            for attribute in top_fields(graph, node[1], node[2]):
                if attribute[0] == _ATTRIBUTE:
                    attributes[_text(graph, attribute, _NAME)] = attribute
                    inner = top_fields(graph, attribute[1], attribute[2])
                    waiting += [(one, other, _NODE) for number, one, other in inner if number in _GRAPHS]
            yield Operator(_text(graph, node, _OPERATOR), graph, attributes)


def named_dims(shapes: Sequence[tuple[Dim, ...]]) -> Callable[[Dim], Dim]:
    """Return a function that names dimensions without a name ``d0``, ``d1`` …, by names that no other one has.

    Two that a file calls ``?`` (as Paddle's exporter calls whatever it does not know) need not be equally large.
    """
    taken = {dim for shape in shapes for dim in shape if isinstance(dim, str)}
    free = (name for number in count() if (name := f"d{number}") not in taken)
    return lambda dim: next(free) if dim in UNNAMED else dim


def top_fields(data: bytes, start: int = 0, stop: int | None = None) -> Iterator[Field]:
    """Yield (number, start, stop of the value) of each field of a protobuf message, without parsing what is inside.

    Raises:
        InvalidInput: the bytes are no such message, or are cut short.
    """
    at, end = start, len(data) if stop is None else stop
    while at < end:
        tag, at = varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _, after = varint(data, at, end)
        elif kind == _LENGTH:
            size, at = varint(data, at, end)
            after = at + size
        elif kind in (_FIXED32, _FIXED64):
            after = at + (4 if kind == _FIXED32 else 8)
        else:
            raise InvalidInput(f"These bytes are no ONNX model: byte {at} does not begin a part of one.")
        if number == 0 or after > end:
            raise InvalidInput(
                f"These bytes are no ONNX model, or one that is cut short: a part ends at byte {after} of {end}."
            )
        yield number, at, after
        at = after


def varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return the number that starts at a byte, and where the next part starts.

    Raises:
        InvalidInput: it is longer than any number, or cut short.
    """
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise InvalidInput(f"These bytes are no ONNX model, or one that is cut short, at byte {at}.")


def _spec(data: bytes, field: Field) -> TensorSpec:
    name = _text(data, field, _NAME)
    kind = _inside(data, field, _TYPE)
    tensor = kind and _inside(data, kind, _TENSOR)
    element = tensor and _number(data, tensor, _ELEMENT)
    if not tensor or element not in _DTYPES:
        raise InvalidInput(
            f"{name!r} of the graph is no tensor, or one of a type that is not known. Allowed are tensors of "
            f"{', '.join(_DTYPES.values())}."
        )
    shape = _inside(data, tensor, _SHAPE)
    dims = [one for one in top_fields(data, *shape[1:]) if one[0] == _DIM] if shape else []
    return TensorSpec(name, _DTYPES[element], tuple(_dim(data, one) for one in dims))


def _dim(data: bytes, field: Field) -> Dim:
    size = _number(data, field, _DIM_VALUE)
    if size is not None and 0 <= size < 1 << 63:
        return size
    return _text(data, field, _DIM_NAME)


def _inside(data: bytes, field: Field, number: int) -> Field | None:
    """Return the last field of that number, as a parser would."""
    found = None
    for one in top_fields(data, field[1], field[2]):
        if one[0] == number:
            found = one
    return found


def _text(data: bytes, field: Field, number: int) -> str:
    found = _inside(data, field, number)
    try:
        return data[found[1] : found[2]].decode() if found else ""
    except UnicodeDecodeError as exc:
        raise InvalidInput("A name in the graph is not UTF-8. Export the model again, with other names.") from exc


def _number(data: bytes, field: Field, number: int) -> int | None:
    found = _inside(data, field, number)
    return varint(data, found[1], found[2])[0] if found else None
