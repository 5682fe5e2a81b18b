"""The name of exact bytes: ``sha256:`` and 64 lowercase hex digits.

A digest that came from outside is text until ``Digest.parse`` has taken it; only then may it become part of a path.
"""

from __future__ import annotations

import re
from typing import Final

from lightship.data.files import sha256_hex
from lightship.errors import InvalidInput

__all__ = ["HEX_PATTERN", "Digest"]

HEX_PATTERN: Final = re.compile(r"[0-9a-f]{64}")
_PATTERN = re.compile(r"sha256:[0-9a-f]{64}")


class Digest(str):
    """A checked digest. It is a string, so it prints, compares and serializes as one."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Return ``text`` as a digest.

        Raises:
            InvalidInput: it is not ``sha256:`` and 64 lowercase hex digits.
        """
        # fullmatch, because `$` would let a trailing newline through.
        if not _PATTERN.fullmatch(text):
            raise InvalidInput(f"A digest must be 'sha256:' and 64 lowercase hex digits. Got {text[:100]!r}.")
        return cls(text)

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """Return the digest of ``data``."""
        return cls("sha256:" + sha256_hex(data))

    @property
    def hex(self) -> str:
        """The 64 hex digits."""
        return self[7:]
