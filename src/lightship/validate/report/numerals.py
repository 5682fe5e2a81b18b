"""Numbers as people read them: 0.9812 becomes ``98.1 %``, 0.000182 s never appears, NaN becomes a dash.

Rounding never turns "almost" into "all": a share below one is not shown as 100 %, one above zero not as 0 %.
A narrow no-break space stands between number and unit, so that a line never ends between them.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

from lightship.types import Interval, Json

__all__ = [
    "DASH",
    "count",
    "day",
    "level",
    "loss",
    "milliseconds",
    "per_second",
    "percent",
    "percent_range",
    "plain",
    "points",
    "points_range",
    "quality",
    "quality_range",
    "rate",
    "share_of",
    "size",
    "times",
    "times_range",
    "to_percent",
]

DASH = "–"
_GAP = "\u202f"  # narrow no-break space


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def to_percent(share: float) -> str:
    """Return the digits of a share in percent, e.g. ``98.1``; more of them where fewer would say 0 or 100."""
    for digits in (1, 2, 3):
        text = f"{share * 100:.{digits}f}"
        if 0 < float(text) < 100:
            return text
    return "0" if share <= 0 else "100" if share >= 1 else "<0.001" if share < 0.5 else ">99.999"


def percent(share: float | None) -> str:
    """Return a share as ``98.1 %``."""
    return f"{to_percent(share)}{_GAP}%" if share is not None and _known(share) else DASH


def percent_range(value: Interval | None) -> str:
    """Return the limits of an interval of shares as ``97.2–98.8 %``."""
    if value is None or not (_known(value.low) and _known(value.high)):
        return DASH
    return f"{to_percent(value.low)}–{to_percent(value.high)}{_GAP}%"


def _significant(value: float, digits: int = 3) -> str:
    if value == 0:
        return "0"
    # The exponent after rounding: 9.996 has one digit before the point, but is written 10.0.
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def points(share: float) -> str:
    """Return a difference of two shares in points: ``−0.50``."""
    return _signed(share) if _known(share) else DASH


def points_range(value: Interval) -> str:
    """Return the limits of a difference of two shares in points: ``−0.94 to +0.12``, or ``at least −0.94``."""
    if not (_known(value.low) and _known(value.high)):
        return DASH
    if value.high >= 1:  # a bound on one side
        return f"at least {_signed(value.low)}"
    return f"{_signed(value.low)} to {_signed(value.high)}"


def _signed(share: float) -> str:
    """Percent with a sign that is as wide as a plus."""
    text = f"{100 * share:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def loss(value: float) -> str:
    """Return a loss with three significant digits, so that a column of them can be compared."""
    return _significant(value) if _known(value) else DASH


def milliseconds(value_ms: float | None) -> str:
    """Return a time in milliseconds with three significant digits: ``0.182 ms``, ``18.2 ms``, ``1,820 ms``."""
    return f"{_significant(value_ms)}{_GAP}ms" if value_ms is not None and _known(value_ms) else DASH


def times(ratio: float | None) -> str:
    """Return a ratio as ``1.42×``."""
    return f"{_significant(ratio)}×" if ratio is not None and _known(ratio) else DASH


def times_range(value: Interval | None) -> str:
    """Return the limits of an interval of ratios as ``1.38–1.47×``."""
    if value is None or not (_known(value.low) and _known(value.high)):
        return DASH
    return f"{_significant(value.low)}–{_significant(value.high)}×"


def per_second(rows: float | None) -> str:
    """Return a throughput with three significant digits: ``1,820/s``."""
    return f"{_significant(float(f'{rows:.3g}'))}/s" if rows is not None and _known(rows) else DASH


def share_of(share: float) -> str:
    """Return a share as percent, or as it is where percent make no sense."""
    return percent(share) if 0 <= share <= 1 else _significant(share)


def quality(value: Interval | None, unit: str) -> str:
    """Return a quality in its own unit: shares in percent, cosines as they are, decibels with one decimal."""
    if value is None or not _known(value.estimate):
        return DASH
    if unit == "share":
        return percent(value.estimate)
    if unit == "number":
        return _significant(value.estimate)
    return f"{value.estimate:.1f}{_GAP}dB" if unit == "dB" else _cosine(value.estimate)


def quality_range(value: Interval | None, unit: str) -> str:
    """Return the limits of a quality in its own unit."""
    if value is None or not (_known(value.low) and _known(value.high)):
        return DASH
    if unit == "share":
        return percent_range(value)
    if unit == "dB":
        return f"{value.low:.1f}–{value.high:.1f}{_GAP}dB"
    if unit == "number":
        return f"{_significant(value.low)} to {_significant(value.high)}"
    return f"{_cosine(value.low)}–{_cosine(value.high)}"


def _cosine(value: float) -> str:
    """More digits where fewer would say 1."""
    for digits in (3, 4, 5, 6):
        text = f"{value:.{digits}f}"
        if float(text) < 1 or value >= 1:
            return text
    return ">0.999999"


def size(size_bytes: int) -> str:
    """Return a size in bytes as ``438 kB`` or ``1.69 MB`` (decimal units)."""
    if size_bytes < 1000:
        return f"{size_bytes}{_GAP}B"
    value = float(size_bytes)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.5:
            return f"{_significant(value)}{_GAP}{unit}"
    return f"{_significant(value / 1000)}{_GAP}TB"


def rate(value: float) -> str:
    """Return a learning rate with three significant digits, very small ones as ``4.9e-05``."""
    return f"{value:.3g}" if _known(value) else DASH


def level(confidence: float) -> str:
    """Return a confidence as ``95 %``, ``99.5 %`` or ``98.33 %``, never rounded to all."""
    if not _known(confidence):
        return DASH
    shown = round(100 * confidence, 2)
    return f"{shown if shown < 100 else 100 * confidence:g}{_GAP}%"


def count(value: int) -> str:
    """Return a number of things as ``3,000``."""
    return f"{value:,}"


def day(rfc3339: str) -> str:
    """Return an RFC 3339 time as ``22 November 2026, 03:15 UTC``; another text stays as it is."""
    try:
        moment = datetime.fromisoformat(rfc3339)
    except ValueError:
        return rfc3339
    if moment.tzinfo is None:
        return rfc3339
    moment = moment.astimezone(UTC)
    # Month names are spelled out here: strftime would follow the locale of the process.
    month = _MONTHS[moment.month - 1]
    return f"{moment.day} {month} {moment.year}, {moment:%H:%M} UTC"


def plain(value: Json) -> str:
    """Return a measured value for the details of a piece of evidence: as given, floats to six significant digits."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else DASH
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value) if value else "none"
    return str(value)


_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
