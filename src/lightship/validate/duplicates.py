"""Near-duplicates: rows of two parts of the data that are nearly the same, so that one part tells the other's answers.

Equal rows lie in one part already (``data.split``). Rows that were shifted by a pixel, made a little brighter, or hold
some noise do not, and a model that has seen the one knows the other.

Candidates come from random hyperplanes in bands (Charikar, STOC 2002; Indyk, Motwani, STOC 1998): rows are compared
only if all signs of a band agree, so the work grows with the rows and not with their square. Each candidate is then
looked at closely: images by their correlation over small shifts, tensors by their distance.

What to watch: handwriting, icons and other simple pictures are alike without being copies. docs/statistics.md tells
how many pairs of real digits are called alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightship.errors import InvalidInput
from lightship.types import Json

__all__ = ["IMAGE_THRESHOLD", "TENSOR_THRESHOLD", "Twins", "image_twins", "small_image", "tensor_twins", "twins_json"]

IMAGE_THRESHOLD = 0.985
"""Least correlation of two images, both blurred a little, over shifts of up to two pixels."""
TENSOR_THRESHOLD = 0.999
"""Least similarity of two rows of tensors: 1 less half of their squared distance, in standard deviations a column."""

_SIDE = 32  # images are compared at this size at most
_COARSE = 8
_SHIFTS = 2
_BANDS = 24
_ROWS_A_BUCKET = 8
_MOST_IN_BUCKET = 64  # a larger bucket is walked along: each row meets those next to it
_COARSE_LEAST = 0.5  # correlation of what is left when the mean of all rows is taken off
_MOST_DIMENSIONS = 64
_PAIRS_AT_ONCE = 2048
_MOST_EXAMPLES = 12
_FLAT = 1e-3


@dataclass(frozen=True, slots=True)
class Twins:
    """Pairs of rows from different parts.

    Attributes:
        pairs: int64 (pairs, 2), positions in the rows given, the smaller one first; the most alike first.
        similarity: of each pair, in [threshold, 1].
        threshold: least similarity that counts.
        compared: how many pairs were looked at closely.
    """

    pairs: np.ndarray
    similarity: np.ndarray
    threshold: float
    compared: int

    def touched(self, part: np.ndarray, name: str) -> np.ndarray:
        """Return the positions of rows of the part called ``name`` that have a twin in another part."""
        rows = np.unique(self.pairs)
        return np.asarray(rows[part[rows] == name])


def image_twins(images: np.ndarray, parts: np.ndarray, *, threshold: float = IMAGE_THRESHOLD, seed: int = 0) -> Twins:
    """Find images of different parts that are one image, shifted by up to two pixels, noisy, or brighter.

    Args:
        images: float (rows, channels, height, width); any scale, the same for all.
        parts: name of the part of each row, (rows,).
        threshold: least correlation that counts.
        seed: of the hyperplanes.
    """
    if images.ndim != 4 or len(images) != len(parts):
        raise InvalidInput(
            f"Near-duplicates need images (rows, c, h, w) and a part for each. Got {images.shape}, {len(parts)}."
        )
    grey = np.concatenate([small_image(image) for image in images]) if len(images) else np.empty((0, 1, 1), np.float32)
    coarse = _unit(_area_mean(grey, min(_COARSE, *grey.shape[1:])))
    fine = _blurred(grey)
    half = _area_mean(fine, max(1, min(fine.shape[1:]) // 2))

    def close(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        """Look at half of the size for the shift, then around it: nearly all candidates end on the way."""
        similar = np.full(len(one), -1.0)
        likely = np.flatnonzero(_correlation(half[one], half[two], 0, 0) >= threshold - 0.45)
        best, at = _best(half[one[likely]], half[two[likely]], [(0, 0)] * len(likely), _SHIFTS // 2)
        found = best >= threshold - 0.16
        likely, around = likely[found], 2 * at[found]
        similar[likely], _ = _best(fine[one[likely]], fine[two[likely]], around, 1)
        return similar

    return _twins(coarse, np.asarray(parts), close, threshold=threshold, seed=seed)


def tensor_twins(
    inputs: Mapping[str, np.ndarray], parts: np.ndarray, *, threshold: float = TENSOR_THRESHOLD, seed: int = 0
) -> Twins:
    """Find rows of tensors that are nearly equal: columns are brought to mean 0 and standard deviation 1 before.

    Args:
        inputs: numbers by name, first axis rows; what is not finite counts as 0.
        parts: name of the part of each row, (rows,).
        threshold: least similarity that counts, see ``TENSOR_THRESHOLD``.
        seed: of the hyperplanes and projections.
    """
    random = np.random.default_rng(seed)
    total: np.ndarray | None = None
    width = 0
    wide = sum(int(np.prod(array.shape[1:])) for array in inputs.values())
    for name in sorted(inputs):
        if inputs[name].dtype.kind not in "fiub" or len(inputs[name]) != len(parts):
            raise InvalidInput(f"Near-duplicates need numbers, one row for each of {len(parts)} parts. Got {name!r}.")
        columns = _standard(inputs[name])
        width += columns.shape[1]
        # A random projection keeps distances (Johnson, Lindenstrauss, 1984); each input is projected by itself.
        if wide > _MOST_DIMENSIONS:
            projected = columns @ random.normal(size=(columns.shape[1], _MOST_DIMENSIONS)) / np.sqrt(_MOST_DIMENSIONS)
            total = projected if total is None else total + projected
        else:
            total = columns if total is None else np.concatenate([total, columns], axis=1)
    if total is None or not width:
        raise InvalidInput("Near-duplicates need at least one input with numbers. Got none.")
    points = total / np.sqrt(width)

    def close(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return np.asarray(1 - np.square(points[one] - points[two]).sum(axis=1) / 2)

    return _twins(_unit(points), np.asarray(parts), close, threshold=threshold, seed=seed)


def twins_json(
    found: Twins, parts: np.ndarray, *, rows: Sequence[str], labels: Sequence[str] | None = None, judged: str = "gate"
) -> dict[str, Json]:
    """Return the JSON form for evidence: counts by parts, rows of the ``judged`` part with a twin, a few examples."""
    across: dict[str, int] = {}
    for one, two in found.pairs:
        key = "-".join(sorted((str(parts[one]), str(parts[two])), key=_order))
        across[key] = across.get(key, 0) + 1
    examples: list[Json] = []
    for (one, two), similarity in zip(found.pairs[:_MOST_EXAMPLES], found.similarity, strict=False):
        example: dict[str, Json] = {"similarity": float(similarity)}
        for side, at in (("a", int(one)), ("b", int(two))):
            example |= {side: rows[at].encode("utf-8", "replace").decode(), f"{side}_part": str(parts[at])}
            example[f"{side}_label"] = labels[at] if labels is not None else None
        examples.append(example)
    return {
        "pairs": len(found.pairs),
        f"{judged}_rows": len(found.touched(parts, judged)),
        "across": dict(sorted(across.items())),
        "examples": examples,
        "threshold": found.threshold,
        "compared": found.compared,
    }


def _order(part: str) -> tuple[int, str]:
    known = ("train", "validation", "calibration", "selection", "gate")
    return (known.index(part) if part in known else len(known), part)


def _twins(
    points: np.ndarray,
    parts: np.ndarray,
    close: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    threshold: float,
    seed: int,
) -> Twins:
    """Compare the candidates of all bands, each pair once."""
    candidates = _candidates(points, parts, seed)
    kept: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    for start in range(0, len(candidates), _PAIRS_AT_ONCE):
        some = candidates[start : start + _PAIRS_AT_ONCE]
        similar = close(some[:, 0], some[:, 1])
        kept.append(some[similar >= threshold])
        scores.append(similar[similar >= threshold])
    pairs = np.concatenate(kept) if kept else np.empty((0, 2), np.int64)
    similarity = np.concatenate(scores) if scores else np.empty(0)
    order = np.argsort(-similarity, kind="stable")
    return Twins(pairs[order], np.minimum(similarity[order], 1.0), threshold, len(candidates))


def _candidates(points: np.ndarray, parts: np.ndarray, seed: int) -> np.ndarray:
    """Return pairs of rows of different parts that agree in all signs of a band, and are alike at first sight."""
    count, dimensions = points.shape
    # As many signs as leave a few rows in a bucket: more would miss twins, fewer would compare everything.
    bits = max(1, min(48, int(np.ceil(np.log2(max(count / _ROWS_A_BUCKET, 2))))))
    random = np.random.default_rng(seed)
    centered = (points - points.mean(axis=0)).astype(np.float32)
    centered /= np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), _FLAT)
    codes_of = np.int64(1) << np.arange(bits, dtype=np.int64)
    names, part = np.unique(parts, return_inverse=True)
    found: list[np.ndarray] = []
    if len(names) < 2:
        return np.empty((0, 2), np.int64)
    for _ in range(_BANDS):
        planes = random.normal(size=(dimensions, bits)).astype(np.float32)
        signs = centered @ planes
        codes = (signs > 0) @ codes_of
        order = np.lexsort((signs[:, 0], codes))
        for step in range(1, _MOST_IN_BUCKET):
            one, two = order[:-step], order[step:]
            same = codes[one] == codes[two]
            if not same.any():
                break
            here = same & (part[one] != part[two])
            one, two = one[here], two[here]
            alike = np.einsum("ij,ij->i", centered[one], centered[two]) >= _COARSE_LEAST
            low, high = np.minimum(one, two)[alike], np.maximum(one, two)[alike]
            found.append(low.astype(np.int64) * count + high)
        if len(found) > 256:
            found = [np.unique(np.concatenate(found))]
    keys = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
    return np.stack([keys // count, keys % count], axis=1)


def _standard(array: np.ndarray) -> np.ndarray:
    flat = np.nan_to_num(array.reshape(len(array), -1).astype(np.float64), posinf=0, neginf=0)
    spread = flat.std(axis=0)
    return np.asarray((flat - flat.mean(axis=0)) / np.where(spread > 0, spread, 1))


def _unit(rows: np.ndarray) -> np.ndarray:
    """Return each row less its mean, of length 1; a flat row stays 0, like nothing else."""
    flat = rows.reshape(len(rows), -1).astype(np.float32)
    flat = flat - flat.mean(axis=1, keepdims=True) if rows.ndim == 3 else flat
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(np.where(length > _FLAT, flat / np.maximum(length, _FLAT), 0))


def small_image(image: np.ndarray) -> np.ndarray:
    """Return one image (channels, height, width) as it is compared: grey, (1, h, w) with at most 32 pixels a side."""
    grey = image.mean(axis=0, dtype=np.float32)[None]
    return _area_mean(grey, min(_SIDE, *grey.shape[1:])) if max(grey.shape[1:]) > _SIDE else grey


def _area_mean(images: np.ndarray, side: int) -> np.ndarray:
    """Return images of ``side`` x ``side``, every pixel the mean of the area that it stands for."""
    for axis in (1, 2):
        images = np.moveaxis(_mean_along(np.moveaxis(images, axis, -1), side), -1, axis)
    return images


def _mean_along(rows: np.ndarray, side: int) -> np.ndarray:
    size = rows.shape[-1]
    weights = np.zeros((size, side), np.float32)
    for index in range(side):
        low, high = index * size / side, (index + 1) * size / side
        for pixel in range(int(low), min(int(np.ceil(high)), size)):
            weights[pixel, index] = min(pixel + 1, high) - max(pixel, low)
    return np.asarray(rows @ (weights / weights.sum(axis=0)))


def _blurred(images: np.ndarray) -> np.ndarray:
    """Return images after a 1-2-1 filter both ways, which takes off half of a pixel's noise and little of a shape."""
    for axis in (1, 2):
        size = images.shape[axis]
        padded = np.pad(images, [(1, 1) if index == axis else (0, 0) for index in range(3)], mode="edge")
        before, here, after = (padded.take(range(start, start + size), axis=axis) for start in range(3))
        images = (before + 2 * here + after) / 4
    return np.asarray(images, dtype=np.float32)


