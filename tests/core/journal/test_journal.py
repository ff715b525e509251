"""Append, read, tail, head: against real files."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading

import pytest

from ktrdr_ops.core.errors import (
    InvalidValue,
    JournalError,
    JournalFull,
    JournalRefused,
    KeyIsLive,
    OperationFinished,
    OperationNotFound,
    OwnershipLost,
)
from ktrdr_ops.core.events import (
    Cancelled,
    Checkpointed,
    Completed,
    Failed,
    Interrupted,
    Noted,
    Opaque,
    Progressed,
    StepCompleted,
    load,
)
from ktrdr_ops.core.journal import engine, schema
from ktrdr_ops.core.journal.decisions import Cancel, Note, Resume, Say, draft
from ktrdr_ops.core.journal.integrity import ChainCheck, genesis
from ktrdr_ops.core.journal.journal import JournalMissing, open_journal
from tests.core.journal.conftest import started


def progressed(items: int, message: str = "going on", **context) -> Progressed:
    return Progressed(step=1, percentage=float(items % 100), message=message, items=items, context=context)


async def every(journal, operation_id=None):
    return [event async for event in journal.read_all(operation_id)]


async def chain_problems(journal):
    journal_id = (await journal.rows("SELECT journal_id FROM journal"))[0][0]
    names = [(row[0], bytes(row[1])) for row in await journal.rows("SELECT from_position, name FROM incarnations")]
    check = ChainCheck(0, genesis(journal_id), names)
    check.walk(await every(journal))
    return check.problems


def end(claim, fact):
    return Say((draft(claim.operation_id, claim.attempt, fact),))


async def test_positions_and_sequences_are_gapless_and_the_chain_holds(journal):
    one, two = await started(journal, "work:a"), await started(journal, "work:b")
    for items in range(50):
        journal.say((one, two)[items % 2].operation_id, 1, progressed(items))
    await journal.append(end(one, Completed(result={"rows": 1})))
    events = await every(journal)
    assert [event.position for event in events] == list(range(1, len(events) + 1))
    mine = [event.sequence for event in events if event.operation_id == one.operation_id]
    assert mine == list(range(1, len(mine) + 1))
    assert await chain_problems(journal) == []


async def test_a_completed_never_overtakes_the_progress_queued_before_it(journal):
    claim = await started(journal)
    for items in range(500):
        journal.say(claim.operation_id, 1, progressed(items))
    await journal.append(end(claim, Completed()))
    types = [event.type for event in await every(journal, claim.operation_id)]
    assert types == ["submitted", "attempt_started", *["progressed"] * 500, "completed"]


async def test_an_attempt_has_one_terminal_event(journal):
    claim = await started(journal)
    await journal.append(end(claim, Failed(code="x", message="no")))
    for fact in (Completed(), Cancelled(requested_by="me", reason="r"), progressed(1)):
        with pytest.raises(OwnershipLost, match="attempt 1"):
            await journal.append(end(claim, fact))
    assert (await journal.state(claim.operation_id)).status == "failed"


async def test_the_same_start_goes_on_with_what_failed_and_another_supersedes_it(journal):
    first = await started(journal)
    await journal.append(end(first, Failed(code="x", message="no")))
    again = await started(journal)
    assert (again.operation_id, again.attempt, again.resumed) == (first.operation_id, 2, True)
    await journal.append(end(again, Interrupted(reason="signal")))
    other = await started(journal, digest="d2")
    assert other.operation_id != first.operation_id
    await journal.append(end(other, Completed()))
    after = await started(journal, digest="d2")
    assert after.operation_id not in (first.operation_id, other.operation_id), "a completed one has no further attempt"


async def test_a_fresh_start_leaves_the_failed_one_alone(journal):
    first = await started(journal)
    await journal.append(end(first, Failed(code="x", message="no")))
    assert (await started(journal, fresh=True)).operation_id != first.operation_id


async def test_a_key_has_one_live_operation(journal):
    claim = await started(journal)
    with pytest.raises(KeyIsLive, match=claim.operation_id):
        await started(journal, digest="other")
    with pytest.raises(KeyIsLive):
        await journal.append(Resume(claim.operation_id, journal.owner()))


async def test_a_steal_fences_the_earlier_attempt(journal):
    claim = await started(journal)
    stolen = await journal.append(Resume(claim.operation_id, journal.owner(), steal=True))
    assert stolen.attempt == 2
    with pytest.raises(OwnershipLost):
        await journal.append(end(claim, Completed()))
    refused: list[Exception] = []
    journal.say(claim.operation_id, 1, progressed(1), refused.append)
    journal.flush()
    assert len(refused) == 1
    await journal.append(end(stolen, Completed()))


async def test_a_completed_operation_is_neither_resumed_nor_cancelled(journal):
    claim = await started(journal)
    await journal.append(end(claim, Completed()))
    with pytest.raises(OperationFinished, match="completed"):
        await journal.append(Resume(claim.operation_id, journal.owner()))
    with pytest.raises(OperationFinished):
        await journal.append(Cancel(claim.operation_id, "me", "why", journal.owner()))


async def test_cancelling_what_nobody_owns_writes_the_terminal_and_its_childrens(journal):
    parent = await started(journal, "work:p")
    child = await started(journal, "work:c", parent_id=parent.operation_id)
    for claim in (parent, child):
        await journal.append(end(claim, Interrupted(reason="gone")))
    await journal.append(Cancel(parent.operation_id, "me", "enough", journal.owner()))
    for claim in (parent, child):
        state = await journal.state(claim.operation_id)
        assert (state.status, state.attempt) == ("cancelled", 2)
        assert state.cancellation is not None
        assert state.cancellation["reason"] == "enough"


async def test_an_owner_is_asked_once_to_cancel(journal):
    claim = await started(journal)
    for reason in ("first", "second"):
        await journal.append(Cancel(claim.operation_id, "me", reason, journal.owner()))
    state = await journal.state(claim.operation_id)
    assert state.status == "cancelling"
    assert state.cancellation is not None
    assert state.cancellation["reason"] == "first"


async def test_a_refusal_in_a_batch_concerns_its_request_alone(journal):
    claim = await started(journal)
    requests = [end(claim, StepCompleted(name=str(number))) for number in range(20)]
    stale = Say((draft(claim.operation_id, 7, StepCompleted(name="stale")),))
    answers = await asyncio.gather(
        *(journal.append(request) for request in (*requests[:10], stale, *requests[10:])), return_exceptions=True
    )
    assert [isinstance(answer, OwnershipLost) for answer in answers] == [False] * 10 + [True] + [False] * 10
    assert (await journal.state(claim.operation_id)).steps == 20
    assert await chain_problems(journal) == []


async def test_a_statement_of_several_facts_is_one_transaction(journal):
    claim = await started(journal)
    both = Say(
        (
            draft(claim.operation_id, 1, StepCompleted(name="a")),
            draft(claim.operation_id, 2, StepCompleted(name="b")),
        )
    )
    with pytest.raises(OwnershipLost):
        await journal.append(both)
    assert (await journal.state(claim.operation_id)).steps == 0


async def test_a_caller_that_is_cancelled_leaves_the_writer_alone(journal):
    claim = await started(journal)
    for number in range(100):
        task = asyncio.ensure_future(journal.append(end(claim, StepCompleted(name=str(number)))))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await journal.append(end(claim, Completed()))
    assert (await journal.state(claim.operation_id)).steps == 100


async def test_updates_from_threads_all_arrive_in_each_threads_order(journal):
    claim = await started(journal)

    def work(thread: int) -> None:
        for items in range(200):
            journal.say(claim.operation_id, 1, progressed(items, thread=thread))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.flush()
    facts = [event.fact for event in await every(journal, claim.operation_id) if event.type == "progressed"]
    for number in range(8):
        assert [fact.items for fact in facts if fact.context["thread"] == number] == list(range(200))


async def test_a_full_queue_keeps_the_latest_progress_and_counts_what_it_skipped(tmp_path):
    journal = open_journal(tmp_path / "journal.db")
    try:
        claim = await started(journal)
        journal._writer._limit = 20_000
        gate = journal.lock
        held = subprocess.Popen(
            [sys.executable, "-c", HOLD_THE_GATE, str(gate.path)],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
        )
        with held:
            assert held.stdout.readline() == "held\n"
            for items in range(1000):
                journal.say(claim.operation_id, 1, progressed(items))
            held.stdin.close()
        await journal.append(end(claim, Completed()))
        progress = [event.fact for event in await every(journal, claim.operation_id) if event.type == "progressed"]
        assert progress[-1].items == 999
        assert 0 < len(progress) < 200
        assert progress[-1].skipped + len(progress) == 1000
    finally:
        await journal.aclose()


HOLD_THE_GATE = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)
print("held", flush=True)
sys.stdin.read()
"""


