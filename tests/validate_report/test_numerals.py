"""Numbers read as a person would write them."""

from __future__ import annotations

import math

import pytest

from lightship.types import Interval
from lightship.validate.report import numerals

GAP = "\u202f"


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.9812, f"98.1{GAP}%"),
        (1.0, f"100{GAP}%"),
        (0.0, f"0{GAP}%"),
        (0.99996, f"99.996{GAP}%"),
        (0.9999, f"99.99{GAP}%"),
        (0.0001, f"0.01{GAP}%"),
        (0.9999999, f">99.999{GAP}%"),
        (1e-9, f"<0.001{GAP}%"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_almost_all_is_never_shown_as_all(share: float | None, text: str) -> None:
    """Rounding keeps 100 % for one, and 0 % for zero."""
    assert numerals.percent(share) == text


@pytest.mark.parametrize(
    ("value_ms", "text"),
    [
        (0.1824, "0.182"),
        (1.8249, "1.82"),
        (18.25, "18.2"),
        (182.4, "182"),
        (9.996, "10.0"),
        (1824.0, "1,824"),
        (0.0, "0"),
    ],
)
def test_times_have_three_significant_digits(value_ms: float, text: str) -> None:
    """Small and large times are told with the same care."""
    assert numerals.milliseconds(value_ms) == f"{text}{GAP}ms"


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(12, "12 B"), (439_812, "440 kB"), (999_999, "1.00 MB"), (1_687_340, "1.69 MB"), (7_200_000_000, "7.20 GB")],
)
def test_sizes_have_decimal_units(size_bytes: int, text: str) -> None:
    """Units are powers of a thousand, as on a disk's box."""
    assert numerals.size(size_bytes) == text.replace(" ", GAP)


def test_intervals_name_their_unit_once() -> None:
    """Limits of shares and of ratios read as one range."""
    assert numerals.percent_range(Interval(0.98, 0.972, 0.988, 0.95, 500)) == f"97.2–98.8{GAP}%"
    assert numerals.times_range(Interval(1.42, 1.38, 1.47, 0.95, 100)) == "1.38–1.47×"
    assert numerals.times_range(Interval(1.42, math.nan, 1.47, 0.95, 100)) == "–"


def test_days_are_spelled_out_in_utc() -> None:
    """A time with an offset becomes UTC; what is no time stays as it is."""
    assert numerals.day("2026-11-22T03:15:41+08:00") == "21 November 2026, 19:15 UTC"
    assert numerals.day("yesterday") == "yesterday"
