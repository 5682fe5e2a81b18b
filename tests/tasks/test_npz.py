"""Arrays in a .npz file: what numpy writes is read, what would trick numpy is refused, one array has one form."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lightship.errors import InvalidInput, InvalidTensor, TooLarge
from lightship.tasks.npz import read_npz, write_npz

DTYPES = [
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
]


def zipped(members: dict[str, bytes]) -> bytes:
    """Return a zip of these members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def npy(descr: str, shape: str, data: bytes = b"", order: str = "False") -> bytes:
    """Return a .npy file whose header says this."""
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@given(st.data(), st.sampled_from(DTYPES))
def test_numbers_come_back_as_they_were(data, dtype):
    """Every dtype and shape, scalars and empty arrays too; numpy reads the same."""
    array = data.draw(arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))

    written = write_npz({"x:0": array})

    np.testing.assert_array_equal(read_npz(written)["x:0"], array)
    assert read_npz(written)["x:0"].dtype == array.dtype
    assert write_npz(read_npz(written)) == written
    with np.load(io.BytesIO(written)) as theirs:
        np.testing.assert_array_equal(theirs["x:0"], array)


def test_what_numpy_writes_is_read():
    """Compressed, Fortran order, big-endian, and texts of both kinds."""
    out = io.BytesIO()
    grid = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez_compressed(
        out, f=np.asfortranarray(grid), b=grid.astype(">f4"), u=np.array(["é", "b"]), s=np.array([b"x"])
    )

    found = read_npz(out.getvalue())

    np.testing.assert_array_equal(found["f"], grid)
    np.testing.assert_array_equal(found["b"], grid)
    assert found["b"].dtype == np.float32
    assert (found["u"].tolist(), found["s"].tolist()) == (["é".encode(), b"b"], [b"x"])


def test_a_pickle_in_it_is_never_opened(tmp_path):
    """An object array is a pickle, which could run anything; the canary stays away."""
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return (canary.write_text, ("run",))

    out = io.BytesIO()
    np.savez(out, x=np.array([Evil()], dtype=object))

    with pytest.raises(InvalidInput, match="dtype object"):
        read_npz(out.getvalue())
    assert not canary.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no zip", "must be a .npz file"),
        (zipped({"x.npy": npy("'<f4'", "(1000000000000,)")}), "not as many bytes"),
        (zipped({"x.npy": npy("'<f4'", "(-1,)", b"1234")}), "not as many bytes"),
        (zipped({"x.npy": npy("'<f4'", "(2,)", b"1234")}), "not as many bytes"),
        (zipped({"x.npy": npy("[('a', '<f4')]", "(1,)", b"1234")}), "has the dtype"),
        (zipped({"x.npy": npy("'<c8'", "(1,)", b"12345678")}), "has the dtype complex64"),
        (zipped({"x.npy": npy("'<f4'", "__import__('os').getpid()")}), "must be a .npz file"),
        (zipped({"x.npy": b"\x93NUMPY\x09\x00"}), "must be a .npz file"),
        (zipped({"x.txt": b"hello"}), "is no .npy file"),
    ],
    ids=["no zip", "huge", "negative", "short", "structured", "complex", "code", "version", "text"],
)
def test_a_broken_file_is_refused(data, message):
    """The message says what is wrong; nothing is allocated that is not there."""
    with pytest.raises(InvalidInput, match=message):
        read_npz(data)


def test_a_zip_bomb_is_refused_before_it_is_unpacked():
    """A gigabyte of zeros in a megabyte of zip."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\0" * (10 << 20))

    with pytest.raises(TooLarge, match="unpacked"):
        read_npz(out.getvalue(), max_bytes=1 << 20)


def test_a_text_that_ends_with_nul_cannot_be_kept():
    """Numpy would drop the character silently."""
    with pytest.raises(InvalidTensor, match="ends with a NUL"):
        write_npz({"x": np.array([b"a\0"], dtype=object)})
