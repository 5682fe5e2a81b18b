"""How a model is trained: plain values, checked once, no torch.

The defaults suit small grey images such as handwritten digits.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from lightship.errors import InvalidInput

__all__ = ["TrainSettings"]

_CHOICES = {
    "architecture": ("auto", "cnn-28", "cnn-24"),
    "optimizer": ("sgd", "momentum", "adamw"),
    "schedule": ("constant", "cosine", "one-cycle"),
    "monitor": ("loss", "accuracy", "last"),
}
_WHOLE = {"epochs": 1, "batch_size": 1, "patience": 1, "seed": 0, "threads": 1}
_RANGES = {
    "learning_rate": (0.0, 100.0),
    "weight_decay": (0.0, 10.0),
    "dropout": (0.0, 0.95),
    "label_smoothing": (0.0, 0.95),
    "shift": (0.0, 4096.0),
    "rotate": (0.0, 180.0),
    "scale": (0.0, 0.9),
}


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """One training run. Two runs with equal settings and rows on one machine type end with the same weights.

    Attributes:
        architecture: see ``architectures``; ``auto`` is ``cnn-28``.
        epochs: most passes over the training rows.
        batch_size: rows a step; the last batch of an epoch may be smaller.
        optimizer: ``sgd``, ``momentum`` (SGD with momentum 0.9) or ``adamw``.
        learning_rate: the highest rate of the schedule.
        schedule: ``constant``; ``cosine`` to zero; ``one-cycle``: up over the first 30 % of the steps, then
            down to zero.
        weight_decay: decoupled for ``adamw``, an L2 term for the others.
        dropout: share of features that are dropped in a step.
        label_smoothing: share of each label that is spread evenly over all classes.
        shift: augmentation: largest shift along each axis, in pixels of the tensor.
        rotate: augmentation: largest rotation either way, in degrees.
        scale: augmentation: largest change of size either way, a fraction.
        patience: epochs without a better validation value before training stops.
        monitor: ``loss`` or ``accuracy``: which validation value decides what is better; of equal accuracies the
            lower loss. ``last``: the later epoch is better, so there is no early stopping; for schedules that end low,
            where the noise of few validation rows would often pick an epoch from before the end.
        seed: of weights, order, dropout and augmentation.
        threads: CPU threads. Sums are split by it, so it belongs to the result and does not follow the machine.
    """

    architecture: str = "cnn-28"
    epochs: int = 30
    batch_size: int = 64
    optimizer: Literal["sgd", "momentum", "adamw"] = "adamw"
    learning_rate: float = 0.002
    schedule: Literal["constant", "cosine", "one-cycle"] = "one-cycle"
    weight_decay: float = 0.01
    dropout: float = 0.25
    label_smoothing: float = 0.0
    shift: float = 0.0
    rotate: float = 0.0
    scale: float = 0.0
    patience: int = 8
    monitor: Literal["loss", "accuracy", "last"] = "loss"
    seed: int = 0
    threads: int = 2

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise InvalidInput(f"`{name}` of TrainSettings must be one of {', '.join(choices)}. Got {value!r}.")
        for name, least in _WHOLE.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value < 2**63:
                raise InvalidInput(f"`{name}` of TrainSettings must be a whole number from {least} up. Got {value!r}.")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
                raise InvalidInput(f"`{name}` of TrainSettings must be in [{low:g}, {high:g}]. Got {value!r}.")
        if not self.learning_rate:
            raise InvalidInput("`learning_rate` of TrainSettings must be above 0. Got 0.")

    @property
    def augments(self) -> bool:
        """Whether training images are shifted, rotated or scaled."""
        return bool(self.shift or self.rotate or self.scale)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain values; ``TrainSettings(**value)`` reads them back."""
        return asdict(self)
