"""Whether the variant's probabilities are those of the reference, not only its labels.

Logits that are scaled keep every label, so accuracy and non-inferiority see nothing; yet people get probabilities that
are all alike (scaled down) or all 0 and 1 (scaled up). The measure is the total-variation distance between both answers
to a row: the most by which the probability of any set of classes differs, in [0, 1]. It is a mean over rows: scaling up
a reference that is nearly always certain, or down one that never is, moves it by less than the limit, and passes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lightship.bundle.statement import Evidence
from lightship.errors import InvalidInput, InvalidTensor
from lightship.types import Verdict
from lightship.validate.logits import nonfinite_rows, probabilities_of, require_same_shape
from lightship.validate.statistics import mean_radius, mean_rows_needed

__all__ = ["check_probabilities", "distances"]

METHOD = "mean total-variation distance; the smaller of Hoeffding's and the empirical Bernstein bound, each at alpha/2"


def check_probabilities(
    reference_logits: np.ndarray,
    variant_logits: np.ndarray,
    *,
    limit: float = 0.2,
    alpha: float,
    subjects: Mapping[str, str],
) -> Evidence:
    """Bound the mean distance between the probabilities of reference and variant.

    ``PASSED`` when its upper bound is at most ``limit``; ``FAILED`` when its lower bound is above; else ``UNDECIDED``
    with ``rows_needed``, or ``None`` there if the mean itself reaches the limit.

    Args:
        reference_logits: finite, shape (n, classes), n >= 1.
        variant_logits: of the same rows, same shape.
        limit: largest mean distance allowed, in (0, 1). Rounding to int8 stays far below 0.1 and wrecked probabilities
            are at 0.5 and more; 0.2 lies between and can be shown with 47 rows at an alpha of 0.05, 60 at a third.
        alpha: probability of passing a variant whose true mean is above the limit, and of failing one below it.
        subjects: reference and variant, with their SHA-256.

    Raises:
        InvalidInput: no rows, or a limit or alpha out of its range.
        InvalidTensor: unequal shapes, NaN or infinity.
    """
    if not 0 < limit < 1:
        raise InvalidInput(f"`limit` of the probabilities must be between 0 and 1, both excluded. Got {limit}.")
    if not len(reference_logits):
        raise InvalidInput("Probabilities can only be compared on gate rows, at least one. Got 0.")
    found = distances(reference_logits, variant_logits)
    mean, radius, rows = float(found.mean()), mean_radius(found, alpha=alpha), len(found)
    verdict, needed = Verdict.UNDECIDED, None
    if mean + radius <= limit:
        verdict = Verdict.PASSED
    elif mean - radius > limit:
        verdict = Verdict.FAILED
    else:
        needed = mean_rows_needed(limit - mean, alpha=alpha)
    return Evidence(
        check="probabilities",
        verdict=verdict,
        subjects=subjects,
        summary=_summary(verdict, mean, radius, limit, needed),
        measured={
            "mean_distance": mean,
            "low": max(mean - radius, 0.0),
            "high": min(mean + radius, 1.0),
            "largest_distance": float(found.max()),
            "largest_row": int(found.argmax()),
            "rows": rows,
            "rows_needed": needed,
        },
        method={"limit": limit, "alpha": alpha, "test": METHOD},
    )


def distances(reference_logits: np.ndarray, variant_logits: np.ndarray) -> np.ndarray:
    """Return the total-variation distance of the probabilities of each row: float64 in [0, 1], shape (n,).

    ``sum_k |p_k - q_k| / 2`` of the softmax of both (Levin, Peres, Wilmer, Markov Chains and Mixing Times, 2009,
    proposition 4.2).

    Raises:
        InvalidTensor: unequal shapes, NaN or infinity.
    """
    require_same_shape(reference=reference_logits, variant=variant_logits)
    for name, logits in (("reference", reference_logits), ("variant", variant_logits)):
        broken = nonfinite_rows(logits)
        if broken.size:
            raise InvalidTensor(
                f"The logits of the {name} must be finite: others have no probabilities. {broken.size} of "
                f"{len(logits)} rows are not, first row {broken[0]}."
            )
    apart = np.abs(probabilities_of(reference_logits) - probabilities_of(variant_logits)).sum(axis=1) / 2
    return np.asarray(np.minimum(apart, 1.0))  # both sums are 1 up to rounding


def _summary(verdict: Verdict, mean: float, radius: float, limit: float, needed: int | None) -> str:
    bound = f"at most {100 * min(mean + radius, 1):.1f}"
    if verdict is Verdict.FAILED:
        bound = f"at least {100 * (mean - radius):.1f}"
    line = f"Probabilities differ by {100 * mean:.1f} points on average ({bound} with confidence)"
    line = f"{line}; {100 * limit:g} points are allowed"
    return f"{line}. {needed} gate rows like these would show that it is less" if needed else line
