"""Moments as text."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightship.errors import InvalidInput
from lightship.registry.moments import moment, stamp

AWARE = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=9)), timezone(-timedelta(hours=3))]),
                     min_value=datetime(1000, 1, 2), max_value=datetime(9999, 12, 30))  # fmt: skip


@given(AWARE, AWARE)
def test_text_order_is_time_order(first, second):
    """Two moments compare as their texts do, whatever zone they were given in."""
    assert (first < second) == (stamp(first) < stamp(second))


@pytest.mark.parametrize(
    ("given_as", "text"),
    [
        ("2026-03-01", "2026-03-01T23:59:59.999999Z"),
        (date(2026, 3, 1), "2026-03-01T23:59:59.999999Z"),
        ("2026-03-01T12:00:00Z", "2026-03-01T12:00:00.000000Z"),
        ("2026-03-01t12:00z", "2026-03-01T12:00:00.000000Z"),
        ("2026-03-01 12:00:00.25+02:00", "2026-03-01T10:00:00.250000Z"),
        (datetime(2026, 3, 1, 12, tzinfo=UTC), "2026-03-01T12:00:00.000000Z"),
    ],
)
def test_people_may_write_a_moment_in_several_ways(given_as, text):
    """A date alone is its end; a zone is turned into UTC."""
    assert moment(given_as) == text


@pytest.mark.parametrize("text", ["", "yesterday", "2026-03-01T12:00:00", "2026-02-30", "20260301", "2026-W09-7",
                                  "2026-03-01T25:00:00Z", "2026-03-01T12:00:00+99:00", "9" * 10_000])  # fmt: skip
def test_what_is_no_clear_moment_is_refused(text):
    """Text without a zone names another moment on each machine, so it is refused."""
    with pytest.raises(InvalidInput, match="A time must be a date"):
        moment(text)


def test_a_datetime_without_a_zone_is_refused():
    """It would mean another moment on each machine."""
    with pytest.raises(InvalidInput, match="must have a zone"):
        stamp(datetime(2026, 3, 1))