async def test_no_room_is_told_and_nothing_is_half_written(journal):
    claim = await started(journal)
    connection = journal._writer._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages}")
    large = Checkpointed(value="x" * 60_000)
    with pytest.raises(JournalFull, match="no room"):
        for _ in range(50):
            await journal.append(end(claim, large))
    head = await journal.head()
    journal.say(claim.operation_id, 1, progressed(1, message="kept in memory"))
    connection.execute("PRAGMA max_page_count=1000000")
    await journal.append(end(claim, Completed()))
    events = await every(journal, claim.operation_id)
    assert events[-1].type == "completed"
    assert [event.position for event in events] == list(range(1, head.position + 3)), "the progress came through later"
    assert await chain_problems(journal) == []


async def test_events_can_be_neither_changed_nor_deleted(journal):
    await started(journal)
    connection = engine.connect(journal.path)
    try:
        for statement in (
            "UPDATE events SET at = 0",
            "DELETE FROM events",
            "REPLACE INTO events SELECT * FROM events WHERE position = 1",
        ):
            with pytest.raises(engine.sqlite.IntegrityError, match="append-only"):
                connection.execute(statement)
    finally:
        connection.close()


async def test_a_new_journal_can_shrink_and_is_the_users_alone(journal):
    settings = {
        name: (await journal.rows(f"PRAGMA {name}"))[0][0] for name in ("auto_vacuum", "journal_mode", "synchronous")
    }
    assert settings["auto_vacuum"] == 2
    assert settings["journal_mode"] == "wal"
    assert journal._writer._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert journal.path.stat().st_mode & 0o777 == 0o600


