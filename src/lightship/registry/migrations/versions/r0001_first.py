"""Models, versions, aliases, the chained history and the looks at gates."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_GENESIS = "sha256:" + "0" * 64

# Against mistakes and careless tools; who means harm can drop a trigger, and is found by the chain.
_TRIGGERS = (
    """
    CREATE TRIGGER history_no_update BEFORE UPDATE ON history
    BEGIN SELECT RAISE(ABORT, 'history is append-only'); END
    """,
    """
    CREATE TRIGGER history_no_delete BEFORE DELETE ON history
    BEGIN SELECT RAISE(ABORT, 'history is append-only'); END
    """,
    # Also stops INSERT OR REPLACE, which would remove a line without firing the trigger on DELETE.
    """
    CREATE TRIGGER history_only_at_end BEFORE INSERT ON history
    WHEN NEW.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM history)
    BEGIN SELECT RAISE(ABORT, 'history grows at its end only'); END
    """,
    """
    CREATE TRIGGER versions_no_update BEFORE UPDATE ON versions
    BEGIN SELECT RAISE(ABORT, 'a version never changes'); END
    """,
    """
    CREATE TRIGGER versions_no_delete BEFORE DELETE ON versions
    BEGIN SELECT RAISE(ABORT, 'a version is never removed'); END
    """,
    """
    CREATE TRIGGER versions_no_replace BEFORE INSERT ON versions
    WHEN EXISTS (
        SELECT 1 FROM versions
        WHERE model_id = NEW.model_id AND (version = NEW.version OR bundle = NEW.bundle)
    )
    BEGIN SELECT RAISE(ABORT, 'a version never changes'); END
    """,
)


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "models",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False, unique=True),
        sa.Column("folded", sa.String, nullable=False, unique=True),
        sa.Column("created", sa.String, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("model_id", sa.Integer, sa.ForeignKey("models.id"), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("bundle", sa.String, nullable=False),
        sa.Column("release", sa.String, nullable=False),
        sa.Column("created", sa.String, nullable=False),
        sa.Column("created_by", sa.String, nullable=False),
        sa.Column("note", sa.String, nullable=False),
        sa.Column("evidence", sa.String, nullable=False),
        sa.Column("unproven", sa.Boolean, nullable=False),
        sa.UniqueConstraint("model_id", "bundle"),
        sa.CheckConstraint("version >= 1"),
    )
    op.create_table(
        "aliases",
        sa.Column("model_id", sa.Integer, primary_key=True),
        sa.Column("alias", sa.String, primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(["model_id", "version"], ["versions.model_id", "versions.version"]),
    )
    op.create_table(
        "history",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("at", sa.String, nullable=False),
        sa.Column("who", sa.String, nullable=False),
        sa.Column("action", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("alias", sa.String),
        sa.Column("from_version", sa.Integer),
        sa.Column("to_version", sa.Integer),
        sa.Column("bundle", sa.String, nullable=False),
        sa.Column("release", sa.String, nullable=False),
        sa.Column("why", sa.String, nullable=False),
        sa.Column("evidence", sa.String, nullable=False),
        sa.Column("prev_hash", sa.String, nullable=False),
        sa.Column("hash", sa.String, nullable=False),
    )
    head = op.create_table(
        "chain_head",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("lines", sa.Integer, nullable=False),
        sa.Column("hash", sa.String, nullable=False),
        sa.CheckConstraint("id = 1"),
    )
    op.bulk_insert(head, [{"id": 1, "lines": 0, "hash": _GENESIS}])
    op.create_table(
        "gate_looks",
        sa.Column("fingerprint", sa.String, primary_key=True),
        sa.Column("subject", sa.String, primary_key=True),
        sa.Column("at", sa.String, nullable=False),
    )
    for trigger in _TRIGGERS:
        op.execute(trigger)
