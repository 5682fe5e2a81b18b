"""Bytes on disk: canonical JSON, digests, and writes that are whole or not there at all.

A write goes to a temporary file in the same folder, is flushed to the disk, renamed, and the folder is flushed too:
after a crash there is the old file or the new one, never half of one.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from lightship.errors import InvalidInput

__all__ = ["canonical_json", "digest_file", "fsync_dir", "sha256_hex", "write_atomic"]

_CHUNK_BYTES = 1 << 20


def sha256_hex(data: bytes) -> str:
    """Return the SHA-256 of ``data`` as 64 lowercase hex digits."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> tuple[int, str]:
    """Return (size in bytes, SHA-256 in hex) of a file, read in pieces."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return the RFC 8785 form of ``value``: one byte string for one value.

    Floats are refused: two programs may print them differently. Write decimals as strings.

    Raises:
        InvalidInput: ``value`` holds a float, an integer beyond 2**53, or something that is not JSON.
    """
    import rfc8785

    _refuse_floats(value, at="$")
    try:
        return rfc8785.dumps(value)
    except ValueError as exc:  # its own errors, and text that is not Unicode
        raise InvalidInput(f"A value cannot be written as canonical JSON: {exc}.") from exc


def _refuse_floats(value: Any, *, at: str) -> None:
    if isinstance(value, float):
        raise InvalidInput(f"Canonical JSON holds no floats. Got {value!r} at {at}; write it as a decimal string.")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_floats(item, at=f"{at}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_floats(item, at=f"{at}[{index}]")


def fsync_dir(path: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write ``data`` to ``path`` so that a reader, or the next start after a crash, sees all of it or none.

    The temporary file's name starts with ``.tmp-``; such files may be removed by anybody who holds the folder's lock.
    """
    descriptor, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)
