"""Texts as golden arrays, which hold numbers only: each row's texts with their lengths, as bytes (UINT8)."""

from __future__ import annotations

import struct

import numpy as np

__all__ = ["packed_texts"]

_LENGTH = struct.Struct("<I")


def packed_texts(array: np.ndarray) -> np.ndarray:
    """Return the texts of each row as bytes: uint8 (rows, bytes of the longest row), padded with zeros.

    Every text has its length before it, 4 bytes, little-endian, as BYTES elements have in the V2 protocol. Two arrays
    with as many texts a row are equal exactly if their packed forms are.
    """
    rows = [b"".join(map(_packed, np.asarray(row, dtype=object).ravel().tolist())) for row in array]
    width = max([1, *map(len, rows)])
    return np.stack([np.frombuffer(row.ljust(width, b"\0"), dtype=np.uint8) for row in rows])


def _packed(text: bytes | str) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return _LENGTH.pack(len(data)) + data
