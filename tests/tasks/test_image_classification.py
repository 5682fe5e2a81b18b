"""The task: raw image to tensor, logits to answer, and its configuration."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightship.data.files import canonical_json
from lightship.errors import InvalidInput, InvalidTensor
from lightship.tasks import image_classification
from lightship.tasks.image_classification import ImageClassification
from lightship.types import TensorSpec

CONFIG = {"labels": ["a", "b"], "channels": 1, "height": 28, "width": 28, "mean": ["0.1307"], "std": ["0.3081"]}


def test_encode_is_scale_then_normalize_then_channels_first(color, pixels):
    """The formula, per channel, in float32."""
    tensor = color.encode(pixels)["image"]

    expected = (pixels / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    assert tensor.shape == (3, 6, 4)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    assert np.abs(tensor - expected.transpose(2, 0, 1)).max() < 1e-6  # float32 rounding of values up to 4


def test_a_changed_constant_changes_the_tensor(grey, pixels, monkeypatch):
    """All scaling goes through the one constant, so a check that compares tensors notices it."""
    before = grey.encode(pixels)["image"]
    monkeypatch.setattr(image_classification, "PIXEL_MAX", 256.0)

    assert not np.array_equal(grey.encode(pixels)["image"], before)


def test_images_of_other_sizes_are_resized(grey):
    """Tall, wide and tiny ones have the tensor's shape."""
    for shape in ((100, 3), (3, 100), (1, 1)):
        assert grey.encode(np.zeros(shape, np.uint8))["image"].shape == (1, 6, 4)


def test_many_rows_stack(grey, pixels):
    """One batch axis, the rows in order; none is an empty batch."""
    batch = grey.encode_many([pixels, 255 - pixels])["image"]

    assert np.array_equal(batch[1], grey.encode(255 - pixels)["image"])
    assert grey.encode_many([])["image"].shape == (0, 1, 6, 4)


def test_equal_inputs_have_one_identity_however_stored(grey, color, pixels):
    """PNG and array agree; another shape with the same bytes does not; before resizing, so near twins differ."""
    _, png = color.golden(pixels)

    assert color.identity(png) == color.identity(pixels)
    assert grey.identity(png) == grey.identity(pixels) != color.identity(pixels)
    assert grey.identity(np.zeros((2, 8), np.uint8)) != grey.identity(np.zeros((4, 4), np.uint8))


def test_golden_example_encodes_to_the_same_tensor(grey, pixels):
    """A server's self-test feeds the file, the bundle was built from the raw input."""
    suffix, data = grey.golden(pixels)

    assert suffix == ".png"
    assert np.array_equal(grey.encode(data)["image"], grey.encode(pixels)["image"])


