"""A graph between bytes and passes: read, made ready for a quantizer, looked through, written.

What quantizers stumble over is taken away here once: shapes noted by the exporter, nodes without a name, weights that
are nodes, operator sets from before per-channel scales. What none of them can treat is declined with its reason.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import numpy as np

from lightship.errors import LightshipError
from lightship.optimize.variant_pass import PassFailed

if TYPE_CHECKING:
    import onnx

__all__ = [
    "PRODUCTS",
    "graphs_inside",
    "name_nodes",
    "own_weights",
    "parse",
    "ready_to_quantize",
    "serialize",
    "sort_nodes",
    "taken_by",
    "weights",
]

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
"""Operators that spend a graph's time, and that engines have fast in int8."""
_BIAS = 2  # the input of a product that is added to its columns
_OTHER = "other"  # a use of a weight that is no product
LEAST_OPSET = 13
"""The first operator set whose scales may be one per channel."""
_MOST_BYTES = (1 << 31) - 1
_WEIGHTED = {"MatMul": (0, 1), "Gemm": (0, 1), "Conv": (1,), "ConvTranspose": (1,), "Gather": (0,), "LSTM": (1, 2)}
_WEIGHTED |= {"GRU": (1, 2), "RNN": (1, 2), "Attention": (1,), "EmbedLayerNormalization": (2, 3, 4)}
_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"})
_QUANTIZED |= {"MatMulNBits", "GatherBlockQuantized", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul"}


def parse(graph: bytes, *, name: str) -> onnx.ModelProto:
    """Return the model in these bytes. ``name`` is the pass, for the message.

    Raises:
        PassFailed: the bytes are no ONNX model, are too many for one message, or name other files.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if len(graph) > _MOST_BYTES:
        raise PassFailed(
            f"{name} cannot treat this graph: it has {len(graph):,} bytes, and an ONNX message has at most "
            f"{_MOST_BYTES:,}. Export the model in parts, or with 16-bit weights."
        )
    try:
        model = onnx.load_from_string(graph)
    except DecodeError as exc:
        raise PassFailed(f"{name} cannot treat this graph: its bytes are no ONNX model.") from exc
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise PassFailed(f"{name} cannot treat this graph: its weight {tensor.name!r} lies in another file.")
    return model


def serialize(model: onnx.ModelProto, *, name: str) -> bytes:
    """Return the bytes of what a pass made: valid, without traces of where it was made, the same each time.

    Raises:
        PassFailed: it is not valid ONNX, or needs more than its own bytes.
    """
    import onnx

    from lightship.engine.onnx_audit import audit_onnx

    del model.graph.value_info[:]
    model.producer_name, model.producer_version, model.doc_string = "lightship", "", ""
    try:
        data: bytes = model.SerializeToString(deterministic=True)
        onnx.checker.check_model(data)
        audit_onnx(data)
    except (onnx.checker.ValidationError, ValueError, LightshipError) as exc:  # ValueError: over two GiB
        raise PassFailed(f"{name} made no valid graph of this one: {exc}") from exc
    return data


def ready_to_quantize(graph: bytes, *, name: str) -> onnx.ModelProto:
    """Return the model with all that quantizers need.

    Raises:
        PassFailed: there is nothing to quantize, or it is quantized already, or in half precision.
    """
    import onnx

    model = parse(graph, name=name)
    operators = {node.op_type for inner in graphs_inside(model.graph) for node in inner.node}
    already = sorted(kind for kind in operators if kind in _QUANTIZED or kind.startswith("QLinear"))
    if already:
        raise PassFailed(
            f"{name} leaves this graph as it is: it is quantized already ({', '.join(already)}). "
            "Give the model as it was before."
        )
    _lift_constants(model)
    name_nodes(model)
    del model.graph.value_info[:]  # what exporters note there contradicts what the quantizers infer again
    types = {tensor.data_type for _, _, tensor in weights(model)}
    if onnx.TensorProto.FLOAT not in types:
        raise PassFailed(f"{name} leaves this graph as it is: {_why_none(types)}")
    return _with_opset(model, name)


def _why_none(types: set[int]) -> str:
    import onnx

    if not types:
        return "no product, convolution or table in it has weights, so there is nothing to store in fewer bits."
    words = ", ".join(sorted(onnx.TensorProto.DataType.Name(each).lower() for each in types))
    return f"its weights are {words}, and only float (32 bits) is quantized. Export the model in float."


def weights(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, int, onnx.TensorProto]]:
    """Yield (node, index of its input, tensor) for each weight of a product, convolution, table or cell."""
    for graph in graphs_inside(model.graph):
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        tensors |= {tensor.name: tensor for tensor in model.graph.initializer if tensor.name not in tensors}
        for node in graph.node:
            for index in _WEIGHTED.get(node.op_type, ()):
                if index < len(node.input) and (tensor := tensors.get(node.input[index])) is not None and tensor.dims:
                    yield node, index, tensor


def graphs_inside(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield the graph and the graphs inside of it (If, Loop, Scan), by a loop."""
    waiting = [graph]
    while waiting:
        here = waiting.pop()
        yield here
        for node in here.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    waiting.append(attribute.g)
                waiting.extend(attribute.graphs)


def sort_nodes(model: onnx.ModelProto) -> None:
    """Put each node behind the nodes whose results it takes, and change nothing else of their order."""
    makers = {output: index for index, node in enumerate(model.graph.node) for output in node.output if output}
    needs = [sorted({makers[name] for name in taken_by(node) if name in makers}) for node in model.graph.node]
    order: list[int] = []
    done: set[int] = set()
    for root in range(len(needs)):
        waiting = [root]
        while waiting:
            here = waiting[-1]
            missing = [each for each in needs[here] if each not in done]
            if here in done or not missing:
                waiting.pop()
                if here not in done:
                    done.add(here)
                    order.append(here)
            elif len(waiting) > len(needs):
                return  # a cycle: the checker says so
            else:
                waiting.extend(reversed(missing))
    copies = [_copy(model.graph.node[index]) for index in order]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def taken_by(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node takes from its graph, also from inside of its own graphs."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
            for inner in graphs_inside(graph):
                for each in inner.node:
                    yield from each.input
                yield from (output.name for output in inner.output)


def _lift_constants(model: onnx.ModelProto) -> None:
    """Make weights of nodes that are nothing but a tensor: quantizers look for weights only there."""
    kept = []
    for node in model.graph.node:
        value = next((each.t for each in node.attribute if each.name == "value"), None)
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and value is not None:
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
        else:
            kept.append(node)
    if len(kept) < len(model.graph.node):
        copies = [_copy(node) for node in kept]
        del model.graph.node[:]
        model.graph.node.extend(copies)
    outputs = {output.name for output in model.graph.output}
    for tensor in [each for each in model.graph.initializer if each.name in outputs]:
        _give_through(model, tensor)


def _give_through(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    """A weight that is an output of the graph as well: quantizers rename it, so the output becomes a copy."""
    from onnx import helper

    output, tensor.name = tensor.name, f"{tensor.name}/value"
    for node in model.graph.node:
        node.input[:] = [tensor.name if each == output else each for each in node.input]
    model.graph.node.append(helper.make_node("Identity", [tensor.name], [output]))


def _copy(message: Any) -> Any:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied


def name_nodes(model: onnx.ModelProto) -> None:
    """Give each node a name of its own, from what it makes: layers are excluded and reported by name."""
    taken = {"": 1}
    for node in model.graph.node:
        name = node.name or next((output for output in node.output if output), node.op_type)
        taken[name] = taken.get(name, 0) + 1
        node.name = name if taken[name] == 1 else f"{name}#{taken[name]}"


def own_weights(model: onnx.ModelProto) -> None:
    """Give each product weights and a bias as quantizers take them: its own, and of a bias one number a column.

    ONNX Runtime's quantizers call copies of a shared bias by names that may be taken, turn a weight that two products
    hold in two ways in place, and forget the factor of a Gemm's bias.
    """
    names = _Names(model)
    _unshare(model, names)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Gemm" and len(node.input) > 2 and node.input[1] in tensors:
            bias = tensors.get(node.input[2])
            columns = tensors[node.input[1]].dims[0 if _is_set(node, "transB") else 1]
            if bias is not None:
                _flatten(model, node, bias, columns, names)
    sort_nodes(model)


def _flatten(model: onnx.ModelProto, node: onnx.NodeProto, bias: onnx.TensorProto, columns: int, names: _Names) -> None:
    """Write a Gemm's bias, which is its own, as one number a column: others broadcast to that, or are an addition."""
    from onnx import helper, numpy_helper

    values = numpy_helper.to_array(bias)
    for factor in [each for each in node.attribute if each.name == "beta"]:
        values = np.asarray(values * np.asarray(factor.f, values.dtype))
        node.attribute.remove(factor)
    if values.shape[:-1] in ((), (1,)):
        flat = np.ascontiguousarray(np.broadcast_to(values.reshape(-1), columns))
        bias.CopyFrom(numpy_helper.from_array(flat, bias.name))
        return
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))  # one a row
    added = helper.make_node("Add", [names.free(f"{node.output[0]}/product"), bias.name], [node.output[0]])
    added.name = f"{node.name}/add"
    node.output[0] = added.input[0]
    del node.input[2]
    model.graph.node.append(added)


def _unshare(model: onnx.ModelProto, names: _Names) -> None:
    """Copy biases that are used twice, and weights that are used in two ways: by products and tables, or turned."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    uses: dict[str, list[Hashable]] = {}
    for depth, graph in enumerate(graphs_inside(model.graph)):  # the first is the outermost, and the one that changes
        for node in graph.node:
            for index, name in enumerate(node.input):
                if name in tensors:
                    uses.setdefault(name, []).append(_way(node, index) if not depth else _OTHER)
    kept = {name: _OTHER if _OTHER in ways else ways[0] for name, ways in uses.items()}
    copies: dict[tuple[str, Hashable], str] = {}
    for node in model.graph.node:
        if node.op_type not in PRODUCTS:
            continue
        for index, name in enumerate(node.input):
            way = _way(node, index)
            if name not in tensors or kept[name] == way:
                continue
            if (name, way) not in copies:
                copies[name, way] = names.free(f"{node.name}/{'bias' if index == _BIAS else 'weight'}")
                own = model.graph.initializer.add()
                own.CopyFrom(tensors[name])
                own.name = copies[name, way]
            node.input[index] = copies[name, way]


def _way(node: onnx.NodeProto, index: int) -> Hashable:
    """Return how a node uses a weight: products that use one in the same way may share it, biases are never shared."""
    if node.op_type not in PRODUCTS:
        return _OTHER
    if index == _BIAS:
        return node.name
    return node.op_type, index, _is_set(node, "transA"), _is_set(node, "transB")


class _Names:
    """The names of all tensors of a model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._taken = {
            name
            for graph in graphs_inside(model.graph)
            for name in (
                *(each.name for each in (*graph.initializer, *graph.input)),
                *(output for node in graph.node for output in node.output),
            )
        }

    def free(self, name: str) -> str:
        """Return the name, or with a number the first that nobody has; it is taken from now on."""
        chosen = next(
            each for each in chain([name], (f"{name}#{number}" for number in count(2))) if each not in self._taken
        )
        self._taken.add(chosen)
        return chosen


def _is_set(node: onnx.NodeProto, name: str) -> bool:
    return any(attribute.name == name and attribute.i for attribute in node.attribute)


def _with_opset(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    import onnx

    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
    if opset >= LEAST_OPSET:
        return model
    try:
        converted = onnx.version_converter.convert_version(model, LEAST_OPSET)
    except Exception as exc:  # the converter raises what its C++ part throws
        raise PassFailed(
            f"{name} cannot treat this graph: its operator set is {opset}, scales per channel need {LEAST_OPSET}, and "
            f"it cannot be converted ({type(exc).__name__}: {exc}). Export the model with a newer operator set."
        ) from exc
    converted.ir_version = max(converted.ir_version, 7)  # what came with operator set 12 and 13
    del converted.graph.value_info[:]
    name_nodes(converted)
    return converted
