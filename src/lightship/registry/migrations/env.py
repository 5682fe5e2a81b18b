"""Run by Alembic. The caller opens the connection and the transaction, so a migration is whole or not there."""

from __future__ import annotations

from alembic import context

from lightship.registry.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
