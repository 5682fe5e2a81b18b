"""Networks: they fit every allowed image, and their first weights follow the seed."""

from __future__ import annotations

import pytest
import torch

from lightship.errors import InvalidInput
from lightship.train.architectures import ARCHITECTURES, build_model


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    ("channels", "height", "width", "classes"),
    [(1, 28, 28, 10), (3, 24, 24, 10), (1, 8, 8, 2), (3, 9, 31, 5), (4, 33, 17, 100)],
)
def test_networks_adapt_to_the_image(name, channels, height, width, classes):
    """Odd sizes, more channels, more classes."""
    model = build_model(name, channels=channels, height=height, width=width, classes=classes, dropout=0.5)

    assert model(torch.zeros(2, channels, height, width)).shape == (2, classes)


def test_auto_is_cnn_28():
    """The same seed gives the same weights under both names."""
    one, other = (build_model(name, channels=1, height=8, width=8, classes=3, seed=4) for name in ("auto", "cnn-28"))

    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_first_weights_follow_the_seed_and_leave_the_callers_random_state():
    """Two seeds, two networks; torch's generator is where it was."""
    state = torch.get_rng_state()

    one, other = (build_model("cnn-28", channels=1, height=8, width=8, classes=3, seed=seed) for seed in (1, 2))

    assert not torch.equal(one[0].weight, other[0].weight)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"name": "resnet"}, "no architecture 'resnet'. Known: auto, cnn-28, cnn-24"),
        ({"height": 7}, "at least 8 x 8"),
        ({"classes": 1}, "2 classes"),
        ({"channels": 0}, "1 channel"),
        ({"name": "cnn-24", "height": 512, "width": 512}, "weights; at most 50000000"),
    ],
)
def test_what_does_not_fit_is_refused(values, why):
    """Before memory is taken for it."""
    shape = {"name": "cnn-28", "channels": 1, "height": 28, "width": 28, "classes": 10, **values}

    with pytest.raises(InvalidInput, match=why):
        build_model(**shape)
