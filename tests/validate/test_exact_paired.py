"""The exact test against enumeration of every outcome."""

from __future__ import annotations

import math
import time
from bisect import bisect

import numpy as np
import pytest
from scipy import optimize, special, stats

from lightship.validate.exact_paired import Region, critical_region, p_inferior, p_noninferior, score

CASES = [(6, 0.1), (12, 0.3), (20, 0.05), (35, 0.02)]


def outcomes(n):
    """Return every (losses, gains) of n rows."""
    losses, gains = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    keep = losses + gains <= n
    return losses[keep], gains[keep]


def enumerated(member, n, drop, *, points=3000):
    """Return the probability of a set of outcomes for many q: the multinomial, written out."""
    b, c = (part[member] for part in outcomes(n))
    q = (1 - drop) / 2 * np.sin(np.linspace(0, math.pi / 2, points))[:, None] ** 2
    log_count = (
        special.gammaln(n + 1) - special.gammaln(b + 1) - special.gammaln(c + 1) - special.gammaln(n - b - c + 1)
    )
    parts = special.xlogy(b, q + drop) + special.xlogy(c, q) + special.xlogy(n - b - c, np.maximum(1 - 2 * q - drop, 0))
    return np.exp(log_count + parts).sum(axis=1)


def test_score_is_tangos_with_the_likelihood_maximized_by_scipy():
    """The closed form of the restricted estimate, against a numeric maximum."""
    for b, c, n, drop in [(5, 2, 50, 0.1), (0, 0, 30, 0.05), (3, 9, 40, 0.02), (10, 0, 20, 0.3)]:

        def unlikely(q, b=b, c=c, n=n, drop=drop):
            return -(b * math.log(q + drop) + c * math.log(q) + (n - b - c) * math.log(1 - 2 * q - drop))

        q = optimize.minimize_scalar(unlikely, bounds=(1e-12, (1 - drop) / 2 - 1e-12), options={"xatol": 1e-12}).x
        expected = (b - c - n * drop) / math.sqrt(n * (2 * q + drop - drop**2))

        assert float(score(np.array(b), np.array(c), n, drop)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("n", "drop"), CASES)
def test_score_rises_with_losses_and_falls_with_gains(n, drop):
    """So the staircases hold exactly the outcomes that are as extreme, and no more."""
    losses, gains = outcomes(n)
    more = losses + gains < n

    base = score(losses[more], gains[more], n, drop)

    assert (score(losses[more] + 1, gains[more], n, drop) > base).all()
    assert (score(losses[more], gains[more] + 1, n, drop) < base).all()


@pytest.mark.parametrize(("n", "drop"), CASES)
def test_staircase_probability_is_the_sum_over_its_outcomes(n, drop):
    """The recurrences along the stairs give what adding up every outcome gives."""
    losses, gains = outcomes(n)
    for limit in (-2.0, -0.7, 0.0, 1.5):
        region = Region.up_to(limit, n, drop)
        member = score(losses, gains, n, drop) <= limit + 1e-9
        counts = np.column_stack([losses, gains, n - losses - gains])[member]
        for p_loss, p_gain in [(0.1, 0.05), (0.01, 0.3), (0.0, 0.0), (0.5, 0.5), (0.3, 0.0)]:
            expected = stats.multinomial.pmf(counts, n, [p_loss, p_gain, 1 - p_loss - p_gain]).sum()

            assert region.probability(p_loss, p_gain) == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize(("n", "drop"), CASES)
def test_p_values_are_the_maxima_over_the_nuisance_parameter(n, drop):
    """Both p-values against enumeration on a fine grid: never below it, and above it by the stated 1e-6 at most."""
    losses, gains = outcomes(n)
    scores = score(losses, gains, n, drop)
    for index in np.random.default_rng(n).choice(losses.size, size=6, replace=False):
        b, c = int(losses[index]), int(gains[index])
        better = enumerated(scores <= scores[index] + 1e-9, n, drop).max()
        worse = enumerated(scores >= scores[index] - 1e-9, n, drop).max()

        assert 0 <= p_noninferior(b, c, n, drop) - better + 1e-9 <= 1.5e-6
        assert 0 <= p_inferior(b, c, n, drop) - worse + 1e-9 <= 1.5e-6


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 3])
@pytest.mark.parametrize(("n", "margin"), [(20, 0.1), (35, 0.05), (40, 0.3)])
def test_level_holds_for_every_amount_of_disagreement(n, margin, alpha):
    """The chance to release a variant whose drop is the margin, or more, is at most alpha, by enumeration."""
    losses, gains = outcomes(n)
    order = np.argsort(score(losses, gains, n, margin))

    # p grows with the score, so one search finds the last outcome that is released.
    count = bisect(order, alpha, key=lambda i: p_noninferior(int(losses[i]), int(gains[i]), n, margin))
    released = np.isin(np.arange(losses.size), order[:count])

    assert 0 < count < losses.size
    for drop in (margin, margin + 0.05, 0.5):
        assert enumerated(released, n, drop, points=2000).max() <= alpha


def test_search_finds_the_maximum_of_a_grid_twenty_times_finer():
    """What hides between the points of the search is less than the 1e-6 that is added."""
    rng = np.random.default_rng(2)
    for _ in range(25):
        n, drop = int(rng.choice([10, 50, 300])), float(rng.choice([0.005, 0.01, 0.05, 0.3]))
        region = Region.up_to(float(rng.uniform(-3, 1)), n, drop)
        rates = (1 - drop) / 2 * np.sin(np.linspace(0, math.pi / 2, 20 * max(64, round(6.3 * n**0.5)))) ** 2

        fine = region.probabilities(rates + drop, rates)

        assert fine.max() - region.extreme(drop) < 5e-7
        assert region.extreme(drop, largest=False) - fine.min() < 5e-7


def test_critical_region_is_within_the_level():
    """A power computed from it is that of a test that holds its level."""
    for n, alpha in [(50, 0.05), (300, 0.05 / 3), (1000, 0.05)]:
        region = critical_region(n, 0.05, alpha)

        assert region is not None
        assert region.extreme(0.05) <= alpha


def test_large_gate_sets_are_quick():
    """1,000 rows take milliseconds, 100,000 about a second; both limits leave room for a busy machine."""
    start = time.process_time()
    p_noninferior(5, 5, 1000, 0.01)
    thousand = time.process_time() - start
    p_noninferior(1200, 500, 100_000, 0.01)

    assert thousand < 0.3
    assert time.process_time() - start < 8
