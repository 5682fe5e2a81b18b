"""Calibration: whether a model that says 90 % is right nine times out of ten.

The expected calibration error (ECE) is the mean distance between how sure answers are and how often they are right, in
bins of equally many rows (Naeini, Cooper, Hauskrecht, AAAI 2015; equal mass: Nguyen, O'Connor, EMNLP 2015). Noise alone
makes it positive, more so with few rows, so what noise adds is taken off (the need: Kumar, Liang, Ma, NeurIPS 2019).
Temperature: Guo, Pleiss, Sun, Weinberger, ICML 2017; fitted on selection rows, judged on gate rows.

What to watch: ECE sees the surest class alone and hides what cancels inside of a bin; Brier score and negative log
likelihood (NLL) see every class. Their paired difference is what tells whether a temperature helps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lightship.errors import InvalidInput
from lightship.types import Interval, Json
from lightship.validate.logits import labels_of, probabilities_of, require_same_shape
from lightship.validate.statistics import wilson

__all__ = ["Bin", "Calibration", "Scores", "calibration", "fit_temperature", "improvement", "reliability"]

MOST_BINS = 15
_ROWS_A_BIN = 20  # fewer tell nothing of how often they are right
_DRAWS = 2000
_LOWEST, _HIGHEST = 0.05, 20.0
_GOLDEN = (math.sqrt(5) - 1) / 2
_LEAST_PROBABILITY = 1e-12  # keeps the loss of a row finite that the model was sure of and wrong about


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows that the model was about equally sure of.

    Attributes:
        low, high: least and greatest probability of the answer.
        confidence: mean of these probabilities.
        accuracy: share that is right, with Wilson's interval.
    """

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: Interval

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "low": self.low,
            "high": self.high,
            "rows": self.rows,
            "confidence": self.confidence,
            "accuracy": self.accuracy.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well probabilities fit what happened.

    Attributes:
        ece: less what noise adds; in [0, 1].
        brier: mean of ``sum_k (p_k - y_k)^2``, in [0, 2].
        nll: mean of ``-log p`` of the true class.
        mean_confidence: mean probability of the answer given.
        bins: by rising confidence.
    """

    ece: Interval
    brier: Interval
    nll: Interval
    mean_confidence: float
    accuracy: Interval
    bins: tuple[Bin, ...]

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form."""
        return {
            "ece": self.ece.to_json(),
            "brier": self.brier.to_json(),
            "nll": self.nll.to_json(),
            "mean_confidence": self.mean_confidence,
            "accuracy": self.accuracy.to_json(),
            "bins": [each.to_json() for each in self.bins],
        }


@dataclass(frozen=True, slots=True)
class Scores:
    """Loss of each row: float64 (rows,)."""

    brier: np.ndarray
    nll: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray, truth: np.ndarray) -> Scores:
        """Score probabilities (rows, classes) against true classes (rows,)."""
        of_truth = probabilities[np.arange(len(truth)), truth]
        brier = np.square(probabilities).sum(axis=1) - 2 * of_truth + 1
        return cls(np.maximum(brier, 0.0), -np.log(np.maximum(of_truth, _LEAST_PROBABILITY)))


def calibration(
    logits: np.ndarray, truth: np.ndarray, *, temperature: float = 1.0, confidence: float = 0.95
) -> Calibration:
    """Compare the probabilities that logits give with what happened.

    Intervals: Wilson of accuracies; the central limit theorem of the means (Brier, NLL); for the ECE see ``_ece``.
    docs/statistics.md tells their coverage.

    Args:
        logits: finite, (rows, classes), at least one row.
        truth: int classes, (rows,).
        temperature: logits are divided by this.
        confidence: of all intervals.
    """
    probabilities = probabilities_of(logits.astype(np.float64) / temperature)
    _require_rows(probabilities, truth)
    sure = probabilities.max(axis=1)
    right = labels_of(logits) == truth
    bins, place = _binned(sure, right, confidence)
    scores = Scores.of(probabilities, truth)
    return Calibration(
        ece=_ece(sure, right, place, len(bins), confidence),
        brier=_mean(scores.brier, confidence, low=0.0),
        nll=_mean(scores.nll, confidence, low=0.0),
        mean_confidence=float(sure.mean()),
        accuracy=wilson(int(right.sum()), len(right), confidence),
        bins=bins,
    )


def reliability(sure: np.ndarray, right: np.ndarray, *, confidence: float = 0.95) -> tuple[Bin, ...]:
    """Return bins of equally many rows: the reliability diagram.

    Args:
        sure: probability of the answer that was given, (rows,).
        right: whether it was right, bool (rows,).
        confidence: of each accuracy's interval.
    """
    return _binned(sure, right, confidence)[0]


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """Return the temperature in [0.05, 20] with the least negative log likelihood.

    The likelihood is concave in 1 / temperature, so it has one maximum; golden-section search over the logarithm.

    Args:
        logits: finite, of selection rows, (rows, classes).
        truth: int classes, (rows,).
    """
    _require_rows(logits, truth)
    wide = logits.astype(np.float64)
    rows = np.arange(len(truth))

    def loss(log_temperature: float) -> float:
        scaled = wide / math.exp(log_temperature)
        top = scaled.max(axis=1)
        return float((top + np.log(np.exp(scaled - top[:, None]).sum(axis=1)) - scaled[rows, truth]).mean())

    low, high = math.log(_LOWEST), math.log(_HIGHEST)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > 1e-4:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = loss(right)
    return math.exp((low + high) / 2)


