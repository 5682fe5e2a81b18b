"""What slices may be told by: plain features of images and tensors, and where a model's answers lie.

Every feature is a function of one row and of what was fitted on selection rows, never of its label: so a slice can be
looked for in production too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightship.errors import InvalidInput
from lightship.validate.slices import Features

__all__ = ["AnswerSpace", "image_features", "tensor_features"]

_CHUNK = 128  # images at a time: float64 copies of all of them would be several times the rows themselves
_INK = 0.25  # of the range of brightness; a pixel further from the background than this belongs to what is shown
_MOST_COLUMNS = 64
_DIRECTIONS = 4


def image_features(images: np.ndarray) -> Features:
    """Return features of images: brightness, contrast, sharpness, and where and how large what is shown is.

    The background is the median of the border; what differs from it by more than a quarter of the range is *shown*.

    Args:
        images: float (rows, channels, height, width), pixels in [0, 1]; 1 or 3 channels.
    """
    if images.ndim != 4 or not len(images):
        raise InvalidInput(f"Image features need (rows, channels, height, width). Got {images.shape}.")
    parts = [_image_chunk(images[start : start + _CHUNK]) for start in range(0, len(images), _CHUNK)]
    return Features({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _image_chunk(images: np.ndarray) -> dict[str, np.ndarray]:
    grey = images.mean(axis=1, dtype=np.float64)
    height, width = grey.shape[1:]
    across, down = np.abs(np.diff(grey, axis=2)), np.abs(np.diff(grey, axis=1))
    border = np.concatenate([grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]], axis=1)
    background = np.median(border, axis=1)
    shown = np.abs(grey - background[:, None, None]) > _INK
    area = shown.sum(axis=(1, 2)).astype(np.float64)
    some = np.maximum(area, 1)
    columns, rows = shown.any(axis=1), shown.any(axis=2)
    box_width, box_height = _extent(columns), _extent(rows)
    y, x = np.arange(height)[None, :, None], np.arange(width)[None, None, :]
    center_x, center_y = (shown * x).sum(axis=(1, 2)) / some, (shown * y).sum(axis=(1, 2)) / some
    off_x, off_y = x - center_x[:, None, None], y - center_y[:, None, None]
    tall = (shown * off_y**2).sum(axis=(1, 2))
    padded = np.pad(shown, ((0, 0), (1, 1), (1, 1)))
    outline = (padded[:, 1:] != padded[:, :-1]).sum(axis=(1, 2)) + (padded[:, :, 1:] != padded[:, :, :-1]).sum(
        axis=(1, 2)
    )
    found = {
        "mean brightness": grey.mean(axis=(1, 2)),
        "contrast": grey.std(axis=(1, 2)),
        "sharpness": across.sum(axis=(1, 2)) / max(across[0].size, 1) + down.sum(axis=(1, 2)) / max(down[0].size, 1),
        "background brightness": background,
        "shown area": area / (height * width),
        "shown height": box_height / height,
        "shown width": box_width / width,
        "shown aspect (width/height)": box_width / np.maximum(box_height, 1),
        "shown center across": np.where(area > 0, center_x / max(width - 1, 1), 0.5),
        "shown center down": np.where(area > 0, center_y / max(height - 1, 1), 0.5),
        # A stroke of length l and width w has the area l w and an outline of about 2 l.
        "stroke width (pixels)": 2 * area / np.maximum(outline, 1),
        "slant": -(shown * off_x * off_y).sum(axis=(1, 2)) / np.maximum(tall, 1),
    }
    if images.shape[1] == 3:
        red, green, blue = (images[:, channel].mean(axis=(1, 2), dtype=np.float64) for channel in range(3))
        found |= {
            "colorfulness": (images.max(axis=1) - images.min(axis=1)).mean(axis=(1, 2), dtype=np.float64),
            "redness": red - (green + blue) / 2,
            "greenness": green - (red + blue) / 2,
            "blueness": blue - (red + green) / 2,
        }
    return found


def _extent(occupied: np.ndarray) -> np.ndarray:
    """Return how far apart the first and the last true position are, both included; 0 if there is none."""
    size = occupied.shape[1]
    first, last = occupied.argmax(axis=1), size - 1 - occupied[:, ::-1].argmax(axis=1)
    return np.where(occupied.any(axis=1), last - first + 1, 0).astype(np.float64)


def tensor_features(inputs: Mapping[str, np.ndarray]) -> Features:
    """Return features of tensors: every column of a narrow table, else what sums an input up.

    Args:
        inputs: by name, first axis rows; texts give their lengths.
    """
    numbers: dict[str, np.ndarray] = {}
    for name, array in inputs.items():
        if array.dtype.kind in "OSU":
            texts = array.reshape(len(array), -1)
            numbers[f"length of {name}"] = np.array([sum(len(str(item)) for item in row) for row in texts], np.float64)
            continue
        flat = array.reshape(len(array), -1).astype(np.float64)
        finite = np.isfinite(flat)
        if not finite.all():
            numbers[f"missing values in {name}"] = (~finite).sum(axis=1).astype(np.float64)
            flat = np.where(finite, flat, 0)
        if array.ndim <= 2 and flat.shape[1] <= _MOST_COLUMNS and array.dtype.kind != "i":
            labels = [f"{name}[{index}]" for index in range(flat.shape[1])] if flat.shape[1] > 1 else [name]
            numbers |= {label: flat[:, index] for index, label in enumerate(labels)}
        else:
            numbers |= {
                f"mean of {name}": flat.mean(axis=1),
                f"spread of {name}": flat.std(axis=1),
                f"smallest of {name}": flat.min(axis=1),
                f"largest of {name}": flat.max(axis=1),
                f"values of {name} that are not 0": (flat != 0).sum(axis=1).astype(np.float64),
            }
    return Features(numbers)


@dataclass(frozen=True, slots=True)
class AnswerSpace:
    """Where answers lie, in the directions in which those of the selection rows differ most.

    The length of an answer is left out: how sure a model is tells of its errors, and nothing about what it looks at.
    """

    labels: tuple[str, ...]
    center: np.ndarray
    directions: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def fit(cls, answers: np.ndarray, *, labels: Sequence[str] = ()) -> AnswerSpace:
        """Find the directions.

        Args:
            answers: logits or embeddings of selection rows: finite float (rows, k).
            labels: names of the k classes; none for an embedding.
        """
        unit = _unit(answers, classes=bool(labels))
        center = unit.mean(axis=0)
        moved = unit - center
        values, vectors = np.linalg.eigh(moved.T @ moved / len(moved))
        keep = [index for index in np.argsort(-values)[:_DIRECTIONS] if values[index] > 1e-9]
        directions = vectors[:, keep].T
        # The sign of a direction is arbitrary: its largest part is made positive, so that the same rows give the same.
        directions *= np.sign(directions[np.arange(len(keep)), np.abs(directions).argmax(axis=1)])[:, None]
        names = tuple(_direction_name(index, each, labels) for index, each in enumerate(directions, start=1))
        return cls(tuple(labels), center, directions, names)

    def features(self, answers: np.ndarray) -> Features:
        """Return the place of each answer, and the class that it says if there are classes."""
        places = (_unit(answers, classes=bool(self.labels)) - self.center) @ self.directions.T
        numbers = {name: places[:, index] for index, name in enumerate(self.names)}
        if not self.labels:
            return Features(numbers or {"answer": np.zeros(len(answers))})
        said = np.array(self.labels, dtype=object)[answers.argmax(axis=1)]
        return Features(numbers, {"answer": said})


def _unit(answers: np.ndarray, *, classes: bool) -> np.ndarray:
    wide = answers.reshape(len(answers), -1).astype(np.float64)
    if classes:
        wide = wide - wide.mean(axis=1, keepdims=True)  # a logit counts only against the others
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30))


def _direction_name(index: int, direction: np.ndarray, labels: Sequence[str]) -> str:
    if not labels:
        return f"answer direction {index}"
    order = np.argsort(-direction, kind="stable")
    return f"leaning to {labels[order[0]]!r} against {labels[order[-1]]!r}"
