"""Image in, class with probabilities out (task ``image-classification``, codec version 1).

The one definition of how an image becomes a tensor, for training, validation, server and batch: canonical pixels
(``image_pixels``), bilinear resize, ``x / 255``, ``(x - mean) / std`` per channel, channels first. A change of any of
these gives other tensors for the same image and is a new codec version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from lightship.errors import InvalidInput, InvalidTensor
from lightship.tasks.image_pixels import canonical_pixels, png_bytes, sized_pixels
from lightship.tasks.task import Raw, Tensors
from lightship.types import Json, TensorSpec

__all__ = ["PIXEL_MAX", "ImageClassification"]

PIXEL_MAX = 255.0
"""Pixels are divided by this before mean and std are applied."""

MAX_SIDE = 4096
_DECIMAL = re.compile(r"-?[0-9]{1,6}(\.[0-9]{1,9})?")


@dataclass(frozen=True, slots=True)
class ImageClassification:
    """Images into one of several classes.

    Attributes:
        labels: the classes in the order of the logits, at least two, no two equal.
        channels: 1 (grey) or 3 (RGB).
        height: of the tensor, 1 to 4096; images of another size are resized.
        width: likewise.
        mean: one decimal a channel, e.g. ``("0.1307",)``, of pixels in [0, 1].
        std: likewise, above 0. Decimals are text so that the configuration has one spelling and one digest.
        temperature: a decimal above 0 that logits are divided by before they become probabilities. It changes how sure
            answers are, never which one comes first. "1" leaves them, and is left out of the configuration.
    """

    labels: tuple[str, ...]
    channels: int
    height: int
    width: int
    mean: tuple[str, ...]
    std: tuple[str, ...]
    temperature: str = "1"

    name: ClassVar[str] = "image-classification"
    codec_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_labels(self.labels)
        if type(self.channels) is not int or self.channels not in (1, 3):
            raise InvalidInput(f"`channels` of {self.name} must be 1 or 3. Got {self.channels!r}.")
        for side in ("height", "width"):
            value = getattr(self, side)
            if type(value) is not int or not 1 <= value <= MAX_SIDE:
                raise InvalidInput(f"`{side}` of {self.name} must be a whole number in [1, {MAX_SIDE}]. Got {value!r}.")
        for key in ("mean", "std"):
            _check_decimals(key, getattr(self, key), channels=self.channels, positive=key == "std")
        said = self.temperature
        if not isinstance(said, str) or not _DECIMAL.fullmatch(said) or float(said) <= 0:
            raise InvalidInput(
                f'`temperature` of {self.name} must be a decimal above 0, written as text such as "1.5". Got {said!r}.'
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Json]) -> Self:
        """Build the task from a bundle's configuration.

        Raises:
            InvalidInput: a key is missing, unknown or of the wrong type.
        """
        wanted = {"labels", "channels", "height", "width", "mean", "std"}
        if set(config) - {"temperature"} != wanted:
            raise InvalidInput(
                f"The configuration of {cls.name} needs exactly {', '.join(sorted(wanted))}, and may have temperature. "
                f"Got {', '.join(sorted(config)) or 'nothing'}."
            )
        return cls(
            labels=_texts(config["labels"], "labels"),
            channels=config["channels"],  # type: ignore[arg-type]  # checked in __post_init__, as height and width
            height=config["height"],  # type: ignore[arg-type]
            width=config["width"],  # type: ignore[arg-type]
            mean=_texts(config["mean"], "mean"),
            std=_texts(config["std"], "std"),
            temperature=config.get("temperature", "1"),  # type: ignore[arg-type]  # checked in __post_init__ too
        )

    def config(self) -> dict[str, Json]:
        """Return the configuration for the bundle; ``from_config`` reads it back."""
        return {
            "labels": list(self.labels),
            "channels": self.channels,
            "height": self.height,
            "width": self.width,
            "mean": list(self.mean),
            "std": list(self.std),
            **({} if self.temperature == "1" else {"temperature": self.temperature}),
        }

    @property
    def media_types(self) -> tuple[str, ...]:
        """Media types of the files that ``encode`` takes."""
        return ("image/png", "image/jpeg", "image/webp")

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """``image``: FP32 (batch, channels, height, width)."""
        return (TensorSpec("image", "FP32", ("batch", self.channels, self.height, self.width)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """``logits``: FP32 (batch, number of labels)."""
        return (TensorSpec("logits", "FP32", ("batch", len(self.labels))),)

    def decode_pixels(self, raw: Raw) -> np.ndarray:
        """Return the canonical pixels before resizing: uint8 (height, width, channels).

        Raises:
            InvalidMedia, UnsupportedMedia, InvalidTensor, TooLarge: as ``encode``.
        """
        return canonical_pixels(raw, channels=self.channels)

    def identity(self, raw: Raw) -> bytes:
        """Return shape and bytes of the canonical pixels before resizing, so a PNG and an array may be equal.

        Raises:
            InvalidMedia, UnsupportedMedia, InvalidTensor, TooLarge: as ``encode``.
        """
        pixels = self.decode_pixels(raw)
        return f"{pixels.shape[0]}x{pixels.shape[1]}x{pixels.shape[2]}\n".encode() + pixels.tobytes()

    def encode(self, raw: Raw) -> Tensors:
        """Return ``{"image": float32 (channels, height, width)}``.

        Raises:
            InvalidMedia: the file is broken, empty or an animation.
            UnsupportedMedia: it is not a PNG, JPEG or WebP file.
            InvalidTensor: the array is not uint8 (h, w), (h, w, 1) or (h, w, 3).
            TooLarge: the image has too many pixels.
        """
        pixels = sized_pixels(raw, channels=self.channels, height=self.height, width=self.width)
        mean, std = (np.array([float(text) for text in texts], dtype=np.float32) for texts in (self.mean, self.std))
        scaled = (pixels.astype(np.float32) / np.float32(PIXEL_MAX) - mean) / std
        return {"image": np.ascontiguousarray(scaled.transpose(2, 0, 1))}

    def encode_many(self, raws: Iterable[Raw]) -> Tensors:
        """Return ``{"image": float32 (rows, channels, height, width)}``."""
        rows = [self.encode(raw)["image"] for raw in raws]
        empty = np.empty((0, self.channels, self.height, self.width), dtype=np.float32)
        return {"image": np.stack(rows) if rows else empty}

    def decode(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Turn ``{"logits": float (rows, labels)}`` into one answer a row.

        Returns:
            ``{"label": "7", "probability": 0.998, "probabilities": {"7": 0.998, "1": 0.001, ...}}``, the most
            probable class first; of equal ones, the first in ``labels``.

        Raises:
            InvalidTensor: ``logits`` is missing, has another shape, or holds NaN or infinity.
        """
        logits = np.asarray(outputs["logits"], dtype=np.float64) if "logits" in outputs else np.empty(0)
        if logits.ndim != 2 or logits.shape[1] != len(self.labels):
            raise InvalidTensor(
                f"The graph must give 'logits' of shape (batch, {len(self.labels)}). Got "
                f"{ {name: np.shape(value) for name, value in outputs.items()} }."
            )
        if not np.isfinite(logits).all():
            raise InvalidTensor("The graph gave logits that are NaN or infinite. Check the variant and its input.")
        return [self._answer(row) for row in logits]

    def answer_tolerance(self, tolerance: float) -> float:
        """Return how far a probability may be off where logits are off by ``tolerance``: half of it by temperature.

        The slope of a softmax is ``p_i (d_i - sum p_j d_j)``, at most ``2 p_i (1 - p_i) max|d|``, and p (1 - p) <= 1/4.
        """
        return tolerance / (2 * float(self.temperature))

    def golden(self, raw: Raw) -> tuple[str, bytes]:
        """Return ``(".png", bytes)``: the canonical pixels as a lossless PNG."""
        return ".png", png_bytes(self.decode_pixels(raw))

    def _answer(self, logits: np.ndarray) -> dict[str, Any]:
        powers = np.exp((logits - logits.max()) / float(self.temperature))
        probabilities = powers / powers.sum()
        order = np.argsort(-probabilities, kind="stable")
        ranked = {self.labels[i]: float(probabilities[i]) for i in order}
        best = self.labels[order[0]]
        return {"label": best, "probability": ranked[best], "probabilities": ranked}


def _texts(value: Json, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidInput(f"`{key}` of {ImageClassification.name} must be a list of texts. Got {value!r}.")
    return tuple(str(item) for item in value)


def _check_labels(labels: tuple[str, ...]) -> None:
    if len(labels) < 2 or len(set(labels)) != len(labels) or not all(labels):
        raise InvalidInput(
            f"`labels` of {ImageClassification.name} must be at least two different texts. Got {list(labels)!r}."
        )


def _check_decimals(key: str, texts: tuple[str, ...], *, channels: int, positive: bool) -> None:
    well_formed = len(texts) == channels and all(_DECIMAL.fullmatch(text) for text in texts)
    if not well_formed or (positive and not all(float(text) > 0 for text in texts)):
        above = ", above 0" if positive else ""
        raise InvalidInput(
            f"`{key}` of {ImageClassification.name} must hold one decimal a channel ({channels}){above}, written as "
            f'text such as "0.5". Got {list(texts)!r}.'
        )
