"""Networks that the training loop knows by name.

They are small on purpose: they train on a CPU in a minute. Both adapt to any image of at least 8 x 8 pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from lightship.errors import InvalidInput

__all__ = ["ARCHITECTURES", "build_model"]

MIN_SIDE = 8
MAX_WEIGHTS = 50_000_000  # a dense layer on large images grows past what a CPU trains


def build_model(
    name: str, *, channels: int, height: int, width: int, classes: int, dropout: float = 0.0, seed: int = 0
) -> nn.Module:
    """Return a network from float32 (batch, channels, height, width) to logits (batch, classes).

    Args:
        name: ``cnn-28``, ``cnn-24`` or ``auto``.
        channels: of the image.
        height: at least 8.
        width: at least 8.
        classes: at least 2.
        dropout: before the dense layers, in training mode only.
        seed: of the first weights. The caller's random state is left alone.

    Raises:
        InvalidInput: an unknown name, or a shape that the network does not fit.
    """
    build = ARCHITECTURES.get(name)
    if build is None:
        raise InvalidInput(f"There is no architecture {name!r}. Known: {', '.join(ARCHITECTURES)}.")
    if min(height, width) < MIN_SIDE or channels < 1 or classes < 2:
        raise InvalidInput(
            f"{name} needs images of at least {MIN_SIDE} x {MIN_SIDE} pixels, 1 channel and 2 classes. "
            f"Got {height} x {width} pixels, {channels} channel(s) and {classes} class(es)."
        )
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        weights = sum(tensor.numel() for tensor in build(channels, height, width, classes, dropout).parameters())
    if weights > MAX_WEIGHTS:
        raise InvalidInput(
            f"{name} for {height} x {width} pixels would have {weights} weights; at most {MAX_WEIGHTS} are allowed. "
            "Make the images smaller, or take cnn-28."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(channels, height, width, classes, dropout)


def _cnn_28(channels: int, height: int, width: int, classes: int, dropout: float) -> nn.Module:
    """Convolution 32, pool, convolution 64, pool, dense. For 1 x 28 x 28: 50 thousand weights."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),  # after the pool: the same values for a quarter of the work
        nn.Conv2d(32, 64, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(64 * (height // 4) * (width // 4), classes),
    )


def _cnn_24(channels: int, height: int, width: int, classes: int, dropout: float) -> nn.Module:
    """Convolution 32, convolution 64, pool, dense 128, dense. For 3 x 24 x 24: 840 thousand weights."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(128, classes),
    )


ARCHITECTURES: dict[str, Callable[[int, int, int, int, float], nn.Module]] = {
    "auto": _cnn_28,
    "cnn-28": _cnn_28,
    "cnn-24": _cnn_24,
}
