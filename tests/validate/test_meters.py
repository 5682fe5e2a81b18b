"""Streamed metrics against scikit-learn, and the choice of the metric."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import special
from sklearn import metrics as sklearn

from lightship.errors import InvalidInput, InvalidTensor
from lightship.types import TensorSpec
from lightship.validate.meters import ClassMeter, NumberMeter, TagMeter, class_scores, metric_for

ROWS = 500


def fed(meter, truth, answers, batch):
    """Return the meter after all rows, in batches."""
    for start in range(0, len(truth), batch):
        meter.add(truth[start : start + batch], answers[start : start + batch])
    return meter


@pytest.fixture(scope="module")
def scored():
    """Classes and logits that are right on most rows."""
    rng = np.random.default_rng(31)
    truth = rng.integers(0, 5, size=ROWS)
    logits = rng.normal(size=(ROWS, 5)) + 2 * np.eye(5)[truth]
    return truth, logits.astype(np.float32)


@pytest.mark.parametrize("batch", [1, 64, ROWS])
@pytest.mark.parametrize("form", ["logits", "probabilities"])
def test_classes_are_scikit_learns(scored, batch, form):
    """Accuracy, confusion, log loss and Brier score, whatever the batch."""
    truth, logits = scored
    shares = special.softmax(logits.astype(np.float64), axis=1)
    meter = fed(ClassMeter(5), truth, logits if form == "logits" else shares, batch)

    assert meter.accuracy().estimate == sklearn.accuracy_score(truth, logits.argmax(1))
    np.testing.assert_array_equal(meter.confusion, sklearn.confusion_matrix(truth, logits.argmax(1)))
    assert meter.log_loss().estimate == pytest.approx(sklearn.log_loss(truth, shares), rel=1e-6)
    assert meter.brier().estimate == pytest.approx(((shares - np.eye(5)[truth]) ** 2).sum(1).mean(), rel=1e-6)
    json.dumps(meter.to_json(), allow_nan=False)


def test_calibration_error_is_the_sum_over_the_bins(scored):
    """By the formula, rows sorted into 15 bins by hand."""
    truth, logits = scored
    shares = special.softmax(logits.astype(np.float64), axis=1)
    sure, right = shares.max(1), shares.argmax(1) == truth
    expected = 0.0
    for k in range(15):
        inside = (sure > k / 15) & (sure <= (k + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - sure[inside].mean())

    meter = fed(ClassMeter(5), truth, logits, 64)

    assert meter.ece() == pytest.approx(expected, rel=1e-6)
    assert sum(each.rows for each in meter.reliability()) == ROWS


def test_rows_without_finite_scores_are_wrong(scored):
    """They count as rows and have no class."""
    truth, logits = scored
    broken = logits.copy()
    broken[:100] = np.nan

    meter = fed(ClassMeter(5), truth, broken, 64)

    right = (logits.argmax(1) == truth)[100:].sum()
    assert (meter.nonfinite_rows, meter.accuracy().estimate) == (100, right / ROWS)
    assert meter.confusion.sum() == ROWS - 100


def test_one_score_a_row_is_two_classes():
    """A logit beside 0, or a probability beside the rest to 1."""
    rng = np.random.default_rng(32)
    truth = rng.integers(0, 2, size=ROWS)
    logit = (rng.normal(size=(ROWS, 1)) + 2 * truth[:, None] - 1).astype(np.float64)
    share = special.expit(logit)

    one, two = fed(ClassMeter(2), truth, logit, 50), fed(ClassMeter(2), truth, share[:, 0], 50)

    assert one.accuracy() == two.accuracy()
    assert one.log_loss().estimate == pytest.approx(sklearn.log_loss(truth, share[:, 0]), rel=1e-9)
    assert two.log_loss().estimate == pytest.approx(one.log_loss().estimate, rel=1e-9)
    np.testing.assert_array_equal(class_scores(share).argmax(1), share[:, 0] > 0.5)


@pytest.mark.parametrize("batch", [1, 64, ROWS])
def test_numbers_are_scikit_learns(batch):
    """MAE, RMSE and R², far from zero, where sums of squares would lose digits."""
    rng = np.random.default_rng(33)
    truth = 1e6 + rng.normal(size=ROWS)
    answers = (truth + 0.3 * rng.normal(size=ROWS))[:, None]
    meter = fed(NumberMeter(), truth, answers, batch)

    assert meter.mae().estimate == pytest.approx(sklearn.mean_absolute_error(truth, answers), rel=1e-9)
    assert meter.rmse().estimate == pytest.approx(sklearn.root_mean_squared_error(truth, answers), rel=1e-9)
    assert meter.r2() == pytest.approx(sklearn.r2_score(truth, answers), rel=1e-6)
    json.dumps(meter.to_json(), allow_nan=False)


def test_tags_are_scikit_learns():
    """Wrong tags, and rows without any."""
    rng = np.random.default_rng(34)
    truth = rng.integers(0, 2, size=(ROWS, 4))
    scores = rng.normal(size=(ROWS, 4)) + 3 * truth - 1.5

    found = fed(TagMeter(), truth, scores, 64).to_json()

    assert found["hamming"]["estimate"] == pytest.approx(sklearn.hamming_loss(truth, scores > 0))
    assert found["exact"]["estimate"] == sklearn.accuracy_score(truth, scores > 0)


@pytest.mark.parametrize(
    ("labels", "dtype", "shape", "expected"),
    [
        (np.array([0, 4, 2]), "FP32", ("batch", 5), "classes 5"),
        (np.array([0, 4, 2]), "FP32", ("batch", "classes"), "classes 5"),
        (np.array([0, 4, 2]), "INT64", ("batch",), "classes 5"),
        (np.array([0, 1, 1]), "FP32", ("batch", 1), "classes 2"),
        (np.array([True, False]), "FP32", ("batch",), "classes 2"),
        (np.array([[0, 1, 1], [1, 1, 0]]), "FP32", ("batch", 3), "tags"),
        (np.array([0.5, 1.5]), "FP32", ("batch", 1), "numbers"),
        (np.array([3, 17, 5]), "FP32", ("batch", 1), "numbers"),
        (np.array([[0.5, 1.0], [1.5, 0.0]]), "FP32", ("batch", 2), "numbers"),
    ],
    ids=["classes", "symbolic", "labels", "binary", "bool", "tags", "float", "count", "vector"],
)
def test_metric_follows_labels_and_output(labels, dtype, shape, expected):
    """What the labels are decides, not what the user is asked."""
    meter = metric_for(labels, TensorSpec("y", dtype, shape))

    words = meter.to_json()["kind"]
    assert (f"{words} {meter.classes}" if isinstance(meter, ClassMeter) else words) == expected


def test_labels_that_fit_no_metric_are_refused():
    """With what would fit."""
    with pytest.raises(InvalidInput, match=r"Labels float64 \[2\] do not go with output 'y', INT64"):
        metric_for(np.array([0.5, 1.0]), TensorSpec("y", "INT64", ("batch",)))
    with pytest.raises(InvalidTensor, match=r"Scores must be of 5 classes\. Got 4"):
        ClassMeter(5).add(np.zeros(3, dtype=int), np.zeros((3, 4)))
    with pytest.raises(InvalidTensor, match=r"whole numbers in \[0, 5\)"):
        ClassMeter(5).add(np.array([7]), np.zeros((1, 5)))
