"""What a journal goes through, from its making to its migration, as scripts for a process that may be killed in them.

Each cycle finds a folder (``prepare``), does its work there (``run``) and writes down what the journal told it, at the
moment it was told. Whatever happened then, ``check`` opens the folder afresh and says what is wrong: the journal opens,
is sound, its chain and projection hold, what was acknowledged is there, and what was refused is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktrdr_ops.core import ending
from ktrdr_ops.core.artifacts import ObjectStore, Publication
from ktrdr_ops.core.cancellation import CancellationSystem
from ktrdr_ops.core.errors import KtrdrOpsError, OperationCancelledException, OperationInterrupted
from ktrdr_ops.core.events import Event, Noted, Progressed, StepCompleted, Submitted
from ktrdr_ops.core.journal import engine, maintenance, schema, writer
from ktrdr_ops.core.journal.decisions import Cancel, Claim, Draft, Note, Resume, Say, Start, draft
from ktrdr_ops.core.journal.journal import Journal, _version, open_journal
from ktrdr_ops.core.journal.ownership import lock_file
from ktrdr_ops.core.journal.verify import verify, verify_file
from ktrdr_ops.core.orchestration import AsyncOperation, AsyncOrchestrationFramework
from ktrdr_ops.core.progress import GenericProgressManager
from tests.journals.next_schema import NEXT, scripts_with_a_next_schema

PATIENCE = 0.6
"""Seconds after which a cycle that waits for room on the disk gives up, as a person would."""
UNKNOWN = "journal_stopped"

Line = dict[str, Any]


def hurry() -> None:
    """Wait for room on the disk for moments instead of seconds: there are thousands of runs."""
    ending.FULL_RETRY_SECONDS = writer._RETRY_SECONDS = 0.05


class Told:
    """What the process was told, written where a kill leaves it."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def say(self, **line: Any) -> None:
        """One line, at once."""
        os.write(self._handle, json.dumps(line).encode() + b"\n")

    def raised(self, error: BaseException) -> None:
        """The cycle ended so. An OSError names itself to people as the journal's own errors do."""
        clear = isinstance(error, KtrdrOpsError) or (isinstance(error, OSError) and bool(error.strerror))
        self.say(raised=getattr(error, "code", type(error).__name__), clear=clear, text=str(error))

    def answered(self, request: Any, future: Future[Any]) -> None:
        """The journal answered a request: these events are acknowledged, or refused."""
        if future.cancelled():
            return
        error = future.exception()
        facts = [_identity(said) for said in request.drafts] if isinstance(request, Say) else []
        if isinstance(request, Note):
            facts = [_identity(draft(request.operation_id, None, request.fact))]
        if error is not None:
            self.say(refused=facts, code=getattr(error, "code", type(error).__name__))
            return
        answer = future.result()
        if isinstance(answer, Claim):
            self.say(claimed=answer.operation_id, attempt=answer.attempt, position=answer.position)
        elif isinstance(request, Cancel):
            self.say(asked_to_cancel=request.operation_id)
        else:
            self.say(acked=facts, position=answer)


def _identity(said: Draft) -> list[str]:
    return [said.operation_id, said.fact.type, hashlib.sha256(said.payload).hexdigest()]


def listening(journal: Journal, told: Told) -> Journal:
    """The journal, with what it answers written down: for progress, what a flush that said so made durable."""
    submit, say, flush = journal.submit, journal.say, journal.flush
    said: list[list[str]] = []

    def submitting(request: Any) -> Future[Any]:
        future = submit(request)
        future.add_done_callback(lambda done: told.answered(request, done))
        return future

    def saying(operation_id: str, attempt: int, fact: Any, refused: Any = None) -> None:
        said.append(_identity(draft(operation_id, attempt, fact)))
        say(operation_id, attempt, fact, refused)

    def flushing(timeout: float | None = None) -> bool:
        before = list(said)
        done = flush(timeout)
        if done:
            told.say(acked=before, position=None)
        return done

    for name, listener in (("submit", submitting), ("say", saying), ("flush", flushing)):
        setattr(journal, name, listener)
    return journal


@asynccontextmanager
async def opened(folder: Path, told: Told) -> AsyncIterator[Journal]:
    """The folder's journal, closed again whatever happens."""
    journal = listening(open_journal(folder / "journal.db"), told)
    told.say(opened=True)
    try:
        yield journal
    finally:
        await journal.aclose()


