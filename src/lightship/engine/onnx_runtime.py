"""ONNX Runtime as an engine: CPU only, quiet, deterministic, and from bytes that stand alone.

The graph is looked through before the engine sees it: a file may name other files (external data) or operators from
shared libraries, and the engine would go and fetch them (``onnx_audit``). Import this module late: it loads onnx and
onnxruntime.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from lightship.engine.onnx_wire import named_dims
from lightship.engine.runner import EngineOptions, check_inputs, check_outputs
from lightship.errors import CannotRun, InvalidInput, InvalidTensor, LightshipError, OutOfMemory, RanTooLong
from lightship.types import Dim, Interface, TensorSpec

__all__ = ["OnnxRuntimeEngine"]

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
_NOWHERE = "/proc/self/fdinfo"  # a folder that every Linux has and that nobody can put a file into
_FATAL_ONLY = 4  # failures come as exceptions; the engine's own lines on stderr would only show its insides
# The engine's errors have no common base but Exception, so they are listed.
_ENGINE_ERRORS: tuple[type[Exception], ...] = (
    *(item for item in vars(_state).values() if isinstance(item, type) and issubclass(item, Exception)),
    RuntimeError,
    ValueError,
)
_RUN_ERRORS: tuple[type[Exception], ...] = (*_ENGINE_ERRORS, MemoryError)
# It has no class of its own for an allocation that fails: the words of its arena, and those of the C++ library.
_NO_MEMORY = ("Failed to allocate memory", "bad_alloc", "Could not allocate")


class OnnxRuntimeEngine:
    """A graph in ONNX Runtime.

    Args:
        graph: an ONNX model without external data.
        options: threads, optimization level, spinning, limit of a run.

    Raises:
        InvalidInput: the bytes are no ONNX model, or one that ONNX Runtime cannot run; or another precision than f32,
            or dynamic quantization.
        OutOfMemory: an allocation failed.
        Refused: the model reaches out of its bytes or over a limit; see ``onnx_audit``.
    """

    def __init__(self, graph: bytes, *, options: EngineOptions) -> None:
        if options.precision != "f32":
            raise InvalidInput(
                f"ONNX Runtime computes in the precision that the graph is written in: `precision` must be f32. Got "
                f"{options.precision!r}. The engine `openvino` takes others."
            )
        if options.dynamic_quantization != "none":
            raise InvalidInput(
                "ONNX Runtime quantizes what the graph says: `dynamic_quantization` must be none. Got "
                f"{options.dynamic_quantization!r}. The engine `openvino` takes others."
            )
        if not options.audited:
            from lightship.engine.onnx_audit import (
                audit_onnx,  # late: it loads onnx, which a server's worker never needs
            )

            audit_onnx(graph)
        try:
            self._session: Any = ort.InferenceSession(
                graph, sess_options=_session_options(options), providers=["CPUExecutionProvider"]
            )
        except _RUN_ERRORS as exc:
            if _is_short_of_memory(exc):
                raise OutOfMemory("To load the graph needs more memory than there is.") from exc
            raise InvalidInput(
                "ONNX Runtime cannot load this graph. Check it with `onnx.checker`, and that its operators and opset "
                f"are ones that onnxruntime {ort.__version__} knows."
            ) from exc
        self._limit_s = options.limit_s
        self._run_options: Any = ort.RunOptions()
        self._batched = options.batched
        self._checked: Sequence[object] = ()
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
        self._check(inputs)
        try:
            arrays = self._arrays({name: _feed(name, array) for name, array in inputs.items()})
        except _RUN_ERRORS as exc:
            raise _failure(exc, inputs) from exc
        outputs = dict(zip(self._outputs, arrays, strict=True))
        if self._batched:
            check_outputs(self._interface, inputs, outputs)
        return outputs

    def _check(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Check the inputs, unless the last ones that were fine had the same names, dtypes and shapes."""
        kinds = [
            (name, getattr(array, "dtype", None), getattr(array, "shape", None), type(array))
            for name, array in inputs.items()
        ]
        if kinds != self._checked:
            check_inputs(self._interface, inputs)
            self._checked = kinds

    def _arrays(self, feeds: Mapping[str, np.ndarray]) -> Any:
        if self._limit_s is None:
            run_options = self._run_options  # `stop` puts another in its place
            try:
                return self._session.run(self._outputs, feeds, run_options)
            except _ENGINE_ERRORS as exc:
                if not run_options.terminate:
                    raise
                raise LightshipError("The run was stopped.") from exc
        run_options = ort.RunOptions()  # its own for each run: one that has stopped a run would stop the next as well
        with _stopped_after(self._limit_s, run_options):
            try:
                return self._session.run(self._outputs, feeds, run_options)
            except _ENGINE_ERRORS as exc:
                if not run_options.terminate:
                    raise
                raise RanTooLong(
                    f"The graph ran longer than {self._limit_s:g} s on a batch of {_shapes(feeds)} and was stopped. "
                    "Look for a loop in it without an end or with too many rounds, or give a smaller graph."
                ) from exc

    def stop(self) -> None:
        """Let the runs under way give up. See ``Runner.stop``."""
        running, self._run_options = self._run_options, ort.RunOptions()  # one that has stopped a run stops the next
        running.terminate = True

    def close(self) -> None:
        """Free the graph."""
        self._session = None


