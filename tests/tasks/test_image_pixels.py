"""Canonical pixels: one rule for each way in which a file can store an image."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lightship.errors import InvalidInput, InvalidMedia, InvalidTensor, TooLarge
from lightship.tasks.image_pixels import MAX_PIXELS, MAX_SIDE, _Room, canonical_pixels, png_bytes, resize, sized_pixels


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Return the bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *, bits: int, color: int, rows: bytes, extra: bytes = b"") -> bytes:
    """Return a PNG that Pillow would not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body + chunk(b"IEND", b"")


def luma(rgb: np.ndarray) -> np.ndarray:
    """Return grey by the formula."""
    return (rgb.astype(np.int64) @ [19595, 38470, 7471] + 32768) >> 16


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_files_and_arrays_have_the_same_pixels(pixels, kind):
    """The door does not matter: file, bytearray or array."""
    data = file_of(Image.fromarray(pixels), kind, lossless=True)

    for raw in (data, bytearray(data), memoryview(data), pixels, np.asfortranarray(pixels)):
        assert np.array_equal(canonical_pixels(raw, channels=3), pixels)


def test_grey_is_rec_601_luma(pixels):
    """The formula, rounded as documented."""
    assert np.array_equal(canonical_pixels(pixels, channels=1)[:, :, 0], luma(pixels))


def test_grey_becomes_three_equal_channels(pixels):
    """For a color task on grey images."""
    grey = pixels[:, :, 0]

    for raw in (grey, grey[:, :, None], file_of(Image.fromarray(grey))):
        assert np.array_equal(canonical_pixels(raw, channels=3), np.repeat(grey[:, :, None], 3, axis=2))


def test_one_bit_is_black_and_white(pixels):
    """0 and 255, not 0 and 1."""
    bits = pixels[:, :, 0] > 127

    found = canonical_pixels(file_of(Image.fromarray(bits)), channels=1)

    assert np.array_equal(found[:, :, 0], bits * np.uint8(255))


def test_palette_images_have_their_colors():
    """Indices are not brightness."""
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])

    found = canonical_pixels(file_of(image), channels=3)

    assert found.tolist() == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 255, 0]]]


def test_a_palette_image_without_its_palette_is_refused():
    """Its indices mean no color."""
    with pytest.raises(InvalidMedia, match="no palette"):
        canonical_pixels(png(1, 1, bits=8, color=3, rows=b"\0\7"), channels=1)


def test_sixteen_bits_keep_their_high_byte():
    """Grey and color alike, and with the color key ignored."""
    grey = png(2, 1, bits=16, color=0, rows=b"\0\x12\x34\xff\xff", extra=chunk(b"tRNS", b"\x12\x34"))
    color = png(1, 1, bits=16, color=2, rows=b"\0\x12\x34\x56\x78\x9a\xbc")
    alpha = png(1, 1, bits=16, color=4, rows=b"\0\x12\x34\xff\xff")

    assert canonical_pixels(grey, channels=1).ravel().tolist() == [0x12, 0xFF]
    assert canonical_pixels(color, channels=3).ravel().tolist() == [0x12, 0x56, 0x9A]
    assert canonical_pixels(alpha, channels=1).ravel().tolist() == [0x12]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composed_on_white(mode):
    """Clear is white, half-clear black is mid grey, opaque stays."""
    values = np.array([[[0, 0], [0, 128], [0, 255], [200, 255]]], np.uint8)
    image = Image.fromarray(values, "LA") if mode == "LA" else Image.fromarray(values[:, :, [0, 0, 0, 1]])

    found = canonical_pixels(file_of(image), channels=1)

    assert found.ravel().tolist() == [255, 127, 0, 200]


def test_a_color_key_is_transparency():
    """PNG may name one color as clear, in grey, color and palette images."""
    grey = Image.fromarray(np.array([[0, 90]], np.uint8))
    palette = grey.convert("P")

    assert canonical_pixels(file_of(grey, transparency=90), channels=1).ravel().tolist() == [0, 255]
    assert canonical_pixels(file_of(palette, transparency=b"\xff" * 90 + b"\0"), channels=1).ravel().tolist() == [
        0,
        255,
    ]


