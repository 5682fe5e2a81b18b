"""What a search prefers: one figure, or several with weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lightship.errors import InvalidInput
from lightship.optimize.candidate import Candidate, Speed

__all__ = ["GOALS", "TIMED", "Objective"]

TIMED = ("latency", "throughput")
GOALS = (*TIMED, "size", "memory")
_LEAST_GAIN = 0.03  # of the cost; a smaller gain is worth no other graph, and timing noise must not choose one


@dataclass(frozen=True, slots=True)
class Objective:
    """Weights of the goals; they sum to 1.

    The cost of a variant is the weighted geometric mean of its ratios to the reference (time of a call, time of a row,
    bytes of the graph, bytes of memory): 1 is the reference, 0.5 twice as good.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {"latency": 1.0})

    def __post_init__(self) -> None:
        unknown = [goal for goal in self.weights if goal not in GOALS]
        total = sum(self.weights.values())
        if unknown or not self.weights or min(self.weights.values()) <= 0 or not math.isclose(total, 1):
            raise InvalidInput(
                f"An objective must give {', '.join(GOALS)} weights above 0 that sum to 1. Got {dict(self.weights)}."
            )

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Return the objective that a person wrote: ``latency``, or ``latency=0.7,size=0.3``; any positive weights.

        Raises:
            InvalidInput: an unknown goal, one twice, or a weight that is no positive number.
        """
        weights: dict[str, float] = {}
        for part in text.split(","):
            goal, sign, number = part.strip().partition("=")
            weight = _positive(number) if sign else 1.0
            if goal not in GOALS or goal in weights or weight is None:
                raise InvalidInput(
                    f"An objective must be one of {', '.join(GOALS)}, or several with weights such as "
                    f"'latency=0.7,size=0.3'. Got {text!r}."
                )
            weights[goal] = weight
        total = sum(weights.values())
        return cls({goal: weight / total for goal, weight in weights.items()})

    def __str__(self) -> str:
        """Return the form that ``parse`` reads."""
        if len(self.weights) == 1:
            return next(iter(self.weights))
        return ",".join(f"{goal}={weight:g}" for goal, weight in self.weights.items())

    @property
    def timed(self) -> tuple[str, ...]:
        """The goals that are measured as time, so that processes and pairs sharpen them."""
        return tuple(goal for goal in TIMED if goal in self.weights)

    def cost(self, candidate: Candidate, reference: Candidate) -> float:
        """Return the cost of a candidate: below 1 is better than the reference; infinite when a figure is missing."""
        return self._cost(candidate, reference, surely=False)

    def rough_cost(self, ratios: Mapping[str, float]) -> float:
        """Return the cost by ratios to the reference that are known by goal; one that is 0 is not known, and 1."""
        return math.exp(sum(weight * math.log(ratios[goal] or 1.0) for goal, weight in self.weights.items()))

    def shown(self, candidate: Candidate, reference: Candidate) -> bool:
        """Return whether the candidate is shown to be better than the reference by more than a trifle.

        Speeds count with the unfavorable end of their intervals. Of sizes any byte is a gain, as none is noise.
        """
        return self._cost(candidate, reference, surely=True) < 1 - self._least_gain

    def promising(self, candidate: Candidate, reference: Candidate) -> bool:
        """Return whether the candidate seems to be better by more than a trifle."""
        return self.cost(candidate, reference) < 1 - self._least_gain

    @property
    def _least_gain(self) -> float:
        return _LEAST_GAIN if self.timed else 0.0

    def words(self, candidate: Candidate, reference: Candidate) -> str:
        """Say the candidate's figures for people."""
        said = []
        for goal in self.weights:
            speed = _speed(candidate, goal)
            if goal in self.timed:
                said.append(f"{goal} {speed.timing.words}" if speed else f"{goal} not measured")
            else:
                found, base = _bytes(candidate, goal), _bytes(reference, goal)
                said.append(f"{goal} {found} bytes against {base}")
        return "; ".join(said)

    def _cost(self, candidate: Candidate, reference: Candidate, *, surely: bool) -> float:
        logarithm = 0.0
        for goal, weight in self.weights.items():
            if goal in self.timed:
                speed = _speed(candidate, goal)
                ratio = None if speed is None else speed.timing.ratio.high if surely else speed.timing.ratio.estimate
            else:
                found, base = _bytes(candidate, goal), _bytes(reference, goal)
                ratio = found / base if found and base else None
            if not ratio:
                return math.inf
            logarithm += weight * math.log(ratio)
        return math.exp(logarithm)


def _positive(number: str) -> float | None:
    try:
        value = float(number)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def _speed(candidate: Candidate, goal: str) -> Speed | None:
    return candidate.latency if goal == "latency" else candidate.throughput


def _bytes(candidate: Candidate, goal: str) -> int:
    return candidate.size_bytes if goal == "size" else candidate.memory_bytes or 0
