"""Run a graph about which nothing is known, and find out what can be relied on: rows, sizes, how far answers spread.

What decides does not look at the wall clock, so that the same file gets the same bundle on the same machine: sizes grow
by fixed ladders until one fails or costs more CPU time than is allowed. This runs in a process of its own
(``trial_process``): a hostile graph may take all memory or never end.

Rows of a batch are tried in two ways. Rows beside a row must not change its answer at all (the same kernels run, so
only a graph that mixes rows can do that: dynamic quantization does). And its answer alone must be its answer in the
batch within the tolerance.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lightship.engine.difference import largest_difference
from lightship.engine.runner import EngineOptions, Runner, load_runner
from lightship.errors import InvalidInput, InvalidTensor, LightshipError, OutOfMemory, Refused
from lightship.imports.drawn import STYLES, draw
from lightship.tasks.task import Tensors
from lightship.tasks.tensors import BATCH, is_batched
from lightship.types import DTYPES, Dim, Interface, Json, TensorSpec

__all__ = ["Bounds", "Found", "try_graph"]

ROWS = 8
"""Golden examples that are drawn. Of given rows so many are used."""
FEW_ROWS = 3
"""Of a graph that is slow: every row runs some ten times."""
_QUICK_CPU_S = 0.2
_GOLDEN_BYTES = 32 << 20
"""Golden examples with their answers in a bundle: they are read at every start of a server."""
MAX_RUN_S = 60.0
_ROW_BYTES = 1 << 29
"""Largest input that is drawn: a file may declare any size."""
_MAX_TENSORS, _MAX_RANK, _MAX_SIZE, _MAX_NAME = 256, 16, 2**31 - 1, 255  # of the bundle format
_FACTOR = 8.0
_FLOOR_ULPS = {"float16": 4.0}
_OTHER_ULPS = 64.0
"""The floor of the tolerance in spacings of float32 at the largest value: kernels for one row and for many add in
another order, also where no setting of the engine shows it."""
_START = (8, 16, 32, 64, 128, 224, 4, 3, 2, 1, 256, 512)
_LADDER = (1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 64, 100, 128, 129, 256, 512)
_WAYS: tuple[tuple[str, EngineOptions], ...] = (
    ("2 threads", EngineOptions(threads=2)),
    *((f"optimization {level}", EngineOptions(optimization=level)) for level in ("extended", "basic", "none")),
)

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
    """

    batch: int = 32
    size: int = 512
    upto: Mapping[str, int] = field(default_factory=dict)
    batch_cpu_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Found:
    """What a trial found.

    Attributes:
        interface: with the names and proven ranges of the bundle.
        rows: golden inputs: one row each, without a batch axis; whole inputs of a graph without a batch dimension.
        expected: by output: row i is the answer to golden input i.
        tolerance: the largest difference between an answer here and on another machine.
        golden, shapes: what was measured, for the evidence.
        words: what people should know, one line each.
    """

    interface: Interface
    rows: tuple[Tensors, ...]
    expected: Mapping[str, np.ndarray]
    tolerance: float
    golden: Mapping[str, Json]
    shapes: Mapping[str, Json]
    words: tuple[str, ...]


@dataclass(slots=True)
class _Observed:
    """Shapes that came out for these sizes."""

    sizes: Mapping[str, int]
    rows: int | None
    shapes: Mapping[str, tuple[int, ...]]


def _silent(what: str, runs: int) -> None:
    """Tell nobody."""


def try_graph(
    graph: bytes,
    *,
    given: Mapping[str, np.ndarray] | None = None,
    bounds: Bounds | None = None,
    threads: int = 1,
    tell: Tell | None = None,
) -> Found:
    """Run ``graph`` on drawn or given rows, under several settings and in many sizes.

    Args:
        graph: ONNX bytes that have passed the audit.
        given: arrays by the name of the input, the first axis are rows; None draws them.
        bounds: how far to try.
        threads: of the engine while sizes are tried.
        tell: hears of the progress.

    Raises:
        InvalidInput: the graph cannot be run, or has an interface that no bundle can hold; or the rows do not fit it.
        Refused: its answers are not the same twice, or it needs more memory than there is.
    """
    try:
        trial = _Trial(graph, bounds or Bounds(), threads=threads, tell=tell or _silent)
        try:
            return trial.found(given)
        finally:
            trial.close()
    except OutOfMemory as exc:
        raise Refused(
            "The graph needs more memory than a trial may have. Look in it for "
            f"huge constants and intermediate values, or export it smaller.{_engine_says(exc)}"
        ) from exc


