"""The one thread that writes.

It takes what waits (lifecycle and progress in one queue, in one order), and makes one transaction of it:

    gate → BEGIN IMMEDIATE → head → anchor → decide each request → events and projection → COMMIT → acknowledge → tell

A request that is refused is refused alone. What a caller waits for is acknowledged only after the commit. When the
statements fail before COMMIT, nothing was written: waiting callers are told, queued progress stays queued and is tried
again. When COMMIT itself raises, what became of the batch is unknown: the writer stops and every waiting and later
append raises.

That is the last resort, though. A COMMIT that raised may have reached the page cache and not the disk, so looking its
events up proves nothing. The log is written again as it can be read, and synced; the connection is closed and made
anew, and in a new transaction either a note follows the events that are there, or the batch is appended again: only
*that* COMMIT acknowledges. Only when that fails too, the writer stops. Until it has succeeded, a mark in the lock file
tells every other process to write the log again before it appends anything.

The queue is bounded by bytes. When it is full, a progress event takes the place of its operation's last queued one (and
counts it as skipped); where there is none it is let in. Nobody is ever blocked by progress.

After an attempt's end, and when nothing came for 50 ms, the head anchor is settled: under the gate, with a sync.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

from ktrdr_ops.core.clock import Clock, in_micros
from ktrdr_ops.core.errors import (
    JournalCorrupt,
    JournalError,
    JournalFull,
    JournalRefused,
    JournalStopped,
    KtrdrOpsError,
)
from ktrdr_ops.core.events import Event, JournalRecovered, Progressed
from ktrdr_ops.core.journal import engine
from ktrdr_ops.core.journal.anchor import Anchored, AnchorFile
from ktrdr_ops.core.journal.decisions import Claim, Decision, Draft, Note, Request, Say, decide, draft
from ktrdr_ops.core.journal.integrity import chained, genesis
from ktrdr_ops.core.journal.ownership import LockFile
from ktrdr_ops.core.journal.projection import Projection
from ktrdr_ops.core.journal.relog import make_good, write_log_again

_log = logging.getLogger(__name__)

QUEUE_BYTES = 64 * 1024 * 1024
_BATCH = 1000
_RETRY_SECONDS = 1.0
_SETTLE_SECONDS = 1.0  # whoever holds the gate for longer anchors what it writes
_OVERHEAD = 400  # bytes an item costs beside its payload, about

_INSERT = (
    "INSERT INTO events (position, operation_id, sequence, attempt, type, class, version, at, payload, writer, hash)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_CLASS = 5  # where an event's class stands among them


@dataclass(slots=True)
class _Item:
    request: Request
    at: int
    size: int
    future: Future[Any] | None
    refused: Callable[[KtrdrOpsError], None] | None = None
    begun: bool | None = None

    def begin(self) -> bool:
        """From now on its caller cannot give it up. False when the caller has given it up already."""
        if self.begun is None:
            self.begun = self.future is None or self.future.set_running_or_notify_cancel()
        return self.begun


class _CommitUnknown(Exception):
    """COMMIT raised."""


class Writer:
    """Appends to one journal, from one thread of this process."""

    def __init__(
        self,
        connection: Any,
        reconnect: Callable[[], Any],
        lock: LockFile,
        clock: Clock,
        anchor: AnchorFile,
        *,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        self._connection = connection
        self._reconnect = reconnect
        self._lock = lock
        self._database = Path(str(lock.path).removesuffix(".lock"))
        self._anchor = anchor
        self._now = in_micros(clock)
        self._limit = queue_bytes
        self._nonce = secrets.token_bytes(8)
        self._projection = Projection(connection, lock.alive)
        self._incarnation, self._genesis = _identity(connection)
        self._head: tuple[int, bytes] | None = None
        self._queue: deque[_Item] = deque()
        self._bytes = 0
        self._last: dict[str, _Item] = {}
        self._skipped: dict[str, int] = {}
        self._guard = threading.Lock()
        self._wake = threading.Condition(self._guard)
        self._busy = False
        self._closing = False
        self._stopped: JournalError | None = None
        self._thread: threading.Thread | None = None
        self._listeners: list[Callable[[], None]] = []
        self._trouble: str | None = None
        _WRITERS.add(self)

    @property
    def backlog(self) -> tuple[int, str | None]:
        """How many requests are queued, and what keeps them from being written, if anything does."""
        return len(self._queue), self._trouble

    def forked(self) -> None:
        """This is a copy in a forked child: it has no thread, and its locks may be held for ever."""
        self._guard = threading.Lock()
        self._wake = threading.Condition(self._guard)
        self._stopped = JournalStopped(
            "a forked child may not use its parent's journal",
            hint="Open the journal in the child itself, after an exec (multiprocessing: use the 'spawn' method).",
        )

    def submit(self, request: Request) -> Future[Any]:
        """Queue a request; its future holds the answer once it is on disk, or the reason why not."""
        future: Future[Any] = Future()
        size = sum(len(said.payload) for said in request.drafts) if isinstance(request, Say) else 0
        item = _Item(request, self._now(), size + _OVERHEAD, future)
        with self._guard:
            if self._stopped is not None or self._closing:
                raise self._stopped or JournalRefused("the journal is closed")
            if isinstance(request, Say):
                self._last.pop(request.drafts[0].operation_id, None)  # what was said before it keeps its place
            self._enqueue(item)
        return future

    def say(self, said: Draft, refused: Callable[[KtrdrOpsError], None] | None = None) -> None:
        """Queue progress. It is on disk within 50 ms; the caller never waits. ``refused`` (which must not block) is
        told when the attempt has lost the operation."""
        if said.operation_id in self._skipped:
            said = _with_skipped(said, self._skipped[said.operation_id])
        item = _Item(said, self._now(), len(said.payload) + _OVERHEAD, None, refused)
        with self._guard:
            stopped = self._stopped
            if stopped is None and not self._closing:
                if self._bytes >= self._limit and self._replace_last(said):
                    return
                self._last[said.operation_id] = item
                self._enqueue(item)
        if stopped is not None and refused is not None:
            refused(stopped)

    def on_commit(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` (which must not block) after each commit; gives the function that ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was queued before is written (or refused). False when the time is over, or the writer has
        stopped."""
        with self._guard:
            return self._wake.wait_for(self._idle, timeout) and self._stopped is None

    def _idle(self) -> bool:
        return self._stopped is not None or (not self._queue and not self._busy)

    def close(self, timeout: float = 30.0) -> None:
        """Write what is queued, then end the thread and the connection."""
        with self._guard:
            self._closing = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                return  # it waits at the gate for a stopped process: its connection must not be closed under it
        self._connection.close()
        self._anchor.close()

    def _enqueue(self, item: _Item) -> None:
        queue = self._queue
        queue.append(item)
        self._bytes += item.size
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ktrdr-ops-journal", daemon=True)
            self._thread.start()
        if len(queue) == 1:
            self._wake.notify_all()

    def _replace_last(self, said: Draft) -> bool:
        queued = self._last.get(said.operation_id)
        if queued is None or not isinstance(queued.request, Draft) or not isinstance(said.fact, Progressed):
            return False
        if not isinstance(queued.request.fact, Progressed):
            return False
        skipped = self._skipped[said.operation_id] = self._skipped.get(said.operation_id, 0) + 1
        queued.request = _with_skipped(said, skipped)
        return True

    def _run(self) -> None:
        while True:
            batch = self._take()
            try:
                if batch:
                    self._write(batch)
                else:
                    self._settle_anchor()
            except Exception as error:  # whatever ended the writer, nobody may wait for it for ever
                _log.exception("the journal's writer has stopped")
                self._stop(batch, error)
                return
            finally:
                with self._guard:
                    self._busy = False
                    self._wake.notify_all()
            if not batch and self._closing and not self._queue:
                return

    def _take(self) -> list[_Item]:
        """What waits; nothing when the journal is closed, or when the anchor is due."""
        with self._guard:
            self._wake.wait_for(lambda: self._queue or self._closing, self._anchor.due)
            batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
            self._bytes -= sum(item.size for item in batch)
            self._last.clear()  # what was taken can no longer be replaced
            self._busy = bool(batch)
            return batch

    def _write(self, batch: list[_Item]) -> None:
        try:
            answers = self._transaction(batch)
        except engine.sqlite.IntegrityError as error:
            if len(batch) > 1:
                for item in batch:
                    self._write([item])
                return
            self._tell(batch, [JournalRefused(f"the journal refuses this event: {error}")])
            return
        except engine.sqlite.Error as error:
            self._not_written(batch, error)
            return
        self._trouble = None
        self._tell(batch, answers)
        for listener in tuple(self._listeners):
            listener()

    def _transaction(self, batch: list[_Item]) -> list[Any]:
        self._lock.lock_gate()
        try:
            self._make_good()
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                answers, rows = self._decide(batch)
                if rows:
                    self._connection.executemany(_INSERT, rows)
                self._projection.flush()
            except BaseException:
                self._roll_back()
                raise
            noted = False
            try:
                self._commit()
            except _CommitUnknown as unknown:
                answers = self._settle_unknown(batch, answers, rows, unknown)
                noted = True
            if (rows or noted) and self._head is not None:  # a COMMIT without rows syncs nothing
                ended = any(row[_CLASS] == "terminal" for row in rows)
                self._anchor.committed(Anchored(self._incarnation, *self._head), ended=ended)
            return answers
        finally:
            self._lock.unlock_gate()

    def _settle_anchor(self) -> None:
        if self._anchor.due is None or not self._lock.try_gate(_SETTLE_SECONDS):
            return
        try:
            self._anchor.settle()
        finally:
            self._lock.unlock_gate()

    def _commit(self) -> None:
        try:
            self._connection.execute("COMMIT")
        except engine.sqlite.Error as error:
            self._roll_back()
            if error.sqlite_errorcode & 0xFF == engine.sqlite.SQLITE_FULL:
                raise  # the frame that commits found no room, so it is not there: nothing was written
            raise _CommitUnknown(str(error)) from error

    def _settle_unknown(
        self, batch: list[_Item], answers: list[Any], rows: list[tuple[Any, ...]], unknown: _CommitUnknown
    ) -> list[Any]:
        """Find out, under the gate, what became of a batch whose COMMIT raised; gives its answers, or raises again."""
        _log.error("COMMIT raised: %s; finding out what became of %d events", unknown, len(rows))
        try:
            self._lock.doubt()
            write_log_again(self._database)
            self._connection.close()
            self._connection = self._reconnect()
            self._projection = Projection(self._connection, self._lock.alive)
            self._connection.execute("BEGIN IMMEDIATE")
            kept = [row for row in rows if self._is_there(row)]
            if not kept:
                answers, rows = self._decide(batch)
                self._connection.executemany(_INSERT, rows)
            elif len(kept) < len(rows):
                raise unknown
            outcome = "were kept" if kept else "were not there and were appended again"
            note = JournalRecovered(detail=f"a COMMIT raised ({unknown}); its {len(rows)} events {outcome}")
            _, noted = self._decide([_Item(Note("", note), self._now(), 0, None)])
            self._connection.executemany(_INSERT, noted)
            self._projection.flush()
            self._connection.execute("COMMIT")
            self._lock.trust()
        except (engine.sqlite.Error, OSError) as error:
            raise _CommitUnknown(f"{unknown}, then {error}") from error
        return answers

    def _make_good(self) -> None:
        try:
            make_good(self._lock, self._database)
        except OSError as error:
            raise engine.sqlite.OperationalError(f"a sync had failed, and again: {error.strerror}") from error

    def _is_there(self, row: tuple[Any, ...]) -> bool:
        found = self._connection.execute("SELECT hash FROM events WHERE position = ?", (row[0],)).fetchone()
        return found is not None and bytes(found[0]) == row[-1]

    def _roll_back(self) -> None:
        self._head = None
        self._projection.forget()
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _decide(self, batch: list[_Item]) -> tuple[list[Any], list[tuple[Any, ...]]]:
        position, previous = self._read_head()
        answers: list[Any] = []
        rows: list[tuple[Any, ...]] = []
        for item in batch:
            if not item.begin():
                answers.append(None)
                continue
            try:
                decision = decide(item.request, self._projection)
            except KtrdrOpsError as refusal:
                answers.append(refusal)
                continue
            for said in decision.drafts:
                position += 1
                event = self._event(said, position, previous, item.at)
                previous = event.hash
                self._projection.apply(event, said.fact)
                rows.append(_row(event))
            answers.append(_answer(decision, position))
        self._head = (position, previous)
        return answers, rows

    def _read_head(self) -> tuple[int, bytes]:
        found = self._connection.execute("SELECT position, hash FROM events ORDER BY position DESC LIMIT 1").fetchone()
        head = (found[0], bytes(found[1])) if found else (0, self._genesis)
        if head != self._head:
            self._projection.forget()
            self._anchor.check(self._connection)
        self._anchor.hold()
        return head

    def _event(self, said: Draft, position: int, previous: bytes, at: int) -> Event:
        fact = said.fact
        sequence = self._projection.next_sequence(said.operation_id)
        hashed = chained(
            previous,
            self._incarnation,
            position,
            said.operation_id,
            sequence,
            said.attempt,
            fact.type,
            fact.event_class,
            fact.version,
            at,
            self._nonce,
            said.payload,
        )
        return Event(
            position,
            said.operation_id,
            sequence,
            said.attempt,
            fact.type,
            fact.event_class,
            fact.version,
            at,
            said.payload,
            self._nonce,
            hashed,
        )

    def _tell(self, batch: list[_Item], answers: list[Any]) -> None:
        for item, answer in zip(batch, answers, strict=True):
            if item.future is not None:
                if not item.begin():
                    continue
                if isinstance(answer, BaseException):
                    item.future.set_exception(answer)
                else:
                    item.future.set_result(answer)
            elif isinstance(answer, KtrdrOpsError) and item.refused is not None:
                item.refused(answer)

    def _not_written(self, batch: list[_Item], error: Exception) -> None:
        """The transaction failed before it committed: who waits is told, progress is tried again later."""
        told = _as_journal_error(error)
        if self._trouble is None:
            _log.error("nothing could be appended: %s", error)
        self._trouble = told.message
        with self._guard:
            items = batch + list(self._queue)  # who waits behind them would wait for ever
            waiting = [item for item in items if item.future is not None]
            self._queue = deque(item for item in items if item.future is None and not self._closing)
            self._bytes = sum(item.size for item in self._queue)
        self._tell(waiting, [told] * len(waiting))
        with self._guard:
            self._wake.wait_for(lambda: self._closing, _RETRY_SECONDS if self._queue else 0)

    def _stop(self, batch: list[_Item], error: Exception) -> None:
        stopped: JournalError = JournalStopped(
            f"the journal's writer stopped: {error}; whether the last {len(batch)} requests are kept is unknown",
            hint="Check the disk, then start again: opening the journal settles what is there.",
        )
        if isinstance(error, JournalCorrupt):
            stopped = error  # found before anything was written
        with self._guard:
            self._stopped = stopped
            batch = batch + list(self._queue)
            self._queue.clear()
            self._wake.notify_all()
        waiting = [item for item in batch if item.future is None or not item.future.done()]
        self._tell(waiting, [stopped] * len(waiting))


