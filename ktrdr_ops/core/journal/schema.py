"""The schema's version, and how a journal gets there: alembic, in one transaction of our own, alone in the file.

Opening compares the version by hand, so that a journal which is up to date is opened without importing alembic.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ktrdr_ops.core.errors import JournalFull, JournalRefused
from ktrdr_ops.core.journal import engine
from ktrdr_ops.core.journal.ownership import LockFile

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

HEAD = "0001"
"""The newest schema that this release knows."""


def version(connection: Any) -> str | None:
    """The schema's version; None for a file without one. Raises JournalRefused for somebody else's database."""
    names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "alembic_version" in names and "events" in names:
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(row[0]) if row else None
    if names - {"alembic_version"}:
        raise JournalRefused(
            f"this SQLite file is another program's: it has the tables {', '.join(sorted(names)[:5])}",
            hint="Nothing was changed. Name another file with --journal.",
        )
    return None


def is_newer(found: str) -> bool:
    """Whether a later release wrote this schema."""
    return found > HEAD


def migrate(connection: Any, lock: LockFile, found: str | None) -> None:
    """Bring the journal to HEAD. The caller holds the gate. Nobody else may have an older journal open; an empty file
    (``found`` is None) is open to nobody."""
    if found is not None:
        lock.take_share_alone()
    try:
        upgrade(connection)
    except engine.sqlite.OperationalError as error:
        if error.sqlite_errorcode & 0xFF == engine.sqlite.SQLITE_FULL:
            raise JournalFull(
                "no room for a new journal", hint="Free some space on that disk; nothing was started."
            ) from error
        raise


def upgrade(connection: Any) -> None:
    """Run the migrations over an open connection, all in one transaction: a kill leaves the old schema."""
    from alembic import command

    with _sqlalchemy(connection) as wrapped:
        config = _config()
        config.attributes["connection"] = wrapped
        connection.execute("BEGIN IMMEDIATE")
        try:
            command.upgrade(config, "head")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


def _sqlalchemy(connection: Any) -> Connection:
    """The same connection as SQLAlchemy's. It begins and ends no transaction by itself: this module does."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import StaticPool

    driver = engine.sqlite
    made = create_engine("sqlite://", module=driver, creator=lambda: connection, poolclass=StaticPool)
    made.dialect.do_rollback = made.dialect.do_commit = made.dialect.do_begin = lambda dbapi_connection: None  # type: ignore[method-assign]
    made.dialect.do_close = lambda dbapi_connection: None  # type: ignore[method-assign]
    return made.connect()


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_scripts()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _scripts() -> Path:
    """The migrations: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[2]
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parent / "migrations"


def migrate_from_command_line(config: Config, run: Callable[[Connection], None]) -> None:
    """What ``alembic upgrade head`` does in a checkout: the journal of the settings, under the gate."""
    from ktrdr_ops.core.journal.ownership import lock_file

    path = Path(config.get_main_option("journal") or "ktrdr-ops.db").absolute()
    engine.check_file(path, writing=True)
    lock = lock_file(path)
    lock.lock_gate()
    connection = engine.connect(path)
    try:
        if version(connection) is not None:
            lock.take_share_alone()
        with _sqlalchemy(connection) as wrapped:
            connection.execute("BEGIN IMMEDIATE")
            try:
                run(wrapped)
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
    finally:
        connection.close()
        lock.unlock_gate()
