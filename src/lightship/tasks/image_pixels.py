"""Image files and arrays to canonical pixels: uint8 (height, width, channels), upright, 1 or 3 channels.

The rules, which are part of a task's codec (a change here is a new codec version):

- PNG, JPEG and WebP; one frame; at most ``MAX_PIXELS``, no side longer than ``MAX_SIDE``, judged from the header
  before decoding.
- EXIF orientation is applied; color profiles and gamma are not.
- 1 bit: 0 and 255. Palette: its colors. 16 bits: the high byte. CMYK: by Pillow's plain formula, no profile.
- Transparency, where there is any, is composed on white. The color key of a 16-bit PNG is ignored.
- Color to grey: Rec. 601 luma, ``(19595 R + 38470 G + 7471 B + 32768) >> 16``. Grey to color: three equal channels.
- Resize: Pillow's bilinear filter with antialiasing, each side on its own (the aspect may change).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Lock
from typing import TYPE_CHECKING

import numpy as np

from lightship.errors import InvalidMedia, InvalidTensor, TooLarge
from lightship.memory import give_back
from lightship.tasks.image_header import ImageHeader, read_header

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MAX_PIXELS", "MAX_SIDE", "canonical_pixels", "png_bytes", "resize", "sized_pixels"]

MAX_PIXELS = 50_000_000
MAX_SIDE = 65_535
"""Pixels of a side, as in JPEG. Decoders keep a pointer a row, and each row and its filter has an overhead: a PNG of
1 x 50,000,000 took 2.5 GB and 24 s, one of 1,000 x 50,000 takes 0.2 GB and 1 s."""

_LARGE = 1 << 20  # pixels; a smaller image is decoded as a whole, and beside any number of others
_AT_ONCE = 64_000_000  # pixels of large images that are decoded at one time in a process; one pixel is up to 4 bytes
_GIVE_BACK = 1 << 24  # pixels of an image whose memory is worth to be given back


def canonical_pixels(raw: object, *, channels: int) -> np.ndarray:
    """Return the canonical pixels of an image file or array.

    Args:
        raw: the bytes of a PNG, JPEG or WebP file, or a uint8 array (h, w), (h, w, 1) or (h, w, 3).
        channels: 1 or 3.

    Returns:
        uint8 (height, width, channels), contiguous.

    Raises:
        InvalidMedia: the file is broken, empty or an animation.
        UnsupportedMedia: the file is of another kind.
        InvalidTensor: the array has another dtype or shape.
        TooLarge: more than ``MAX_PIXELS``, or a side longer than ``MAX_SIDE``.
    """
    if isinstance(raw, np.ndarray):
        return _from_array(raw, channels)
    if isinstance(raw, bytes | bytearray | memoryview):
        return _to_pixels(_decoded(_checked_header(bytes(raw))), channels)
    raise InvalidTensor(f"An image must be the bytes of a file or a numpy array. Got {type(raw).__name__}.")


def resize(pixels: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Return canonical pixels of another size; pixels that have it already are returned as they are."""
    if pixels.shape[:2] == (height, width):
        return pixels
    from PIL import Image

    image = _to_image(pixels).resize((width, height), Image.Resampling.BILINEAR)
    return _to_pixels(image, pixels.shape[2])


def sized_pixels(raw: object, *, channels: int, height: int, width: int) -> np.ndarray:
    """Return ``resize(canonical_pixels(raw, ...), ...)``, to the bit, with as little memory as that takes.

    Six kilobytes of PNG may be fifty megapixels. Of a large file there is only what its decoder makes; what comes after
    works on some rows at a time. Few large ones are decoded at once, the others wait.

    Raises:
        InvalidMedia, UnsupportedMedia, InvalidTensor, TooLarge: as ``canonical_pixels``.
    """
    if not isinstance(raw, bytes | bytearray | memoryview):
        return resize(canonical_pixels(raw, channels=channels), height=height, width=width)
    header = _checked_header(bytes(raw))
    count = header.width * header.height
    if count < _LARGE:
        return resize(_to_pixels(_decoded(header), channels), height=height, width=width)
    with _ROOM.taken(count):
        try:
            return _shrunk(header, channels, height, width)
        finally:
            if count >= _GIVE_BACK:
                give_back()  # of pieces as large as Pillow's, the C library keeps what it once had


