"""Whether a variant errs more than the reference on the same rows, where an answer is not just right or wrong.

**Numbers** (mean absolute and root mean squared error, margin relative to the reference's). Of each row
``z = loss of the variant - k loss of the reference``, k being 1 + margin (its square for squared errors); non-inferior
means a mean of z below 0. Two p-values, the larger one counts: Student's t, and Hall's transformation of it, which
takes the skewness of z into account (Hall, JRSS B 54:221-228, 1992). The studentized bootstrap is no better
(benchmarks/gate/value_rates.py). Neither sees a rare, grossly wrong row that did not occur; so the share of rows whose
error grew by more than the reference's mean error is bounded as well, exactly; and where rows were seen whose answer
moved by more than that, the mean must bear as many of them as there may be, each as if it had moved away from the
truth: that it came nearer was luck.

**Tags** (share of wrong tags of a row, in [0, 1]; absolute margin): the difference is bounded, so ``mean_above`` holds
for every distribution.

Both are streamed: sums and histograms, no rows are kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lightship.errors import InvalidInput, InvalidTensor
from lightship.types import Interval, Json, Verdict
from lightship.validate.bounded_mean import clopper_pearson, mean_above, share_rows_needed
from lightship.validate.meters import tags_of
from lightship.validate.skewed_mean import POWERS, central, p_values, sums_of

__all__ = [
    "GROWN",
    "MAX_GROWN",
    "Growth",
    "NumberNoninferiority",
    "PairedNumbers",
    "PairedTags",
    "TagNoninferiority",
    "growth_of",
]

GROWN = 1.0
"""A row is grown when its error exceeds the reference's by this many mean errors of the reference."""

MAX_GROWN = 0.02
"""Largest share of grown rows."""

_NORMAL = NormalDist()
_STEPS = 100  # of the histogram, a decade
_EDGES = 10.0 ** (np.arange(-15 * _STEPS, 15 * _STEPS + 1) / _STEPS)


@dataclass(frozen=True, slots=True)
class _Ratio:
    """One error figure of both sides.

    Attributes:
        reference: of the reference.
        variant: of the variant.
        p_noninferior: against a ratio of 1 + margin or more.
        p_inferior: against a ratio of 1 + margin or less.
        bound: upper limit of the ratio, one-sided, confidence 1 - alpha; infinite where none was found.
        rows_needed: with which a variant that errs as much as the reference would be shown with a power of 0.8.
    """

    reference: float
    variant: float
    p_noninferior: float
    p_inferior: float
    bound: float
    rows_needed: int

    @property
    def ratio(self) -> float:
        if self.reference > 0:
            return self.variant / self.reference
        return 1.0 if self.variant == 0 else 1e9

    def to_json(self) -> dict[str, Json]:
        return {
            "reference": self.reference,
            "variant": self.variant,
            "ratio": self.ratio,
            "ratio_high": self.bound if math.isfinite(self.bound) else None,
            "p_noninferior": self.p_noninferior,
            "p_inferior": self.p_inferior,
        }


@dataclass(frozen=True, slots=True)
class NumberNoninferiority:
    """The answer for numbers: ``PASSED`` when both ratios are shown to be below 1 + margin and few rows have grown."""

    verdict: Verdict
    rows: int
    nonfinite_rows: int
    mae: _Ratio
    rmse: _Ratio
    grown: Interval
    margin: float
    alpha: float
    rows_needed: int | None


