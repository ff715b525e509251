"""The journal itself: append, read, tail, head.

Opening a journal again in the same process returns the same one, counted: a second handle on its files would drop the
locks of the first. Whoever opens it for writing first gives dead owners their ``interrupted``; opening resumes nothing.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktrdr_ops.core.clock import Clock, micros, utc_now
from ktrdr_ops.core.errors import (
    InvalidValue,
    JournalCorrupt,
    JournalError,
    JournalFull,
    JournalRefused,
    KtrdrOpsError,
    OperationNotFound,
)
from ktrdr_ops.core.events import Event, Fact
from ktrdr_ops.core.folders import make_folder
from ktrdr_ops.core.journal import engine, guard, schema
from ktrdr_ops.core.journal.anchor import HEALS, AnchorFile, check_before_opening, refusal
from ktrdr_ops.core.journal.decisions import Request, Settle, draft
from ktrdr_ops.core.journal.ownership import LockFile, Owner, busy, describe, lock_file
from ktrdr_ops.core.journal.reader import Reader, connect_for_reading
from ktrdr_ops.core.journal.relog import make_good
from ktrdr_ops.core.journal.writer import Writer
from ktrdr_ops.core.state import OperationState

EVENT_COLUMNS = "position, operation_id, sequence, attempt, type, class, version, at, payload, writer, hash"
_log = logging.getLogger(__name__)
STALLED_AFTER = 60 * 1_000_000
GATE_SECONDS = 30.0
"""How long a caller waits for a process that holds the gate and does not let go."""
_WATCH_SECONDS = 5.0
_PAGE = 500
_POLL_FLOWING = 0.008
_POLL_IDLE = 0.15


class JournalMissing(JournalRefused):
    """There is no journal there yet."""

    code = "journal_missing"


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the journal: 0 and what stands before the first event when it is empty."""

    incarnation: str
    position: int
    hash: str


