"""Digests are parsed once, strictly."""

from __future__ import annotations

import pytest

from lightship.bundle.digest import Digest
from lightship.errors import InvalidInput

GOOD = "sha256:" + "0" * 63 + "a"


def test_digest_of_known_bytes():
    """The digest of ``abc`` is the one in FIPS 180-2."""
    digest = Digest.of(b"abc")

    assert digest == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert Digest.parse(digest).hex == digest[7:]


@pytest.mark.parametrize(
    "text",
    [
        "",
        GOOD[7:],
        GOOD.upper(),
        GOOD[:-1] + "A",
        GOOD + "\n",
        GOOD + "0",
        GOOD[:-1],
        " " + GOOD,
        "sha512:" + "0" * 64,
        "sha256:../../../etc/passwd",
        "sha256:" + "٣" * 64,
    ],
)
def test_anything_else_is_no_digest(text):
    """No other spelling passes, so a digest can be part of a path."""
    with pytest.raises(InvalidInput, match="A digest must be 'sha256:' and 64 lowercase hex digits"):
        Digest.parse(text)
