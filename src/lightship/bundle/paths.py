"""Paths inside a bundle: a small grammar, so that a path means one file on every system and nothing in a shell.

A path is one to sixteen parts joined by ``/``. A part is 1 to 128 of ``A-Z a-z 0-9 . _ + -`` and does not start with
``.``, ``+`` or ``-``. So ``..``, ``.``, empty parts, backslashes, drive letters, control characters and Unicode twins
cannot be written at all. What a grammar cannot say, ``check_tree`` does: no twins that differ only in case, and no
path that is a file and a folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from lightship.bundle.document import take_text
from lightship.errors import BundleRefused
from lightship.types import Json

__all__ = ["MAX_PARTS", "MAX_PATH_CHARS", "check_tree", "take_path"]

MAX_PATH_CHARS = 255
MAX_PARTS = 16
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}")


def take_path(value: Json, *, at: str, under: tuple[str, ...]) -> str:
    """Return ``value`` if it is a path below one of the folders ``under``, e.g. ``("golden",)``.

    Raises:
        BundleRefused: it is not.
    """
    text = take_text(value, at=at, max_chars=MAX_PATH_CHARS)
    parts = text.split("/")
    if len(parts) > MAX_PARTS or not all(_PART.fullmatch(part) for part in parts):
        raise BundleRefused(
            f"{at} must be a relative path of at most {MAX_PARTS} parts, each of A-Z, a-z, 0-9, '.', '_', '+', '-' and "
            f"none starting with '.', '+' or '-'. Got {text!r}."
        )
    if len(parts) < 2 or parts[0] not in under:
        raise BundleRefused(f"{at} must lie in {' or '.join(f'{folder}/' for folder in under)}. Got {text!r}.")
    return text


def check_tree(paths: Iterable[str], *, at: str) -> None:
    """Check that ``paths`` can be files of one tree on a file system that does not tell A from a.

    Raises:
        BundleRefused: a path is there twice, differs from another only in case, or is a file and a folder.
    """
    spelled: dict[str, tuple[str, bool]] = {}
    for path in paths:
        parts = path.split("/")
        for count in range(1, len(parts) + 1):
            here = ("/".join(parts[:count]), count == len(parts))
            known = spelled.setdefault(here[0].lower(), here)
            # Files may share a folder of one spelling; nothing else may share a place.
            if known is not here and (known != here or here[1]):
                raise BundleRefused(f"{at}: {path!r} and {known[0]!r} cannot both stand in one folder tree.")
