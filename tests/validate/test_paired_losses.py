"""Errors of numbers and tags against the reference's: what passes, what must not, and how often the test errs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from lightship.errors import InvalidInput, InvalidTensor
from lightship.types import Verdict
from lightship.validate.checks.noninferiority import check_noninferiority_of_numbers, check_noninferiority_of_tags
from lightship.validate.paired_losses import PairedNumbers, PairedTags
from lightship.validate.skewed_mean import student_tail

SUBJECTS = {"reference": "0" * 64}
SHARED = 0.05 / 3


def prices(rows=400, seed=41):
    """True prices, and answers that err by 5 on average about 200."""
    rng = np.random.default_rng(seed)
    truth = 200 + 50 * rng.normal(size=rows)
    return truth, truth + 5 * rng.normal(size=rows), rng


def judged(truth, reference, variant, *, margin=0.02, batch=64):
    """Feed all rows in batches, and judge."""
    losses = PairedNumbers()
    for start in range(0, len(truth), batch):
        part = slice(start, start + batch)
        losses.add(truth[part], reference[part], variant[part])
    return check_noninferiority_of_numbers(losses, margin=margin, alpha=SHARED, subjects=SUBJECTS)


WRECKS = {
    "constant": lambda answers, _: np.full_like(answers, answers.mean()),
    "shuffled": lambda answers, rng: answers[rng.permutation(len(answers))],
    "x 1.1": lambda answers, _: answers * 1.1,
    "x 1e30": lambda answers, _: answers * 1e30,
    "zero": lambda answers, _: answers * 0,
    "off by two": lambda answers, _: answers + 2,
    "one NaN": lambda answers, _: np.where(np.arange(len(answers)) == 17, np.nan, answers),
    "constant on 3 %": lambda answers, _: np.where(np.arange(len(answers)) % 33 == 0, 200.0, answers),
    "noise": lambda answers, rng: answers + 2 * rng.normal(size=answers.shape),
}


@pytest.mark.parametrize("wreck", WRECKS)
def test_wrecked_numbers_do_not_pass(wreck):
    """Nor does the evidence hold what is no JSON."""
    truth, answers, rng = prices()

    found = judged(truth, answers, WRECKS[wreck](answers, rng))

    assert found.verdict in (Verdict.FAILED, Verdict.UNDECIDED)
    json.dumps([dict(found.measured), dict(found.method)], allow_nan=False)


@pytest.mark.parametrize("noise", [0.0, 1e-9, 0.3], ids=["same", "rounding", "int8"])
def test_faithful_numbers_pass(noise):
    """Also where both sides differ by nothing, or next to it: no digit is lost."""
    truth, answers, rng = prices()

    found = judged(truth, answers, answers + noise * rng.normal(size=answers.shape))

    assert found.verdict is Verdict.PASSED, found.summary
    assert found.summary.endswith("growth of 2 % is ruled out")


def test_too_few_rows_say_how_many_would_do():
    """That fewer than 2 % of the rows are grossly worse needs 203."""
    truth, answers, _ = prices(100)

    found = judged(truth, answers, answers)

    assert (found.verdict, found.measured["rows_needed"]) == (Verdict.UNDECIDED, 203)


def test_figures_are_those_of_the_formulas():
    """Errors of both sides; Student's p against scipy, Hall's against the formula."""
    truth, answers, rng = prices()
    variant = answers + rng.normal(size=answers.shape)
    found = judged(truth, answers, variant, batch=7).measured

    one, two = np.abs(answers - truth), np.abs(variant - truth)
    z = two - 1.02 * one
    n, skew = len(z), stats.skew(z)
    t = stats.ttest_1samp(z, 0, alternative="less").pvalue
    u = z.mean() / z.std(ddof=1)
    hall = stats.norm.cdf(np.sqrt(n) * (u + skew * u**2 / 3 + skew**2 * u**3 / 27 + skew / (6 * n)))
    assert found["mae"]["reference"] == pytest.approx(one.mean())
    assert found["rmse"]["ratio"] == pytest.approx(np.sqrt((two**2).mean() / (one**2).mean()))
    assert found["mae"]["p_noninferior"] == pytest.approx(max(t, hall), rel=1e-6)


@pytest.mark.parametrize("t", [-5, -1.7, 0, 0.3, 2, 40])
@pytest.mark.parametrize("degrees", [2, 9, 299, 100_000])
def test_student_is_scipys(t, degrees):
    """Without scipy."""
    assert student_tail(t, degrees) == pytest.approx(stats.t.cdf(t, degrees), abs=1e-10)  # lgamma of large numbers


def test_a_true_growth_of_the_margin_is_released_at_most_as_often_as_alpha_says():
    """400 draws of 300 rows whose errors grew by the margin: at most 5 %, up to the luck of 400 draws."""
    rng = np.random.default_rng(43)
    noise = np.sqrt(1.02**2 - 1)
    released = 0
    for _ in range(400):
        truth, error = np.zeros(300), rng.normal(size=300)
        losses = PairedNumbers()
        losses.add(truth, error, error + noise * rng.normal(size=300))
        released += losses.test(margin=0.02, alpha=0.05).verdict is Verdict.PASSED

    assert released <= 400 * 0.05 + 16


def tags(rows=800, seed=44):
    """Five tags a row, and logits that give nine of ten rightly."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, size=(rows, 5))
    return truth, rng.normal(size=(rows, 5)) + 2.6 * truth - 1.3, rng


