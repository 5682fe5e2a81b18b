"""Time two ways of doing the same thing, in interleaved pairs.

A busy neighbor, a warm cache or a falling clock hits both sides of a pair alike, so the ratio inside a pair is much
steadier than two averages taken one after the other. The order alternates (a b, b a, ...), so that neither side always
goes first. Calls of a few milliseconds come several in a row, after one that is not timed: else each would find the
caches full of the other side's data and its own threads asleep, and the figures would be of a use that nobody makes.
The interval is distribution-free: it needs no normal noise, only pairs that are independent.
Source of the interval: Conover, Practical Nonparametric Statistics (3rd ed. 1999), section 3.2.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightship.errors import InvalidInput
from lightship.types import Interval, Json

__all__ = ["PairedTiming", "Percentiles", "calls_in_a_row", "combined", "interleaved", "median_interval"]

_BLOCK_S = 0.005  # of one side in a pair: long beside filling the caches, short beside a neighbor's moods
_MOST_IN_A_ROW = 20


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Latency of one side in milliseconds."""

    p50: float
    p99: float

    def to_json(self) -> dict[str, Json]:
        """Return ``{"p50": ..., "p99": ...}``."""
        return {"p50": self.p50, "p99": self.p99}


@dataclass(frozen=True, slots=True)
class PairedTiming:
    """What two sides took, pair by pair.

    Attributes:
        ratio: median of b's time over a's time in the same pair, with its interval. Below 1: b is faster.
        a_ms: side a (the reference).
        b_ms: side b.
        pairs: how many pairs were timed.
        warmup: how many untimed pairs came first.
        processes: how many fresh processes the pairs come from. The interval of one process says nothing about
            another: where memory lies and how threads are placed differ between them.
    """

    ratio: Interval
    a_ms: Percentiles
    b_ms: Percentiles
    pairs: int
    warmup: int
    processes: int = 1

    @property
    def b_is_faster(self) -> bool:
        """Whether the whole interval lies below 1."""
        return self.ratio.high < 1

    @property
    def b_is_slower(self) -> bool:
        """Whether the whole interval lies above 1."""
        return self.ratio.low > 1

    def to_json(self) -> dict[str, Json]:
        """Return the JSON form, which ``from_json`` reads back."""
        return {
            "ratio": self.ratio.to_json(),
            "a_ms": self.a_ms.to_json(),
            "b_ms": self.b_ms.to_json(),
            "pairs": self.pairs,
            "warmup": self.warmup,
            "processes": self.processes,
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> PairedTiming:
        """Return the timing that ``to_json`` wrote."""
        return cls(
            ratio=Interval(**found["ratio"]),
            a_ms=Percentiles(**found["a_ms"]),
            b_ms=Percentiles(**found["b_ms"]),
            pairs=found["pairs"],
            warmup=found["warmup"],
            processes=found.get("processes", 1),
        )

    @property
    def words(self) -> str:
        """Say it for people: ``1.42 times as fast (1.35 to 1.50)`` or ``no difference shown``."""
        ratio = self.ratio
        if self.b_is_faster:
            return f"{1 / ratio.estimate:.2f} times as fast ({1 / ratio.high:.2f} to {1 / ratio.low:.2f})"
        if self.b_is_slower:
            return f"{ratio.estimate:.2f} times as slow ({ratio.low:.2f} to {ratio.high:.2f})"
        return f"no difference shown (time ratio {ratio.estimate:.2f}, {ratio.low:.2f} to {ratio.high:.2f})"


def interleaved(
    a: Callable[[], object],
    b: Callable[[], object],
    *,
    pairs: int = 200,
    warmup: int = 20,
    confidence: float = 0.95,
    rows: tuple[int, int] = (1, 1),
    in_a_row: tuple[int, int] = (1, 1),
    clock: Callable[[], float] = time.perf_counter,
) -> PairedTiming:
    """Time ``a`` and ``b`` in neighboring pairs, order alternating.

    Args:
        a: the reference; each call does one piece of work.
        b: the other side, which does the same work.
        pairs: how many pairs; enough for ``confidence`` (6 for 0.95).
        warmup: untimed pairs before the first timed one.
        confidence: of the interval of the ratio.
        rows: that a call of each side treats; the figures are times a row.
        in_a_row: calls of each side in a pair, whose mean is its time; more than one come after one that is not timed.
        clock: returns seconds; never goes back.

    Raises:
        InvalidInput: too few pairs for ``confidence``, or a clock too coarse to see the work.
    """
    for _ in range(warmup):
        a()
        b()
    taken = [np.empty((pairs, count)) for count in in_a_row]
    for pair in range(pairs):
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            work = (a, b)[side]
            if in_a_row[side] > 1:
                work()
            for call in range(in_a_row[side]):
                start = clock()
                work()
                taken[side][pair, call] = clock() - start
    if not all((times > 0).all() for times in taken):
        raise InvalidInput(
            "The clock saw a call that took no time. Use a finer clock, or let each call do more work (a larger batch)."
        )
    a_s, b_s = (times / count for times, count in zip(taken, rows, strict=True))
    return PairedTiming(
        ratio=median_interval(b_s.mean(axis=1) / a_s.mean(axis=1), confidence=confidence),
        a_ms=_percentiles(a_s),
        b_ms=_percentiles(b_s),
        pairs=pairs,
        warmup=warmup,
    )


def calls_in_a_row(call_s: float) -> int:
    """Return how many calls of this length fill a turn of one side (5 ms, or 20 calls), at least one."""
    return max(1, min(_MOST_IN_A_ROW, math.ceil(_BLOCK_S / max(call_s, 1e-9))))


def combined(timings: Sequence[PairedTiming], *, confidence: float = 0.95) -> PairedTiming:
    """Return what several fresh processes say together about the same two sides.

    Each process counts once, by the median of its pairs. With enough processes for ``confidence`` (6 for 0.95) the
    interval is that of a median over processes; with fewer, it spans the intervals of all of them, which claims no
    more than each has shown.

    Raises:
        InvalidInput: there is nothing to combine.
    """
    if not timings:
        raise InvalidInput("There must be at least one timing to combine. Got none.")
    if len(timings) == 1:
        return timings[0]
    medians = [timing.ratio.estimate for timing in timings]
    if _rank(len(medians), confidence) >= 1:
        ratio = median_interval(medians, confidence=confidence)
    else:
        ratio = Interval(
            estimate=float(np.median(medians)),
            low=min(timing.ratio.low for timing in timings),
            high=max(timing.ratio.high for timing in timings),
            confidence=confidence,
            n=len(timings),
        )
    return PairedTiming(
        ratio=ratio,
        a_ms=_middle([timing.a_ms for timing in timings]),
        b_ms=_middle([timing.b_ms for timing in timings]),
        pairs=sum(timing.pairs for timing in timings),
        warmup=sum(timing.warmup for timing in timings),
        processes=sum(timing.processes for timing in timings),
    )


def _middle(sides: Sequence[Percentiles]) -> Percentiles:
    return Percentiles(
        p50=float(np.median([side.p50 for side in sides])), p99=float(np.median([side.p99 for side in sides]))
    )


def _percentiles(seconds: np.ndarray) -> Percentiles:
    p50, p99 = np.percentile(seconds, (50, 99)) * 1000
    return Percentiles(p50=float(p50), p99=float(p99))


def median_interval(values: Sequence[float] | np.ndarray, *, confidence: float = 0.95) -> Interval:
    """Return the median with a distribution-free interval.

    With ``x(1) <= ... <= x(n)`` the interval is ``[x(k), x(n + 1 - k)]`` for the largest k with
    ``2 P(Bin(n, 1/2) < k) <= 1 - confidence``: the median lies left of ``x(k)`` only if fewer than k values fall
    below it.

    Raises:
        InvalidInput: with so few values not even [least, greatest] has this confidence.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = ordered.size
    k = _rank(n, confidence)
    if k < 1:
        least = 1 + math.ceil(-math.log2(1 - confidence))
        raise InvalidInput(
            f"A median with confidence {confidence} needs at least {least} values. Got {n}. Measure more pairs."
        )
    return Interval(
        estimate=float(np.median(ordered)),
        low=float(ordered[k - 1]),
        high=float(ordered[n - k]),
        confidence=confidence,
        n=n,
    )


def _rank(n: int, confidence: float) -> int:
    """Return the largest k with ``2 P(Bin(n, 1/2) < k) <= 1 - confidence``; 0 if there is none."""
    budget = (1 - confidence) / 2
    below, k = 0.0, 0
    while k < n:
        log_pmf = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
        below += math.exp(log_pmf)
        if below > budget:
            break
        k += 1
    return k
