"""ONNX Runtime as an engine: CPU only, quiet, deterministic, and from bytes that stand alone.

The graph is looked through before the engine sees it: a file may name other files (external data) or operators from
shared libraries, and the engine would go and fetch them. Import this module late: it loads onnx and onnxruntime.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from threading import Timer
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # the stubs are one more dependency
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from lightship.engine.runner import EngineOptions, check_inputs, check_outputs
from lightship.errors import InvalidInput, LightshipError, Refused
from lightship.types import Dim, Interface, TensorSpec

__all__ = ["OnnxRuntimeEngine"]

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operator sets that ONNX Runtime itself brings; ``com.microsoft`` holds the quantized operators."""

_DTYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_FATAL_ONLY = 4  # failures come as exceptions; the engine's own lines on stderr would only show its insides
# The engine's errors have no common base but Exception, so they are listed.
_ENGINE_ERRORS: tuple[type[Exception], ...] = (
    *(item for item in vars(_state).values() if isinstance(item, type) and issubclass(item, Exception)),
    RuntimeError,
    ValueError,
)


class OnnxRuntimeEngine:
    """A graph in ONNX Runtime.

    Args:
        graph: an ONNX model without external data.
        options: threads, optimization level, spinning, limit of a run.

    Raises:
        InvalidInput: the bytes are no ONNX model, or one that ONNX Runtime cannot run.
        Refused: the model names external files or operators of unknown domains.
    """

    def __init__(self, graph: bytes, *, options: EngineOptions) -> None:
        refuse_reaching_out(graph)
        try:
            self._session: Any = ort.InferenceSession(
                graph, sess_options=_session_options(options), providers=["CPUExecutionProvider"]
            )
        except _ENGINE_ERRORS as exc:
            raise InvalidInput(
                "ONNX Runtime cannot load this graph. Check it with `onnx.checker`, and that its operators and opset "
                f"are ones that onnxruntime {ort.__version__} knows."
            ) from exc
        self._limit_s = options.limit_s
        self._interface = _interface(self._session)
        self._outputs = [spec.name for spec in self._interface.outputs]

    @property
    def interface(self) -> Interface:
        """What the graph takes and gives; anonymous free dimensions are named ``d0``, ``d1`` and so on."""
        return self._interface

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch. See ``Runner.run``."""
        if self._session is None:
            raise LightshipError("This graph was closed. Load it again.")
        check_inputs(self._interface, inputs)
        feeds = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        try:
            arrays = self._arrays(feeds)
        except _ENGINE_ERRORS as exc:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
            raise LightshipError(
                f"The graph failed while it ran on {shapes}. It may only work for other sizes; "
                "try the sizes that its interface proves."
            ) from exc
        outputs = dict(zip(self._outputs, arrays, strict=True))
        check_outputs(self._interface, inputs, outputs)
        return outputs

    def _arrays(self, feeds: Mapping[str, np.ndarray]) -> Any:
        if self._limit_s is None:
            return self._session.run(self._outputs, feeds)
        run_options = ort.RunOptions()  # its own for each run: one that has stopped a run would stop the next as well
        with _stopped_after(self._limit_s, run_options):
            try:
                return self._session.run(self._outputs, feeds, run_options)
            except _ENGINE_ERRORS as exc:
                if not run_options.terminate:
                    raise
                shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
                raise LightshipError(
                    f"The graph ran longer than {self._limit_s:g} s on a batch of {shapes} and was stopped. "
                    "Look for a loop in it without an end or with too many rounds, or give a smaller graph."
                ) from exc

    def close(self) -> None:
        """Free the graph."""
        self._session = None


@contextmanager
def _stopped_after(limit_s: float, run_options: Any) -> Iterator[None]:
    """Tell the engine to give up after ``limit_s``; it looks at the flag before each operator, in loops as well."""

    def stop() -> None:
        run_options.terminate = True

    timer = Timer(limit_s, stop)
    timer.daemon = True  # a process that ends does not wait for it
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _session_options(options: EngineOptions) -> Any:
    session = ort.SessionOptions()
    session.intra_op_num_threads = options.threads
    session.inter_op_num_threads = 1
    session.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    session.graph_optimization_level = _LEVELS[options.optimization]
    session.log_severity_level = _FATAL_ONLY
    session.use_deterministic_compute = True
    session.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spin else "0")
    session.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return session


def refuse_reaching_out(graph: bytes) -> None:
    """Refuse a model that needs more than its own bytes.

    Raises:
        InvalidInput: the bytes are no ONNX model.
        Refused: external data, or an operator whose domain ONNX Runtime does not bring itself.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(graph)
    except DecodeError as exc:
        raise InvalidInput(f"These {len(graph)} bytes are no ONNX model. Give the bytes of a .onnx file.") from exc
    if not model.graph.node:
        raise InvalidInput(f"These {len(graph)} bytes hold no graph with nodes. Give the bytes of a .onnx file.")
    local = {(function.domain, function.name) for function in model.functions}
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise Refused(
                f"Tensor {tensor.name!r} of the graph lies in another file. A graph must hold all of its weights; "
                "save it with `onnx.save_model(..., save_as_external_data=False)`."
            )
    for node in _nodes(model):
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in local:
            raise Refused(
                f"Operator {node.op_type!r} of the graph is from the domain {node.domain!r}. Allowed are "
                f"{', '.join(sorted(DOMAINS - {''}))} and functions in the file. Export the model without it."
            )


def _graphs(model: onnx.ModelProto) -> Iterator[Any]:
    """Yield the main graph, the functions, and every graph inside of their nodes (If, Loop, Scan)."""
    waiting: list[Any] = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    waiting.append(attribute.g)
                waiting.extend(attribute.graphs)


def _nodes(model: onnx.ModelProto) -> Iterator[Any]:
    for graph in _graphs(model):
        yield from graph.node


def _tensors(model: onnx.ModelProto) -> Iterator[Any]:
    for graph in _graphs(model):
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield sparse.values
                yield sparse.indices
        for node in graph.node:
            for attribute in node.attribute:
                yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: Any) -> Iterator[Any]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
        yield sparse.values
        yield sparse.indices


def _interface(session: Any) -> Interface:
    items = (*session.get_inputs(), *session.get_outputs())
    taken = {dim for item in items for dim in item.shape if isinstance(dim, str)}
    free = (name for number in count() if (name := f"d{number}") not in taken)

    def dim(value: Dim | None) -> Dim:
        return value if isinstance(value, int) or value else next(free)

    def spec(item: Any) -> TensorSpec:
        if item.type not in _DTYPES:
            raise InvalidInput(
                f"{item.name!r} of the graph has the type {item.type}. Allowed are tensors of "
                f"{', '.join(_DTYPES.values())}. Convert it in the graph (for scikit-learn: `zipmap=False`)."
            )
        return TensorSpec(item.name, _DTYPES[item.type], tuple(dim(value) for value in item.shape))

    return Interface(
        inputs=tuple(spec(item) for item in session.get_inputs()),
        outputs=tuple(spec(item) for item in session.get_outputs()),
    )
