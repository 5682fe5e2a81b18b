"""How often harm to a slice is shown where answers are numbers or tags: at the margin, and where a slice is harmed.

    python benchmarks/gate/loss_slice_rates.py 1000

Losses are skewed (exponential; of tags binomial over 4), and the variant's differ from the reference's in every row.
*At the margin*: they grow everywhere by exactly what the gate allows. *Harmed*: where x1 >= 1, one row in six.
"""

from __future__ import annotations

import sys

import numpy as np

from lightship.types import Verdict
from lightship.validate.checks.loss_slices import LossRows, check_loss_slice_harm
from lightship.validate.slices import Features
from lightship.validate.statistics import wilson

MARGINS = {"numbers": 0.02, "tags": 0.01}


def draw(random: np.random.Generator, rows: int, kind: str, harm: float) -> LossRows:
    """Return rows with six features, of which the first tells where the variant harms."""
    features = Features({f"x{place}": random.normal(size=rows) for place in range(1, 7)})
    inside = features.numbers["x1"] >= 1
    margin = MARGINS[kind]
    if kind == "numbers":
        reference = random.exponential(size=rows)
        noise = random.normal(size=rows) * 0.05 * reference
        return LossRows(features, np.maximum(reference * (1 + margin + harm * inside) + noise, 0), reference)
    reference = random.binomial(4, 0.2, rows) / 4
    moved = random.random(rows)
    grown = margin * 4 + harm * 4 * inside
    step = np.where(moved < 0.05 + grown, 0.25, np.where(moved > 0.95, -0.25, 0.0))
    kept = (reference + step >= 0) & (reference + step <= 1)
    return LossRows(features, reference + np.where(kept, step, 0), reference)


def rate(kind: str, rows: int, harm: float, draws: int) -> str:
    """Return the share of draws in which harm is shown, with its interval."""
    random = np.random.default_rng(rows)
    failed = 0
    for _ in range(draws):
        selection, gate = draw(random, rows // 2, kind, harm), draw(random, rows, kind, harm)
        found = check_loss_slice_harm(kind, selection, gate, subjects={}, margin=MARGINS[kind])  # type: ignore[arg-type]
        failed += found.verdict is Verdict.FAILED
    share = wilson(failed, draws)
    return f"{share.estimate:.1%} ({share.low:.1%} to {share.high:.1%})"


def main() -> None:
    """Print a table."""
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print(
        "| labels | gate rows | harm shown at the margin | 10 % more in a slice (tags: 5 points) | 30 % (15 points) |"
    )
    print("| --- | --- | --- | --- | --- |")
    for kind in MARGINS:
        harms = (0.1, 0.3) if kind == "numbers" else (0.05, 0.15)
        for rows in (300, 1000, 3000):
            cells = [rate(kind, rows, harm, draws) for harm in (0.0, *harms)]
            print(f"| {kind} | {rows} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
