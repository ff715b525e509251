"""Whether a journal holds what was appended to it, and what follows from that.

    SQLite's own check → the rules of the schema → the head anchor → each event: chain, sequence, terminals
    → projection → objects

Events are read page by page in short transactions and hashed off the event loop, so a journal can be verified while
others write to it. Each event is folded on the way: the table of current states must be exactly that fold. A page of
the table is read in one transaction with whatever was appended meanwhile, so both are of one moment.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ktrdr_ops.core.artifacts import ObjectStore
from ktrdr_ops.core.errors import JournalCorrupt
from ktrdr_ops.core.events import ArtifactPublished, Checkpointed, Event, Json, Opaque
from ktrdr_ops.core.journal import engine, schema
from ktrdr_ops.core.journal.anchor import Standing, read_anchor, standing
from ktrdr_ops.core.journal.integrity import ChainCheck, Problem, genesis
from ktrdr_ops.core.journal.journal import EVENT_COLUMNS, Journal
from ktrdr_ops.core.journal.projection import row as projected
from ktrdr_ops.core.journal.reader import connect_for_reading
from ktrdr_ops.core.state import OperationState, fold

T = TypeVar("T")
Told = Callable[[int, int], None]

MAX_PROBLEMS = 1000
_PAGE = 2000
_ROWS = 500
_OBJECTS = 16
_RULES = frozenset(
    {
        "events_no_delete",
        "events_no_update",
        "events_one_completed",
        "events_one_start",
        "events_one_terminal",
        "events_order",
        "operations_live_key",
    }
)
_TYPES: tuple[tuple[type, ...], ...] = (
    (int,), (str,), (int,), (int, type(None)), (str,), (str,), (int,), (int,), (bytes,), (bytes,), (bytes,),
)  # fmt: skip
_TABLE = (
    "operation_id, suffix, operation_type, key, parent_id, status, attempt, percentage, message, created_at,"
    " started_at, finished_at, first_position, last_position, state"
)
_FIRST = 12
_STATE = 14


@dataclass(frozen=True, slots=True)
class Report:
    """What was found: counts, the last event's position and hash, and the problems in the order of their finding."""

    events: int
    operations: int
    position: int
    hash: str
    problems: tuple[Problem, ...]
    anchor: Standing | None = None

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def document(self) -> dict[str, Json]:
        """As ``journal verify --json`` prints it."""
        return {
            "ok": self.ok,
            "events": self.events,
            "operations": self.operations,
            "head": {"position": self.position, "hash": self.hash},
            "anchor": None if self.anchor is None else self.anchor.document(),
            "problems": [problem.document() for problem in self.problems],
        }


async def verify(journal: Journal, *, objects: ObjectStore | None = None, on_progress: Told | None = None) -> Report:
    """Check a whole journal; with ``objects``, also that all it points to is there and has its hash.

    ``on_progress`` is told (events walked, events there were at the start) in the event loop. Never raises for what a
    file holds: a damaged one is a report with problems.
    """
    return await verify_file(journal.path, objects=objects, on_progress=on_progress)


async def verify_file(path: Path, *, objects: ObjectStore | None = None, on_progress: Told | None = None) -> Report:
    """The same for a file that is no open journal, such as a copy. Raises JournalRefused when it cannot be opened."""
    check = await asyncio.to_thread(_Check, path)
    # One thread, so that the connection is closed only after whatever still uses it when the caller is cancelled.
    thread = ThreadPoolExecutor(1, thread_name_prefix="ktrdr-ops-verify")
    loop = asyncio.get_running_loop()

    async def do(step: Callable[..., T], *arguments: Any) -> T:
        return await loop.run_in_executor(thread, step, *arguments)

    try:
        await _events_and_table(check, do, on_progress)
        if objects is not None:
            wanted = check.objects()
            for start in range(0, len(wanted), _OBJECTS):
                await do(check.look_at_objects, objects, wanted[start : start + _OBJECTS])
        return check.report()
    finally:
        check.interrupt()
        thread.submit(check.close)
        thread.shutdown(wait=False)


async def _events_and_table(check: _Check, do: Callable[..., Any], on_progress: Told | None) -> None:
    try:
        await do(check.database)
        await do(check.anchor)
        total = await do(check.begin)
        while await do(check.walk_page):
            if on_progress is not None:
                on_progress(check.events, max(total, check.events))
        after: str | None = ""
        while after is not None:
            after = await do(check.compare_page, after)
        await do(check.look_for_missing_rows)
    except engine.UNREADABLE as error:
        check.report_problem("database", None, None, f"SQLite cannot read on: {error}")


