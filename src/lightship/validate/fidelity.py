"""How alike a variant's answers are to the reference's, row by row, without labels. Streamed: memory does not grow.

A variant can be wrong in many ways that one figure does not see, so there are several:

- ``cosine`` of a row: ``2 <r, v> / (|r|^2 + |v|^2)``. The cosine where both are equally long, less where they are not:
  the plain cosine calls a scaled answer alike. Of an output with one value a row it is ``1 - (r - v)^2 / 2V``, V the
  variance of the reference: on average Lin's concordance correlation, with the reference's variance for both.
- ``broken`` rows: a cosine below 7/8, or an error as large as the usual distance between answers to different rows,
  or NaN, or other integers or texts. A mean forgives a few of them; nobody who sends one does. So their share has a
  bound and a budget of its own.
- ``explained``: ``1 - error / V`` over all rows. A constant answer has at most 0 here, rows in a wrong order -1, also
  where all answers point nearly the same way and every cosine is near 1.

The bounds of broken rows, cosine and agreement hold for every distribution of the rows (``bounded_mean``); those of
``snr_db`` and ``explained`` are Student's t and Hall's transformation (``skewed_mean``; docs/statistics.md says how
often each errs). What nobody can bound is a kind of broken row of which none was seen: only its share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightship.errors import InvalidInput, InvalidTensor
from lightship.types import Interval, Json
from lightship.validate.bounded_mean import clopper_pearson, mean_above
from lightship.validate.skewed_mean import POWERS, p_values, sums_of

__all__ = ["BROKEN_LOSS", "Fidelity", "FidelityBudget", "FidelityMeter"]

BROKEN_LOSS = 1 / 8
"""A row with ``1 - cosine`` above this is broken: 29 degrees between the answers, or twice the length."""

_BROKEN_SPREAD = 0.75  # of V: a constant answer has 1 on average, another row's answer 2
_LEAST_SPREAD = 1e-12  # V below this share of the answers' energy: all rows have the same answer, up to rounding

# Losses of rows that are not broken, by steps of 4.7 %; bounds take the step's unfavorable end.
_LOSS_STEPS = 50  # a decade
_LOSS_DECADES = 10
_LOSS_EDGES = BROKEN_LOSS * 10.0 ** (np.arange(-_LOSS_STEPS * _LOSS_DECADES, 1) / _LOSS_STEPS)
_ERROR_STEPS = 20  # a decade of squared error, in units of the answers' size: half a decibel
_ERROR_EDGES = 10.0 ** (np.arange(-20 * _ERROR_STEPS, 30 * _ERROR_STEPS + 1) / _ERROR_STEPS)
_FINE = 5  # outputs of one value a row know their V only at the end: finer steps, one dimension
_FINE_EDGES = 10.0 ** (np.arange(-20 * _ERROR_STEPS * _FINE, 30 * _ERROR_STEPS * _FINE + 1) / (_ERROR_STEPS * _FINE))
_LARGEST, _LARGEST_ERROR = 1e45, 1e95  # greater numbers are held here: sums of their cubes must stay finite
_MAX_DB = 300.0


@dataclass(frozen=True, slots=True)
class FidelityBudget:
    """What a variant must keep; ``None`` asks nothing.

    Attributes:
        min_cosine: of the mean over all rows.
        min_snr_db: of the signal-to-noise ratio over all rows, in decibels.
        min_agreement: of the share of rows with the same largest value.
        max_broken: largest share of broken rows. Decides how many rows are needed at least: 149 at an alpha of 0.05
            and 203 at a third of it for 2 %.
        min_explained: of the reference's variation between rows.
    """

    min_cosine: float | None = 0.99
    min_snr_db: float | None = None
    min_agreement: float | None = None
    max_broken: float | None = 0.02
    min_explained: float | None = 0.25

    def __post_init__(self) -> None:
        """Refuse budgets that cannot be met or ask nothing.

        Raises:
            InvalidInput: names the field.
        """
        for name in ("min_cosine", "min_agreement", "max_broken", "min_explained"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise InvalidInput(f"`{name}` of the fidelity budget must be between 0 and 1, or none. Got {value}.")
        if self.min_snr_db is not None and not abs(self.min_snr_db) < _MAX_DB:
            raise InvalidInput(f"`min_snr_db` must be a number of decibels below {_MAX_DB:g}. Got {self.min_snr_db}.")

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form that evidence carries."""
        return dict(self.limits())

    def limits(self) -> dict[str, float | None]:
        """Return every limit by its name."""
        return {
            "min_cosine": self.min_cosine,
            "min_snr_db": self.min_snr_db,
            "min_agreement": self.min_agreement,
            "max_broken": self.max_broken,
            "min_explained": self.min_explained,
        }


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How alike the answers are; of several outputs, each figure is that of the worst.

    Attributes:
        rows: how many were compared.
        nonfinite_rows: rows with NaN or infinity where the reference has none.
        broken: share of rows that are broken; exact (Clopper-Pearson).
        cosine: mean over rows, NaN counting 0; ``None`` without a float output.
        snr_db: ``10 log10(sum r^2 / sum (r - v)^2)`` over finite rows, cut at 300; ``None`` without a float output.
        agreement: share of rows with the same largest value, of outputs with two and more in a row, and with the same
            integers or texts; ``None`` if no output is such a one.
        explained: ``None`` where the reference gives all rows the same answer.
        largest: absolute difference of two values.
        worst_row: position of the row with the least cosine.
        confidence: of all intervals; each of their ends errs with at most half the rest.
    """

    rows: int
    nonfinite_rows: int
    broken: Interval
    cosine: Interval | None
    snr_db: Interval | None
    agreement: Interval | None
    explained: Interval | None
    largest: float
    worst_row: int
    confidence: float

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form that evidence and search results carry."""

        def plain(interval: Interval | None) -> Json:
            return None if interval is None else interval.to_json()

        return {
            "rows": self.rows,
            "nonfinite_rows": self.nonfinite_rows,
            "broken": plain(self.broken),
            "cosine": plain(self.cosine),
            "snr_db": plain(self.snr_db),
            "agreement": plain(self.agreement),
            "explained": plain(self.explained),
            "largest": self.largest,
            "worst_row": self.worst_row,
        }


