"""The one way to run a graph: bytes in, a ``Runner`` out.

Engines are entry points of the group ``lightship.engines``; this module imports none of them until one is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from lightship.errors import BundleRefused, InvalidInput, InvalidTensor, LightshipError
from lightship.extensions import load_extension
from lightship.types import DTYPES, Dim, Interface, Json, TensorSpec

__all__ = [
    "DYNAMIC_QUANTIZATIONS",
    "LONGEST_RUN_S",
    "OPTIMIZATIONS",
    "PRECISIONS",
    "Engine",
    "EngineOptions",
    "Runner",
    "check_inputs",
    "check_outputs",
    "load_runner",
]

LONGEST_RUN_S = 120.0
"""Limit of one batch of a graph that is being judged. A file may hold a loop without an end; an honest graph answers 64
rows in far less, on a machine under load as well."""

_LONGEST_LIMIT_S = 1e6  # eleven days; a timer refuses what does not fit its clock
OPTIMIZATIONS = ("all", "extended", "basic", "none")
PRECISIONS = ("f32", "bf16", "f16")
DYNAMIC_QUANTIZATIONS = ("none", "int8")
_IN_BUNDLES = {"precision": "f32", "optimization": "all", "dynamic_quantization": "none"}
_NOT_OURS = {"threads": int, "spin": bool}  # bundles of early versions name them; they are the machine's affair


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine runs a graph.

    Attributes:
        threads: threads inside one operator, at least 1. Operators run one after another.
        optimization: how far the engine may rewrite the graph: ``all``, ``extended``, ``basic`` or ``none``.
        precision: the arithmetic that the engine may use inside for a graph's floats: ``f32`` leaves them as they are;
            ``bf16`` and ``f16`` round between and inside of operators. Inputs and outputs keep their dtypes. An engine
            that cannot, or not on this machine, refuses the option.
        dynamic_quantization: ``int8`` lets the engine quantize what products with weights of 8 bits take, as it comes,
            and multiply in integers; ``none`` widens the weights instead. Refused as ``precision`` is.
        spin: let idle threads burn their core while they wait. Quicker by microseconds when a process owns its
            cores; slower for everybody when it does not.
        limit_s: stop a run that takes longer, with an error; ``None`` lets it run on. The engine looks between
            operators, also those inside of a loop, so one endless operator is not stopped. Each run under a limit
            starts a thread: leave it out where time is measured or counts.
        audited: the graph was looked through when its bundle was made, and these are the bytes that were signed then:
            it is not looked through again, which needs the package ``onnx``. Only for bytes of a verified release.
        batched: the first axis of inputs and outputs are rows, as many out as in; a graph that gives others is an
            error. ``False`` for a graph without a batch dimension.
    """

    threads: int = 1
    optimization: str = "all"
    precision: str = "f32"
    dynamic_quantization: str = "none"
    spin: bool = False
    limit_s: float | None = None
    audited: bool = False
    batched: bool = True

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise InvalidInput(f"`threads` of an engine must be at least 1. Got {self.threads}.")
        for name, allowed in (
            ("optimization", OPTIMIZATIONS),
            ("precision", PRECISIONS),
            ("dynamic_quantization", DYNAMIC_QUANTIZATIONS),
        ):
            if (value := getattr(self, name)) not in allowed:
                raise InvalidInput(f"`{name}` of an engine must be one of {', '.join(allowed)}. Got {value!r}.")
        if self.limit_s is not None and not 0 < self.limit_s <= _LONGEST_LIMIT_S:
            raise InvalidInput(
                f"`limit_s` of an engine must be above 0 and at most {_LONGEST_LIMIT_S:g}, or None. Got {self.limit_s}."
            )

    @classmethod
    def from_json(cls, options: Mapping[str, Json], *, threads: int = 1) -> Self:
        """Return the options that a bundle keeps with a variant: what decides its answers, never how many threads.

        Raises:
            BundleRefused: an option that is not known here, or a value that is none of its own.
        """
        known: dict[str, str] = {}
        for name, value in options.items():
            if name in _IN_BUNDLES and isinstance(value, str):
                known[name] = value
            elif type(value) is not _NOT_OURS.get(name):
                raise BundleRefused(
                    f"The engine option {name!r} = {value!r} of the bundle is not known here. Known: "
                    f"{', '.join(_IN_BUNDLES)}, each a text. Use the version of Lightship that made the bundle, or a "
                    "newer one."
                )
        try:
            return cls(threads=threads, **known)  # type: ignore[arg-type]
        except InvalidInput as exc:
            raise BundleRefused(f"An engine option of the bundle is not known here. {exc}") from exc

    def options_json(self) -> dict[str, Json]:
        """Return what a bundle keeps of these options, which ``from_json`` reads: only what is not the default."""
        return {name: value for name, default in _IN_BUNDLES.items() if (value := getattr(self, name)) != default}