def improvement(
    logits: np.ndarray, truth: np.ndarray, *, temperature: float, confidence: float = 0.95
) -> tuple[Interval, Interval]:
    """Return by how much a temperature lowers NLL and Brier score on these rows, each row compared with itself."""
    before = Scores.of(probabilities_of(logits), truth)
    after = Scores.of(probabilities_of(logits.astype(np.float64) / temperature), truth)
    return _mean(before.nll - after.nll, confidence), _mean(before.brier - after.brier, confidence)


def _require_rows(values: np.ndarray, truth: np.ndarray) -> None:
    require_same_shape(logits=values[:, 0], truth=truth)
    if not len(truth) or not np.isfinite(values).all():
        raise InvalidInput("Calibration needs at least one row, and logits that are finite in every row.")


def _binned(sure: np.ndarray, right: np.ndarray, confidence: float) -> tuple[tuple[Bin, ...], np.ndarray]:
    """Return the bins, and for each row the number of its bin. Rows that are equally sure share one."""
    count = max(1, min(MOST_BINS, len(sure) // _ROWS_A_BIN))
    order = np.argsort(sure, kind="stable")
    edges = np.unique([sure[piece[-1]] for piece in np.array_split(order, count)])
    place = np.searchsorted(edges, sure, side="left")
    bins = []
    for index in range(len(edges)):
        here = place == index
        of_bin, correct = sure[here], int(right[here].sum())
        bins.append(
            Bin(
                low=float(of_bin.min()),
                high=float(of_bin.max()),
                rows=int(here.sum()),
                confidence=float(of_bin.mean()),
                accuracy=wilson(correct, int(here.sum()), confidence),
            )
        )
    return tuple(bins), place


def _ece(sure: np.ndarray, right: np.ndarray, place: np.ndarray, bins: int, confidence: float) -> Interval:
    """Return the calibration error less what noise adds, with its interval.

    The plain error is ``sum_b w_b |g_b|`` of the bins' mean gaps. Its noise is drawn from the normal distribution of
    each mean, which costs nothing with many rows.

    - Below: by the triangle inequality the true error is at most ``D = sum_b w_b |noise_b|`` away, whatever it is.
    - Above: noise adds on average, so the plain error and its spread are enough.
    """
    gaps, shares, spreads = _gaps(sure, right, place, bins)
    plain = float(shares @ np.abs(gaps))
    # How much of the gaps is no noise: squares of gaps are too large by the squares of their standard errors.
    signal = max(0.0, 1 - float(shares @ np.square(spreads)) / max(float(shares @ np.square(gaps)), 1e-300))
    kept = math.sqrt(signal) * gaps
    added = float(shares @ (_folded_mean(kept, spreads) - np.abs(kept)))
    noise = np.random.default_rng(0).normal(size=(_DRAWS, bins)) * spreads
    away = float(np.quantile(np.abs(noise) @ shares, 0.5 + confidence / 2))
    drawn = np.abs(gaps + noise) @ shares
    reach = float(np.quantile(drawn, 0.5 + confidence / 2) - drawn.mean())
    low, high = max(plain - away, 0.0), min(plain + reach, 1.0)
    return Interval(min(max(plain - added, low), high), low, high, confidence, len(sure))


def _gaps(
    sure: np.ndarray, right: np.ndarray, place: np.ndarray, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each bin the mean of right less sure, its share of rows, and the standard error of that mean."""
    counts = np.bincount(place, minlength=bins).astype(np.float64)
    off = right - sure
    means = np.bincount(place, weights=off, minlength=bins) / counts
    seen = np.bincount(place, weights=np.square(off - means[place]), minlength=bins) / np.maximum(counts - 1, 1)
    # Rows that are all right show no variance; the probabilities themselves say that there is some.
    said = np.bincount(place, weights=sure * (1 - sure), minlength=bins) / counts
    return means, counts / len(sure), np.sqrt(np.maximum(seen, said) / counts)


def _folded_mean(means: np.ndarray, spreads: np.ndarray) -> np.ndarray:
    """Return the mean of ``|X|`` for normal X (Leone, Nelson, Nottingham, Technometrics 3:543-550, 1961)."""
    z = np.divide(means, spreads, out=np.full_like(means, np.inf), where=spreads > 0)
    tail = np.array([NormalDist().cdf(-abs(value)) for value in z])
    return np.asarray(spreads * math.sqrt(2 / math.pi) * np.exp(-np.square(z) / 2) + np.abs(means) * (1 - 2 * tail))


def _mean(values: np.ndarray, confidence: float, *, low: float = -math.inf) -> Interval:
    """Return the mean with the interval of the central limit theorem."""
    mean, n = float(values.mean()), len(values)
    reach = NormalDist().inv_cdf(0.5 + confidence / 2) * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    if not math.isfinite(reach):  # of one row nothing is known; JSON has no infinity
        reach = abs(mean) + 1e9
    return Interval(mean, max(mean - reach, low), mean + reach, confidence, n)
