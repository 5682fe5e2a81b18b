"""One door to ONNX Runtime's quantizers: graphs as bytes in and out, in memory, with ranges of our own calibration.

Weights keep 7 bits where the CPU has no VNNI: its 8-bit products are summed in pairs into 16 bits, which overflows
without a word (two neighbors of 255 x 127 are enough).
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightship.optimize.calibration import Method, Range, activation_ranges, first_rows
from lightship.optimize.cleanup import clean_up
from lightship.optimize.isolation import undisturbed
from lightship.optimize.onnx_model import PRODUCTS, name_nodes, own_weights, ready_to_quantize, serialize, sort_nodes
from lightship.optimize.qdq import float_where_int8_misleads
from lightship.optimize.variant_pass import PassFailed

if TYPE_CHECKING:
    import onnx

__all__ = ["dynamic_of", "quantize", "quantize_dynamic", "quantize_static", "quantized_with", "saturates"]

_MOST_ROWS: Mapping[Method, int] = {"min-max": 256, "percentile": 64, "entropy": 64}


def quantize(
    graph: bytes, run: Callable[[onnx.ModelProto], onnx.ModelProto], *, name: str, cleaned: bool = True
) -> bytes:
    """Return the graph that ``run`` makes of ``graph``, with everything that a quantizer disturbs put back.

    Args:
        graph: ONNX bytes.
        run: calls a quantizer; may change the model that it gets.
        name: the pass, for the error message.
        cleaned: fold and fuse first where that can be done, so that layers are quantized as they will run: a batch
            normalization that is folded later would spoil the scales of its convolution.

    Raises:
        PassFailed: the quantizer raised, gave a graph that is not valid, or changed nothing.
    """
    model = ready_to_quantize(graph, name=name)
    if cleaned:
        model = _cleaned(model, name)
    own_weights(model)
    before = model.SerializeToString(deterministic=True)
    try:
        with undisturbed():
            quantized = run(model)
    except PassFailed:
        raise
    except Exception as exc:  # whatever a quantizer raises, this variant cannot be made
        raise PassFailed(f"{name} cannot treat this graph: {type(exc).__name__}: {exc}") from exc
    if quantized.SerializeToString(deterministic=True) == before:
        raise PassFailed(f"{name} found nothing in this graph that it could treat.")
    return serialize(quantized, name=name)


def _cleaned(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    try:
        cleaned = clean_up(model, name=name)
    except PassFailed:
        return model  # the quantizer may well treat it as it is, and says so if not
    name_nodes(cleaned)
    return cleaned


def quantize_dynamic(graph: bytes, *, per_channel: bool, name: str) -> bytes:
    """Return the graph with int8 weights and activations that are quantized while it runs.

    Raises:
        PassFailed: see ``quantize``.
    """
    return quantize(graph, lambda model: dynamic_of(model, per_channel=per_channel), name=name)


def dynamic_of(model: onnx.ModelProto, *, per_channel: bool, in_float: Collection[str] = ()) -> onnx.ModelProto:
    """Return the model with int8 weights and activations that are quantized while it runs.

    Args:
        model: is left as it is.
        per_channel: one scale for each output channel of a weight, not one for all of it.
        in_float: names of the nodes that stay as they are.
    """
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
    from onnxruntime.quantization.quant_utils import QuantizationMode
    from onnxruntime.quantization.registry import IntegerOpsRegistry

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    in_float = [*in_float, *(_stacked(model) if per_channel else ())]
    quantizer = ONNXQuantizer(
        _with_shapes(copied),
        per_channel,
        # With one scale for a whole product few weights are large enough to overflow, and the bit is needed: on a
        # sentence model without VNNI a cosine of .963 with it, .882 without. The small weights of cells are not.
        saturates() and (per_channel or any(node.op_type == "LSTM" for node in model.graph.node)),
        QuantizationMode.IntegerOps,
        False,  # not static
        QuantType.QInt8,
        QuantType.QUInt8,
        None,
        [],
        [*in_float, *(f"{name}_MatMul" for name in in_float)],  # as the quantizer calls a Gemm that it takes apart
        sorted(IntegerOpsRegistry),
        # Where no shape is known, as in graphs that were fused before, the quantizer would give up.
        {"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    quantizer.quantize_model()
    return _model_of(quantizer)


def quantize_static(
    graph: bytes,
    calibration: Sequence[Mapping[str, np.ndarray]],
    *,
    method: Method,
    name: str,
    products_only: bool = False,
) -> bytes:
    """Return the graph in QDQ form: uint8 activations in ranges seen on the rows, int8 weights per channel.

    See ``quantized_with`` for ``products_only``.

    Raises:
        PassFailed: there are no rows; see ``quantize``.
    """
    if not calibration:
        raise PassFailed(f"{name} needs calibration rows and got none. Give training data.")

    def run(model: onnx.ModelProto) -> onnx.ModelProto:
        ranges = activation_ranges(model, first_rows(calibration, _MOST_ROWS[method]), method=method)
        made = float_where_int8_misleads(quantized_with(model, ranges, products_only=products_only), reference=model)
        return made if any(node.op_type == "QuantizeLinear" for node in made.graph.node) else model

    return quantize(graph, run, name=name)


def quantized_with(
    model: onnx.ModelProto, ranges: Mapping[str, Range], *, products_only: bool = False
) -> onnx.ModelProto:
    """Return the model in QDQ form with these ranges of its activations.

    Args:
        model: is left as it is.
        ranges: by the name of the tensor.
        products_only: what lies between products stays in float, and so do the results of matrix products, which the
            engine can give in float; a convolution's it cannot.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    seen = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    shaped = _with_shapes(copied)
    _add_types(shaped, ranges)
    quantizer = QDQQuantizer(
        shaped,
        True,  # weights per channel
        saturates(),
        QuantType.QInt8,
        QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, seen),
        [],
        [*_stacked(model), *(_without_weights(model) if products_only else ())],
        sorted(PRODUCTS if products_only else {*QLinearOpsRegistry, *QDQRegistry}),
        {
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"] if products_only else [],
            "DefaultTensorType": onnx.TensorProto.FLOAT,
            # Else a ReLU before a range that starts at zero goes, and who sees the tensor without the range is wrong:
            # a graph inside, or a layer that is left in float later. The engines fuse it anyway.
            "QDQKeepRemovableActivations": True,
        },
    )
    quantizer.quantize_model()
    return _model_of(quantizer)


