"""Intervals and tests against scipy, against enumeration, and by simulation."""

from __future__ import annotations

from bisect import bisect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightship.errors import InvalidInput
from lightship.types import Verdict
from lightship.validate import statistics as ours
from lightship.validate.exact_paired import p_noninferior, score


def release_rate(n, *, p_loss, p_gain, alpha):
    """Return the share of 20,000 simulated variants that are released, margin 0.01."""
    b, c, _ = np.random.default_rng(4).multinomial(n, (p_loss, p_gain, 1 - p_loss - p_gain), size=20_000).T
    order = np.argsort(score(b, c, n, 0.01))
    # p grows with the score, so one search in the sorted draws finds how many are released.
    return bisect(order, alpha, key=lambda i: p_noninferior(int(b[i]), int(c[i]), n, 0.01)) / 20_000


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 10), (955, 1000), (1, 100_000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_is_scipys(k, n, confidence):
    """The same limits as scipy's."""
    theirs = stats.binomtest(k, n).proportion_ci(confidence_level=confidence, method="wilson")

    found = ours.wilson(k, n, confidence)

    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert found.low <= found.estimate <= found.high


def test_wilson_of_no_rows_is_everything():
    """Of nothing, nothing is known."""
    found = ours.wilson(0, 0)

    assert (found.low, found.high, found.n) == (0.0, 1.0, 0)


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(k, n):
    """More right rows than rows are a mistake of the caller."""
    with pytest.raises(InvalidInput, match="a count from 0 to the number of rows"):
        ours.wilson(k, n)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_confidence_is_a_share(confidence):
    """95 is not 0.95."""
    with pytest.raises(InvalidInput, match=r"`confidence` must be between 0 and 1.*Got"):
        ours.wilson(1, 2, confidence)


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 200))
def test_f1_interval_holds_the_f1_score(tp, fp, fn):
    """The estimate is 2 TP / (2 TP + FP + FN) and lies inside."""
    found = ours.f1_interval(tp, fp, fn)

    total = 2 * tp + fp + fn
    assert found.estimate == pytest.approx(2 * tp / total if total else 0)
    assert 0 <= found.low <= found.estimate <= found.high <= 1


def test_f1_interval_covers_as_often_as_it_says():
    """TP given TP + FP + FN is binomial: 95 % of 20,000 intervals hold the true F1."""
    rng = np.random.default_rng(3)
    star, n = 0.9, 120
    truth = 2 * star / (1 + star)

    found = [ours.f1_interval(int(tp), 0, int(n - tp)) for tp in rng.binomial(n, star, size=20_000)]

    covered = np.mean([item.low <= truth <= item.high for item in found])
    assert covered == pytest.approx(0.95, abs=0.015)  # Wilson oscillates about its level by about a point at this n


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [  # Newcombe 1998, table II, method 10
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((6, 7, 2, 7), 0.0582, 0.8062),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((0, 10, 0, 20), -0.1611, 0.2775),
        ((10, 10, 0, 20), 0.6791, 1.0),
    ],
)
def test_gap_interval_is_that_of_the_paper(counts, low, high):
    """The worked examples of the paper, to its four digits."""
    found = ours.gap_interval(*counts)

    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(("losses", "gains"), [(0, 0), (5, 0), (0, 5), (9, 3), (60, 40), (1500, 1400)])
def test_mcnemar_is_scipys_binomial_test(losses, gains):
    """Exact, one-sided."""
    expected = stats.binomtest(losses, losses + gains, alternative="greater").pvalue if losses + gains else 1.0

    assert ours.mcnemar_one_sided(losses, gains) == pytest.approx(expected, rel=1e-9)


