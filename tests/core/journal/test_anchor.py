"""The head anchor: never ahead of the database, and what is behind it or differs is refused."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest

from ktrdr_ops.core.errors import JournalCorrupt
from ktrdr_ops.core.events import CancelRequested, Completed, StepCompleted
from ktrdr_ops.core.journal import anchor as anchors
from ktrdr_ops.core.journal import engine
from ktrdr_ops.core.journal.anchor import Anchored, anchor_anew, anchor_path, read_anchor
from ktrdr_ops.core.journal.decisions import Cancel, Say, draft
from ktrdr_ops.core.journal.journal import Head, open_journal
from ktrdr_ops.core.journal.maintenance import backup, info
from ktrdr_ops.core.journal.reader import connect_for_reading
from ktrdr_ops.core.journal.restore import restore
from ktrdr_ops.core.journal.verify import verify_file
from ktrdr_ops.core.journal.watch import CancelWatch
from tests.core.journal.conftest import started
from tests.core.journal.test_verify import meddle

APART, SLOT = 4096, 112


async def step(journal, claim, name: str) -> None:
    await journal.append(Say((draft(claim.operation_id, claim.attempt, StepCompleted(name=name)),)))


async def anchored_at(path, position: int) -> None:
    async with asyncio.timeout(10):
        while (read_anchor(path).anchored or Anchored(b"", 0, b"")).position < position:
            await asyncio.sleep(0.005)


def swap(path, other) -> None:
    """Put another file in the journal's place, as a person would."""
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    os.replace(other, path)


async def test_a_new_journal_is_unanchored_until_its_first_append(tmp_path):
    journal = open_journal(tmp_path / "journal.db")
    assert (await info(journal))["anchor"]["state"] == "unanchored"
    await started(journal)
    await anchored_at(journal.path, 2)
    head = await journal.head()
    said = (await info(journal))["anchor"]
    await journal.aclose()
    assert (said["state"], said["position"], said["hash"]) == ("anchored", 2, head.hash)


async def test_what_is_anchored_is_never_ahead_of_what_is_committed(journal, monkeypatch):
    claim = await started(journal)
    heads: list[tuple[int, int]] = []
    held = anchors.AnchorFile.hold

    def watched(self):
        held(self)
        connection = connect_for_reading(journal.path)
        committed = connection.execute("SELECT coalesce(max(position), 0) FROM events").fetchone()[0]
        connection.close()
        heads.append(((read_anchor(journal.path).anchored or Anchored(b"", 0, b"")).position, committed))

    monkeypatch.setattr(anchors.AnchorFile, "hold", watched)
    for number in range(20):
        await step(journal, claim, str(number))
    assert len(heads) == 20
    assert all(anchored == committed for anchored, committed in heads)  # the head of the transaction before


