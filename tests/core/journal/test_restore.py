"""A copy in the place of a journal: verified, named, kept apart from the history that it replaces."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from ktrdr_ops.core.errors import InvalidValue, JournalCorrupt, JournalRefused
from ktrdr_ops.core.events import Restored, StepCompleted
from ktrdr_ops.core.journal.anchor import anchor_path, read_anchor
from ktrdr_ops.core.journal.decisions import Say, draft
from ktrdr_ops.core.journal.journal import open_journal
from ktrdr_ops.core.journal.maintenance import backup
from ktrdr_ops.core.journal.restore import restore
from ktrdr_ops.core.journal.verify import verify_file
from tests.core.journal.conftest import started
from tests.core.journal.test_verify import against_the_rule, meddle


async def grown(path, key: str, steps: int = 5):
    """A journal with one more operation, closed; gives its head."""
    journal = open_journal(path)
    claim = await started(journal, key)
    for number in range(steps):
        await journal.append(Say((draft(claim.operation_id, claim.attempt, StepCompleted(name=str(number))),)))
    head = await journal.head()
    await journal.aclose()
    return head


async def copied(path, copy) -> None:
    journal = open_journal(path, readonly=True)
    await backup(journal, copy)
    await journal.aclose()


@pytest.fixture
async def path(tmp_path):
    """A journal of 7 events with a copy, then of 14."""
    path = tmp_path / "journal.db"
    await grown(path, "work:a")
    await copied(path, tmp_path / "copy.db")
    await grown(path, "work:b")
    return path


@pytest.fixture
def copy(path):
    return path.with_name("copy.db")


async def events_of(path):
    journal = open_journal(path, readonly=True)
    found = [event async for event in journal.read_all()]
    await journal.aclose()
    return found


async def head_of(path):
    journal = open_journal(path, readonly=True)
    head = await journal.head()
    await journal.aclose()
    return head


async def test_a_restored_journal_is_the_copy_with_a_note_in_a_new_incarnation(path, copy):
    before, anchored = await head_of(path), read_anchor(path).anchored
    done = await restore(path, copy, by="quant")
    events, head = await events_of(path), await head_of(path)
    note = events[-1].fact
    assert [event.position for event in events] == list(range(1, 9))
    assert isinstance(note, Restored)
    assert note.copied is not None
    assert (note.copied["position"], note.missing, note.by) == (7, before.position - 7, "quant")
    assert note.anchored == {"incarnation": before.incarnation, "position": before.position, "hash": before.hash}
    assert note.anchored == anchored.document()
    assert head.incarnation != before.incarnation
    assert done["head"] == {"incarnation": head.incarnation, "position": 8, "hash": head.hash}
    assert read_anchor(path).anchored.document() == done["head"]
    report = await verify_file(path)
    assert (report.ok, report.anchor.state) == (True, "anchored")


async def test_work_goes_on_after_a_restore_and_the_chain_holds(path, copy):
    await restore(path, copy)
    await grown(path, "work:c")
    report = await verify_file(path)
    assert (report.ok, report.position) == (True, 8 + 7)


async def test_what_was_there_is_kept_beside_with_its_log(path, copy):
    before = [event.hash for event in await events_of(path)]
    done = await restore(path, copy)
    kept = await events_of(path.with_name(os.path.basename(done["kept"])))
    assert [event.hash for event in kept] == before
    assert not path.with_name(f"{path.name}-wal").exists()
    again = await restore(path, copy)
    assert again["kept"] != done["kept"]
    assert (await verify_file(path)).ok


async def test_a_restored_copy_can_be_restored_and_both_notes_stay(path, copy, tmp_path):
    await restore(path, copy)
    await grown(path, "work:c")
    await copied(path, tmp_path / "second.db")
    await grown(path, "work:d")
    await restore(path, tmp_path / "second.db")
    events = await events_of(path)
    assert [event.position for event in events if event.type == "restored"] == [8, 16]
    report = await verify_file(path)
    assert (report.ok, report.problems) == (True, ())


async def test_an_old_copy_put_back_by_hand_is_refused_and_restore_heals_it(path, copy):
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    os.replace(copy, path)
    with pytest.raises(JournalCorrupt, match="7 events are missing at the end") as refused:
        open_journal(path)
    assert (refused.value.exit_code, refused.value.details["missing"]) == (4, 7)
    assert "ktrdr-ops journal restore COPY" in str(refused.value.hint)
    journal = open_journal(path, readonly=True)
    assert journal.damage.message == refused.value.message
    assert len(await journal.read()) == 7
    await backup(journal, copy)
    await journal.aclose()
    done = await restore(path, copy)
    assert done["missing"] == 7
    await grown(path, "work:c")
    assert (await verify_file(path)).ok


@pytest.mark.parametrize("damage", ["gone", "empty", "torn", "another file"])
async def test_a_journal_that_cannot_be_read_is_restored(path, copy, damage):
    if damage == "gone":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes({"empty": b"", "torn": content[:3000], "another file": b"hello\n" * 1000}[damage])
    for readonly in (False, True):
        with pytest.raises(JournalCorrupt, match=r"journal\.db"):
            open_journal(path, readonly=readonly)
    assert (await restore(path, copy))["missing"] == 7
    await grown(path, "work:c")
    assert (await verify_file(path)).ok


async def test_a_copy_is_restored_where_there_is_no_journal(copy, tmp_path):
    target = tmp_path / "elsewhere.db"
    done = await restore(target, copy)
    assert (done["kept"], done["anchored"], done["missing"]) == (None, None, None)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    await grown(target, "work:c")
    assert (await verify_file(target)).ok


async def test_a_broken_copy_is_refused_and_nothing_is_changed(path, copy):
    against_the_rule(copy, "events_no_update", "UPDATE events SET at = at + 1 WHERE position = 3")
    before, names = await head_of(path), sorted(found.name for found in path.parent.iterdir())
    with pytest.raises(JournalCorrupt, match="1 problem"):
        await restore(path, copy)
    copy.write_bytes(b"no database" * 500)
    with pytest.raises(JournalCorrupt):
        await restore(path, copy)
    assert await head_of(path) == before
    assert sorted(found.name for found in path.parent.iterdir()) == names


async def test_what_is_no_copy_of_this_journal_is_refused(path, copy, tmp_path):
    await grown(tmp_path / "other.db", "work:a")
    before = await head_of(path)
    with pytest.raises(JournalRefused, match="another journal"):
        await restore(path, tmp_path / "other.db")
    with pytest.raises(InvalidValue, match="the journal itself"):
        await restore(path, path)
    with pytest.raises(InvalidValue, match="there is no file"):
        await restore(path, tmp_path / "none.db")
    (tmp_path / "link.db").symlink_to(path)
    with pytest.raises(InvalidValue, match="the journal itself"):
        await restore(path, tmp_path / "link.db")
    assert await head_of(path) == before


async def test_a_link_to_the_journal_stays_a_link(path, copy, tmp_path):
    (tmp_path / "link.db").symlink_to(path)
    await restore(tmp_path / "link.db", copy)
    assert (tmp_path / "link.db").is_symlink()
    assert len(await events_of(path)) == 8


async def test_a_journal_that_this_process_has_open_is_not_replaced(path, copy):
    journal = open_journal(path)
    with pytest.raises(JournalRefused, match="open in this process"):
        await restore(path, copy)
    await journal.aclose()


@pytest.mark.parametrize("readonly", [False, True])
async def test_a_journal_that_another_process_has_open_is_not_replaced_and_the_process_is_named(path, copy, readonly):
    code = (
        "import sys\nfrom ktrdr_ops.core.journal.journal import open_journal\n"
        f"journal = open_journal(sys.argv[1], readonly={readonly})\n"
        "print('open', flush=True)\nsys.stdin.readline()\njournal.close()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        await asyncio.to_thread(other.stdout.readline)
        with pytest.raises(JournalRefused, match=f"process {other.pid} has it open"):
            await restore(path, copy)
    finally:
        await asyncio.to_thread(other.communicate, "\n")
    assert (await restore(path, copy))["head"]["position"] == 8


async def test_a_cursor_of_the_replaced_history_is_refused_and_an_older_one_goes_on(path, copy):
    journal = open_journal(path, readonly=True)
    events = [event async for event in journal.read_all()]
    late = await journal.head()
    early = type(late)(late.incarnation, 5, events[4].hash.hex())
    await journal.aclose()
    await restore(path, copy)
    await grown(path, "work:c", steps=20)
    journal = open_journal(path, readonly=True)
    with pytest.raises(JournalCorrupt, match=r"another history .*a copy was restored"):
        await anext(journal.tail(after=late))
    tail: Any = journal.tail(after=early)
    assert [(await anext(tail)).position for _ in range(4)] == [6, 7, 8, 9]
    await tail.aclose()
    await journal.aclose()


KILLED = textwrap.dedent("""
    import asyncio, os, sys
    from pathlib import Path
    from ktrdr_ops.core.journal import anchor, restore
    at, seen = int(sys.argv[3]), 0

    def counted(function):
        def call(*arguments, **more):
            global seen
            seen += 1
            if seen == at:
                os.kill(os.getpid(), 9)
            return function(*arguments, **more)
        return call

    for name in ("link", "replace", "fsync", "pwrite", "chmod"):
        setattr(os, name, counted(getattr(os, name)))
    asyncio.run(restore.restore(Path(sys.argv[1]), Path(sys.argv[2])))
    print(seen)
