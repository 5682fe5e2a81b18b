"""Metrics against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sklearn

from lightship.errors import InvalidTensor
from lightship.validate.metrics import accuracy, class_metrics, confusion_matrix, macro_f1

LABELS = ["a", "b", "c", "d"]


@pytest.fixture
def answers():
    """True and predicted classes of 200 rows; nothing is ever given to class d."""
    rng = np.random.default_rng(8)
    truth = rng.integers(0, 4, size=200)
    return truth, np.where(rng.random(200) < 0.7, truth % 3, rng.integers(0, 3, size=200))


def test_confusion_matrix_is_scikit_learns(answers):
    """Rows are true classes, columns predicted ones."""
    np.testing.assert_array_equal(
        confusion_matrix(*answers, classes=4), sklearn.confusion_matrix(*answers, labels=range(4))
    )


def test_class_metrics_are_scikit_learns(answers):
    """Precision, recall, F1 and support, with 0 where nothing stands below the line."""
    matrix = confusion_matrix(*answers, classes=4)
    expected = sklearn.precision_recall_fscore_support(*answers, labels=range(4), zero_division=0)

    found = class_metrics(matrix, LABELS)

    got = [[item.precision.estimate, item.recall.estimate, item.f1.estimate, item.support] for item in found]
    np.testing.assert_allclose(np.array(got).T, expected)
    assert macro_f1(found) == pytest.approx(sklearn.f1_score(*answers, average="macro", zero_division=0))
    assert accuracy(matrix).estimate == pytest.approx(sklearn.accuracy_score(*answers))


def test_class_that_is_never_given_has_unknown_precision(answers):
    """0 of 0 is shown as 0, with an interval that says: not known."""
    found = class_metrics(confusion_matrix(*answers, classes=4), LABELS)[3]

    assert (found.predicted, found.precision.low, found.precision.high) == (0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        ([0, 1], [0], r"two arrays of one length. Got \(2,\) and \(1,\)"),
        ([0, 4], [0, 1], r"True classes must be integers in \[0, 4\)"),
        ([0, 1], [0, -1], "Predicted classes"),
        ([0, 1], [0.0, 1.0], "Got float64"),
    ],
)
def test_values_that_are_no_classes_are_refused(truth, predicted, message):
    """Positions in the labels, nothing else."""
    with pytest.raises(InvalidTensor, match=message):
        confusion_matrix(np.array(truth), np.array(predicted), classes=4)
