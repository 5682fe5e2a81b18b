"""Small parts to draw with: escaped SVG elements, scales, round ticks, text widths, and labels that keep apart.

Colors are never written here: elements have classes, and the page's style sheet has the colors, for light and dark.
Text widths are estimates (no font is at hand), a little generous, so that what is placed apart here is apart in any
sans-serif font.
Source of the ticks: Heckbert, "Nice numbers for graph labels", Graphics Gems, 1990.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup, escape

__all__ = [
    "Box",
    "Mark",
    "Scale",
    "clean",
    "element",
    "log_ticks",
    "nice_ticks",
    "picture",
    "place_labels",
    "shorten",
    "text_width",
]

# Lone surrogates (a file name that is not UTF-8) cannot be written; control characters and bidirectional overrides make
# a page show something else than it says. Isolates and marks that Arabic or Hebrew text needs stay.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """Return ``text`` with each character that cannot or must not be shown replaced by U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", text)


def element(tag: str, *children: str, **attributes: str | float) -> Markup:
    """Return one SVG element. Children and attribute values are escaped; ``font_size`` becomes ``font-size``."""
    parts = [tag]
    for name, value in attributes.items():
        shown = _coordinate(value) if isinstance(value, int | float) else clean(value)
        parts.append(f'{name.rstrip("_").replace("_", "-")}="{escape(shown)}"')
    inside = Markup("").join(child if isinstance(child, Markup) else escape(clean(child)) for child in children)
    return Markup("<{}>{}</{}>").format(Markup(" ".join(parts)), inside, Markup(tag))  # noqa: S704 (parts are escaped above)


def picture(
    *children: str, name: str, title: str, description: str, width: float, height: float, style: str = ""
) -> Markup:
    """Return a whole drawing as an image with a title and a description for those who do not see it.

    ``name`` is unique in the page; the ids of title and description are made of it.
    """
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", description, id=f"{name}-desc"),
        *children,
        class_=f"plot {name}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
        viewBox=f"0 0 {_coordinate(width)} {_coordinate(height)}",
        style=style or f"max-width:{_coordinate(width * 1.3)}px",
    )


def _coordinate(value: float) -> str:
    """Write a coordinate with at most two decimals, and never NaN: a browser would drop the whole shape in silence."""
    if not math.isfinite(value):
        raise ValueError(f"A coordinate must be finite. Got {value}.")
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


@dataclass(frozen=True, slots=True)
class Scale:
    """A straight line from values to coordinates: ``low`` goes to ``start``, ``high`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the coordinate of ``value``."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def nice_ticks(low: float, high: float, *, about: int = 5) -> tuple[float, ...]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) that span [low, high], about ``about`` of them."""
    if not high > low:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    rough = (high - low) / max(1, about - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    decimals = max(0, -math.floor(math.log10(step)))
    return tuple(round(index * step, decimals) for index in range(first, last + 1))


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Return round numbers (1, 2 or 5 times a power of ten; powers alone over many decades) that span [low, high]."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    start = max((index for index, tick in enumerate(ticks) if tick <= low * 1.0001), default=0)
    end = min((index for index, tick in enumerate(ticks) if tick >= high * 0.9999), default=len(ticks) - 1)
    return tuple(float(f"{tick:g}") for tick in ticks[start : max(end, start + 1) + 1])


def text_width(text: str, font_size: float, *, bold: bool = False) -> float:
    """Return about how wide ``text`` is, in the unit of ``font_size``."""
    return font_size * sum(_em(character) for character in text) * (1.15 if bold else 1)


def _em(character: str) -> float:
    if unicodedata.combining(character) or unicodedata.category(character) in {"Cf", "Me", "Mn"}:
        return 0.0
    if unicodedata.east_asian_width(character) in {"W", "F"}:
        return 1.05
    if character in "iljI.,:;'|!()[]ft ":
        return 0.36
    return 0.72 if character.isupper() or character in "mwMW%@×—" else 0.6


def shorten(text: str, width: float, font_size: float) -> str:
    """Return ``text``, cut with an ellipsis where it would be wider than ``width``."""
    text = clean(text)
    if len(text) <= 500 and text_width(text, font_size) <= width:  # the first test only saves time
        return text
    used, kept = text_width("…", font_size), ""
    for character in text:
        used += text_width(character, font_size)
        if used > width or len(kept) > 200:  # combining marks are not wide, however many
            break
        kept += character
    return kept.rstrip() + "…"


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle on the drawing; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Return the area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)

    def outside(self, frame: Box) -> float:
        """Return the area of this box that is not in ``frame``."""
        return (self.right - self.left) * (self.bottom - self.top) - self.overlap(frame)


