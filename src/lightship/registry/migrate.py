"""Make the registry's file, or bring it to the schema of this program. Safe when many processes do it at once.

A new file is made beside its place and renamed into it: the file is either absent or whole, so an empty one is damage.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from lightship.data.files import fsync_dir
from lightship.errors import LightshipError
from lightship.registry.sqlite import HEAD, as_error, check_pages, connect_reader, revision_of, write_lock

__all__ = ["prepare"]


def prepare(path: Path, *, upgraded: Callable[[str], None] = lambda _: None) -> None:
    """Make sure that ``path`` is a sound registry of this program's schema.

    Args:
        path: of the file.
        upgraded: called with the revision that the file had, after it was brought up to date.

    Raises:
        Refused: a newer program has written it, or it is a database of something else.
        LightshipError: it is damaged; it was left as it is.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            _create(path)
    except OSError as exc:
        raise LightshipError(f"The registry {path} cannot be made: {exc.strerror}.") from exc
    check_pages(path)
    if _revision(path) != HEAD:
        with write_lock(path):
            old = _revision(path)
            if old == HEAD:  # another process has done it while this one waited
                return
            _upgrade(path)
        upgraded(old)


def _revision(path: Path) -> str:
    with closing(connect_reader(path)) as connection:
        return revision_of(connection, path)


def _create(path: Path) -> None:
    with write_lock(path):
        if path.exists():
            return
        descriptor, name = tempfile.mkstemp(prefix=".tmp-registry-", dir=path.parent)
        new = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), 0o644)
                _upgrade(new, is_new=True)
                os.fsync(file.fileno())
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        fsync_dir(path.parent)


def _upgrade(path: Path, *, is_new: bool = False) -> None:
    from alembic import command
    from alembic.config import Config
    from sqlalchemy.exc import DBAPIError

    from lightship.registry.engines import writer

    config = Config()
    config.set_main_option("script_location", "lightship.registry:migrations")
    try:
        with writer(path, is_new=is_new).begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except sqlite3.Error as exc:
        raise as_error(exc, path) from exc
    except DBAPIError as exc:
        if isinstance(exc.orig, sqlite3.Error):
            raise as_error(exc.orig, path) from exc
        raise