def test_cmyk_jpeg_is_decoded_without_a_warning():
    """Print files come out right to a few levels of JPEG loss."""
    image = Image.new("RGB", (16, 16), (200, 40, 90))

    found = canonical_pixels(file_of(image.convert("CMYK"), "JPEG", quality=100), channels=3)

    assert np.abs(found.astype(int) - [200, 40, 90]).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied(pixels, orientation):
    """Beside Pillow's own transposition."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(Image.fromarray(pixels), exif=exif)

    found = canonical_pixels(data, channels=3)

    assert np.array_equal(found, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))


def test_jpeg_with_broken_exif_decodes_without_a_warning(pixels):
    """Warnings are errors in these tests; Pillow would warn about this block."""
    block = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x1a\x01\x05\0\x01\0\0\0\xff\xff\xff\xff"

    assert canonical_pixels(file_of(Image.fromarray(pixels), "JPEG", exif=block), channels=3).shape == (6, 4, 3)


def test_size_is_judged_before_anything_is_decoded():
    """A file of 60 bytes that promises 10 gigapixels; also over Pillow's own limits, which would warn."""
    for width, height in ((100_000, 100_000), (10_000, 5_001), (10_000, 9_500)):
        with pytest.raises(TooLarge, match=f"at most {MAX_PIXELS} pixels. Got {width} x {height}"):
            canonical_pixels(png(width, height, bits=8, color=0, rows=b""), channels=1)


def test_arrays_have_the_same_limit():
    """A view of one byte, so that the test needs no memory."""
    with pytest.raises(TooLarge, match="10000 x 5001"):
        canonical_pixels(np.broadcast_to(np.uint8(0), (5001, 10_000)), channels=1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("turned", [False, True])
def test_extreme_shapes_are_refused_by_their_header(channels, turned):
    """Not too many pixels, but a decoder needs fifty bytes a row: such a file would take gigabytes."""
    for width, height, message in ((1, 50_000_000, "65535 pixels. Got"), (MAX_SIDE + 1, 1, "65535 pixels. Got")):
        size = (height, width) if turned else (width, height)
        with pytest.raises(TooLarge, match=message):
            canonical_pixels(png(*size, bits=8, color=0, rows=b""), channels=channels)
        with pytest.raises(TooLarge, match=message):
            sized_pixels(png(*size, bits=8, color=0, rows=b""), channels=channels, height=4, width=4)
        with pytest.raises(TooLarge, match=message):
            canonical_pixels(np.broadcast_to(np.uint8(0), size), channels=channels)
    longest = (1, MAX_SIDE) if turned else (MAX_SIDE, 1)
    rows = (b"\0" + bytes(longest[0])) * longest[1]
    assert canonical_pixels(png(*longest, bits=8, color=0, rows=rows), channels=1).shape == (longest[1], longest[0], 1)


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0)])
def test_images_without_pixels_are_refused(width, height):
    """Zero sizes in a header and in an array."""
    with pytest.raises(InvalidMedia, match="at least 1 x 1 pixel"):
        canonical_pixels(png(width, height, bits=8, color=0, rows=b""), channels=1)
    with pytest.raises(InvalidMedia, match="at least 1 x 1 pixel"):
        canonical_pixels(np.empty((height, width), np.uint8), channels=1)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(kind):
    """One frame is allowed."""
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]

    with pytest.raises(InvalidMedia, match="animation"):
        canonical_pixels(file_of(frames[0], kind, save_all=True, append_images=frames[1:]), channels=3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_truncated_files_are_refused(kind):
    """At any length: half an image is no image."""
    noise = np.random.default_rng(0).integers(0, 256, size=(40, 40, 3), dtype=np.uint8)
    data = file_of(Image.fromarray(noise), kind)

    for share in (0.3, 0.5, 0.7, 0.9):
        with pytest.raises(InvalidMedia, match="Send"):
            canonical_pixels(data[: int(len(data) * share)], channels=3)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4), np.int64),
        np.zeros((4, 4), bool),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((1, 1, 4, 4), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_other_arrays_are_refused_with_what_is_allowed(array):
    """Floats too: nobody can tell [0, 1] from [0, 255]."""
    with pytest.raises(InvalidTensor, match=r"must be uint8 .*Got .*255 \* x"):
        canonical_pixels(array, channels=1)


def test_other_types_are_refused():
    """A path is not an image."""
    with pytest.raises(InvalidTensor, match="Got str"):
        canonical_pixels("photo.png", channels=1)


def test_resize_is_antialiased_and_leaves_equal_sizes_alone(pixels):
    """A fine checkerboard shrinks to grey, not to black or white."""
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)[:, :, None]

    assert resize(pixels, height=6, width=4) is pixels
    assert np.abs(resize(board, height=8, width=8).astype(int) - 127).max() <= 6
    assert resize(pixels, height=3, width=8).shape == (3, 8, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_golden_png_is_lossless_and_the_same_each_time(pixels, channels):
    """The bundle's digest rests on these bytes."""
    image = canonical_pixels(pixels, channels=channels)

    data = png_bytes(image)

    assert data == png_bytes(image.copy())
    assert np.array_equal(canonical_pixels(data, channels=channels), image)


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP"]),
    places=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_broken_files_give_pixels_or_our_error(kind, places):
    """No byte can be changed so that a foreign error or a warning gets out."""
    noise = np.random.default_rng(1).integers(0, 256, size=(12, 10, 3), dtype=np.uint8)
    data = bytearray(file_of(Image.fromarray(noise), kind))
    for at, value in places:
        data[at % len(data)] = value

    try:
        found = canonical_pixels(bytes(data), channels=3)
    except InvalidInput:
        return
    assert found.dtype == np.uint8
    assert found.shape[2] == 3


def large(kind: str) -> bytes:
    """Return a file of 1.3 megapixels and some, of noise, that is stored in that way."""
    rng = np.random.default_rng(5)
    values = rng.integers(0, 256, (1_201, 1_103, 4), dtype=np.uint8)
    rgb, grey, alpha = Image.fromarray(values[:, :, :3]), Image.fromarray(values[:, :, 0]), Image.fromarray(values)
    palette = grey.convert("P")
    palette.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tolist())
    turned = Image.Exif()
    if kind.startswith("turned"):
        turned[0x0112] = int(kind[-1])
    return {
        "1": lambda: file_of(Image.fromarray(values[:, :, 0] > 127)),
        "L": lambda: file_of(grey),
        "L with a key": lambda: file_of(grey, transparency=90),
        "LA": lambda: file_of(alpha.convert("LA")),
        "P": lambda: file_of(palette),
        "P with a key": lambda: file_of(palette, transparency=3),
        "P with alphas": lambda: file_of(palette, transparency=bytes(range(256))),
        "RGB": lambda: file_of(rgb),
        "RGB with a key": lambda: file_of(rgb, transparency=tuple(values[3, 3, :3].tolist())),
        "RGBA": lambda: file_of(alpha),
        "16 bits": lambda: file_of(Image.fromarray(values[:, :, :2].copy().view(np.uint16)[:, :, 0])),
        "CMYK": lambda: file_of(rgb.convert("CMYK"), "JPEG"),
        "JPEG": lambda: file_of(rgb, "JPEG", progressive=True),
        "WebP": lambda: file_of(alpha, "WEBP", lossless=True),
    }.get(kind, lambda: file_of(palette if "P" in kind else rgb, exif=turned))()


