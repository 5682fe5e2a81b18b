"""Headers: size, frames and orientation without decoding, and refusals that name the fault."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lightship.errors import InvalidInput, InvalidMedia, UnsupportedMedia
from lightship.tasks.image_header import read_header

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, size=(5, 9, 3), dtype=np.uint8))


def file_of(kind: str, image: Image.Image = IMAGE, **options: object) -> bytes:
    """Return the bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def exif(orientation: int, order: str = "<") -> bytes:
    """Return an EXIF block that holds an orientation."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0" + mark + struct.pack(order + "IH", 8, 1) + entry + b"\0\0\0\0"


FORMS = [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("WEBP", {"lossless": True})]


@pytest.mark.parametrize(("kind", "options"), FORMS)
def test_size_is_read_from_every_kind(kind, options):
    """Nine wide, five high, one frame, upright."""
    header = read_header(file_of(kind, **options))

    assert (header.kind, header.width, header.height) == (kind, 9, 5)
    assert (header.frames, header.orientation) == (1, 1)


@pytest.mark.parametrize(("kind", "options"), FORMS)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_orientation_is_read_in_both_byte_orders(kind, options, order, orientation):
    """The camera's turn, as every kind stores it."""
    data = file_of(kind, exif=exif(orientation, order), **options)

    assert read_header(data).orientation == orientation


@pytest.mark.parametrize(
    "block", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", exif(9)[6:], exif(0)[6:], b"no tiff at all"]
)
def test_broken_exif_counts_as_upright(block):
    """As in browsers: the pixels are fine, and nothing warns."""
    data = file_of("JPEG", exif=b"Exif\0\0" + block)

    assert read_header(data).orientation == 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_have_more_than_one_frame(kind):
    """Counted from the header, before a single frame is decoded."""
    second = Image.new("RGB", IMAGE.size, "red")

    header = read_header(file_of(kind, save_all=True, append_images=[second]))

    assert header.frames > 1


@pytest.mark.parametrize(("kind", "options"), FORMS)
def test_a_file_that_ends_within_its_header_is_broken(kind, options):
    """Each cut of the first bytes is refused by our own error."""
    data = file_of(kind, **options)

    for end in range(12, 40):
        with pytest.raises(InvalidMedia, match=r"whole file|intact file|truncated"):
            read_header(data[:end])


@pytest.mark.parametrize("data", [b"GIF89a" + b"\0" * 20, b"BM" + b"\0" * 20, b"%PDF-1.7", b"II*\0" * 9, b"hello"])
def test_other_kinds_are_named_by_their_first_bytes(data):
    """A GIF, a bitmap, a PDF, a TIFF, a greeting."""
    with pytest.raises(UnsupportedMedia, match=r"must be PNG, JPEG or WebP files. Got a file that begins with"):
        read_header(data)


def test_no_bytes_are_no_image():
    """An empty upload has its own message."""
    with pytest.raises(InvalidMedia, match="0 bytes"):
        read_header(b"")


def test_only_what_makes_pixels_reaches_the_decoder():
    """Text, profiles and EXIF are gone; the pixels are the same."""
    from PIL.PngImagePlugin import PngInfo

    notes = PngInfo()
    notes.add_text("Comment", "secret " * 99, zip=True)
    png = read_header(file_of("PNG", pnginfo=notes, icc_profile=b"profile", exif=exif(6))).pixels_only
    jpeg = read_header(file_of("JPEG", exif=exif(6), icc_profile=b"profile", comment=b"secret")).pixels_only

    for data in (png, jpeg):
        assert not {"icc_profile", "exif", "comment", "Comment"} & set(Image.open(io.BytesIO(data)).info)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), np.asarray(IMAGE))


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["PNG", "JPEG", "WEBP"]), at=st.integers(0, 400), value=st.integers(0, 255))
def test_one_changed_byte_never_escapes_as_a_foreign_error(kind, at, value):
    """Whatever is broken, the error is ours."""
    data = bytearray(file_of(kind))
    data[at % len(data)] = value

    try:
        header = read_header(bytes(data))
    except InvalidInput:
        return
    assert header.kind == kind
