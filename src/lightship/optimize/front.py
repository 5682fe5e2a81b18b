"""The Pareto front: which variants are best at something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightship.optimize.candidate import Candidate, Speed

__all__ = ["with_front"]


def with_front(reference: Candidate, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return the candidates, each told whether it is on the front.

    One is off it when another, or the reference, is at least as good in quality, time of a call, rows a second, size
    and memory, and better in one of them. What was not measured throughout is not on it.
    """
    points = {each.name: _costs(each, reference) for each in (reference, *candidates)}
    measured = {name: costs for name, costs in points.items() if costs is not None}

    def best_at_something(name: str) -> bool:
        mine = measured.get(name)
        return mine is not None and not any(_dominates(other, mine) for other in measured.values())

    return tuple(replace(each, on_front=best_at_something(each.name)) for each in candidates)


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def _costs(candidate: Candidate, reference: Candidate) -> tuple[float, ...] | None:
    """Return what is to be small, each beside the reference."""
    latency, throughput = _ratio(candidate.latency), _ratio(candidate.throughput)
    if candidate is reference:
        latency = throughput = 1.0
    if latency is None or throughput is None or not candidate.size_bytes or not candidate.memory_bytes:
        return None
    return (_loss(candidate), latency, throughput, float(candidate.size_bytes), float(candidate.memory_bytes))


def _ratio(speed: Speed | None) -> float | None:
    return None if speed is None else speed.timing.ratio.estimate


def _loss(candidate: Candidate) -> float:
    quality = candidate.quality
    if quality is None:
        return 0.0
    if quality.correct is not None:
        return -float(quality.correct)
    if quality.loss is not None:
        return quality.loss
    return 0.0 if quality.cosine is None else -quality.cosine.estimate