_WRITERS: WeakSet[Writer] = WeakSet()


def _forked() -> None:
    for writer in tuple(_WRITERS):
        writer.forked()


os.register_at_fork(after_in_child=_forked)


def _with_skipped(said: Draft, skipped: int) -> Draft:
    """The same progress, which says how many updates of its operation were left out until now."""
    if not isinstance(said.fact, Progressed):
        return said
    fact = replace(said.fact, skipped=skipped)
    return draft(said.operation_id, said.attempt, fact)


def _identity(connection: Any) -> tuple[bytes, bytes]:
    """(name of the current incarnation, what stands before the first event)."""
    name = connection.execute("SELECT name FROM incarnations ORDER BY number DESC LIMIT 1").fetchone()[0]
    journal_id = connection.execute("SELECT journal_id FROM journal").fetchone()[0]
    return bytes(name), genesis(journal_id)


def _row(event: Event) -> tuple[Any, ...]:
    return (
        event.position,
        event.operation_id,
        event.sequence,
        event.attempt,
        event.type,
        event.event_class,
        event.version,
        event.at,
        event.payload,
        event.writer,
        event.hash,
    )


def _answer(decision: Decision, position: int) -> Any:
    if isinstance(decision.answer, Claim):
        return replace(decision.answer, position=position)
    return position if decision.answer is None else decision.answer


def _as_journal_error(error: Exception) -> JournalError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == engine.sqlite.SQLITE_FULL:
        return JournalFull(
            "there is no room left for the journal", hint="Free some space on its disk; nothing was half-written."
        )
    if code == engine.sqlite.SQLITE_READONLY:
        return JournalError("the journal became read-only", hint="Check its permissions and its disk.")
    return JournalError(f"nothing was appended: {error}", hint="ktrdr-ops doctor")
