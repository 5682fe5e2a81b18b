"""Labels and the limits on bad rows."""

from __future__ import annotations

import pytest

from lightship.data.rows import BadRow, Dataset, LazyRows, Row, clean_label, refuse_mostly_bad
from lightship.errors import InvalidData


def test_two_spellings_of_one_accent_are_one_label():
    """Composed and decomposed Unicode give the same class."""
    assert clean_label("cafe\u0301") == clean_label("caf\u00e9") == "caf\u00e9"


@pytest.mark.parametrize("text", ["red fox", "7", "狐", "a/b", "Fox"])
def test_ordinary_labels_stay_as_they_are(text):
    """Spaces inside, slashes and capitals belong to the label."""
    assert clean_label(text) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("  ", "empty"),
        (" cat", "space around"),
        ("cat\t", "space around"),
        ("a\nb", "control characters"),
        ("x" * 201, "201 characters"),
        ("\udc80", "not valid Unicode"),
    ],
)
def test_labels_that_hide_a_slip_are_refused(text, why):
    """Nothing is stripped in silence: the reason says what to mend."""
    with pytest.raises(InvalidData, match=why):
        clean_label(text)


def test_lazy_rows_read_only_what_is_asked_for():
    """Names and labels are known without a single read."""
    reads: list[int] = []
    rows = LazyRows(["a", "b", "c"], ["x", "y", "x"], lambda i: reads.append(i) or bytes([i]))
    dataset = Dataset(rows=rows, bad=(), source="test")

    assert (dataset.labels, dataset.ids, dataset.row_labels) == (("x", "y"), ("a", "b", "c"), ("x", "y", "x"))
    assert reads == []
    assert rows[-1] == Row("c", b"\x02", "x")
    assert [row.id for row in rows[1:]] == ["b", "c"]
    assert [row.raw for row in rows] == [b"\x00", b"\x01", b"\x02"]


def test_half_bad_rows_are_allowed_and_more_are_not():
    """The limit is one bad row for each good one, and the message names the first."""
    bad = [BadRow(f"row{i}", "is empty") for i in range(3)]

    refuse_mostly_bad(good=3, bad=bad, source="s")
    with pytest.raises(InvalidData, match=r"3 of 5 rows of s cannot be used.*row0: is empty"):
        refuse_mostly_bad(good=2, bad=bad, source="s")


def test_a_source_without_rows_is_refused():
    """No rows at all is its own message."""
    with pytest.raises(InvalidData, match="s holds no rows"):
        refuse_mostly_bad(good=0, bad=[], source="s")
