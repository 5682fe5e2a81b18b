"""One door to NNCF, OpenVINO's quantizer: in memory, silent, never on the network, the same bytes each time.

NNCF reads and writes ONNX here, so one graph serves every engine. Its import takes seconds and reports to its makers;
both are kept out: it is imported when asked for, through the door that OpenVINO has (``engine/openvino_library.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lightship.engine import openvino_library
from lightship.errors import MissingExtra
from lightship.optimize.onnx_model import graphs_inside
from lightship.optimize.variant_pass import PassFailed

if TYPE_CHECKING:
    import onnx

__all__ = ["flat_scales", "is_transformer", "load_nncf"]


def load_nncf(*, name: str) -> Any:
    """Return the module ``nncf``. Call it inside of ``undisturbed``: its import changes the class of loggers.

    Raises:
        PassFailed: it is not installed. ``name`` is the pass that asks.
    """
    try:
        return openvino_library.load_nncf(needed_for=name)
    except MissingExtra as exc:
        raise PassFailed(str(exc)) from exc


def is_transformer(model: onnx.ModelProto) -> bool:
    """Return whether the graph has attention: a softmax whose result is multiplied with something computed."""
    weights = {tensor.name for tensor in model.graph.initializer}
    takers: dict[str, list[onnx.NodeProto]] = {}
    for graph in graphs_inside(model.graph):
        for node in graph.node:
            for name in node.input:
                takers.setdefault(name, []).append(node)
    for node in model.graph.node:
        if node.op_type in ("Attention", "MultiHeadAttention", "GroupQueryAttention"):
            return True
        if node.op_type == "Softmax" and _reaches_product(node.output[0], takers, weights):
            return True
    return False


def _reaches_product(name: str, takers: dict[str, list[onnx.NodeProto]], weights: set[str]) -> bool:
    through = {"Dropout", "Cast", "Where", "Reshape", "Identity", "Mul", "Transpose", "Squeeze", "Unsqueeze"}
    waiting, seen = [name], {name}
    while waiting:
        for node in takers.get(waiting.pop(), ()):
            if node.op_type in ("MatMul", "Einsum") and not any(each in weights for each in node.input):
                return True
            if node.op_type in through and node.output[0] not in seen:
                seen.add(node.output[0])
                waiting.append(node.output[0])
    return False


def flat_scales(model: onnx.ModelProto) -> None:
    """Write scales as the engines read them: one value per channel as a vector with an axis, one type for zero points.

    NNCF gives the scales of a convolution the rank of its weight, (64, 1, 1, 1), and in new operator sets a type of
    the result beside a zero point of another.
    """
    from onnx import helper, numpy_helper

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("DequantizeLinear", "QuantizeLinear") or len(node.input) < 2:
            continue
        if any(each.name == "block_size" and each.i for each in node.attribute):
            continue
        if len(node.input) > 2:  # the zero point says which type the result has
            kept = [each for each in node.attribute if each.name != "output_dtype"]
            del node.attribute[:]
            node.attribute.extend(kept)
        axis = None
        for name in node.input[1:]:
            tensor = tensors.get(name)
            if tensor is None or len(tensor.dims) < 2:
                continue
            long = [index for index, size in enumerate(tensor.dims) if size != 1]
            if len(long) > 1:
                break
            axis = long[0] if long else 0
            tensor.CopyFrom(numpy_helper.from_array(np.reshape(numpy_helper.to_array(tensor), -1), name))
        if axis is not None:
            kept = [each for each in node.attribute if each.name != "axis"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("axis", axis)])
