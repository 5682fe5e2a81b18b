"""The binary form of tensors, by bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightship.errors import InvalidTensor
from lightship.serve.tensors import PackedTensor, join_rows, pack, pack_bytes, unpack, unpack_bytes

TEXTS = np.array(["ab", "é", ""], dtype=object)


@pytest.mark.parametrize(
    ("dtype", "array", "hexadecimal"),
    [
        ("FP32", np.array([1.0, -2.5], np.float32), "0000803f000020c0"),
        ("FP16", np.array([1.0, -2.5], np.float16), "003c00c1"),
        ("BYTES", TEXTS, "02000000616202000000c3a900000000"),
        ("BOOL", np.array([True, False]), "0100"),
        ("INT64", np.array([-2]), "feffffffffffffff"),
        ("FP32", np.array([1.0, -2.5], ">f4"), "0000803f000020c0"),
    ],
)
def test_tensors_have_the_bytes_that_the_protocol_says(dtype, array, hexadecimal):
    """Little-endian, row-major, a length before each BYTES element."""
    assert bytes(pack("x", dtype, array).data).hex() == hexadecimal


@pytest.mark.parametrize("dtype", ["BOOL", "UINT8", "INT16", "UINT32", "INT64", "FP16", "FP32", "FP64", "BYTES"])
def test_what_is_packed_is_unpacked(dtype):
    """Shape and values survive."""
    array = np.arange(6).reshape(2, 3) % 2
    source = np.array([[b"a", b"", b"ccc"], [b"d", b"e", b"f"]], object) if dtype == "BYTES" else None
    if source is None:
        from lightship.types import DTYPES

        source = array.astype(DTYPES[dtype])

    result = unpack(pack("x", dtype, source))

    assert result.shape == (2, 3)
    assert (result == source).all()


@given(st.lists(st.binary(max_size=9), max_size=9))
def test_any_bytes_survive(elements):
    """Also empty ones and none at all."""
    assert unpack_bytes(pack_bytes(elements), len(elements), what="x") == elements


@pytest.mark.parametrize(
    ("data", "count", "message"),
    [
        (b"\x05\x00\x00\x00ab", 1, "past the end"),
        (b"\x01\x00\x00", 1, "ends before the length"),
        (b"\x00\x00\x00\x00x", 1, "1 bytes follow"),
        (b"\x00\x00\x00\x00", 2, "element 1 of 2"),
    ],
)
def test_wrong_bytes_elements_are_refused(data, count, message):
    """A length past the end, too few elements, bytes left over."""
    with pytest.raises(InvalidTensor, match=message):
        unpack_bytes(data, count, what="x")


@pytest.mark.parametrize("dtype", ["FP32", "BYTES"])
def test_rows_are_cut_out_and_joined_again(dtype):
    """Cutting at any place and joining gives the same bytes."""
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    whole = pack("x", dtype, array if dtype == "FP32" else array.astype(str).astype(object))

    for cut in range(1, 4):
        parts = [whole.rows(0, cut), whole.rows(cut, 4)]
        assert parts[0].shape == (cut, 3)
        assert bytes(join_rows(parts).data) == bytes(whole.data)


def test_a_tensor_with_the_wrong_number_of_bytes_is_refused():
    """Shape and dtype say how many there must be."""
    with pytest.raises(InvalidTensor, match="must have 8 bytes"):
        unpack(PackedTensor("x", "FP32", (2,), b"1234567"))