@asynccontextmanager
async def framework(journal: Journal) -> AsyncIterator[AsyncOrchestrationFramework]:
    """A framework that does not wait for room on the disk for ever."""
    made = AsyncOrchestrationFramework(GenericProgressManager(), CancellationSystem(), journal=journal)
    giving_up = asyncio.get_running_loop().call_later(PATIENCE, made.interrupt_all, "no more patience")
    try:
        yield made
    finally:
        giving_up.cancel()
        await made.aclose()


async def _nothing(folder: Path) -> None:
    """The cycle begins in an empty folder."""


async def _with_history(folder: Path) -> None:
    """A journal in which an operation ended and another was interrupted."""
    journal = open_journal(folder / "journal.db")
    made = AsyncOrchestrationFramework(GenericProgressManager(), CancellationSystem(), journal=journal)
    await made.execute_operation(operation("earlier"), work)
    with contextlib.suppress(OperationInterrupted):
        await made.execute_operation(operation("left"), interrupted_work)
    await made.aclose()
    await journal.aclose()


async def _left_by_the_dead(folder: Path) -> None:
    """A journal whose owner was killed with three operations, one of them told to stop; its log was never emptied."""
    journal = open_journal(folder / "journal.db")
    for name in ("a", "b", "c"):
        claim = await start(journal, name)
        journal.say(claim.operation_id, 1, Progressed(step=1, percentage=10.0, message=f"began {name}"))
    await journal.append(Cancel(claim.operation_id, "somebody", "enough", journal.owner()))
    journal.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def operation(name: str) -> AsyncOperation:
    return AsyncOperation(f"work_{name}", "work", 3, context={"of": name}, key=f"work:{name}")


async def start(journal: Journal, name: str) -> Claim:
    submitted = Submitted(operation_type="work", key=f"work:{name}", total_steps=3, parameters={}, digest=name)
    claim: Claim = await journal.append(Start(f"work_{name}", submitted, journal.owner()))
    return claim


async def work(operation: Any, progress: Any, token: Any, attempt: Any) -> dict[str, int]:
    progress.update_progress(1, "first", 1, total_items=2)
    await attempt.step("one", lambda: {"value": 1})
    async with attempt.waiting("its turn", 0.1):
        progress.update_progress(2, "second", 2)
    await attempt.checkpoint({"at": 1})
    await attempt.checkpoint({"large": "x" * 1_100_000})
    await attempt.publish(_publication(attempt, b"series"))
    await attempt.complete_step("two", [1, 2], publish=[_publication(attempt, b"model")])
    progress.update_progress(3, "third")
    return {"rows": 3}


def _publication(attempt: Any, content: bytes) -> Publication:
    stored = attempt.objects.put(content)
    return Publication(kind="series", key=content.decode(), object=stored, sha256=stored, size=len(content))


async def interrupted_work(operation: Any, progress: Any, token: Any, attempt: Any) -> None:
    await attempt.step("one", lambda: 1)
    token.cancel("told to go", "signal", interrupt=True)
    token.check_cancellation_point("work")


async def failing_work(operation: Any, progress: Any, token: Any, attempt: Any) -> None:
    await attempt.step("one", lambda: 1)
    raise KtrdrOpsError("it went wrong")


async def create(folder: Path, told: Told) -> None:
    """A journal is made, is written to once, and closed."""
    async with opened(folder, told) as journal:
        await journal.append(Note("", Noted(text="made")))


async def run(folder: Path, told: Told) -> None:
    """An operation from its start to its result, with all that an attempt can state."""
    async with opened(folder, told) as journal, framework(journal) as made:
        await made.execute_operation(operation("whole"), work)
        journal.flush(PATIENCE)


async def cancel(folder: Path, told: Told) -> None:
    """One operation is cancelled while it runs, another while nobody owns it."""
    async with opened(folder, told) as journal, framework(journal) as made:
        began = asyncio.Event()

        async def waits(operation: Any, progress: Any, token: Any) -> None:
            progress.update_progress(1, "waiting")
            began.set()
            await token.sleep(PATIENCE * 2)

        running = asyncio.ensure_future(made.execute_operation(operation("waiting"), waits))
        waiting = asyncio.ensure_future(began.wait())
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        try:
            if not running.done():
                await made.cancel_operation(made.tasks.running[0], "enough", "a test")
        finally:
            with contextlib.suppress(OperationCancelledException, OperationInterrupted):
                await running
        left = (await journal.rows("SELECT operation_id FROM operations WHERE status = 'interrupted'"))[0][0]
        await made.cancel_operation(left, "no longer wanted", "a test")


async def interrupt_and_resume(folder: Path, told: Told) -> None:
    """An operation is interrupted, started again, and ends; another fails."""
    async with opened(folder, told) as journal, framework(journal) as made:
        with contextlib.suppress(OperationInterrupted):
            await made.execute_operation(operation("twice"), interrupted_work)
        await made.execute_operation(operation("twice"), work)
        try:
            await made.execute_operation(operation("failing"), failing_work)
        except KtrdrOpsError as error:
            if error.message != "it went wrong":
                raise