class _Trial:
    def __init__(self, graph: bytes, bounds: Bounds, *, threads: int, tell: Tell) -> None:
        self._graph = graph
        self._bounds = bounds
        self._tell = tell
        self._runs = 0
        self._what = "load"
        tell("load", 0)
        options = EngineOptions(threads=threads, limit_s=MAX_RUN_S, batched=False)
        try:
            self._runner = load_runner(graph, options=options)
        except InvalidInput as exc:
            raise InvalidInput(f"{exc}{_engine_says(exc)}") from exc
        self._interface = self._runner.interface
        _check_interface(self._interface)
        self._inputs = self._interface.inputs
        self._free = list(dict.fromkeys(d for spec in self._inputs for d in spec.shape if isinstance(d, str)))
        self._first = {spec.shape[0] for spec in self._inputs if spec.shape and isinstance(spec.shape[0], str)}
        _check_upto(bounds.upto, self._free, rows=bool(self._first))
        self._batched = self._may_be_batched()
        self._observed: list[_Observed] = []
        self._words: list[str] = []
        self._tried: list[Json] = []
        self._style = STYLES[0]
        self._start: dict[str, int] = {}
        self._leader: dict[str, str] = {}  # of a dimension that always has the size of another one
        self._floor: dict[str, float] = {}
        self._allowed: dict[str, float] = {}
        self._cpu_s = 0.0

    def close(self) -> None:
        self._runner.close()

    def found(self, given: Mapping[str, np.ndarray] | None) -> Found:
        """Go through the whole trial."""
        self._what = "draw"
        rows = self._given_rows(given) if given is not None else self._drawn_rows()
        alone = [self._run(row, rows=1) for row in rows]
        self._require_same_twice(rows[0], alone[0])
        if self._batched and not self._rows_come_back(rows, alone):
            self._batched = False
            rows, alone = self._whole_inputs(given, rows, alone)
        rows, alone = _alike(rows, alone)
        few = max(1, _GOLDEN_BYTES // max(1, _size(rows[0]) + _size(alone[0])))
        rows, alone = rows[:few], alone[:few]
        self._what = "spread"
        spread, largest = self._spread(rows, alone)
        self._what = "sizes"
        proven = self._proven(rows, alone)
        answers = {name: [answer[name] for answer in alone] for name in alone[0]}
        expected = {
            name: np.concatenate(values) if self._batched else np.stack(values) for name, values in answers.items()
        }
        tolerance = max((self._golden_allowed(name, spread[name]) for name in expected), default=0.0)
        interface, named = self._named(proven)
        return Found(
            interface=interface,
            rows=tuple(_without_batch(row) if self._batched else row for row in rows),
            expected=expected,
            tolerance=tolerance,
            golden={
                "examples": len(rows),
                "values": "given" if given is not None else f"drawn by seed, style {self._style}",
                "spread": {name: float(value) for name, value in spread.items()},
                "largest_value": {name: float(value) for name, value in largest.items()},
                "tolerance": float(tolerance),
            },
            shapes={
                "proven": {name: [low, high] for name, (low, high) in interface.proven.items()},
                "start": {named.get(name, name): size for name, size in self._start.items()},
                "tried": self._tried,
            },
            words=tuple("".join(c if c.isprintable() else "?" for c in word) for word in self._words),
        )

    # -- inputs -------------------------------------------------------------------------------------------------

    def _may_be_batched(self) -> bool:
        """Whether every input starts with a free dimension that stands nowhere else."""
        if not all(spec.shape and isinstance(spec.shape[0], str) for spec in self._inputs):
            return False
        return not any(dim in self._first for spec in self._inputs for dim in spec.shape[1:])

    def _drawn_rows(self) -> list[Tensors]:
        others = [dim for dim in self._free if not (self._batched and dim in self._first)]
        last: LightshipError | None = None
        always_short = True
        for size in _START if others else (1,):
            sizes = {dim: min(size, self._most(dim)) for dim in others}
            for style in STYLES:
                row = self._draw(sizes, number=0, style=style)
                try:
                    self._run(row, rows=1)
                except (InvalidInput, LightshipError) as exc:
                    last = exc
                    always_short &= _asks_for_memory(exc)
                    continue
                self._start, self._style = sizes, style
                self._observed.clear()
                return self._more_rows(row)
        if always_short and last is not None:
            raise OutOfMemory(str(last)) from (last.__cause__ or last)
        raise InvalidInput(
            f"The graph ran on none of the inputs that were drawn for it; the last try: {last}{_engine_says(last)} "
            "Give rows that it takes: --golden rows.npz, arrays by the name of the input, the first axis are rows."
        )

    def _more_rows(self, first: Tensors) -> list[Tensors]:
        rows = [first]
        self._run(first, rows=1)  # the run before it was a first one
        count = ROWS if self._cpu_s <= _QUICK_CPU_S else FEW_ROWS
        for number in range(1, count):
            row = self._draw(self._start, number=number, style=self._style)
            try:
                self._run(row, rows=1)
            except LightshipError:
                continue
            if not any(_equal(row, other) for other in rows):
                rows.append(row)
        return rows

    def _draw(self, sizes: Mapping[str, int], *, number: int, style: str, rows: int = 1) -> Tensors:
        whole = {**sizes, **(dict.fromkeys(self._first, rows) if self._batched else {})}
        for spec in self._inputs:
            size = np.dtype(DTYPES[spec.dtype]).itemsize
            for dim in spec.shape:
                size *= dim if isinstance(dim, int) else whole[dim]
            if size > _ROW_BYTES:
                raise Refused(
                    f"Input {spec.name!r} of the graph has the shape {list(spec.shape)}: {size:,} bytes for one "
                    f"run, and at most {_ROW_BYTES:,} are tried. Export it for smaller inputs."
                )
        return draw(self._inputs, whole, number=number, style=style)

    def _given_rows(self, given: Mapping[str, np.ndarray]) -> list[Tensors]:
        wanted = {spec.name for spec in self._inputs}
        if set(given) != wanted:
            raise InvalidTensor(
                f"The golden rows must hold the arrays {', '.join(map(repr, sorted(wanted)))}. "
                f"Got {', '.join(map(repr, sorted(given))) or 'none'}."
            )
        rows = _split(self._inputs, given, batched=self._batched)
        if not rows:
            raise InvalidTensor("The golden rows must be at least one. Got arrays with 0 rows.")
        for number, row in enumerate(rows):
            try:
                self._run(row, rows=1)
            except LightshipError as exc:
                if _asks_for_memory(exc):
                    raise OutOfMemory(str(exc)) from (exc.__cause__ or exc)
                raise type(exc)(f"Golden row {number} (counted from 0) cannot be run: {exc}") from exc
        self._observed.clear()
        for spec in self._inputs:
            for dim, size in zip(spec.shape, rows[0][spec.name].shape, strict=True):
                if isinstance(dim, str) and not (self._batched and dim in self._first):
                    self._start[dim] = size
        return rows

    def _whole_inputs(
        self, given: Mapping[str, np.ndarray] | None, rows: list[Tensors], alone: list[Tensors]
    ) -> tuple[list[Tensors], list[Tensors]]:
        """The first axis turned out to be no rows: it is one more free dimension, and a request runs as a whole."""
        self._words.append("an output does not have one row for each input row, so requests run alone, not in batches")
        self._observed.clear()
        if given is None:
            return (rows, alone) if not self._first else self._redrawn()
        whole = {name: np.ascontiguousarray(array) for name, array in given.items()}
        self._start |= {
            dim: size
            for spec in self._inputs
            for dim, size in zip(spec.shape, whole[spec.name].shape, strict=True)
            if isinstance(dim, str)
        }
        return [whole], [self._run(whole, rows=None)]

    def _redrawn(self) -> tuple[list[Tensors], list[Tensors]]:
        rows = self._drawn_rows()
        return rows, [self._run(row, rows=None) for row in rows]

    # -- runs ---------------------------------------------------------------------------------------------------

    def _run(self, inputs: Tensors, *, rows: int | None, runner: Runner | None = None) -> Tensors:
        """Run once, note the shapes and the CPU time; NaN is a failure."""
        started = time.process_time()
        outputs = (runner or self._runner).run(inputs)
        self._cpu_s = time.process_time() - started
        self._runs += 1
        self._tell(self._what, self._runs)
        for name, array in outputs.items():
            if array.dtype.kind == "f" and np.isnan(array).any():
                raise LightshipError(f"Output {name!r} is NaN.")
        sizes = {
            dim: size
            for spec in self._inputs
            for dim, size in zip(spec.shape, inputs[spec.name].shape, strict=True)
            if isinstance(dim, str)
        }
        shapes = {name: array.shape for name, array in outputs.items()}
        self._observed.append(_Observed(sizes, rows if self._batched else None, shapes))
        return outputs

    def _require_same_twice(self, row: Tensors, first: Tensors) -> None:
        again = self._run(row, rows=1)
        for name, array in first.items():
            if (off := largest_difference(again[name], array)) > 0:
                raise Refused(
                    f"The graph gives other answers to the same input: {name!r} differed by {off:.3g}. A random "
                    "operator in it (RandomNormal, Dropout in training mode …)? Nobody could tell whether it still "
                    "works on another machine. Export it for inference, or with its noise as an input."
                )

    def _rows_come_back(self, rows: list[Tensors], alone: list[Tensors]) -> bool:
        """Whether outputs have a row for each input row; where several cannot be run, one at a time is fine."""
        if not all(array.ndim and array.shape[0] == 1 for array in alone[0].values()):
            return False
        try:
            two = self._run(_stack([rows[0], rows[-1]]), rows=2)
        except LightshipError:
            return True
        return all(array.ndim and array.shape[0] == 2 for array in two.values())

    # -- how far answers spread ---------------------------------------------------------------------------------

    def _spread(self, rows: list[Tensors], alone: list[Tensors]) -> tuple[dict[str, float], dict[str, float]]:
        """Return, by output, the largest difference between settings, and the largest value.

        The answers in ``alone`` are replaced by those of one thread, which are the recorded ones.
        """
        base = load_runner(self._graph, options=EngineOptions(limit_s=MAX_RUN_S, batched=False))
        here = [*alone]
        for index, row in enumerate(rows):
            alone[index] = self._run(row, rows=1, runner=base)
        self._floor = {name: _floor([answer[name] for answer in alone]) for name in alone[0]}
        threads = self._apart(here, alone)
        rounding = {name: max(threads[name], off) for name, off in self._positions(rows, base).items()}
        base.close()
        spread = dict(rounding)
        for what, options in _WAYS:
            self._tell(f"spread: {what}", self._runs)
            way = EngineOptions(
                threads=options.threads, optimization=options.optimization, limit_s=MAX_RUN_S, batched=False
            )
            runner = load_runner(self._graph, options=way)
            answers = [self._run(row, rows=1, runner=runner) for row in rows]
            runner.close()
            off = self._apart(answers, alone)
            spread = {name: max(spread[name], off[name]) for name in spread}
            if options.threads > 1:
                rounding = {name: max(rounding[name], off[name]) for name in rounding}
        self._allowed = {name: max(_FACTOR * rounding[name], self._floor[name]) for name in rounding}
        largest = {name: _largest([answer[name] for answer in alone]) for name in alone[0]}
        for name, off_by in spread.items():
            if not off_by <= max(largest[name], self._floor[name]) / _FACTOR:
                raise Refused(
                    f"The answers of the graph depend on how the engine is set: output {name!r} differs by "
                    f"{off_by:.3g} between optimization levels and threads; its largest value is {largest[name]:.3g}. "
                    "If the inputs drawn for it are to blame (ties, values out of its range), give rows: --golden."
                )
        return spread, largest

    def _positions(self, rows: list[Tensors], runner: Runner) -> dict[str, float]:
        """Return how far a row's answer differs between the places of a batch."""
        nothing = dict.fromkeys((spec.name for spec in self._interface.outputs), 0.0)
        if not self._batched or len(rows) < 3:
            return nothing
        answers = []
        for turn in range(3):
            order = [rows[(turn + place) % 3] for place in range(3)]
            try:
                together = self._run(_stack(order), rows=3, runner=runner)
            except LightshipError:
                return nothing
            if any(array.shape[:1] != (3,) for array in together.values()):
                return nothing
            answers.append({name: np.roll(array, turn, axis=0) for name, array in together.items()})
        off = self._apart(answers[1:], [answers[0], answers[0]])
        # More than rounding is no spread but a graph that mixes rows: that is found and named later.
        return {name: value if value <= self._floor[name] else 0.0 for name, value in off.items()}

    def _apart(self, found: Sequence[Tensors], expected: Sequence[Tensors]) -> dict[str, float]:
        return {
            name: max(largest_difference(a[name], b[name]) for a, b in zip(found, expected, strict=True))
            for name in expected[0]
        }

    def _golden_allowed(self, name: str, spread: float) -> float:
        return max(_FACTOR * spread, self._floor[name])

    # -- sizes --------------------------------------------------------------------------------------------------

    def _most(self, dim: str) -> int:
        if self._batched and dim in self._first:
            named = [self._bounds.upto[name] for name in (*self._first, BATCH) if name in self._bounds.upto]
            return min(named, default=self._bounds.batch)
        return self._bounds.upto.get(dim, self._bounds.size)

    def _proven(self, rows: list[Tensors], alone: list[Tensors]) -> dict[str, tuple[int, int]]:
        """Return the proven range of each free dimension of the inputs, by the engine's names."""
        proven: dict[str, tuple[int, int]] = {}
        batch = self._proven_batch(rows, alone) if self._batched else 1
        rows_at_once = min(batch, 2)
        for dim in self._start:
            if dim in self._leader:
                continue
            proven[dim] = self._proven_size(dim, rows=rows_at_once)
            if proven[dim] == (self._start[dim],) * 2 and self._tie(dim, rows=rows_at_once):
                proven[dim] = self._proven_size(dim, rows=rows_at_once)
        for dim, leader in self._leader.items():
            proven.pop(dim, None)
            self._words.append(f"{dim} must be as large as {leader}")
        batch, proven = self._proven_corner(batch, proven)
        if self._batched:
            proven |= {dim: (1, batch) for dim in self._first if isinstance(dim, str)}
        return proven

    def _proven_batch(self, rows: list[Tensors], alone: list[Tensors]) -> int:
        """Return the largest batch in which every row gets the answer that it gets alone."""
        most = self._most(next(iter(self._first)))
        if most > 1 and (why := self._mixes_rows(rows)):
            self._tried.append({"dimension": BATCH, "size": len(rows[:3]), "problem": why})
            self._words.append(f"rows run one at a time: {why}")
            return 1
        self._run(rows[0], rows=1)
        cost_s = self._cpu_s
        # Every size where that is cheap, else those for which kernels differ; the first failure ends it.
        whole = cost_s * most * (most + 1) / 2 <= self._bounds.batch_cpu_s / 2
        sizes = [size for size in range(2, most + 1) if whole or size in _LADDER or size == most]
        proven = 1
        for size in sizes:
            if cost_s * size > self._bounds.batch_cpu_s:
                self._words.append(f"{_rows(proven)}: {size} would cost {cost_s * size:.0f} s of CPU time")
                break
            why = self._batch_problem([rows[index % len(rows)] for index in range(size)], alone)
            self._tried.append({"dimension": BATCH, "size": size, "problem": why or None})
            if why:
                if proven == 1:
                    why += " (badly conditioned inputs? Then give real rows: --golden)"
                self._words.append(f"{_rows(proven)}: {size} rows fail, {why}")
                break
            proven = size
        return proven

    def _mixes_rows(self, rows: list[Tensors]) -> str:
        """Say how a row's answer depends on the rows beside it; "" if it does not."""
        others = [self._draw(self._start, number=100 + number, style=self._style) for number in range(2)]
        beside = [rows[1 % len(rows)], rows[2 % len(rows)]]
        if all(_equal(a, b) for a, b in zip(beside, others, strict=True)):
            return ""
        try:
            first = self._run(_stack([rows[0], *beside]), rows=3)
            second = self._run(_stack([rows[0], *others]), rows=3)
        except LightshipError as exc:
            return f"three rows cannot be run together ({exc})"
        for name, array in first.items():
            off = largest_difference(second[name][:1], array[:1])
            if off > self._allowed[name]:
                return (
                    f"output {name!r} of a row changes by {off:.3g} with the rows beside it, allowed are "
                    f"{self._allowed[name]:.3g} (dynamic quantization, or a sum over the batch)"
                )
        return ""

    def _batch_problem(self, batch: list[Tensors], alone: list[Tensors]) -> str:
        try:
            together = self._run(_stack(batch), rows=len(batch))
        except LightshipError as exc:
            return str(exc)
        for name, array in together.items():
            if array.shape[:1] != (len(batch),):
                return f"{len(batch)} rows gave {name!r} of shape {list(array.shape)}"
            for index in range(len(batch)):
                single = alone[index % len(alone)][name]
                off = largest_difference(array[index : index + 1], single)
                if off > self._allowed[name]:
                    return (
                        f"row {index} of {name!r} is {off:.3g} off its answer alone, allowed {self._allowed[name]:.3g}"
                    )
        return ""

    def _proven_size(self, dim: str, *, rows: int) -> tuple[int, int]:
        """Return the range round the start in which this dimension can have any size, the others as at the start."""
        start, most = self._start[dim], max(self._start[dim], self._most(dim))
        ladder = sorted({*(size for size in _LADDER if size <= most), start, most, min(start + 1, most)})
        low = high = start
        cost_s = 0.0
        for size in (size for size in ladder if size > start):
            if cost_s * size / high > self._bounds.batch_cpu_s / 2:
                self._words.append(f"{dim} ends at {high}: {size} would cost too much CPU time")
                break
            if self._size_problem(dim, size, rows=rows):
                high = self._edge(dim, high, size, rows=rows)
                break
            high, cost_s = size, self._cpu_s
        for size in sorted({*(size for size in ladder if size < start), max(start - 1, 1)}, reverse=True):
            if size >= low:
                continue
            if self._size_problem(dim, size, rows=rows):
                low = self._edge(dim, low, size, rows=rows)
                break
            low = size
        return low, high

    def _tie(self, dim: str, *, rows: int) -> bool:
        """Find the dimensions that only change together with this one: a file need not name them alike."""
        start = self._start[dim]
        others = [d for d, size in self._start.items() if d != dim and size == start and d not in self._leader]
        for step in (start + 1, max(start - 1, 1)):
            together = {*others}
            if step == start or self._sizes_problem(self._at(step, {dim, *together}), rows=rows):
                continue
            for other in others:
                if not self._sizes_problem(self._at(step, {dim, *together} - {other}), rows=rows):
                    together.discard(other)
            self._leader |= dict.fromkeys(together, dim)
            return bool(together)
        return False

    def _at(self, size: int, dims: set[str]) -> dict[str, int]:
        """Return the start's sizes, with another one for some dimensions."""
        return {**self._start, **dict.fromkeys(dims, size)}

    def _edge(self, dim: str, good: int, bad: int, *, rows: int) -> int:
        """Return the size next to the first that fails, by halving."""
        while abs(good - bad) > 1:
            middle = (good + bad) // 2
            if self._size_problem(dim, middle, rows=rows):
                bad = middle
            else:
                good = middle
        return good

    def _size_problem(self, dim: str, size: int, *, rows: int) -> str:
        tied = {other for other, leader in self._leader.items() if leader == dim}
        problem = self._sizes_problem(self._at(size, {dim, *tied}), rows=rows)
        self._tried.append({"dimension": dim, "size": size, "problem": problem or None})
        return problem

    def _sizes_problem(self, sizes: Mapping[str, int], *, rows: int) -> str:
        """Try these sizes with so many rows, each of which must get the answer that it gets alone."""
        try:
            batch = [self._draw(sizes, number=number, style=self._style) for number in range(max(rows, 1))]
            alone = [self._run(batch[0], rows=1)]
            if not self._batched or rows < 2:
                return ""
            together = self._run(_stack(batch), rows=rows)
        except LightshipError as exc:
            return str(exc).partition(". ")[0]
        for name, array in together.items():
            if array.shape[:1] != (rows,):
                return f"{rows} rows gave {name!r} of shape {list(array.shape)}"
            allowed = max(self._allowed[name], _floor([answer[name] for answer in alone]))
            for index, answer in enumerate(alone):
                off = largest_difference(array[index : index + 1], answer[name])
                if off > allowed:
                    return f"row {index} of {name!r} is {off:.3g} off its answer alone, allowed {allowed:.3g}"
        return ""

    def _proven_corner(self, batch: int, proven: dict[str, tuple[int, int]]) -> tuple[int, dict[str, tuple[int, int]]]:
        """Shrink the ranges until everything at its largest runs together, in the time that is allowed."""
        if not proven:
            return batch, proven
        proven = dict(proven)
        while True:
            sizes = {dim: proven[self._leader.get(dim, dim)][1] for dim in self._start}
            problem = self._sizes_problem(sizes, rows=1)
            cost_s = self._cpu_s
            if not problem and cost_s <= self._bounds.batch_cpu_s:
                break
            dim = max(proven, key=lambda name: proven[name][1] / self._start[name])
            low, high = proven[dim]
            if high <= self._start[dim]:
                break  # everything is at its start, which ran
            proven[dim] = (low, max(self._start[dim], high // 2))
            self._words.append(
                f"{dim} ends at {proven[dim][1]}: with all sizes at their largest, {problem or 'too slow'}"
            )
        while batch > 1:
            if cost_s * batch <= self._bounds.batch_cpu_s and not self._sizes_problem(sizes, rows=batch):
                break
            batch //= 2
            self._words.append(f"{_rows(batch)}: more would take too long or fail at {_listed(sizes)}")
        together: dict[str, Json] = {**sizes, **({BATCH: batch} if self._batched else {})}
        self._tried.append({"dimension": "all together", "size": together, "problem": None})
        return batch, proven

    # -- the interface of the bundle ----------------------------------------------------------------------------

    def _named(self, proven: Mapping[str, tuple[int, int]]) -> tuple[Interface, dict[str, str]]:
        """Return the interface with the bundle's names, and those by the engine's."""
        taken = {BATCH} if self._batched else set()
        names: dict[str, str] = {}
        everywhere = [d for spec in (*self._inputs, *self._interface.outputs) for d in spec.shape if isinstance(d, str)]
        for dim in dict.fromkeys(everywhere):
            if self._batched and dim in self._first:
                names[dim] = BATCH
                continue
            if dim not in self._leader:
                names[dim] = _fresh(dim, taken)
                taken.add(names[dim])
        names |= {dim: names[leader] for dim, leader in self._leader.items()}
        inputs = tuple(
            TensorSpec(spec.name, spec.dtype, tuple(names[d] if isinstance(d, str) else d for d in spec.shape))
            for spec in self._inputs
        )
        outputs = tuple(self._output(spec, names, taken) for spec in self._interface.outputs)
        ranges = {names[dim]: proven[dim] for dim in proven}
        if not self._batched and is_batched(inputs, outputs):
            # A file that says `batch` of what are no rows would have requests run together.
            inputs, outputs = (_renamed(specs, "rows") for specs in (inputs, outputs))
            ranges = {"rows" if dim == BATCH else dim: sizes for dim, sizes in ranges.items()}
        return Interface(inputs, outputs, proven=ranges), names

    def _output(self, spec: TensorSpec, names: Mapping[str, str], taken: set[str]) -> TensorSpec:
        """Return an output as it was seen: what a file declares of it may be missing or wrong."""
        shapes = [(seen, seen.shapes[spec.name]) for seen in self._observed]
        if len({len(shape) for _, shape in shapes}) != 1:
            raise InvalidInput(
                f"Output {spec.name!r} of the graph changes the number of its dimensions. Export it again."
            )
        rank = len(shapes[0][1])
        declared: list[Dim | None] = [*spec.shape] if len(spec.shape) == rank else [None] * rank
        dims: list[Dim] = []
        for axis in range(rank):
            found = [(seen, shape[axis]) for seen, shape in shapes]
            dims.append(self._output_dim(found, declared[axis], names, taken, axis=axis))
        return TensorSpec(spec.name, spec.dtype, tuple(dims))

    def _output_dim(
        self,
        found: list[tuple[_Observed, int]],
        declared: Dim | None,
        names: Mapping[str, str],
        taken: set[str],
        *,
        axis: int,
    ) -> Dim:
        if self._batched and axis == 0:
            return BATCH
        sizes = {size for _, size in found}
        if isinstance(declared, int) and sizes == {declared} and declared >= 1:
            return declared
        if declared is None and len(sizes) == 1 and min(sizes) >= 1:
            return next(iter(sizes))
        follows = [dim for dim in self._start if all(seen.sizes.get(dim) == size for seen, size in found)]
        if isinstance(declared, str) and declared in follows:
            return names[declared]
        if follows and len(sizes) > 1:
            return names[follows[0]]
        if isinstance(declared, str) and declared not in self._free:
            return names[declared]
        fresh = _fresh("free", taken)
        taken.add(fresh)
        return fresh


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


def _asks_for_memory(error: LightshipError) -> bool:
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


def _engine_says(error: BaseException | None) -> str:
    """Return the engine's own words, which help who made the file, for one line."""
    cause = error.__cause__ if error is not None else None
    words = " ".join("".join(c if c.isprintable() else " " for c in str(cause or "")).split())
    return f" The engine says: {words[:300]}" if words else ""


def _renamed(specs: Sequence[TensorSpec], name: str) -> tuple[TensorSpec, ...]:
    return tuple(replace(spec, shape=tuple(name if dim == BATCH else dim for dim in spec.shape)) for spec in specs)


def _fresh(name: str, taken: set[str]) -> str:
    """Return a name for a dimension that a bundle may hold and no other dimension has."""
    plain = name if name.isprintable() and 1 <= len(name) <= 48 else "free"
    candidates: Iterator[str] = (f"{plain}_{number}" for number in range(2, 10_000))
    return plain if plain not in taken else next(text for text in candidates if text not in taken)


def _split(inputs: Sequence[TensorSpec], given: Mapping[str, np.ndarray], *, batched: bool) -> list[Tensors]:
    """Return each row of given arrays as inputs of the graph, at most ``ROWS``.

    Without a batch dimension a row is a whole input: one more axis in front are rows, and where every input starts
    with a fixed 1, that axis holds them.
    """
    if batched:
        counts = {array.shape[0] if array.ndim else 0 for array in given.values()}
        _require_equal_counts(counts)
        return [{name: array[i : i + 1] for name, array in given.items()} for i in range(min(*counts, ROWS))]
    if all(given[spec.name].ndim == len(spec.shape) + 1 for spec in inputs):
        counts = {array.shape[0] for array in given.values()}
        _require_equal_counts(counts)
        return [{name: array[i] for name, array in given.items()} for i in range(min(*counts, ROWS))]
    ones = all(spec.shape[:1] == (1,) and given[spec.name].ndim == len(spec.shape) for spec in inputs)
    if ones and len({array.shape[0] for array in given.values()}) == 1:
        rows = next(iter(given.values())).shape[0]
        return [{name: array[i : i + 1] for name, array in given.items()} for i in range(min(rows, ROWS))]
    return [dict(given)]


def _require_equal_counts(counts: set[int]) -> None:
    if len(counts) != 1:
        raise InvalidTensor(
            f"The golden arrays must have as many rows each. Got {', '.join(map(str, sorted(counts)))}."
        )


def _alike(rows: list[Tensors], alone: list[Tensors]) -> tuple[list[Tensors], list[Tensors]]:
    """Return the rows whose answers have the shapes of the first one's: only those stack."""
    first = {name: array.shape for name, array in alone[0].items()}
    kept = [i for i, answer in enumerate(alone) if {name: a.shape for name, a in answer.items()} == first]
    return [rows[i] for i in kept], [alone[i] for i in kept]


def _stack(rows: Sequence[Tensors]) -> Tensors:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _size(tensors: Tensors) -> int:
    return sum(array.nbytes for array in tensors.values())


def _without_batch(row: Tensors) -> Tensors:
    """Return one row without its batch axis; an array also where nothing is left but one value."""
    return {name: array.reshape(array.shape[1:]) for name, array in row.items()}


def _equal(a: Tensors, b: Tensors) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)


def _largest(arrays: Sequence[np.ndarray]) -> float:
    """Return the largest finite absolute value."""
    if not arrays or arrays[0].dtype.kind not in "fiub":
        return 0.0
    largest = 0.0
    for array in arrays:
        finite = np.abs(array[np.isfinite(array)].astype(np.float64))
        largest = max(largest, float(finite.max(initial=0.0)))
    return largest


def _floor(arrays: Sequence[np.ndarray]) -> float:
    """Return the least tolerance: some spacings at the largest value; 0 for integers and texts, which are exact."""
    dtype = arrays[0].dtype
    if dtype.kind != "f":
        return 0.0
    ulps = _FLOOR_ULPS.get(dtype.name, _OTHER_ULPS)
    kind = np.float16 if dtype == np.float16 else np.float32
    largest = min(_largest(arrays), float(np.finfo(kind).max))
    return ulps * float(np.spacing(kind(largest)))


def _rows(most: int) -> str:
    return "rows run one at a time" if most == 1 else f"batches end at {most} rows"


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())
