"""Calibration: against scikit-learn, on models whose true error is known, and with a temperature that was planted."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.metrics import brier_score_loss, log_loss

from lightship.errors import InvalidInput
from lightship.types import Verdict
from lightship.validate.calibration import Scores, calibration, fit_temperature, improvement, reliability
from lightship.validate.checks.calibration import check_calibration
from lightship.validate.logits import probabilities_of

SUBJECTS = {"reference": "0" * 64}


def draw(rows, factor=1.0, *, seed=1, classes=5):
    """Return the logits of a model that is calibrated when they are divided by ``factor``, and the classes."""
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(rows, classes))
    truth = (probabilities_of(logits).cumsum(axis=1) < random.random(rows)[:, None]).sum(axis=1)
    return factor * logits, np.minimum(truth, classes - 1)


def test_scores_are_those_of_scikit_learn():
    """Brier score and negative log likelihood of every class."""
    logits, truth = draw(300)
    shares = probabilities_of(logits)

    found = calibration(logits, truth)

    assert found.nll.estimate == pytest.approx(log_loss(truth, shares))
    each = [brier_score_loss(truth == k, shares[:, k]) for k in range(5)]
    assert found.brier.estimate == pytest.approx(sum(each))


@pytest.mark.parametrize("rows", [300, 4000])
def test_calibrated_model_has_no_error(rows):
    """Noise alone gives 0.04 with 300 rows; less what it adds, nearly nothing is left, and 0 is in the interval."""
    found = [calibration(*draw(rows, seed=seed)).ece for seed in range(20)]

    assert sum(each.low == 0 for each in found) >= 18
    assert np.mean([each.estimate for each in found]) < 0.5 / np.sqrt(rows)


@pytest.mark.parametrize("factor", [0.5, 2.5])
def test_error_of_wrong_confidence_is_shown(factor):
    """Too sure or too little: the interval is above 0, and the bins lie on one side of the diagonal."""
    found = calibration(*draw(2000, factor))

    assert found.ece.low > 0.05
    off = [each.confidence - each.accuracy.estimate for each in found.bins if each.confidence < 0.95]
    assert all(np.sign(value) == np.sign(factor - 1) for value in off)


@given(st.floats(0.2, 5), st.integers(0, 100))
@settings(max_examples=15)
def test_temperature_is_the_minimum(factor, seed):
    """Against scipy's search."""
    logits, truth = draw(200, factor, seed=seed)

    def loss(log_temperature):
        return Scores.of(probabilities_of(logits / np.exp(log_temperature)), truth).nll.mean()

    best = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded", options={"xatol": 1e-6})

    assert np.log(fit_temperature(logits, truth)) == pytest.approx(best.x, abs=2e-3)


def test_planted_temperature_is_found_and_helps_on_other_rows():
    """Logits three times too large."""
    temperature = fit_temperature(*draw(1000, 3.0, seed=2))
    logits, truth = draw(1000, 3.0, seed=3)

    nll, brier = improvement(logits, truth, temperature=temperature)

    assert temperature == pytest.approx(3, rel=0.15)
    assert nll.low > 0
    assert brier.low > 0
    assert calibration(logits, truth, temperature=temperature).ece.high < calibration(logits, truth).ece.low


def test_temperature_of_a_calibrated_model_does_not_help():
    """What was fitted is near 1, and no gain is shown on other rows."""
    found = check_calibration(*draw(1000, seed=4), selection=draw(500, seed=5), subjects=SUBJECTS)

    assert found.verdict is Verdict.PASSED
    assert not found.measured["helps"]
    assert found.summary.endswith("a gain that is not shown")
    json.dumps([dict(found.measured), dict(found.method)], allow_nan=False)


def test_overconfident_model_is_told_what_a_temperature_would_do():
    """Before and after on the gate rows."""
    found = check_calibration(*draw(1000, 3.0, seed=4), selection=draw(500, 3.0, seed=5), subjects=SUBJECTS)

    assert found.measured["helps"]
    assert found.measured["temperature"] == pytest.approx(3, rel=0.2)
    assert found.measured["after"]["ece"]["estimate"] < found.measured["before"]["ece"]["estimate"] / 3


@pytest.mark.parametrize("rows", [1, 2, 19, 21, 500])
def test_bins_hold_all_rows(rows):
    """Equal mass, by rising confidence; rows that are equally sure share one."""
    random = np.random.default_rng(6)
    sure = np.round(random.random(rows), 2)

    bins = reliability(sure, random.random(rows) < sure)

    assert sum(each.rows for each in bins) == rows
    assert all(one.high < two.low for one, two in itertools.pairwise(bins))
    assert len(bins) <= 15


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_certain_and_right_answers_give_finite_numbers(rows):
    """Logits so far apart that probabilities are 0 and 1."""
    logits = np.eye(3)[np.arange(rows) % 3] * 1e4

    found = check_calibration(logits, np.arange(rows) % 3, selection=(logits, np.arange(rows) % 3), subjects=SUBJECTS)

    assert found.measured["before"]["ece"]["estimate"] == 0
    json.dumps(dict(found.measured), allow_nan=False)


def test_answers_that_are_not_finite_are_unproven():
    """They have no probabilities."""
    logits, truth = draw(50)
    logits[7] = np.nan

    assert check_calibration(logits, truth, selection=None, subjects=SUBJECTS).verdict is Verdict.UNPROVEN
    with pytest.raises(InvalidInput, match="finite in every row"):
        calibration(logits, truth)


def test_interval_holds_the_true_error():
    """95 % of 60 draws of 500 rows whose true error is known from their probabilities: at least 52 of them."""
    logits, _ = draw(200_000, 2.0, seed=9)
    sure, right = probabilities_of(logits).max(axis=1), probabilities_of(logits / 2).max(axis=1)
    pieces = np.array_split(np.argsort(sure), 15)
    true = sum(abs((right[piece] - sure[piece]).mean()) * len(piece) for piece in pieces) / len(sure)

    found = [calibration(*draw(500, 2.0, seed=seed)).ece for seed in range(60)]

    assert sum(each.low <= true <= each.high for each in found) >= 52
