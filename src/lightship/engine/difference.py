"""How far two answers of a graph are apart, whatever its dtype."""

from __future__ import annotations

import numpy as np

__all__ = ["largest_difference"]


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
