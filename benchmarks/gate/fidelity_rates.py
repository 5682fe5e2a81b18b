"""How often the gate errs where there are no labels: python benchmarks/gate/fidelity_rates.py [--draws 1000].

Rows are drawn whose true mean cosine *is* the budget, 0.99, from distributions between harmless and treacherous. The
first of each kind go through the very meter and check that the gate uses, and must say the same as the short cut that
judges all of them. Four tables:

1. Such a variant is released (must be at most alpha), beside how often the lower end of an interval by Student's t and
   by the percentile bootstrap would have released it.
2. A variant of which 2 % and 3 % of the rows are broken and all others perfect is released; no draws, the exact chance.
3. A faithful variant is released, by its rows: power.
4. Bounds of ``snr_db`` and ``explained`` err, by Student's t on the logarithm.

Prints Markdown tables with Wilson intervals (99 %). Two minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from lightship.types import Interval, Verdict
from lightship.validate.bounded_mean import binomial_tail, clopper_pearson, mean_is_below
from lightship.validate.checks.fidelity import check_fidelity
from lightship.validate.fidelity import _LOSS_EDGES, BROKEN_LOSS, Fidelity, FidelityBudget, FidelityMeter
from lightship.validate.statistics import wilson

CONFIDENCE = 0.99
BUDGET = 0.99
CHECKED = 4  # draws of each kind that the gate itself must judge in the same way
SUBJECTS = {"reference": "0" * 64}
Draw = Callable[[np.random.Generator, int], np.ndarray]


def log_normal(sigma: float) -> Draw:
    """Return losses with a log-normal distribution, cut at 2."""
    return lambda rng, n: np.minimum(rng.lognormal(0, sigma, n), 1e9)


def mixture(share: float, loss: float) -> Draw:
    """Return losses of which ``share`` are ``loss`` and the others next to nothing."""
    return lambda rng, n: np.where(rng.random(n) < share, loss, 1e-5)


# Name, losses, whether they are scaled to the budget (a mixture is there already).
FAMILIES: list[tuple[str, Draw, bool]] = [
    ("log-normal, sigma 0.5", log_normal(0.5), True),
    ("log-normal, sigma 1", log_normal(1.0), True),
    ("log-normal, sigma 1.5", log_normal(1.5), True),
    ("10 % of the rows lose 0.1", mixture(0.1, 0.1), False),
    ("4 % of the rows lose 0.25", mixture(0.04, 0.25), False),
    ("2 % of the rows lose 0.5", mixture(0.02, 0.5), False),
    ("1 % of the rows lose all", mixture(0.01, 1.0), False),
]


def measured(losses: np.ndarray, *, alpha: float) -> Fidelity:
    """Give the meter answers with these losses: two values a row, turned by the angle that loses as much."""
    cosine = 1 - losses
    reference = np.broadcast_to([1.0, 0.0], (len(losses), 2))
    variant = np.stack([cosine, np.sqrt(np.maximum(1 - cosine**2, 0))], axis=1)
    meter = FidelityMeter()
    meter.add({"y": reference}, {"y": variant})
    return meter.result(confidence=1 - 2 * alpha)


def released(losses: np.ndarray, *, alpha: float) -> bool:
    """Whether the gate lets a variant with these losses through, by the default budget."""
    found = check_fidelity(
        measured(losses, alpha=alpha), budget=FidelityBudget(min_explained=None), subjects=SUBJECTS, alpha=alpha
    )
    return found.verdict is Verdict.PASSED


def released_quickly(losses: np.ndarray, *, alpha: float) -> bool:
    """Say the same without bisection: whether each bound reaches its budget, and not where it lies."""
    lost = losses[losses > BROKEN_LOSS]
    broken, n = len(lost), len(losses)
    if broken > most_broken(n, alpha):
        return False
    share = clopper_pearson(broken, n, 1 - alpha).high if broken else 0.0
    mean = (1 - BUDGET - share * (lost.mean() if broken else 0.0)) / (1 - share)
    highs = _LOSS_EDGES[np.searchsorted(_LOSS_EDGES, losses[losses <= BROKEN_LOSS])]
    shown = mean > 0 and mean_is_below(highs, np.ones(len(highs)), top=BROKEN_LOSS, mean=float(mean), alpha=alpha / 2)
    return shown and float(losses.mean()) <= 1 - BUDGET


@lru_cache
def most_broken(n: int, alpha: float) -> int:
    """Return how many broken rows of n still show that fewer than 2 % are; -1: not even none."""
    limit, k = FidelityBudget().max_broken or 0.0, 0
    while binomial_tail(k, n, limit) <= alpha:
        k += 1
    return k - 1


def by_student(losses: np.ndarray, z: float) -> bool:
    """Whether the mean cosine less z standard errors reaches the budget."""
    return float(1 - losses.mean() - z * losses.std(ddof=1) / len(losses) ** 0.5) >= BUDGET


def by_bootstrap(losses: np.ndarray, alpha: float, rng: np.random.Generator) -> bool:
    """Whether the percentile of 200 bootstrap means does."""
    means = losses[rng.integers(0, len(losses), size=(200, len(losses)))].mean(axis=1)
    return float(1 - np.quantile(means, 1 - alpha)) >= BUDGET


def boundary(name: str, draw: Draw, scale: bool, *, n: int, draws: int, seed: int, alpha: float) -> list[Interval]:
    """Return how often a variant at the budget is released: by the gate, by t, by the bootstrap."""
    rng = np.random.default_rng([seed, n, *name.encode()])
    factor = 1.0
    if scale:
        pool = draw(np.random.default_rng(seed), 2_000_000)
        low, high = 1e-6, 1.0
        for _ in range(60):  # the mean of what is cut at 2
            factor = (low + high) / 2
            low, high = (factor, high) if np.minimum(pool * factor, 2).mean() < 1 - BUDGET else (low, factor)
    counts = np.zeros(3)
    for number in range(draws):
        losses = np.minimum(draw(rng, n) * factor, 2.0)
        gate = released_quickly(losses, alpha=alpha)
        assert number >= CHECKED or gate == released(losses, alpha=alpha)
        counts += [gate, by_student(losses, 1.645), by_bootstrap(losses, alpha, rng)]
    return [wilson(int(k), draws, CONFIDENCE) for k in counts]


def power(mean: float, *, n: int, draws: int, seed: int, alpha: float) -> Interval:
    """Return how often a faithful variant, log-normal losses with sigma 1 and this mean, is released."""
    rng = np.random.default_rng([seed, n, round(1e6 * mean)])
    scale = mean / np.exp(0.5)
    hits = sum(released_quickly(np.minimum(scale * rng.lognormal(0, 1, n), 2), alpha=alpha) for _ in range(draws))
    return wilson(hits, draws, CONFIDENCE)


def decibels(spread: float, *, n: int, draws: int, seed: int) -> tuple[Interval, Interval]:
    """Return how often the true ratio lies below the lower end (95 %) of ``snr_db`` and of ``explained``."""
    rng = np.random.default_rng([seed, n, round(10 * spread)])
    truth_db = 10 * np.log10(16 / (16 * 0.01 * np.exp(spread**2 / 2)))
    explained = 1 - 0.01 * np.exp(spread**2 / 2)
    missed = np.zeros(2)
    for _ in range(draws):
        reference = rng.normal(size=(n, 16))
        noise = 0.1 * np.sqrt(rng.lognormal(0, spread, (n, 1))) * rng.normal(size=(n, 16))
        meter = FidelityMeter()
        meter.add({"y": reference}, {"y": reference + noise})
        found = meter.result(confidence=0.9)
        assert found.snr_db is not None
        assert found.explained is not None
        missed += [found.snr_db.low > truth_db, found.explained.low > explained]
    return wilson(int(missed[0]), draws, CONFIDENCE), wilson(int(missed[1]), draws, CONFIDENCE)


def show(rate: Interval) -> str:
    return f"{100 * rate.estimate:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    draws, seed = arguments.draws, arguments.seed

    print(f"True mean cosine = {BUDGET:g}, alpha 5 %, {draws} draws each: released\n")
    print("| rows | distribution of the loss | the gate | t | bootstrap |\n| --- | --- | --- | --- | --- |")
    for n in (300, 1000):
        for name, draw, scale in FAMILIES:
            rates = boundary(name, draw, scale, n=n, draws=draws, seed=seed, alpha=0.05)
            print(f"| {n} | {name} | {' | '.join(show(rate) for rate in rates)} |", flush=True)

    print("\nA share of broken rows, the others perfect: released\n")
    print("| rows | broken | alpha 5 % | alpha 1.67 % |\n| --- | --- | --- | --- |")
    for n in (203, 300, 1000):
        for share in (0.02, 0.03):
            chances = [binomial_tail(most_broken(n, level), n, share) for level in (0.05, 0.05 / 3)]
            print(f"| {n} | {100 * share:g} % | {' | '.join(f'{100 * each:.2f} %' for each in chances)} |")

    print("\nA faithful variant, log-normal losses with sigma 1, alpha 1.67 %: released\n")
    print("| rows | true mean cosine | released |\n| --- | --- | --- |")
    for n in (203, 300, 600):
        for mean in (0.0005, 0.0025, 0.005):
            rate = power(mean, n=n, draws=draws, seed=seed, alpha=0.05 / 3)
            print(f"| {n} | {1 - mean:g} | {show(rate)} |", flush=True)

    print("\nLower ends that lie above the truth (must be at most 5 %)\n")
    print("| rows | noise from row to row | snr_db | explained |\n| --- | --- | --- | --- |")
    for n in (100, 300, 1000):
        for spread in (0.5, 1.5):
            rates = list(decibels(spread, n=n, draws=draws // 4, seed=seed))
            print(f"| {n} | log-normal, sigma {spread:g} | {' | '.join(show(rate) for rate in rates)} |", flush=True)


if __name__ == "__main__":
    main()