async def test_opening_again_gives_the_same_journal(journal):
    again = open_journal(journal.path)
    reading = open_journal(journal.path, readonly=True)
    assert again is journal
    assert reading is journal
    again.close()
    reading.close()
    await started(journal)


async def test_a_forked_child_may_not_use_it(journal):
    await started(journal)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def use() -> None:
        try:
            journal.lock.owner()
        except JournalError as error:
            results.put(str(error))

    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forking a process with threads is exactly what is tested
        child = context.Process(target=use)
        child.start()
    child.join()
    assert "forked child" in results.get()


async def test_a_reader_of_another_process_finds_every_update_with_plain_sqlite(journal):
    claim = await started(journal)
    for items in range(300):
        journal.say(claim.operation_id, 1, progressed(items, message=f"update {items}"))
    await journal.append(end(claim, Completed()))
    script = textwrap.dedent("""
        import json, sqlite3, sys
        connection = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
        for data, in connection.execute("SELECT data FROM v_events WHERE type = 'progressed' ORDER BY position"):
            print(json.loads(data)["message"])
    """)
    read = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script, str(journal.path)], capture_output=True, text=True, check=True
    )
    assert read.stdout.splitlines() == [f"update {items}" for items in range(300)]


async def test_a_tail_gives_each_event_once_in_order_while_another_process_writes(journal):
    script = textwrap.dedent("""
        import asyncio, sys
        from ktrdr_ops.core.journal.journal import open_journal
        from tests.core.journal.conftest import started
        from tests.core.journal.test_journal import progressed
        async def main():
            journal = open_journal(sys.argv[1])
            claim = await started(journal, "work:other")
            for items in range(500):
                journal.say(claim.operation_id, 1, progressed(items))
                if items % 50 == 0:
                    await asyncio.sleep(0.005)
            await journal.aclose()
        asyncio.run(main())
    """)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(journal.path))
    positions = []
    tail = journal.tail(after=0)
    async with asyncio.timeout(30):
        async for event in tail:
            positions.append(event.position)
            if len(positions) == 502:
                break
    await tail.aclose()
    assert await process.wait() == 0
    assert positions == list(range(1, 503))


async def test_a_dead_owner_is_seen_at_once_and_settled_by_who_opens(tmp_path):
    script = textwrap.dedent("""
        import asyncio, os, signal, sys
        from ktrdr_ops.core.journal.journal import open_journal
        from tests.core.journal.conftest import started
        async def main():
            journal = open_journal(sys.argv[1])
            claim = await started(journal)
            print(claim.operation_id, flush=True)
            sys.stdin.read()
        asyncio.run(main())
    """)
    path = tmp_path / "journal.db"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(path), stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.PIPE
    )
    operation_id = (await process.stdout.readline()).decode().strip()
    reading = open_journal(path, readonly=True)
    assert reading.status(await reading.state(operation_id)) == "running"
    process.kill()
    await process.wait()
    state = await reading.state(operation_id)
    assert state.status == "running", "nobody has settled it yet"
    assert reading.status(state) == "interrupted"
    await reading.aclose()
    writing = open_journal(path)
    assert (await writing.state(operation_id)).status == "interrupted"
    assert await writing.settle() == []
    await writing.aclose()


