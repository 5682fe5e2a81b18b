"""A folder that may be hostile. Files are opened first and judged by their descriptor, then read from it.

Checking a path and opening it afterwards leaves a gap in which the path can change, and a check of the text of a path
misses links in its middle. So every part of a path is opened below the descriptor of the part before it, without
following links, and what was opened must be a regular file with one name.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from lightship.bundle.paths import MAX_PARTS
from lightship.errors import BundleRefused, NotFound

__all__ = ["MAX_ENTRIES", "Folder", "open_regular", "shown"]

MAX_ENTRIES = 50_000
"""Files and folders in one exported bundle, together; a real one has far fewer."""

_CHUNK_BYTES = 1 << 20
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # NONBLOCK: opening a FIFO must not hang
_OPEN_FOLDER = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


def open_regular(path: str | Path, *, folder: int | None = None) -> BinaryIO:
    """Open a regular file for reading, below the descriptor ``folder`` if there is one. Its last part may be no link.

    Raises:
        OSError: there is none, it is a link or something else; ``strerror`` says what.
    """
    descriptor = os.open(path, _OPEN_FILE, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return os.fdopen(descriptor, "rb")


def shown(path: str) -> str:
    """Return a path for a message; one that a terminal would obey (an escape, a change of direction) is escaped."""
    return path if path.isprintable() else ascii(path)


class Folder:
    """An open folder; a context manager. Paths given to it are relative and joined by ``/``.

    Raises:
        NotFound: there is no folder at ``root``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            # The root itself is the caller's choice and may be reached through links.
            self._descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
            reason = exc.strerror if isinstance(exc, OSError) else exc
            raise NotFound(f"{str(root)!r} cannot be opened as a folder: {reason}.") from exc

    def __enter__(self) -> Folder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """Return the bytes of a file; more than ``max_bytes`` are refused.

        Raises:
            BundleRefused: missing, a link, a second name of a file, not a regular file, or too large.
        """
        with self._open(path) as file:
            self._check_file(path, os.fstat(file.fileno()), max_bytes=max_bytes)
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise BundleRefused(f"{shown(path)} in {self.root} grew while it was read.")
        return data

    def digest(self, path: str, *, max_bytes: int) -> tuple[int, str]:
        """Return (size in bytes, SHA-256 in hex) of a file, read in pieces.

        Raises:
            BundleRefused: as ``read``.
        """
        digest = hashlib.sha256()
        size = 0
        with self._open(path) as file:
            self._check_file(path, os.fstat(file.fileno()), max_bytes=max_bytes)
            while size <= max_bytes and (chunk := file.read(_CHUNK_BYTES)):
                digest.update(chunk)
                size += len(chunk)
        return size, digest.hexdigest()

    def files(self) -> list[str]:
        """Return the paths of all files, sorted. An empty folder is listed too, with a ``/`` at its end.

        Raises:
            BundleRefused: a link, a special file, too deep or too many entries.
        """
        found: list[str] = []
        self._walk(self._descriptor, "", depth=1, found=found, count=0)
        return sorted(found)

    def _walk(self, descriptor: int, prefix: str, *, depth: int, found: list[str], count: int) -> int:
        if depth > MAX_PARTS:
            raise BundleRefused(f"{shown(prefix)} in {self.root} is deeper than {MAX_PARTS} folders.")
        empty = True
        with os.scandir(descriptor) as entries:
            for entry in entries:
                empty = False
                path = prefix + entry.name
                if (count := count + 1) > MAX_ENTRIES:
                    raise BundleRefused(f"{self.root} has more than {MAX_ENTRIES:,} files and folders.")
                if entry.is_dir(follow_symlinks=False):
                    count = self._walk_into(descriptor, entry.name, path, depth=depth, found=found, count=count)
                else:
                    self._check_file(path, entry.stat(follow_symlinks=False), max_bytes=None)
                    found.append(path)
        if empty and prefix:
            found.append(prefix)
        return count

    def _walk_into(self, parent: int, name: str, path: str, *, depth: int, found: list[str], count: int) -> int:
        try:
            descriptor = os.open(name, _OPEN_FOLDER, dir_fd=parent)
        except OSError as exc:
            raise self._refusal(path, exc) from exc
        try:
            return self._walk(descriptor, f"{path}/", depth=depth + 1, found=found, count=count)
        finally:
            os.close(descriptor)

    def _open(self, path: str) -> BinaryIO:
        """Open a file part by part. Callers give checked paths; ``..`` is refused here too, as the last line."""
        *folders, name = path.split("/")
        if any(part in ("", ".", "..") for part in (*folders, name)):
            raise BundleRefused(f"{path!a} is not a path inside {self.root}.")
        opened: list[int] = []
        try:
            for part in folders:
                opened.append(os.open(part, _OPEN_FOLDER, dir_fd=opened[-1] if opened else self._descriptor))
            return open_regular(name, folder=opened[-1] if opened else self._descriptor)
        except (OSError, ValueError) as exc:
            raise self._refusal(path, exc) from exc
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def _refusal(self, path: str, error: OSError | ValueError) -> BundleRefused:
        if isinstance(error, FileNotFoundError):
            return BundleRefused(f"{shown(path)} is missing in {self.root}.")
        reason = error.strerror if isinstance(error, OSError) else str(error)
        # What the kernel says when a part of the path is a link, or no folder.
        links = " without following links" if getattr(error, "errno", None) in (errno.ELOOP, errno.ENOTDIR) else ""
        return BundleRefused(f"{shown(path)} in {self.root} cannot be opened{links}: {reason}.")

    def _check_file(self, path: str, status: os.stat_result, *, max_bytes: int | None) -> None:
        if stat.S_ISLNK(status.st_mode):
            raise BundleRefused(f"{shown(path)} in {self.root} is a link. A bundle holds regular files only.")
        if not stat.S_ISREG(status.st_mode):
            raise BundleRefused(f"{shown(path)} in {self.root} is not a regular file.")
        if status.st_nlink != 1:
            raise BundleRefused(
                f"{shown(path)} in {self.root} has {status.st_nlink} names (hard links): another name could change it. "
                "Copy the folder without links."
            )
        if max_bytes is not None and status.st_size > max_bytes:
            raise BundleRefused(
                f"{shown(path)} in {self.root} may have at most {max_bytes:,} bytes. It has {status.st_size:,}."
            )
