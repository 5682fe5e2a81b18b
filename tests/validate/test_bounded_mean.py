"""Bounds that hold for every distribution: against scipy, against formulas on paper, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lightship.errors import InvalidInput
from lightship.validate.bounded_mean import binomial_tail, clopper_pearson, mean_above, mean_is_below, share_rows_needed


@pytest.mark.parametrize(("k", "n"), [(0, 100), (1, 300), (5, 1000), (997, 1000), (3000, 10_000), (50, 50), (7, 10**5)])
def test_share_interval_is_that_of_the_beta_distribution(k, n):
    """Clopper and Pearson's limits are beta quantiles."""
    found = clopper_pearson(k, n, 0.95)

    low = stats.beta.ppf(0.025, k, n - k + 1) if k else 0.0
    high = stats.beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-12), pytest.approx(high, abs=1e-12))


@pytest.mark.parametrize(("k", "n", "p"), [(0, 10, 0.5), (3, 300, 0.02), (80, 100, 0.7), (5, 5, 0.3), (400, 5000, 0.1)])
def test_tail_is_that_of_the_binomial_distribution(k, n, p):
    """From either side."""
    assert binomial_tail(k, n, p) == pytest.approx(stats.binom.cdf(k, n, p), rel=1e-9, abs=1e-14)


def test_no_bad_row_needs_as_many_rows_as_the_formula_on_paper():
    """``(1 - limit)^n`` must fall to alpha; what the text of the budget states."""
    assert share_rows_needed(0, limit=0.02, alpha=0.05) == 149
    assert share_rows_needed(0, limit=0.02, alpha=0.05 / 3) == 203
    assert share_rows_needed(0.02, limit=0.02, alpha=0.05) is None
    needed = share_rows_needed(1 / 300, limit=0.02, alpha=0.05)
    assert clopper_pearson(1, needed, 0.9).high <= 0.02 < clopper_pearson(1, needed - 10, 0.9).high


def test_rows_that_are_all_alike_are_bounded_nearly_as_on_paper():
    """No bound can beat ``top (1 - alpha^(1/n))``; ours pays a factor of two in alpha for its other stakes."""
    found = mean_above(np.zeros(1), np.array([203]), top=0.125, alpha=0.05)

    least, most = (0.125 * (1 - level ** (1 / 203)) for level in (0.05, 0.05 * 0.4995))
    assert least <= found <= most


def test_bound_is_the_least_mean_that_is_shown():
    """Just above it the bet is won, just below it is not."""
    values = np.random.default_rng(2).random(50) ** 3

    bound = mean_above(values, np.ones(50), top=1.0, alpha=0.05)

    assert mean_is_below(values, np.ones(50), top=1.0, mean=bound + 1e-9, alpha=0.05)
    assert not mean_is_below(values, np.ones(50), top=1.0, mean=bound - 1e-9, alpha=0.05)


def test_of_nothing_nothing_is_known():
    """The bound is the top."""
    assert mean_above(np.zeros(0), np.zeros(0), top=0.5, alpha=0.05) == 0.5


DRAWS = {
    "two values": lambda rng, shape: (rng.random(shape) < 0.01).astype(float),
    "log-normal": lambda rng, shape: np.minimum(rng.lognormal(-5, 1.5, shape), 1.0),
    "even": lambda rng, shape: rng.random(shape),
    "skewed the other way": lambda rng, shape: 1 - (rng.random(shape) < 0.05),
}


@pytest.mark.parametrize("kind", DRAWS)
def test_bound_of_a_mean_errs_at_most_as_often_as_it_says(kind):
    """400 samples of 200 rows at alpha 0.1: at most 0.1, up to the luck of 400 draws (3.7 deviations)."""
    rng = np.random.default_rng(3)
    truth = DRAWS[kind](rng, 2_000_000).mean()

    missed = sum(
        mean_is_below(values, np.ones(200), top=1.0, mean=truth, alpha=0.1) for values in DRAWS[kind](rng, (400, 200))
    )

    assert missed <= 400 * 0.1 + 22


@pytest.mark.parametrize(("k", "n", "confidence"), [(3, 2, 0.9), (-1, 2, 0.9), (1, 2, 1.0)])
def test_impossible_shares_are_refused(k, n, confidence):
    """Not a share, or no confidence."""
    with pytest.raises(InvalidInput, match="A share needs"):
        clopper_pearson(k, n, confidence)