async def test_a_note_needs_an_operation_that_exists(journal):
    await journal.append(Note("", Noted(text="about the journal")))
    with pytest.raises(OperationNotFound):
        await journal.append(Note("work_nobody", Noted(text="x")))
    assert [event.sequence for event in await every(journal, "")] == [1]


def test_reading_what_is_not_there_says_so(tmp_path):
    with pytest.raises(JournalMissing, match="no journal"):
        open_journal(tmp_path / "none.db", readonly=True)


def test_what_is_no_journal_is_refused_and_left_as_it_was(tmp_path):
    text = tmp_path / "text.db"
    text.write_text("these are notes of somebody\n" * 100)
    with pytest.raises(JournalRefused, match="not a database"):
        open_journal(text)
    assert text.read_text() == "these are notes of somebody\n" * 100
    with pytest.raises(JournalRefused, match="directory"):
        open_journal(tmp_path)
    with pytest.raises(InvalidValue, match="NUL"):
        open_journal(str(tmp_path) + "/a\0b")
    other = tmp_path / "other.db"
    connection = engine.sqlite.connect(str(other))
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(JournalRefused, match="another program"):
        open_journal(other)


async def test_a_newer_journal_is_read_but_not_written(tmp_path):
    path = tmp_path / "journal.db"
    journal = open_journal(path)
    claim = await started(journal)
    await journal.append(end(claim, Completed()))
    await journal.aclose()
    connection = engine.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(JournalRefused, match="newer"):
        open_journal(path)
    reading = open_journal(path, readonly=True)
    assert (await reading.state(claim.operation_id)).status == "completed"
    await reading.aclose()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_journal_that_may_not_be_written_is_refused_and_can_be_read(tmp_path):
    path = tmp_path / "journal.db"
    open_journal(path).close()
    script = textwrap.dedent("""
        import os, sys
        from ktrdr_ops.core.errors import JournalRefused
        from ktrdr_ops.core.journal.journal import open_journal
        os.setuid(65534)
        try:
            open_journal(sys.argv[1])
        except JournalRefused as error:
            print(error.message)
        journal = open_journal(sys.argv[1], readonly=True)
        print("read")
    """)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    path.chmod(0o644)
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert "read-only for this user" in done.stdout, done.stderr
    assert done.stdout.endswith("read\n")


def test_eight_processes_that_make_a_journal_at_once_all_get_the_same(tmp_path):
    script = (
        "import sys; from ktrdr_ops.core.journal.journal import open_journal; j = open_journal(sys.argv[1]); j.close()"
    )
    path = str(tmp_path / "journal.db")
    processes = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", script, path], stderr=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=50)
        assert process.returncode == 0, errors


def test_a_kill_in_the_middle_of_the_first_migration_leaves_nothing_half_made(tmp_path):
    script = textwrap.dedent("""
        import os, signal, sys
        from alembic.operations import Operations
        made = []
        create = Operations.create_table
        def killing(self, name, *columns, **options):
            if name == sys.argv[2]:
                os.kill(os.getpid(), signal.SIGKILL)
            return create(self, name, *columns, **options)
        import alembic.op
        from ktrdr_ops.core.journal.journal import open_journal
        Operations.create_table = killing
        alembic.op.create_table = lambda name, *rest, **options: killing(alembic.op._proxy, name, *rest, **options)
        open_journal(sys.argv[1])
    """)
    path = tmp_path / "journal.db"
    killed = subprocess.run([sys.executable, "-c", script, str(path), "operations"], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    connection = engine.connect(path)
    assert schema.version(connection) is None
    assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()
    open_journal(path).close()


def test_a_fact_of_a_newer_release_is_kept_and_counts_by_its_class():
    fact = load("evaporated", "terminal", 1, b'{"why": "heat"}')
    assert isinstance(fact, Opaque)
    assert fact.data == {"why": "heat"}
    newer = load("completed", "terminal", 99, b'{"outcome": 1}')
    assert isinstance(newer, Opaque)
    assert load("completed", "terminal", 1, b'{"result": 1, "added later": 2}') == Completed(result=1)
