"""How far the answers of a graph spread: between settings of the engine, numbers of threads and places in a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightship.engine.difference import largest_difference
from lightship.engine.runner import EngineOptions, Runner
from lightship.errors import LightshipError, Refused
from lightship.imports.trial_rows import stack
from lightship.imports.tried_graph import MAX_RUN_S, TriedGraph
from lightship.tasks.task import Tensors

__all__ = ["Spread", "floor_of", "spread_of"]

_FACTOR = 8.0
_FLOOR_ULPS = {"float16": 4.0}
_OTHER_ULPS = 64.0
"""The floor of the tolerance in spacings of float32 at the largest value: kernels for one row and for many add in
another order, also where no setting of the engine shows it."""
_WAYS: tuple[tuple[str, EngineOptions], ...] = (
    ("2 threads", EngineOptions(threads=2)),
    *((f"optimization {level}", EngineOptions(optimization=level)) for level in ("extended", "basic", "none")),
)


@dataclass(frozen=True, slots=True)
class Spread:
    """What was measured, by output.

    Attributes:
        spread: the largest difference between settings.
        largest: the largest value.
        floor: the least tolerance.
        allowed: how far a row's answer in a batch may be from its answer alone.
    """

    spread: Mapping[str, float]
    largest: Mapping[str, float]
    floor: Mapping[str, float]
    allowed: Mapping[str, float]

    @property
    def tolerance(self) -> float:
        """The largest difference between an answer here and on another machine."""
        return max((max(_FACTOR * off, self.floor[name]) for name, off in self.spread.items()), default=0.0)


def spread_of(tried: TriedGraph, rows: list[Tensors], alone: list[Tensors]) -> Spread:
    """Run all rows under every setting and compare the answers.

    The answers in ``alone`` are replaced by those of one thread, which are the recorded ones.

    Raises:
        Refused: they depend on how the engine is set.
    """
    base = tried.load(EngineOptions(limit_s=MAX_RUN_S, batched=False))
    here = [*alone]
    for index, row in enumerate(rows):
        alone[index] = tried.run(row, rows=1, runner=base)
    floor = {name: floor_of([answer[name] for answer in alone]) for name in alone[0]}
    threads = _apart(here, alone)
    rounding = {name: max(threads[name], off) for name, off in _positions(tried, rows, base, floor).items()}
    base.close()
    spread = dict(rounding)
    for what, options in _WAYS:
        tried.tell_more(f"spread: {what}")
        way = EngineOptions(
            threads=options.threads, optimization=options.optimization, limit_s=MAX_RUN_S, batched=False
        )
        runner = tried.load(way)
        answers = [tried.run(row, rows=1, runner=runner) for row in rows]
        runner.close()
        off = _apart(answers, alone)
        spread = {name: max(spread[name], off[name]) for name in spread}
        if options.threads > 1:
            rounding = {name: max(rounding[name], off[name]) for name in rounding}
    allowed = {name: max(_FACTOR * rounding[name], floor[name]) for name in rounding}
    largest = {name: _largest([answer[name] for answer in alone]) for name in alone[0]}
    for name, off_by in spread.items():
        if not off_by <= max(largest[name], floor[name]) / _FACTOR:
            raise Refused(
                f"The answers of the graph depend on how the engine is set: output {name!r} differs by "
                f"{off_by:.3g} between optimization levels and threads; its largest value is {largest[name]:.3g}. "
                "If the inputs drawn for it are to blame (ties, values out of its range), give rows: --golden."
            )
    return Spread(spread, largest, floor, allowed)


def _positions(tried: TriedGraph, rows: list[Tensors], runner: Runner, floor: Mapping[str, float]) -> dict[str, float]:
    """Return how far a row's answer differs between the places of a batch."""
    nothing = dict.fromkeys((spec.name for spec in tried.interface.outputs), 0.0)
    if not tried.batched or len(rows) < 3:
        return nothing
    answers = []
    for turn in range(3):
        order = [rows[(turn + place) % 3] for place in range(3)]
        try:
            together = tried.run(stack(order), rows=3, runner=runner)
        except LightshipError:
            return nothing
        if any(array.shape[:1] != (3,) for array in together.values()):
            return nothing
        answers.append({name: np.roll(array, turn, axis=0) for name, array in together.items()})
    off = _apart(answers[1:], [answers[0], answers[0]])
    # More than rounding is no spread but a graph that mixes rows: that is found and named later.
    return {name: value if value <= floor[name] else 0.0 for name, value in off.items()}


def _apart(found: Sequence[Tensors], expected: Sequence[Tensors]) -> dict[str, float]:
    return {
        name: max(largest_difference(a[name], b[name]) for a, b in zip(found, expected, strict=True))
        for name in expected[0]
    }


def _largest(arrays: Sequence[np.ndarray]) -> float:
    """Return the largest finite absolute value."""
    if not arrays or arrays[0].dtype.kind not in "fiub":
        return 0.0
    largest = 0.0
    for array in arrays:
        finite = np.abs(array[np.isfinite(array)].astype(np.float64))
        largest = max(largest, float(finite.max(initial=0.0)))
    return largest


def floor_of(arrays: Sequence[np.ndarray]) -> float:
    """Return the least tolerance: some spacings at the largest value; 0 for integers and texts, which are exact."""
    dtype = arrays[0].dtype
    if dtype.kind != "f":
        return 0.0
    ulps = _FLOOR_ULPS.get(dtype.name, _OTHER_ULPS)
    kind = np.float16 if dtype == np.float16 else np.float32
    largest = min(_largest(arrays), float(np.finfo(kind).max))
    return ulps * float(np.spacing(kind(largest)))
