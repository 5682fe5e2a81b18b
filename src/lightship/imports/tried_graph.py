"""A graph about which nothing is known, loaded to be tried: its interface, its runs, and what was seen of it."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lightship.engine.onnx_wire import inputs_without_shape
from lightship.engine.runner import EngineOptions, Runner, load_runner
from lightship.errors import InvalidInput, LightshipError, OutOfMemory, Refused
from lightship.imports.drawn import STYLES, draw
from lightship.tasks.task import Tensors
from lightship.tasks.tensors import BATCH
from lightship.types import DTYPES, Interface

__all__ = ["MAX_RUN_S", "Bounds", "Observed", "Tell", "TriedGraph", "asks_for_memory", "engine_says"]

MAX_RUN_S = 60.0
_ROW_BYTES = 1 << 29
"""Largest input that is drawn: a file may declare any size."""
_MAX_TENSORS, _MAX_RANK, _MAX_SIZE, _MAX_NAME = 256, 16, 2**31 - 1, 255  # of the bundle format
_TOO_LARGE = ("storage size overflowed", "Integer overflow", "would require more than")  # the engine's words

Tell = Callable[[str, int], None]
"""Gets (what is being tried, how many runs so far)."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far to try.

    Attributes:
        batch: rows of the largest batch.
        size: of every other free dimension.
        upto: of one dimension, by its name; goes before ``size`` and ``batch``.
        batch_cpu_s: CPU time of one run; a server counts a worker as hung after a minute.
        first: sizes to begin with: a dimension may have to be as large as another one that was fixed.
    """

    batch: int = 32
    size: int = 512
    upto: Mapping[str, int] = field(default_factory=dict)
    batch_cpu_s: float = 5.0
    first: tuple[int, ...] = ()


@dataclass(slots=True)
class Observed:
    """Shapes that came out for these sizes."""

    sizes: Mapping[str, int]
    rows: int | None
    shapes: Mapping[str, tuple[int, ...]]


class TriedGraph:
    """A loaded graph, and what its trial has found so far.

    Attributes:
        interface: as the engine says it.
        inputs: of the interface.
        free: names of the free dimensions of the inputs.
        first: those that stand first.
        batched: the first axis of every input holds rows, as far as is known.
        observed: shapes of all runs since it was last cleared.
        words: what people should know, one line each.
        style: how inputs are drawn.
        start: a size of each free dimension that ran.
        leader: of a dimension that always has the size of another one.
        cpu_s: what the last run took.
        what: is being tried, for whoever is told of the progress.
    """

    def __init__(self, graph: bytes, bounds: Bounds, *, threads: int, tell: Tell) -> None:
        self._graph = graph
        self.bounds = bounds
        self._tell = tell
        self._runs = 0
        self.what = "load"
        tell("load", 0)
        options = EngineOptions(threads=threads, limit_s=MAX_RUN_S, batched=False)
        try:
            self._runner = load_runner(graph, options=options)
        except InvalidInput as exc:
            raise InvalidInput(f"{exc}{engine_says(exc)}") from exc
        self.interface = self._runner.interface
        _check_interface(self.interface)
        _check_ranks(graph, self.interface)
        self.inputs = self.interface.inputs
        self.free = list(dict.fromkeys(d for spec in self.inputs for d in spec.shape if isinstance(d, str)))
        self.first = {spec.shape[0] for spec in self.inputs if spec.shape and isinstance(spec.shape[0], str)}
        _check_upto(bounds.upto, self.free, rows=bool(self.first))
        self.batched = self._may_be_batched()
        self.observed: list[Observed] = []
        self.words: list[str] = []
        self.style = STYLES[0]
        self.start: dict[str, int] = {}
        self.leader: dict[str, str] = {}  # of a dimension that always has the size of another one
        self.cpu_s = 0.0

    def close(self) -> None:
        """Free the graph."""
        self._runner.close()

    def load(self, options: EngineOptions) -> Runner:
        """Load the graph once more, with other options."""
        return load_runner(self._graph, options=options)

    def tell_more(self, what: str) -> None:
        """Say what is being tried, for once."""
        self._tell(what, self._runs)

    def run(self, inputs: Tensors, *, rows: int | None, runner: Runner | None = None) -> Tensors:
        """Run once, note the shapes and the CPU time; NaN is a failure."""
        started = time.process_time()
        outputs = (runner or self._runner).run(inputs)
        self.cpu_s = time.process_time() - started
        self._runs += 1
        self._tell(self.what, self._runs)
        for name, array in outputs.items():
            if array.dtype.kind == "f" and np.isnan(array).any():
                raise LightshipError(f"Output {name!r} is NaN.")
        sizes = {
            dim: size
            for spec in self.inputs
            for dim, size in zip(spec.shape, inputs[spec.name].shape, strict=True)
            if isinstance(dim, str)
        }
        shapes = {name: array.shape for name, array in outputs.items()}
        self.observed.append(Observed(sizes, rows if self.batched else None, shapes))
        return outputs

    def draw(self, sizes: Mapping[str, int], *, number: int, style: str, rows: int = 1) -> Tensors:
        """Return inputs of these sizes, drawn by a number and a style."""
        whole = {**sizes, **(dict.fromkeys(self.first, rows) if self.batched else {})}
        for spec in self.inputs:
            size = np.dtype(DTYPES[spec.dtype]).itemsize
            for dim in spec.shape:
                size *= dim if isinstance(dim, int) else whole[dim]
            if size > _ROW_BYTES:
                raise Refused(
                    f"Input {spec.name!r} of the graph has the shape {list(spec.shape)}: {size:,} bytes for one "
                    f"run, and at most {_ROW_BYTES:,} are tried. Export it for smaller inputs."
                )
        return draw(self.inputs, whole, number=number, style=style)

    def most(self, dim: str) -> int:
        """Return the largest size of a dimension that is tried."""
        if self.batched and dim in self.first:
            named = [self.bounds.upto[name] for name in (*self.first, BATCH) if name in self.bounds.upto]
            return min(named, default=self.bounds.batch)
        return self.bounds.upto.get(dim, self.bounds.size)

    def _may_be_batched(self) -> bool:
        """Whether every input starts with a free dimension that stands nowhere else."""
        if not all(spec.shape and isinstance(spec.shape[0], str) for spec in self.inputs):
            return False
        return not any(dim in self.first for spec in self.inputs for dim in spec.shape[1:])


def _check_interface(interface: Interface) -> None:
    """Refuse what no bundle can say."""
    if not interface.inputs:
        raise InvalidInput("The graph takes no input: it gives the same answer always. Export it with its inputs.")
    for what, specs in (("inputs", interface.inputs), ("outputs", interface.outputs)):
        if not 1 <= len(specs) <= _MAX_TENSORS:
            raise InvalidInput(f"A graph may have 1 to {_MAX_TENSORS} {what}. This one has {len(specs)}.")
        for spec in specs:
            if not 1 <= len(spec.name) <= _MAX_NAME or not spec.name.isprintable():
                raise InvalidInput(
                    f"The names of {what} must have 1 to {_MAX_NAME} printable characters. "
                    f"Got {spec.name[:80]!a}. Export the graph with other names."
                )
            if len(spec.shape) > _MAX_RANK:
                raise InvalidInput(f"{spec.name!r} of the graph has {len(spec.shape)} dimensions; {_MAX_RANK} at most.")
            if what == "inputs" and any(isinstance(d, int) and not 1 <= d <= _MAX_SIZE for d in spec.shape):
                raise InvalidInput(
                    f"Input {spec.name!r} of the graph has the shape {list(spec.shape)}: a fixed size must be in "
                    f"[1, {_MAX_SIZE}]. Export it with free sizes where they are not known."
                )


def _check_ranks(graph: bytes, interface: Interface) -> None:
    unsaid = [name for name in inputs_without_shape(graph) if name in {spec.name for spec in interface.inputs}]
    if unsaid:
        raise InvalidInput(
            f"Input {unsaid[0]!r} of the graph does not say how many dimensions it has. Export it with its shape; "
            "sizes may stay free."
        )


def asks_for_memory(error: LightshipError) -> bool:
    """Whether a run failed for a tensor that no memory holds, or whose size the engine cannot even count."""
    cause = str(error.__cause__ or "")
    return isinstance(error, OutOfMemory) or any(words in cause for words in _TOO_LARGE)


def _check_upto(upto: Mapping[str, int], free: Sequence[str], *, rows: bool) -> None:
    """Refuse a bound for a dimension that is not there: a misspelled one would go unnoticed."""
    known = list(dict.fromkeys([*([BATCH] if rows else []), *free]))
    for dim in upto:
        if dim not in known:
            near = difflib.get_close_matches(dim, known, n=1)
            there = ", ".join(f"{name[:80]!a}" for name in known[:20]) or "none: all shapes are fixed"
            raise InvalidInput(
                f"There is no free dimension {dim[:80]!a} (--upto) in the inputs of the graph"
                f"{f'; did you mean {near[0][:80]!a}?' if near else '.'} Free are: {there}."
            )


def engine_says(error: BaseException | None) -> str:
    """Return the engine's own words, which help who made the file, for one line."""
    cause = error.__cause__ if error is not None else None
    words = " ".join("".join(c if c.isprintable() else " " for c in str(cause or "")).split())
    return f" The engine says: {words[:300]}" if words else ""
