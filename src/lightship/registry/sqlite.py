"""How the registry's SQLite file is opened, locked and distrusted. Standard library only: servers import this.

The file keeps a rollback journal (``DELETE``) with the strictest flushing (``EXTRA``: the folder too). A write-ahead
log would lose a committed page now and then with SQLite 3.7.0 to 3.51.2, when it is reset while another process begins
to write (https://www.sqlite.org/wal.html, "The WAL-reset bug"); and with any version a reader could not open it in a
home that may only be read, nor could the one file be copied as a backup. A registry has few writes: it costs nothing.

A file of the right name that is empty, cut short or no database is never opened for writing: it may be all that
is left.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from lightship.errors import LightshipError, NotFound, Refused, Unavailable

__all__ = [
    "HEAD",
    "REVISIONS",
    "as_error",
    "check_pages",
    "connect_reader",
    "connect_writer",
    "damaged",
    "revision_of",
    "write_lock",
]

REVISIONS = ("0001", "0002")
"""The schema revisions that this program knows, oldest first; equal to the files in ``migrations/versions``."""

HEAD = REVISIONS[-1]

BUSY_MS = 5000
LOCK_S = 30.0
JOURNAL_MODE = "DELETE"
SYNCHRONOUS = "EXTRA"


def damaged(path: Path, reason: str) -> LightshipError:
    """Return the error for a file that cannot be trusted."""
    return LightshipError(
        f"The registry {path} is damaged: {reason}. Nothing was changed. Put a copy from your backup in its place; "
        "or move it away to begin an empty registry and release again (the bundles in the store are not touched)."
    )


def as_error(exc: sqlite3.Error, path: Path) -> LightshipError:
    """Return our error for one of SQLite's."""
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF  # the low byte is the kind, the rest is detail
    if code in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
        return damaged(path, str(exc))
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return Unavailable(f"Another program has held the registry {path} locked for {BUSY_MS / 1000:g} s. Try again.")
    if code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}:
        return LightshipError(f"The registry {path} cannot be written by this user ({exc}). Check its owner and mode.")
    if code in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
        return Unavailable(f"The disk of the registry {path} failed: {exc}. Nothing was changed; see `df` and `dmesg`.")
    return LightshipError(f"The registry {path} cannot be used: {exc}.")


def _open(path: Path, mode: str) -> sqlite3.Connection:
    # isolation_level=None: we say BEGIN ourselves, or Python would begin late and without IMMEDIATE.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=BUSY_MS / 1000
    )
    try:
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA schema_version").fetchone()  # takes a lock and reads page 1: finds damage now
    except BaseException:
        connection.close()
        raise
    return connection