class _Check:
    """One walk over one file, a step at a time. Its steps are for one thread."""

    def __init__(self, path: Path) -> None:
        self.events = 0
        self._path = path
        self._stands: Standing | None = None
        self._connection = connect_for_reading(path)
        self._chain = ChainCheck(0, b"", [(0, b"")])
        self._found: list[Problem] = []
        self._passed_over = 0
        self._archived = 0
        self._newer = False
        self._states: dict[str, OperationState] = {}
        self._first: dict[str, int] = {}
        self._unfolded: set[str] = set()
        self._terminals: set[tuple[str, int | None]] = set()
        self._completed: set[str] = set()
        self._objects: dict[str, tuple[int, str]] = {}
        self._compared: set[str] = set()

    def close(self) -> None:
        self._connection.close()

    def interrupt(self) -> None:
        """End a query that still runs when nobody waits for it any more."""
        self._connection.interrupt()

    def report_problem(self, kind: str, position: int | None, operation_id: str | None, detail: str) -> None:
        if len(self._found) < MAX_PROBLEMS:
            self._found.append(Problem(kind, position, operation_id or None, detail))
        else:
            self._passed_over += 1

    def report(self) -> Report:
        found = list(self._found)
        if self._passed_over:
            found.append(Problem("more", None, None, f"and {self._passed_over} more problems"))
        hashed = self._chain.previous.hex() if self.events else ""
        return Report(self.events, len(self._compared), self._chain.position, hashed, tuple(found), self._stands)

    def database(self) -> None:
        """SQLite's own check of pages, indexes and constraints, and the rules that keep events as they are."""
        for (line,) in self._connection.execute("PRAGMA integrity_check(20)").fetchall():
            if line != "ok":
                self.report_problem("database", None, None, str(line))
        names = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master").fetchall()}
        found = schema.version(self._connection)
        self._newer = found is not None and schema.is_newer(found)
        if found == schema.HEAD:
            for missing in sorted(_RULES - names):
                self.report_problem("schema", None, None, f"the rule {missing} has been removed")

    def anchor(self) -> None:
        """Whether the end is missing, or this is another history: the anchor is read first, it is never ahead."""
        found = read_anchor(self._path)
        stands = self._stands = standing(self._connection, found)
        problem = stands.problem()
        if problem is not None:
            self.report_problem("anchor", None if stands.anchored is None else stands.anchored.position, None, problem)
        elif found.damaged == len(found.slots):
            self.report_problem("anchor", None, None, "neither slot of the head anchor is whole")

    def begin(self) -> int:
        """Where the chain begins; gives the position of the last event."""
        execute = self._connection.execute
        identity = execute("SELECT journal_id, archived_through, archived_hash FROM journal").fetchone()
        incarnations = execute("SELECT from_position, name FROM incarnations ORDER BY number").fetchall()
        if identity is None or not incarnations:
            self.report_problem("journal", None, None, "the journal's own id is missing")
        journal_id, self._archived, archived_hash = identity or ("", 0, None)
        previous = bytes(archived_hash) if archived_hash is not None else genesis(str(journal_id))
        names = [(0, b""), *((int(start), bytes(name)) for start, name in incarnations)]
        self._chain = ChainCheck(self._archived, previous, names)
        return int(execute("SELECT coalesce(max(position), 0) FROM events").fetchone()[0])

    def walk_page(self) -> bool:
        """Read some more events, then check them. False when there were none."""
        rows = self._read(_PAGE)
        self._walk(rows)
        return bool(rows)

    def compare_page(self, after: str) -> str | None:
        """Compare some rows of the table with the fold; gives the last id, None at the end."""
        execute = self._connection.execute
        execute("BEGIN")
        try:
            appended = self._read(-1)
            rows = execute(
                f"SELECT {_TABLE} FROM operations WHERE operation_id > ? ORDER BY operation_id LIMIT ?", (after, _ROWS)
            ).fetchall()
        finally:
            execute("ROLLBACK")
        self._walk(appended)
        for row in rows:
            self._compare(row)
        return str(rows[-1][0]) if rows else None

    def look_for_missing_rows(self) -> None:
        """An operation that was submitted while rows were compared has one by now."""
        sql = "SELECT 1 FROM operations WHERE operation_id = ?"
        for operation_id in self._states.keys() - self._compared:
            if self._connection.execute(sql, (operation_id,)).fetchone() is None:
                self.report_problem("projection", None, operation_id, "it has events, but no row among the operations")

    def objects(self) -> list[tuple[str, tuple[int, str]]]:
        """Each object that an event points to, with the first event that does."""
        return list(self._objects.items())

    def look_at_objects(self, store: ObjectStore, wanted: list[tuple[str, tuple[int, str]]]) -> None:
        for sha, (position, operation_id) in wanted:
            try:
                store.read(sha)
            except (JournalCorrupt, OSError) as error:
                self.report_problem("object", position, operation_id, str(error))

    def _read(self, limit: int) -> list[tuple[Any, ...]]:
        sql = f"SELECT {EVENT_COLUMNS} FROM events WHERE position > ? ORDER BY position LIMIT ?"
        rows: list[tuple[Any, ...]] = self._connection.execute(sql, (self._chain.position, limit)).fetchall()
        return rows

    def _walk(self, rows: list[tuple[Any, ...]]) -> None:
        for row in rows:
            self.events += 1
            event = self._event(row)
            self._link(event)
            self._ends_once(event)
            if event.operation_id:
                self._fold(event)

    def _event(self, row: tuple[Any, ...]) -> Event:
        if all(isinstance(value, types) for value, types in zip(row, _TYPES, strict=True)):
            return Event(*row)
        self.report_problem("event", row[0], str(row[1]), "a column is of another type than what was appended")
        mended: list[Any] = [
            value if isinstance(value, types) else types[0]() for value, types in zip(row, _TYPES, strict=True)
        ]
        return Event(*mended)

    def _link(self, event: Event) -> None:
        chain = self._chain
        try:
            chain.walk((event,))
        except struct.error:
            self.report_problem("hash", event.position, event.operation_id, "a number in it is out of range")
            chain.position, chain.previous = event.position, event.hash
        for problem in chain.problems:
            self.report_problem(problem.kind, problem.position, problem.operation_id, problem.detail)
        chain.problems.clear()

    def _ends_once(self, event: Event) -> None:
        if event.event_class != "terminal":
            return
        ended = (event.operation_id, event.attempt)
        if ended in self._terminals:
            self.report_problem("terminal", event.position, event.operation_id, f"attempt {event.attempt} ended twice")
        if event.type == "completed" and event.operation_id in self._completed:
            self.report_problem("terminal", event.position, event.operation_id, "it was completed twice")
        self._terminals.add(ended)
        if event.type == "completed":
            self._completed.add(event.operation_id)

    def _fold(self, event: Event) -> None:
        operation_id = event.operation_id
        if operation_id not in self._first:
            self._first[operation_id] = event.position
            if event.sequence > 1 and self._archived:
                self._unfolded.add(operation_id)  # its beginning is in an archive
        try:
            fact = event.fact
            self._states[operation_id] = fold(self._states.get(operation_id), event, fact)
            if self._newer and isinstance(fact, Opaque):
                self._unfolded.add(operation_id)  # the release that wrote it may know more of it than its class
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self._unfolded.add(operation_id)
            self.report_problem("event", event.position, operation_id, f"its content cannot be read: {error}")
            return
        if isinstance(fact, ArtifactPublished | Checkpointed) and fact.object is not None:
            self._objects.setdefault(str(fact.object), (event.position, operation_id))

    def _compare(self, row: tuple[Any, ...]) -> None:
        operation_id = str(row[0])
        self._compared.add(operation_id)
        if operation_id in self._unfolded:
            return
        folded = self._states.get(operation_id)
        if folded is None:
            if not self._archived:
                self.report_problem("projection", row[13], operation_id, "it has no events")
            return
        detail = _difference(row, folded)
        if detail is None and not self._first[operation_id] <= row[_FIRST] <= folded.last_position:
            detail = "its first position is none of its events'"
        if detail is not None:
            self.report_problem("projection", folded.last_position, operation_id, detail)


def _difference(row: tuple[Any, ...], folded: OperationState) -> str | None:
    """What a row of the table says otherwise than the fold of the operation's events; None if nothing."""
    expected = projected(folded, row[_FIRST])
    if tuple(row) == expected:
        return None
    names = _TABLE.replace(",", "").split()
    for name, stored, wanted in zip(names[:_STATE], row, expected, strict=False):
        if stored != wanted:
            return f"its row has {name} {stored!r}, its events give {wanted!r}"
    try:
        same = OperationState.restored(row[_STATE]) == folded
    except (ValueError, TypeError):
        same = False
    return None if same else "its row's state is not what its events give"
