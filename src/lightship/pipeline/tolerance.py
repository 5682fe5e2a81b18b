"""How far a graph's answers to the golden examples may differ on another machine.

There is no float64 original of an int8 graph, so its own spread is measured: over threads, the place of a row in its
batch and, where the engine has them, optimization levels, which change the order of sums and the kernels used as
another machine would.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from decimal import ROUND_UP, Context, Decimal

import numpy as np

from lightship.engine.difference import largest_difference
from lightship.engine.runner import OPTIMIZATIONS, EngineOptions, Runner, load_runner

__all__ = ["decimal_text", "golden_answers"]

_FACTOR = 8
_HAS_LEVELS = {"onnxruntime"}


def golden_answers(
    graph: bytes,
    inputs: Mapping[str, np.ndarray],
    *,
    floor: float,
    engine: str = "onnxruntime",
    options: EngineOptions | None = None,
) -> tuple[dict[str, np.ndarray], str]:
    """Return what ``graph`` answers, by output, and the tolerance as a decimal string.

    The tolerance is 8 times the largest spread seen, and at least ``floor`` (that of the reference against PyTorch).

    Args:
        graph: takes rows.
        inputs: rows by the name of the input.
        floor: least tolerance.
        engine: that runs it.
        options: with which it runs.
    """
    answers: list[dict[str, np.ndarray]] = []
    for way in _ways(engine, options or EngineOptions()):
        runner = load_runner(graph, engine=engine, options=way)
        try:
            answers += [runner.run(inputs), _singly(runner, inputs)]
        finally:
            runner.close()
    recorded = answers[0]
    spread = max(largest_difference(other[name], rows) for other in answers[1:] for name, rows in recorded.items())
    return recorded, decimal_text(max(_FACTOR * spread, floor))


def _ways(engine: str, options: EngineOptions) -> Iterator[EngineOptions]:
    """Yield ways to run a variant as it is; the first gives the answers that are recorded."""
    yield options
    yield replace(options, threads=options.threads + 1)
    if engine in _HAS_LEVELS and options.optimization == "all":
        yield from (replace(options, optimization=level) for level in OPTIMIZATIONS if level != "all")


def _singly(runner: Runner, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    rows = len(next(iter(inputs.values())))
    each = [runner.run({name: array[row : row + 1] for name, array in inputs.items()}) for row in range(rows)]
    return {name: np.concatenate([outputs[name] for outputs in each]) for name in each[0]}


def decimal_text(value: float) -> str:
    """Return ``value`` rounded up to two significant digits, as the bundle format writes decimals."""
    rounded = Context(prec=2, rounding=ROUND_UP).create_decimal_from_float(value)
    return format(Decimal(rounded), "f")