def _check_file(path: Path) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError as exc:
        raise NotFound(
            f"There is no registry at {path}. Release a model first, or set LIGHTSHIP_HOME to the right folder."
        ) from exc
    except OSError as exc:
        raise LightshipError(f"The registry {path} cannot be read: {exc.strerror}.") from exc
    if size == 0:  # ours is renamed into place whole, so it is never empty; SQLite would fill it with a new one
        raise damaged(path, "the file is empty")


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open the registry to read it. The file and its folder may be read-only.

    Raises:
        NotFound: there is no such file.
        Unavailable: it is locked, or a cut-off write must first be undone by a process that may write.
        LightshipError: it is damaged.
    """
    _check_file(path)
    try:
        try:
            connection = _open(path, "ro")
        except sqlite3.OperationalError:
            _undo_cut_off_write(path)
            connection = _open(path, "ro")
    except sqlite3.Error as exc:
        raise as_error(exc, path) from exc
    connection.execute("PRAGMA query_only=ON")
    return connection


def _undo_cut_off_write(path: Path) -> None:
    """Let SQLite roll back the journal that a killed writer left: a read-only connection may not."""
    if not path.with_name(path.name + "-journal").exists():
        return
    try:
        _open(path, "rw").close()
    except sqlite3.OperationalError as exc:
        raise Unavailable(
            f"A write to the registry {path} was cut off and must be undone first, by a user who may write there: "
            f"run `lightship models` as its owner. ({exc})"
        ) from exc


def connect_writer(path: Path, *, is_new: bool = False) -> sqlite3.Connection:
    """Open a file to write it, with the safest settings. It must exist.

    Args:
        path: the file.
        is_new: an empty file is no damage but the beginning of a registry.

    Raises:
        NotFound: there is no such file.
        LightshipError: it is empty.
        sqlite3.Error: as SQLite says; callers translate with ``as_error``.
    """
    if not is_new:
        _check_file(path)
    connection = _open(path, "rw")
    try:
        got = connection.execute(f"PRAGMA journal_mode={JOURNAL_MODE}").fetchone()[0]
        if got.upper() != JOURNAL_MODE:
            raise Unavailable(
                f"The registry {path} is in journal mode {got!r} and {JOURNAL_MODE!r} is needed. "
                "Another program has changed it: close the programs that have it open."
            )
        connection.execute(f"PRAGMA synchronous={SYNCHRONOUS}")
    except BaseException:
        connection.close()
        raise
    return connection


def revision_of(connection: sqlite3.Connection, path: Path) -> str:
    """Return the schema revision of an open registry.

    Raises:
        Refused: it was made by a newer program, or is a database of something else.
    """
    try:
        rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    except sqlite3.OperationalError as exc:
        if "no such table" not in str(exc):
            raise as_error(exc, path) from exc
        raise Refused(
            f"{path} is an SQLite database but no Lightship registry. Nothing was changed. "
            "Move it away, or set LIGHTSHIP_HOME to another folder."
        ) from exc
    except sqlite3.Error as exc:
        raise as_error(exc, path) from exc
    revision = str(rows[0][0]) if len(rows) == 1 else "unknown"
    if revision not in REVISIONS:
        raise Refused(
            f"The registry {path} has schema {revision}; this program knows up to {HEAD}. A newer Lightship has "
            "written it: use that one, or upgrade this one. Nothing was changed."
        )
    return revision


def check_pages(path: Path) -> None:
    """Read every page of the file and compare the structures in it.

    Raises:
        LightshipError: SQLite found damage.
    """
    try:
        with closing(connect_reader(path)) as connection:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as exc:
        raise as_error(exc, path) from exc
    if found != "ok":
        raise damaged(path, found.replace("\n", " "))


@contextmanager
def write_lock(path: Path, *, timeout_s: float = LOCK_S) -> Iterator[None]:
    """Hold the one writer's place among all processes and threads that use this registry.

    SQLite's own wait is a lottery in which one of many writers can lose for longer than its timeout; here the kernel
    wakes the waiting when the place is free, and frees it when its holder dies.

    Raises:
        Unavailable: another process held it for ``timeout_s``.
        LightshipError: the lock file cannot be made.
    """
    lock = path.with_name(path.name + ".lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as exc:
        raise LightshipError(f"The registry {path} cannot be written: {lock}: {exc.strerror}.") from exc
    try:
        locked = _lock(descriptor, timeout_s)
    except OSError as exc:
        os.close(descriptor)
        raise LightshipError(f"{lock} cannot be locked: {exc.strerror}. Keep LIGHTSHIP_HOME on a local disk.") from exc
    if not locked:
        raise Unavailable(f"Another process has been writing to the registry {path} for {timeout_s:g} s. Try again.")
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, timeout_s: float) -> bool:
    """Lock the open file; on False it is closed, at once or when the lock comes after all.

    flock knows no timeout, so a thread waits in it. Polling would be simpler and unfair: who has just let go is back
    long before the others look again (measured with 8 writers: 1 % waited over 2.5 s, here 0.2 to 0.6 s).
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        return True
    turn = threading.Lock()
    outcome: list[bool] = []  # what came first: True, the lock; False, the end of the time

    def wait() -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with turn:
            if outcome:
                os.close(descriptor)
            outcome.append(True)

    waiter = threading.Thread(target=wait, name="registry-lock", daemon=True)
    waiter.start()
    try:
        waiter.join(timeout_s)
    except BaseException:  # Ctrl-C while waiting: a lock that comes later, or came just now, must not stay
        with turn:
            outcome.append(False)
            if outcome[0]:
                os.close(descriptor)
        raise
    with turn:
        outcome.append(False)
    return outcome[0]
