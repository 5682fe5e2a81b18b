"""Images as callers have them: a path, the bytes of a file, or an array of pixels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np

from lightship.errors import InvalidInput, InvalidTensor, NotFound, TooLarge
from lightship.tasks.task import Raw

__all__ = ["MAX_FILE_BYTES", "Image", "media_type", "raw_of", "read_bounded", "upload"]

Image: TypeAlias = "bytes | str | os.PathLike[str] | np.ndarray"
"""Bytes of a PNG, JPEG or WebP file, the path of one, or uint8 (height, width), (height, width, 1) or (…, 3)."""

MAX_FILE_BYTES = 256 << 20  # far more than a task takes; a device or a pipe may have no end

_MAGIC = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"))


def raw_of(image: Image) -> Raw:
    """Return the bytes of a file, or the array.

    Raises:
        NotFound: there is no file at the path.
        InvalidInput: the path cannot be read, or ``image`` is of another type.
        TooLarge: the file has more than ``MAX_FILE_BYTES``.
    """
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if not isinstance(image, str | os.PathLike):
        raise InvalidInput(f"An image must be bytes, a path or a numpy array. Got {type(image).__name__}.")
    try:
        with Path(image).open("rb") as file:
            return read_bounded(file, what=f"The file {str(image)!r}")
    except FileNotFoundError as exc:
        raise NotFound(f"There is no file {str(image)!r}.") from exc
    except (OSError, ValueError) as exc:
        raise InvalidInput(f"The file {str(image)!r} cannot be read: {getattr(exc, 'strerror', None) or exc}.") from exc


def read_bounded(file: BinaryIO, *, what: str) -> bytes:
    """Return all bytes of a file or stream.

    Raises:
        TooLarge: there are more than ``MAX_FILE_BYTES``; no more than that is read.
    """
    data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise TooLarge(f"{what} may have at most {MAX_FILE_BYTES} bytes. It has more; give one image a file.")
    return data


def upload(image: Image) -> tuple[bytes, str]:
    """Return (body, media type) for sending an image. An array becomes a PNG, which loses nothing.

    Raises:
        InvalidTensor: the array has another dtype or shape.
        NotFound, InvalidInput: as ``raw_of``.
    """
    raw = raw_of(image)
    if isinstance(raw, np.ndarray):
        raw = _png(raw)
    return raw, media_type(raw)


def media_type(data: bytes) -> str:
    """Return the media type that the first bytes of a file stand for; the server judges the rest."""
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return "application/octet-stream"


def _png(pixels: np.ndarray) -> bytes:
    from lightship.tasks.image_pixels import png_bytes

    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels not in (1, 3) or not pixels.size:
        raise InvalidTensor(
            "An image array must be uint8 (0 to 255) of shape (height, width), (height, width, 1) or "
            f"(height, width, 3), not empty. Got {pixels.dtype} {pixels.shape}."
        )
    return png_bytes(pixels.reshape(*pixels.shape[:2], channels))
