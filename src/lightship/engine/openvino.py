"""OpenVINO as an engine: CPU only, from ONNX bytes that stand alone, in the arithmetic that was asked for and no other.

Nothing is reported, cached or fetched (``openvino_library``), and what it would get wrong without a word is refused
(``openvino_graph``). It is told to leave weights-only graphs as they are: by default it rounds their activations to
int8 on CPUs that gain by it, so a graph would answer otherwise there than where it was proven. Its threads are not
pinned to cores: every process would pin its own to the same ones.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import suppress
from threading import Lock, Timer
from typing import Any

import numpy as np

from lightship.engine.machine import has_vnni
from lightship.engine.onnx_wire import UNNAMED, interface_of, named_dims, operators_of
from lightship.engine.openvino_graph import outside, refuse_operators, refuse_wrong, value_bounds
from lightship.engine.openvino_library import load_openvino, signal_stack_kept
from lightship.engine.runner import EngineOptions, check_inputs, check_outputs
from lightship.errors import CannotRun, InvalidInput, LightshipError, OutOfMemory, RanTooLong
from lightship.types import Dim, Interface, TensorSpec

__all__ = ["OpenVinoEngine"]

_ELEMENTS = {
    "BOOL": "boolean", "UINT8": "u8", "UINT16": "u16", "UINT32": "u32", "UINT64": "u64", "INT8": "i8", "INT16": "i16",
    "INT32": "i32", "INT64": "i64", "FP16": "f16", "FP32": "f32",
}  # fmt: skip
# It has no class of its own for an allocation that fails: the words of the C++ library, its plugin's and its kernels'.
_NO_MEMORY = ("bad_alloc", "bad_array_new_length", "Failed to allocate", "failed to allocate", "could not allocate")
_QUICK_S = 0.002
_MOST_SHAPES = 1_000
_GROUP = 64  # values of an activation that share a scale: of 32, a call takes longer; of 128, it errs farther


class OpenVinoEngine:
    """A graph in OpenVINO.

    A run can be stopped between two operators, not inside of a loop, so a graph with a loop is not loaded with a limit.
    One on shapes that took less than two milliseconds the last time runs through: to be able to stop it would cost it
    a third of its time.

    Args:
        graph: an ONNX model without external data.
        options: threads, precision, limit of a run. OpenVINO has no levels of optimization, and threads that do not
            spin.

    Raises:
        MissingExtra: OpenVINO is not installed.
        InvalidInput: the bytes are no ONNX model, or one that OpenVINO cannot run, or not rightly; a precision that it
            does not have on this machine.
        OutOfMemory: an allocation failed.
        Refused: the model reaches out of its bytes or over a limit; see ``onnx_audit``.
    """

    def __init__(self, graph: bytes, *, options: EngineOptions) -> None:
        if options.optimization != "all":
            raise InvalidInput(
                f"OpenVINO has no levels of optimization: `optimization` must be 'all'. Got {options.optimization!r}."
            )
        if options.dynamic_quantization != "none" and not has_vnni():
            raise InvalidInput(
                "This CPU has no VNNI: OpenVINO would leave activations in float without a word. Choose "
                "`dynamic_quantization` none, or another machine."
            )
        self._ov = load_openvino()
        if not options.audited:
            from lightship.engine.onnx_audit import audit_onnx  # late: it loads onnx

            audit_onnx(graph)
        declared = interface_of(graph)
        _check_dtypes(declared)
        refuse_operators(operators_of(graph))
        model = _read(graph)
        refuse_wrong(model, limited=options.limit_s is not None)
        self._compiled: Any = _compiled(self._ov, model, options)
        self._interface = _interface(declared, model)
        self._bounds = value_bounds(model, self._interface)
        self._ports = _ports(declared, model)
        self._limit_s = options.limit_s
        self._batched = options.batched
        self._idle: list[Any] = []
        self._running: set[_Run] = set()
        self._quick: dict[tuple[tuple[int, ...], ...], bool] = {}
        self._lock = Lock()

    @property
    def interface(self) -> Interface:
        """What the graph takes and gives; anonymous free dimensions are named ``d0``, ``d1`` and so on."""
        return self._interface

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch. See ``Runner.run``."""
        if self._compiled is None:
            raise LightshipError("This graph was closed. Load it again.")
        check_inputs(self._interface, inputs)
        for name, array in inputs.items():
            if outside(self._bounds, name, array):
                low, high = self._bounds[name]
                raise CannotRun(
                    f"The graph cannot be run on this input: {name} {array.shape} has a value outside of {low} to "
                    f"{high}. Send others."
                )
        try:
            arrays = self._arrays(inputs)
        except (RuntimeError, MemoryError) as exc:
            raise _failure(exc, inputs) from exc
        outputs = {spec.name: array for spec, array in zip(self._interface.outputs, arrays, strict=True)}
        if self._batched:
            check_outputs(self._interface, inputs, outputs)
        return outputs

    def _arrays(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        with self._lock:
            request = self._idle.pop() if self._idle else None
        if request is None:
            request = self._compiled.create_infer_request()
        try:
            for name, array in inputs.items():
                if name in self._ports:  # one that nothing reads is not there any more
                    # A copy: kernels may work in place, and most arrays here are read-only.
                    tensor = self._ov.Tensor(np.ascontiguousarray(array).reshape(array.shape))
                    request.set_input_tensor(self._ports[name], tensor)
            return self._infer(request, inputs)
        finally:
            with self._lock:
                if self._compiled is not None:
                    self._idle.append(request)

    def _infer(self, request: Any, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        shapes = tuple(array.shape for array in inputs.values())
        if self._limit_s is None and self._quick.get(shapes):
            return list(request.infer().values())
        run = _Run(request)
        with self._lock:
            self._running.add(run)
        try:
            took_s = run.wait(self._limit_s)
        except RuntimeError as exc:
            if run.late:
                raise RanTooLong(
                    f"The graph ran longer than {self._limit_s:g} s on a batch of {_shapes(inputs)} and was stopped. "
                    "Look for a loop in it without an end or with too many rounds, or give a smaller graph."
                ) from exc
            if run.stopped:
                raise LightshipError("The run was stopped.") from exc
            raise
        finally:
            with self._lock:
                self._running.discard(run)
        if len(self._quick) >= _MOST_SHAPES:
            self._quick.clear()
        self._quick[shapes] = took_s < _QUICK_S
        return [array.copy() for array in request.results.values()]

    def stop(self) -> None:
        """Let the runs under way give up. See ``Runner.stop``."""
        with self._lock:
            running = tuple(self._running)
        for run in running:
            run.stop()

    def close(self) -> None:
        """Free the graph."""
        with self._lock, signal_stack_kept():
            self._compiled = None
            self._idle.clear()


class _Run:
    """One run that can be stopped."""

    def __init__(self, request: Any) -> None:
        self.stopped = self.late = False
        self._request = request
        self._turn = Lock()

    def wait(self, limit_s: float | None) -> float:
        """Run to the end; return how long it took.

        Raises:
            RuntimeError: it failed, or was stopped.
        """
        from time import perf_counter

        timer = Timer(limit_s, self._too_long) if limit_s is not None else None
        if timer is not None:
            timer.daemon = True  # a process that ends does not wait for it
            timer.start()
        started = perf_counter()
        try:
            with self._turn:
                if self.stopped:
                    raise RuntimeError("stopped before it began")
                self._request.start_async()
            self._request.wait()
        except BaseException:
            # Whatever ended the wait (Ctrl-C too): the engine may be at work on arrays that go when this frame does.
            self._request.cancel()
            with suppress(RuntimeError):
                self._request.wait()
            raise
        finally:
            if timer is not None:
                timer.cancel()
        return perf_counter() - started

    def stop(self) -> None:
        with self._turn:
            self.stopped = True
            self._request.cancel()

    def _too_long(self) -> None:
        self.late = True
        self.stop()


def _read(graph: bytes) -> Any:
    """Return the graph as OpenVINO reads ONNX; left to itself it would guess the format from the bytes."""
    from openvino import frontend as front

    # They have no common base but Exception, so they are listed.
    failures = (front.GeneralFailure, front.InitializationFailure, front.NotImplementedFailure,
                front.OpConversionFailure, front.OpValidationFailure, RuntimeError, MemoryError)  # fmt: skip
    reader = front.FrontEndManager().load_by_framework("onnx")
    try:
        return reader.convert(reader.load(io.BytesIO(graph)))
    except failures as exc:
        raise _cannot_load(exc) from exc


def _compiled(ov: Any, model: Any, options: EngineOptions) -> Any:
    settings = {
        "INFERENCE_NUM_THREADS": options.threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": options.precision,
        "EXECUTION_MODE_HINT": "ACCURACY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0 if options.dynamic_quantization == "none" else _GROUP,
        "ENABLE_CPU_PINNING": False,
        "CPU_DENORMALS_OPTIMIZATION": False,
        "CACHE_DIR": "",
    }
    try:
        with signal_stack_kept():
            compiled = ov.Core().compile_model(model, "CPU", settings)
    except (RuntimeError, MemoryError) as exc:
        raise _cannot_load(exc) from exc
    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if used != options.precision:
        raise InvalidInput(
            f"This CPU does not compute in {options.precision}: OpenVINO would take {used} without a word. Choose "
            f"`precision` {used}, or another machine."
        )
    return compiled


def _cannot_load(exc: BaseException) -> LightshipError:
    if _is_short_of_memory(exc):
        return OutOfMemory("To load the graph needs more memory than there is.")
    return InvalidInput(
        "OpenVINO cannot load this graph. Check it with `onnx.checker`; if it is right it has an operator, a type or "
        "an opset that OpenVINO does not know, and ONNX Runtime may run it."
    )


def _check_dtypes(interface: Interface) -> None:
    for spec in (*interface.inputs, *interface.outputs):
        if spec.dtype not in _ELEMENTS:
            why = "computes it in float32" if spec.dtype == "FP64" else "does not take it here"
            raise InvalidInput(
                f"{spec.name!r} of the graph has the dtype {spec.dtype}; OpenVINO {why}. Allowed are "
                f"{', '.join(_ELEMENTS)}. ONNX Runtime runs such graphs."
            )


def _ports(declared: Interface, model: Any) -> dict[str, int]:
    """Return the place of each input that is left: one that nothing reads is dropped when a graph is read."""
    names = {spec.name for spec in declared.inputs}
    ports: dict[str, int] = {}
    for index, parameter in enumerate(model.get_parameters()):
        found = names & {parameter.get_friendly_name(), *parameter.output(0).get_names()}
        if len(found) != 1 or found <= ports.keys():
            raise _cannot_load(RuntimeError("an input of the model is none of the file's"))  # it would never be set
        ports[found.pop()] = index
    return ports


def _interface(declared: Interface, model: Any) -> Interface:
    """Return the interface of the file, its outputs' open dimensions filled with what OpenVINO has found out."""
    outputs = []
    for spec, port in zip(declared.outputs, model.outputs, strict=True):
        if port.get_element_type().to_string() != _ELEMENTS[spec.dtype]:
            raise InvalidInput(
                f"Output {spec.name!r} of the graph should have the dtype {spec.dtype}, and OpenVINO would give "
                f"{port.get_element_type().to_string()}. ONNX Runtime may run it."
            )
        found: tuple[Dim, ...] = tuple("" if dim.is_dynamic else dim.get_length() for dim in port.get_partial_shape())
        said = spec.shape if len(spec.shape) == len(found) else found
        shape = tuple(other if one in UNNAMED else one for one, other in zip(said, found, strict=True))
        outputs.append(TensorSpec(spec.name, spec.dtype, shape))
    specs = (*declared.inputs, *outputs)
    name = named_dims([spec.shape for spec in specs])
    named = [TensorSpec(spec.name, spec.dtype, tuple(name(dim) for dim in spec.shape)) for spec in specs]
    split = len(declared.inputs)
    return Interface(inputs=tuple(named[:split]), outputs=tuple(named[split:]))


def _failure(exc: BaseException, inputs: Mapping[str, np.ndarray]) -> LightshipError:
    """Return what a run that failed means; what the engine says of it tells of its insides and stays the cause."""
    if _is_short_of_memory(exc):
        return OutOfMemory(
            f"To run the graph on {_shapes(inputs)} needs more memory than there is. Send fewer rows or less data."
        )
    return CannotRun(
        f"The graph cannot be run on this input: {_shapes(inputs)}. Its dtypes and shapes are allowed, its values or "
        "their sizes lead to what the graph cannot compute. Send others."
    )


def _is_short_of_memory(exc: BaseException) -> bool:
    return isinstance(exc, MemoryError) or any(words in str(exc) for words in _NO_MEMORY)


def _shapes(inputs: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