class PairedNumbers:
    """Sums of the errors of both sides over the same rows."""

    def __init__(self) -> None:
        self.rows = 0
        self.nonfinite_rows = 0
        self._sums = np.zeros((2, len(POWERS)))  # absolute and squared errors
        self._grown = np.zeros(len(_EDGES) + 1, dtype=np.int64)
        self._moved, self._moved_growth = self._grown.copy(), np.zeros(len(_EDGES) + 1)
        self._scale = 0.0  # of the first errors: powers of numbers near 1 lose no digits

    def add(self, truth: np.ndarray, reference: np.ndarray, variant: np.ndarray) -> None:
        """Take a batch: true numbers, and what both answer; as many values a row in all three.

        Raises:
            InvalidTensor: unequal sizes, or a reference or label that is not finite.
        """
        if not len(truth) == len(reference) == len(variant) or not truth.size == reference.size == variant.size:
            shapes = ", ".join(str(list(each.shape)) for each in (truth, reference, variant))
            raise InvalidTensor(f"Labels and both answers must have as many values. Got the shapes {shapes}.")
        if not len(truth):
            return
        true, one, two = (each.reshape(len(truth), -1).astype(np.float64) for each in (truth, reference, variant))
        if not np.isfinite(one).all() or not np.isfinite(true).all():
            raise InvalidTensor("Labels and the reference's answers must be finite numbers; nothing compares with NaN.")
        finite = np.isfinite(two).all(axis=1)
        self.rows += len(truth)
        self.nonfinite_rows += int((~finite).sum())
        first, second = np.abs(one - true), np.clip(np.abs(two - true), 0, 1e30)
        first, second, move = first[finite], second[finite], np.clip(np.abs(two - one), 0, 1e30)[finite]
        self._scale = self._scale or float(first.mean() if first.size else 0.0) or 1.0
        first, second = first / self._scale, second / self._scale
        for which, power in enumerate((1, 2)):
            a, b = (first**power).mean(axis=1), (second**power).mean(axis=1)
            d = b - a  # not b itself: where both nearly agree, its powers would lose all digits of the difference
            self._sums[which] += sums_of(a, d)
        growth = second.mean(axis=1) - first.mean(axis=1)
        self._grown += np.bincount(np.searchsorted(_EDGES, growth), minlength=len(self._grown))
        moves = np.searchsorted(_EDGES, move.mean(axis=1) / self._scale)
        self._moved += np.bincount(moves, minlength=len(self._moved))
        self._moved_growth += np.bincount(moves, weights=growth, minlength=len(self._moved))

    def test(self, *, margin: float, alpha: float) -> NumberNoninferiority:
        """Test both figures and the share of grown rows, each at ``alpha``: all must pass.

        Args:
            margin: relative; 0.02 allows errors 2 % larger.
            alpha: in (0, 0.5).

        Raises:
            InvalidInput: no rows, or a number out of its range.
        """
        if not self.rows or not margin > 0 or not 0 < alpha < 0.5:
            raise InvalidInput(
                f"The paired test needs rows, a margin above 0 and an alpha in (0, 0.5). "
                f"Got {self.rows} rows, {margin}, {alpha}."
            )
        mae, rmse = (self._ratio(which, margin=margin, alpha=alpha) for which in (0, 1))
        n = self.rows - self.nonfinite_rows
        share, tail = self._tail(n, alpha)
        verdict = Verdict.UNDECIDED
        if self.nonfinite_rows or min(mae.p_inferior, rmse.p_inferior) <= alpha or share.low > MAX_GROWN:
            verdict = Verdict.FAILED
        elif max(mae.p_noninferior, rmse.p_noninferior) <= alpha and share.high <= MAX_GROWN and tail < margin:
            verdict = Verdict.PASSED
        needed = None
        if verdict is Verdict.UNDECIDED:
            few = share_rows_needed(share.estimate, limit=MAX_GROWN, alpha=alpha)
            needed = None if few is None else max(few, mae.rows_needed, rmse.rows_needed)
        return NumberNoninferiority(
            verdict, self.rows, self.nonfinite_rows, mae, rmse, share, margin, alpha, rows_needed=needed
        )

    def _tail(self, n: int, alpha: float) -> tuple[Interval, float]:
        """Return the share of grown rows, and how much the mean error has grown if as many moved far as may be."""
        mean, growth = (self._sums[0][POWERS.index(each)] / max(n, 1) for each in ((1, 0), (0, 1)))
        highs = np.append(_EDGES, _EDGES[-1])
        far = highs > GROWN * mean
        grown, moved = (int(counts[far].sum()) + self.nonfinite_rows for counts in (self._grown, self._moved))
        share = clopper_pearson(grown, self.rows, 1 - 2 * alpha)
        if not moved or not n or mean <= 0:
            return share, -math.inf
        most = clopper_pearson(moved, self.rows, 1 - 2 * alpha).high
        lost = float((self._moved * highs)[far].sum()) / max(int(self._moved[far].sum()), 1)
        return share, float((growth - self._moved_growth[far].sum() / n + most * lost) / mean)

    def _ratio(self, which: int, *, margin: float, alpha: float) -> _Ratio:
        n = self.rows - self.nonfinite_rows
        power, sums = which + 1, dict(zip(POWERS, self._sums[which].tolist(), strict=True))
        means = (sums[1, 0] / max(n, 1), max(sums[1, 0] + sums[0, 1], 0.0) / max(n, 1))
        one, two = (self._scale * each ** (1 / power) for each in means)
        factor = (1 + margin) ** power
        better, worse = p_values(sums, n, factor)
        bound = math.inf
        if means[0] > 0:  # the least factor that would pass
            high = 1.0
            while high < 1e6 and p_values(sums, n, high)[0] > alpha:
                high *= 2
            if high < 1e6:
                low = 0.0 if high == 1.0 else high / 2
                for _ in range(36):
                    middle = (low + high) / 2
                    low, high = (low, middle) if p_values(sums, n, middle)[0] <= alpha else (middle, high)
                bound = high ** (1 / power)
        z = -_NORMAL.inv_cdf(alpha) + _NORMAL.inv_cdf(0.8)
        _, deviation, _ = central(sums, n, factor)
        gap = (factor - 1) * means[0]
        needed = math.ceil((z * deviation / gap) ** 2) if gap > 0 else 10**9
        return _Ratio(one, two, better, worse, bound, min(needed, 10**9))


@dataclass(frozen=True, slots=True)
class TagNoninferiority:
    """The answer for tags.

    Attributes:
        difference: of the mean share of wrong tags, variant minus reference; ``high`` holds with 1 - alpha.
    """

    verdict: Verdict
    rows: int
    nonfinite_rows: int
    reference: float
    variant: float
    difference: Interval
    margin: float
    alpha: float
    rows_needed: int | None