def _without_weights(model: onnx.ModelProto) -> list[str]:
    """Return the products of two activations: attention, small beside the others and hurt most."""
    tensors = {tensor.name for tensor in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type in PRODUCTS and not tensors.intersection(node.input)]


def _stacked(model: onnx.ModelProto) -> list[str]:
    """Return the products with a stack of weights: the engine runs none of these with a scale for each channel."""
    stacks = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 2}
    return [node.name for node in model.graph.node if node.op_type == "MatMul" and stacks.intersection(node.input)]


def saturates() -> bool:
    """Return whether this machine's 8-bit products overflow unless weights have 7 bits."""
    from lightship.engine.machine import has_vnni

    return "x86" in platform.machine() and not has_vnni()


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, ValueError):
        return model  # the quantizers need few of them, and say which


def _add_types(model: onnx.ModelProto, floats: Iterable[str]) -> None:
    """Note that these tensors are floats where it is not: behind an engine's own operators nothing is inferred."""
    from onnx import TensorProto, helper

    graph = model.graph
    known = {each.name for each in (*graph.value_info, *graph.input, *graph.output)}
    for name in floats:
        if name not in known:
            graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def _model_of(quantizer: Any) -> onnx.ModelProto:
    """Return the quantizer's result with its weights in the order of their names: it keeps some in sets."""
    model: onnx.ModelProto = quantizer.model.model
    tensors = sorted(model.graph.initializer, key=lambda tensor: str(tensor.name))
    copies = [type(tensor).FromString(tensor.SerializeToString()) for tensor in tensors]
    del model.graph.initializer[:]
    model.graph.initializer.extend(copies)
    sort_nodes(model)
    return model