async def settle(folder: Path, told: Told) -> None:
    """Opening gives a dead process's operations their end; one is gone on with, one superseded."""
    async with opened(folder, told) as journal:
        rows = await journal.rows("SELECT operation_id, status FROM operations ORDER BY first_position")
        told.say(settled=[row[0] for row in rows])
        claim = await journal.append(Resume(rows[0][0], journal.owner()))
        await journal.append(Say((draft(claim.operation_id, claim.attempt, StepCompleted(name="resumed")),)))
        await start(journal, "b")


async def appends(folder: Path, told: Told) -> None:
    """One append after another: each is tried, whatever became of the one before it. The log is emptied often."""
    async with opened(folder, told) as journal:
        assert journal._writer is not None
        journal._writer._connection.execute("PRAGMA wal_autocheckpoint = 12")
        for number in range(12):
            with contextlib.suppress(KtrdrOpsError):
                await journal.append(Note("", Noted(text=f"{number} " + "x" * 5000 * (number % 3))))
        with contextlib.suppress(KtrdrOpsError):
            claim = await start(journal, "alone")
            for number in range(4):
                journal.say(claim.operation_id, 1, Progressed(step=1, percentage=float(number), message=str(number)))
                journal.flush(PATIENCE)
            await journal.append(Say((draft(claim.operation_id, 1, StepCompleted(name="one")),)))


async def backup(folder: Path, told: Told) -> None:
    """A copy is made while the journal is written to."""
    async with opened(folder, told) as journal:
        await journal.append(Note("", Noted(text="before the copy")))
        await maintenance.backup(journal, folder / "copy.db")
        told.say(copied=True)
        await journal.append(Note("", Noted(text="after the copy")))


async def migrate(folder: Path, told: Told) -> None:
    """A journal is taken to a made-up next schema."""
    _to_next_schema(folder)
    told.say(migrated=True)


def _to_next_schema(folder: Path) -> None:
    path = folder / "journal.db"
    lock = lock_file(path)
    lock.lock_gate()
    try:
        connection = engine.connect(path)
        try:
            found = _version(connection, path)
            if found != NEXT:
                schema.migrate(connection, lock, found, scripts=folder.parent / "migrations")
        finally:
            connection.close()
    finally:
        lock.unlock_gate()


async def _prepare_migration(folder: Path) -> None:
    await _with_history(folder)
    shutil.copyfile(folder / "journal.db", folder / "as-it-was.db")
    scripts_with_a_next_schema(folder.parent / "migrations")


async def check_journal(folder: Path, told: list[Line]) -> list[str]:
    """What is wrong with a journal after whatever happened to its process. It is opened for writing, and written."""
    path = folder / "journal.db"
    try:
        journal = open_journal(path)
    except Exception as error:  # any at all is what is looked for
        return [f"it does not open: {type(error).__name__}: {error}"]
    try:
        await journal.append(Note("", Noted(text="after the fault")))
        report = await verify(journal, objects=ObjectStore(folder / "objects"))
        found = [f"verify: {problem.kind} {problem.position} {problem.detail}" for problem in report.problems]
        events = [event async for event in journal.read_all()]
        found += _compared(events, told)
        live = await journal.rows("SELECT operation_id FROM operations WHERE status IN ('running', 'cancelling')")
        found += [f"{operation_id} is still recorded as live" for (operation_id,) in live]
    finally:
        await journal.aclose()
    if path.stat().st_mode & 0o077:
        found.append("others may read the journal")
    return found


def _compared(events: list[Event], told: list[Line]) -> Iterable[str]:
    present = Counter((event.operation_id, event.type, hashlib.sha256(event.payload).hexdigest()) for event in events)
    acked = {tuple(fact) for line in told for fact in line.get("acked", ())}
    for fact in acked:
        if not present[fact]:
            yield f"acknowledged, but not there: {fact}"
    for fact, count in present.items():
        if count > 1 and fact[1] in ("noted", "step_completed"):
            yield f"there {count} times: {fact}"
    for line in told:
        for fact in line.get("refused", ()):
            if line["code"] != UNKNOWN and tuple(fact) not in acked and present[tuple(fact)]:
                yield f"refused with {line['code']}, but there: {fact}"
    yield from _answers(events, told)


