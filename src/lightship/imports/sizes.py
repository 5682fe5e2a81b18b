"""Try another graph of a model at every size that the model was proven for: it must answer there as it does alone.

The proven range of a release holds for whatever variant it runs. So a variant is tried at the sizes of the ladder
between the ends of each range, at the ends, and at all the largest together; beside the reference, so that a size that
drawn values do not reach is no fault of the variant. Its answers there must not be quite other ones than the
reference's. Rows are tried beside other rows: dynamic quantization takes its scale from the whole batch, and an answer
then depends on what else came in.
An engine may refuse a size at the far end of a range that no row has, such as a picture one pixel high. Then the range
is made smaller, by a quarter of the sizes that were tried at most. A size with wrong answers is never left out: what
answers wrongly without a word may do so elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightship.engine.difference import largest_difference
from lightship.engine.runner import Runner
from lightship.errors import InvalidTensor, LightshipError
from lightship.imports.drawn import STYLES, draw
from lightship.tasks.task import Tensors
from lightship.tasks.tensors import BATCH, is_batched
from lightship.types import Interface, Json

__all__ = ["Sizes", "try_sizes"]

LADDER = (1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 64, 100, 128, 129, 256, 512)
_FLOOR_ULPS = 64.0
_OTHER = 0.5
"""Distance of answers that have nothing to do with each other: zeros, another row's. int8 stays far below."""
_ALIKE = 1 / 32
"""Distance at the usual sizes up to which one at others tells something: drawn values are hard on int8."""
_MOST_LEFT_OUT = 0.25
"""Share of the sizes tried of a dimension: what works at fewer was not made for the sizes of this model."""
_RUN_CPU_S = 10.0
"""CPU time of one run: at least twice what an import allows, as a busy machine costs some."""
_BATCHES_CPU_S = 5.0
"""Every batch size is tried where that is cheap, else those of the ladder."""