""")


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("anchored", [True, False])
async def test_a_restore_that_is_killed_anywhere_leaves_the_old_the_new_or_a_refusal(tmp_path, anchored, every):
    copy, outcomes, hints = tmp_path / "copy.db", [], []
    await grown(tmp_path / "first.db", "work:a")
    await copied(tmp_path / "first.db", copy)
    for at in range(1, 40, every):
        path = tmp_path / str(at) / "journal.db"
        path.parent.mkdir()
        await restore(path, copy)
        before = await grown(path, "work:b")
        if not anchored:
            anchor_path(path).unlink()
        ran = subprocess.run([sys.executable, "-c", KILLED, path, copy, str(at)], capture_output=True, text=True)
        try:
            open_journal(path).close()
        except JournalCorrupt as refused:
            outcomes.append("refused")
            hints.append(refused.hint)
        else:
            events = await events_of(path)
            old = before.hash in [event.hash.hex() for event in events]
            outcomes.append("old" if old else "new")
            assert old or events[7].type == "restored"
        await restore(path, copy)
        assert (await verify_file(path)).ok
        if ran.returncode != -signal.SIGKILL:
            assert ran.returncode == 0, ran.stderr
            break
    order = [outcome for number, outcome in enumerate(outcomes) if outcomes[number - 1] != outcome or number == 0]
    assert order in (["old", "refused", "new"], ["old", "new"])
    assert len(outcomes) > 12 // every
    assert all("journal restore" in str(hint) for hint in hints)


def test_the_command_restores_and_says_what_is_missing(path, copy, tmp_path):
    command = [sys.executable, "-m", "ktrdr_ops", "--journal", str(path)]
    path.unlink()
    refused = subprocess.run([*command, "list"], capture_output=True, text=True, timeout=30)
    assert (refused.returncode, "is gone" in refused.stderr) == (4, True)
    assert f"ktrdr-ops --journal {path} journal restore COPY" in refused.stderr
    ran = subprocess.run(
        [*command, "--json", "journal", "restore", str(copy)], capture_output=True, text=True, timeout=30
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["missing"] == 7
    ran = subprocess.run([*command, "journal", "restore", str(copy)], capture_output=True, text=True, timeout=30)
    assert "7 events restored, verified" in ran.stdout
    assert "kept" in ran.stdout


async def test_an_old_copy_makes_reading_commands_say_so(path, copy):
    meddle(copy, "PRAGMA user_version = 1")
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    os.replace(copy, path)
    command = [sys.executable, "-m", "ktrdr_ops", "--journal", str(path)]
    ran = await asyncio.to_thread(subprocess.run, [*command, "list"], capture_output=True, text=True, timeout=30)
    assert ran.returncode == 0
    assert "7 events are missing" in ran.stderr
    assert "work_a" in ran.stdout
    ran = await asyncio.to_thread(
        subprocess.run, [*command, "note", "@last", "hello"], capture_output=True, text=True, timeout=30
    )
    assert ran.returncode == 4
    ran = await asyncio.to_thread(
        subprocess.run, [*command, "journal", "verify"], capture_output=True, text=True, timeout=30
    )
    assert (ran.returncode, "missing at the end" in ran.stdout) == (4, True)