def _answers(events: list[Event], told: list[Line]) -> Iterable[str]:
    by_position = {event.position: event for event in events}
    for line in told:
        if "claimed" in line:
            event = by_position.get(line["position"])
            claim = event and (event.operation_id, event.type, event.attempt)
            if claim != (line["claimed"], "attempt_started", line["attempt"]):
                yield f"claimed, but not there: {line} {claim}"
        if "asked_to_cancel" in line:
            types = {event.type for event in events if event.operation_id == line["asked_to_cancel"]}
            if not types & {"cancel_requested", "cancelled"}:
                yield f"asked to stop, but not there: {line}"
        for operation_id in line.get("settled", ()):
            if not any(event.operation_id == operation_id and event.type == "interrupted" for event in events):
                yield f"settled, but not there: {operation_id}"


async def _check_backup(folder: Path, told: list[Line]) -> list[str]:
    found = await check_journal(folder, told)
    copy = folder / "copy.db"
    if copy.exists():
        report = await verify_file(copy)
        found += [f"the copy: {problem.kind} {problem.detail}" for problem in report.problems]
    elif any("copied" in line for line in told):
        found.append("the copy was acknowledged, but is not there")
    return found


async def _check_migration(folder: Path, told: list[Line]) -> list[str]:
    """Old schema or new, whole; the events are as they were; with the new one there is the copy of the old. Then it is
    migrated (again), which must work."""
    found = await _old_or_new(folder, acknowledged=any("migrated" in line for line in told))
    try:
        _to_next_schema(folder)
    except Exception as error:  # any at all is what is looked for
        return [*found, f"it does not migrate any more: {type(error).__name__}: {error}"]
    return found + await _old_or_new(folder, acknowledged=True)


async def _old_or_new(folder: Path, *, acknowledged: bool) -> list[str]:
    connection = engine.connect(folder / "journal.db", readonly=True)
    try:
        version = schema.version(connection)
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        columns = {row[1] for row in connection.execute("PRAGMA table_info(operations)")}
        events = connection.execute("SELECT * FROM events").fetchall()
    finally:
        connection.close()
    found = []
    new = (version == NEXT, "labels" in names, "labels_of" in names, "priority" in columns)
    if any(new) != all(new) or (not all(new) and acknowledged):
        found.append(f"half a schema: {version} {new}, acknowledged: {acknowledged}")
    if events != _events(folder / "as-it-was.db"):
        found.append("events are not as they were")
    copy = folder / f"journal.db.before-{NEXT}"
    if all(new) and not copy.exists():
        found.append("migrated without a copy")
    for path in (folder / "journal.db", copy):
        if path.exists():
            report = await verify_file(path)
            found += [f"{path.name}: {problem.kind} {problem.detail}" for problem in report.problems]
    if copy.exists() and _events(copy) != events:
        found.append("the copy has other events")
    return found


def _events(path: Path) -> list[tuple[Any, ...]]:
    connection = engine.connect(path, readonly=True)
    try:
        rows: list[tuple[Any, ...]] = connection.execute("SELECT * FROM events").fetchall()
        return rows
    finally:
        connection.close()


@dataclass(frozen=True)
class Cycle:
    """A life cycle, what it finds, and what must hold after it."""

    run: Callable[[Path, Told], Coroutine[Any, Any, None]]
    prepare: Callable[[Path], Coroutine[Any, Any, None]] = _with_history
    check: Callable[[Path, list[Line]], Coroutine[Any, Any, list[str]]] = check_journal


CYCLES: dict[str, Cycle] = {
    "create": Cycle(create, _nothing),
    "run": Cycle(run),
    "cancel": Cycle(cancel),
    "interrupt_and_resume": Cycle(interrupt_and_resume),
    "settle": Cycle(settle, _left_by_the_dead),
    "appends": Cycle(appends),
    "backup": Cycle(backup, check=_check_backup),
    "migrate": Cycle(migrate, _prepare_migration, _check_migration),
}


def _without_our_transaction() -> None:
    """Mutant: migrations as alembic runs them over SQLite by itself, each statement on its own."""

    def upgrade(connection: Any, config: Any) -> None:
        from alembic import command

        with schema._sqlalchemy(connection) as wrapped:
            config.attributes["connection"] = wrapped
            command.upgrade(config, "head")

    schema.upgrade = upgrade


def _swallowing_the_error() -> None:
    """Mutant: a writer that acknowledges what it could not write."""

    def swallow(self: Any, batch: list[Any], error: Exception) -> None:
        self._tell(batch, [0] * len(batch))

    writer.Writer._not_written = swallow  # type: ignore[method-assign]


MUTANTS: dict[str, Callable[[], None]] = {
    "without_our_transaction": _without_our_transaction,
    "swallowing_the_error": _swallowing_the_error,
}