class FidelityMeter:
    """Compares batches of answers; ``result`` may be asked for at any time.

    Memory is a few megabytes an output, plus the size of one answer for each different length of answer.

    Args:
        outputs: those that count; ``None``: all that the reference gives.
    """

    def __init__(self, outputs: Sequence[str] | None = None) -> None:
        self._names = None if outputs is None else tuple(outputs)
        self._floats: dict[str, _Floats] = {}
        self._exact: dict[str, int] = {}
        self.rows = 0

    def add(self, reference: Mapping[str, np.ndarray], variant: Mapping[str, np.ndarray]) -> None:
        """Compare a batch of answers to the same rows, first axis rows.

        Raises:
            InvalidTensor: an output is missing, has another shape or kind, or none of its axes is for rows.
        """
        names = tuple(reference) if self._names is None else self._names
        self._names = names
        pairs = [(name, *_pair(name, reference, variant)) for name in names]
        if len({len(left) for _, left, _ in pairs}) != 1:
            sizes = ", ".join(f"{name} {list(left.shape)}" for name, left, _ in pairs)
            raise InvalidTensor(f"All outputs of a batch must have as many rows. Got {sizes or 'no output'}.")
        for name, left, right in pairs:
            if left.dtype.kind == "f":
                self._floats.setdefault(name, _Floats()).add(left, right, start=self.rows)
            else:
                same = (left == right).reshape(len(left), -1).all(axis=1)
                self._exact[name] = self._exact.get(name, 0) + int(same.sum())
        self.rows += len(pairs[0][1])

    def result(self, *, confidence: float = 0.95) -> Fidelity:
        """Return what the rows showed so far.

        Args:
            confidence: of every interval, two-sided; a gate at alpha asks for ``1 - 2 alpha``.

        Raises:
            InvalidInput: no rows yet, or a confidence outside of (0, 1).
        """
        if not self.rows:
            raise InvalidInput("Fidelity needs at least one row. Got 0.")
        if not 0 < confidence < 1:
            raise InvalidInput(f"`confidence` must be between 0 and 1, both excluded. Got {confidence}.")
        found = [each.result(confidence) for each in self._floats.values()]
        same = [clopper_pearson(k, self.rows, confidence) for k in self._exact.values()]
        worst = max(self._floats.values(), key=lambda each: each.worst_loss, default=None)
        broken = [each.broken for each in found]
        broken += [clopper_pearson(self.rows - k, self.rows, confidence) for k in self._exact.values()]
        return Fidelity(
            rows=self.rows,
            nonfinite_rows=max((each.nonfinite_rows for each in found), default=0),
            broken=max(broken, key=lambda interval: interval.high),
            cosine=_least([each.cosine for each in found]),
            snr_db=_least([each.snr_db for each in found]),
            agreement=_least([*(each.agreement for each in found), *same]),
            explained=_least([each.explained for each in found]),
            largest=max((each.largest for each in found), default=0.0),
            worst_row=0 if worst is None else worst.worst_row,
            confidence=confidence,
        )


