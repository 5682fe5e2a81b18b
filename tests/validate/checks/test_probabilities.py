"""Whether a variant's probabilities are those of the reference: scaled logits keep every label and wreck them."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lightship.errors import InvalidInput, InvalidTensor
from lightship.types import Verdict
from lightship.validate.checks.probabilities import check_probabilities, distances, scales

SUBJECTS = {"reference": "0" * 64}


def logits(n=600, *, sure=3.0, seed=1):
    """Return float32 logits of ten classes, right about the first by ``sure``: probabilities around two thirds."""
    found = np.random.default_rng(seed).normal(size=(n, 10)).astype(np.float32)
    found[:, 0] += sure
    return found


def check(reference, variant, **options):
    """Check at 5 %."""
    return check_probabilities(reference, variant, **{"alpha": 0.05, "subjects": SUBJECTS, **options})


@pytest.mark.parametrize("factor", [1e-3, 1e30, -1.0])
def test_scaled_logits_fail(factor):
    """All alike, all certain, or upside down: the first two keep every label."""
    found = check(logits(), logits() * np.float32(factor))

    assert found.verdict is Verdict.FAILED
    assert found.summary.endswith("allowed")
    json.dumps([dict(found.measured), dict(found.method)], allow_nan=False)


@pytest.mark.parametrize("factor", [1e30, 30.0, 0.6])
def test_sure_reference_that_is_scaled_fails_by_its_scale(factor):
    """The mean does not see it: where nearly every answer is certain, certainty is no difference."""
    reference = logits(sure=12)

    found = check(reference, reference * np.float32(factor))

    assert found.measured["high"] < 0.1
    assert found.verdict is Verdict.FAILED
    assert re.match(r"The logits are \S+ times the reference's; between 0.67 and 1.5 is allowed", found.summary)


def test_one_scaled_class_of_many_fails_by_its_scale():
    """The mean over rows forgives it, and so does the scale of all."""
    reference = logits(sure=0) * np.float32(0.5)
    variant = reference.copy()
    variant[:, 4] *= 0.3

    found = check(reference, variant)

    assert found.measured["high"] < 0.2
    assert found.summary.startswith("The logits of class number 4 are 0.3")


def test_noise_does_not_look_like_another_scale():
    """As large as the logits: the slope stays where it was."""
    reference = logits(2000, sure=0)
    noise = np.random.default_rng(3).normal(size=reference.shape)

    scale, by_class = scales(reference, reference + noise)

    assert scale == pytest.approx(1, abs=0.05)
    assert all(value == pytest.approx(1, abs=0.15) for value in by_class.values())


def test_probabilities_rounded_to_zero_do_not_look_like_another_scale():
    """A softmax in 8 bits: 1/256 is its least value above 0, and its logarithm is compared."""
    shares = np.exp(logits(sure=6).astype(np.float64))
    shares = shares / shares.sum(axis=1, keepdims=True)
    rounded = np.round(shares * 256) / 256

    found = check(np.log(np.maximum(shares, 1e-30)), np.log(np.maximum(rounded, 1e-30)))

    assert found.verdict is Verdict.PASSED, found.summary


def test_same_logits_pass():
    """No distance; the bound is what the number of rows allows."""
    found = check(logits(), logits())

    assert (found.verdict, found.measured["mean_distance"], found.measured["rows"]) == (Verdict.PASSED, 0.0, 600)
    assert found.summary == (
        "Probabilities differ by 0.0 points on average (at most 1.7 with confidence); 20 points are allowed"
    )


def test_added_constant_changes_no_probability():
    """Logits are known up to one; the size of the numbers must not matter."""
    assert distances(logits(), logits() + np.float32(100)).max() < 1e-4


def test_rounding_noise_passes_with_few_rows():
    """120 gate rows at a third of 5 % suffice for a variant that was only rounded; the worst row is named."""
    reference = logits(120)
    variant = reference + np.random.default_rng(2).normal(scale=0.1, size=reference.shape).astype(np.float32)
    variant[17, 0] -= 9

    found = check(reference, variant, alpha=0.05 / 3)

    assert found.verdict is Verdict.PASSED
    assert (found.measured["largest_row"], found.measured["largest_distance"] > 0.5) == (17, True)


def test_few_rows_are_undecided_and_say_how_many_would_do():
    """With that many rows like these it passes."""
    found = check(logits(20), logits(20))
    needed = found.measured["rows_needed"]

    assert (found.verdict, needed) == (Verdict.UNDECIDED, 47)
    assert found.summary.endswith("47 gate rows like these would show that it is less")
    assert check(logits(needed), logits(needed)).verdict is Verdict.PASSED


def test_undecided_beyond_the_limit_asks_for_no_rows():
    """Where the mean itself reaches the limit, more rows are no advice."""
    noise = np.random.default_rng(8).normal(scale=1.5, size=(5, 10))

    found = check(logits(5, sure=2), logits(5, sure=2) + noise)

    assert found.measured["mean_distance"] > 0.2
    assert (found.verdict, found.measured["rows_needed"]) == (Verdict.UNDECIDED, None)


def test_distance_is_the_textbook_one():
    """(0.9, 0.1) and (0.6, 0.4) are 0.3 apart."""
    found = distances(np.log([[0.9, 0.1]]), np.log([[0.6, 0.4]]))

    np.testing.assert_allclose(found, [0.3], rtol=1e-12)


FINITE = arrays.arrays(np.float64, (2, 3, 4), elements=st.floats(allow_nan=False, allow_infinity=False, width=64))


@given(FINITE)
def test_distance_is_symmetric_and_a_share(pair):
    """In [0, 1] for whatever finite logits, the same both ways, 0 to itself."""
    one, two = pair

    there = distances(one, two)

    assert ((there >= 0) & (there <= 1)).all()
    np.testing.assert_array_equal(there, distances(two, one))
    np.testing.assert_array_equal(distances(one, one), 0)


@pytest.mark.parametrize("name", ["reference", "variant"])
def test_logits_that_are_no_numbers_are_refused(name):
    """They have no probabilities."""
    pair = {"reference": logits(5), "variant": logits(5)}
    pair[name][2, 1] = np.nan

    with pytest.raises(InvalidTensor, match=f"logits of the {name} must be finite.*1 of 5 rows are not, first row 2"):
        distances(pair["reference"], pair["variant"])


def test_logits_of_other_rows_are_refused():
    """Arrays of unequal shapes are not about the same rows."""
    with pytest.raises(InvalidTensor, match=r"one shape.*reference \[3, 10\].*variant \[2, 10\]"):
        check(logits(3), logits(2))


@pytest.mark.parametrize(("rows", "options", "message"), [(0, {}, "at least one. Got 0"), (5, {"limit": 1.5}, "limit")])
def test_impossible_questions_are_refused(rows, options, message):
    """No rows prove nothing; a distance of more than 1 does not exist."""
    with pytest.raises(InvalidInput, match=message):
        check(logits(rows), logits(rows), **options)
