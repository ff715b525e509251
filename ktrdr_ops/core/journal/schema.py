"""The schema's version, and how a journal gets there: a copy, then alembic, in one transaction of our own, alone in the
file.

Opening compares the version by hand, so that a journal which is up to date is opened without importing alembic.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ktrdr_ops.core.errors import JournalCorrupt, JournalError, JournalFull, JournalRefused
from ktrdr_ops.core.journal import engine
from ktrdr_ops.core.journal.ownership import LockFile

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

HEAD = "0001"
"""The newest schema that this release knows."""
_MAGIC = b"SQLite format 3\0"
_NO_COPY = "there is no room for the copy of the journal that is made before it is migrated"
_FULL_HINT = "Free some space on that disk; nothing was changed."
_STRUCTURE = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"


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


def refuse_strangers(path: Path) -> None:
    """Refuse another program's file before anything is put beside it or changed in it; one that was anchored is a
    damaged journal. Not for a file that this process has open: the close of another handle drops its locks."""
    try:
        with path.open("rb") as file:
            beginning = file.read(len(_MAGIC))
    except OSError:
        return
    if beginning not in (b"", _MAGIC) and not _anchored(path):
        raise JournalRefused(
            f"{path} is not a journal: file is not a database",
            hint="Nothing was changed. Name another file with --journal.",
        )
    refuse_other_tables(path)


def refuse_other_tables(path: Path) -> None:
    """Refuse a database that another program made; as ``refuse_strangers`` for the rest. A damaged file is let pass."""
    path = Path(os.path.realpath(path))
    if not path.exists() or _anchored(path):
        return
    with suppress(*engine.UNREADABLE):
        with closing(engine.connect(path, readonly=True, immutable=True)) as connection:
            found = version(connection)
        if found is None and os.path.exists(f"{path}-wal"):
            _refuse_other_tables_in_log(path)


def _anchored(path: Path) -> bool:
    return os.path.exists(f"{os.path.realpath(path)}.anchor")


def _refuse_other_tables_in_log(path: Path) -> None:
    """The tables may all be in the log still, which cannot be read where it is without a change to what lies there."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        try:
            for suffix in ("", "-wal"):
                shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
        except OSError:  # the log was done away with meanwhile, or there is no room
            return
        with closing(engine.connect(copy, readonly=True)) as connection:
            version(connection)


def is_newer(found: str) -> bool:
    """Whether a later release wrote this schema."""
    return found > HEAD


def migrate(connection: Any, lock: LockFile, found: str | None, *, scripts: Path | None = None) -> None:
    """Bring the journal to the newest schema of ``scripts`` (this release's). The caller holds the gate. Nobody else
    may have an older journal open; an empty file (``found`` is None) is open to nobody.

    An older journal is copied first, to ``<its name>.before-<schema>`` beside it: a file of that name is whole, and
    holds row for row what the journal held. Raises JournalRefused, JournalFull, JournalError; the journal is then as it
    was.
    """
    config = _config(scripts or _scripts())
    if found is None:
        with _told("there is no room for a new journal", "the journal could not be made"):
            upgrade(connection, config)
        return
    lock.take_share_alone()
    try:
        copy_first(connection, _newest(config))
        with _told("there is no room to migrate the journal", "the journal could not be migrated"):
            upgrade(connection, config)
    except BaseException:
        lock.unshare()  # else whoever reads would wait for as long as this process lives
        raise


def upgrade(connection: Any, config: Config) -> None:
    """Run the migrations over an open connection, all in one transaction: a kill leaves the old schema."""
    from alembic import command

    with _sqlalchemy(connection) as wrapped:
        config.attributes["connection"] = wrapped
        with _transaction(connection):
            command.upgrade(config, "head")


@contextmanager
def _transaction(connection: Any) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _told(full: str, failed: str) -> Iterator[None]:
    """SQLite's errors as ours, also those that SQLAlchemy has wrapped."""
    try:
        yield
    except Exception as error:  # SQLAlchemy is not imported to name its own: what is none of SQLite's goes on
        cause = getattr(error, "orig", error)
        if not isinstance(cause, engine.sqlite.Error):
            raise
        if getattr(cause, "sqlite_errorcode", 0) & 0xFF == engine.sqlite.SQLITE_FULL:
            raise JournalFull(full, hint=_FULL_HINT) from error
        raise JournalError(
            f"{failed}: {cause}",
            hint="Check the disk, then try again: the journal has the old schema, or all of the new.",
        ) from error


def copy_first(connection: Any, newest: str) -> None:
    """Copy a journal that is about to be migrated, durably, and compare the copy with it. A copy that an earlier try
    left is made anew: the journal may have been written since."""
    path = Path(connection.execute("PRAGMA database_list").fetchone()[2])
    target = path.with_name(f"{path.name}.before-{newest}")
    partial = target.with_name(f"{target.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with _told(_NO_COPY, "the journal could not be copied before its migration"):
            connection.execute("VACUUM INTO ?", (str(partial),))
            _compare(connection, partial)
        _sync(partial)
        os.replace(partial, target)
        _sync(target.parent)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise JournalFull(_NO_COPY, hint=_FULL_HINT) from error
        raise JournalError(f"{target} could not be made: {error.strerror}", hint="Nothing was changed.") from error


def _compare(connection: Any, copy: Path) -> None:
    """Raises JournalCorrupt unless the copy is sound and has the same structure and rows, whatever their schema."""
    other = engine.sqlite.connect(f"{copy.as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        found = other.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise JournalCorrupt(f"the copy of the journal is damaged: {found}", hint="ktrdr-ops journal verify")
        structure = connection.execute(_STRUCTURE).fetchall()
        tables = [f'SELECT * FROM "{name}"' for kind, name, *_ in structure if kind == "table"]
        for query in (_STRUCTURE, *tables):
            pairs = zip_longest(connection.execute(query), other.execute(query))
            if any(ours != theirs for ours, theirs in pairs):
                raise JournalCorrupt("the copy of the journal is not the same", hint="ktrdr-ops journal verify")
    finally:
        other.close()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sqlalchemy(connection: Any) -> Connection:
    """The same connection as SQLAlchemy's. It begins and ends no transaction by itself: this module does."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import StaticPool

    driver = engine.sqlite
    made = create_engine("sqlite://", module=driver, creator=lambda: connection, poolclass=StaticPool)
    made.dialect.do_rollback = made.dialect.do_commit = made.dialect.do_begin = lambda dbapi_connection: None  # type: ignore[method-assign]
    made.dialect.do_close = lambda dbapi_connection: None  # type: ignore[method-assign]
    return made.connect()


def _config(scripts: Path) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _newest(config: Config) -> str:
    from alembic.script import ScriptDirectory

    return str(ScriptDirectory.from_config(config).get_current_head())


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
    refuse_strangers(path)
    lock = lock_file(path)
    lock.lock_gate()
    connection = engine.connect(path)
    try:
        found = version(connection)
        if found is not None:
            lock.take_share_alone()
            if found != _newest(config):
                copy_first(connection, _newest(config))
        with _sqlalchemy(connection) as wrapped, _transaction(connection):
            run(wrapped)
    finally:
        connection.close()
        lock.unlock_gate()
