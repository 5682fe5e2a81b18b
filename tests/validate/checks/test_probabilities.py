"""Whether a variant's probabilities are those of the reference: scaled logits keep every label and wreck them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lightship.errors import InvalidInput, InvalidTensor
from lightship.types import Verdict
from lightship.validate.checks.probabilities import check_probabilities, distances

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
    assert found.summary.endswith("with confidence); 20 points are allowed")
    assert "(at least " in found.summary
    json.dumps([dict(found.measured), dict(found.method)], allow_nan=False)


def test_sure_reference_is_hardly_changed_by_scaling_up():
    """What the mean does not see: where nearly every answer is certain, certainty is no difference."""
    reference = logits(sure=12)

    assert check(reference, reference * np.float32(1e30)).verdict is Verdict.PASSED
    assert check(reference, reference * np.float32(1e-3)).verdict is Verdict.FAILED


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
    found = check(logits(5), logits(5) * np.float32(1e-3))

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