@dataclass(frozen=True, slots=True)
class Mark:
    """A point with its interval, to be labeled: centered on (x, y), the interval from ``top`` down to ``bottom``.

    Attributes:
        radius: how far the point reaches, at least that of a small one.
    """

    x: float
    y: float
    top: float
    bottom: float
    radius: float = 7.0

    def boxes(self) -> tuple[Box, Box]:
        """Return what the point covers, and what its interval covers."""
        point = Box(self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius)
        return point, Box(self.x - 3, self.top, self.x + 3, self.bottom)

    def point_distance(self, box: Box) -> float:
        """Return how far the point is from ``box``."""
        return replace(self, top=self.y, bottom=self.y).distance(box)

    def distance(self, box: Box) -> float:
        """Return how far the nearest place of the point or its interval is from ``box``."""
        across = self.x - min(max(self.x, box.left), box.right)
        down = max(0.0, box.top - self.bottom, self.top - box.bottom)
        return math.hypot(across, down)


_SMALL_RADIUS = 7.0  # that the reaches are meant for
_NEAR = 24.0
_DIRECTIONS = ((1, 0), (-1, 0), (1, -1), (1, 1), (-1, -1), (-1, 1), (0, -1), (0, 1))
_REACHES = (9.0, 16.0, 24.0, 34.0, 46.0, 60.0, 76.0, 94.0, 114.0, 136.0)


def place_labels(marks: Sequence[Mark], sizes: Sequence[tuple[float, float]], *, frame: Box) -> tuple[Box, ...]:
    """Return one box of the given (width, height) a label: near its mark, off the other labels and marks, in ``frame``.

    Greedy: the first label gets the best place, so give the most important mark first. Each tries eight directions in
    widening rings, and both ends of its interval, and takes the cheapest: two labels on one another cost most.
    """
    placed: list[Box] = []
    for mark, size in zip(marks, sizes, strict=True):
        candidates = _around(mark, size)
        others = [other for other in marks if other is not mark]
        costs = [_cost(box, mark, placed=placed, others=others, frame=frame) + reach for box, reach in candidates]
        placed.append(candidates[costs.index(min(costs))][0])
    return tuple(placed)


def _around(mark: Mark, size: tuple[float, float]) -> list[tuple[Box, float]]:
    """Places for a label, each with a price that grows with the way from the mark."""
    width, height = size
    above, below, aside = mark.top - 3 - height / 2, mark.bottom + 3 + height / 2, max(0.0, width / 2 - 8)
    centers = [(mark.x, above, 12.0), (mark.x, below, 12.0)]
    centers += [(mark.x + shift, end, 14.0) for end in (above, below) for shift in (-aside, aside)]
    for reach in _REACHES:
        for across, down in _DIRECTIONS:
            away = (reach * 0.75 if across and down else reach) + mark.radius - _SMALL_RADIUS
            centers.append((mark.x + across * (away + width / 2), mark.y + down * (away + height / 2), reach))
    return [(Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2), price) for x, y, price in centers]


def _cost(box: Box, mark: Mark, *, placed: Sequence[Box], others: Sequence[Mark], frame: Box) -> float:
    cost = 100 * (sum(box.overlap(other) for other in placed) + box.outside(frame))
    for other in (mark, *others):
        point, interval = other.boxes()
        cost += 2 * box.overlap(point) + box.overlap(interval)
    # A label must not read as the name of a neighbor; of one in nearly the same place it cannot be kept away.
    neighbors = [other for other in others if math.hypot(other.x - mark.x, other.y - mark.y) > _NEAR]
    if any(other.distance(box) < mark.distance(box) + 4 for other in neighbors):
        cost += 40
    return cost + max(0.0, _NEAR - min((other.point_distance(box) for other in neighbors), default=_NEAR))
