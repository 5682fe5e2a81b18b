"""How often the gate errs, by simulation: python benchmarks/gate/error_rates.py [--draws 200000].

Two promises are put to the test on rows drawn from a multinomial, with the very functions that the gate calls:

1. A variant whose true drop *is* the margin is released in at most 5 % of cases (alpha), for every amount of
   disagreement; so are, together, one, two or three such candidates that share alpha, also where the selection rows say
   how many there are; and a variant that harms no class is refused for harm in at most 5 %.
2. After an undecided look, a variant without a drop is released in at least 80 % with the number of rows that the
   evidence states.

Prints Markdown tables with Wilson intervals (99 %). Takes half a minute on one core.
"Exact" is the chance itself, summed over all outcomes; the simulation next to it scatters about it.
"""

from __future__ import annotations

import argparse
from bisect import bisect

import numpy as np

from lightship.types import Interval
from lightship.validate.exact_paired import critical_region, p_noninferior, score
from lightship.validate.statistics import harm, rows_needed, wilson

MARGIN = 0.01
ALPHAS = (0.05, 0.05 / 3)
ROWS = (300, 1000, 3000)
GAINS = (0.0, 0.002, 0.01, 0.05)  # 0: only losses
LOOKS = ((300, 1, 1), (300, 3, 3), (1000, 12, 8), (1000, 25, 20), (100, 0, 0))  # rows, losses, gains of a first look
CONFIDENCE = 0.99


def released(losses: np.ndarray, gains: np.ndarray, n: int, alpha: float) -> np.ndarray:
    """Return which outcomes the test releases; p grows with the score, so a search over the sorted outcomes will do."""
    scores = score(losses, gains, n, MARGIN)
    order = np.argsort(scores)
    count = bisect(order, alpha, key=lambda i: p_noninferior(int(losses[i]), int(gains[i]), n, MARGIN))
    mask = np.zeros(len(scores), dtype=bool)
    mask[order[:count]] = True
    return mask


def release_rate(n: int, *, p_loss: float, p_gain: float, alpha: float, draws: int, seed: int) -> Interval:
    """Return how often the test releases, with its Wilson interval."""
    rng = np.random.default_rng((seed, n, round(1e6 * p_loss), round(1e6 * alpha)))  # cases err independently
    b, c, _ = rng.multinomial(n, (p_loss, p_gain, 1 - p_loss - p_gain), size=draws).T
    return wilson(int(released(b, c, n, alpha).sum()), draws, CONFIDENCE)


def family_rate(n: int, *, p_gain: float, draws: int, seed: int, candidates: int, alpha: float = 0.05) -> Interval:
    """Return how often any of some independent candidates with a drop of the margin is released."""
    rates = (p_gain + MARGIN, p_gain, 1 - 2 * p_gain - MARGIN)
    b, c, _ = np.random.default_rng(seed).multinomial(n, rates, size=draws * candidates).T
    any_of = released(b, c, n, alpha / candidates).reshape(draws, candidates).any(axis=1)
    return wilson(int(any_of.sum()), draws, CONFIDENCE)