def _best(
    one: np.ndarray, two: np.ndarray, around: np.ndarray | list[tuple[int, int]], reach: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the greatest correlation over shifts near the given ones, and the shift (down, across) that gives it."""
    centers = np.asarray(around, dtype=np.int64).reshape(-1, 2)
    best, at = np.full(len(one), -1.0), centers.copy()
    for center in np.unique(centers, axis=0):
        here = np.flatnonzero((centers == center).all(axis=1))
        left, right = one[here], two[here]
        for down in range(-reach, reach + 1):
            for across in range(-reach, reach + 1):
                found = _correlation(left, right, int(center[0]) + down, int(center[1]) + across)
                better = found > best[here]
                best[here[better]], at[here[better]] = found[better], center + np.array([down, across])
    return best, at


def _correlation(one: np.ndarray, two: np.ndarray, down: int, across: int) -> np.ndarray:
    """Return the correlation of the parts that overlap when ``two`` is shifted; -1 where too little does."""
    height, width = one.shape[1:]
    if abs(down) > height // 4 or abs(across) > width // 4:
        return np.full(len(one), -1.0)
    here = one[:, max(down, 0) : height + min(down, 0), max(across, 0) : width + min(across, 0)]
    there = two[:, max(-down, 0) : height + min(-down, 0), max(-across, 0) : width + min(-across, 0)]
    left, right = here.reshape(len(one), -1), there.reshape(len(one), -1)
    size = left.shape[1]
    means = left.mean(axis=1), right.mean(axis=1)
    product = np.einsum("ij,ij->i", left, right) / size - means[0] * means[1]
    spread = [
        np.einsum("ij,ij->i", each, each) / size - mean**2 for each, mean in zip((left, right), means, strict=True)
    ]
    flat = np.minimum(*spread) < _FLAT**2
    return np.asarray(np.where(flat, -1.0, product / np.sqrt(np.maximum(spread[0] * spread[1], 1e-30))))
