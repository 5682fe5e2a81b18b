"""Read JSON that others wrote: strictly, within limits, and with the place in every refusal.

``parse_document`` turns bytes into JSON values; the ``take_*`` functions turn those into values of a known kind.
All refuse instead of repairing: two readers that repair differently read two documents from the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from lightship.bundle.digest import HEX_PATTERN, Digest
from lightship.errors import BundleRefused, InvalidInput
from lightship.types import Json

__all__ = [
    "MAX_DEPTH",
    "MAX_INTEGER",
    "NAME_PATTERN",
    "parse_document",
    "plain_json",
    "take_digest",
    "take_hex",
    "take_int",
    "take_list",
    "take_mapping",
    "take_name",
    "take_object",
    "take_text",
    "take_time",
]

MAX_DEPTH = 32
"""Objects and lists inside each other; the outermost counts as one."""

MAX_INTEGER = 2**53 - 1
"""The largest integer that every JSON reader holds exactly."""

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""Names of variants, engines, precisions, tasks and checks: safe in a path, a URL and a shell."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # category Cc and the two line separators
_TIME_PATTERN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.ASCII)


def parse_document(data: bytes, *, what: str, max_bytes: int, floats: bool = False) -> Json:
    """Return the JSON value in ``data``; ``what`` names the document in messages.

    Numbers with a fraction or an exponent are refused unless ``floats`` allows them.

    Raises:
        BundleRefused: not UTF-8 JSON, over a limit, a key twice in one object, a float where none may be, NaN.
    """
    if len(data) > max_bytes:
        raise BundleRefused(f"{what} may have at most {max_bytes:,} bytes. Got {len(data):,}.")

    def refuse_number(text: str) -> NoReturn:
        raise BundleRefused(f"{what} may hold no floats; decimals are strings. Got {text[:40]}.")

    def refuse_constant(text: str) -> NoReturn:
        raise BundleRefused(f"{what} holds {text}, which is not JSON.")

    def object_of(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        members = dict(pairs)
        if len(members) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise BundleRefused(f"{what} has the key {twice[:100]!r} twice in one object.")
        return members

    try:
        value: Json = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=object_of,
            parse_constant=refuse_constant,
            parse_float=None if floats else refuse_number,
        )
    except ValueError as exc:  # JSONDecodeError and UnicodeDecodeError are both one
        raise BundleRefused(f"{what} is not UTF-8 JSON: {exc}.") from exc
    except RecursionError as exc:
        raise BundleRefused(f"{what} may nest at most {MAX_DEPTH} deep.") from exc
    _check_tree(value, what=what, depth=1)
    return value


def _check_tree(value: Json, *, what: str, depth: int) -> None:
    """Check what holds for every value of a document: depth, integers, and text that has a UTF-8 form."""
    if isinstance(value, dict | list):
        if depth > MAX_DEPTH:
            raise BundleRefused(f"{what} may nest at most {MAX_DEPTH} deep.")
        for item in value if isinstance(value, list) else (*value.keys(), *value.values()):
            _check_tree(item, what=what, depth=depth + 1)
    elif isinstance(value, str):
        if _SURROGATE.search(value):
            raise BundleRefused(f"{what} holds half of a surrogate pair, which is no text. Got {value[:40]!r}.")
    elif type(value) is int and abs(value) > MAX_INTEGER:
        raise BundleRefused(f"{what} may hold integers up to 2**53 - 1. Got one of {value.bit_length()} bits.")
    elif isinstance(value, float) and value in (float("inf"), float("-inf")):
        raise BundleRefused(f"{what} holds a number that is too large for a double.")


def plain_json(value: Any) -> Any:
    """Return ``value`` with every mapping as a dict and every sequence as a list, which is what JSON writers take."""
    if isinstance(value, Mapping):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain_json(item) for item in value]
    return value


def take_object(value: Json, keys: Collection[str], *, at: str) -> dict[str, Json]:
    """Return ``value`` if it is an object with exactly ``keys``."""
    members = take_mapping(value, at=at)
    if unknown := sorted(members.keys() - set(keys)):
        raise BundleRefused(f"{at} has the unknown key {unknown[0][:100]!r}. Known: {', '.join(sorted(keys))}.")
    if absent := sorted(set(keys) - members.keys()):
        raise BundleRefused(f"{at} lacks the key {absent[0]!r}.")
    return members


def take_mapping(value: Json, *, at: str, max_items: int = 10_000) -> dict[str, Json]:
    """Return ``value`` if it is an object, whatever its keys."""
    if not isinstance(value, dict):
        raise BundleRefused(f"{at} must be an object. Got {_kind(value)}.")
    if len(value) > max_items:
        raise BundleRefused(f"{at} may have at most {max_items:,} members. Got {len(value):,}.")
    return value


def take_list(value: Json, *, at: str, max_items: int, min_items: int = 0) -> list[Json]:
    """Return ``value`` if it is a list within the limits."""
    if not isinstance(value, list):
        raise BundleRefused(f"{at} must be a list. Got {_kind(value)}.")
    if not min_items <= len(value) <= max_items:
        raise BundleRefused(f"{at} must have {min_items:,} to {max_items:,} items. Got {len(value):,}.")
    return value


def take_text(value: Json, *, at: str, max_chars: int = 1000) -> str:
    """Return ``value`` if it is one line of text: 1 to ``max_chars`` characters, none of them a control character."""
    if not isinstance(value, str):
        raise BundleRefused(f"{at} must be a string. Got {_kind(value)}.")
    if not 1 <= len(value) <= max_chars:
        raise BundleRefused(f"{at} must have 1 to {max_chars} characters. Got {len(value):,}.")
    if _CONTROL.search(value):
        raise BundleRefused(f"{at} must be one line without control characters. Got {value[:100]!r}.")
    return value


def take_name(value: Json, *, at: str) -> str:
    """Return ``value`` if it is a name (``NAME_PATTERN``)."""
    if not isinstance(value, str) or not NAME_PATTERN.fullmatch(value):
        raise BundleRefused(
            f"{at} must be a name: 1 to 64 of a-z, 0-9, '.', '_', '-', the first a letter or digit. "
            f"Got {_short(value)}."
        )
    return value


def take_int(value: Json, *, at: str, low: int = 0, high: int = MAX_INTEGER) -> int:
    """Return ``value`` if it is an integer in [``low``, ``high``]; true and false are none."""
    if type(value) is not int or not low <= value <= high:
        raise BundleRefused(f"{at} must be an integer in [{low}, {high}]. Got {_short(value)}.")
    return value


def take_hex(value: Json, *, at: str) -> str:
    """Return ``value`` if it is a SHA-256 as 64 lowercase hex digits."""
    if not isinstance(value, str) or not HEX_PATTERN.fullmatch(value):
        raise BundleRefused(f"{at} must be a SHA-256 as 64 lowercase hex digits. Got {_short(value)}.")
    return value


def take_digest(value: Json, *, at: str) -> Digest:
    """Return ``value`` if it is a digest."""
    try:
        return Digest.parse(value if isinstance(value, str) else repr(value))
    except InvalidInput as exc:
        raise BundleRefused(f"{at}: {exc}") from exc


def take_time(value: Json, *, at: str) -> str:
    """Return ``value`` if it is a time in the form of RFC 3339, with its zone."""
    try:
        if isinstance(value, str) and _TIME_PATTERN.fullmatch(value):
            datetime.fromisoformat(value)
            return value
    except ValueError:
        pass  # the form is right and the date does not exist: refused below like the rest
    raise BundleRefused(f"{at} must be an RFC 3339 time with a zone, e.g. 2026-01-31T12:00:00Z. Got {_short(value)}.")


def _kind(value: Json) -> str:
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value"}
    return names.get(type(value), "a number")


def _short(value: Json) -> str:
    return repr(value)[:100]
