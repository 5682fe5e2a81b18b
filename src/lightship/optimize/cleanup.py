"""The same graph with fewer operators: constants folded, batch normalization in its convolution, patterns fused.

By ONNX Runtime's basic level, which writes only standard operators; what came out in another form is not taken.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lightship.optimize.isolation import undisturbed
from lightship.optimize.onnx_model import graphs_inside, sort_nodes
from lightship.optimize.variant_pass import PassFailed

if TYPE_CHECKING:
    import onnx

__all__ = ["clean_up"]


def clean_up(model: onnx.ModelProto, *, name: str) -> onnx.ModelProto:
    """Return the cleaned model, with the interface of ``model``, which is left as it is.

    Raises:
        PassFailed: the engine cannot read it, or would write operators of its own. ``name`` is the pass.
    """
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]  # what exporters note there may contradict what the engine infers
    try:
        with undisturbed():
            cleaned = onnx.load_from_string(_rewritten(bare))
    except Exception as exc:  # the engine's errors have no common base
        raise PassFailed(f"{name} cannot treat this graph: {type(exc).__name__}: {exc}") from exc
    own = _domains(cleaned) - _domains(model)
    if own:
        raise PassFailed(
            f"{name} cannot treat this graph: the result would need operators of {', '.join(sorted(own))}."
        )
    _interface_of(model, cleaned)
    _standard_opsets(model, cleaned)
    tensors = sorted(cleaned.graph.initializer, key=lambda tensor: str(tensor.name))
    copies = [type(tensor).FromString(tensor.SerializeToString()) for tensor in tensors]
    del cleaned.graph.initializer[:]
    cleaned.graph.initializer.extend(copies)
    sort_nodes(cleaned)
    return cleaned


def _rewritten(model: onnx.ModelProto) -> bytes:
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "cleaned.onnx")
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        ort.InferenceSession(model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"])
        return (Path(folder) / "cleaned.onnx").read_bytes()


def _domains(model: onnx.ModelProto) -> set[str]:
    return {node.domain for graph in graphs_inside(model.graph) for node in graph.node} - {"", "ai.onnx"}


def _interface_of(model: onnx.ModelProto, cleaned: onnx.ModelProto) -> None:
    """Give the cleaned graph the inputs and outputs as they were declared; the engine adds what it inferred."""
    for side in ("input", "output"):
        declared, found = getattr(model.graph, side), getattr(cleaned.graph, side)
        copies = [type(each).FromString(each.SerializeToString()) for each in declared]
        del found[:]
        found.extend(copies)
    weights = {tensor.name for tensor in model.graph.initializer}
    kept = [each for each in cleaned.graph.input if each.name not in weights]
    copies = [type(each).FromString(each.SerializeToString()) for each in kept]
    del cleaned.graph.input[:]
    cleaned.graph.input.extend(copies)


def _standard_opsets(model: onnx.ModelProto, cleaned: onnx.ModelProto) -> None:
    """Keep the operator sets that are used; the engine lists all that it knows."""
    used = _domains(cleaned) | {"", "ai.onnx"} | {function.domain for function in cleaned.functions}
    kept = [(item.domain, item.version) for item in cleaned.opset_import if item.domain in used]
    del cleaned.opset_import[:]
    for domain, version in kept:
        item = cleaned.opset_import.add()
        item.domain, item.version = domain, version
    cleaned.ir_version = max(model.ir_version, cleaned.ir_version)
    del cleaned.metadata_props[:]
    for entry in model.metadata_props:
        added = cleaned.metadata_props.add()
        added.key, added.value = entry.key, entry.value
