"""Slices on gate rows: what is called worse or harmed is, and how often noise is called so."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from lightship.errors import InvalidTensor
from lightship.types import Verdict
from lightship.validate.checks.slices import Judged, check_slice_harm, check_slices
from lightship.validate.slices import Features

SUBJECTS = {"reference": "0" * 64}


def simulation():
    """Return the script behind the tables of docs/statistics.md."""
    path = Path(__file__).parents[3] / "benchmarks" / "gate" / "slice_rates.py"
    spec = importlib.util.spec_from_file_location("slice_rates", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parts(**how):
    """Return selection and gate rows of one draw."""
    settings = {"error": 0.08, "flips": 0.05, "harm": 0.0, "own": 0.0, **how}
    random = np.random.default_rng(11)
    return (simulation().draw(random, 600, **settings), simulation().draw(random, 1200, **settings))


def test_planted_harm_fails_and_is_described():
    """A third of the right answers is lost where two numbers and a kind meet."""
    found = check_slice_harm(*parts(harm=0.33), subjects=SUBJECTS)

    assert found.verdict is Verdict.FAILED
    assert "x2 >= " in str(found.measured["lost_most"])
    assert "lost most: " in found.summary
    json.dumps([dict(found.measured), dict(found.method)], allow_nan=False)


def test_variant_that_answers_alike_harms_no_slice():
    """Not one row differs."""
    selection, gate = parts(flips=0.0)

    found = check_slice_harm(selection, gate, subjects=SUBJECTS)

    assert (found.verdict, found.measured["slices"], found.measured["lost_most"]) == (Verdict.PASSED, [], None)


def test_harm_below_the_margin_is_no_harm():
    """A gate that allows five points everywhere cannot forbid them to a part."""
    selection, gate = parts(harm=0.33)

    strict = check_slice_harm(selection, gate, subjects=SUBJECTS)
    lax = check_slice_harm(selection, gate, subjects=SUBJECTS, margin=0.9)

    assert strict.measured["harmed"]
    assert (lax.verdict, lax.measured["harmed"]) == (Verdict.PASSED, [])


def test_answers_that_are_not_finite_are_losses():
    """A variant that gives NaN on a slice loses its rows."""
    selection, gate = parts(flips=0.0)
    for part in (selection, gate):
        part.logits[part.features.numbers["x1"] > 1] = np.nan

    found = check_slice_harm(selection, gate, subjects=SUBJECTS)

    assert found.verdict is Verdict.FAILED
    assert str(found.measured["lost_most"]).startswith("x1 >= ")


def test_worst_slice_of_the_model_is_told():
    """Reported with support, interval and test; it refuses nothing."""
    found = check_slices(*parts(own=0.3), subjects=SUBJECTS)

    worst = found.measured["slices"][0]
    assert found.verdict is Verdict.PASSED
    assert worst["worse"]
    assert worst["accuracy"]["low"] <= worst["accuracy"]["estimate"] == worst["gate"]["correct"] / worst["gate"]["rows"]
    assert worst["accuracy"]["high"] < found.measured["accuracy"]["low"]
    assert worst["words"] in found.summary
    json.dumps([dict(found.measured), dict(found.method)], allow_nan=False)


def test_few_selection_rows_are_unproven():
    """29 rows hold no two slices of 15."""
    few = Judged(Features({"x": np.zeros(29)}), np.zeros(29, np.int64), np.ones((29, 2)))

    found = check_slices(few, few, subjects=SUBJECTS)

    assert found.verdict is Verdict.UNPROVEN
    assert found.summary == "29 selection rows are too few to look for slices"
    assert check_slice_harm(few, few, subjects=SUBJECTS).verdict is Verdict.PASSED


def test_unequal_shapes_are_refused():
    """They are not about the same rows."""
    rows = Features({"x": np.zeros(40)})
    part = Judged(rows, np.zeros(40, np.int64), np.ones((40, 2)), np.ones((39, 2)))

    with pytest.raises(InvalidTensor, match="one shape"):
        check_slice_harm(part, part, subjects=SUBJECTS)


@pytest.mark.parametrize("flips", [0.05, 0.3])
def test_noise_is_rarely_called_harm(flips):
    """Where as many rows are gained as lost, in 100 draws: 5 % are 5, and 11 have a probability of 1 %."""
    tell = simulation().harmed(400, flips=flips)

    assert sum(tell(np.random.default_rng([21, run])) for run in range(100)) < 11


def test_noise_is_rarely_called_worse():
    """The same for the model's own accuracy."""
    tell = simulation().worse(400)

    assert sum(tell(np.random.default_rng([22, run])) for run in range(100)) < 11


def test_planted_slices_are_mostly_shown():
    """30 points of accuracy in a sixth of 1000 gate rows: found on 500 others in nearly every draw."""
    harmed, worse = simulation().harmed(1000, harm=0.3), simulation().worse(1000, own=0.3)

    assert sum(harmed(np.random.default_rng([23, run])) for run in range(20)) >= 18
    assert sum(worse(np.random.default_rng([24, run])) for run in range(20)) >= 18