def test_holm_is_the_example_of_its_definition():
    """Sorted, multiplied by what is left, made monotone, given back in order."""
    assert ours.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert ours.holm([]) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.2))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, alpha):
    """Adjusted p <= alpha says the same as walking down from the smallest p."""
    order = np.argsort(p_values, kind="stable")
    rejected = set()
    for rank, index in enumerate(order):
        if (len(p_values) - rank) * p_values[index] > alpha:
            break
        rejected.add(int(index))

    found = {index for index, p in enumerate(ours.holm(p_values)) if p <= alpha}

    assert found == rejected


def test_harm_names_the_class_and_leaves_small_ones_undecided():
    """20 of 100 rows lost is harm; 3 rows are too few to know."""
    found = ours.harm(["a", "b", "c"], [100, 100, 3], [20, 1, 0], [1, 1, 0])

    assert [item.harmed for item in found] == [True, False, False]
    assert [item.undecided for item in found] == [False, False, True]
    assert found[0].drop == pytest.approx(0.19)


def test_harm_is_claimed_of_the_innocent_rarely():
    """Ten classes, none harmed: some harm is claimed in at most 5 % of 2,000 simulated variants."""
    rng = np.random.default_rng(9)
    labels = [str(k) for k in range(10)]
    draws = rng.multinomial(100, (0.05, 0.05, 0.9), size=(2000, 10))

    claimed = sum(
        any(item.harmed for item in ours.harm(labels, [100] * 10, draw[:, 0].tolist(), draw[:, 1].tolist()))
        for draw in draws
    )

    assert claimed / 2000 <= 0.05


@pytest.mark.parametrize(
    ("losses", "gains", "n", "verdict"),
    [
        (5, 5, 1000, Verdict.PASSED),
        (0, 0, 400, Verdict.PASSED),
        (30, 5, 1000, Verdict.FAILED),
        (12, 8, 1000, Verdict.UNDECIDED),
        (0, 0, 100, Verdict.UNDECIDED),
    ],
)
def test_verdict_is_three_way(losses, gains, n, verdict):
    """Shown to be fine, shown to be worse, or not enough rows to tell."""
    found = ours.noninferiority(losses, gains, n, margin=0.01)

    assert found.verdict is verdict
    assert (found.rows_needed is not None) == (verdict is Verdict.UNDECIDED)


def test_no_disagreement_on_few_rows_proves_nothing():
    """(1 - 0.01)^298 is above 5 %, (1 - 0.01)^299 is not: zero disagreements pass from 299 rows on."""
    assert ours.noninferiority(0, 0, 298, margin=0.01).verdict is Verdict.UNDECIDED
    assert ours.noninferiority(0, 0, 299, margin=0.01).verdict is Verdict.PASSED


@pytest.mark.parametrize("losses", [0, 4, 20])
@pytest.mark.parametrize("n", [200, 600])
def test_lower_bound_agrees_with_the_verdict(losses, n):
    """The bound of the difference is within the margin exactly when the test passes."""
    for gains in (0, 10):
        found = ours.noninferiority(losses, gains, n, margin=0.02)

        assert (found.difference.low >= -0.02) == (found.verdict is Verdict.PASSED)
        assert found.difference.low <= found.difference.estimate


@pytest.mark.parametrize("arguments", [(1, 1, 1), (-1, 0, 10), (0, 0, 0)])
def test_impossible_counts_are_refused(arguments):
    """More discordant rows than rows, negative counts, no rows."""
    with pytest.raises(InvalidInput, match=r"number of rows|one row"):
        ours.noninferiority(*arguments, margin=0.01)


@pytest.mark.parametrize("margin", [0, 1, -0.01])
def test_margin_is_a_share(margin):
    """A margin of nothing can never be shown."""
    with pytest.raises(InvalidInput, match=r"`margin` must be between 0 and 1"):
        ours.noninferiority(1, 1, 100, margin=margin)


