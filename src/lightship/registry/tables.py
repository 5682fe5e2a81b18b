"""The tables, for queries. What makes them is in ``migrations``; a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

__all__ = ["ALIASES", "ALIAS_MOVES", "CHAIN_HEAD", "GATE_LOOKS", "HISTORY", "METADATA", "MODELS", "VERSIONS"]

METADATA = MetaData()

MODELS = Table(
    "models",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("folded", String, nullable=False, unique=True),
    Column("created", String, nullable=False),
)

VERSIONS = Table(
    "versions",
    METADATA,
    Column("model_id", Integer, ForeignKey("models.id"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("bundle", String, nullable=False),
    Column("release", String, nullable=False),
    Column("created", String, nullable=False),
    Column("created_by", String, nullable=False),
    Column("note", String, nullable=False),
    Column("evidence", String, nullable=False),
    Column("unproven", Boolean, nullable=False),
    UniqueConstraint("model_id", "bundle"),
    CheckConstraint("version >= 1"),
)
"""``evidence``: a JSON list of {check, verdict, summary, digest}. Rows are never changed or removed (triggers)."""

ALIASES = Table(
    "aliases",
    METADATA,
    Column("model_id", Integer, primary_key=True),
    Column("alias", String, primary_key=True),
    Column("version", Integer, nullable=False),
    ForeignKeyConstraint(["model_id", "version"], ["versions.model_id", "versions.version"]),
)

HISTORY = Table(
    "history",
    METADATA,
    Column("seq", Integer, primary_key=True),
    Column("at", String, nullable=False),
    Column("who", String, nullable=False),
    Column("action", String, nullable=False),
    Column("name", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("alias", String),
    Column("from_version", Integer),
    Column("to_version", Integer),
    Column("bundle", String, nullable=False),
    Column("release", String, nullable=False),
    Column("why", String, nullable=False),
    Column("evidence", String, nullable=False),
    Column("prev_hash", String, nullable=False),
    Column("hash", String, nullable=False),
)
"""``evidence``: a JSON list of digests. Rows are only ever added, at the end (triggers)."""

ALIAS_MOVES = Table(
    "alias_moves",
    METADATA,
    Column("seq", Integer, ForeignKey("history.seq"), primary_key=True),
    Column("envelope", String, nullable=False),
)
"""The signed lines of the history that moved an alias; see ``alias_moves``."""

CHAIN_HEAD = Table(
    "chain_head",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("lines", Integer, nullable=False),
    Column("hash", String, nullable=False),
    CheckConstraint("id = 1"),
)

GATE_LOOKS = Table(
    "gate_looks",
    METADATA,
    Column("fingerprint", String, primary_key=True),
    Column("subject", String, primary_key=True),
    Column("at", String, nullable=False),
)
