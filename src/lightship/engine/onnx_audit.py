"""What an ONNX file could do, decided from its bytes before an engine sees them.

A file may name other files (external data, ``EPContext``), operators from shared libraries, and sizes that it does not
have; it may nest or call itself until a reader runs out of stack or memory. All walks here are loops with a limit, and
all parts are counted on the wire before the message is parsed. Import this module late: it loads onnx.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # the stubs are one more dependency

from lightship.engine.onnx_wire import varint
from lightship.errors import InvalidInput, Refused

__all__ = ["DOMAINS", "MAX_NODES", "Audited", "audit_onnx", "element_bits", "refuse_excess"]

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operator sets that ONNX Runtime itself brings; ``com.microsoft`` holds the quantized operators."""

MAX_NODES = 100_000
"""With functions written out. The largest honest graphs have some ten thousand."""
MAX_DEPTH = 24
"""Graphs inside of graphs (If, Loop, Scan), and functions that call functions."""
_MAX_TENSOR_BYTES = 1 << 31  # protobuf's own limit of a message
_MAX_FUNCTIONS = 10_000
MAX_ENTRIES = 2_000_000
"""Messages, texts and byte strings in a file, all together. A hundred thousand nodes with all shapes have as many."""
_MAX_TEXTS = 1_000_000  # of one kind, as inputs of nodes
_MAX_MESSAGES = 500_000  # of one kind; a shape of four is four messages
_MAX_RANK = 64
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_NODE = onnx.NodeProto.DESCRIPTOR.full_name
_SMALLER = "It is damaged or was made to exhaust its reader; export the model again."
# A run of fields that are numbers: a tag of one or two bytes, then a varint, 4 or 8 bytes.
_TAG = rb"(?:[%b]|[%b][\x01-\x7f])"
_ONE, _TWO = range(8, 128), range(128, 256)
_NUMBERS = re.compile(
    rb"(?:"
    + rb"|".join(
        _TAG
        % (
            b"".join(b"\\x%02x" % b for b in _ONE if b & 7 == kind),
            b"".join(b"\\x%02x" % b for b in _TWO if b & 7 == kind),
        )
        + value
        for kind, value in ((_VARINT, rb"[\x80-\xff]{0,9}[\x00-\x7f]"), (_FIXED32, rb".{4}"), (_FIXED64, rb".{8}"))
    )
    + rb")++",
    re.DOTALL,
)
_LIBRARY = re.compile(rb"\.(so|dll|dylib|pyd)(\.[0-9]+)*\Z", re.IGNORECASE)
_INLINE = (
    "A graph must hold all of its weights; write it again with "
    "`onnx.save_model(onnx.load('model.onnx'), 'whole.onnx', save_as_external_data=False)`"
)

# Bits of one element, and the field that holds elements which are not in raw_data (onnx.proto, TensorProto).
_T = onnx.TensorProto
_LAYOUT: Mapping[int, tuple[int, str]] = {
    _T.FLOAT: (32, "float_data"), _T.DOUBLE: (64, "double_data"), _T.INT64: (64, "int64_data"),
    _T.UINT64: (64, "uint64_data"), _T.UINT32: (32, "uint64_data"), _T.INT32: (32, "int32_data"),
    _T.INT16: (16, "int32_data"), _T.UINT16: (16, "int32_data"), _T.INT8: (8, "int32_data"),
    _T.UINT8: (8, "int32_data"), _T.BOOL: (8, "int32_data"), _T.FLOAT16: (16, "int32_data"),
    _T.BFLOAT16: (16, "int32_data"), _T.STRING: (0, "string_data"), _T.COMPLEX64: (64, "float_data"),
    _T.COMPLEX128: (128, "double_data"), _T.FLOAT8E4M3FN: (8, "int32_data"), _T.FLOAT8E4M3FNUZ: (8, "int32_data"),
    _T.FLOAT8E5M2: (8, "int32_data"), _T.FLOAT8E5M2FNUZ: (8, "int32_data"), _T.INT4: (4, "int32_data"),
    _T.UINT4: (4, "int32_data"),
}  # fmt: skip
_LAYOUT = dict(_LAYOUT) | {  # younger types, which an older onnx does not know
    getattr(_T, name): (bits, "int32_data")
    for name, bits in {"FLOAT4E2M1": 4, "FLOAT8E8M0": 8, "INT2": 2, "UINT2": 2}.items()
    if hasattr(_T, name)
}
_PARTS = {_T.COMPLEX64: 2, _T.COMPLEX128: 2}  # numbers of a typed field that make one element


