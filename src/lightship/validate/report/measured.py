"""Read what evidence measured: signed JSON of this version or of another one, so nothing in it is taken for granted.

A key that is not there, or holds something else than expected, is ``None``: what cannot be read is not known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from lightship.types import Interval, Json

__all__ = ["interval_of", "items_of", "mapping_of", "number_of", "text_of", "texts_of", "whole_of"]


def mapping_of(value: object, *path: str) -> Mapping[str, Json]:
    """Return the object at ``path`` inside ``value``, empty if there is none."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def items_of(value: object) -> Iterator[Mapping[str, Json]]:
    """Yield the objects of a list."""
    for item in value if isinstance(value, list | tuple) else ():
        if isinstance(item, Mapping):
            yield item


def texts_of(value: object) -> tuple[str, ...]:
    """Return the strings of a list."""
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list | tuple) else ()


def text_of(value: object) -> str:
    """Return a string, empty if it is none."""
    return value if isinstance(value, str) else ""


def number_of(value: object) -> float | None:
    """Return a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def whole_of(value: object) -> int | None:
    """Return a whole number."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def interval_of(value: object) -> Interval | None:
    """Return an interval in its JSON form, if it is one with finite limits."""
    if not isinstance(value, Mapping):
        return None
    found = [number_of(value.get(key)) for key in ("estimate", "low", "high", "confidence")]
    count = whole_of(value.get("n"))
    estimate, low, high, confidence = found
    if estimate is None or low is None or high is None or confidence is None or count is None:
        return None
    return Interval(estimate, low, high, confidence, count)
