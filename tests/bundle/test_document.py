"""Hostile JSON is refused with its reason, and never takes the program down."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightship.bundle.document import (
    MAX_INTEGER,
    parse_document,
    plain_json,
    take_int,
    take_list,
    take_name,
    take_object,
    take_text,
    take_time,
)
from lightship.errors import BundleRefused


def parse(data: bytes, *, floats: bool = False) -> object:
    """Parse with the limits of the tests."""
    return parse_document(data, what="doc", max_bytes=1 << 20, floats=floats)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is not UTF-8 JSON"),
        (b"{", "is not UTF-8 JSON"),
        (b"\xff", "is not UTF-8 JSON"),
        (b"\xef\xbb\xbf{}", "is not UTF-8 JSON"),
        ("{}".encode("utf-16"), "is not UTF-8 JSON"),
        (b"{} {}", "is not UTF-8 JSON"),
        (b'{"a":1,"a":2}', "has the key 'a' twice"),
        (b'{"a":{"b":1,"\\u0062":2}}', "has the key 'b' twice"),
        (b"1.0", "may hold no floats"),
        (b"1e3", "may hold no floats"),
        (b"NaN", "NaN, which is not JSON"),
        (b"-Infinity", "-Infinity, which is not JSON"),
        (b"9007199254740992", "integers up to 2\\*\\*53 - 1"),
        (b"9" * 5000, "is not UTF-8 JSON"),
        (b'"\\ud800"', "half of a surrogate pair"),
        (b'{"\\udfff":1}', "half of a surrogate pair"),
        (b"[" * 33 + b"]" * 33, "nest at most 32"),
        (b"[" * 200_000 + b"]" * 200_000, "nest at most 32"),
        (b" " * ((1 << 20) + 1), "may have at most 1,048,576 bytes"),
    ],
)
def test_hostile_documents_are_refused(data, reason):
    """Each trick is named."""
    with pytest.raises(BundleRefused, match=reason):
        parse(data)


def test_limits_themselves_pass():
    """The largest integer and the deepest nesting that are allowed are allowed."""
    assert parse(str(MAX_INTEGER).encode()) == MAX_INTEGER
    assert parse(b"[" * 32 + b"]" * 32)


def test_floats_pass_where_they_may_and_stay_floats():
    """Evidence keeps 5.0 a float; a number beyond a double is refused."""
    assert parse(b"[5.0,1e-06]", floats=True) == [5.0, 1e-06]
    with pytest.raises(BundleRefused, match="too large for a double"):
        parse(b"1e999", floats=True)


@settings(deadline=None)  # the machine may be busy with other things
@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(data):
    """No bytes lead to another error than a refusal."""
    with contextlib.suppress(BundleRefused):
        parse(data, floats=True)


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None)  # the machine may be busy with other things
@given(_json)
def test_what_json_can_say_is_read_back(value):
    """Parsing loses nothing."""
    assert parse(json.dumps(value).encode()) == value
    assert plain_json(value) == value


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: take_object({"a": 1, "b": 2}, ("a",), at="x"), "x has the unknown key 'b'. Known: a"),
        (lambda: take_object({}, ("a",), at="x"), "x lacks the key 'a'"),
        (lambda: take_object([], ("a",), at="x"), "x must be an object. Got a list"),
        (lambda: take_list({}, at="x", max_items=1), "x must be a list. Got an object"),
        (lambda: take_list([1, 2], at="x", max_items=1), "x must have 0 to 1 items. Got 2"),
        (lambda: take_text(None, at="x"), "x must be a string. Got null"),
        (lambda: take_text("", at="x"), "x must have 1 to 1000 characters"),
        (lambda: take_text("a\nb", at="x"), "x must be one line"),
        (lambda: take_text("a\u2028b", at="x"), "x must be one line"),
        (lambda: take_text("a\x9bb", at="x"), "x must be one line"),
        (lambda: take_int(True, at="x"), "x must be an integer"),
        (lambda: take_int(-1, at="x"), "x must be an integer"),
        (lambda: take_int("1", at="x"), "x must be an integer"),
        (lambda: take_name("A", at="x"), "x must be a name"),
        (lambda: take_name("a b", at="x"), "x must be a name"),
        (lambda: take_name("a\n", at="x"), "x must be a name"),
        (lambda: take_name("$(touch canary)", at="x"), "x must be a name"),
        (lambda: take_name("-rf", at="x"), "x must be a name"),
        (lambda: take_time("2026-01-31", at="x"), "x must be an RFC 3339 time"),
        (lambda: take_time("2026-01-31T12:00:00", at="x"), "x must be an RFC 3339 time"),
        (lambda: take_time("2026-02-31T12:00:00Z", at="x"), "x must be an RFC 3339 time"),
        (lambda: take_time("2026-01-31T12:00:00Z\n", at="x"), "x must be an RFC 3339 time"),
    ],
)
def test_values_of_the_wrong_kind_are_refused_at_their_place(call, reason):
    """A refusal says where, what was allowed and what came."""
    with pytest.raises(BundleRefused, match=reason):
        call()


@pytest.mark.parametrize(
    "text", ["2026-01-31T12:00:00Z", "2026-01-31T12:00:00.123456+00:00", "2026-01-31T12:00:00-05:30"]
)
def test_times_with_a_zone_pass(text):
    """What ``datetime.isoformat`` writes for an aware time is accepted."""
    assert take_time(text, at="x") == text