@dataclass(frozen=True, slots=True)
class Audited:
    """What was counted. ``nodes`` has functions written out at every call."""

    nodes: int
    functions: int
    tensors: int
    producer: str
    opsets: Mapping[str, int]


def audit_onnx(graph: bytes, *, counted: bool = False) -> Audited:
    """Refuse a model that needs more than its own bytes, or that would exhaust who reads it.

    ``counted`` says that ``refuse_excess`` has let these bytes through already.

    Raises:
        InvalidInput: the bytes are no ONNX model.
        Refused: external data, an operator that ONNX Runtime does not bring, a limit, a size that is not there.
    """
    if not counted:
        refuse_excess(graph)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(graph)
    except DecodeError as exc:
        raise InvalidInput(
            f"These {len(graph)} bytes are no ONNX model: they are cut short or damaged, or nested deeper than any "
            "real graph. Give the bytes of a .onnx file."
        ) from exc
    if not model.graph.node:
        raise InvalidInput(f"These {len(graph)} bytes hold no graph with nodes. Give the bytes of a .onnx file.")
    walk = _Walk(model)
    walk.check()
    opsets = {item.domain: item.version for item in model.opset_import}
    producer = f"{model.producer_name} {model.producer_version}".strip()
    return Audited(walk.total, len(model.functions), walk.tensors, producer, opsets)


def refuse_excess(graph: bytes) -> None:
    """Count what the bytes hold before they are parsed: an entry of two bytes costs a parser a hundred, and us a step.

    Every message is walked in place, at any depth. Numbers are passed over in runs: they are cheap to hold.

    Raises:
        InvalidInput: the bytes are no ONNX model.
        Refused: too many nodes, parts of one kind, or parts at all; a name that is not UTF-8.
    """
    kinds, counts, entries = _kinds(), dict[_Part, int](), 0
    fields, end, at = kinds[onnx.ModelProto.DESCRIPTOR.full_name], len(graph), 0
    outer: list[tuple[dict[int, _Part], int]] = []
    while True:
        if at == end:
            if not outer:
                return
            fields, end = outer.pop()
            continue
        tag = graph[at]
        if tag < 0x80 and tag & 7 == _LENGTH:
            at, after = _value(graph, at + 1, end)
        elif numbers := _NUMBERS.match(graph, at, end):
            at = numbers.end()
            continue
        else:
            tag, at = varint(graph, at, end)
            at, after = _value(graph, at, end) if tag & 7 == _LENGTH else _odd_number(graph, at, end, tag & 7)
        if (entries := entries + 1) > MAX_ENTRIES:
            most = max(counts, key=counts.__getitem__)
            raise Refused(f"The file has more than {MAX_ENTRIES:,} parts; most are of {most.name}. {_SMALLER}")
        part = fields.get(tag >> 3, _UNKNOWN) if tag & 7 == _LENGTH else _UNKNOWN
        counts[part] = count = counts.get(part, 0) + 1
        if count > part.limit:
            raise _too_many() if part.inside == _NODE else _too_many_parts(part)
        if part.inside:
            outer.append((fields, end))
            fields, end = kinds[part.inside], after
            continue
        if part.is_text:
            _check_text(graph[at:after], part)
        at = after


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """A field of a message that has a length: another message, a text or bytes."""

    name: str
    inside: str
    is_text: bool
    limit: int


_UNKNOWN = _Part("a kind that ONNX does not know", "", False, _MAX_MESSAGES)


@cache
def _kinds() -> dict[str, dict[int, _Part]]:
    """Return the fields with a length of every message that a model can hold, by the names of the messages."""
    found: dict[str, dict[int, _Part]] = {}
    waiting = [onnx.ModelProto.DESCRIPTOR]
    while waiting:
        message = waiting.pop()
        if message.full_name in found:
            continue
        fields = found[message.full_name] = {}
        for field in message.fields:
            inside = field.message_type
            if inside is not None:
                waiting.append(inside)
                limit = MAX_NODES if inside.full_name == _NODE else _MAX_MESSAGES
                fields[field.number] = _Part(f"{message.name}.{field.name}", inside.full_name, False, limit)
            elif field.type in (field.TYPE_STRING, field.TYPE_BYTES):
                is_text = field.type == field.TYPE_STRING and field.name != "doc_string"  # nobody reads that
                fields[field.number] = _Part(f"{message.name}.{field.name}", "", is_text, _MAX_TEXTS)
    return found


