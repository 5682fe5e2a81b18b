"""What a variant answers to the golden examples, how far another machine may be off, and how a bundle keeps both.

There is no float64 original of a variant, so its own spread is measured: over threads, optimization levels and the
place of a row in its batch, which change the order of sums and the kernels used as another machine would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_UP, Context

import numpy as np

from lightship.bundle.arrays import npy_from_array
from lightship.bundle.manifest import Expected
from lightship.bundle.statement import Evidence
from lightship.engine.difference import largest_difference
from lightship.engine.runner import LONGEST_RUN_S, EngineOptions, Runner, load_runner
from lightship.errors import LightshipError, Refused
from lightship.optimize.candidate import Candidate
from lightship.tasks.golden_texts import packed_texts
from lightship.tasks.task import Tensors
from lightship.types import Json, Verdict

__all__ = ["VariantGolden", "answers_to", "decimal_text", "golden_of", "recorded"]

_FACTOR = 8.0
_FLOOR_ULPS = 64.0
_PLACES = 3


@dataclass(frozen=True, slots=True)
class VariantGolden:
    """Recorded answers.

    Attributes:
        answers: by output: row i is the answer to golden input i.
        spread: by output: the largest difference that was seen between settings.
        places: by output: the same between the places of a row in a batch.
        floor: by output: what rounding alone may do.
        settings: how many ways of running it were compared.
        engine: that ran it.
    """

    answers: Mapping[str, np.ndarray]
    spread: Mapping[str, float]
    places: Mapping[str, float]
    floor: Mapping[str, float]
    settings: int
    engine: str

    def tolerance(self, *, mixed: bool = False) -> float:
        """Return the largest difference between an answer here and on another machine.

        Where rows change each other's answers, that is no rounding: golden examples run alone, so it does not count.
        """
        places = dict.fromkeys(self.spread, 0.0) if mixed else self.places
        return max(
            (max(_FACTOR * max(self.spread[name], places[name]), self.floor[name]) for name in self.spread), default=0.0
        )

    def evidence(self, subjects: Mapping[str, str], *, mixed: bool) -> Evidence:
        """Return the evidence ``golden``."""
        tolerance = self.tolerance(mixed=mixed)
        examples = len(next(iter(self.answers.values())))
        measured: dict[str, Json] = {
            "examples": examples,
            "spread": dict(self.spread),
            "places": dict(self.places),
            "tolerance": tolerance,
            "engine": self.engine,
        }
        return Evidence(
            "golden",
            Verdict.PASSED,
            subjects,
            f"{examples} golden examples give the same under {self.settings} settings of {self.engine} "
            f"(allowed {tolerance:.2g})",
            measured,
            {
                "settings": "1 and 2 threads; optimization levels; places in a batch",
                "tolerance": "8 x the largest spread, at least 64 spacings of float32 at the largest value",
            },
        )


def answers_to(runner: Runner, row: Tensors, *, batched: bool) -> Tensors:
    """Return the answers to one row, or to the whole inputs of a graph without rows; the first axis are rows."""
    if batched:
        return runner.run({name: array[np.newaxis] for name, array in row.items()})
    return {name: array[np.newaxis] for name, array in runner.run(row).items()}


def golden_of(candidate: Candidate, rows: Sequence[Tensors], *, batched: bool) -> VariantGolden:
    """Run a variant on the golden inputs under several settings.

    Raises:
        Refused: its answers depend on the settings more than on the input, or differ from one run to the next.
        LightshipError: the engine does not run it.
    """
    base = EngineOptions.from_json(candidate.options)
    ways = [replace(base, threads=2)]
    if candidate.engine == "onnxruntime" and base.optimization == "all":
        ways += [replace(base, optimization=level) for level in ("extended", "basic", "none")]
    # In one session: a random operator without a seed may begin alike in each of them.
    twice = _run(candidate, base, [*rows, rows[0]], batched=batched)
    first = {name: arrays[:-1] for name, arrays in twice.items()}
    for name, arrays in twice.items():
        if (off := largest_difference(arrays[-1], arrays[0])) > _floor(arrays):
            raise Refused(f"it gives other answers to the same input: {name!r} differs by {off:.3g}")
    spread = dict.fromkeys(first, 0.0)
    tried = 1
    for way in ways:
        try:
            found = _run(candidate, way, rows, batched=batched)
        except LightshipError:
            continue  # some graphs run under full optimization only: operators that only fusion gives a kernel to
        tried += 1
        _widen(spread, found, first)
    places = dict.fromkeys(first, 0.0)
    if batched and len(rows) >= _PLACES and _alike(rows):
        _widen(places, _in_places(candidate, base, rows), first)
    for name, off in spread.items():
        largest = max((_largest(array) for array in first[name]), default=0.0)
        if not off <= max(largest, _floor(first[name])):
            raise Refused(f"its answers depend on how the engine is set: {name!r} differs by {off:.3g}")
    answers = {name: np.concatenate(arrays) for name, arrays in first.items()}
    floor = {name: _floor(arrays) for name, arrays in first.items()}
    return VariantGolden(answers, spread, places, floor, tried, candidate.engine)


def recorded(name: str, answers: Mapping[str, np.ndarray], tolerance: float, *, contents: dict[str, bytes]) -> Expected:
    """Add answers to the contents of a bundle; return how its manifest tells of them.

    Args:
        name: of the variant.
        answers: by output: row i is the answer to golden input i.
        tolerance: what they may be off.
        contents: of the bundle, by path.
    """
    outputs = {}
    for index, (output, array) in enumerate(sorted(answers.items())):
        # By number: an output may have any name, a path may not.
        outputs[output] = f"golden/{name}/{index:03}.npy"
        contents[outputs[output]] = npy_from_array(packed_texts(array) if array.dtype == object else array)
    return Expected(outputs, decimal_text(tolerance))


def decimal_text(value: float) -> str:
    """Return ``value`` rounded up to two digits, as the bundle format writes decimals."""
    if value == 0:
        return "0"
    digits, _, exponent = f"{Context(prec=2, rounding=ROUND_UP).create_decimal_from_float(value):.1e}".partition("e")
    return f"{digits}e{int(exponent)}"


def _alike(rows: Sequence[Tensors]) -> bool:
    return len({tuple(array.shape for array in row.values()) for row in rows}) == 1


def _run(
    candidate: Candidate, options: EngineOptions, rows: Sequence[Tensors], *, batched: bool
) -> dict[str, list[np.ndarray]]:
    runner = load_runner(
        candidate.graph, engine=candidate.engine, options=replace(options, batched=batched, limit_s=LONGEST_RUN_S)
    )
    try:
        answers = [answers_to(runner, row, batched=batched) for row in rows]
    finally:
        runner.close()
    return {name: [answer[name] for answer in answers] for name in answers[0]}


def _in_places(candidate: Candidate, options: EngineOptions, rows: Sequence[Tensors]) -> dict[str, list[np.ndarray]]:
    """Return the answers to each row in a batch with the others."""
    runner = load_runner(candidate.graph, engine=candidate.engine, options=replace(options, limit_s=LONGEST_RUN_S))
    try:
        together = runner.run({name: np.stack([row[name] for row in rows]) for name in rows[0]})
    finally:
        runner.close()
    return {name: [array[index : index + 1] for index in range(len(rows))] for name, array in together.items()}


def _widen(
    spread: dict[str, float], found: Mapping[str, list[np.ndarray]], first: Mapping[str, list[np.ndarray]]
) -> None:
    for name, arrays in first.items():
        off = max(largest_difference(a, b) for a, b in zip(found[name], arrays, strict=True))
        spread[name] = max(spread[name], off)


def _largest(array: np.ndarray) -> float:
    if array.dtype.kind not in "fiub":
        return 0.0
    finite = np.abs(array[np.isfinite(array)].astype(np.float64))
    return float(finite.max(initial=0.0))


def _floor(arrays: Sequence[np.ndarray]) -> float:
    if arrays[0].dtype.kind != "f":
        return 0.0
    kind = np.float16 if arrays[0].dtype == np.float16 else np.float32
    largest = min(max(_largest(array) for array in arrays), float(np.finfo(kind).max))
    return (4.0 if kind is np.float16 else _FLOOR_ULPS) * float(np.spacing(kind(largest)))
