"""How often the interval of the calibration error holds the true one.

    python benchmarks/gate/calibration_coverage.py [runs]

Logits are drawn, classes are drawn from their probabilities, and the model states the logits times a factor: 1 is a
calibrated model, 3 is far too sure. The true error is that of 400,000 rows with known probabilities.
"""

from __future__ import annotations

import sys

import numpy as np

from lightship.validate.calibration import MOST_BINS, calibration
from lightship.validate.logits import probabilities_of
from lightship.validate.statistics import wilson

CLASSES = 10


def draw(random: np.random.Generator, rows: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Return stated logits (rows, classes) and true classes (rows,)."""
    logits = 3 * random.normal(size=(rows, CLASSES))
    truth = (probabilities_of(logits).cumsum(axis=1) < random.random(rows)[:, None]).sum(axis=1)
    return factor * logits, np.minimum(truth, CLASSES - 1)


def true_error(factor: float) -> float:
    """Return the error without the noise of the classes."""
    logits, _ = draw(np.random.default_rng(99), 400_000, factor)
    sure = probabilities_of(logits).max(axis=1)
    right = probabilities_of(logits / factor).max(axis=1)
    pieces = np.array_split(np.argsort(sure), MOST_BINS)
    return float(sum(abs((right[piece] - sure[piece]).mean()) * len(piece) for piece in pieces) / len(sure))


def main() -> None:
    """Print the table of docs/statistics.md."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print("| logits times | true error | gate rows | mean estimate | 95 % interval holds it | mean width |")
    print("| --- | --- | --- | --- | --- | --- |")
    for factor in (1.0, 0.6, 1.5, 3.0):
        truth = true_error(factor)
        for rows in (300, 1000, 5000):
            found = [calibration(*draw(np.random.default_rng([1, run]), rows, factor)).ece for run in range(runs)]
            held = wilson(sum(each.low <= truth <= each.high for each in found), runs, 0.99)
            print(
                f"| {factor:g} | {truth:.4f} | {rows} | {np.mean([each.estimate for each in found]):.4f} | "
                f"{100 * held.estimate:.1f} % ({100 * held.low:.1f} to {100 * held.high:.1f}) | "
                f"{np.mean([each.high - each.low for each in found]):.4f} |"
            )


if __name__ == "__main__":
    main()