class Journal:
    """One open journal. Made by ``open_journal``; ``close`` ends this use of it."""

    def __init__(
        self, path: Path, lock: LockFile, writer: Writer | None, clock: Clock, gate_seconds: float = GATE_SECONDS
    ) -> None:
        self.path = path
        self.clock = clock
        self.lock = lock
        self.damage: JournalCorrupt | None = None
        """Set where the file lacks what was anchored, or holds something else: it is open for reading all the same."""
        self._writer = writer
        self._reader = Reader(path)
        self._gate_seconds = gate_seconds
        self._uses = 1

    @property
    def readonly(self) -> bool:
        """Whether it was opened for reading only."""
        return self._writer is None

    def owner(self) -> Owner:
        """This process as an owner of operations."""
        return self.lock.owner()

    def submit(self, request: Request) -> Future[Any]:
        """Queue a request; the future holds its answer once it is on disk. For threads; loops use ``append``."""
        return self._writing().submit(request)

    async def append(self, request: Request) -> Any:
        """The answer to a request, once it is on disk. Cancelling the caller does not touch the transaction.

        Raises JournalBusy that names the process which holds the gate too long; the request is then given up.
        """
        return await self.acknowledged(self.submit(request))

    async def acknowledged(self, future: Future[Any]) -> Any:
        """The answer to a submitted request; as ``append``."""
        answer = asyncio.wrap_future(future)
        look = min(_WATCH_SECONDS, self._gate_seconds / 2)
        waited = 0.0
        while not (await asyncio.wait({answer}, timeout=look))[0]:
            waited += look
            holder = self.lock.gate_holder()
            if holder is None:
                continue
            if waited >= self._gate_seconds and future.cancel():
                raise busy(holder)
            _log.warning("waiting for the journal: %s", describe(holder))
        return await answer

    def say(
        self,
        operation_id: str,
        attempt: int,
        fact: Fact,
        refused: Callable[[KtrdrOpsError], None] | None = None,
    ) -> None:
        """Queue progress: never blocks, never raises for a value; on disk within 50 ms.

        ``refused`` is told in the writer's thread when the attempt has lost the operation.
        """
        self._writing().say(draft(operation_id, attempt, fact), refused)

    @property
    def backlog(self) -> tuple[int, str | None]:
        """How many requests are queued in this process, and what keeps them from being written, if anything does."""
        return (0, None) if self._writer is None else self._writer.backlog

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until what was queued is on disk. False when the time is over, or the writer has stopped."""
        return self._writer is None or self._writer.flush(timeout)

    def on_commit(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` in the writer's thread after each commit of this process; gives what ends it."""
        return self._writing().on_commit(listener)

    async def rows(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Rows of one short query."""
        return await self._reader.rows(sql, parameters)

    async def read(
        self, operation_id: str | None = None, *, after: int = 0, until: int | None = None, limit: int = _PAGE
    ) -> list[Event]:
        """Events behind a position, in order: of one operation, or of all."""
        where, parameters = "position > ?", [after]
        if operation_id is not None:
            where, parameters = f"operation_id = ? AND {where}", [operation_id, after]  # type: ignore[list-item]
        if until is not None:
            where += " AND position <= ?"
            parameters.append(until)
        sql = f"SELECT {EVENT_COLUMNS} FROM events WHERE {where} ORDER BY position LIMIT ?"
        return [Event(*row) for row in await self.rows(sql, (*parameters, limit))]

    async def read_all(
        self, operation_id: str | None = None, *, after: int = 0, until: int | None = None
    ) -> AsyncIterator[Event]:
        """Every event behind a position up to another, page by page."""
        while page := await self.read(operation_id, after=after, until=until):
            for event in page:
                yield event
            after = page[-1].position

    async def tail(
        self, operation_id: str | None = None, *, after: int | Head | None = None
    ) -> AsyncGenerator[Event, None]:
        """Each event once, in order, as it is committed by this or another process. It never ends by itself.

        ``after`` defaults to the head: only what comes from now on. A position trusts the journal up to there; a head
        is checked against it. Raises JournalCorrupt when the journal no longer holds what was read of it: it went
        back, another history took its place, or another file.
        """
        last = after if isinstance(after, Head) else await self._cursor(after)
        version = await self._reader.data_version()
        wait = _POLL_FLOWING
        while True:
            page = await self.read(operation_id, after=last.position)
            await self._check_cursor(last)
            for event in page:
                last = Head(last.incarnation, event.position, event.hash.hex())
                yield event
            if page:
                wait = _POLL_FLOWING
                continue
            while (now := await self._reader.data_version()) == version:
                if self._reader.replaced:
                    raise refusal(self.path, "another file was put in its place while it was open")
                await asyncio.sleep(wait)
                wait = min(wait * 1.2, _POLL_IDLE)
            version = now

    async def _cursor(self, position: int | None) -> Head:
        """What stands at a position now (None: at the head)."""
        if position is None:
            return await self.head()
        rows = await self.rows("SELECT hash FROM events WHERE position = ?", (position,))
        return Head(await self._incarnation(position), position, bytes(rows[0][0]).hex() if rows else "")

    async def _incarnation(self, position: int) -> str:
        """The incarnation that a position belongs to."""
        sql = "SELECT name FROM incarnations WHERE from_position <= ? ORDER BY number DESC LIMIT 1"
        return bytes((await self.rows(sql, (max(position, 1),)))[0][0]).hex()

    async def _check_cursor(self, last: Head) -> None:
        """Raise JournalCorrupt unless the journal still holds what a reader has read last."""
        if last.position == 0:
            return
        found = await self.rows("SELECT hash FROM events WHERE position = ?", (last.position,))
        if found and bytes(found[0][0]).hex() == last.hash:  # the incarnation is part of each hash
            return
        archived = (await self.rows("SELECT archived_through FROM journal"))[0][0]
        head = await self.head()
        if not found and last.position <= archived:
            return
        if last.position > head.position:
            problem = f"position {last.position:,} had been read, but it ends at {head.position:,}: it went back"
        else:
            problem = f"position {last.position:,} is not what had been read there: this is another history"
        if head.incarnation != last.incarnation:
            problem += f" (incarnation {head.incarnation[:8]}, not {last.incarnation[:8]}: a copy was restored)"
        raise refusal(self.path, problem, max(last.position - head.position, 0) or None)

    async def head(self) -> Head:
        """Where the journal ends now."""
        incarnation = (await self.rows("SELECT name FROM incarnations ORDER BY number DESC LIMIT 1"))[0][0]
        last = await self.rows("SELECT position, hash FROM events ORDER BY position DESC LIMIT 1")
        position, hashed = last[0] if last else (0, b"")
        return Head(bytes(incarnation).hex(), position, bytes(hashed).hex())

    async def state(self, operation_id: str) -> OperationState:
        """The recorded state of one operation. Raises OperationNotFound."""
        rows = await self.rows("SELECT state FROM operations WHERE operation_id = ?", (operation_id,))
        if not rows:
            raise OperationNotFound(f"there is no operation {operation_id}", hint="See what there is: ktrdr-ops list")
        return OperationState.restored(rows[0][0])

    def status(self, state: OperationState) -> str:
        """The recorded status, settled: a live one whose owner is gone is ``interrupted``."""
        dead = state.live and state.owner is not None and not self.lock.alive(state.owner["slot"])
        return "interrupted" if dead else state.status

    def stalled(self, state: OperationState) -> bool:
        """Alive, but silent for 60 s, or past the end of a wait that it announced."""
        if self.status(state) not in ("running", "cancelling"):
            return False
        silent_since = max(state.last_at, (state.waiting or {}).get("until") or 0)
        return micros(self.clock()) - silent_since > STALLED_AFTER

    async def settle(self) -> list[str]:
        """Give dead owners their ``interrupted``; gives the ids of those it concerned."""
        settled: list[str] | int = await self.append(Settle())
        return settled if isinstance(settled, list) else []

    async def aclose(self) -> None:
        """Close this loop's reading connection, and end this use of the journal."""
        await self._reader.aclose()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """End this use. The last one writes what is queued and closes the file; the lock file stays open."""
        with _OPEN_GUARD:
            self._uses -= 1
            if self._uses > 0:
                return
            _OPEN.pop(_key(self.path), None)
            if self._writer is not None:
                self._writer.close()
            guard.release(self.path)
            self.lock.unshare()

    def _writing(self) -> Writer:
        if self._writer is None:
            raise JournalRefused(f"{self.path} was opened for reading only")
        return self._writer


_OPEN: dict[tuple[int, str], Journal] = {}
_OPEN_GUARD = threading.RLock()


def _key(path: Path) -> tuple[int, str]:
    return os.getpid(), os.path.realpath(path)


def is_open(path: Path) -> bool:
    """Whether this process has the journal open."""
    with _OPEN_GUARD:
        return _key(path) in _OPEN


def open_journal(
    path: Path | str, *, readonly: bool = False, clock: Clock = utc_now, gate_seconds: float = GATE_SECONDS
) -> Journal:
    """Open a journal; for writing, it is made or migrated first, and dead owners are settled.

    ``gate_seconds``: how long it, and each append, waits for a process that holds the gate and does not let go.

    Raises JournalMissing (reading what is not there), JournalRefused (a directory, another program's file, a network
    filesystem, read-only, newer than this release), JournalFull, JournalBusy.
    """
    path = Path(path).expanduser().absolute()
    if "\0" in str(path):
        raise InvalidValue("the journal's path has a NUL character in it", hint="Name another file with --journal.")
    with _OPEN_GUARD:
        found = _OPEN.get(_key(path))
        if found is not None and (readonly or not found.readonly):
            found._uses += 1
            return found
        if found is not None:
            raise JournalError(
                f"{path} is open for reading in this process", hint="Close it, then open it for writing."
            )
        journal = _open_for_reading(path, clock) if readonly else _open_for_writing(path, clock, gate_seconds)
        _OPEN[_key(path)] = journal
        guard.guard(path)
        return journal


def _open_for_reading(path: Path, clock: Clock) -> Journal:
    if not path.exists():
        _damage(path)
        raise JournalMissing(
            f"there is no journal at {path}", hint="Start an operation first, or name the journal with --journal."
        )
    engine.check_file(path, writing=False)
    schema.refuse_strangers(path)
    lock = lock_file(path)
    lock.share()
    try:
        damage = _damage(path)
        connection = connect_for_reading(path)
        try:
            if _version(connection, path) is None:
                raise JournalMissing(f"{path} is empty: no operation was journaled yet", hint="Start one first.")
        finally:
            connection.close()
    except BaseException:
        lock.unshare()
        raise
    journal = Journal(path, lock, None, clock)
    if damage is not None:
        _log.warning("%s; it can only be read. %s", damage.message, HEALS)
        journal.damage = damage
    return journal


def _open_for_writing(path: Path, clock: Clock, gate_seconds: float) -> Journal:
    engine.check_file(path, writing=True)
    schema.refuse_strangers(path)
    try:
        if not path.exists():
            make_folder(path.parent, mode=0o700)
    except OSError as error:
        raise JournalRefused(
            f"the folder {path.parent} cannot be made: {error.strerror}", hint="Name another file with --journal."
        ) from error
    lock = lock_file(path)
    lock.lock_gate(gate_seconds)
    try:
        _make_good(path, lock)
        damage = _damage(path)
        if damage is not None:
            raise damage
        _make_private(path)
        connection = engine.connect(path)
        try:
            _bring_up_to_date(connection, path, lock)
        except BaseException:
            connection.close()
            raise
        lock.share()
    finally:
        lock.unlock_gate()
    try:
        writer = _settled(Writer(connection, lambda: engine.connect(path), lock, clock, AnchorFile(path)))
    except BaseException as error:
        connection.close()
        lock.unshare()
        if isinstance(error, engine.UNREADABLE):
            damaged = JournalCorrupt(f"{path} is damaged: {error}", hint="ktrdr-ops journal verify")
            raise engine.disk_failed(error, path) or damaged from error
        raise
    return Journal(path, lock, writer, clock, gate_seconds)


def _settled(writer: Writer) -> Writer:
    try:
        writer.submit(Settle()).result()
    except BaseException:
        writer.close()
        raise
    return writer


def _make_private(path: Path) -> None:
    """A new journal is this user's alone before SQLite opens it: what is killed in between leaves it so."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise JournalFull(f"no room for the journal {path}", hint="Free some space on that disk.") from error
        raise JournalRefused(
            f"{path} cannot be made: {error.strerror}", hint="Check the folder and its disk."
        ) from error


def _make_good(path: Path, lock: LockFile) -> None:
    try:
        make_good(lock, path)
    except OSError as error:
        raise JournalRefused(
            f"a sync of {path} had failed, and writing its log again fails too: {error.strerror}",
            hint="Reading works. Check its disk.",
        ) from error


def _damage(path: Path) -> JournalCorrupt | None:
    """The error for a journal that lacks what was anchored, or holds something else. Raises it where nothing can be
    read."""
    stands = check_before_opening(path, connect_for_reading)
    problem = stands.problem()
    return None if problem is None else refusal(path, problem, stands.missing)


def _version(connection: Any, path: Path) -> str | None:
    try:
        return schema.version(connection)
    except engine.UNREADABLE as error:
        foreign = JournalRefused(
            f"{path} is not a journal: {error}", hint="Nothing was changed. Name another file with --journal."
        )
        raise engine.disk_failed(error, path) or foreign from error


def _bring_up_to_date(connection: Any, path: Path, lock: LockFile) -> None:
    found = _version(connection, path)
    if found is not None and schema.is_newer(found):
        raise JournalRefused(
            f"{path} was written by a newer release (schema {found}, this one knows {schema.HEAD})",
            hint="Reading works. To write, upgrade: pip install -U ktrdr-ops",
        )
    if found != schema.HEAD:
        schema.migrate(connection, lock, found)
