"""Bounds of a mean and of a share that hold for every distribution and every number of rows.

Fidelity is nearly 1 on nearly all rows: values whose distribution is as skewed as can be. There the bootstrap and
Student's t are far too sure of themselves (docs/statistics.md shows by how much). These bounds need only that rows are
independent and values bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from lightship.errors import InvalidInput
from lightship.types import Interval

__all__ = ["binomial_tail", "clopper_pearson", "mean_above", "mean_is_below", "share_rows_needed"]

_BETS = 0.5 ** np.arange(10)  # fractions of the largest bet: 1, 1/2 … 1/512
_LOG_WEIGHTS = np.log(_BETS / _BETS.sum())  # the largest bet, right for rows that are all alike, weighs most
_HALVINGS = 60


def mean_above(values: np.ndarray, counts: np.ndarray, *, top: float, alpha: float) -> float:
    """Return a bound that the true mean of values in [0, ``top``] exceeds with probability at most ``alpha``.

    Betting: were the mean m or more, a gambler who stakes a share f on small values,
    ``K = sum_f w_f prod_i (1 + f (m - x_i) / (top - m))``, would not win on average, and by Markov's inequality have
    ``K >= 1/alpha`` with probability at most alpha. The bound is the least m with K that large. Fixed stakes f and
    weights w, no dependence on the order of the rows, so a histogram suffices (Waudby-Smith, Ramdas, JRSS B 86:1-27,
    2024; mixtures of stakes as in Orabona, Jun, IEEE Trans. Inf. Theory 70:436-455, 2024).

    Args:
        values: in [0, top], any order.
        counts: how often each value was seen, >= 0.
        top: the largest possible value, > 0.
        alpha: in (0, 1).

    Returns:
        In [0, top]; ``top`` when nothing was seen.
    """
    low, high = 0.0, top
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if mean_is_below(values, counts, top=top, mean=middle, alpha=alpha):
            high = middle
        else:
            low = middle
    return high


def mean_is_below(values: np.ndarray, counts: np.ndarray, *, top: float, mean: float, alpha: float) -> bool:
    """Whether ``mean_above`` is at most ``mean``: the same bet, for one mean."""
    if mean >= top:
        return True
    seen = counts > 0
    if not seen.any():
        return False
    values, counts = np.asarray(values, dtype=np.float64)[seen, None], np.asarray(counts, dtype=np.float64)[seen]
    with np.errstate(divide="ignore"):  # the whole stake lost: log 0
        logs = counts @ np.log1p(_BETS * np.maximum((mean - values) / (top - mean), -1.0)) + _LOG_WEIGHTS
    peak = float(logs.max())
    return peak > -math.inf and peak + math.log(float(np.exp(logs - peak).sum())) >= -math.log(alpha)


def binomial_tail(k: int, n: int, p: float) -> float:
    """Return ``P(Bin(n, p) <= k)``, summed over the shorter side."""
    if p <= 0:
        return 1.0 if k >= 0 else 0.0
    if p >= 1:
        return 1.0 if k >= n else 0.0
    upper = k > n * p
    counts = np.arange(k + 1, n + 1) if upper else np.arange(k + 1)
    terms = _log_choose(n, counts) + counts * math.log(p) + (n - counts) * math.log1p(-p)
    total = float(np.exp(terms).sum())
    return min(max(1 - total if upper else total, 0.0), 1.0)


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the exact interval of a binomial proportion: each side errs with probability at most half the rest.

    The shares at which ``P(Bin(n, p) <= k)`` and ``P(Bin(n, p) >= k)`` fall to (1 - confidence)/2 (Clopper, Pearson,
    Biometrika 26:404-413, 1934). Of no rows nothing is known: [0, 1].

    Raises:
        InvalidInput: not ``0 <= k <= n``, or a confidence outside of (0, 1).
    """
    if not 0 <= k <= n or not 0 < confidence < 1:
        raise InvalidInput(f"A share needs 0 <= k <= n and a confidence in (0, 1). Got k {k}, n {n}, {confidence}.")
    if n == 0:
        return Interval(0.0, 0.0, 1.0, confidence=confidence, n=0)
    side = (1 - confidence) / 2
    low = 0.0 if k == 0 else _root(lambda p: 1 - binomial_tail(k - 1, n, p) >= side)
    high = 1.0 if k == n else _root(lambda p: binomial_tail(k, n, p) <= side)
    return Interval(k / n, low, high, confidence=confidence, n=n)


def share_rows_needed(share: float, *, limit: float, alpha: float, most: int = 10_000_000) -> int | None:
    """Return how many rows with this share of bad ones show, at ``alpha``, that fewer than ``limit`` are bad.

    Returns:
        ``None`` if ``share`` is no less than ``limit``, or more than ``most`` rows would be needed.
    """
    if not share < limit:
        return None
    if share == 0:
        return math.ceil(math.log(alpha) / math.log1p(-limit))

    def enough(n: int) -> bool:
        return binomial_tail(math.ceil(share * n), n, limit) <= alpha

    high = 16
    while not enough(high):
        high *= 2
        if high > most:
            return None
    low = high // 2
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _root(holds: Callable[[float], bool]) -> float:
    """Return the least p in [0, 1] from which on ``holds``."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _log_choose(n: int, counts: np.ndarray) -> np.ndarray:
    if counts.size < 64:
        return np.array([math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in counts.tolist()])
    # A running product: cheap for many counts.
    start = int(counts[0])
    first = math.lgamma(n + 1) - math.lgamma(start + 1) - math.lgamma(n - start + 1)
    steps = np.log((n - counts[:-1]) / (counts[:-1] + 1.0))
    return first + np.concatenate(([0.0], np.cumsum(steps)))
