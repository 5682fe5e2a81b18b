"""How far a graph's answers to the golden examples may differ on another machine.

There is no float64 original of an int8 graph, so its own spread is measured: over optimization levels, threads and the
place of a row in its batch, which change the order of sums and the kernels used as another machine would.
"""

from __future__ import annotations

from decimal import ROUND_UP, Context, Decimal

import numpy as np

from lightship.engine.runner import EngineOptions, load_runner

__all__ = ["decimal_text", "golden_answers"]

_FACTOR = 8
_WAYS = (
    EngineOptions(),  # the first gives the answers that are recorded
    EngineOptions(threads=2),
    *(EngineOptions(optimization=level) for level in ("extended", "basic", "none")),
)


def golden_answers(graph: bytes, images: np.ndarray, *, floor: float) -> tuple[np.ndarray, str]:
    """Return what ``graph`` answers, float32 (rows, classes), and the tolerance as a decimal string.

    The tolerance is 8 times the largest spread seen, and at least ``floor`` (that of the reference against PyTorch).
    """
    answers = []
    for way in _WAYS:
        runner = load_runner(graph, options=way)
        answers.append(runner.run({"image": images})["logits"])
        singly = [runner.run({"image": images[i : i + 1]})["logits"] for i in range(len(images))]
        answers.append(np.concatenate(singly))
        runner.close()
    spread = max(float(np.abs(other - answers[0]).max()) for other in answers[1:])
    return answers[0], decimal_text(max(_FACTOR * spread, floor))


def decimal_text(value: float) -> str:
    """Return ``value`` rounded up to two significant digits, as the bundle format writes decimals."""
    rounded = Context(prec=2, rounding=ROUND_UP).create_decimal_from_float(value)
    return format(Decimal(rounded), "f")
