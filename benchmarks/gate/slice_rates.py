"""How often slices that are found without naming them are called bad, where none is and where one is.

    python benchmarks/gate/slice_rates.py [runs]

Rows have six features without meaning and a class; the reference errs on 8 % of them. Slices are found on one half of
the draw and told on the other, as `validate` does it. All figures depend on the seed, not on the machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from lightship.types import Verdict
from lightship.validate.checks.slices import Judged, check_slice_harm, check_slices
from lightship.validate.slices import Features
from lightship.validate.statistics import wilson

CLASSES = 5
SUBJECTS = {"reference": "0" * 64}
Draw = tuple[Judged, Judged]


def draw(random: np.random.Generator, rows: int, *, error: float, flips: float, harm: float, own: float) -> Judged:
    """Return one part.

    Args:
        random: where it is drawn from.
        rows: how many.
        error: share of rows on which the reference errs.
        flips: share of rows whose answer the variant draws anew: as many are lost as an equal number is gained.
        harm: share of right answers lost by the variant inside of the planted slice.
        own: error of both inside of the planted slice, on top.
    """
    numbers = {f"x{index}": random.normal(size=rows) for index in range(6)}
    truth = random.integers(CLASSES, size=rows)
    kinds = np.array([f"c{index}" for index in random.integers(8, size=rows)], dtype=object)
    planted = (numbers["x2"] > 0.6) & (kinds != "c0") & (numbers["x4"] < 0.5)  # 17 % of the rows
    wrong = random.random(rows) < error + own * planted
    reference = _logits(random, truth, wrong)
    # Where the variant draws anew it is right as often as the reference is: nothing is harmed.
    again = random.random(rows) < flips
    wrong_too = np.where(again, random.random(rows) < error + own * planted, wrong)
    wrong_too |= planted & (random.random(rows) < harm)
    variant = np.where((wrong_too == wrong)[:, None], reference, _logits(random, truth, wrong_too))
    return Judged(Features(numbers, {"kind": kinds}), truth, variant, reference)


def _logits(random: np.random.Generator, truth: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    said = np.where(wrong, (truth + random.integers(1, CLASSES, size=len(truth))) % CLASSES, truth)
    logits = random.normal(size=(len(truth), CLASSES))
    logits[np.arange(len(truth)), said] += 4
    # The loudest must be the one that is said, whatever was drawn.
    logits[np.arange(len(truth)), said] = np.maximum(logits[np.arange(len(truth)), said], logits.max(axis=1) + 0.1)
    return logits.astype(np.float32)


def share(runs: int, seed: int, tell: Callable[[np.random.Generator], bool]) -> str:
    """Return how often ``tell`` is true, with a 99 % Wilson interval."""
    hits = sum(tell(np.random.default_rng([seed, run])) for run in range(runs))
    found = wilson(hits, runs, 0.99)
    return f"{100 * found.estimate:.2f} % ({100 * found.low:.2f} to {100 * found.high:.2f})"


def harmed(rows: int, **how: float) -> Callable[[np.random.Generator], bool]:
    """Tell whether harm to a slice is shown, with as many selection rows as half of the gate rows."""
    settings = {"error": 0.08, "flips": 0.05, "harm": 0.0, "own": 0.0, **how}

    def tell(random: np.random.Generator) -> bool:
        selection, gate = draw(random, rows // 2, **settings), draw(random, rows, **settings)
        return check_slice_harm(selection, gate, subjects=SUBJECTS).verdict is Verdict.FAILED

    return tell


def worse(rows: int, **how: float) -> Callable[[np.random.Generator], bool]:
    """Tell whether a slice is called worse than the other rows."""
    settings = {"error": 0.08, "flips": 0.0, "harm": 0.0, "own": 0.0, **how}

    def tell(random: np.random.Generator) -> bool:
        selection, gate = draw(random, rows // 2, **settings), draw(random, rows, **settings)
        return bool(check_slices(selection, gate, subjects=SUBJECTS).measured["worse"])

    return tell


def main() -> None:
    """Print the tables of docs/statistics.md."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print("| gate rows | changed answers | harm shown where there is none | 10 % lost in a slice | 30 % lost |")
    print("| --- | --- | --- | --- | --- |")
    for rows in (500, 1000, 3000):
        for flips in (0.02, 0.1):
            cells = [
                share(runs, 1, harmed(rows, flips=flips)),
                share(runs // 4, 2, harmed(rows, flips=flips, harm=0.1)),
                share(runs // 4, 3, harmed(rows, flips=flips, harm=0.3)),
            ]
            print(f"| {rows} | {100 * flips:g} % | " + " | ".join(cells) + " |")
    print()
    print("| gate rows | called worse where none is | a slice that errs on 15 points more | on 30 points more |")
    print("| --- | --- | --- | --- |")
    for rows in (500, 1000, 3000):
        cells = [
            share(runs, 4, worse(rows)),
            share(runs // 4, 5, worse(rows, own=0.15)),
            share(runs // 4, 6, worse(rows, own=0.3)),
        ]
        print(f"| {rows} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