class Runner(Protocol):
    """One loaded graph. Not thread-safe to close; ``run`` may be called from several threads."""

    @property
    def interface(self) -> Interface:
        """What the graph takes and gives. Free dimensions have names; none is proven here."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch; every output has as many rows as the inputs (if ``EngineOptions.batched``).

        Raises:
            InvalidTensor: a name, dtype, rank or size that the interface does not allow.
            CannotRun: the interface allows the input, and the graph cannot compute it.
            OutOfMemory: an allocation failed. Fewer rows, or the same later, may do.
            LightshipError: the graph gave another number of rows than it got, was stopped, or ran longer than
                ``EngineOptions.limit_s``. After any of these the runner can be used again.
        """

    def stop(self) -> None:
        """Let the runs under way give up, with an error, as soon as the engine looks: between two operators.

        May be called from another thread. Later runs are not touched.
        """

    def close(self) -> None:
        """Free the graph. A later ``run`` is an error."""


class Engine(Protocol):
    """What an entry point of ``lightship.engines`` must be: called with a graph, gives a runner."""

    def __call__(self, graph: bytes, *, options: EngineOptions) -> Runner:
        """Load ``graph``."""


def load_runner(graph: bytes, *, engine: str = "onnxruntime", options: EngineOptions | None = None) -> Runner:
    """Load ``graph`` into the engine of that name.

    Raises:
        NotFound: no engine of that name is installed.
        Conflict: two installed packages bring an engine of that name.
        InvalidInput: the bytes are no graph that the engine reads.
        Refused: the graph reaches outside of itself (external data, custom operators).
    """
    factory: Engine = load_extension("engines", engine)
    return factory(graph, options=options or EngineOptions())


def check_inputs(interface: Interface, inputs: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Check names, dtypes, ranks and sizes of ``inputs``; return the size of each free dimension.

    Raises:
        InvalidTensor: says which input, what was allowed and what came.
    """
    wanted = {spec.name for spec in interface.inputs}
    if set(inputs) != wanted:
        raise InvalidTensor(
            f"The graph takes the inputs {_names(wanted)}. Got {_names(set(inputs))}. Give each input once, by name."
        )
    sizes: dict[str, int] = {}
    for spec in interface.inputs:
        _check_input(spec, inputs[spec.name], sizes)
    return sizes


def _check_input(spec: TensorSpec, array: np.ndarray, sizes: dict[str, int]) -> None:
    if not isinstance(array, np.ndarray):
        raise InvalidTensor(f"Input {spec.name!r} must be a numpy array. Got {type(array).__name__}.")
    if array.dtype != np.dtype(DTYPES[spec.dtype]):
        raise InvalidTensor(
            f"Input {spec.name!r} must have dtype {spec.dtype} ({DTYPES[spec.dtype]}). "
            f"Got {array.dtype}. Convert it first."
        )
    if array.ndim != len(spec.shape):
        raise InvalidTensor(
            f"Input {spec.name!r} must have {len(spec.shape)} dimensions, {_shape(spec.shape)}. Got {array.shape}."
        )
    for axis, (dim, size) in enumerate(zip(spec.shape, array.shape, strict=True)):
        allowed = sizes.setdefault(dim, size) if isinstance(dim, str) else dim
        if size != allowed or size == 0:
            raise InvalidTensor(
                f"Input {spec.name!r} must have the shape {_shape(spec.shape)}: axis {axis} ({dim}) "
                f"{'must be at least 1' if size == 0 else f'is {allowed} here'}. Got {array.shape}."
            )


def check_outputs(interface: Interface, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
    """Check that a graph with a free batch dimension gave back as many rows as it got.

    Answers are matched to requests by position, so a graph that drops or adds a row would give people each other's
    answers.

    Raises:
        LightshipError: names the output.
    """
    first = interface.inputs[0] if interface.inputs else None
    if first is None or not first.shape or isinstance(first.shape[0], int):
        return  # a graph of fixed size; its outputs have the sizes that its interface says
    rows = inputs[first.name].shape[0]
    for name, array in outputs.items():
        if array.ndim == 0 or array.shape[0] != rows:
            raise LightshipError(
                f"Output {name!r} of the graph must have one row for each of the {rows} input rows. "
                f"Got shape {array.shape}. The graph drops, adds or mixes rows; export it again with a batch axis."
            )


def _names(names: set[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names)) or "none"


def _shape(shape: tuple[Dim, ...]) -> str:
    return "[" + ", ".join(str(dim) for dim in shape) + "]"