Tell = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What was found.

    Attributes:
        problem: why the variant cannot stand in for the reference at its proven sizes; empty when it can.
        batch: the largest batch in which every row gets the answer that it gets alone; 1 when rows are mixed.
        proven: least and greatest size of each other dimension.
        mixed: how far an answer moves with the rows beside it; 0 for a graph that does not mix rows.
        tried: each size, and what was wrong.
        words: what people should know, one line each.
    """

    problem: str
    batch: int
    mixed: float
    tried: tuple[Json, ...]
    words: tuple[str, ...]
    proven: Mapping[str, tuple[int, int]]


def _silent(what: str, runs: int) -> None:
    """Tell nobody."""


def try_sizes(
    reference: Runner,
    variant: Runner,
    interface: Interface,
    rows: Sequence[Tensors],
    *,
    tolerance: float,
    given: Mapping[str, tuple[int, int]] | None = None,
    tell: Tell | None = None,
) -> Sizes:
    """Run ``variant`` at the proven sizes of ``interface``.

    Args:
        reference: the graph that the sizes were proven for.
        variant: the other one.
        interface: of the bundle, with the proven ranges.
        rows: of one shape each, without a batch axis (whole inputs of a graph without a batch dimension), at least one.
        tolerance: largest difference between an answer alone and in a batch: that of the variant's golden examples.
        given: least and greatest size of each free dimension that is asked for; that of ``rows`` by default.
        tell: hears of the progress.
    """
    return _Sizes(reference, variant, interface, rows, tolerance, given, tell or _silent).found()


class _DoesNotRun(LightshipError):
    """The variant says that it cannot run a size, where a wrong answer would say nothing."""


class _Sizes:
    def __init__(
        self,
        reference: Runner,
        variant: Runner,
        interface: Interface,
        rows: Sequence[Tensors],
        tolerance: float,
        given: Mapping[str, tuple[int, int]] | None,
        tell: Tell,
    ) -> None:
        self._reference, self._variant, self._interface = reference, variant, interface
        self._tolerance, self._tell = tolerance, tell
        self._batched = is_batched(interface.inputs, interface.outputs)
        shape = {name: array.shape for name, array in rows[0].items()}
        self._rows = [row for row in rows if {name: array.shape for name, array in row.items()} == shape]
        self._start = self._sizes_of(self._rows[0])
        self._given = given or _spans([self._sizes_of(row) for row in rows])
        self._proven = {dim: span for dim, span in interface.proven.items() if dim in self._start}
        self._tried: list[Json] = []
        self._words: list[str] = []
        self._usual: dict[str, tuple[float, float]] = {}
        self._runs = 0
        self._cpu_s = 0.0

    def found(self) -> Sizes:
        most = self._interface.proven.get(BATCH, (1, 1))[1] if self._batched else 1
        alone = [self._alone(row) for row in self._rows]
        if isinstance(problem := next((each for each in alone if isinstance(each, str)), None), str):
            return self._result(f"not even one row can be run: {problem}", 1, 0.0)
        answers = [each for each in alone if not isinstance(each, str)]
        mixed = self._mixed() if most > 1 else 0.0
        batch = self._batch(most, answers, self._rows if not mixed else self._rows[:1])
        problem = self._each_dimension() or self._all_at_their_largest(1 if mixed else batch)
        return self._result(problem, batch, mixed)

    def _result(self, problem: str, batch: int, mixed: float) -> Sizes:
        return Sizes(problem, batch, mixed, tuple(self._tried), tuple(self._words), self._proven)

    # -- batches ------------------------------------------------------------------------------------------------

    def _mixed(self) -> float:
        """Return how far the answer to a row moves when others stand beside it, in a batch of the same size."""
        beside = [self._rows[1 % len(self._rows)], self._rows[2 % len(self._rows)]]
        drawn = [row for number in range(4) if (row := self._drawn(self._start, number=100 + number)) is not None]
        others = [_scaled(row, 4.0) for row in (*drawn, *self._rows[3:])][:2]
        worst = 0.0
        for other in ([others] if len(others) == 2 else []) + [[self._rows[0], self._rows[0]]]:
            try:
                first = self._run(self._variant, _stack([self._rows[0], *beside]))
                second = self._run(self._variant, _stack([self._rows[0], *other]))
            except LightshipError:
                continue
            for name, array in first.items():
                if array.shape[:1] != (3,) or second[name].shape[1:] != array.shape[1:]:
                    continue
                off = largest_difference(second[name][:1], array[:1])
                if off > _floor(array[:1]):
                    worst = max(worst, off)
        return worst

    def _batch(self, most: int, alone: Sequence[Tensors], rows: Sequence[Tensors]) -> int:
        """Return the largest batch in which each of these rows gets the answer that it gets alone.

        Where rows are mixed, one row that fills the batch says the same: it stands beside nothing but itself.
        """
        self._run(self._variant, _stack(rows[:1]) if self._batched else rows[0])
        cheap = self._cpu_s * most * (most + 1) / 2 <= _BATCHES_CPU_S
        proven = 1
        for size in (size for size in range(2, most + 1) if cheap or size in LADDER or size == most):
            why = self._batch_problem(size, alone[: len(rows)], rows)
            self._tried.append({"dimension": BATCH, "size": size, "problem": why or None})
            if why:
                self._words.append(f"batches end at {proven} rows: {size} rows fail, {why}")
                break
            proven = size
        return proven

    def _batch_problem(self, size: int, alone: Sequence[Tensors], rows: Sequence[Tensors]) -> str:
        places = [max(index - 1, 0) % len(rows) for index in range(size)]  # two alike stand beside each other, too
        try:
            together = self._run(self._variant, _stack([rows[place] for place in places]))
        except LightshipError as exc:
            return _first_sentence(exc)
        for name, array in together.items():
            if array.shape[:1] != (size,):
                return f"{size} rows gave {name!r} of shape {list(array.shape)}"
            for index, place in enumerate(places):
                single = alone[place][name]
                off = largest_difference(array[index : index + 1], single)
                allowed = max(self._tolerance, _floor(single))
                if off > allowed:
                    return f"row {index} of {name!r} is {off:.3g} off its answer alone, allowed {allowed:.3g}"
        return ""

    # -- other dimensions ---------------------------------------------------------------------------------------

    def _each_dimension(self) -> str:
        for dim, (low, high) in list(self._proven.items()):
            sizes = sorted({low, high, *(size for size in LADDER if low < size < high)})
            refused: dict[int, str] = {}
            for size in sizes:
                try:
                    problem = self._problem_at({**self._start, dim: size}, rows=1)
                except _DoesNotRun as exc:
                    problem = refused[size] = str(exc)
                self._tried.append({"dimension": dim, "size": size, "problem": problem or None})
                if problem and size not in refused:
                    return f"{dim} {size} fails: {problem}"
            if refused and not self._narrowed(dim, sizes, refused):
                size, why = next(iter(refused.items()))
                least, greatest = self._given[dim]
                hint = f"; if it is always {least}, import the model with --fix {dim}={least}"
                return f"{dim} {size} fails: {why}{hint if least == greatest else ''}"
        return ""

    def _narrowed(self, dim: str, sizes: Sequence[int], refused: Mapping[int, str]) -> bool:
        """Leave sizes out at the ends of a range; return False if rows have them, or it would be too many."""
        least, greatest = self._given[dim]
        if any(least <= size <= greatest for size in refused):
            return False
        below = [size for size in refused if size < least]
        above = [size for size in refused if size > greatest]
        kept = [size for size in sizes if max(below, default=0) < size < min(above, default=size + 1)]
        low, high = min([*kept, least]), max([*kept, greatest])
        if len(sizes) - len(kept) > _MOST_LEFT_OUT * len(sizes):
            return False
        self._proven[dim] = (low, high)
        size, why = next(iter(refused.items()))
        self._words.append(f"{dim} goes from {low} to {high}: {size} fails, {why}")
        return True

    def _all_at_their_largest(self, batch: int) -> str:
        sizes = {dim: self._proven.get(dim, (1, size))[1] for dim, size in self._start.items()}
        if sizes == self._start and batch == 1:
            return ""
        try:
            problem = self._problem_at(sizes, rows=batch)
        except _DoesNotRun as exc:
            problem = str(exc)
        together: dict[str, Json] = {**sizes, **({BATCH: batch} if self._batched else {})}
        self._tried.append({"dimension": "all together", "size": together, "problem": problem or None})
        return f"all sizes at their largest fail: {problem}" if problem else ""

    def _problem_at(self, sizes: Mapping[str, int], *, rows: int) -> str:
        """Run the variant where the reference runs; return what is wrong with its answer.

        Raises:
            _DoesNotRun: it gives none.
        """
        for style in STYLES:
            drawn = draw(self._interface.inputs, {**sizes, BATCH: rows}, number=0, style=style)
            try:
                expected = self._run(self._reference, drawn)
            except LightshipError:
                continue
            try:
                found = self._run(self._variant, drawn)
            except LightshipError as exc:
                raise _DoesNotRun(_first_sentence(exc)) from exc
            if self._cpu_s > _RUN_CPU_S * rows:
                return f"it takes {self._cpu_s:.0f} s of CPU time"
            return _problem_of(found, expected) or self._estranged(found, expected, style)
        return ""  # nothing that can be drawn runs there: the reference was proven on other values

    def _estranged(self, found: Tensors, expected: Tensors, style: str) -> str:
        """Say that the answers have nothing to do with the reference's, though they have at the size of the rows."""
        size, distance = _loudness(expected), _distance(found, expected)
        if distance <= _OTHER:
            return ""
        usual_size, usual_distance = self._usual_of(style)
        if usual_distance > _ALIKE or size < 1e-3 * usual_size:
            return ""
        return (
            f"its answers to drawn values are not the reference's (distance {distance:.2f}, else {usual_distance:.2g})"
        )

    def _usual_of(self, style: str) -> tuple[float, float]:
        """Return loudness and distance of the answers to drawn values at the size of the rows."""
        if style not in self._usual:
            drawn = draw(self._interface.inputs, {**self._start, BATCH: 1}, number=0, style=style)
            try:
                expected = self._run(self._reference, drawn)
                self._usual[style] = _loudness(expected), _distance(self._run(self._variant, drawn), expected)
            except LightshipError:
                self._usual[style] = 0.0, float("inf")
        return self._usual[style]

    # -- runs ---------------------------------------------------------------------------------------------------

    def _alone(self, row: Tensors) -> Tensors | str:
        try:
            return self._run(self._variant, _stack([row]) if self._batched else row)
        except LightshipError as exc:
            return _first_sentence(exc)

    def _drawn(self, sizes: Mapping[str, int], *, number: int) -> Tensors | None:
        """Return one row that the reference takes."""
        for style in STYLES:
            row = draw(self._interface.inputs, {**sizes, BATCH: 1}, number=number, style=style)
            try:
                self._run(self._reference, row)
            except LightshipError:
                continue
            return {name: array.reshape(array.shape[1:]) for name, array in row.items()} if self._batched else row
        return None

    def _run(self, runner: Runner, inputs: Tensors) -> Tensors:
        started = time.process_time()
        outputs = runner.run(inputs)
        self._cpu_s = time.process_time() - started
        self._runs += 1
        self._tell("sizes", self._runs)
        return outputs

    def _sizes_of(self, row: Tensors) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for spec in self._interface.inputs:
            shape = spec.shape[1:] if self._batched else spec.shape
            if len(shape) != row[spec.name].ndim:
                raise InvalidTensor(
                    f"A row of {spec.name!r} must have {len(shape)} dimensions. Got {list(row[spec.name].shape)}."
                )
            sizes |= {dim: n for dim, n in zip(shape, row[spec.name].shape, strict=True) if isinstance(dim, str)}
        return sizes


