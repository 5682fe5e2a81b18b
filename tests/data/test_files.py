"""Bytes on disk are whole or not there, and one value has one canonical form."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightship.data import files
from lightship.data.files import canonical_json, digest_file, fsync_dir, sha256_hex, write_atomic
from lightship.errors import InvalidInput

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_sha256_of_known_bytes():
    """The example of FIPS 180-2."""
    assert sha256_hex(b"abc") == ABC


@pytest.mark.parametrize("size", [0, 1, 3, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_file_read_in_pieces_has_the_digest_of_the_whole(tmp_path, size):
    """Also at the borders of the pieces."""
    data = bytes(i % 251 for i in range(1000)) * (size // 1000 + 1)
    (tmp_path / "file").write_bytes(data[:size])

    assert digest_file(tmp_path / "file") == (size, hashlib.sha256(data[:size]).hexdigest())


def test_canonical_json_of_rfc_8785():
    """Keys by UTF-16 code units, the shortest escapes, UTF-8, no white space (RFC 8785, sections 3.2.2 and 3.2.3)."""
    value = {
        "\u20ac": "Euro Sign",
        "\r": "Carriage Return",
        "\ufb33": "Hebrew Letter Dalet With Dagesh",
        "1": "One",
        "\U0001f600": "Emoji: Grinning Face",
        "\u0080": "Control",
        "\u00f6": "Latin Small Letter O With Diaeresis",
    }
    assert list(json.loads(canonical_json(value))) == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]

    text = canonical_json({"b": [True, None, -1], "a": '\u20ac$\u000f\nA\'B"\\\\"/\x7f'})
    assert text == '{"a":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/\x7f","b":[true,null,-1]}'.encode()


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)


@settings(deadline=None)
@given(_values)
def test_canonical_json_is_the_only_form(value):
    """It reads back to the same value, and writing that again gives the same bytes."""
    data = canonical_json(value)

    assert json.loads(data) == value
    assert canonical_json(json.loads(data)) == data


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.integers(0, 9), max_size=6))
def test_the_order_of_keys_does_not_show(value):
    """Equal dictionaries have equal bytes."""
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (0.5, r"0\.5 at \$;"),
        (1.0, r"1\.0 at \$;"),
        ({"a": {"b": [1, 2.5]}}, r"2\.5 at \$\.a\.b\[1\];"),
        ([(1, float("nan"))], r"nan at \$\[0\]\[1\];"),
    ],
)
def test_floats_are_refused_with_their_place(value, place):
    """Two programs may print a float differently, so none is written."""
    with pytest.raises(InvalidInput, match=rf"holds no floats\. Got {place} write it as a decimal string"):
        canonical_json(value)


@pytest.mark.parametrize("value", [2**53, -(2**53), {1: 2}, b"x", {1}, object(), "\ud800", ["\udfff"]])
def test_what_is_not_json_is_refused(value):
    """Large integers, other keys, bytes, sets, objects and half surrogate pairs."""
    with pytest.raises(InvalidInput, match="cannot be written as canonical JSON"):
        canonical_json(value)


def test_half_a_surrogate_pair_in_a_key_is_refused():
    """A key is text like any other."""
    with pytest.raises(InvalidInput, match="cannot be written as canonical JSON"):
        canonical_json({"\ud800": 1})


def test_write_atomic_writes_the_bytes_with_the_mode(tmp_path):
    """The mode is the one that was asked for under any umask, and no temporary file stays."""
    before = os.umask(0o077)
    try:
        write_atomic(tmp_path / "plain", b"abc")
        write_atomic(tmp_path / "secret", b"", mode=0o600)
    finally:
        os.umask(before)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"plain": b"abc", "secret": b""}
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_write_atomic_replaces_a_link_and_not_what_it_points_to(tmp_path):
    """A link that somebody put there does not lead the write elsewhere."""
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / "file").symlink_to(tmp_path / "victim")

    write_atomic(tmp_path / "file", b"new")

    assert (tmp_path / "victim").read_bytes() == b"mine"
    assert not (tmp_path / "file").is_symlink()


def test_write_atomic_flushes_the_file_before_its_name_and_the_folder_after(tmp_path, monkeypatch):
    """In another order a power cut could leave an empty file under the right name."""
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def log_fsync(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def log_replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(files.os, "fsync", log_fsync)
    monkeypatch.setattr(Path, "replace", log_replace)
    write_atomic(tmp_path / "file", b"abc")

    assert events == ["file", "rename", "folder"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    """A full disk costs the new contents, not the old ones."""
    (tmp_path / "file").write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_atomic(tmp_path / "file", b"new")

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


def test_a_reader_sees_one_write_or_the_other(tmp_path):
    """While two contents are written in turn, every read gives one of them whole."""
    first, second = b"a" * 100_000, b"b" * 200_000
    write_atomic(tmp_path / "file", first)
    done = threading.Event()

    def write() -> None:
        for _ in range(20):
            write_atomic(tmp_path / "file", second)
            write_atomic(tmp_path / "file", first)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add((tmp_path / "file").read_bytes())
    writer.join()

    assert seen <= {first, second}


def test_fsync_dir_takes_folders_only(tmp_path):
    """A file or nothing at that place is an error of the operating system."""
    fsync_dir(tmp_path)
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(NotADirectoryError, match="Not a directory"):
        fsync_dir(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="No such file"):
        fsync_dir(tmp_path / "none")
