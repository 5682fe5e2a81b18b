"""Which inputs of a graph are row numbers of a table, such as token ids of an embedding, and how many rows there are.

A number beyond the table is no input that the model can answer: one engine refuses it in the middle of a batch, another
reads what lies behind the table. So the range is read from the file, and a server refuses the rest at its door.

Only what is certain counts: the input reaches the table whole, through operators that move its numbers and change none.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from lightship.engine.onnx_wire import Field, interface_of, top_fields, varint

__all__ = ["table_rows"]

_GRAPH = 7
_NODE, _INITIALIZER = 1, 5
_DIMS, _TENSOR_NAME = 1, 8
_INPUT, _OUTPUT, _OPERATOR, _ATTRIBUTE, _DOMAIN = 1, 2, 4, 5, 7
_ATTRIBUTE_NAME, _INTEGER, _TENSOR = 1, 3, 5
_INTEGERS = {6, 7}  # INT32 and INT64: a row number fits
_MOVES = frozenset({"Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_SAME_TABLE = frozenset({"Cast", "DequantizeLinear", "Identity"})
_EMBEDDING = {0: 2, 1: 4}  # of the fused layer: ids and where their table stands among the inputs
_ONNX = {"", "ai.onnx"}


def table_rows(graph: bytes) -> dict[str, int]:
    """Return the rows of the smallest table that each input of row numbers is looked up in.

    Args:
        graph: ONNX bytes that have passed the audit.

    Raises:
        InvalidInput: the bytes are no ONNX model.
    """
    tables: dict[str, tuple[int, ...]] = {}
    nodes: list[_Node] = []
    for number, start, stop in top_fields(graph):
        for field in top_fields(graph, start, stop) if number == _GRAPH else ():
            if field[0] == _INITIALIZER:
                name, dims = _tensor(graph, field)
                tables[name] = dims
            elif field[0] == _NODE:
                nodes.append(_Node(graph, field))
    numbers = {spec.name: spec.name for spec in interface_of(graph).inputs if spec.dtype in ("INT32", "INT64")}
    rows: dict[str, int] = {}
    for node in nodes:  # in their order each comes after what it takes
        node.follow(tables, numbers)
        for ids, size in node.lookups(tables):
            if (found := numbers.get(ids)) is not None:
                rows[found] = min(size, rows.get(found, size))
    return rows


class _Node:
    """An operator: what it takes and gives."""

    def __init__(self, graph: bytes, field: Field) -> None:
        self._graph = graph
        self._attributes: list[Field] = []
        self.kind = self.domain = ""
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        for number, start, stop in top_fields(graph, *field[1:]):
            if number == _ATTRIBUTE:
                self._attributes.append((number, start, stop))
            elif number in (_INPUT, _OUTPUT):
                (self.inputs if number == _INPUT else self.outputs).append(_name(graph, start, stop))
            elif number == _OPERATOR:
                self.kind = _name(graph, start, stop)
            elif number == _DOMAIN:
                self.domain = _name(graph, start, stop)

    def follow(self, tables: dict[str, tuple[int, ...]], numbers: dict[str, str]) -> None:
        """Note under which names a table or an input goes on."""
        if self.domain not in _ONNX or not self.outputs:
            return
        given, made = next(iter(self.inputs), ""), self.outputs[0]
        if self.kind == "Constant":
            for value in self._attribute("value", _TENSOR):
                tables[made] = _tensor(self._graph, value)[1]
        elif given in tables and self.kind in _SAME_TABLE:
            tables[made] = tables[given]
        elif given in numbers and (self.kind in _MOVES or self._casts_to_integers()):
            numbers[made] = numbers[given]

    def lookups(self, tables: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, int]]:
        """Yield (name of the row numbers, rows of the table)."""
        if self.kind == "EmbedLayerNormalization":
            for ids, table in _EMBEDDING.items():
                if table < len(self.inputs) and (dims := tables.get(self.inputs[table])):
                    yield self.inputs[ids], dims[0]
        elif self.kind == "Gather" and self.domain in _ONNX and len(self.inputs) == 2:
            dims = tables.get(self.inputs[0], ())
            axis = self._integer("axis", default=0)
            if -len(dims) <= axis < len(dims):
                yield self.inputs[1], dims[axis]

    def _casts_to_integers(self) -> bool:
        return self.kind == "Cast" and self._integer("to", default=0) in _INTEGERS

    def _integer(self, name: str, *, default: int) -> int:
        for one in self._attribute(name, _INTEGER):
            return int(struct.unpack("<q", struct.pack("<Q", varint(self._graph, one[1], one[2])[0] & (2**64 - 1)))[0])
        return default

    def _attribute(self, name: str, kind: int) -> Iterator[Field]:
        for attribute in self._attributes:
            parts = {one[0]: one for one in top_fields(self._graph, *attribute[1:])}
            said = parts.get(_ATTRIBUTE_NAME)
            if said is not None and self._graph[said[1] : said[2]] == name.encode() and kind in parts:
                yield parts[kind]


def _tensor(graph: bytes, field: Field) -> tuple[str, tuple[int, ...]]:
    name, dims = "", []
    for number, start, stop in top_fields(graph, *field[1:]):
        if number == _TENSOR_NAME:
            name = _name(graph, start, stop)
        elif number == _DIMS:
            at = start
            while at < stop:  # one, or many in one piece
                size, at = varint(graph, at, stop)
                dims.append(size)
    return name, tuple(dims)


def _name(graph: bytes, start: int, stop: int) -> str:
    return graph[start:stop].decode(errors="replace")