class PairedTags:
    """How many tags of each row both sides have wrong."""

    def __init__(self) -> None:
        self.rows = 0
        self.nonfinite_rows = 0
        self._shares: bool | None = None
        self._counts = np.zeros(0, dtype=np.int64)  # of the difference, from -tags to tags
        self._wrong = [0, 0]

    def add(self, truth: np.ndarray, reference: np.ndarray, variant: np.ndarray) -> None:
        """Take a batch: labels 0 and 1 and both scores, all of shape (rows, tags).

        Raises:
            InvalidTensor: unequal shapes.
        """
        if not truth.shape == reference.shape == variant.shape or truth.ndim != 2 or not truth.shape[1]:
            shapes = ", ".join(str(list(each.shape)) for each in (truth, reference, variant))
            raise InvalidTensor(f"Labels and both scores must have one shape [rows, tags]. Got {shapes}.")
        if not len(truth):
            return
        tags = truth.shape[1]
        if not self._counts.size:
            self._counts = np.zeros(2 * tags + 1, dtype=np.int64)
            self._shares = bool(np.nanmin(reference) >= 0 and np.nanmax(reference) <= 1)
        wrong = [(tags_of(each, shares=bool(self._shares)) != (truth > 0)).sum(axis=1) for each in (reference, variant)]
        finite = np.isfinite(variant).all(axis=1)
        wrong[1] = np.where(finite, wrong[1], tags)
        self.rows += len(truth)
        self.nonfinite_rows += int((~finite).sum())
        self._counts += np.bincount(wrong[1] - wrong[0] + tags, minlength=2 * tags + 1)
        self._wrong = [old + int(new.sum()) for old, new in zip(self._wrong, wrong, strict=True)]

    def test(self, *, margin: float, alpha: float) -> TagNoninferiority:
        """Test whether the mean share of wrong tags grew by less than ``margin``.

        Raises:
            InvalidInput: no rows, or a number out of its range.
        """
        if not self.rows or not 0 < margin < 1 or not 0 < alpha < 0.5:
            raise InvalidInput(
                f"The paired test needs rows, a margin in (0, 1) and an alpha in (0, 0.5). "
                f"Got {self.rows} rows, {margin}, {alpha}."
            )
        tags = len(self._counts) // 2
        values = np.arange(2 * tags + 1) / tags  # the difference, plus one
        high = mean_above(values, self._counts, top=2.0, alpha=alpha) - 1
        low = 1 - mean_above(2 - values, self._counts, top=2.0, alpha=alpha)
        one, two = (each / (self.rows * tags) for each in self._wrong)
        estimate, verdict, needed = two - one, Verdict.UNDECIDED, None
        if self.nonfinite_rows or low > margin:
            verdict = Verdict.FAILED
        elif high < margin:
            verdict = Verdict.PASSED
        elif estimate < margin:
            needed = math.ceil(self.rows * min(((high - estimate) / (margin - estimate)) ** 2, 1e6))
        return TagNoninferiority(
            verdict,
            self.rows,
            self.nonfinite_rows,
            one,
            two,
            Interval(estimate, -1.0, max(high, estimate), confidence=1 - alpha, n=self.rows),
            margin,
            alpha,
            rows_needed=needed,
        )


@dataclass(frozen=True, slots=True)
class Growth:
    """By how much losses of the same rows grew.

    Attributes:
        reference, variant: the mean losses; infinite where a row has no finite answer.
        shown: it is shown that they grew by more than the margin.
        high: upper limit of the growth, one-sided: of numbers of the ratio less 1, of shares of the difference.
    """

    rows: int
    reference: float
    variant: float
    shown: bool
    high: float


def growth_of(reference: np.ndarray, variant: np.ndarray, *, bounded: bool, margin: float, alpha: float) -> Growth:
    """Test whether losses grew by more than ``margin``, by the tests of ``PairedNumbers`` and ``PairedTags``.

    Args:
        reference: losses, float (rows,), finite.
        variant: of the same rows.
        bounded: losses are shares in [0, 1], and the margin is absolute; else it is relative.
        margin: see there.
        alpha: probability of saying so of losses that did not, and of a ``high`` that is too low.
    """
    finite = np.isfinite(variant)
    means = float(reference.mean()), float(variant.mean()) if finite.all() else math.inf
    if bounded:
        values, counts = np.unique(variant - reference + 1, return_counts=True)
        high = mean_above(values, counts, top=2.0, alpha=alpha) - 1
        low = 1 - mean_above(2 - values, counts, top=2.0, alpha=alpha)
        return Growth(len(reference), *means, shown=low > margin, high=high)
    paired = PairedNumbers()
    paired.add(np.zeros(len(reference)), reference, variant)
    found = paired.test(margin=margin, alpha=alpha)
    shown = bool(found.nonfinite_rows) or found.mae.p_inferior <= alpha
    return Growth(len(reference), *means, shown=shown, high=math.inf if found.nonfinite_rows else found.mae.bound - 1)
