"""Whether the variant's probabilities are those of the reference, not only its labels.

Logits that are scaled keep every label, so accuracy and non-inferiority see nothing; yet people get probabilities that
are all alike (scaled down) or all 0 and 1 (scaled up). The measure is the total-variation distance between both answers
to a row: the most by which the probability of any set of classes differs, in [0, 1].

It is a mean over rows, and so hardly sees that a reference which is nearly always certain was scaled up, or that one of
many classes was scaled. Therefore also the scale: the slope of the variant's logits over the reference's, of all and of
each class. Rounding to 3 bits leaves a class between 0.8 and 1.35; less than 0.55 or more than 1/0.55 fails.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from lightship.bundle.statement import Evidence
from lightship.errors import InvalidInput, InvalidTensor
from lightship.types import Verdict
from lightship.validate.logits import nonfinite_rows, probabilities_of, require_same_shape
from lightship.validate.statistics import mean_radius, mean_rows_needed

__all__ = ["check_probabilities", "distances", "scales"]

METHOD = (
    "mean total-variation distance; the smaller of Hoeffding's and the empirical Bernstein bound, each at alpha/2; "
    "scale: slope of the logits, each row's mean taken off"
)

_ALL_SCALE = 1.5  # of all logits together, or its inverse
_CLASS_SCALE = 1 / 0.55  # of one class
_LEAST_ENERGY = 0.05  # a class whose logits hardly move, beside the others, has no scale worth the name
_LEAST_ROWS = 30  # of fewer, another scale is not shown: noise may be its reason
_LEAST_LOG = math.log(1e-4)  # of a softmax's logarithm: what int8 rounds to 0 says nothing about the scale


def check_probabilities(
    reference_logits: np.ndarray,
    variant_logits: np.ndarray,
    *,
    limit: float = 0.2,
    alpha: float,
    subjects: Mapping[str, str],
) -> Evidence:
    """Bound the mean distance between the probabilities of reference and variant, and compare their scale.

    ``PASSED`` when its upper bound is at most ``limit``; ``FAILED`` when its lower bound is above, or the scale of the
    logits, or of those of one class, is another; else ``UNDECIDED`` with ``rows_needed``, or ``None`` there if the mean
    itself reaches the limit.

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
    scale, by_class = scales(reference_logits, variant_logits)
    off = _off(scale, by_class)
    if mean - radius > limit or (off and rows >= _LEAST_ROWS):
        verdict = Verdict.FAILED
    elif off:
        pass
    elif mean + radius <= limit:
        verdict = Verdict.PASSED
    else:
        needed = mean_rows_needed(limit - mean, alpha=alpha)
    return Evidence(
        check="probabilities",
        verdict=verdict,
        subjects=subjects,
        summary=off if off and mean - radius <= limit else _summary(verdict, mean, radius, limit, needed),
        measured={
            "mean_distance": mean,
            "low": max(mean - radius, 0.0),
            "high": min(mean + radius, 1.0),
            "largest_distance": float(found.max()),
            "largest_row": int(found.argmax()),
            "scale": scale,
            "class_scale_low": min(by_class.values(), default=None),
            "class_scale_high": max(by_class.values(), default=None),
            "rows": rows,
            "rows_needed": needed,
        },
        method={
            "limit": limit,
            "alpha": alpha,
            "scale_limit": _ALL_SCALE,
            "class_scale_limit": _CLASS_SCALE,
            "test": METHOD,
        },
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


def scales(reference_logits: np.ndarray, variant_logits: np.ndarray) -> tuple[float | None, dict[int, float]]:
    """Return the slope ``sum r v / sum r^2`` of finite logits, each row's mean taken off: of all, and of each class.

    A slope and not a ratio of sizes: noise in the variant does not move it. ``None``, and no class, where the reference
    has nothing to compare. Of logits that are logarithms of probabilities only what is above 1e-4 counts.
    """
    one, two = (np.clip(each.astype(np.float64), -1e150, 1e150) for each in (reference_logits, variant_logits))
    if not one.size:
        return None, {}
    peak = one.max(axis=1, keepdims=True)
    if float(np.abs(peak[:, 0] + np.log(np.exp(one - peak).sum(axis=1))).max()) < 1e-2:
        one, two = np.maximum(one, _LEAST_LOG), np.maximum(two, _LEAST_LOG)
    one, two = one - one.mean(axis=1, keepdims=True), two - two.mean(axis=1, keepdims=True)
    size = float(np.abs(one).max())
    if size <= 1e-12:
        return None, {}
    one = one / size
    energy, product = (one**2).sum(axis=0), (one * two).sum(axis=0) / size
    moving = energy >= _LEAST_ENERGY * energy.mean()
    return float(product.sum() / energy.sum()), {int(k): float(product[k] / energy[k]) for k in np.flatnonzero(moving)}


def _off(scale: float | None, by_class: Mapping[int, float]) -> str:
    """Say which scale is another one, or nothing."""
    if scale is not None and not 1 / _ALL_SCALE <= scale <= _ALL_SCALE:
        allowed = f"between {1 / _ALL_SCALE:.2g} and {_ALL_SCALE:g} is allowed"
        return f"The logits are {scale:.3g} times the reference's; {allowed}"
    for number, found in by_class.items():
        if not 1 / _CLASS_SCALE <= found <= _CLASS_SCALE:
            return (
                f"The logits of class number {number} are {found:.3g} times the reference's; "
                f"between {1 / _CLASS_SCALE:.2g} and {_CLASS_SCALE:.2g} is allowed"
            )
    return ""


def _summary(verdict: Verdict, mean: float, radius: float, limit: float, needed: int | None) -> str:
    bound = f"at most {100 * min(mean + radius, 1):.1f}"
    if verdict is Verdict.FAILED:
        bound = f"at least {100 * (mean - radius):.1f}"
    line = f"Probabilities differ by {100 * mean:.1f} points on average ({bound} with confidence)"
    line = f"{line}; {100 * limit:g} points are allowed"
    return f"{line}. {needed} gate rows like these would show that it is less" if needed else line
