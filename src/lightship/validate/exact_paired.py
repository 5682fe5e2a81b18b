"""The exact unconditional test behind non-inferiority. It shows that a drop in accuracy is below the margin.

Both models answer the same n rows. ``b`` rows are losses (reference right, variant wrong), ``c`` are gains (the other
way round), the rest agree; (b, c) is multinomial with rates p_b, p_c, and the drop is ``p_b - p_c``.

- Outcomes are ordered by Tango's score statistic (Statistics in Medicine 17:891-908, 1998): the standardized distance
  of the observed drop from a hypothetical one, with the variance at the restricted maximum likelihood estimate.
- The probability of "as extreme or more" is computed from the multinomial itself and maximized over the nuisance
  parameter q = p_c along the line ``p_b = q + drop`` (Hsueh, Liu, Chen, Biometrics 57:478-483, 2001; Lloyd, Moldovan,
  Statistics in Medicine 27:3540-3549, 2008). So the level holds for every q and n, where a normal approximation only
  holds it on average.
- The line suffices for the whole hypothesis ``p_b - p_c >= margin``: a region that contains, with a point, all points
  with fewer losses or more gains (Barnard's convexity) is the likelier the smaller p_b and the larger p_c.
  ``Region`` is such a staircase by construction, so this does not rest on a property of the statistic.

One probability costs O(sqrt n), not O(n^2): the number of gains is binomial, and the binomial distribution function of
the losses is carried along the staircase by two exact recurrences that only add positive terms,
``F(k; N - 1, r) = F(k; N, r) + r f(k; N - 1, r)`` and ``F(k + 1; N, r) = F(k; N, r) + f(k + 1; N, r)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

import numpy as np

__all__ = ["Region", "critical_region", "drop_bound", "p_inferior", "p_noninferior", "score"]

_NORMAL = NormalDist()
_TIE = 1e-9  # scores closer than this are one score: rounding must not split outcomes that are equal on paper
_LOG_LOST = 38.0  # each cut tail holds less than exp(-38) = 3e-17
_LOWEST_SCORE = 64.0
_TOGETHER = 32  # rates that share one window: enough to hide numpy's cost of a call, few enough to stay near each other
_STEPS_PER_SPREAD = 2
_SEARCH_ERROR = 1e-6
"""Added to every maximum: the grid and its refinement find the maximum to within 2e-7 (docs/statistics.md)."""


def score(losses: np.ndarray, gains: np.ndarray, n: int, drop: float) -> np.ndarray:
    """Return Tango's statistic for the hypothesis ``p_b - p_c = drop``; very negative speaks for a smaller drop.

    ``T = (b - c - n d) / sqrt(n (2 q + d - d^2))`` where q solves
    ``2 n q^2 + (d (2 n - b + c) - b - c) q - c d (1 - d) = 0``, the restricted maximum likelihood estimate of p_c.

    Args:
        losses: b, any shape.
        gains: c, same shape.
        n: rows, with b + c <= n.
        drop: d in (0, 1).
    """
    b, c = np.asarray(losses, dtype=np.float64), np.asarray(gains, dtype=np.float64)
    linear = drop * (2 * n - b + c) - b - c
    root = np.sqrt(linear * linear + 8 * n * c * drop * (1 - drop))
    q = np.maximum(root - linear, 0.0) / (4 * n)
    return np.asarray((b - c - n * drop) / np.sqrt(n * (2 * q + drop * (1 - drop))))


@lru_cache(maxsize=8)
def _log_factorials(n: int) -> np.ndarray:
    """Return ``log(k!)`` for k in 0..n, float64. Summed in extended precision: naive sums lose 8 digits at 1e5."""
    logs = np.zeros(n + 1, dtype=np.longdouble)
    logs[1:] = np.log(np.arange(1, n + 1, dtype=np.longdouble))
    return np.cumsum(logs).astype(np.float64)


class Region:
    """A staircase of outcomes: all (b, c) with ``b <= stairs[c]``, where ``stairs`` never falls.

    Args:
        n: rows.
        stairs: int64, shape (n + 1,): the most losses that belong, for each number of gains; -1 is none.
    """

    def __init__(self, n: int, stairs: np.ndarray) -> None:
        self.n = n
        self.stairs = np.maximum.accumulate(stairs)
        logs = _log_factorials(n)
        gains = np.arange(n + 1)
        self._log_choose = logs[n] - logs[gains] - logs[n - gains]
        # Step from c - 1 to c: the distribution function at the old stair, one row fewer. Index 0 is never used.
        self._shrink = _log_binomial(logs, n - gains, np.concatenate(([-1], self.stairs[:-1])))
        # Each further loss j enters at the first c whose stair reaches it.
        losses = np.arange(min(int(self.stairs[-1]), n) + 1)
        self._entry = np.searchsorted(self.stairs, losses)
        self._grow = _log_binomial(logs, n - self._entry, losses)

    @classmethod
    def up_to(cls, limit: float, n: int, drop: float, *, strict: bool = False) -> Region:
        """Return the outcomes whose score is at most ``limit`` (``strict``: below it)."""
        limit = limit - _TIE if strict else limit + _TIE
        gains = np.arange(n + 1)
        inside, outside = np.full(n + 1, -1), n - gains + 1
        for _ in range(n.bit_length() + 1):  # bisection, for all numbers of gains at once
            middle = (inside + outside) // 2
            open_ = outside - inside > 1
            belongs = score(np.maximum(middle, 0), gains, n, drop) <= limit
            inside = np.where(open_ & belongs, middle, inside)
            outside = np.where(open_ & ~belongs, middle, outside)
        return cls(n, inside)

    def probability(self, p_loss: float, p_gain: float) -> float:
        """Return the chance that n rows give an outcome inside, to about 1e-12."""
        return float(self.probabilities(np.array([p_loss]), np.array([p_gain]))[0])

    def probabilities(self, p_loss: np.ndarray, p_gain: np.ndarray) -> np.ndarray:
        """Return ``probability`` for many rates, shape (k,); quickest when neighbors are close to each other."""
        # The ends of the scale are kept open: log(0) is nowhere needed, and 1e-15 moves no digit that counts.
        p_gain = np.clip(p_gain, 1e-15, 1 - 1e-15)
        rate = np.clip(p_loss / (1 - p_gain), 1e-15, 1 - 1e-15)  # a row that is no gain is a loss with this rate
        pieces = [
            self._piece(rate[start : start + _TOGETHER, None], p_gain[start : start + _TOGETHER, None])
            for start in range(0, len(rate), _TOGETHER)
        ]
        return np.concatenate(pieces)

    def _piece(self, rate: np.ndarray, p_gain: np.ndarray) -> np.ndarray:
        """Return the probabilities of a few rates, shape (k, 1) each, over one common window of gains."""
        n = self.n
        low, high = _window(n, p_gain)
        log_rate, log_rest = np.log(rate), np.log1p(-rate)
        gains, stairs = np.arange(low, high + 1), self.stairs[low : high + 1]

        below = np.empty((len(rate), gains.size))  # F(stairs[c]; n - c, rate)
        below[:, :1] = self._first(low, rate)
        old, rows = stairs[:-1], n - gains[1:]
        shrunk = np.exp(self._shrink[low + 1 : high + 1] + old * log_rate + (rows - old) * log_rest)
        below[:, 1:] = below[:, :1] + np.cumsum(shrunk, axis=1) * rate
        first, last = int(stairs[0]) + 1, min(int(stairs[-1]), n) + 1
        if last > first:
            losses, rows = np.arange(first, last), n - self._entry[first:last]
            grown = np.cumsum(np.exp(self._grow[first:last] + losses * log_rate + (rows - losses) * log_rest), axis=1)
            reached = np.minimum(stairs, last - 1) - first
            grew = reached >= 0
            below[:, grew] += grown[:, reached[grew]]
        weights = np.exp(self._log_choose[low : high + 1] + gains * np.log(p_gain) + (n - gains) * np.log1p(-p_gain))
        return np.asarray(np.minimum((weights * np.minimum(below, 1.0)).sum(axis=1), 1.0))

    def _first(self, gains: int, rate: np.ndarray) -> np.ndarray:
        """Return the distribution function at the first stair of a window: ``F(stairs[c]; n - c, rate)``."""
        rows = self.n - gains
        low, high = _window(rows, rate)
        losses = np.arange(low, min(high, int(self.stairs[gains])) + 1)
        logs = _log_factorials(self.n)
        log_choose = logs[rows] - logs[losses] - logs[rows - losses]
        log_pmf = log_choose + losses * np.log(rate) + (rows - losses) * np.log1p(-rate)
        return np.asarray(np.exp(log_pmf).sum(axis=1, keepdims=True))

    def extreme(self, drop: float, *, largest: bool = True) -> float:
        """Return the largest (or smallest) probability along the line ``p_loss = p_gain + drop``.

        The grid is even in the angle u with ``q = (1 - drop) / 2 sin^2 u``. On this scale the spread of the gains, and
        at the other end of the rows on which both agree, is about 1 / (2 sqrt n) everywhere; the step is a part of
        that, so no peak can hide between two points. The best peaks are then looked at with steps 64 times finer.
        """
        sign = 1.0 if largest else -1.0
        end = math.pi / 2
        points = max(64, math.ceil(end * _STEPS_PER_SPREAD * 2 * math.sqrt(self.n))) + 1

        def look(angles: np.ndarray) -> np.ndarray:
            gain_rates = (1 - drop) / 2 * np.sin(angles) ** 2
            return sign * self.probabilities(gain_rates + drop, gain_rates)

        angles = np.linspace(0, end, points)
        values = look(angles)
        best = float(values.max())
        padded = np.concatenate(([-np.inf], values, [-np.inf]))
        peaks = np.flatnonzero((values >= padded[:-2]) & (values >= padded[2:]))
        for peak in peaks[np.argsort(values[peaks])[::-1][:3]]:
            center, step = float(angles[peak]), end / (points - 1)
            for _ in range(3):
                near = np.clip(np.linspace(center - step, center + step, 9), 0, end)
                found = look(near)
                center, step = float(near[found.argmax()]), step / 4
                best = max(best, float(found.max()))
        return sign * best


def _log_binomial(logs: np.ndarray, rows: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """Return ``log C(rows, hits)``; -inf where ``hits`` is not in [0, rows]."""
    valid = (hits >= 0) & (hits <= rows)
    kept = np.where(valid, hits, 0)
    return np.where(valid, logs[rows] - logs[kept] - logs[rows - kept], -np.inf)


def _window(n: int, p: np.ndarray) -> tuple[int, int]:
    """Return counts [low, high] outside of which each binomial has less than exp(-38) on each side (Bernstein)."""
    reach = np.sqrt(2 * _LOG_LOST * n * p * (1 - p)) + 2 * _LOG_LOST / 3
    return max(0, math.floor((n * p - reach).min())), min(n, math.ceil((n * p + reach).max()))


def p_noninferior(losses: int, gains: int, n: int, margin: float) -> float:
    """Return the exact p-value against ``p_b - p_c >= margin``; small shows that the drop is below the margin."""
    observed = float(score(np.array(losses), np.array(gains), n, margin))
    return min(1.0, Region.up_to(observed, n, margin).extreme(margin) + _SEARCH_ERROR)


def p_inferior(losses: int, gains: int, n: int, margin: float) -> float:
    """Return the exact p-value against ``p_b - p_c <= margin``; small shows that the drop is above the margin."""
    observed = float(score(np.array(losses), np.array(gains), n, margin))
    milder = Region.up_to(observed, n, margin, strict=True)
    return min(1.0, 1 - milder.extreme(margin, largest=False) + _SEARCH_ERROR)


def critical_region(n: int, margin: float, alpha: float, *, near: float = 0.01) -> Region | None:
    """Return a region of outcomes that are released at level ``alpha``; ``None`` if not even (0, n) is.

    It is the whole region of release, or misses scores at its very edge (its level is within ``near`` of alpha's on the
    probit scale), so a power computed from it is never too high.
    """

    def excess(limit: float) -> float:
        return _probit(Region.up_to(limit, n, margin).extreme(margin) + _SEARCH_ERROR) - _probit(alpha)

    # The edge is near the normal quantile; look around it in growing steps.
    inside = outside = _probit(alpha)
    step = 0.25
    if excess(inside) > 0:
        while excess(inside := inside - step) > 0:
            outside, step = inside, 2 * step
            if step > _LOWEST_SCORE:
                return None
    else:
        while excess(outside := outside + step) <= 0:
            inside, step = outside, 2 * step
    return Region.up_to(_last_inside(excess, inside=inside, outside=outside, near=near), n, margin)


def drop_bound(losses: int, gains: int, n: int, alpha: float, *, margin: float) -> float:
    """Return the smallest drop that the exact test at level ``alpha`` still rules out: an upper bound, cut at 0.

    It agrees with the verdict: it is at most ``margin`` exactly when the test with that margin releases.
    """

    def excess(drop: float) -> float:
        return _probit(p_noninferior(losses, gains, n, drop)) - _probit(alpha)

    tiny = 1e-6
    if excess(margin) > 0:
        outside, inside = margin, 2 * margin
        while inside < 1 and excess(inside) > 0:
            outside, inside = inside, 2 * inside
        return _last_inside(excess, inside=inside, outside=outside, near=0.02) if inside < 1 else 1.0
    if excess(tiny) <= 0:
        return 0.0
    return _last_inside(excess, inside=margin, outside=tiny, near=0.02)


def _probit(p: float) -> float:
    return _NORMAL.inv_cdf(min(max(p, 1e-15), 1 - 1e-15))


def _last_inside(excess: Callable[[float], float], *, inside: float, outside: float, near: float) -> float:
    """Return a point close to where ``excess`` crosses 0, always one with ``excess <= 0``.

    Steps along the secant, kept off both ends: on the probit scale both uses are almost straight lines.
    """
    value_in, value_out = excess(inside), excess(outside)
    for _ in range(30):
        if value_in >= -near or abs(outside - inside) < 1e-5:
            break
        part = min(max(value_in / (value_in - value_out), 0.05), 0.95) if value_out > value_in else 0.5
        point = inside + part * (outside - inside)
        value = excess(point)
        if value <= 0:
            inside, value_in = point, value
        else:
            outside, value_out = point, value
    return inside
