"""What labels are, told by their form beside the model's outputs; and what is no label."""

from __future__ import annotations

import numpy as np
import pytest

from lightship.errors import InvalidData, InvalidInput
from lightship.pipeline.row_labels import classes_given, row_labels
from lightship.types import TensorSpec

OUTPUTS = {
    "three scores": {"y": ("FP32", (3,))},
    "one score": {"y": ("FP32", (1,))},
    "flat score": {"y": ("FP32", ())},
    "classes": {"y": ("INT64", ())},
    "tree": {"output_label": ("INT64", ()), "probabilities": ("FP32", (3,))},
    "two alike": {"a": ("FP32", (3,)), "b": ("FP32", (3,))},
    "series": {"y": ("FP32", (2, 3))},
}


def told(labels, outputs="three scores", **options):
    """Return what the labels are beside answers to one row."""
    kinds = {"FP32": np.float32, "INT64": np.int64}
    answers = {name: np.zeros((1, *shape), kinds[dtype]) for name, (dtype, shape) in OUTPUTS[outputs].items()}
    specs = [TensorSpec(name, dtype, ("batch", *shape)) for name, (dtype, shape) in OUTPUTS[outputs].items()]
    return row_labels(labels, answers, specs, **options)


RNG = np.random.default_rng(5)
KINDS = {
    "numbers of classes": (np.array([0, 2, 1]), "three scores", "classes y"),
    "as floats": (np.array([0.0, 2.0, 1.0]), "three scores", "classes y"),
    "as texts": (["0", "2", b"1"], "three scores", "classes y"),
    "truth values": (np.array([True, False]), "one score", "classes y"),
    "0 and 1 for one score": (np.array([0, 1, 1]), "flat score", "classes y"),
    "classes without scores": (np.array([4, 0, 7]), "classes", "classes y"),
    "scores before classes": (np.array([2, 0, 1]), "tree", "classes probabilities"),
    "a column of numbers": (np.array([[0.5], [2.0]]), "one score", "numbers y"),
    "counts": (np.array([3, 17, 5]), "flat score", "numbers y"),
    "vectors": (RNG.normal(size=(5, 3)), "three scores", "numbers y"),
    "vectors in lists": ([[0.5, 1, 2], [1, 2, 3]], "three scores", "numbers y"),
    "whole vectors": (np.array([[3, 0, 2], [1, 1, 1]]), "three scores", "numbers y"),
    "tags": (np.array([[1, 1, 0], [0, 0, 0]]), "three scores", "tags y"),
    "tags as floats": (np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]), "three scores", "tags y"),
    "series": (RNG.normal(size=(4, 2, 3)), "series", "numbers y"),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_form_of_labels_and_outputs_tells_what_they_are(name):
    """Nobody has to say it."""
    labels, outputs, expected = KINDS[name]

    found = told(labels, outputs)

    assert f"{found.kind} {found.output}" == expected
    assert found.values.dtype == {"classes": np.int64, "tags": np.uint8, "numbers": np.float64}[found.kind]
    assert len(found.values) == len(labels)


def test_one_one_in_every_row_may_be_two_things():
    """It is asked; either answer is taken, and as classes they are the places of the ones."""
    labels = np.eye(3)[[2, 0, 1, 1]]

    with pytest.raises(InvalidInput, match="`--label-kind classes` or `--label-kind tags`"):
        told(labels)
    assert told(labels, kind="tags").values.tolist() == labels.tolist()
    assert told(labels, kind="classes").values.tolist() == [2, 0, 1, 1]


def test_what_a_person_says_decides_between_what_is_possible():
    """0 and 1 may be measured numbers; three classes are no tags."""
    assert told(np.array([0, 1, 1]), "one score", kind="numbers").kind == "numbers"
    with pytest.raises(InvalidInput, match=r"whole numbers up to 2.*a float for each of them, \[rows\]"):
        told(np.array([0, 2, 1]), kind="tags")


@pytest.mark.parametrize(
    ("labels", "outputs", "words"),
    [
        (np.array([0, 5]), "three scores", r"up to 5.*at least 6 classes.*'y' FP32 \[rows, 3\].*Leave the labels out"),
        (np.array([0.5, 1.5, 0.1]), "three scores", r"decimal numbers, \[rows\].*a float for each"),
        (RNG.normal(size=(4, 2)), "three scores", r"\[rows, 2\]"),
        (np.array([0, 2]), "two alike", r"`--output NAME`"),
        (np.array([0.5, 1.5]), "classes", "a float for each"),
    ],
    ids=["beyond the scores", "decimals", "width", "two outputs", "no floats"],
)
def test_labels_that_go_with_no_output_are_refused(labels, outputs, words):
    """With what they are, what they would need, and what the outputs are."""
    with pytest.raises(InvalidInput, match=words):
        told(labels, outputs)


def test_names_of_classes_that_the_model_does_not_say_are_no_labels():
    """Sorted names, or the order of their appearance: either would be a guess."""
    with pytest.raises(InvalidData, match=r"'cat' is a text\. The model does not say the names of its classes"):
        told(["cat", "dog", "cat"])
    assert told(["b", "c", "a"], names=("a", "b", "c")).values.tolist() == [1, 2, 0]
    found = told(["b", "c", "d"], names=("a", "b", "c"))
    assert dict(found.bad) == {2: "the label 'd' is no class of the model: a, b, c"}


@pytest.mark.parametrize(
    ("label", "words"),
    [(-1, "from 0 on"), (1.5, "from 0 on"), (None, "is empty"), ("cat", "is a text"),
     (float("nan"), "no finite number"), ([0, 1], "has the shape [2]"), ({}, "must be a number")],
    ids=["negative", "half", "empty", "text", "nan", "shape", "object"],
)  # fmt: skip
def test_a_bad_label_is_the_fault_of_its_row(label, words):
    """The others stand."""
    labels = [0, 1, 2, 1, label, 0]

    found = told(labels)

    assert found.kind == "classes"
    assert [*found.bad] == [4]
    assert words in found.bad[4]
    assert [found.values[index] for index in (0, 1, 2, 3, 5)] == [0, 1, 2, 1, 0]
    classes, bad = classes_given(labels, ())
    assert (classes.tolist(), [*bad]) == ([0, 1, 2, 1, -1, 0], [4])
