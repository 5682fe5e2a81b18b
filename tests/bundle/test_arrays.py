"""Golden arrays have one form, and no header can make the reader do anything but read numbers."""

from __future__ import annotations

import contextlib
import io
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lightship.bundle.arrays import array_from_npy, npy_from_array
from lightship.errors import BundleRefused, InvalidTensor

DTYPES = ["bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]


def test_golden_bytes_of_an_array():
    """The file is the one that the format shows, and numpy reads it."""
    data = npy_from_array(np.array([[0.25, 0.75]], dtype=np.float32))

    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }"
    assert data == b"\x93NUMPY\x01\x00\x76\x00" + header.ljust(117) + b"\n" + bytes.fromhex("0000803e0000403f")
    assert np.load(io.BytesIO(data), allow_pickle=False).tolist() == [[0.25, 0.75]]


@settings(deadline=None)  # the machine may be busy with other things
@given(hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))
def test_arrays_round_trip(array):
    """Every dtype and shape comes back bit for bit, empty and scalar ones too; numpy agrees."""
    data = npy_from_array(array)

    back = array_from_npy(data, what="a.npy")
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert np.load(io.BytesIO(data), allow_pickle=False).tobytes() == array.tobytes()


def test_byte_order_and_layout_do_not_show():
    """Equal values have equal bytes, however they lie in memory."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)

    assert npy_from_array(np.asfortranarray(array)) == npy_from_array(array)
    assert npy_from_array(array.astype(">f4")) == npy_from_array(array)


@pytest.mark.parametrize("dtype", ["object", "S3", "U3", "c8", "M8[s]", "f4,i4"])
def test_other_dtypes_are_not_written(dtype):
    """Objects, text, times and records have no place in golden arrays."""
    with pytest.raises(InvalidTensor, match="must hold numbers or truth values"):
        npy_from_array(np.zeros(2, dtype=dtype))


def npy(header: bytes, values: bytes = b"", *, version: bytes = b"\x01\x00") -> bytes:
    """Return a file with this header."""
    padded = header + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + len(padded).to_bytes(2, "little") + padded + values


GOOD = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        npy(GOOD, b"1234", version=b"\x02\x00"),
        npy(GOOD.replace(b"False", b"True"), b"1234"),
        npy(GOOD.replace(b"<f4", b">f4"), b"1234"),
        npy(GOOD.replace(b"<f4", b"|O"), pickle.dumps([print])),
        npy(GOOD.replace(b"<f4", b"<f16"), b"1234"),
        npy(GOOD.replace(b"(1,)", b"(__import__('os').abort(),)"), b"1234"),
        npy(GOOD.replace(b"(1,)", b"(-1,)"), b"1234"),
        npy(GOOD.replace(b"(1,)", b"(01,)"), b"1234"),
        npy(GOOD.replace(b"(1,)", b"(1, )"), b"1234"),
        npy(GOOD.replace(b"(1,)", b"(1000000000000, 1000000000000)"), b"1234"),
        npy(GOOD, b"123"),
        npy(GOOD, b"12345"),
        npy(GOOD + b" " * 64, b"1234"),
        npy(GOOD, b"1234").replace(b"  \n", b" \n\n"),
    ],
    ids=range(16),
)
def test_other_files_are_refused(data):
    """Pickles, expressions, huge shapes, other orders and a second spelling of the same array."""
    with pytest.raises(BundleRefused, match=r"^a\.npy "):
        array_from_npy(data, what="a.npy")


@settings(deadline=None)  # the machine may be busy with other things
@given(st.binary(max_size=80))
def test_any_header_is_read_or_refused(header):
    """No bytes lead to another error than a refusal."""
    with contextlib.suppress(BundleRefused):
        array_from_npy(npy(header, b"1234"), what="a.npy")
