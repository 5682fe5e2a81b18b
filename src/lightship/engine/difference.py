"""How far two answers of a graph are apart, whatever its dtype."""

from __future__ import annotations

import numpy as np

from lightship.errors import BundleRefused
from lightship.tasks.golden_texts import packed_texts

__all__ = ["as_recorded", "largest_difference", "require_golden"]


def require_golden(name: str, output: str, found: np.ndarray, expected: np.ndarray, *, tolerance: float) -> None:
    """Compare the first row that a graph gave for a golden input with the recorded one; texts by their packed form.

    Args:
        name: of the golden input.
        output: its name.
        found: with rows; the first counts.
        expected: one row, as ``golden`` of a bundle holds it.
        tolerance: largest absolute difference that passes.

    Raises:
        BundleRefused: they are further apart, or have other shapes.
    """
    row = as_recorded(found[:1], expected)
    if row.shape != (1, *expected.shape):
        raise BundleRefused(
            f"The golden input {name} must give {output!r} of shape {list(expected.shape)}. Got {list(row.shape[1:])}."
        )
    worst = largest_difference(row[0], expected)
    if not worst <= tolerance:
        raise BundleRefused(
            f"The golden input {name} must give the expected {output!r} within {tolerance:g}. Here it differs by "
            f"{worst:g}: preprocessing, graph or this machine is not what the release was tested with."
        )


def as_recorded(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return rows in the form in which golden answers are kept: numbers as they are, texts packed.

    Args:
        found: one row, with its axis.
        expected: the recorded row, which may be longer: it was padded to the longest of all.
    """
    if found.dtype != object:
        return found
    packed = packed_texts(found)
    missing = len(expected) - packed.shape[1] if expected.ndim == 1 else 0
    return np.pad(packed, ((0, 0), (0, missing))) if missing > 0 else packed


def largest_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest absolute difference of two arrays.

    Equal values are 0 apart, also two infinities or two NaN; a NaN on one side only, other shapes, and texts that
    differ are infinitely far apart. float64, so integers beyond 2**53 are compared exactly first.
    """
    if found.shape != expected.shape:
        return float("inf")
    if found.dtype.kind not in "fiub" or expected.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(found, expected) else float("inf")
    apart = found != expected
    if found.dtype.kind == "f" and expected.dtype.kind == "f":
        apart &= ~(np.isnan(found) & np.isnan(expected))
    if not apart.any():
        return 0.0
    off = np.abs(found[apart].astype(np.float64) - expected[apart].astype(np.float64))
    return float("inf") if np.isnan(off).any() else max(float(off.max()), np.finfo(np.float64).tiny)
