"""SQLAlchemy engines over the registry's file: one that reads, one that writes under the lock."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import NullPool

from lightship.registry.sqlite import connect_reader, connect_writer

__all__ = ["reader", "writer"]


def _engine(connect: Callable[[], sqlite3.Connection], *, begin: str) -> Engine:
    # A connection a transaction: opening costs 0.2 ms, and a file that was put back from a backup is seen at once.
    engine = create_engine("sqlite+pysqlite://", creator=connect, poolclass=NullPool)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def reader(path: Path) -> Engine:
    """Return an engine whose transactions see one moment and cannot write."""
    return _engine(lambda: connect_reader(path), begin="BEGIN")


def writer(path: Path, *, is_new: bool = False) -> Engine:
    """Return an engine whose transactions hold SQLite's write lock from their start: none can fail half-way for it."""
    return _engine(lambda: connect_writer(path, is_new=is_new), begin="BEGIN IMMEDIATE")