class _Floats:
    """The sums of one float output."""

    def __init__(self) -> None:
        self.worst_loss, self.worst_row = -1.0, 0
        self._rows = self._nonfinite = self._wide_rows = self._same = self._lost = 0
        self._largest = self._loss_sum = self._lost_sum = 0.0
        self._scalar = True
        self._cells = np.zeros((len(_ERROR_EDGES) + 1, len(_LOSS_EDGES) + 1), dtype=np.int64)
        self._fine = np.zeros(len(_FINE_EDGES) + 1, dtype=np.int64)
        self._sums, self._finite, self._scale = np.zeros(len(POWERS)), 0, 0.0  # of signal and error, over the scale
        self._unit = 0.0  # of squared errors that are counted: answers may be of any size
        self._spread: dict[tuple[int, ...], _Spread] = {}

    def add(self, reference: np.ndarray, variant: np.ndarray, *, start: int) -> None:
        rows = len(reference)
        left, right = (_flat(reference), _flat(variant))
        # The same infinity on both sides, as masks have it, is no difference.
        with np.errstate(invalid="ignore"):
            both = ~np.isfinite(left) & ((left == right) | (np.isnan(left) & np.isnan(right)))
        if both.any():
            left, right = np.where(both, 0.0, left), np.where(both, 0.0, right)
        finite = np.isfinite(left).all(axis=1) & np.isfinite(right).all(axis=1)
        self._scalar = self._scalar and left.shape[1] == 1
        if left.ndim == 2 and reference.ndim == 2 and left.shape[1] >= 2:
            self._wide_rows += rows
            self._same += int((finite & (left.argmax(axis=1) == right.argmax(axis=1))).sum())
        loss = np.ones(rows)
        one, two = np.clip(left[finite], -_LARGEST, _LARGEST), np.clip(right[finite], -_LARGEST, _LARGEST)
        error, signal, other = ((one - two) ** 2).sum(axis=1), (one**2).sum(axis=1), (two**2).sum(axis=1)
        total = signal + other
        loss[finite] = np.divide(error, total, out=np.zeros_like(error), where=total > 0)
        self._rows += rows
        self._nonfinite += int(rows - finite.sum())
        self._loss_sum += float(loss.sum())
        if rows and loss.max() > self.worst_loss:
            self.worst_loss, self.worst_row = float(loss.max()), start + int(loss.argmax())
        if one.size:
            self._largest = max(self._largest, float(np.abs(one - two).max()))
        if not self._unit and total.any():  # before that nothing but zeros was answered, and no error made
            self._unit = _unit_of(float(total.mean()))
        self._count(loss[finite], error / (self._unit or 1.0))
        self._scale = self._scale or float(signal.mean() if signal.size else 0.0)
        scale = self._scale or 1.0
        self._finite += len(error)
        self._sums += sums_of(*(np.minimum(each / scale, _LARGEST_ERROR) for each in (signal, error)))
        self._spread.setdefault(reference.shape[1:], _Spread()).add(one)

    def _count(self, loss: np.ndarray, error: np.ndarray) -> None:
        lost = loss > BROKEN_LOSS
        self._lost += int(lost.sum())
        self._lost_sum += float(loss[lost].sum())
        by_error = np.searchsorted(_ERROR_EDGES, error[~lost])
        by_loss = np.searchsorted(_LOSS_EDGES, loss[~lost])
        np.add.at(self._cells, (by_error, by_loss), 1)
        self._fine += np.bincount(np.searchsorted(_FINE_EDGES, error), minlength=len(self._fine))

    def result(self, confidence: float) -> Fidelity:
        variation = self._variation()
        spread = variation / (self._unit or 1.0)
        if self._scalar and spread:
            highs = np.append(_FINE_EDGES, math.inf) / (2 * spread)
            lows = np.insert(_FINE_EDGES, 0, 0.0) / (2 * spread)
            counts, sound = self._fine, highs <= BROKEN_LOSS
            broken = int(counts[~sound].sum()) + self._nonfinite
            lost = float((counts * np.minimum(lows, 1.0))[~sound].sum()) + self._nonfinite
            middle = np.minimum((lows + highs) / 2, 1.0)
            mean = (float((counts * middle).sum()) + self._nonfinite) / self._rows
        else:
            highs, lows = np.append(_LOSS_EDGES, BROKEN_LOSS), np.insert(_LOSS_EDGES, 0, 0.0)
            far = np.append(_ERROR_EDGES, math.inf) > _BROKEN_SPREAD * spread if spread else None
            counts = self._cells.sum(axis=0) if far is None else self._cells[~far].sum(axis=0)
            swapped = np.zeros_like(counts) if far is None else self._cells[far].sum(axis=0)
            broken = self._lost + self._nonfinite + int(swapped.sum())
            lost = self._lost_sum + self._nonfinite + float((swapped * highs).sum())
            sound = np.ones(len(counts), dtype=bool)
            mean = self._loss_sum / self._rows
        share = clopper_pearson(broken, self._rows, confidence)
        cosine = _mean_cosine(
            mean, counts[sound], lows[sound], highs[sound], broken=broken, lost=lost, confidence=confidence
        )
        return Fidelity(
            rows=self._rows,
            nonfinite_rows=self._nonfinite,
            broken=share,
            cosine=cosine,
            snr_db=self._snr(confidence),
            agreement=clopper_pearson(self._same, self._wide_rows, confidence) if self._wide_rows else None,
            explained=self._explained(variation, confidence),
            largest=self._largest,
            worst_row=self.worst_row,
            confidence=confidence,
        )

    def _variation(self) -> float:
        """Return V, the mean squared distance of the reference's answers from their mean; 0 if they are all alike."""
        degrees = sum(each.rows - 1 for each in self._spread.values() if each.rows)
        if degrees < 1 or not self._finite:
            return 0.0
        spread = sum(each.squares for each in self._spread.values()) / degrees
        energy = self._mean(1, 0) * (self._scale or 1.0)
        return spread if spread > _LEAST_SPREAD * energy else 0.0

    def _mean(self, signal: int, error: int) -> float:
        return float(self._sums[POWERS.index((signal, error))]) / max(self._finite, 1)

    def _snr(self, confidence: float) -> Interval | None:
        signal, error = self._mean(1, 0), self._mean(0, 1)
        if signal <= 0 or error <= 0:
            value = _MAX_DB if self._finite and error <= 0 else -_MAX_DB
            return Interval(value, value, value, confidence=confidence, n=self._finite)
        low, high = _ratio_limits(dict(zip(POWERS, self._sums.tolist(), strict=True)), self._finite, confidence)
        limits = [min(max(-10 * math.log10(each), -_MAX_DB), _MAX_DB) for each in (high, error / signal, low)]
        return Interval(limits[1], limits[0], limits[2], confidence=confidence, n=self._finite)

    def _explained(self, spread: float, confidence: float) -> Interval | None:
        if not spread:
            return None
        known = spread / (self._scale or 1.0)  # V itself is taken as known
        share = self._mean(0, 1) / known
        if share <= 0:
            return Interval(1.0, 1.0, 1.0, confidence=confidence, n=self._finite)
        sums = dict(zip(POWERS, self._sums.tolist(), strict=True))
        sums = {(i, j): (known**i * sums[0, j] if j else self._finite * known**i) for i, j in POWERS}
        low, high = _ratio_limits(sums, self._finite, confidence)
        limits = [max(1 - each, -1e6) for each in (high, share, low)]
        return Interval(limits[1], min(limits[0], limits[1]), max(limits[2], limits[1]), confidence, self._finite)