KINDS = ("1", "L", "L with a key", "LA", "P", "P with a key", "P with alphas", "RGB", "RGB with a key", "RGBA",
         "16 bits", "CMYK", "JPEG", "WebP", *(f"turned {n}" for n in range(2, 9)), "turned P 6")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_file_in_strips_is_the_same_to_the_bit(kind):
    """However it is stored, and to any size: narrower, wider, one side kept, both kept."""
    data = large(kind)

    for channels in (1, 3):
        whole = canonical_pixels(data, channels=channels)
        for height, width in ((28, 28), (224, 160), (1_500, 33), (whole.shape[0], 40), (40, whole.shape[1]), (1, 1),
                              whole.shape[:2]):  # fmt: skip
            found = sized_pixels(data, channels=channels, height=height, width=width)
            assert np.array_equal(found, resize(whole, height=height, width=width)), (channels, height, width)


_BOMBS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from lightship.tasks.image_pixels import sized_pixels
data = sys.stdin.buffer.read()
def shrunk(data):
    return sized_pixels(data, channels=1, height=28, width=28)
def memory(field):
    return int(Path("/proc/self/status").read_text().partition(field + ":")[2].split()[0]) >> 10
shrunk(data)  # what is loaded stays
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
with ThreadPoolExecutor(8) as pool:
    list(pool.map(shrunk, [data] * 8))
print(memory("VmHWM") - before, memory("VmRSS") - before)
"""


def test_many_bombs_at_once_take_the_memory_of_one_and_give_it_back():
    """Each is 6 KB and 49 megapixels, a byte a pixel; there are never two in memory, and none afterwards."""
    data = png(7_000, 7_000, bits=1, color=0, rows=bytes(876 * 7_000))

    done = subprocess.run([sys.executable, "-c", _BOMBS], input=data, capture_output=True, check=True)

    peak, kept = map(int, done.stdout.split())
    assert peak < 80  # two would be 94
    assert kept < 16


def test_room_is_held_and_who_asks_first_is_first():
    """A small one that comes later does not overtake a large one that waits; one above all there is has it alone."""
    room, order, threads = _Room(10), [], []

    def take(size):
        with room.taken(size):
            order.append(size)

    with room.taken(6):
        for size in (99, 1):
            threads.append(threading.Thread(target=take, args=(size,)))
            threads[-1].start()
            threads[-1].join(0.1)
        assert order == []
    for thread in threads:
        thread.join(5)

    assert order == [99, 1]
