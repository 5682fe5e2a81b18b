"""Checks on labels: accuracy, non-inferiority, harm to classes, over-fitting, data."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lightship.bundle.statement import Evidence
from lightship.errors import InvalidTensor
from lightship.types import Verdict
from lightship.validate.checks.accuracy import check_accuracy
from lightship.validate.checks.class_harm import check_class_harm
from lightship.validate.checks.data import check_data
from lightship.validate.checks.noninferiority import check_noninferiority
from lightship.validate.checks.overfitting import check_overfitting

SUBJECTS = {"reference": "0" * 64}
LABELS = [str(k) for k in range(10)]


def rows(n=1000, *, wrong=0, of_class=None, seed=1):
    """Return the truth and answers of which ``wrong`` are wrong, all in one class if asked."""
    truth = np.arange(n) % 10
    answers = truth.copy()
    pool = np.flatnonzero(truth == of_class) if of_class is not None else np.arange(n)
    chosen = np.random.default_rng(seed).choice(pool, size=wrong, replace=False)
    answers[chosen] = (truth[chosen] + 1) % 10
    return truth, answers


def is_json(evidence: Evidence) -> bool:
    """Say whether the evidence can be written as strict JSON."""
    json.dumps([dict(evidence.measured), dict(evidence.method)], allow_nan=False)
    return "\n" not in evidence.summary


@pytest.mark.parametrize(("wrong", "verdict"), [(20, "passed"), (40, "undecided"), (100, "failed")])
def test_budget_applies_to_the_lower_end(wrong, verdict):
    """96 % of 1,000 rows does not show 95.5 %; 98 % does."""
    truth, answers = rows(wrong=wrong)

    found = check_accuracy(truth, answers, labels=LABELS, min_accuracy=0.955, subjects=SUBJECTS)

    assert found.verdict == verdict
    assert is_json(found)


def test_undecided_accuracy_says_how_many_rows_would_pass():
    """With that many rows and the same accuracy the lower end reaches the budget; with one in ten fewer it does not."""
    found = check_accuracy(*rows(wrong=40), labels=LABELS, min_accuracy=0.955, subjects=SUBJECTS)
    needed = found.measured["rows_needed"]

    def verdict(n):
        answers = rows(n, wrong=round(0.04 * n))
        return check_accuracy(*answers, labels=LABELS, min_accuracy=0.955, subjects=SUBJECTS).verdict

    assert verdict(needed // 100 * 100 + 100) is Verdict.PASSED
    assert verdict(needed * 9 // 10) is Verdict.UNDECIDED


def test_noninferiority_counts_losses_and_gains():
    """Rows that both get wrong count for neither."""
    truth, reference = rows(wrong=10)
    variant = reference.copy()
    lost = np.flatnonzero(reference == truth)[:4]
    won = np.flatnonzero(reference != truth)[:3]
    variant[lost] = (truth[lost] + 5) % 10
    variant[won] = truth[won]

    found = check_noninferiority(truth, reference, variant, margin=0.02, subjects=SUBJECTS)

    assert (found.measured["losses"], found.measured["gains"], found.verdict) == (4, 3, "passed")
    assert is_json(found)


def test_undecided_noninferiority_says_how_many_rows():
    """The summary is what a person reads."""
    truth, _ = rows()
    variant = rows(wrong=8)[1]
    variant_2 = rows(300, wrong=2)[1]

    close = check_noninferiority(truth, truth, variant, margin=0.01, subjects=SUBJECTS)
    few = check_noninferiority(truth[:300], truth[:300], variant_2, margin=0.01, subjects=SUBJECTS)

    assert (close.verdict, few.verdict) == ("undecided", "undecided")
    assert "probably a real one" in close.summary
    assert f"{few.measured['rows_needed']} gate rows would decide it" in few.summary


def test_harm_to_one_class_is_shown_though_the_whole_looks_fine():
    """15 of 100 sevens lost is 1.5 points overall, and named."""
    truth, _ = rows()
    variant = rows(wrong=15, of_class=7)[1]

    found = check_class_harm(truth, truth, variant, labels=LABELS, subjects=SUBJECTS)

    assert (found.verdict, found.measured["lost_most"]) == ("failed", "7")
    assert found.summary.startswith("Class '7' lost most: 15 of its 100 rows")
    assert is_json(found)


def test_rare_classes_are_reported_not_refused():
    """Ten rows a class cannot rule out harm; that alone blocks nothing."""
    truth, answers = rows(100)

    found = check_class_harm(truth, answers, answers, labels=LABELS, subjects=SUBJECTS)

    assert (found.verdict, found.measured["undecided"]) == ("passed", LABELS)


def test_answers_of_other_rows_are_refused():
    """Arrays of unequal lengths are not about the same rows."""
    with pytest.raises(InvalidTensor, match=r"one shape.*truth \[3\].*variant \[2\]"):
        check_noninferiority(np.arange(3), np.arange(3), np.arange(2), margin=0.01, subjects=SUBJECTS)


@pytest.mark.parametrize(("right", "verdict"), [(970, "passed"), (950, "undecided"), (800, "failed")])
def test_gap_between_training_and_validation_is_judged_by_its_interval(right, verdict):
    """99 % on training rows against validation."""
    found = check_overfitting(
        train_right=2970, train_rows=3000, validation_right=right, validation_rows=1000, limit=0.04, subjects=SUBJECTS
    )

    assert found.verdict == verdict
    assert is_json(found)


COUNTS = {"train": {"a": 5, "b": 5}, "gate": {"a": 2, "b": 1}}


@pytest.mark.parametrize(
    ("change", "verdict", "words"),
    [
        ({}, "passed", "look 2 at this gate set"),
        ({"class_counts": {"gate": {"a": 3}}}, "failed", "gate lacks 'b'"),
        ({"bad": [("r1", "not an image")]}, "failed", "1 of 14 rows are bad, first r1: not an image"),
    ],
)
def test_data_without_a_class_or_with_many_bad_rows_fails(change, verdict, words):
    """What is wrong stands in the summary."""
    facts = {"class_counts": COUNTS, "duplicates": 1, "conflicts": [("x", "y")], "bad": [], "gate_looks": 2, **change}

    found = check_data(labels=["a", "b"], subjects=SUBJECTS, **facts)

    assert (found.verdict, words in found.summary) == (verdict, True)
    assert is_json(found)
