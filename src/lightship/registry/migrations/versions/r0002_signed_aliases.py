"""Signatures of the lines of the history that moved aliases."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table; who opens the registry then signs where the aliases point."""
    op.create_table(
        "alias_moves",
        sa.Column("seq", sa.Integer, sa.ForeignKey("history.seq"), primary_key=True),
        sa.Column("envelope", sa.String, nullable=False),
    )
