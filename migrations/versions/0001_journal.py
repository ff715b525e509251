"""The journal's first schema: events, their projection, and the views that people read."""

from __future__ import annotations

import secrets
import time
import uuid

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

LIVE = "status IN ('pending', 'running', 'cancelling')"


def upgrade() -> None:
    """Make an empty journal with a random id and its first incarnation."""
    _tables()
    _indexes()
    _triggers()
    _views()
    now = time.time_ns() // 1000
    op.execute(
        sa.text("INSERT INTO journal (id, journal_id, created_at) VALUES (1, :journal_id, :now)").bindparams(
            journal_id=uuid.uuid4().hex, now=now
        )
    )
    op.execute(
        sa.text(
            "INSERT INTO incarnations (number, name, from_position, started_at) VALUES (1, :name, 1, :now)"
        ).bindparams(name=secrets.token_bytes(16), now=now)
    )


def _tables() -> None:
    op.create_table(
        "journal",
        sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True),
        sa.Column("journal_id", sa.Text, nullable=False),
        sa.Column("created_at", sa.Integer, nullable=False),
        sa.Column("archived_through", sa.Integer, nullable=False, server_default="0"),
        sa.Column("archived_hash", sa.LargeBinary),
    )
    op.create_table(
        "incarnations",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("name", sa.LargeBinary, nullable=False),
        sa.Column("from_position", sa.Integer, nullable=False),
        sa.Column("started_at", sa.Integer, nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("operation_id", sa.Text, nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("class", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("at", sa.Integer, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("writer", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "operations",
        sa.Column("operation_id", sa.Text, primary_key=True),
        sa.Column("suffix", sa.Text, nullable=False, unique=True),
        sa.Column("operation_type", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("parent_id", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("percentage", sa.Float, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("created_at", sa.Integer, nullable=False),
        sa.Column("started_at", sa.Integer),
        sa.Column("finished_at", sa.Integer),
        sa.Column("first_position", sa.Integer, nullable=False),
        sa.Column("last_position", sa.Integer, nullable=False),
        sa.Column("state", sa.LargeBinary, nullable=False),
    )


def _indexes() -> None:
    op.execute("CREATE UNIQUE INDEX events_order ON events (operation_id, sequence)")
    op.execute("CREATE UNIQUE INDEX events_one_terminal ON events (operation_id, attempt) WHERE class = 'terminal'")
    op.execute("CREATE UNIQUE INDEX events_one_completed ON events (operation_id) WHERE type = 'completed'")
    op.execute("CREATE UNIQUE INDEX events_one_start ON events (operation_id, attempt) WHERE type = 'attempt_started'")
    op.execute("CREATE INDEX events_marks ON events (operation_id, sequence) WHERE type <> 'progressed'")
    op.execute("CREATE INDEX events_cancels ON events (position) WHERE class = 'cancel'")
    op.execute(
        "CREATE INDEX events_artifacts ON events (json_extract(CAST(payload AS TEXT), '$.kind'),"
        " json_extract(CAST(payload AS TEXT), '$.key'), position) WHERE type = 'artifact_published'"
    )
    op.execute(f"CREATE UNIQUE INDEX operations_live_key ON operations (key) WHERE {LIVE}")
    op.execute(f"CREATE INDEX operations_live ON operations (status) WHERE {LIVE}")
    op.execute("CREATE INDEX operations_order ON operations (first_position)")
    op.execute("CREATE INDEX operations_key ON operations (key, first_position)")
    op.execute("CREATE INDEX operations_type ON operations (operation_type, first_position)")
    op.execute("CREATE INDEX operations_status ON operations (status, first_position)")
    op.execute("CREATE INDEX operations_parent ON operations (parent_id, first_position)")


def _triggers() -> None:
    op.execute(
        "CREATE TRIGGER events_no_update BEFORE UPDATE ON events BEGIN"
        " SELECT RAISE(ABORT, 'the journal is append-only: events are never changed'); END"
    )
    op.execute(
        "CREATE TRIGGER events_no_delete BEFORE DELETE ON events"
        " WHEN OLD.position > (SELECT archived_through FROM journal) BEGIN"
        " SELECT RAISE(ABORT, 'the journal is append-only: only archived events may be deleted'); END"
    )


def _views() -> None:
    op.execute(
        "CREATE VIEW v_events AS SELECT position, operation_id, sequence, attempt, type, class,"
        " strftime('%Y-%m-%dT%H:%M:%fZ', at / 1000000.0, 'unixepoch') AS at, CAST(payload AS TEXT) AS data FROM events"
    )
    op.execute(
        "CREATE VIEW v_operations AS SELECT operation_id, operation_type, key, parent_id, status AS recorded_status,"
        " attempt, percentage, message,"
        " strftime('%Y-%m-%dT%H:%M:%fZ', created_at / 1000000.0, 'unixepoch') AS created_at,"
        " strftime('%Y-%m-%dT%H:%M:%fZ', started_at / 1000000.0, 'unixepoch') AS started_at,"
        " strftime('%Y-%m-%dT%H:%M:%fZ', finished_at / 1000000.0, 'unixepoch') AS finished_at,"
        " last_position, CAST(state AS TEXT) AS state FROM operations"
    )
    op.execute(
        "CREATE VIEW v_metrics AS SELECT e.position, e.operation_id, e.attempt,"
        " strftime('%Y-%m-%dT%H:%M:%fZ', e.at / 1000000.0, 'unixepoch') AS at, j.key AS name, j.value AS value"
        " FROM events e, json_each(CAST(e.payload AS TEXT), '$.context') j"
        " WHERE e.type = 'progressed' AND j.type IN ('integer', 'real')"
    )