def test_decode_is_softmax_most_probable_first(grey):
    """Beside torch; huge logits do not overflow."""
    logits = np.array([[1.0, 3.0, 2.0], [1000.0, -1000.0, 0.0]], np.float32)

    answers = grey.decode({"logits": logits})

    expected = torch.softmax(torch.tensor(logits, dtype=torch.float64), dim=1)
    assert [answer["label"] for answer in answers] == ["b", "a"]
    assert list(answers[0]["probabilities"]) == ["b", "c", "a"]
    assert answers[0]["probability"] == pytest.approx(expected[0, 1].item(), abs=1e-15)
    assert json.loads(json.dumps(answers)) == answers


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=3, max_size=3))
def test_probabilities_are_sorted_and_sum_to_one(logits):
    """For any finite logits; equal ones keep the order of the labels."""
    task = ImageClassification(labels=("x", "y", "z"), channels=1, height=8, width=8, mean=("0",), std=("1",))

    (answer,) = task.decode({"logits": np.array([logits])})

    values = list(answer["probabilities"].values())
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1, abs=1e-12)
    assert answer["probability"] == values[0]
    if len(set(logits)) == 1:
        assert list(answer["probabilities"]) == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("outputs", "why"),
    [
        ({}, "'logits' of shape"),
        ({"other": np.zeros((1, 3))}, "other"),
        ({"logits": np.zeros((1, 2))}, r"\(1, 2\)"),
        ({"logits": np.zeros(3)}, r"\(3,\)"),
        ({"logits": np.array([[0, np.nan, 0]])}, "NaN"),
        ({"logits": np.array([[0, np.inf, 0]])}, "infinite"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(grey, outputs, why):
    """A graph that gives something else must not be answered for."""
    with pytest.raises(InvalidTensor, match=why):
        grey.decode(outputs)


def test_configuration_goes_round_and_has_no_floats(color):
    """What the bundle stores is canonical JSON, and gives the same task."""
    stored = json.loads(canonical_json(color.config()))

    assert ImageClassification.from_config(stored) == color


def test_interface_names_the_tensors(color):
    """With a free batch dimension."""
    assert color.inputs == (TensorSpec("image", "FP32", ("batch", 3, 6, 4)),)
    assert color.outputs == (TensorSpec("logits", "FP32", ("batch", 2)),)
    assert color.media_types == ("image/png", "image/jpeg", "image/webp")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"channels": 2}, "`channels` .* must be 1 or 3. Got 2"),
        ({"channels": "1"}, "`channels`"),
        ({"channels": True}, "`channels`"),
        ({"height": 0}, "`height`"),
        ({"width": 4097}, "`width`"),
        ({"width": 28.0}, "`width`"),
        ({"width": True}, "`width`"),
        ({"mean": [0.1307]}, "list of texts"),
        ({"mean": "0.1307"}, "list of texts"),
        ({"mean": ["0.1", "0.2"]}, "one decimal a channel"),
        ({"mean": ["1e9"]}, "one decimal a channel"),
        ({"mean": ["nan"]}, "one decimal a channel"),
        ({"mean": ["٣"]}, "one decimal a channel"),
        ({"std": ["0"]}, "above 0"),
        ({"std": ["-1"]}, "above 0"),
        ({"labels": ["a"]}, "at least two different"),
        ({"labels": ["a", "a"]}, "at least two different"),
        ({"labels": ["a", ""]}, "at least two different"),
        ({"labels": ["a", 1]}, "list of texts"),
        ({"gamma": 1}, "needs exactly"),
        ({"temperature": "0"}, "`temperature` .* a decimal above 0"),
        ({"temperature": 1.5}, "`temperature`"),
        ({"temperature": "1e3"}, "`temperature`"),
    ],
)
def test_wrong_configurations_are_refused_by_key(change, why):
    """A bundle is from outside: every value is checked, unknown keys too."""
    with pytest.raises(InvalidInput, match=why):
        ImageClassification.from_config({**CONFIG, **change})


def test_a_temperature_changes_how_sure_answers_are_and_nothing_else(grey, pixels):
    """Logits are divided by it; tensors and the order of the classes stay, and so does a configuration without one."""
    calm = ImageClassification.from_config({**grey.config(), "temperature": "2.5"})
    logits = np.random.default_rng(3).normal(size=(4, len(grey.labels))) * 5

    for sure, answer, row in zip(
        grey.decode({"logits": logits}), calm.decode({"logits": logits}), logits / 2.5, strict=True
    ):
        expected = np.exp(row) / np.exp(row).sum()
        assert list(answer["probabilities"]) == list(sure["probabilities"])
        assert [answer["probabilities"][label] for label in grey.labels] == pytest.approx(expected)
    assert np.array_equal(calm.encode(pixels)["image"], grey.encode(pixels)["image"])
    assert calm.config()["temperature"] == "2.5"
    assert "temperature" not in grey.config()
    assert calm.answer_tolerance(0.5) == pytest.approx(0.1)


def test_a_missing_key_is_refused():
    """There are no defaults in a stored configuration."""
    with pytest.raises(InvalidInput, match="needs exactly channels, height, labels, mean, std, width"):
        ImageClassification.from_config({key: value for key, value in CONFIG.items() if key != "std"})


def test_the_module_loads_neither_torch_nor_pillow():
    """A server that gets tensors never decodes an image."""
    code = (
        "import sys, lightship.tasks.image_classification\n"
        "print([name for name in ('torch', 'PIL', 'onnxruntime') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