@pytest.mark.parametrize(
    ("name", "wreck", "verdict"),
    [
        ("same", lambda s, _: s, Verdict.PASSED),
        ("rounded", lambda s, rng: s + 0.01 * rng.normal(size=s.shape), Verdict.PASSED),
        ("one tag dead", lambda s, _: s * [1, 1, 0, 1, 1], Verdict.FAILED),
        ("NaN in a row", lambda s, _: np.where(np.arange(len(s))[:, None] == 3, np.nan, s), Verdict.FAILED),
        ("negated", lambda s, _: -s, Verdict.FAILED),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tags_are_judged_by_their_share_of_wrong_ones(name, wreck, verdict):
    """An absolute margin of one in a hundred."""
    truth, scores, rng = tags()
    losses = PairedTags()
    variant = wreck(scores, rng)
    for start in range(0, len(truth), 100):
        part = slice(start, start + 100)
        losses.add(truth[part], scores[part], variant[part])

    found = check_noninferiority_of_tags(losses, margin=0.01, alpha=SHARED, subjects=SUBJECTS)

    assert found.verdict is verdict, (name, found.summary)
    json.dumps(dict(found.measured), allow_nan=False)


def test_rows_that_do_not_belong_together_are_refused():
    """Sizes, and a reference that says nothing."""
    with pytest.raises(InvalidTensor, match="must have as many values"):
        PairedNumbers().add(np.zeros(3), np.zeros(3), np.zeros(4))
    with pytest.raises(InvalidTensor, match="must be finite"):
        PairedNumbers().add(np.zeros(2), np.array([0, np.nan]), np.zeros(2))
    with pytest.raises(InvalidInput, match="needs rows"):
        PairedNumbers().test(margin=0.02, alpha=0.05)
    with pytest.raises(InvalidTensor, match=r"one shape \[rows, tags\]"):
        PairedTags().add(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 4)))


def test_rare_grown_errors_that_were_seen_count_as_often_as_they_may_occur():
    """One of 300 rows errs by 5 more, four thirds of the mean error: there may be six of them, which is 2.4 %."""
    truth, answers, _ = prices(300)
    row = int(np.abs(answers - truth).argmin())
    variant = answers.copy()
    variant[row] += 5
    losses = PairedNumbers()
    losses.add(truth, answers, variant)

    found = judged(truth, answers, variant)
    share, growth = losses._tail(300, SHARED)

    assert (found.verdict, found.measured["grown"]["estimate"]) == (Verdict.UNDECIDED, 1 / 300)
    grown = np.abs(variant - truth)[row] - np.abs(answers - truth)[row]
    assert growth == pytest.approx(share.high * grown / np.abs(answers - truth).mean(), rel=0.03)


@pytest.mark.parametrize(("rows", "verdict"), [(300, Verdict.UNDECIDED), (30_000, Verdict.PASSED)])
def test_a_far_move_counts_as_one_away_from_the_truth(rows, verdict):
    """One answer is mirrored at the truth: no larger error, by luck; six of 300 such rows may be without it."""
    truth, answers, _ = prices(rows)
    row = int(np.abs(answers - truth).argmax())
    variant = answers.copy()
    variant[row] = 2 * truth[row] - answers[row]

    assert judged(truth, answers, variant, batch=1_000).verdict is verdict


def test_one_grown_error_among_very_many_is_borne():
    """3,000 rows show that it is rare."""
    truth, answers, _ = prices(3_000)
    variant = answers.copy()
    variant[int(np.abs(answers - truth).argmin())] += 6

    assert judged(truth, answers, variant).verdict is Verdict.PASSED
