"""What verification finds. Each kind of damage stands beside the same journal without it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import pytest

from ktrdr_ops.core.artifacts import ObjectStore
from ktrdr_ops.core.events import (
    ArtifactPublished,
    Checkpointed,
    Completed,
    Failed,
    Interrupted,
    Noted,
    Progressed,
    StepCompleted,
)
from ktrdr_ops.core.journal.anchor import anchor_path
from ktrdr_ops.core.journal.decisions import Note, Resume, Say, draft
from ktrdr_ops.core.journal.journal import open_journal
from ktrdr_ops.core.journal.maintenance import backup
from ktrdr_ops.core.journal.verify import MAX_PROBLEMS, verify, verify_file
from tests.core.journal.conftest import started

CONTENT = b"rows"


def meddle(path, *statements: str) -> None:
    """Change the file as somebody with another program would, in another process."""
    code = "import sys\nfrom ktrdr_ops.core.journal.engine import sqlite\nc = sqlite.connect(sys.argv[1])\n"
    code += "for statement in sys.argv[2:]: c.execute(statement)\nc.commit(); c.close()\n"
    subprocess.run([sys.executable, "-c", code, str(path), *statements], check=True, timeout=30)


def forget_rule(path, name: str) -> str:
    """The statement that put a rule there, after dropping it."""
    code = (
        "import sys\nfrom ktrdr_ops.core.journal.engine import sqlite\nc = sqlite.connect(sys.argv[1])\n"
        "print(c.execute('SELECT sql FROM sqlite_master WHERE name = ?', (sys.argv[2],)).fetchone()[0])\n"
        "kind = c.execute('SELECT type FROM sqlite_master WHERE name = ?', (sys.argv[2],)).fetchone()[0]\n"
        "c.execute(f'DROP {kind} {sys.argv[2]}'); c.commit(); c.close()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(path), name], check=True, timeout=30, capture_output=True, text=True
    )
    return ran.stdout.strip()


def against_the_rule(path, rule: str, statement: str) -> None:
    """Change events in spite of a rule, and put the rule back so that nothing shows."""
    again = forget_rule(path, rule)
    meddle(path, statement, again)


def said(claim, *facts):
    return Say(tuple(draft(claim.operation_id, claim.attempt, fact) for fact in facts))


def published(store: ObjectStore, content: bytes = CONTENT) -> ArtifactPublished:
    sha = store.put(content)
    return ArtifactPublished(kind="series", key="a", object=sha, sha256=sha, size=len(content))


@pytest.fixture
def objects(tmp_path):
    return ObjectStore(tmp_path / "objects")


@pytest.fixture
async def told(tmp_path, objects):
    """A journal with a completed, a failed and resumed, and a running operation; closed. Its path."""
    journal = open_journal(tmp_path / "journal.db")
    one, two = await started(journal, "work:a"), await started(journal, "work:b")
    for items in range(20):
        fact = Progressed(step=1, percentage=float(items), message="going on", items=items, context={"x": 0.1 * items})
        journal.say((one, two)[items % 2].operation_id, 1, fact)
    await journal.append(said(one, published(objects), StepCompleted(name="a", value={"n": 1})))
    await journal.append(said(one, Completed(result={"rows": 1})))
    await journal.append(said(two, Failed(code="x", message="no")))
    await journal.append(Note(two.operation_id, Noted(text="looked into it")))
    await journal.append(Note("", Noted(text="of the journal")))
    again = await journal.append(Resume(two.operation_id, journal.owner()))
    await journal.append(said(again, Checkpointed(object=objects.put(b"state"))))
    await journal.append(said(again, Interrupted(reason="signal")))
    await journal.aclose()
    return tmp_path / "journal.db"


async def verified(path, objects=None, **more):
    journal = open_journal(path, readonly=True)
    try:
        return await verify(journal, objects=objects, **more)
    finally:
        await journal.aclose()


def kinds(report) -> list[str]:
    return [problem.kind for problem in report.problems]


async def test_a_journal_as_it_was_written_has_no_problem(told, objects):
    report = await verified(told, objects)
    assert report.document() == {
        "ok": True,
        "events": 33,
        "operations": 2,
        "head": {"position": 33, "hash": report.hash},
        "anchor": {"state": "anchored", "position": 33, "hash": report.hash, "damaged_slots": 0},
        "problems": [],
    }
    assert len(report.hash) == 64


async def test_the_head_is_the_journals(told):
    journal = open_journal(told, readonly=True)
    head, report = await journal.head(), await verify(journal)
    await journal.aclose()
    assert (report.position, report.hash) == (head.position, head.hash)


async def test_an_empty_journal_has_no_problem(tmp_path):
    journal = open_journal(tmp_path / "journal.db")
    report = await verify(journal)
    await journal.aclose()
    assert report.document() == {
        "ok": True,
        "events": 0,
        "operations": 0,
        "head": {"position": 0, "hash": ""},
        "anchor": {"state": "unanchored", "position": None, "hash": None, "damaged_slots": 0},
        "problems": [],
    }


async def test_a_changed_byte_of_a_payload_is_found(told):
    changed = "CAST(replace(CAST(payload AS TEXT), '\"items\":7', '\"items\":8') AS BLOB)"
    against_the_rule(told, "events_no_update", f"UPDATE events SET payload = {changed} WHERE position = 12")
    report = await verified(told)
    assert not report.ok
    assert [(problem.kind, problem.position) for problem in report.problems] == [("hash", 12)]


@pytest.mark.parametrize(
    "change",
    [
        "at = at + 1",
        "attempt = 7",
        "version = 0",
        "writer = zeroblob(8)",
        "hash = zeroblob(32)",
        "class = 'note'",
        "type = 'wait_ended'",
        "sequence = 900",
        "sequence = -1",
        "payload = x'00'",
        "payload = CAST(payload AS TEXT)",
        "payload = 'x'",
        "at = 'yesterday'",
        "operation_id = x'00'",
    ],
)
async def test_a_changed_column_is_found(told, change):
    against_the_rule(told, "events_no_update", f"UPDATE events SET {change} WHERE position = 12")
    report = await verified(told)
    assert any(problem.position == 12 for problem in report.problems), report.problems


async def test_a_deleted_event_is_found(told):
    against_the_rule(told, "events_no_delete", "DELETE FROM events WHERE position = 12")
    report = await verified(told)
    assert ("missing", 13, "positions 12 to 12 are missing") in [
        (p.kind, p.position, p.detail) for p in report.problems
    ]


async def test_a_deleted_end_is_found_by_the_anchor_and_by_what_the_table_says(told):
    against_the_rule(told, "events_no_delete", "DELETE FROM events WHERE position = 33")
    report = await verified(told)
    assert kinds(report) == ["anchor", "projection"]
    assert "1 event is missing at the end" in report.problems[0].detail


async def test_without_its_anchor_only_the_table_says_that_the_end_is_deleted(told):
    anchor_path(told).unlink()
    assert kinds(await verified(told)) == []
    against_the_rule(told, "events_no_delete", "DELETE FROM events WHERE position = 33")
    assert kinds(await verified(told)) == ["projection"]


async def test_an_older_copy_in_the_journals_place_is_found(told, tmp_path):
    journal = open_journal(told)
    await backup(journal, tmp_path / "older.db")
    await journal.append(Note("", Noted(text="said after the copy")))
    await journal.aclose()
    assert (await verified(told)).ok
    (tmp_path / "older.db").replace(told)
    report = await verified(told)
    assert kinds(report) == ["anchor"]
    assert "1 event is missing at the end" in report.problems[0].detail


async def test_an_anchor_of_noise_is_found_and_half_of_one_is_not(told):
    content = anchor_path(told).read_bytes()
    anchor_path(told).write_bytes(content + b"\xa5" * (8192 - len(content)))
    assert kinds(await verified(told)) == []
    anchor_path(told).write_bytes(b"\xa5" * 8192)
    assert kinds(await verified(told)) == ["anchor"]


async def test_a_removed_rule_is_found(told):
    forget_rule(told, "events_no_update")
    report = await verified(told)
    assert [(p.kind, p.detail) for p in report.problems] == [("schema", "the rule events_no_update has been removed")]


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ("UPDATE operations SET status = 'completed'", "its row has status 'completed', its events give 'interrupted'"),
        ("UPDATE operations SET percentage = 12.5", "its row has percentage 12.5, its events give"),
        ("UPDATE operations SET first_position = 1000", "its first position is none of its events'"),
        (
            "UPDATE operations SET state = CAST(replace(CAST(state AS TEXT), 'Starting', 'Stopping') AS BLOB)",
            "its row's state is not what its events give",
        ),
        ("UPDATE operations SET state = x'00'", "its row's state is not what its events give"),
        ("DELETE FROM operations", "it has events, but no row among the operations"),
    ],
)
async def test_a_changed_row_of_the_table_is_found(told, change, detail):
    assert kinds(await verified(told)) == []
    meddle(told, f"{change} WHERE key = 'work:b'")
    report = await verified(told)
    assert kinds(report) == ["projection"]
    assert report.problems[0].operation_id.startswith("work_a_")
    assert detail in report.problems[0].detail


async def test_a_row_without_events_is_found(told):
    columns = "'ghost_1', 'zzz', operation_type, 'ghost', parent_id, status, attempt, percentage, message, created_at"
    rest = "started_at, finished_at, first_position, last_position, state"
    meddle(told, f"INSERT INTO operations SELECT {columns}, {rest} FROM operations LIMIT 1")
    report = await verified(told)
    assert [(p.kind, p.operation_id, p.detail) for p in report.problems] == [
        ("projection", "ghost_1", "it has no events")
    ]


@pytest.mark.parametrize("content", [CONTENT, b"state"])
async def test_a_missing_object_is_found(told, objects, content):
    assert kinds(await verified(told, objects)) == []
    objects.path(objects.put(content)).unlink()
    report = await verified(told, objects)
    assert kinds(report) == ["object"]
    assert "is missing" in report.problems[0].detail


async def test_a_changed_object_is_found(told, objects):
    objects.path(objects.put(CONTENT)).write_bytes(b"rowz")
    report = await verified(told, objects)
    assert kinds(report) == ["object"]
    assert "is not what was stored" in report.problems[0].detail


async def test_objects_are_looked_at_only_when_asked_for(told, objects):
    objects.path(objects.put(CONTENT)).unlink()
    assert (await verified(told)).ok


async def test_a_second_terminal_of_an_attempt_is_found(told):
    again = forget_rule(told, "events_one_terminal")
    columns = "operation_id, attempt, type, class, version, at, payload, writer, hash"
    copied = f"SELECT 34, 99, {columns} FROM events WHERE type = 'failed'"
    meddle(told, f"INSERT INTO events (position, sequence, {columns}) {copied}")
    report = await verified(told)
    assert again
    assert "terminal" in kinds(report)
    assert ("schema", "the rule events_one_terminal has been removed") in [(p.kind, p.detail) for p in report.problems]


async def test_a_page_of_noise_is_a_report_and_no_crash(told):
    content = bytearray(told.read_bytes())
    size = int.from_bytes(content[16:18], "big")
    for page in range(2, len(content) // size):
        content[page * size + 100 : page * size + 400] = b"\xa5" * 300
    told.write_bytes(bytes(content))
    report = await verify_file(told)
    assert "database" in kinds(report)


async def test_another_journals_id_breaks_the_chain_at_its_beginning(told):
    meddle(told, "UPDATE journal SET journal_id = 'other'")
    assert [(p.kind, p.position) for p in (await verified(told)).problems] == [("hash", 1)]


async def test_another_incarnation_breaks_the_chain_and_the_list_of_problems_ends(tmp_path):
    path = tmp_path / "journal.db"
    journal = open_journal(path)
    claim = await started(journal)
    for items in range(MAX_PROBLEMS + 100):
        journal.say(claim.operation_id, 1, Progressed(step=1, percentage=0.0, message="m", items=items))
    await journal.append(said(claim, Completed()))
    await journal.aclose()
    assert (await verified(path)).ok
    meddle(path, "UPDATE incarnations SET name = zeroblob(16)")
    report = await verified(path)
    assert len(report.problems) == MAX_PROBLEMS + 1
    assert report.problems[-1].detail == "and 104 more problems"


async def test_it_tells_how_far_it_is(told):
    seen = []
    await verified(told, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (33, 33)


async def test_a_journal_is_verified_while_others_write_to_it(journal):
    claims = [await started(journal, f"work:{n}") for n in range(5)]
    ended = asyncio.Event()

    async def write() -> None:
        items = 0
        while not ended.is_set():
            for claim in claims:
                items += 1
                journal.say(claim.operation_id, 1, Progressed(step=1, percentage=0.0, message="m", items=items))
            if items % 50 == 0:
                claims.append(await started(journal, f"work:{len(claims)}"))
            await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    reports = [await verify(journal) for _ in range(5)]
    ended.set()
    await writing
    assert [report.problems for report in reports] == [()] * 5
    assert reports[-1].events > reports[0].events


@pytest.mark.slow
async def test_a_hundred_thousand_events_take_seconds_and_leave_the_loop_free(journal):
    claim = await started(journal)
    for items in range(100_000):
        journal.say(claim.operation_id, 1, Progressed(step=1, percentage=0.0, message="going on", items=items))
    await journal.append(said(claim, Completed()))
    began = time.monotonic()
    report = await verify(journal)
    assert report.ok
    assert report.events == 100_003
    assert time.monotonic() - began < 30


async def test_giving_up_ends_it(journal):
    claim = await started(journal)
    for items in range(20_000):
        journal.say(claim.operation_id, 1, Progressed(step=1, percentage=0.0, message="m", items=items))
    begun = asyncio.Event()
    task = asyncio.create_task(verify(journal, on_progress=lambda done, total: begun.set()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await verify(journal)).ok
