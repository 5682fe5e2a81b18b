"""What an image file says about itself, read from its bytes before anything is decoded.

A decoder allocates what the header promises, so size and number of frames are judged here first. ``pixels_only`` then
drops every part that makes no pixels (EXIF, ICC, comments, animation): text bombs and broken metadata never reach the
decoder. Written against the PNG specification (third edition), ITU T.81 and the WebP container specification.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from lightship.errors import InvalidMedia, UnsupportedMedia

__all__ = ["ImageHeader", "read_header"]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of frame, without DHT, JPG and DAC
_JPEG_PIXEL_SEGMENTS = {0xC4, 0xCC, 0xDB, 0xDD, 0xE0, 0xEE, *_JPEG_FRAMES}  # 0xEE (Adobe) says how CMYK is stored
_EXIF_ORIENTATION_TAG = 0x0112
_UPRIGHT = 1


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What was found before decoding.

    Attributes:
        kind: ``PNG``, ``JPEG`` or ``WEBP``.
        width: in stored pixels, before the orientation is applied.
        height: likewise.
        frames: 1, or more when the file is an animation.
        orientation: EXIF orientation, 1 to 8; 1 is upright.
        bits: bits per channel.
        pixels_only: the file without what makes no pixels.
    """

    kind: str
    width: int
    height: int
    frames: int
    orientation: int
    bits: int
    pixels_only: bytes


def read_header(data: bytes) -> ImageHeader:
    """Read the header of a PNG, JPEG or WebP file.

    Raises:
        UnsupportedMedia: it is a file of another kind.
        InvalidMedia: it begins like one of these and then breaks.
    """
    try:
        if data.startswith(_PNG_SIGNATURE):
            return _read_png(data)
        if data.startswith(b"\xff\xd8\xff"):
            return _read_jpeg(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _read_webp(data)
    except (struct.error, IndexError) as exc:
        raise InvalidMedia("The image ends within its header. Send the whole file.") from exc
    if not data:
        raise InvalidMedia("The image has 0 bytes. Send a PNG, JPEG or WebP file.")
    raise UnsupportedMedia(f"Images must be PNG, JPEG or WebP files. Got a file that begins with {data[:8]!r}.")


def _read_png(data: bytes) -> ImageHeader:
    if data[12:16] != b"IHDR":
        raise InvalidMedia("The PNG does not begin with its IHDR chunk. Send an intact file.")
    width, height, bits = struct.unpack_from(">IIB", data, 16)
    frames, orientation, kept = 1, _UPRIGHT, [_PNG_SIGNATURE]
    for kind, body, whole in _png_chunks(data):
        if kind == b"acTL":
            frames = max(frames, struct.unpack_from(">I", body)[0])
        elif kind == b"eXIf":
            orientation = _exif_orientation(body)
        elif kind in _PNG_PIXEL_CHUNKS:
            kept.append(whole)
    return ImageHeader("PNG", width, height, frames, orientation, bits, b"".join(kept))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield (type, body, whole chunk) up to IEND. The decoder checks the checksums of those that it gets."""
    at = len(_PNG_SIGNATURE)
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise InvalidMedia(f"The PNG is truncated: a chunk ends at byte {end} of {len(data)}. Send the whole file.")
        yield kind, data[at + 8 : end - 4], data[at:end]
        if kind == b"IEND":
            return
        at = end


def _read_jpeg(data: bytes) -> ImageHeader:
    size: tuple[int, int, int] | None = None
    orientation, kept = _UPRIGHT, [b"\xff\xd8"]
    at = 2
    while True:
        if data[at] != 0xFF:
            raise InvalidMedia(f"The JPEG has no marker at byte {at}. Send an intact file.")
        while data[at] == 0xFF:  # any number of fill bytes may stand before a marker
            at += 1
        marker = data[at]
        at += 1
        if marker == 0xDA:  # the scan begins: the rest is pixels
            kept.append(b"\xff\xda" + data[at:])
            break
        if marker == 0xD9:
            raise InvalidMedia("The JPEG ends before its pixels begin. Send the whole file.")
        (length,) = struct.unpack_from(">H", data, at)
        body = data[at + 2 : at + length]
        if length < 2 or at + length > len(data):
            raise InvalidMedia(f"The JPEG breaks within its header at byte {at}. Send an intact file.")
        if marker in _JPEG_FRAMES:
            if size:
                raise InvalidMedia("The JPEG has two frames. Send an intact file.")
            size = struct.unpack_from(">BHH", body)
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            orientation = _exif_orientation(body[6:])
        if marker in _JPEG_PIXEL_SEGMENTS:
            kept.append(b"\xff" + bytes([marker]) + data[at : at + length])
        at += length
    if size is None:
        raise InvalidMedia("The JPEG has no frame before its pixels. Send an intact file.")
    bits, height, width = size
    return ImageHeader("JPEG", width, height, 1, orientation, bits, b"".join(kept))


def _read_webp(data: bytes) -> ImageHeader:
    width, height = 0, 0
    frames, orientation = 1, _UPRIGHT
    for kind, body in _webp_chunks(data):
        if kind == b"VP8X":
            width, height = (int.from_bytes(body[at : at + 3], "little") + 1 for at in (4, 7))
            frames = 2 if body[0] & 0x02 else 1  # the animation flag; how many does not matter
        elif kind == b"VP8 " and not width:
            packed = struct.unpack_from("<HH", body, 6)
            width, height = (value & 0x3FFF for value in packed)
        elif kind == b"VP8L" and not width:
            (packed_bits,) = struct.unpack_from("<I", body, 1)
            width, height = (packed_bits & 0x3FFF) + 1, (packed_bits >> 14 & 0x3FFF) + 1
        elif kind == b"EXIF":
            orientation = _exif_orientation(body.removeprefix(b"Exif\0\0"))
    return ImageHeader("WEBP", width, height, frames, orientation, 8, data)


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    (size,) = struct.unpack_from("<I", data, 4)
    if size + 8 > len(data):
        raise InvalidMedia(
            f"The WebP is truncated: it should have {size + 8} bytes and has {len(data)}. Send the whole file."
        )
    at = 12
    while at + 8 <= size + 8:
        kind, length = struct.unpack_from("<4sI", data, at)
        yield kind, data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _exif_orientation(tiff: bytes) -> int:
    """Return the orientation that an EXIF block names; upright when it cannot be read, as browsers do."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return _UPRIGHT
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(count):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * entry)
            if tag == _EXIF_ORIENTATION_TAG:
                return value if 1 <= value <= 8 else _UPRIGHT
    except struct.error:
        return _UPRIGHT
    return _UPRIGHT