def png_bytes(pixels: np.ndarray) -> bytes:
    """Return a PNG without metadata that decodes to exactly these canonical pixels."""
    buffer = io.BytesIO()
    _to_image(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise InvalidMedia(f"An image needs at least 1 x 1 pixel. Got {width} x {height}.")
    if height * width > MAX_PIXELS:
        raise TooLarge(
            f"An image may have at most {MAX_PIXELS} pixels. Got {width} x {height} = {width * height}. "
            "Send a smaller one."
        )
    if max(height, width) > MAX_SIDE:
        raise TooLarge(
            f"A side of an image may have at most {MAX_SIDE} pixels. Got {width} x {height}. Send it in another shape."
        )


def _from_array(array: np.ndarray, channels: int) -> np.ndarray:
    shape_ok = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))
    if array.dtype != np.uint8 or not shape_ok:
        raise InvalidTensor(
            "An image array must be uint8 (0 to 255) of shape (height, width), (height, width, 1) or "
            f"(height, width, 3). Got {array.dtype} {array.shape}. "
            "Turn values in [0, 1] into it by (255 * x).round().astype('uint8')."
        )
    _check_size(*array.shape[:2])
    pixels = array[:, :, None] if array.ndim == 2 else array
    if pixels.shape[2] == channels:
        return np.ascontiguousarray(pixels)
    return _to_pixels(_to_image(pixels), channels)


def _checked_header(data: bytes) -> ImageHeader:
    header = read_header(data)
    _check_size(header.height, header.width)
    if header.frames != 1:
        raise InvalidMedia("The image is an animation; one frame is allowed. Send a still image.")
    return header


def _decoded(header: ImageHeader) -> Image.Image:
    return _upright(_opaque(_stored(header), header), header.orientation)


def _shrunk(header: ImageHeader, channels: int, height: int, width: int) -> np.ndarray:
    """Return the pixels of another size; all that is done for each row alone is done in strips.

    Pillow resizes rows first and then columns, and rounds to 8 bits in between, so rows may be resized in strips.
    """
    from PIL import Image

    image = _upright(_stored(header), header.orientation)  # before it is opaque: both only move or map single pixels
    if image.size == (width, height):
        return _to_pixels(_opaque(image, header), channels)
    narrow = Image.new("L" if channels == 1 else "RGB", (width, image.height))
    rows = max(1, _LARGE // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        strip = _of_mode(_opaque(strip, header), narrow.mode)
        narrow.paste(strip.resize((width, strip.height), Image.Resampling.BILINEAR), (0, top))
    del image
    return _to_pixels(narrow.resize((width, height), Image.Resampling.BILINEAR), channels)


def _stored(header: ImageHeader) -> Image.Image:
    """Decode a file with the one decoder of its kind; nothing is converted yet."""
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile
    from PIL.WebPImagePlugin import WebPImageFile

    # The classes themselves, not Image.open: that consults every plugin that anybody registered, and warns about
    # sizes that were judged above.
    decoders: dict[str, Callable[[io.BytesIO], Image.Image]] = {
        "PNG": PngImageFile,
        "JPEG": JpegImageFile,
        "WEBP": WebPImageFile,
    }
    try:
        image = decoders[header.kind](io.BytesIO(header.pixels_only))
        if image.size != (header.width, header.height):
            raise InvalidMedia(f"The {header.kind} contradicts its own header about its size. Send an intact file.")
        image.load()
        if image.mode == "P" and image.palette is None:
            raise InvalidMedia("The PNG has palette indices and no palette. Send an intact file.")
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError) as exc:  # what Pillow's decoders raise
        raise InvalidMedia(f"The {header.kind} cannot be decoded: {exc}. Send an intact file.") from exc
    return image


def _opaque(image: Image.Image, header: ImageHeader) -> Image.Image:
    """Return an image of mode L or RGB with the same colors, transparency composed on white."""
    from PIL import Image

    if header.kind == "PNG" and header.bits == 16:
        image.info.pop("transparency", None)  # a 16-bit key would be compared with 8-bit pixels
        if image.mode.startswith("I"):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return _of_mode(image, "L" if image.mode in {"1", "L", "LA"} else "RGB")


def _of_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # Pillow would copy an image that has the mode


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    from PIL.Image import Transpose

    turn = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation)
    return image if turn is None else image.transpose(turn)


def _to_image(pixels: np.ndarray) -> Image.Image:
    from PIL import Image

    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _to_pixels(image: Image.Image, channels: int) -> np.ndarray:
    pixels = np.array(_of_mode(image, "L" if channels == 1 else "RGB"), dtype=np.uint8)
    return pixels.reshape(*pixels.shape[:2], channels)


class _Room:
    """Room for so many pixels at once. Whoever asks first gets it first; who asks for more than all gets all."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._turn = Lock()
        self._changed = Condition()

    @contextmanager
    def taken(self, wanted: int) -> Iterator[None]:
        """Wait until there is room, and hold it."""
        wanted = min(wanted, self._size)
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= wanted)
            self._free -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify()


_ROOM = _Room(_AT_ONCE)
