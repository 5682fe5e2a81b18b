"""Timing in pairs, on a clock that the test holds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from lightship.engine.measure import PairedTiming, calls_in_a_row, interleaved, median_interval
from lightship.errors import InvalidInput


class Clock:
    """A clock that only work moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        """Return the time, in seconds."""
        return self.now

    def work(self, name, seconds):
        """Return a piece of work that takes these times, one a call."""
        durations = iter(seconds)

        def run():
            self.calls.append(name)
            self.now += next(durations)

        return run


def endless(value):
    """Yield one value for ever."""
    while True:
        yield value


def test_order_alternates_after_warmup():
    """Neither side always goes first."""
    clock = Clock()

    interleaved(clock.work("a", endless(1.0)), clock.work("b", endless(1.0)), pairs=6, warmup=1, clock=clock)

    assert "".join(clock.calls) == "ab" + "abba" * 3


def test_ratio_survives_a_drifting_machine():
    """A machine that gets ten times slower hits both sides of a pair alike."""
    clock = Clock()
    drift = np.linspace(1, 10, 40)

    timing = interleaved(clock.work("a", drift), clock.work("b", drift / 2), pairs=40, warmup=0, clock=clock)

    assert timing.ratio.low == pytest.approx(0.5)
    assert timing.ratio.high == pytest.approx(0.5)
    assert timing.b_is_faster
    assert timing.words.startswith("2.00 times as fast")


def test_calls_in_a_row_come_after_one_that_is_not_timed():
    """The first call after the other side pays for caches that the other side filled."""
    clock = Clock()
    a, b = clock.work("a", [9.0, 1.0, 1.0] * 8), clock.work("b", endless(2.0))

    timing = interleaved(a, b, pairs=8, warmup=0, in_a_row=(2, 1), clock=clock)

    assert "".join(clock.calls) == "aaabbaaa" * 4
    assert (timing.ratio.low, timing.ratio.high) == (2, 2)
    assert timing.a_ms.p99 == 1000


def test_short_calls_fill_a_turn_and_long_ones_stand_alone():
    """Twenty at most: a pair of turns must stay short beside what drifts."""
    assert [calls_in_a_row(seconds) for seconds in (1e-9, 0.0002, 0.001, 0.0025, 0.005, 1.0)] == [20, 20, 5, 2, 1, 1]


def test_slower_side_is_called_slower():
    """The ratio is b over a."""
    clock = Clock()

    timing = interleaved(clock.work("a", endless(1.0)), clock.work("b", endless(3.0)), pairs=10, warmup=0, clock=clock)

    assert timing.b_is_slower
    assert (timing.a_ms.p50, timing.b_ms.p50) == pytest.approx((1000, 3000))
    assert timing.words.startswith("3.00 times as slow")


def test_noise_without_a_difference_shows_none():
    """An interval that holds 1 shows nothing."""
    clock = Clock()
    rng = np.random.default_rng(5)
    noise = rng.lognormal(size=(2, 50))

    timing = interleaved(clock.work("a", noise[0]), clock.work("b", noise[1]), pairs=50, warmup=0, clock=clock)

    assert not timing.b_is_faster
    assert not timing.b_is_slower
    assert timing.words.startswith("no difference shown")


def test_timing_survives_json():
    """What is kept between stages comes back whole."""
    clock = Clock()
    timing = interleaved(clock.work("a", endless(1.0)), clock.work("b", endless(3.0)), pairs=10, warmup=0, clock=clock)

    assert PairedTiming.from_json(json.loads(json.dumps(timing.to_json()))) == timing


def test_percentiles_are_numpys():
    """p50 and p99 in milliseconds."""
    clock = Clock()
    seconds = np.random.default_rng(5).gamma(2, size=100)

    timing = interleaved(clock.work("a", seconds), clock.work("b", endless(1.0)), pairs=100, warmup=0, clock=clock)

    assert timing.a_ms.p99 == pytest.approx(1000 * np.percentile(seconds, 99), rel=1e-6)


@pytest.mark.parametrize("n", [6, 7, 20, 101, 1000])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_interval_of_the_median_is_the_narrowest_that_the_binomial_allows(n, confidence):
    """Ranks from scipy's binomial."""
    found = median_interval(np.arange(1, n + 1), confidence=confidence)

    k = int(found.low)
    assert found.high == n + 1 - k
    assert 2 * stats.binom.cdf(k - 1, n, 0.5) <= 1 - confidence < 2 * stats.binom.cdf(k, n, 0.5)


def test_interval_of_the_median_covers_as_often_as_it_says():
    """4,000 samples of a skewed distribution: the true median is inside in at least 95 %."""
    rng = np.random.default_rng(11)
    truth = np.log(2)

    inside = sum(
        found.low <= truth <= found.high for found in (median_interval(rng.exponential(size=25)) for _ in range(4000))
    )

    assert inside / 4000 > 0.95 - 3 * np.sqrt(0.05 * 0.95 / 4000)


def test_too_few_pairs_are_refused_with_the_least_number():
    """Five pairs cannot give 95 %."""
    with pytest.raises(InvalidInput, match=r"at least 6 values\. Got 5"):
        median_interval([1, 2, 3, 4, 5])


def test_clock_that_is_too_coarse_is_refused():
    """A ratio of zeros is no ratio."""
    with pytest.raises(InvalidInput, match="took no time"):
        interleaved(lambda: None, lambda: None, pairs=10, warmup=0, clock=lambda: 1.0)