async def test_only_a_commit_of_this_process_is_anchored(journal, monkeypatch):
    claim = await started(journal)
    await anchored_at(journal.path, 2)
    code = (
        "import os, sys\nfrom ktrdr_ops.core.journal import anchor\n"
        "from ktrdr_ops.core.journal.journal import open_journal\n"
        "from ktrdr_ops.core.journal.decisions import Note\nfrom ktrdr_ops.core.events import Noted\n"
        "anchor.AnchorFile.settle = lambda self: None\n"
        "open_journal(sys.argv[1]).submit(Note('', Noted(text='x'))).result()\nos.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(journal.path)], check=False, timeout=30)
    assert (await journal.head()).position == 3
    writes: list[int] = []
    packed = anchors._packed

    def watched(slot):
        writes.append(slot.anchored.position)
        return packed(slot)

    monkeypatch.setattr(anchors, "_packed", watched)
    await step(journal, claim, "a")
    await anchored_at(journal.path, 4)
    assert writes == [4]  # not 3: whether that was synced is not known here


async def test_an_attempts_end_is_anchored_soon_and_closing_anchors_what_is_left(tmp_path):
    path = tmp_path / "journal.db"
    journal = open_journal(path)
    claim = await started(journal)
    await journal.append(Say((draft(claim.operation_id, 1, Completed()),)))
    await anchored_at(path, 3)
    newest = read_anchor(path).newest
    assert newest.synced
    await started(journal, "work:b")
    await journal.aclose()
    assert read_anchor(path).newest.synced
    assert read_anchor(path).anchored.position == 5


async def test_a_synced_slot_is_not_written_over_without_a_sync(journal):
    claim = await started(journal)
    await anchored_at(journal.path, 2)
    before = read_anchor(journal.path)
    kept = before.slots.index(before.newest)
    for number in range(10):
        await step(journal, claim, str(number))
        slots = read_anchor(journal.path)
        assert any(slot is not None and slot.synced for slot in slots.slots)
        if number == 1:
            assert slots.slots[kept] == before.newest


@pytest.mark.parametrize("slot", [0, 1])
async def test_a_torn_slot_leaves_the_other(tmp_path, slot):
    path = tmp_path / "journal.db"
    journal = open_journal(path)
    claim = await started(journal)
    await anchored_at(path, 2)
    await step(journal, claim, "a")
    await journal.aclose()
    whole = read_anchor(path)
    with anchor_path(path).open("r+b") as file:
        file.seek(slot * APART + 50)
        file.write(b"\xff" * 20)
    torn = read_anchor(path)
    assert torn.damaged == 1
    assert torn.anchored == whole.slots[1 - slot].anchored
    report = await verify_file(path)
    assert (report.ok, report.anchor.state, report.anchor.damaged) == (True, "anchored", 1)


async def test_an_anchor_of_which_nothing_is_whole_is_a_problem_and_is_made_anew(tmp_path):
    path = tmp_path / "journal.db"
    journal = open_journal(path)
    await started(journal)
    await journal.aclose()
    anchor_path(path).write_bytes(b"nonsense" * 1000)
    report = await verify_file(path)
    assert [problem.kind for problem in report.problems] == ["anchor"]
    journal = open_journal(path)
    await started(journal, "work:b")
    await journal.aclose()
    report = await verify_file(path)
    assert (report.ok, report.anchor.state) == (True, "anchored")


async def test_a_journal_whose_anchor_is_gone_says_so_and_adopts_one(tmp_path):
    path = tmp_path / "journal.db"
    journal = open_journal(path)
    await started(journal)
    await journal.aclose()
    anchor_path(path).unlink()
    report = await verify_file(path)
    assert (report.ok, report.anchor.state) == (True, "unanchored")
    journal = open_journal(path)
    await started(journal, "work:b")
    await anchored_at(path, 4)
    await journal.aclose()


async def test_an_anchor_that_cannot_be_kept_is_said_once_and_stops_nobody(tmp_path, caplog):
    path = tmp_path / "journal.db"
    anchor_path(path).mkdir()
    journal = open_journal(path)
    claim = await started(journal)
    for number in range(5):
        await step(journal, claim, str(number))
    assert (await journal.head()).position == 7
    await journal.aclose()
    said = [record.getMessage() for record in caplog.records if "cannot be kept" in record.getMessage()]
    assert len(said) == 1
    assert [problem.kind for problem in (await verify_file(path)).problems] == ["anchor"]


async def test_another_history_is_refused(tmp_path):
    path = tmp_path / "journal.db"
    journal = open_journal(path)
    await started(journal)
    await backup(journal, tmp_path / "copy.db")
    await started(journal, "work:b")
    await journal.aclose()
    other = open_journal(tmp_path / "copy.db")
    for number in range(3):
        await started(other, f"work:other{number}")
    await other.aclose()
    swap(path, tmp_path / "copy.db")
    with pytest.raises(JournalCorrupt, match="another history") as refused:
        open_journal(path)
    assert refused.value.details["missing"] is None
    report = await verify_file(path)
    assert [(problem.kind, problem.position) for problem in report.problems] == [("anchor", 4)]


async def test_a_restored_note_is_taken_only_for_the_very_anchor_that_it_names(tmp_path):
    path = tmp_path / "journal.db"
    journal = open_journal(path)
    await backup(journal, tmp_path / "copy.db")
    await started(journal)
    await journal.aclose()
    before = anchor_path(path).read_bytes()
    named = read_anchor(path).anchored
    assert named is not None
    await restore(path, tmp_path / "copy.db")
    anchor_path(path).write_bytes(before)  # as if it had been killed before it could write the new one
    report = await verify_file(path)
    assert (report.ok, report.anchor.state) == (True, "restored")
    later = Anchored(named.incarnation, named.position + 1, named.hash)
    anchor_anew(path, later)
    assert [problem.kind for problem in (await verify_file(path)).problems] == ["anchor"]
    anchor_anew(path, named)
    journal = open_journal(path)
    await started(journal)
    await anchored_at(path, 3)
    await journal.aclose()
    assert (await verify_file(path)).anchor.state == "anchored"


async def test_a_file_that_is_replaced_under_a_writer_stops_it(tmp_path, monkeypatch):
    monkeypatch.setattr(anchors, "IDLE_SECONDS", 0.0)
    path = tmp_path / "journal.db"
    journal = open_journal(path)
    claim = await started(journal)
    await backup(journal, tmp_path / "copy.db")
    await step(journal, claim, "a")
    os.replace(tmp_path / "copy.db", path)
    for _ in range(2):
        with pytest.raises(JournalCorrupt, match="another file was put in its place"):
            await step(journal, claim, "b")
    await journal.aclose()


BACK = textwrap.dedent("""
    import sys
    from ktrdr_ops.core.journal.engine import sqlite
    path, copy = sys.argv[1:]
    source, target = sqlite.connect(copy), sqlite.connect(path)
    source.backup(target)  # over the same file, as a tool that knows SQLite does
    target.close(); source.close()
""")


def put_back(path, copy) -> None:
    subprocess.run([sys.executable, "-c", BACK, str(path), str(copy)], check=True, timeout=30)


async def test_a_journal_that_goes_back_under_a_writer_and_a_tailer_stops_both(tmp_path):
    path = tmp_path / "journal.db"
    journal = open_journal(path)
    claim = await started(journal)
    await backup(journal, tmp_path / "copy.db")
    tail: Any = journal.tail(after=0)
    await step(journal, claim, "a")
    assert [(await anext(tail)).position for _ in range(3)] == [1, 2, 3]
    await anchored_at(path, 3)
    following = asyncio.ensure_future(anext(tail))
    put_back(path, tmp_path / "copy.db")
    with pytest.raises(JournalCorrupt, match="position 3 had been read, but it ends at 2"):
        await following
    with pytest.raises(JournalCorrupt, match="1 event is missing at the end"):
        await step(journal, claim, "b")
    await journal.aclose()


async def test_a_tailer_refuses_another_history_that_is_longer(tmp_path):
    path = tmp_path / "journal.db"
    journal = open_journal(path)
    claim = await started(journal)
    await backup(journal, tmp_path / "copy.db")
    await step(journal, claim, "a")
    seen = await journal.head()
    await journal.aclose()
    copy = open_journal(tmp_path / "copy.db")
    for number in range(5):
        await started(copy, f"work:{number}")
    with pytest.raises(JournalCorrupt, match="position 3 is not what had been read there"):
        await anext(copy.tail(after=seen))
    with pytest.raises(JournalCorrupt, match="position 99 had been read, but it ends at"):
        await anext(copy.tail(after=99))
    early: Any = copy.tail(after=Head(seen.incarnation, 2, (await copy.read(after=1, limit=1))[0].hash.hex()))
    assert (await anext(early)).position == 3
    await early.aclose()
    await copy.aclose()


async def test_a_tailer_sees_that_another_file_took_the_journals_place(tmp_path):
    path = tmp_path / "journal.db"
    writer = open_journal(path)
    await started(writer)
    await backup(writer, tmp_path / "copy.db")
    await writer.aclose()
    reader = open_journal(path, readonly=True)
    following = asyncio.ensure_future(anext(reader.tail()))
    await asyncio.sleep(0)
    await reader.head()
    os.replace(tmp_path / "copy.db", path)
    with pytest.raises(JournalCorrupt, match="another file was put in its place"):
        await following
    await reader.aclose()


async def test_cancels_get_through_after_the_journal_went_back_or_could_not_be_read(tmp_path, caplog):
    path = tmp_path / "journal.db"
    journal = open_journal(path)
    claim = await started(journal)
    await backup(journal, tmp_path / "copy.db")
    await step(journal, claim, "a")
    told: list[CancelRequested] = []
    arrived = threading.Event()
    watch = CancelWatch(journal)

    def tell(asked: CancelRequested, at: int) -> None:
        told.append(asked)
        arrived.set()

    watch.add(claim.operation_id, claim.position, tell)
    async with asyncio.timeout(10):
        while watch._head[0] < 3:
            await asyncio.sleep(0.005)
        put_back(path, tmp_path / "copy.db")
        while not any("went back" in record.getMessage() for record in caplog.records):
            await asyncio.sleep(0.005)
    anchor_anew(path, Anchored(bytes.fromhex((await journal.head()).incarnation), 2, b"?" * 32))
    anchor_path(path).write_bytes(b"")
    await journal.append(Cancel(claim.operation_id, "somebody", "enough", journal.owner()))
    assert await asyncio.to_thread(arrived.wait, 10)
    watch.remove(claim.operation_id)
    await journal.aclose()
    assert [asked.requested_by for asked in told] == ["somebody"]


async def test_a_reading_error_does_not_end_the_watch_for_cancels(journal, caplog):
    claim = await started(journal)
    arrived = threading.Event()
    watch = CancelWatch(journal)
    looked = watch._look
    errors = iter([engine.sqlite.OperationalError("disk I/O error")] * 3)

    def failing(connection):
        for error in errors:
            raise error
        return looked(connection)

    watch._look = failing  # type: ignore[method-assign]
    watch.add(claim.operation_id, claim.position, lambda asked, at: arrived.set())
    await journal.append(Cancel(claim.operation_id, "somebody", "enough", journal.owner()))
    assert await asyncio.to_thread(arrived.wait, 10)
    watch.remove(claim.operation_id)
    assert [record.levelno for record in caplog.records if "cannot be read" in record.getMessage()] == [logging.ERROR]


WRITER = textwrap.dedent("""
    import asyncio, sys
    from ktrdr_ops.core.events import Completed, StepCompleted
    from ktrdr_ops.core.journal.anchor import read_anchor
    from ktrdr_ops.core.journal.decisions import Say, draft
    from ktrdr_ops.core.journal.journal import open_journal
    from tests.core.journal.conftest import started
    async def main(path, name):
        journal = open_journal(path)
        claim, lag = await started(journal, name), 0
        for number in range(150):
            await journal.append(Say((draft(claim.operation_id, 1, StepCompleted(name=str(number))),)))
            found = read_anchor(path).anchored
            head = await journal.head()
            assert found is None or found.position <= head.position
            lag = max(lag, head.position - (0 if found is None else found.position)) if number > 5 else 0
        await journal.append(Say((draft(claim.operation_id, 1, Completed()),)))
        await journal.aclose()
        print(lag)
    from pathlib import Path
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
""")


async def test_several_writers_keep_one_anchor_that_ends_at_the_head(tmp_path):
    path = tmp_path / "journal.db"
    open_journal(path).close()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), f"work:{n}"], stdout=subprocess.PIPE, text=True)
        for n in range(3)
    ]
    lags = [int((await asyncio.to_thread(writer.communicate))[0]) for writer in writers]
    report = await verify_file(path)
    assert (report.ok, report.anchor.state) == (True, "anchored")
    assert report.anchor.anchored.position == report.position == 3 * 153
    assert max(lags) < 60


async def test_an_event_that_was_changed_at_the_anchored_position_is_refused_at_open(tmp_path):
    path = tmp_path / "journal.db"
    journal = open_journal(path)
    await started(journal)
    await journal.aclose()
    meddle(path, "DROP TRIGGER events_no_update", "UPDATE events SET hash = zeroblob(32) WHERE position = 2")
    with pytest.raises(JournalCorrupt, match="another history"):
        open_journal(path)
