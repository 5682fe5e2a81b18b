"""What a classifier gets wrong: counted, ordered, named by id, and bounded."""

from __future__ import annotations

import json

import numpy as np

from lightship.types import Verdict
from lightship.validate.checks.errors import check_errors
from lightship.validate.errors_found import find_errors

SUBJECTS = {"reference": "0" * 64}
LABELS = ("cat", "dog", "owl")


def logits_of(predicted, sure=3.0):
    """Return logits that say these classes."""
    return np.eye(3)[predicted] * np.asarray(sure).reshape(-1, 1)


def test_mistakes_are_counted_and_ordered():
    """Two owls and one cat are dogs; of the mistakes the surest one is the worst row."""
    truth = np.array([0, 0, 1, 2, 2, 2, 2])
    logits = logits_of(np.array([0, 1, 1, 1, 1, 2, 2]), sure=[1, 2, 3, 4, 9, 3, 3])

    found = check_errors(logits, truth, labels=LABELS, rows=[f"r{i}" for i in range(7)], subjects=SUBJECTS)

    assert found.verdict is Verdict.PASSED
    assert found.measured["pairs"] == [
        {"truth": "owl", "predicted": "dog", "rows": 2, "of": 4},
        {"truth": "cat", "predicted": "dog", "rows": 1, "of": 2},
    ]
    assert found.measured["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 2, 2]]
    assert [each["row"] for each in found.measured["worst"]] == ["r4", "r3", "r1"]
    assert found.summary == "3 of 7 gate rows are answered wrongly; most often 'owl' is taken for 'dog', 2 of 4 rows"


def test_rows_without_a_finite_answer_are_wrong_and_worst():
    """NaN has a largest value, and it is no answer."""
    logits = logits_of(np.array([0, 1, 2]))
    logits[0, 1] = np.nan

    found = find_errors(logits, np.array([0, 1, 2]), labels=LABELS, rows=["a", "b", "c"])

    assert (found.wrong, found.worst[0].row, found.worst[0].probability) == (1, "a", 0.0)
    assert np.isfinite(found.worst[0].loss)


def test_lists_are_bounded_and_many_classes_have_no_matrix():
    """1000 classes and 5000 mistakes are a few lines of evidence."""
    random = np.random.default_rng(1)
    logits, truth = random.normal(size=(5000, 1000)), random.integers(1000, size=5000)
    labels, rows = [str(i) for i in range(1000)], [f"folder/{i}.png" for i in range(5000)]

    found = check_errors(logits, truth, labels=labels, rows=rows, subjects=SUBJECTS)

    assert found.measured["confusion"] is None
    assert len(json.dumps(dict(found.measured), allow_nan=False)) < 10_000


def test_no_errors_are_said_so():
    """Nothing to show."""
    found = check_errors(
        logits_of(np.array([0, 1])), np.array([0, 1]), labels=LABELS, rows=["a", "b"], subjects=SUBJECTS
    )

    assert found.summary == "0 of 2 gate rows are answered wrongly"
    assert (found.measured["pairs"], found.measured["worst"]) == ([], [])