def _ratio_limits(sums: dict[tuple[int, int], float], n: int, confidence: float) -> tuple[float, float]:
    """Return the limits of ``mean error / mean signal``: the ratios that are not shown to be too high, or too low."""
    side, middle = (1 - confidence) / 2, sums[0, 1] / sums[1, 0]

    def limit(which: int, outward: float) -> float:
        inside, outside = 1.0, outward
        while p_values(sums, n, 1 + middle * outside)[which] > side:
            inside, outside = outside, outside * outward
            if not 1e-12 < outside < 1e12:
                return middle * outside
        for _ in range(30):
            between = math.sqrt(inside * outside)
            if p_values(sums, n, 1 + middle * between)[which] > side:
                inside = between
            else:
                outside = between
        return middle * outside

    return limit(1, 0.5), limit(0, 2.0)


class _Spread:
    """Mean and squared distances from it of answers of one shape (Chan, Golub, LeVeque 1979)."""

    def __init__(self) -> None:
        self.rows, self.squares = 0, 0.0
        self._mean: np.ndarray | float = 0.0

    def add(self, rows: np.ndarray) -> None:
        if not len(rows):
            return
        mean = rows.mean(axis=0)
        apart, total = mean - self._mean, self.rows + len(rows)
        self.squares += float(((rows - mean) ** 2).sum())
        self.squares += float((apart**2).sum()) * self.rows * len(rows) / total if self.rows else 0.0
        self._mean = self._mean + apart * (len(rows) / total)
        self.rows = total


