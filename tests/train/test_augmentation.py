"""Augmentation: whole-pixel shifts and right angles can be checked exactly."""

from __future__ import annotations

import pytest
import torch

from lightship.train import augmentation
from lightship.train.augmentation import augment

IMAGE = torch.arange(48.0).reshape(1, 1, 6, 8)


@pytest.fixture
def drawn(monkeypatch):
    """Fix what is drawn: (angle, size, shift x, shift y), each in [-1, 1]."""

    def fix(*values: float) -> None:
        monkeypatch.setattr(augmentation.torch, "rand", lambda *_: (torch.tensor(values)[:, None] + 1) / 2)

    return fix


def test_nothing_asked_nothing_changed():
    """The identity up to float32 rounding."""
    assert torch.allclose(augment(IMAGE, shift=0, rotate=0, scale=0), IMAGE, atol=1e-4)


def test_shift_is_in_pixels(drawn):
    """Two columns and one row, the border continued."""
    drawn(0, 0, 1, 0.5)

    found = augment(IMAGE, shift=2, rotate=0, scale=0)

    assert torch.allclose(found[0, 0, :5, :6], IMAGE[0, 0, 1:, 2:], atol=1e-4)
    assert torch.allclose(found[0, 0, :5, 7], IMAGE[0, 0, 1:, 7], atol=1e-4)


def test_half_a_turn_is_exact_on_oblong_images(drawn):
    """Angles are those of pixels, whatever the aspect is."""
    drawn(1, 0, 0, 0)

    assert torch.allclose(augment(IMAGE, shift=0, rotate=180, scale=0), IMAGE.flip(2, 3), atol=1e-3)


def test_a_quarter_turn_keeps_squares_square(drawn):
    """The middle of an oblong image turns without being squeezed."""
    drawn(1, 0, 0, 0)
    middle = IMAGE[0, 0, :, 1:7]

    found = augment(IMAGE, shift=0, rotate=90, scale=0)[0, 0, :, 1:7]

    turned = (middle.rot90(1), middle.rot90(-1))
    assert any(torch.allclose(found, candidate, atol=1e-3) for candidate in turned)


def test_scale_enlarges_about_the_middle(drawn):
    """Twice as large: the middle stays, the step between pixels halves."""
    drawn(0, 1, 0, 0)

    found = augment(IMAGE, shift=0, rotate=0, scale=0.9999)[0, 0]

    assert found.mean().item() == pytest.approx(IMAGE.mean().item(), abs=1e-3)
    assert (found[3, 4] - found[3, 3]).item() == pytest.approx(0.5, abs=1e-3)


def test_values_stay_in_range_and_rows_move_differently():
    """Bilinear values never overshoot; every image has its own draw."""
    torch.manual_seed(0)
    images = IMAGE.repeat(16, 1, 1, 1)

    found = augment(images, shift=2, rotate=30, scale=0.3)

    assert found.min() >= IMAGE.min()
    assert found.max() <= IMAGE.max()
    assert len({tuple(row.flatten().tolist()) for row in found}) == 16
