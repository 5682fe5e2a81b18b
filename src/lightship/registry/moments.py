"""Moments as text: UTC, RFC 3339, microseconds, ``2026-03-01T12:00:00.000000Z``.

All have the same length, so the order of the texts is the order of the moments.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time

from lightship.errors import InvalidInput

__all__ = ["moment", "now", "stamp"]

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_RFC3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?([Zz]|[+-]\d{2}:\d{2})")


def now() -> datetime:
    """Return the present moment in UTC."""
    return datetime.now(UTC)


def stamp(when: datetime) -> str:
    """Return ``when`` as text.

    Raises:
        InvalidInput: ``when`` has no time zone, so it names a different moment on each machine.
    """
    if when.tzinfo is None:
        raise InvalidInput(f"A time must have a zone, e.g. datetime.now(UTC). Got {when.isoformat()} without one.")
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def moment(value: datetime | date | str) -> str:
    """Return a moment that a person gave, as text. A date alone means the end of that day, UTC.

    Raises:
        InvalidInput: ``value`` is text of another form, or has no time zone.
    """
    if isinstance(value, datetime):
        return stamp(value)
    if isinstance(value, date):
        return stamp(datetime.combine(value, time.max, tzinfo=UTC))
    try:
        if _DATE.fullmatch(value):
            return moment(date.fromisoformat(value))
        if _RFC3339.fullmatch(value):
            return stamp(datetime.fromisoformat(value.upper()))
    except (ValueError, OverflowError):
        pass  # the right form and no such day: the message below fits that too
    raise InvalidInput(
        "A time must be a date such as 2026-03-01 (its end, UTC) or RFC 3339 with a zone such as 2026-03-01T12:00:00Z. "
        f"Got {value[:80]!a}."
    )
