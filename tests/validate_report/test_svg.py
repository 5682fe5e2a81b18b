"""Scales, ticks and labels behave for all values, not only for pretty ones."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightship.validate.report.svg import Box, Mark, element, nice_ticks, place_labels, shorten, text_width


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
@settings(max_examples=200, deadline=None)
def test_ticks_span_the_values_and_are_few(low: float, span: float) -> None:
    """Every value lies between the first and the last tick, and there are neither two nor twenty of them."""
    high = low + span
    if high - low < 1e-9 * abs(low):
        return
    ticks = nice_ticks(low, high)

    slack = (ticks[1] - ticks[0]) * 1e-6
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 8


def test_ticks_of_one_value_stand_around_it() -> None:
    """Nothing divides by zero when all values are equal."""
    ticks = nice_ticks(1.0, 1.0)

    assert ticks[0] < 1.0 < ticks[-1]


@pytest.mark.parametrize("spread", [0.0, 2.0, 15.0, 40.0])
def test_labels_of_eight_marks_keep_apart(spread: float) -> None:
    """No two labels share a place and none leaves the frame, even when all marks are in one place."""
    frame = Box(40, 20, 370, 270)
    marks = [Mark(190 + spread * (i % 3 - 1), 120 + spread * (i // 3 - 1), 100, 140) for i in range(8)]

    boxes = place_labels(marks, [(110.0, 13.0)] * 8, frame=frame)

    assert all(one.overlap(other) == 0 for one, other in itertools.combinations(boxes, 2))
    assert all(box.outside(frame) < 1e-6 for box in boxes)


def test_elements_escape_their_texts_and_attributes() -> None:
    """Neither a child nor an attribute value ends its element."""
    drawn = str(element("text", "</text><script>", class_='"><b>', x=1.0, y=-0.0001))

    assert drawn == '<text class="&#34;&gt;&lt;b&gt;" x="1" y="0">&lt;/text&gt;&lt;script&gt;</text>'


def test_a_coordinate_that_is_not_finite_is_an_error() -> None:
    """A browser would drop the shape in silence."""
    with pytest.raises(ValueError, match="must be finite"):
        element("circle", cx=math.nan)


@pytest.mark.parametrize("text", ["n" * 200, "猫" * 200, "🐶" * 200, "שלום" * 50, "e" + "\u0301" * 5000])
def test_long_texts_are_cut_to_their_width(text: str) -> None:
    """An ellipsis stands where letters, ideographs, emoji or piles of accents were."""
    cut = shorten(text, 90, 11)

    assert cut.endswith("…")
    assert text_width(cut, 11) <= 90
    assert len(cut) <= 203
