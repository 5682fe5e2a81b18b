"""Small images whose pixels are known."""

from __future__ import annotations

import numpy as np
import pytest

from lightship.tasks.image_classification import ImageClassification


@pytest.fixture
def pixels() -> np.ndarray:
    """A 6 x 4 color image without symmetry."""
    return np.random.default_rng(3).integers(0, 256, size=(6, 4, 3), dtype=np.uint8)


@pytest.fixture
def grey() -> ImageClassification:
    """A task for 6 x 4 grey images."""
    return ImageClassification(labels=("a", "b", "c"), channels=1, height=6, width=4, mean=("0.5",), std=("0.25",))


@pytest.fixture
def color() -> ImageClassification:
    """A task for 6 x 4 color images."""
    return ImageClassification(
        labels=("a", "b"), channels=3, height=6, width=4, mean=("0.5", "0.4", "0.3"), std=("0.2", "0.3", "0.4")
    )
