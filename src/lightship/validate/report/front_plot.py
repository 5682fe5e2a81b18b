"""The front: quality with its interval against speed, one mark a way to run the model, its area the size of the graph.

Names stand beside the chosen one, the reference and, where they are few, the front; all others carry the number that
they have in the table. A variant that is far below the rest would press all others into one line: it is drawn at the
lower edge as a triangle, and the description says its value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lightship.bundle.manifest import REFERENCE
from lightship.types import Verdict
from lightship.validate.report.facts import VariantFacts
from lightship.validate.report.numerals import milliseconds, per_second, percent_range, share_of, size
from lightship.validate.report.svg import (
    Box,
    Mark,
    Scale,
    element,
    log_ticks,
    nice_ticks,
    picture,
    place_labels,
    shorten,
    text_width,
)

__all__ = ["AXES", "SPEEDS", "Axis", "front_plot", "numbered", "plotted", "state_of"]

_FONT = 11.0
_SMALL = 9.5
_LINE = 13.0
_MOST_NAMES = 4  # with more, only the chosen one and the reference have names: a crowd of names hides the marks
_LOG_FROM = 8.0  # the slowest over the quickest: beyond it a straight scale crowds the quick ones
_SMALLEST, _LARGEST = 3.6, 10.0  # radii
_LOW = 240.0  # the height of a front against what is looked at second


def _short_number(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e4 else f"{value:g}"


def _bytes(value: float) -> str:
    return size(int(value))


def _byte_tick(value: float) -> str:
    for power, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= power:
            return f"{value / power:g} {unit}"
    return f"{value:g}"


@dataclass(frozen=True, slots=True)
class Axis:
    """What a front is drawn against.

    Attributes:
        value: of a variant; ``None``: not measured.
        words: a value with its unit, for those who do not see the drawing.
        tick: a value at the axis.
        more_is_better: otherwise less is.
        height: of the drawing.
    """

    name: str
    title: str
    label: str
    value: Callable[[VariantFacts], float | None]
    words: Callable[[float], str]
    tick: Callable[[float], str]
    more_is_better: bool
    height: float = 320.0


AXES = (
    Axis(
        "latency-plot",
        "latency",
        "Latency p50, ms (less is better)",
        lambda v: v.latency_p50_ms,
        milliseconds,
        _short_number,
        False,
    ),
    Axis(
        "throughput-plot",
        "throughput",
        "Rows a second (more is better)",
        lambda v: v.throughput,
        per_second,
        _short_number,
        True,
    ),
    Axis(
        "size-plot",
        "size",
        "Size of the graph (less is better)",
        lambda v: v.size_bytes or None,
        _bytes,
        _byte_tick,
        False,
        _LOW,
    ),
    Axis(
        "memory-plot",
        "memory",
        "Peak memory (less is better)",
        lambda v: v.memory_bytes,
        _bytes,
        _byte_tick,
        False,
        _LOW,
    ),
)
"""What a front is drawn against, in the order to show."""

SPEEDS = AXES[:2]


def state_of(variant: VariantFacts) -> str:
    """Return how a variant is drawn: ``chosen``, ``base`` (the reference), ``front``, ``kept`` or ``dropped``."""
    if variant.chosen:
        return "chosen"
    if variant.name == REFERENCE:
        return "base"
    if variant.on_front and variant.verdict is not Verdict.FAILED:
        return "front"
    return "kept" if variant.verdict is Verdict.PASSED else "dropped"


_RANK = {state: rank for rank, state in enumerate(("chosen", "base", "front", "kept", "dropped"))}


def numbered(variants: Sequence[VariantFacts]) -> tuple[tuple[int, VariantFacts], ...]:
    """Return the variants in the order to show, each with its number: chosen, reference, front, then the dropped."""
    order = sorted(variants, key=lambda one: _RANK[state_of(one)])
    return tuple(enumerate(order, start=1))


def plotted(variant: VariantFacts, axis: Axis) -> bool:
    """Tell whether the variant has both a quality and a place on the axis."""
    across, quality = axis.value(variant), variant.quality
    if across is None or quality is None or across <= 0:
        return False
    return all(math.isfinite(value) for value in (across, quality.estimate, quality.low, quality.high))


def front_plot(variants: Sequence[VariantFacts], axis: Axis, *, measure: str, chosen_word: str) -> Markup | None:
    """Draw quality over ``axis``; ``None`` when fewer than one variant has both.

    Args:
        variants: of the report; those that were not measured are left out.
        measure: what the quality is, e.g. ``Accuracy``.
        chosen_word: what the chosen one is called: ``chosen`` in a release, ``candidate`` in a refusal.
    """
    drawn = [(number, one) for number, one in numbered(variants) if plotted(one, axis)]
    if not drawn:
        return None
    return _Front(
        [(number, one, axis.value(one) or 0.0) for number, one in drawn], axis, measure, chosen_word
    ).picture()


class _Front:
    def __init__(
        self, drawn: Sequence[tuple[int, VariantFacts, float]], axis: Axis, measure: str, chosen_word: str
    ) -> None:
        self._drawn, self._axis, self._measure, self._word = drawn, axis, measure, chosen_word
        self._width, self._height = 360.0, axis.height
        self._frame = Box(48, 26, self._width - 14, self._height - 42)
        self._across, self._x = self._x_scale()
        self._up, self._y = self._y_scale()
        self._largest = max(one.size_bytes for _, one, _ in drawn) or 1

    def picture(self) -> Markup:
        frame, axis = self._frame, self._axis
        marks = [self._mark(number, one, value) for number, one, value in self._drawn]
        return picture(
            self._grid(),
            element("text", _axis_title(self._measure), x=0, y=11, class_="axis-name"),
            element("text", axis.label, x=frame.right, y=self._height - 6, class_="axis-name end"),
            self._staircase(),
            *reversed(marks),  # the chosen one last, on top
            *self._labels(),
            name=axis.name,
            title=f"{self._measure} and {axis.title} of the variants",
            description=". ".join(self._words(one, value) for _, one, value in self._drawn[:40]),
            width=self._width,
            height=self._height,
        )

    def _words(self, one: VariantFacts, value: float) -> str:
        mark = f" ({self._word})" if one.chosen else ""
        quality = one.quality
        shown = f"{share_of(quality.estimate)}, interval {percent_range(quality)}" if quality else ""
        return f"{one.name}{mark}: {self._measure.lower()} {shown}, {self._axis.words(value)}"

    def _x_scale(self) -> tuple[tuple[float, ...], Callable[[float], float]]:
        values = [value for _, _, value in self._drawn]
        left, right = self._frame.left + 8, self._frame.right - 10
        if max(values) / min(values) >= _LOG_FROM:
            ticks = log_ticks(min(values), max(values))
            line = Scale(math.log10(ticks[0]), math.log10(ticks[-1]), left, right)
            return ticks, lambda value: line(math.log10(value))
        ticks = nice_ticks(0, max(values) * 1.03, about=6)
        return ticks, Scale(ticks[0], ticks[-1], left, right)

    def _y_scale(self) -> tuple[tuple[float, ...], Scale]:
        """The scale of those that matter; what lies far below them is put at the lower edge."""
        near = [
            one.quality for _, one, _ in self._drawn if one.quality and state_of(one) in ("chosen", "base", "front")
        ]
        every = [one.quality for _, one, _ in self._drawn if one.quality]
        near = near or every
        low, high = min(each.low for each in near), max(each.high for each in every)
        room = max(high - low, 0.004)
        low = min([low, *(each.low for each in every if each.estimate >= low - room)])
        least = -1.0 if low < 0 else 0.0
        up = [tick for tick in nice_ticks(max(least, low - 0.05 * room), min(1, high + 0.02 * room)) if tick <= 1]
        up = up if len(up) > 1 else [up[0] - 0.1, *up]
        return tuple(up), Scale(up[0], max(up[-1], high), self._frame.bottom, self._frame.top)

    def _is_below(self, one: VariantFacts) -> bool:
        return one.quality is not None and one.quality.estimate < self._y.low

    def _place(self, one: VariantFacts, value: float) -> Mark:
        quality = one.quality
        assert quality is not None  # noqa: S101 - only plotted ones are drawn
        if self._is_below(one):
            edge = self._frame.bottom - 4
            return Mark(self._x(value), edge, edge, edge)
        low, reach = max(quality.low, self._y.low), max(7.0, self._radius(one) * (1.2 if one.chosen else 1.0))
        return Mark(self._x(value), self._y(quality.estimate), self._y(quality.high), self._y(low), reach)

    def _radius(self, one: VariantFacts) -> float:
        return max(_SMALLEST, _LARGEST * math.sqrt(one.size_bytes / self._largest))

    def _mark(self, number: int, one: VariantFacts, value: float) -> Markup:
        at, state = self._place(one, value), state_of(one)
        radius = self._radius(one)
        x, y = at.x, at.y
        title = element("title", f"{number}. {self._words(one, value)}. {one.reason}")
        if self._is_below(one):
            shape = element("path", d=f"M{x - 5:.2f} {y - 5:.2f}h10l-5 8z", class_="mark")
            return element("g", title, shape, class_=state)
        whisker = f"M{x:.2f} {at.top:.2f}V{at.bottom:.2f}M{x - 3:.2f} {at.top:.2f}h6M{x - 3:.2f} {at.bottom:.2f}h6"
        if state == "chosen":
            reach = radius * 1.2
            shape = element("path", d=f"M{x:.2f} {y - reach:.2f}l{reach:.2f} {reach:.2f}l-{reach:.2f} {reach:.2f}l-{reach:.2f} -{reach:.2f}z", class_="mark")  # fmt: skip  # noqa: E501
        elif state == "base":
            side = radius * 1.7
            shape = element("rect", x=x - side / 2, y=y - side / 2, width=side, height=side, class_="mark")
        else:
            shape = element("circle", cx=x, cy=y, r=radius, class_="mark")
        return element("g", title, element("path", d=whisker, class_="whisker"), shape, class_=state)

    def _staircase(self) -> Markup:
        """Join those that no other drawn one beats in both; between them nothing better was found."""
        points = [
            (value, one.quality.estimate) for _, one, value in self._drawn if one.quality and not self._is_below(one)
        ]
        best: list[tuple[float, float]] = []
        for value, quality in sorted(points, key=lambda p: (-p[0] if self._axis.more_is_better else p[0], -p[1])):
            if not best or quality > best[-1][1]:
                best.append((value, quality))
        if len(best) < 2:
            return Markup()
        path = f"M{self._x(best[0][0]):.2f} {self._y(best[0][1]):.2f}"
        for value, quality in best[1:]:
            path += f"H{self._x(value):.2f}V{self._y(quality):.2f}"
        return element("path", d=path, class_="staircase", aria_hidden="true")

    def _labels(self) -> list[Markup]:
        named = [each for each in self._drawn if state_of(each[1]) in ("chosen", "base", "front")]
        if len(named) > _MOST_NAMES:
            named = [each for each in named if state_of(each[1]) != "front"]
        known = {number for number, _, _ in named}
        rest = [each for each in self._drawn if each[0] not in known]
        ordered = [*named, *rest]
        texts = [
            f"{number} {shorten(one.name, 112, _FONT)}" if number in known else str(number)
            for number, one, _ in ordered
        ]
        fonts = [_FONT if number in known else _SMALL for number, _, _ in ordered]
        marks = [self._place(one, value) for _, one, value in ordered]
        sizes = [
            (text_width(text, font, bold=one.chosen), _LINE if font == _FONT else 10.5)
            for text, font, (_, one, _) in zip(texts, fonts, ordered, strict=True)
        ]
        boxes = place_labels(marks, sizes, frame=self._frame)
        drawn = []
        for (_, one, _), text, font, mark, box in zip(ordered, texts, fonts, marks, boxes, strict=True):
            leader = _leader(mark, box)
            # The number of a dropped one far from its mark is noise; pointing at the mark says it too.
            if state_of(one) != "dropped" or not leader:
                drawn.append(element("g", leader, _label(text, mark, box, font), class_=state_of(one)))
        return drawn

    def _grid(self) -> Markup:
        frame, parts = self._frame, []
        for tick in self._up:
            at = self._y(tick)
            parts.append(element("path", d=f"M{frame.left:.2f} {at:.2f}H{frame.right:.2f}", class_="grid"))
            shown = f"{tick * 100:g}" if _in_percent(self._measure) else f"{tick:g}"
            parts.append(element("text", shown, x=frame.left - 6, y=at + 4, class_="tick end"))
        for tick in self._across:
            at = self._x(tick)
            parts.append(element("path", d=f"M{at:.2f} {frame.top:.2f}V{frame.bottom:.2f}", class_="grid"))
            parts.append(element("text", self._axis.tick(tick), x=at, y=frame.bottom + 15, class_="tick middle"))
        return element("g", *parts, aria_hidden="true")


def _axis_title(measure: str) -> str:
    return f"{measure}, %" if _in_percent(measure) else measure


def _in_percent(measure: str) -> bool:
    return measure != "Cosine"


def _label(text: str, mark: Mark, box: Box, font: float) -> Markup:
    """The text in its box, anchored on the side of the mark: there it is exact, whatever the font's true width."""
    small = {} if font == _FONT else {"font_size": font}
    if box.left >= mark.x:
        return element("text", text, x=box.left, y=box.bottom - 3, class_="label", **small)
    if box.right <= mark.x:
        return element("text", text, x=box.right, y=box.bottom - 3, class_="label end", **small)
    return element("text", text, x=(box.left + box.right) / 2, y=box.bottom - 3, class_="label middle", **small)


def _leader(mark: Mark, box: Box) -> Markup:
    """A thin line from a mark to a label that had to move away from it."""
    near_x = min(max(mark.x, box.left), box.right)
    near_y = min(max(mark.y, box.top), box.bottom)
    distance = math.hypot(near_x - mark.x, near_y - mark.y)
    if distance < mark.radius + 9 or mark.distance(box) < 5:  # beside the point, or at an end of its interval
        return Markup()
    start = (mark.radius - 1) / distance
    from_x, from_y = mark.x + (near_x - mark.x) * start, mark.y + (near_y - mark.y) * start
    return element("path", d=f"M{from_x:.2f} {from_y:.2f}L{near_x:.2f} {near_y:.2f}", class_="leader")