@pytest.mark.parametrize(("losses", "gains", "n"), [(1, 1, 300), (12, 8, 1000)])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 3])
def test_stated_rows_release_a_variant_without_a_drop(losses, gains, n, alpha):
    """Simulated: at least 80 % of variants with no drop and that much disagreement are released."""
    rows = ours.noninferiority(losses, gains, n, margin=0.01, alpha=alpha).rows_needed
    half = (losses + gains) / n / 2

    assert release_rate(rows, p_loss=half, p_gain=half, alpha=alpha) >= 0.8


@pytest.mark.parametrize("n", [300, 1000, 3000])
@pytest.mark.parametrize("gains", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 3])
def test_true_drop_of_the_margin_is_released_at_most_at_the_level(n, gains, alpha):
    """Simulated: only losses, or losses and gains."""
    rate = release_rate(n, p_loss=0.01 + gains, p_gain=gains, alpha=alpha)

    assert rate <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / 20_000)  # three standard errors of the simulation


def test_no_number_of_rows_helps_a_variant_that_lost_the_margin():
    """Rows do not turn a drop into none."""
    assert ours.rows_needed(0.05, margin=0.01, drop=0.01) is None


def test_rows_for_a_small_drop_are_more_than_for_none():
    """A variant half-way to the margin needs about four times the rows."""
    none, half = (ours.rows_needed(0.02, margin=0.01, drop=drop) for drop in (0.0, 0.005))

    assert 3 < half / none < 5


def test_rows_beyond_enumeration_follow_the_formula():
    """A margin of a thousandth asks for more rows than are tried one by one."""
    expected = (stats.norm.ppf(0.95) + stats.norm.ppf(0.8)) ** 2 * 0.2 / 0.001**2

    assert ours.rows_needed(0.2, margin=0.001) == pytest.approx(1.05 * expected, rel=1e-3)


@pytest.mark.parametrize(("n", "spread"), [(2, 0.3), (20, 0.0), (130, 0.02), (5000, 0.3)])
def test_radius_of_a_mean_is_the_smaller_of_both_bounds(n, spread):
    """Hoeffding at half of alpha, and Maurer and Pontil's theorem 4 at half of alpha."""
    values = np.clip(np.random.default_rng(3).normal(0.5, spread, n), 0, 1)
    hoeffding = np.sqrt(np.log(1 / 0.025) / (2 * n))
    bernstein = np.sqrt(2 * np.var(values, ddof=1) * np.log(2 / 0.025) / n) + 7 * np.log(2 / 0.025) / (3 * (n - 1))

    assert ours.mean_radius(values, alpha=0.05) == pytest.approx(min(hoeffding, bernstein), rel=1e-12)


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (0.05, 1), (2, 2), (0.02, 0.5)])
@pytest.mark.parametrize("n", [1, 10, 130, 1000])
def test_true_mean_is_outside_of_the_radius_no_more_often_than_alpha(a, b, n):
    """On either side, for skewed values too, where a normal interval would err."""
    draws = np.random.default_rng(8).beta(a, b, size=(2000, n))
    radii = np.array([ours.mean_radius(row, alpha=0.05) for row in draws])
    off = draws.mean(axis=1) - a / (a + b)

    assert (off < -radii).mean() <= 0.05
    assert (off > radii).mean() <= 0.05


def test_rows_that_a_mean_needs_are_enough():
    """One fewer would not do where the values are spread, and no number does without a gap."""
    needed = ours.mean_rows_needed(0.2, alpha=0.05)

    assert np.sqrt(np.log(40) / (2 * needed)) <= 0.2 < np.sqrt(np.log(40) / (2 * (needed - 1)))
    assert ours.mean_rows_needed(0.0, alpha=0.05) is None


@pytest.mark.parametrize(("values", "alpha"), [([], 0.05), ([0.5, 1.5], 0.05), ([0.5, np.nan], 0.05), ([0.5], 0.0)])
def test_mean_of_what_has_no_bound_is_refused(values, alpha):
    """Both bounds rest on [0, 1]."""
    with pytest.raises(InvalidInput, match=r"values in|alpha"):
        ours.mean_radius(np.array(values), alpha=alpha)
