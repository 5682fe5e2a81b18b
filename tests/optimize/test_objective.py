"""What a search prefers, in figures."""

from __future__ import annotations

import math

import pytest

from lightship.engine.measure import PairedTiming, Percentiles
from lightship.errors import InvalidInput
from lightship.optimize.candidate import Candidate, Speed
from lightship.optimize.front import with_front
from lightship.optimize.objective import Objective
from lightship.types import Interval

REFERENCE = Candidate("reference", size_bytes=1000, memory_bytes=5000)


def speed(ratio: float, *, spread: float = 1.0) -> Speed:
    """Return a speed with an interval of ``ratio`` times and through ``spread``."""
    interval = Interval(ratio, ratio / spread, ratio * spread, 0.95, 7)
    return Speed(PairedTiming(interval, Percentiles(10, 11), Percentiles(10 * ratio, 12), 50, 3, 7), 1, 1, 1, 1)


def candidate(name: str = "c", **figures) -> Candidate:
    """Return a candidate that is as the reference but for the figures."""
    same = {"latency": speed(1), "throughput": speed(1), "size_bytes": 1000, "memory_bytes": 5000}
    return Candidate(name, **{**same, **figures})


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("latency", {"latency": 1}),
        ("latency=3,size=1", {"latency": 0.75, "size": 0.25}),
        (" throughput , memory=1 ", {"throughput": 0.5, "memory": 0.5}),
    ],
)
def test_objective_is_read(text, weights):
    """Weights are brought to a sum of 1, and what is written out is read again."""
    found = Objective.parse(text)

    assert found.weights == weights
    assert Objective.parse(str(found)) == found


@pytest.mark.parametrize("text", ["", "speed", "latency=0", "latency=-1", "latency=nan", "latency,latency", "size=inf"])
def test_objective_that_is_none_is_refused(text):
    """The message shows what is allowed and what came."""
    with pytest.raises(InvalidInput, match=r"must be one of latency, throughput, size, memory.*Got "):
        Objective.parse(text)


def test_cost_is_the_weighted_geometric_mean():
    """Half the time at a quarter of the size, weights 3 to 1."""
    found = Objective.parse("latency=3,size=1").cost(candidate(latency=speed(0.5), size_bytes=250), REFERENCE)

    assert found == pytest.approx(0.5**0.75 * 0.25**0.25)


def test_missing_figure_costs_without_end():
    """What was not measured is never preferred."""
    assert Objective.parse("throughput").cost(candidate(throughput=None), REFERENCE) == math.inf
    assert Objective.parse("memory").cost(candidate(memory_bytes=None), REFERENCE) == math.inf


@pytest.mark.parametrize(
    ("objective", "figures", "shown"),
    [
        ("latency", {"latency": speed(0.8, spread=1.1)}, True),
        ("latency", {"latency": speed(0.8, spread=1.3)}, False),  # the interval reaches 1.04
        ("latency", {"latency": speed(0.98)}, False),  # a trifle
        ("latency", {"throughput": speed(0.1)}, False),  # not what was asked for
        ("size", {"size_bytes": 999}, True),
        ("size", {"size_bytes": 1000}, False),
    ],
)
def test_gain_is_shown_by_the_unfavorable_end(objective, figures, shown):
    """An interval that touches the reference shows nothing; of bytes every one counts."""
    assert Objective.parse(objective).shown(candidate(**figures), REFERENCE) is shown


def test_front_keeps_what_is_best_at_something():
    """Faster, smaller, or neither; one that another beats in all is off, and so is what was not timed."""
    found = with_front(
        REFERENCE,
        [
            candidate("fast", latency=speed(0.5), throughput=speed(0.5)),
            candidate("small", size_bytes=250),
            candidate("slower-than-fast", latency=speed(0.6), throughput=speed(0.5)),
            candidate("worse", latency=speed(1.2)),
            candidate("untimed", latency=None),
        ],
    )

    assert {each.name for each in found if each.on_front} == {"fast", "small"}
