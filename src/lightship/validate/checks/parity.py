"""Whether the exported graph says what the trained model said.

The tolerance is not a guess: how far the trained model's own float32 is from its float64 on the same rows is what
rounding may do, and the graph may do a few times that (D4). Where both agree, a floor of a few units in the last place
stands in for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lightship.bundle.statement import Evidence
from lightship.types import Verdict
from lightship.validate.logits import labels_of, nonfinite_rows, require_same_shape

__all__ = ["check_parity", "parity_tolerance"]

FACTOR = 8.0
PERCENTILE = 99.9
FLOOR_ULPS = 4.0
"""The floor, in float32 spacings at the largest logit: a sum done in another order moves by about that much."""


def parity_tolerance(float32_logits: np.ndarray, float64_logits: np.ndarray) -> float:
    """Return how far a faithful graph may be: ``8 x`` the 99.9th percentile of ``|float32 - float64|``, or the floor.

    The floor is 4 float32 spacings at the largest absolute logit, so that a model whose float32 is exact (the
    percentile is 0) does not refuse every other order of summation.
    """
    require_same_shape(float32=float32_logits, float64=float64_logits)
    rounding = np.percentile(np.abs(float32_logits.astype(np.float64) - float64_logits), PERCENTILE)
    floor = FLOOR_ULPS * float(np.spacing(np.float32(np.abs(float64_logits).max())))
    return float(max(FACTOR * rounding, floor))


def check_parity(
    engine_logits: np.ndarray,
    float32_logits: np.ndarray,
    float64_logits: np.ndarray,
    *,
    rows: Sequence[str],
    subjects: Mapping[str, str],
) -> Evidence:
    """Compare the graph's logits with those of the trained model, row by row.

    ``FAILED`` when a logit is off by more than the tolerance, a label differs though the two logits in question are
    further apart than the tolerance, or a value is not finite; the first such row is named.

    Args:
        engine_logits: from the engine, shape (n, classes).
        float32_logits: from the trained model, same shape.
        float64_logits: from the same weights in float64, same shape.
        rows: ids of the rows.
        subjects: what was judged, with its SHA-256.
    """
    require_same_shape(engine=engine_logits, float32=float32_logits, float64=float64_logits)
    tolerance: float | None = None
    worst: float | None = None
    bad, reason = _nonfinite(engine_logits, float32_logits, float64_logits)
    if bad is None:
        tolerance = parity_tolerance(float32_logits, float64_logits)
        off = np.abs(engine_logits.astype(np.float64) - float32_logits).max(axis=1)
        worst = float(off.max())
        bad, reason = _first_bad(engine_logits, float32_logits, off, tolerance)
    verdict = Verdict.PASSED if bad is None else Verdict.FAILED
    return Evidence(
        check="parity",
        verdict=verdict,
        subjects=subjects,
        summary=(
            f"The graph's logits are within {worst:.2g} of the trained model's on {len(rows)} rows "
            f"(allowed {tolerance:.2g})"
            if bad is None
            else f"Row {rows[bad]} differs from the trained model: {reason}"
        ),
        measured={
            "rows": len(rows),
            "largest_difference": worst,
            "tolerance": tolerance,
            "first_bad_row": None if bad is None else rows[bad],
            "reason": reason or None,
        },
        method={
            "tolerance": f"{FACTOR:g} x the {PERCENTILE:g}th percentile of |float32 - float64|, "
            f"at least {FLOOR_ULPS:g} float32 spacings at the largest logit",
            "labels": "equal, unless the two logits are within the tolerance",
        },
    )


def _nonfinite(engine: np.ndarray, float32: np.ndarray, float64: np.ndarray) -> tuple[int | None, str]:
    for name, logits in (("the graph", engine), ("the trained model", float32), ("the model in float64", float64)):
        rows = nonfinite_rows(logits)
        if rows.size:
            return int(rows[0]), f"{name} gave NaN or infinity"
    return None, ""


def _first_bad(engine: np.ndarray, float32: np.ndarray, off: np.ndarray, tolerance: float) -> tuple[int | None, str]:
    ours, theirs = labels_of(engine), labels_of(float32)
    each = np.arange(len(off))
    apart = float32[each, theirs].astype(np.float64) - float32[each, ours]
    flipped = (ours != theirs) & (apart > tolerance)
    bad = np.flatnonzero((off > tolerance) | flipped)
    if not bad.size:
        return None, ""
    first = int(bad[0])
    if off[first] > tolerance:
        return first, f"a logit is off by {off[first]:.3g}, allowed are {tolerance:.3g}"
    return first, f"another label, and the two logits are {apart[first]:.3g} apart, more than {tolerance:.3g}"
