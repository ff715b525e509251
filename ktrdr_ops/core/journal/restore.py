"""Putting a copy in the place of a journal that is damaged, lost its end, or is gone.

    copy → verify → new incarnation with its ``restored`` note → sync → keep the old file → rename → anchor

Stopped anywhere on this way it leaves the old journal, or one that refuses to be written until it is restored again, or
the new one: the note names the anchor whose place it takes, so that the rename alone decides.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from ktrdr_ops.core.clock import Clock, micros, utc_now
from ktrdr_ops.core.errors import InvalidValue, JournalCorrupt, JournalError, JournalRefused
from ktrdr_ops.core.events import Json, Restored, payload
from ktrdr_ops.core.folders import sync_folder
from ktrdr_ops.core.journal import engine, schema
from ktrdr_ops.core.journal.anchor import Anchored, anchor_anew, read_anchor
from ktrdr_ops.core.journal.integrity import chained, genesis
from ktrdr_ops.core.journal.journal import GATE_SECONDS, is_open
from ktrdr_ops.core.journal.maintenance import copy_into
from ktrdr_ops.core.journal.ownership import LockFile, lock_file
from ktrdr_ops.core.journal.reader import connect_for_reading
from ktrdr_ops.core.journal.verify import verify_file

T = TypeVar("T")

_HEAD = "SELECT position, hash FROM events ORDER BY position DESC LIMIT 1"
_INCARNATION = "SELECT name FROM incarnations ORDER BY number DESC LIMIT 1"
_INSERT = (
    "INSERT INTO events (position, operation_id, sequence, attempt, type, class, version, at, payload, writer, hash)"
    " VALUES (?, '', ?, NULL, ?, ?, ?, ?, ?, ?, ?)"
)


async def restore(path: Path, copy: Path, *, by: str = "", clock: Clock = utc_now) -> dict[str, Json]:
    """Make ``copy`` the journal at ``path``, as a new incarnation; gives what was done.

    The copy is verified and stays as it is. What stood at ``path`` is kept beside it as ``….before-restore-…``. Nobody
    may have the journal open. Raises InvalidValue (no such copy, or the journal itself), JournalCorrupt (the copy is
    not good), JournalRefused (open elsewhere, naming the process; another journal's copy), JournalBusy, JournalFull.
    """
    path, copy = await asyncio.to_thread(_checked, path, copy)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.partial")
    lock = lock_file(path)
    with _alone(path, lock):
        try:
            await copy_into(copy, temporary)
            report = await verify_file(temporary)
            if not report.ok:
                raise JournalCorrupt(
                    f"the copy {copy} has {len(report.problems)} problems, the first: {report.problems[0].detail}",
                    hint="Nothing was changed. Name another copy.",
                )
            return await _to_its_end(lambda: _put_in_place(path, copy, temporary, by, micros(clock())))
        finally:
            await _to_its_end(lambda: _forget(temporary))


async def _to_its_end(work: Callable[[], T]) -> T:
    """Work in a thread that is waited for even when the caller is cancelled: the gate is held for it."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await working
        raise
    except engine.sqlite.Error as error:
        raise JournalError(f"the copy could not be put in place: {error}", hint="The journal is as it was.") from error
    except OSError as error:
        raise JournalError(
            f"the copy could not be put in place: {error}", hint="Check the disk, then restore again."
        ) from error


def _checked(path: Path, copy: Path) -> tuple[Path, Path]:
    path, copy = path.expanduser().absolute(), copy.expanduser().absolute()
    engine.check_file(path, writing=True)
    schema.refuse_other_tables(path)
    if not copy.is_file():
        raise InvalidValue(f"there is no file {copy}", hint="Name a copy that ktrdr-ops journal backup has made.")
    if path.exists() and copy.samefile(path):
        raise InvalidValue(f"{copy} is the journal itself", hint="Name a copy of it.")
    if not path.parent.is_dir():
        raise InvalidValue(f"there is no folder {path.parent}", hint="Make it first, or name another journal.")
    with suppress(FileNotFoundError):
        path = path.resolve(strict=True)  # a link stays a link
    return path, copy


@contextmanager
def _alone(path: Path, lock: LockFile) -> Iterator[None]:
    if is_open(path):
        raise JournalRefused(f"{path} is open in this process", hint="Close it first.")
    lock.lock_gate(GATE_SECONDS)
    try:
        lock.take_share_alone("is to be restored")
        try:
            yield
        finally:
            lock.unshare()
    finally:
        lock.unlock_gate()


def _put_in_place(path: Path, copy: Path, temporary: Path, by: str, at: int) -> dict[str, Json]:
    """Under the gate, alone."""
    replaced = _replaced(path)
    connection = engine.connect(temporary)
    try:
        _check_schema(connection, copy)
        copied = _head(connection)
        _same_journal(path, connection)
        missing = None if replaced is None else max(replaced.position - copied.position, 0)
        note = Restored(
            detail=_told(copy, copied, replaced, missing),
            copied=copied.document(),
            anchored=None if replaced is None else replaced.document(),
            missing=missing,
            by=by,
        )
        head = _begin_incarnation(connection, copied, note, at)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()
    if path.exists():
        os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
    _sync(temporary)
    kept = _keep(path, at)
    os.replace(temporary, path)
    sync_folder(path.parent)
    anchor_anew(path, head)
    return {
        "path": str(path),
        "copy": str(copy),
        "kept": None if kept is None else str(kept),
        "head": head.document(),
        "copied": note.copied,
        "anchored": note.anchored,
        "missing": missing,
    }


def _replaced(path: Path) -> Anchored | None:
    """The head of the history whose place is taken: the anchor's; where there is none, the file's own if it can be
    read, and that is anchored now: the journal must not pass for whole when this is stopped halfway."""
    anchored = read_anchor(path).anchored
    if anchored is not None or not path.exists() or path.stat().st_size == 0:
        return anchored
    try:
        connection = connect_for_reading(path)
        try:
            found = _head(connection)
        finally:
            connection.close()
    except engine.UNREADABLE:  # damaged, or no journal: it is replaced whatever it holds
        return None
    if found.position:
        anchor_anew(path, found)
    return found if found.position else None


def _head(connection: Any) -> Anchored:
    (name,) = connection.execute(_INCARNATION).fetchone() or (b"",)
    position, hashed = connection.execute(_HEAD).fetchone() or (0, bytes(32))
    if not isinstance(name, bytes) or not isinstance(hashed, bytes):
        raise engine.sqlite.DatabaseError("the journal's own names are damaged")
    return Anchored(name, position, hashed)


def _check_schema(connection: Any, copy: Path) -> None:
    found = schema.version(connection)
    if found is None:
        raise JournalCorrupt(f"the copy {copy} holds no journal", hint="Nothing was changed. Name another copy.")
    if schema.is_newer(found):
        raise JournalRefused(
            f"the copy {copy} was written by a newer release (schema {found}, this one knows {schema.HEAD})",
            hint="Upgrade first: pip install -U ktrdr-ops",
        )


def _same_journal(path: Path, connection: Any) -> None:
    """Refuse the copy of another journal, where the one that stands there can still say which it is."""
    ours = connection.execute("SELECT journal_id FROM journal").fetchone()[0]
    if not path.exists() or path.stat().st_size == 0:
        return
    standing = connect_for_reading(path)
    try:
        theirs = standing.execute("SELECT journal_id FROM journal").fetchone()
    except engine.UNREADABLE:
        return
    finally:
        standing.close()
    if theirs is not None and theirs[0] != ours:
        raise JournalRefused(
            f"the copy is of another journal ({ours}, not {theirs[0]})",
            hint="Nothing was changed. To use it as it is: --journal COPY",
        )


def _told(copy: Path, copied: Anchored, replaced: Anchored | None, missing: int | None) -> str:
    said = f"the copy {copy.name} ended at position {copied.position}"
    if replaced is None:
        return f"{said}; how far the journal had come is not known"
    return f"{said}, the journal had come to {replaced.position}: {missing} events are missing"


def _begin_incarnation(connection: Any, copied: Anchored, note: Restored, at: int) -> Anchored:
    """Begin a new incarnation with its note; gives the head."""
    name, writer, stored, position = secrets.token_bytes(16), secrets.token_bytes(8), payload(note), copied.position + 1
    execute = connection.execute
    execute("BEGIN IMMEDIATE")
    sequence = execute("SELECT coalesce(max(sequence), 0) + 1 FROM events WHERE operation_id = ''").fetchone()[0]
    previous = copied.hash if copied.position else genesis(execute("SELECT journal_id FROM journal").fetchone()[0])
    hashed = chained(
        previous, name, position, "", sequence, None, note.type, note.event_class, note.version, at, writer, stored
    )
    execute(
        "INSERT INTO incarnations (number, name, from_position, started_at)"
        " SELECT max(number) + 1, ?, ?, ? FROM incarnations",
        (name, position, at),
    )
    execute(_INSERT, (position, sequence, note.type, note.event_class, note.version, at, stored, writer, hashed))
    execute("COMMIT")
    return Anchored(name, position, hashed)


def _keep(path: Path, at: int) -> Path | None:
    """Give what stands at the path another name as well, and its log that name alone: SQLite would replay it over
    whatever has the old one."""
    kept = path.with_name(f"{path.name}.before-restore-{at}")
    there = path.exists()
    if there:
        try:
            os.link(path, kept)
        except OSError:  # a filesystem without hard links: for a moment there is no journal, and its anchor says so
            os.replace(path, kept)
    for suffix in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.replace(f"{path}{suffix}", f"{kept}{suffix}")
    sync_folder(path.parent)
    return kept if there else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _forget(temporary: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{temporary}{suffix}").unlink(missing_ok=True)