def _value(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return where the value of a field with a length starts and stops."""
    if at < end and data[at] < 0x80:
        start, stop = at + 1, at + 1 + data[at]
    else:
        size, start = varint(data, at, end)
        stop = start + size
    if stop > end:
        raise InvalidInput(
            f"These bytes are no ONNX model, or one that is cut short: a part ends at byte {stop} of {end}."
        )
    return start, stop


def _odd_number(data: bytes, at: int, end: int, kind: int) -> tuple[int, int]:
    """Return where a number starts and stops behind a tag that is written longer than it must be."""
    if kind == _VARINT:
        return at, varint(data, at, end)[1]
    if kind not in (_FIXED32, _FIXED64):
        raise InvalidInput(f"These bytes are no ONNX model: byte {at - 1} does not begin a part of one.")
    stop = at + (4 if kind == _FIXED32 else 8)
    if stop > end:
        raise InvalidInput(
            f"These bytes are no ONNX model, or one that is cut short: a part ends at byte {stop} of {end}."
        )
    return at, stop


def _check_text(text: bytes, part: _Part) -> None:
    if text.isascii():
        return
    try:
        text.decode()
    except UnicodeDecodeError as exc:
        raise Refused(
            f"A text of the model is not UTF-8: {part.name} {text[:80]!r}. Export the model again, with other names."
        ) from exc


def _too_many_parts(part: _Part) -> Refused:
    return Refused(f"The file has more than {part.limit:,} entries of {part.name}. {_SMALLER}")


def element_bits(data_type: int) -> int:
    """Return the bits of one element of a tensor; 0 for texts and unknown types."""
    return _LAYOUT.get(data_type, (0, ""))[0]


def _too_many() -> Refused:
    return Refused(
        f"The graph has more than {MAX_NODES:,} nodes, functions written out. Export it without unrolled loops."
    )


class _Walk:
    """One look at every node, tensor and call of a model, by loops."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._local = {(function.domain, function.name): index for index, function in enumerate(model.functions)}
        self._seen = 0
        self.total = 0
        self.tensors = 0

    def check(self) -> None:
        functions = self._model.functions
        if len(functions) > _MAX_FUNCTIONS:
            raise Refused(f"The model has {len(functions):,} functions; {_MAX_FUNCTIONS:,} are allowed.")
        _refuse_twice(self._model.graph.input, "inputs")
        _refuse_twice(self._model.graph.output, "outputs")
        if len(self._local) != len(functions):
            raise Refused("The model has two functions of one name. Export it again.")
        main_nodes, main_calls = self._body(self._model.graph)
        bodies = [self._body(function) for function in functions]
        weights = self._weights(bodies)
        self.total = main_nodes + sum(count * weights[callee] for callee, count in main_calls.items())
        if self.total > MAX_NODES:
            raise _too_many()

    def _body(self, top: Any) -> tuple[int, dict[int, int]]:
        """Check a graph or function with all graphs inside; return its nodes, and how often it calls each function."""
        nodes, calls = 0, dict[int, int]()
        waiting: list[tuple[Any, int]] = [(top, 0)]
        while waiting:
            graph, depth = waiting.pop()
            if depth > MAX_DEPTH:
                raise Refused(f"The graph has graphs inside of graphs more than {MAX_DEPTH} deep.")
            if isinstance(graph, onnx.GraphProto):
                _refuse_twice(
                    chain(graph.initializer, (sparse.values for sparse in graph.sparse_initializer)), "initializers"
                )
                for tensor in graph.initializer:
                    self._check_tensor(tensor)
                for sparse in graph.sparse_initializer:
                    self._check_sparse(sparse)
            nodes += len(graph.node)
            self._seen += len(graph.node)
            if self._seen > MAX_NODES:
                raise _too_many()
            for node in graph.node:
                callee = self._local.get((node.domain, node.op_type))
                if callee is not None:
                    calls[callee] = calls.get(callee, 0) + 1
                else:
                    _check_operator(node)
                for attribute in node.attribute:
                    self._check_attribute(node, attribute)
                    if attribute.HasField("g"):
                        waiting.append((attribute.g, depth + 1))
                    waiting.extend((inner, depth + 1) for inner in attribute.graphs)
        return nodes, calls

    def _weights(self, bodies: list[tuple[int, dict[int, int]]]) -> list[int]:
        """Return the nodes of each function with its calls written out; refuse cycles, depth and bombs."""
        weights, depths = [-1] * len(bodies), [0] * len(bodies)
        for root in range(len(bodies)):
            path: list[int] = []
            on_path: set[int] = set()
            stack = [root]
            while stack:
                here = stack[-1]
                if weights[here] >= 0:
                    stack.pop()
                    continue
                if here not in on_path:
                    path.append(here)
                    on_path.add(here)
                    for callee in bodies[here][1]:
                        if callee in on_path:
                            raise Refused(
                                f"The function {self._model.functions[callee].name!r} of the model calls itself, "
                                "directly or through others. ONNX has no recursion; export it again."
                            )
                        if weights[callee] < 0:
                            stack.append(callee)
                    continue
                nodes, calls = bodies[here]
                depths[here] = 1 + max((depths[callee] for callee in calls), default=0)
                weights[here] = nodes + sum(count * weights[callee] for callee, count in calls.items())
                if depths[here] > MAX_DEPTH:
                    raise Refused(f"The model's functions call each other more than {MAX_DEPTH} deep.")
                if weights[here] > MAX_NODES:
                    raise _too_many()
                on_path.discard(path.pop())
                stack.pop()
        return weights

    def _check_attribute(self, node: Any, attribute: Any) -> None:
        if attribute.HasField("t"):
            self._check_tensor(attribute.t)
        for tensor in attribute.tensors:
            self._check_tensor(tensor)
        if attribute.HasField("sparse_tensor"):
            self._check_sparse(attribute.sparse_tensor)
        for sparse in attribute.sparse_tensors:
            self._check_sparse(sparse)
        for text in (attribute.s, *attribute.strings):
            if text and len(text) < 4096 and _LIBRARY.search(text):
                raise Refused(
                    f"Operator {node.op_type!r} of the graph names a shared library in its attribute "
                    f"{attribute.name!r}. A graph may not bring code; export it without."
                )

    def _check_sparse(self, sparse: Any) -> None:
        for tensor in (sparse.values, sparse.indices):
            if tensor.ByteSize():
                self._check_tensor(tensor)
        # The engine writes a sparse tensor out: what counts is its dense size.
        if math.prod(_sizes(sparse.dims, "A sparse tensor")) * 8 > _MAX_TENSOR_BYTES:
            raise Refused(f"A sparse tensor of the graph has the dense shape {list(sparse.dims)}: over 2 GiB.")

    def _check_tensor(self, tensor: Any) -> None:
        self.tensors += 1
        what = f"Tensor {tensor.name[:80]!r} of the graph"
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise Refused(f"{what} lies in another file. {_INLINE}.")
        if tensor.data_type not in _LAYOUT:
            raise Refused(f"{what} has the unknown element type {tensor.data_type}. Export the graph again.")
        bits, field = _LAYOUT[tensor.data_type]
        elements = math.prod(_sizes(tensor.dims, what))
        held = getattr(tensor, field)
        if bits and tensor.raw_data:
            fits = len(tensor.raw_data) * 8 in range(elements * bits, elements * bits + 8)
        elif 0 < bits < 8:  # a number of the typed field holds one byte of them
            fits = len(held) == -(-elements * bits // 8)
        else:
            fits = len(held) == elements * _PARTS.get(tensor.data_type, 1)
        if not fits:
            raise Refused(
                f"{what} says that it has the shape {list(tensor.dims)}, and holds "
                f"{f'{len(tensor.raw_data):,} bytes' if tensor.raw_data else f'{len(held):,} elements'}. "
                "The file is damaged or was made to exhaust its reader."
            )


def _sizes(dims: Any, what: str) -> list[int]:
    if len(dims) > _MAX_RANK:
        raise Refused(f"{what} has {len(dims):,} dimensions; {_MAX_RANK} are allowed.")
    if any(dim < 0 for dim in dims):
        raise Refused(f"{what} has the shape {list(dims)}: sizes are 0 or more.")
    return list(dims)


def _refuse_twice(items: Any, what: str) -> None:
    seen = set[str]()
    for item in items:
        if item.name in seen:
            raise Refused(f"The graph has two {what} called {item.name[:80]!a}. Export it with a name for each.")
        seen.add(item.name)


def _check_operator(node: Any) -> None:
    if node.op_type == "EPContext":
        raise Refused(
            "Operator 'EPContext' of the graph loads a compiled file of another machine's engine. "
            "Give the model that it was compiled from."
        )
    if node.domain not in DOMAINS:
        raise Refused(
            f"Operator {node.op_type[:80]!r} of the graph is from the domain {node.domain[:80]!r}. Allowed are "
            f"{', '.join(sorted(DOMAINS - {''}))} and functions in the file. Export the model without it."
        )