def _mean_cosine(
    mean: float,
    counts: np.ndarray,
    lows: np.ndarray,
    highs: np.ndarray,
    *,
    broken: int,
    lost: float,
    confidence: float,
) -> Interval:
    """Bound the mean over all rows: that of sound rows, and the share of broken ones times what those seen lost."""
    rows = int(counts.sum()) + broken
    side = (1 - confidence) / 4  # two bounds on each end, a union bound
    shares = clopper_pearson(broken, rows, 1 - 2 * side)
    above = mean_above(highs, counts, top=BROKEN_LOSS, alpha=side)
    below = BROKEN_LOSS - mean_above(BROKEN_LOSS - lows, counts, top=BROKEN_LOSS, alpha=side)
    each = lost / broken if broken else 0.0
    high = max((1 - shares.high) * above + shares.high * each if broken else above, mean)
    low = min((1 - shares.high) * max(below, 0.0) + shares.low * each, mean)
    return Interval(1 - mean, 1 - high, 1 - low, confidence=confidence, n=rows)


def _pair(
    name: str, reference: Mapping[str, np.ndarray], variant: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    for side, answers in (("reference", reference), ("variant", variant)):
        if name not in answers:
            raise InvalidTensor(f"The {side} gives no output {name!r}. It gives {', '.join(answers) or 'none'}.")
    left, right = np.asarray(reference[name]), np.asarray(variant[name])
    if left.shape != right.shape or left.ndim == 0:
        raise InvalidTensor(
            f"Output {name!r} must have the same shape from both, rows first. "
            f"Got {list(left.shape)} from the reference and {list(right.shape)} from the variant."
        )
    if (left.dtype.kind == "f") != (right.dtype.kind == "f"):
        raise InvalidTensor(f"Output {name!r} is {left.dtype} of the reference and {right.dtype} of the variant.")
    return left, right


def _unit_of(energy: float) -> float:
    """Return a power of ten near an energy, in steps that keep the edges of errors where they are; 1 for usual ones."""
    return float(10.0 ** (5 * round(math.log10(energy) / 5)))


def _flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(len(array), math.prod(array.shape[1:])).astype(np.float64)


def _least(intervals: Sequence[Interval | None]) -> Interval | None:
    return min((each for each in intervals if each is not None), key=lambda each: each.low, default=None)
