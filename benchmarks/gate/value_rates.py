"""How often the gate errs where answers are numbers: python benchmarks/gate/value_rates.py [--draws 1000].

Errors of reference and variant are drawn whose true mean absolute, or root mean squared, error grew by exactly the
margin, 2 %, and go through the very test that the gate uses. Beside it: the test of that figure alone, Student's t
alone, and the studentized Poisson bootstrap. Then the power of a variant that was only rounded.

Prints Markdown tables with Wilson intervals (99 %). A quarter of an hour on one core; ``--draws 200``: three minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from lightship.types import Interval, Verdict
from lightship.validate.paired_losses import PairedNumbers
from lightship.validate.skewed_mean import student_tail
from lightship.validate.statistics import wilson

CONFIDENCE = 0.99
MARGIN, ALPHA = 0.02, 0.05
Draw = Callable[[np.random.Generator, int, float], tuple[np.ndarray, np.ndarray]]


def with_noise(errors: Callable[[np.random.Generator, int], np.ndarray]) -> Draw:
    """Return errors, and the same with normal noise added."""

    def draw(rng: np.random.Generator, n: int, size: float) -> tuple[np.ndarray, np.ndarray]:
        found = errors(rng, n)
        return found, found + size * rng.normal(size=n)

    return draw


def skewed(rng: np.random.Generator, n: int, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Return log-normal errors, and the same times noise: large ones are changed most."""
    found = rng.lognormal(0, 1.2, n)
    return found, found * np.exp(size * rng.normal(size=n))


def shifted(rng: np.random.Generator, n: int, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Return normal errors, and the same with every answer too large."""
    found = rng.normal(size=n)
    return found, found + size


def on_some(share: float) -> Draw:
    """Return normal errors, and the same with a jump on some rows."""

    def draw(rng: np.random.Generator, n: int, size: float) -> tuple[np.ndarray, np.ndarray]:
        found = rng.normal(size=n)
        jump = size * (rng.random(n) < share) * rng.choice([-1, 1], size=n) * (1 + rng.random(n))
        return found, found + jump

    return draw


FAMILIES: dict[str, Draw] = {
    "normal errors, noise": with_noise(lambda rng, n: rng.normal(size=n)),
    "errors of Student's t with 3 degrees, noise": with_noise(lambda rng, n: rng.standard_t(3, size=n)),
    "log-normal errors, noise in proportion": skewed,
    "a shift of every answer": shifted,
    "a jump on 5 % of the rows": on_some(0.05),
    "a jump on 1 % of the rows": on_some(0.01),
}


def size_at_margin(draw: Draw, power: int) -> float:
    """Return the size of the change with which the figure grows by the margin, from a million draws."""
    low, high = 0.0, 100.0
    for _ in range(30):
        middle = (low + high) / 2
        one, two = draw(np.random.default_rng(5), 1_000_000, middle)
        grown = (np.abs(two) ** power).mean() > (1 + MARGIN) ** power * (np.abs(one) ** power).mean()
        low, high = (low, middle) if grown else (middle, high)
    return high


def tested(one: np.ndarray, two: np.ndarray, power: int, rng: np.random.Generator) -> list[bool]:
    """Return who releases: the gate, the figure's own test, Student's t, the bootstrap."""
    losses = PairedNumbers()
    losses.add(np.zeros(len(one)), one, two)
    found = losses.test(margin=MARGIN, alpha=ALPHA)
    figure = found.mae if power == 1 else found.rmse
    z = np.abs(two) ** power - (1 + MARGIN) ** power * np.abs(one) ** power
    n, mean, deviation = len(z), z.mean(), z.std(ddof=1)
    t = mean / (deviation / n**0.5)
    weights = rng.poisson(1, size=(200, n))
    total = weights.sum(axis=1)
    means = weights @ z / total
    variances = np.maximum(weights @ z**2 / total - means**2, 1e-30)
    drawn = (means - mean) / np.sqrt(variances / total)
    return [
        found.verdict is Verdict.PASSED,
        figure.p_noninferior <= ALPHA,
        student_tail(float(t), n - 1) <= ALPHA,
        (1 + int((drawn <= t).sum())) / 201 <= ALPHA,
    ]


def rates(draw: Draw, size: float, power: int, *, n: int, draws: int, seed: int) -> list[Interval]:
    """Return how often each of the four releases."""
    rng = np.random.default_rng([seed, n, power, round(1e4 * size)])
    counts = np.zeros(4)
    for _ in range(draws):
        counts += tested(*draw(rng, n, size), power, rng)
    return [wilson(int(k), draws, CONFIDENCE) for k in counts]


def show(rate: Interval) -> str:
    return f"{100 * rate.estimate:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    draws, seed = arguments.draws, arguments.seed

    print(f"True growth = margin = {100 * MARGIN:g} %, alpha 5 %, {draws} draws each: released\n")
    print("| figure | rows | errors | the gate | its test | Student's t | bootstrap |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for power, figure in ((1, "MAE"), (2, "RMSE")):
        for name, draw in FAMILIES.items():
            size = size_at_margin(draw, power)
            for n in (300, 1000):
                found = rates(draw, size, power, n=n, draws=draws, seed=seed)
                print(f"| {figure} | {n} | {name} | {' | '.join(show(rate) for rate in found)} |", flush=True)

    print("\nNoise of a share of the reference's errors, normal: released by the gate\n")
    print("| rows | noise | released |\n| --- | --- | --- |")
    for n in (203, 300, 1000):
        for size in (0.01, 0.05, 0.1):
            found = rates(FAMILIES["normal errors, noise"], size, 1, n=n, draws=draws // 2, seed=seed)
            print(f"| {n} | {100 * size:g} % | {show(found[0])} |", flush=True)


if __name__ == "__main__":
    main()