def _spans(sizes: Sequence[Mapping[str, int]]) -> dict[str, tuple[int, int]]:
    return {dim: (min(each[dim] for each in sizes), max(each[dim] for each in sizes)) for dim in sizes[0]}


def _problem_of(found: Tensors, expected: Tensors) -> str:
    for name, array in expected.items():
        if found[name].shape != array.shape:
            return f"{name!r} has the shape {list(found[name].shape)}, of the reference {list(array.shape)}"
        if array.dtype.kind == "f" and (~np.isfinite(found[name]) & np.isfinite(array)).any():
            return f"{name!r} is NaN or infinite where the reference is not"
    return ""


def _distance(found: Tensors, expected: Tensors) -> float:
    """Return 1 - 2<a, b> / (|a|^2 + |b|^2) of the float output that is farthest off: 0 for the same, 1 for zeros."""
    worst = 0.0
    for name, array in expected.items():
        if array.dtype.kind == "f":
            a, b = (np.nan_to_num(each.astype(np.float64), posinf=0, neginf=0) for each in (array, found[name]))
            power = float((a * a).sum() + (b * b).sum())
            worst = max(worst, 1 - 2 * float((a * b).sum()) / power if power else 0.0)
    return worst


def _loudness(answers: Tensors) -> float:
    """Return the root mean square of the quietest float output."""
    floats = [np.nan_to_num(a.astype(np.float64), posinf=0, neginf=0) for a in answers.values() if a.dtype.kind == "f"]
    return min((float(np.sqrt((array * array).mean())) for array in floats if array.size), default=0.0)


def _scaled(row: Tensors, factor: float) -> Tensors:
    """Return a row with larger floats: neighbors must be unlike to be seen."""
    return {name: (array * factor).astype(array.dtype) if array.dtype.kind == "f" else array
            for name, array in row.items()}  # fmt: skip


def _stack(rows: Sequence[Tensors]) -> Tensors:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _floor(array: np.ndarray) -> float:
    """Return what rounding alone may do: some spacings of float32 at the largest value."""
    if array.dtype.kind != "f":
        return 0.0
    finite = np.abs(array[np.isfinite(array)].astype(np.float64))
    kind = np.float16 if array.dtype == np.float16 else np.float32
    largest = min(float(finite.max(initial=0.0)), float(np.finfo(kind).max))
    return _FLOOR_ULPS * float(np.spacing(kind(largest)))


def _first_sentence(error: LightshipError) -> str:
    return str(error).partition(". ")[0]
