"""Graphs whose activations pass through pairs of QuantizeLinear and DequantizeLinear: find the pairs, take some away.

A tensor is left in float by taking its pair away. A layer that then sees floats gets its own float weights back: a
product of floats with int8 weights would widen the weights at each call.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["Pair", "float_where_int8_misleads", "pairs_of", "without_pairs"]

_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceL1", "ReduceProd")
_MASK_STEP = 9_999 / 255  # a step of int8 in a tensor that reaches minus ten thousand
_CHEAP = frozenset(
    {"Mul", "Div", "Add", "Sub", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Cast"}
    | {"Sqrt", "Relu", "Tanh", "LpNormalization", "Concat"}
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor that is quantized and widened again.

    Attributes:
        tensor: what is quantized.
        widened: what the consumers see.
        scale, zero_point: names of the two tensors that say how.
        consumers: names of the nodes that take ``widened``.
    """

    tensor: str
    widened: str
    scale: str
    zero_point: str
    consumers: tuple[str, ...]


def pairs_of(model: onnx.ModelProto) -> list[Pair]:
    """Return the pairs around activations, in the order of the graph."""
    weights = {tensor.name for tensor in model.graph.initializer}
    narrowed = {node.output[0]: node for node in model.graph.node if node.op_type == "QuantizeLinear"}
    takers: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            takers.setdefault(name, []).append(node.name)
    return [
        Pair(*_ends(narrow, node), tuple(takers.get(node.output[0], ())))
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        and (narrow := narrowed.get(node.input[0])) is not None
        and narrow.input[0] not in weights
    ]


def _ends(narrow: onnx.NodeProto, widen: onnx.NodeProto) -> tuple[str, str, str, str]:
    zero_point = narrow.input[2] if len(narrow.input) > 2 else ""
    return narrow.input[0], widen.output[0], narrow.input[1], zero_point


def without_pairs(
    model: onnx.ModelProto, edges: Collection[tuple[str, str]], *, reference: onnx.ModelProto | None
) -> onnx.ModelProto:
    """Return a copy in which each of ``edges``, (widened tensor, name of a consumer), carries floats.

    ``reference`` is the model before it was quantized: layers that see floats only get its weights again. None leaves
    int8 weights where they are, for a quantizer that has changed what the weights mean.
    """
    import onnx

    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensor_of = {pair.widened: pair.tensor for pair in pairs_of(changed)}
    touched = set()
    for node in changed.graph.node:
        for index, name in enumerate(node.input):
            if (name, node.name) in edges:
                node.input[index] = tensor_of[name]
                touched.add(node.name)
    if reference is not None:
        _restore_weights(changed, touched, reference)
    _drop_unused(changed)
    return changed


def _restore_weights(model: onnx.ModelProto, touched: Collection[str], reference: onnx.ModelProto) -> None:
    makers = {output: node for node in model.graph.node for output in node.output}
    activations = {pair.widened for pair in pairs_of(model)}
    before = {node.name: node for node in reference.graph.node}
    floats = {tensor.name: tensor for tensor in reference.graph.initializer}
    held = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        old = before.get(node.name)
        if node.name not in touched or old is None or any(name in activations for name in node.input):
            continue
        for index, name in enumerate(node.input):
            maker = makers.get(name)
            is_weight = maker is not None and maker.op_type == "DequantizeLinear"
            if is_weight and index < len(old.input) and old.input[index] in floats:
                restored = f"{old.input[index]}/float"  # a widened bias has the name that the bias had
                node.input[index] = restored
                if restored not in held:
                    held.add(restored)
                    tensor = model.graph.initializer.add()
                    tensor.CopyFrom(floats[old.input[index]])
                    tensor.name = restored


def _drop_unused(model: onnx.ModelProto) -> None:
    from lightship.optimize.onnx_model import taken_by

    while True:
        needed = {output.name for output in model.graph.output}
        needed.update(name for node in model.graph.node for name in taken_by(node))
        dead = [node for node in model.graph.node if not any(name in needed for name in node.output if name)]
        if not dead:
            break
        for node in dead:
            model.graph.node.remove(node)
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in needed]:
        model.graph.initializer.remove(tensor)


def float_where_int8_misleads(model: onnx.ModelProto, *, reference: onnx.ModelProto | None) -> onnx.ModelProto:
    """Return the model without the pairs of masks and round reductions. ``reference``: see above.

    A mask of minus ten thousand and more is no signal of 256 steps; and OpenVINO adds its zero point back after the sum
    with the scores, in float32, where nothing is left of them. What follows a pooled tensor is small, so int8 gains
    nothing there; and OpenVINO 2026.4 gives other answers from a reduction of integers than from one of floats, for all
    rows but the first few of a batch.
    """
    operators = {node.name: node.op_type for node in model.graph.node}
    edges = {
        (pair.widened, consumer) for pair in (*_after_reductions(model), *_masks(model)) for consumer in pair.consumers
    }
    edges |= {
        (pair.widened, consumer)
        for pair in pairs_of(model)
        for consumer in pair.consumers
        if operators.get(consumer) in _REDUCTIONS
    }
    return without_pairs(model, edges, reference=reference) if edges else model


def _masks(model: onnx.ModelProto) -> Iterator[Pair]:
    from onnx import numpy_helper

    scales = {tensor.name: tensor for tensor in model.graph.initializer}
    for pair in pairs_of(model):
        if pair.scale in scales and numpy_helper.to_array(scales[pair.scale]).max() >= _MASK_STEP:
            yield pair


def _after_reductions(model: onnx.ModelProto) -> Iterator[Pair]:
    """Yield the pairs of tensors that are made of nothing but reduced ones; a normalization's result is not."""
    pairs = {pair.widened: pair for pair in pairs_of(model)}
    weights = {tensor.name for tensor in model.graph.initializer}
    reduced: set[str] = set()
    for node in model.graph.node:  # in order, so what a node takes is known
        taken = [name for name in node.input if name and name not in weights]
        if node.op_type in _REDUCTIONS or (
            node.op_type in _CHEAP and taken and all(name in reduced or name in weights for name in taken)
        ):
            reduced.update(node.output)
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] in (reduced | weights):
            (reduced if node.input[0] in reduced else weights).update(node.output)
            if node.output[0] in pairs and node.input[0] in reduced:
                yield pairs[node.output[0]]
