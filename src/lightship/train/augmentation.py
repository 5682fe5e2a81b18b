"""Random shifts, rotations and changes of size for training images.

Randomness comes from torch's global generator, whose state the training loop owns and saves.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

__all__ = ["augment"]


def augment(images: torch.Tensor, *, shift: float, rotate: float, scale: float) -> torch.Tensor:
    """Return the images, each moved by its own random affine map, bilinear, with the border pixels continued outside.

    Args:
        images: float32 (batch, channels, height, width).
        shift: largest shift along each axis, in pixels.
        rotate: largest rotation either way, in degrees.
        scale: largest change of size either way; 0.1 is 90 % to 110 %.
    """
    batch, _, height, width = images.shape
    random = torch.rand(4, batch) * 2 - 1  # (4, batch) in [-1, 1): angle, size, shift along x and y
    angle = random[0] * math.radians(rotate)
    size = 1 + random[1] * scale
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    # The grid's coordinates run from -1 to 1 on both axes, so a rotation of pixels needs the aspect.
    aspect = height / width
    maps = torch.stack(
        [
            torch.stack([cos, -sin * aspect, random[2] * 2 * shift / width], dim=1),
            torch.stack([sin / aspect, cos, random[3] * 2 * shift / height], dim=1),
        ],
        dim=1,
    )  # (batch, 2, 3)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
