"""A training run for the tests that kill it.

Run: python killable.py CHECKPOINTS MODEL PAUSE_AFTER
It pauses (for ever) once PAUSE_AFTER epochs are reported, so that it can be killed at a known place; 0: never.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np

from lightship.train.loop import EncodedRows, train
from lightship.train.settings import TrainSettings
from lightship.types import Silent


class Pausing(Silent):
    """Stops the run for good after some epochs."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count epochs down; wait for ever at zero."""
        self.left -= steps
        if self.left == 0:
            sys.stdout.write("paused\n")
            sys.stdout.flush()
            threading.Event().wait()


def main(checkpoints: str, model: str, pause_after: str) -> None:
    """Train on rows that depend on nothing but this file."""
    random = np.random.default_rng(0)
    parts = [
        EncodedRows(random.normal(size=(n, 1, 8, 8)).astype(np.float32), random.integers(0, 3, n)) for n in (80, 24)
    ]
    settings = TrainSettings(
        epochs=5,
        batch_size=16,
        learning_rate=0.01,
        dropout=0.3,
        shift=1.0,
        rotate=20.0,
        scale=0.1,
        label_smoothing=0.1,
        threads=1,
    )
    folder = Path(checkpoints) if checkpoints else None
    progress = Pausing(int(pause_after))
    train(settings, rows=parts[0], validation=parts[1], classes=3, checkpoint_dir=folder, progress=progress).save(
        Path(model)
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
