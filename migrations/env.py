"""Alembic's environment: on the command line it opens the journal of alembic.ini, inside the package it is given one.

Each run of migrations is one transaction of our own (alembic's default for SQLite would leave half a schema behind when
the process is killed).
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from ktrdr_ops.core.journal import schema


def run(connection: Connection) -> None:
    """Migrate over an open connection, in a transaction that its caller owns."""
    context.configure(connection=connection, transactional_ddl=True)
    context.run_migrations()


if context.is_offline_mode():
    context.configure(dialect_name="sqlite", literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
elif (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    schema.migrate_from_command_line(context.config, run)
