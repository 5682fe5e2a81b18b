"""A tiny, learnable problem: bright or dark halves."""

from __future__ import annotations

import numpy as np
import pytest

from lightship.train.loop import EncodedRows, train
from lightship.train.settings import TrainSettings
from lightship.train.trained import TrainedModel


@pytest.fixture(scope="session")
def rows() -> EncodedRows:
    """96 training rows of 1 x 8 x 8."""
    return halves(96, seed=1)


@pytest.fixture(scope="session")
def validation() -> EncodedRows:
    """32 validation rows."""
    return halves(32, seed=2)


@pytest.fixture(scope="session")
def trained(rows: EncodedRows, validation: EncodedRows) -> TrainedModel:
    """A model of three epochs; shared, read-only."""
    settings = TrainSettings(epochs=3, batch_size=16, learning_rate=0.01, shift=1.0, threads=1)
    return train(settings, rows=rows, validation=validation, classes=3)


def halves(count: int, *, seed: int) -> EncodedRows:
    """Return noisy images whose class says where the bright part is: left, top, or nowhere."""
    random = np.random.default_rng(seed)
    images = random.normal(size=(count, 1, 8, 8)).astype(np.float32) * np.float32(0.5)
    targets = np.arange(count, dtype=np.int64) % 3
    images[targets == 0, :, :, :4] += 1
    images[targets == 1, :, :4, :] += 1
    return EncodedRows(images, targets)
