"""Work on a journal as a whole: a copy that is known to be good, and what there is to say about the file."""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from ktrdr_ops.core.clock import iso
from ktrdr_ops.core.errors import InvalidValue, JournalCorrupt, JournalError, JournalFull, JournalRefused
from ktrdr_ops.core.events import Json
from ktrdr_ops.core.journal import engine, history
from ktrdr_ops.core.journal.anchor import read_anchor, standing
from ktrdr_ops.core.journal.journal import Journal
from ktrdr_ops.core.journal.reader import connect_for_reading
from ktrdr_ops.core.journal.verify import verify_file
from ktrdr_ops.core.state import STATUSES


async def backup(journal: Journal, target: Path) -> dict[str, Json]:
    """Write a consistent copy of the journal to ``target`` while others go on writing; gives what the copy holds.

    The copy is made under another name beside the target and verified there; only then does it get its name, so a
    file called ``target`` is a good copy. It holds no objects: those are files that never change, and can be copied by
    any means afterwards. Raises InvalidValue (the target exists, or its folder does not), JournalRefused (it may not
    be written), JournalFull, JournalCorrupt (the journal itself has problems).
    """
    target = await asyncio.to_thread(_checked, target)
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.partial")
    try:
        await copy_into(journal.path, temporary)
        report = await verify_file(temporary)
        if not report.ok:
            raise JournalCorrupt(
                f"the journal has {len(report.problems)} problems, the first: {report.problems[0].detail}",
                hint="No backup was made. See them all: ktrdr-ops journal verify",
            )
        await asyncio.to_thread(_name, temporary, target)
    except OSError as error:
        raise JournalError(f"{target} could not be made: {error.strerror}", hint="Name another folder.") from error
    finally:
        with suppress(OSError):  # what went wrong before is what is to be told
            await asyncio.to_thread(temporary.unlink, missing_ok=True)
    return {"path": str(target), "size": _size(target), **report.document()}


def _checked(target: Path) -> Path:
    target = target.expanduser().absolute()
    if "\0" in str(target):
        raise InvalidValue("the backup's path has a NUL character in it")
    if os.path.lexists(target):
        raise InvalidValue(f"{target} exists already", hint="A backup never replaces a file: name another one.")
    if not target.parent.is_dir():
        raise InvalidValue(f"there is no folder {target.parent}", hint="Make it first, or name another one.")
    return target


async def copy_into(path: Path, temporary: Path) -> None:
    """A consistent copy of a database into a new file. Raises JournalRefused, JournalFull, JournalCorrupt.

    The copy is in the thread's hands: when the caller is cancelled, it is told to end and waited for.
    """
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        raise JournalRefused(f"{temporary.parent} may not be written: {error.strerror}") from error
    connection = connect_for_reading(path)
    copying = asyncio.ensure_future(asyncio.to_thread(_vacuum_into, connection, temporary))
    try:
        await asyncio.shield(copying)
    except asyncio.CancelledError:
        connection.interrupt()
        with suppress(JournalError):
            await copying
        raise
    finally:
        connection.close()


def _vacuum_into(connection: Any, temporary: Path) -> None:
    connection.execute("PRAGMA query_only=OFF")  # it forbids writing the copy too; the journal is open for reading only
    try:
        connection.execute("VACUUM INTO ?", (str(temporary),))
    except engine.sqlite.OperationalError as error:
        if error.sqlite_errorcode & 0xFF == engine.sqlite.SQLITE_FULL:
            raise JournalFull(
                f"no room for a copy in {temporary.parent}", hint="Name a folder with more room."
            ) from error
        raise JournalError(f"the copy could not be made: {error}") from error
    except engine.sqlite.DatabaseError as error:
        raise JournalCorrupt(f"the journal is damaged: {error}", hint="ktrdr-ops journal verify") from error


def _name(temporary: Path, target: Path) -> None:
    """Give the copy its name, durably, without ever replacing a file."""
    _sync(temporary)
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise InvalidValue(f"{target} exists already", hint="A backup never replaces a file.") from None
    except OSError:  # a filesystem without hard links
        _checked(target)
        os.replace(temporary, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def info(journal: Journal) -> dict[str, Json]:
    """What there is to say about a journal: where it is, how large, what it holds, who reads and writes it how.

    Sizes in bytes; ``operations`` counts by status, settled.
    """
    identity = (await journal.rows("SELECT journal_id, created_at, archived_through FROM journal"))[0]
    versions = await journal.rows("SELECT version_num FROM alembic_version")
    events = await journal.rows("SELECT count(*) FROM events")
    head = await journal.head()
    return {
        "path": str(journal.path),
        "size": _size(journal.path),
        "wal_size": _size(Path(f"{journal.path}-wal")),
        "journal_id": identity[0],
        "incarnation": head.incarnation,
        "schema": versions[0][0] if versions else None,
        "created_at": iso(identity[1]),
        "events": events[0][0],
        "head": {"position": head.position, "hash": head.hash},
        "anchor": await asyncio.to_thread(_anchor, journal),
        "archived_through": identity[2],
        "operations": await _by_status(journal),
        "sqlite": {"module": engine.sqlite.__name__.partition(".")[0], "version": engine.sqlite.sqlite_version},
        "pages": {name: (await journal.rows(f"PRAGMA {name}"))[0][0] for name in _PAGES},
    }


def _anchor(journal: Journal) -> dict[str, Json]:
    found = read_anchor(journal.path)  # before the database: it is never ahead of it
    connection = connect_for_reading(journal.path)
    try:
        return standing(connection, found).document()
    finally:
        connection.close()


_PAGES = ("page_size", "page_count", "freelist_count")


async def _by_status(journal: Journal) -> dict[str, int]:
    recorded = dict(await journal.rows("SELECT status, count(*) FROM operations GROUP BY status"))
    counts = {status: int(recorded.get(status, 0)) for status in STATUSES}
    for state in await history.live(journal):
        settled = journal.status(state)
        counts[state.status] -= 1
        counts[settled] += 1
    return counts


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
