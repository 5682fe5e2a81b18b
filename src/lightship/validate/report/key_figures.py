"""The few figures that come first: how much faster, how good, what that cost, how large, what is unproven.

A reader has five seconds for them. So each stands with its interval and what it is measured against, and a figure that
nobody measured is not there, unless its absence is the news.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from lightship.bundle.manifest import REFERENCE
from lightship.types import Interval, Verdict
from lightship.validate.report import numerals
from lightship.validate.report.facts import ReportFacts, VariantFacts
from lightship.validate.report.words import key_quality, missing_of

__all__ = ["KeyFigure", "key_figures"]

_NAMED = 3  # of what is unproven; the rest is counted
_LONGEST = 60  # of a name


@dataclass(frozen=True, slots=True)
class KeyFigure:
    """One figure.

    Attributes:
        words: lines: the interval, and what it is against.
        tone: ``undecided`` where it is a warning; else empty.
        link: the part of the page that says more; else empty.
    """

    name: str
    value: str
    words: tuple[str, ...]
    tone: str = ""
    link: str = ""


def key_figures(facts: ReportFacts) -> tuple[KeyFigure, ...]:
    """Return the figures that come first, in the order to read them."""
    if not facts.variants and key_quality(facts) is None:
        return ()
    chosen = next((one for one in facts.variants if one.chosen), None)
    base = next((one for one in facts.variants if one.name == REFERENCE), None)
    found: list[KeyFigure] = []
    if chosen is not None:
        speeds = [figure for figure in (_latency(chosen, base), _throughput(chosen)) if figure]
        wanted = facts.front.objective if facts.front else {}
        if wanted.get("throughput", 0) > wanted.get("latency", 0):
            speeds.reverse()  # what was asked for comes first
        found += speeds or [KeyFigure("Speed", numerals.DASH, ("not measured",))]
    found += _quality(facts)
    if chosen is not None:
        found.append(_size(chosen, base))
    found.append(_unproven(facts))
    return tuple(found)


def _latency(chosen: VariantFacts, base: VariantFacts | None) -> KeyFigure | None:
    if chosen.latency_p50_ms is None and chosen.speedup is None:
        return None
    own = numerals.milliseconds(chosen.latency_p50_ms)
    if chosen.speedup is not None:
        there = base.latency_p50_ms if base else None
        change = f"{numerals.milliseconds(there)} → {own}" if there and own != numerals.DASH else own
        return KeyFigure("Speed", numerals.times(chosen.speedup.estimate), (_range(chosen.speedup), f"{change} a call"))
    if chosen.name == REFERENCE:
        return KeyFigure("Speed", "1×", ("it is the reference", f"{own} a call"))
    return KeyFigure("Latency", own, ("p50 of one call",))


def _throughput(chosen: VariantFacts) -> KeyFigure | None:
    if chosen.throughput is None:
        return None
    rate, gain = numerals.per_second(chosen.throughput), chosen.throughput_gain
    if gain is None:
        return KeyFigure("Throughput", rate, ("rows, at its best batch",))
    return KeyFigure("Throughput", numerals.times(gain.estimate), (_range(gain), f"{rate} at its best batch"))


def _quality(facts: ReportFacts) -> Iterator[KeyFigure]:
    key = key_quality(facts)
    chosen = next((one for one in facts.variants if one.chosen), None)
    if key is None and facts.front is not None and chosen is not None and chosen.quality is not None:
        unit = "cosine" if facts.front.measure == "Cosine" else "share"
        limits = f"{numerals.quality_range(chosen.quality, unit)} at {numerals.level(chosen.quality.confidence)}"
        words = (limits, f"{chosen.quality.n:,} selection rows")
        yield KeyFigure(facts.front.measure, numerals.quality(chosen.quality, unit), words)
        return
    if key is None:
        yield KeyFigure("Quality", numerals.DASH, ("not judged",), tone="undecided", link="unproven")
        return
    limits = f"{numerals.quality_range(key.value, key.unit)} at {numerals.level(key.value.confidence)}"
    yield KeyFigure(
        key.name,
        numerals.quality(key.value, key.unit),
        (limits, ", ".join(filter(None, (key.against, f"{key.value.n:,} rows")))),
    )
    if facts.cost is not None:
        cost = facts.cost
        limits = f"points; {numerals.points_range(cost)} at {numerals.level(cost.confidence)}"
        worse = any(one.check == "noninferiority" and one.verdict is Verdict.FAILED for one in facts.evidence)
        tone = "failed" if worse else ""
        yield KeyFigure("Accuracy change", numerals.points(cost.estimate), (limits, "against the reference"), tone=tone)
    elif facts.gate_accuracy is None and (broken := _broken(facts)) is not None:
        limits = f"{numerals.percent_range(broken)} at {numerals.level(broken.confidence)}"
        yield KeyFigure("Broken rows", numerals.percent(broken.estimate), (limits, "with quite another answer"))


def _broken(facts: ReportFacts) -> Interval | None:
    return next((value for name, _, value in facts.fidelity if name == "Broken rows"), None)


def _size(chosen: VariantFacts, base: VariantFacts | None) -> KeyFigure:
    words = []
    if base is not None and base.size_bytes and chosen.size_bytes and not base.chosen:
        words.append(f"{numerals.percent(chosen.size_bytes / base.size_bytes)} of the reference")
    if chosen.memory_bytes:
        words.append(f"{numerals.size(chosen.memory_bytes)} of memory")
    shown = numerals.size(chosen.size_bytes) if chosen.size_bytes else numerals.DASH
    return KeyFigure("Size", shown, tuple(words) or ("of the graph",))


def _unproven(facts: ReportFacts) -> KeyFigure:
    missing = [one.short for one in missing_of(facts)]
    if not missing:
        return KeyFigure("Unproven", "Nothing", ("all that this page shows was measured",))
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    named = ", ".join(name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in missing[:_NAMED])
    many = "1 thing" if len(missing) == 1 else f"{len(missing)} things"
    return KeyFigure("Unproven", many, (f"{named}{more}",), tone="undecided", link="unproven")


def _range(value: Interval) -> str:
    if not (math.isfinite(value.low) and math.isfinite(value.high)):
        return "no interval"
    return f"{numerals.times_range(value)} at {numerals.level(value.confidence)}"