def queue_rate(n: int, *, p_gain: float, draws: int, seed: int, alpha: float = 0.05) -> tuple[Interval, list[float]]:
    """Return how often any candidate is released where the selection rows choose, and how often 0 to 3 were proposed.

    Of three with a drop of the margin those are proposed that lost less than half of it on n / 2 selection rows, and
    they share alpha.
    """
    rng = np.random.default_rng(seed)
    rates = (p_gain + MARGIN, p_gain, 1 - 2 * p_gain - MARGIN)
    chosen_on, judged_on = (rng.multinomial(rows, rates, size=(draws, 3)) for rows in (n // 2, n))
    proposed = chosen_on[..., 0] - chosen_on[..., 1] < MARGIN / 2 * (n // 2)
    queue = proposed.sum(axis=1)
    losses, gains = judged_on[..., 0].ravel(), judged_on[..., 1].ravel()
    passes = {k: released(losses, gains, n, alpha / k).reshape(draws, 3) for k in (1, 2, 3)}
    any_of = sum(int((passes[k] & proposed)[queue == k].any(axis=1).sum()) for k in passes)
    return wilson(any_of, draws, CONFIDENCE), [float((queue == k).mean()) for k in range(4)]


def false_harm_rate(rows: int, *, classes: int, discordance: float, draws: int, seed: int) -> Interval:
    """Return how often harm to a class is claimed of a variant that harms none."""
    rng = np.random.default_rng(seed)
    half = discordance / 2
    counts = rng.multinomial(rows, (half, half, 1 - discordance), size=(draws, classes))
    labels = [str(k) for k in range(classes)]
    refused = sum(
        any(item.harmed for item in harm(labels, [rows] * classes, draw[:, 0].tolist(), draw[:, 1].tolist()))
        for draw in counts
    )
    return wilson(refused, draws, CONFIDENCE)


def show(rate: Interval) -> str:
    return f"{100 * rate.estimate:.2f} % ({100 * rate.low:.2f} to {100 * rate.high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    draws, seed = arguments.draws, arguments.seed

    print(f"True drop = margin = {MARGIN:g}, {draws} draws each: released\n")
    print("| rows | true gains | alpha | exact | simulated |\n| --- | --- | --- | --- | --- |")
    for n in ROWS:
        for gain in GAINS:
            for alpha in ALPHAS:
                rates = {"p_loss": gain + MARGIN, "p_gain": gain, "alpha": alpha}
                region = critical_region(n, MARGIN, alpha, near=1e-9)
                exact = region.probability(gain + MARGIN, gain) if region else 0.0
                rate = release_rate(n, draws=draws, seed=seed, **rates)
                print(
                    f"| {n} | {100 * gain:g} % | {100 * alpha:.2f} % | {100 * exact:.2f} % | {show(rate)} |", flush=True
                )

    print("\nCandidates with a true drop of the margin, any released (5 % shared)\n")
    print("| rows | true gains | candidates | released |\n| --- | --- | --- | --- |")
    for gain in (0.0, 0.01):
        for count in (1, 2, 3):
            rate = family_rate(1000, p_gain=gain, draws=draws, seed=seed, candidates=count)
            print(f"| 1000 | {100 * gain:g} % | {count} | {show(rate)} |", flush=True)

    print("\nThe same, as many as the selection rows propose: any released\n")
    print("| rows | true gains | none, one, two, three proposed | released |\n| --- | --- | --- | --- |")
    for gain in (0.0, 0.01):
        rate, shares = queue_rate(1000, p_gain=gain, draws=draws, seed=seed)
        said = ", ".join(f"{share:.0%}" for share in shares)
        print(f"| 1000 | {100 * gain:g} % | {said} | {show(rate)} |", flush=True)

    print("\nNo drop, with the rows that an undecided first look states: released\n")
    print("| first look (rows, lost, gained) | alpha | rows stated | released |\n| --- | --- | --- | --- |")
    for n, losses, gains in LOOKS:
        discordance = (losses + gains + 0.5) / (n + 1)
        for alpha in ALPHAS:
            rows = rows_needed(discordance, margin=MARGIN, alpha=alpha) or 0
            half = discordance / 2
            rate = release_rate(rows, p_loss=half, p_gain=half, alpha=alpha, draws=draws, seed=seed)
            print(f"| {n}, {losses}, {gains} | {100 * alpha:.2f} % | {rows} | {show(rate)} |", flush=True)

    print("\nTen classes, none harmed: refused for harm\n")
    print("| rows a class | disagreement | refused |\n| --- | --- | --- |")
    for rows in (30, 100, 1000):
        rate = false_harm_rate(rows, classes=10, discordance=0.1, draws=draws // 40, seed=seed)
        print(f"| {rows} | 10 % | {show(rate)} |")


if __name__ == "__main__":
    main()