def _failure(exc: Exception, inputs: Mapping[str, np.ndarray]) -> LightshipError:
    """Return what a run that failed means; what the engine says of it tells of its insides and stays the cause."""
    shapes = _shapes(inputs)
    if _is_short_of_memory(exc):
        return OutOfMemory(
            f"To run the graph on {shapes} needs more memory than there is. Send fewer rows or less data."
        )
    return CannotRun(
        f"The graph cannot be run on this input: {shapes}. Its dtypes and shapes are allowed, its values or their "
        "sizes lead to what the graph cannot compute. Send others."
    )


def _is_short_of_memory(exc: Exception) -> bool:
    return isinstance(exc, MemoryError) or any(words in str(exc) for words in _NO_MEMORY)


def _shapes(inputs: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {array.shape}" for name, array in inputs.items())


def _feed(name: str, array: np.ndarray) -> np.ndarray:
    """Return what the engine takes: in one piece, and texts as ``str``; of bytes it would take the Python literal."""
    if array.dtype != object:
        return np.ascontiguousarray(array).reshape(array.shape)
    texts = np.empty(array.size, dtype=object)
    try:
        texts[:] = [item.decode() if isinstance(item, bytes) else str(item) for item in array.ravel().tolist()]
    except UnicodeDecodeError as exc:
        raise InvalidTensor(f"The texts of input {name!r} must be UTF-8. Got bytes that are not: {exc}.") from exc
    return texts.reshape(array.shape)


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
    # The engine looks for its own format by itself, in bytes that may be an ONNX file's producer name.
    session.add_session_config_entry("session.load_model_format", "ONNX")
    session.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spin else "0")
    session.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # A graph stands alone: tensors in other files are looked for where there are none, audited or not.
    session.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
    return session


def _interface(session: Any) -> Interface:
    items = (*session.get_inputs(), *session.get_outputs())
    name = named_dims([_dims(item) for item in items])

    def spec(item: Any) -> TensorSpec:
        if item.type not in _DTYPES:
            raise InvalidInput(
                f"{item.name!r} of the graph has the type {item.type}. Allowed are tensors of "
                f"{', '.join(_DTYPES.values())}. Convert it in the graph (for scikit-learn: `zipmap=False`)."
            )
        return TensorSpec(item.name, _DTYPES[item.type], tuple(name(dim) for dim in _dims(item)))

    return Interface(
        inputs=tuple(spec(item) for item in session.get_inputs()),
        outputs=tuple(spec(item) for item in session.get_outputs()),
    )


def _dims(item: Any) -> tuple[Dim, ...]:
    return tuple("" if dim is None else dim for dim in item.shape)
