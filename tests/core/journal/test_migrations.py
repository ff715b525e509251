"""Old journals open, newer ones can be read, and a migration leaves a copy, the events, and one schema or the other."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ktrdr_ops.core.errors import JournalCorrupt, JournalError, JournalRefused, OwnershipLost
from ktrdr_ops.core.events import FACTS, Noted, Opaque, StepCompleted
from ktrdr_ops.core.journal import engine, history, schema
from ktrdr_ops.core.journal.decisions import Note, Resume, Say, draft
from ktrdr_ops.core.journal.journal import open_journal
from ktrdr_ops.core.journal.ownership import lock_file
from ktrdr_ops.core.journal.verify import verify, verify_file
from ktrdr_ops.core.progress import GenericProgressManager
from ktrdr_ops.core.replay import replay
from tests.journals.next_schema import MIGRATIONS, NEXT, scripts_with_a_next_schema

CORPUS = sorted((Path(__file__).parents[2] / "journals").glob("*.db"))
OF_THE_WHOLE_JOURNAL = {"restored", "archived"}


@pytest.fixture(params=CORPUS, ids=lambda path: path.stem)
def old(request, tmp_path) -> Path:
    """A journal of an earlier (or this) release, in a folder of its own."""
    path: Path = tmp_path / "journal.db"
    path.write_bytes(request.param.read_bytes())
    path.with_suffix(".json").write_bytes(request.param.with_suffix(".json").read_bytes())
    return path


def expected(path: Path) -> dict:
    document: dict = json.loads(path.with_suffix(".json").read_text())
    return document


def rows(path: Path, query: str) -> list[tuple]:
    connection = engine.connect(path, readonly=True)
    try:
        return list(connection.execute(query).fetchall())
    finally:
        connection.close()


def migrated(path: Path, scripts: Path) -> None:
    lock = lock_file(path)
    lock.lock_gate()
    connection = engine.connect(path)
    try:
        schema.migrate(connection, lock, schema.version(connection), scripts=scripts)
    finally:
        connection.close()
        lock.unshare()
        lock.unlock_gate()


async def holds_what_was_written(path: Path, *, readonly: bool) -> None:
    said = expected(path)
    journal = open_journal(path, readonly=readonly)
    try:
        report = await verify(journal)
        assert report.document()["problems"] == []
        last = (await journal.read(after=said["events"] - 1, limit=1))[0]
        assert (last.position, last.hash.hex()) == (said["events"], said["head"])
        for operation_id, fields in said["operations"].items():
            state = await journal.state(operation_id)
            found = {name: getattr(state, name) for name in fields} | {"status": journal.status(state)}
            if not readonly and found["error"] and found["error"]["code"] == "interrupted":
                found |= {name: fields[name] for name in ("error", "events", "finished_at")}  # settled when it opened
            assert found == fields
    finally:
        await journal.aclose()


def test_there_is_a_journal_of_each_schema():
    schemas = {path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py")}
    assert {path.stem for path in CORPUS} == schemas


def test_the_newest_journal_of_the_corpus_holds_every_type_of_event_that_an_operation_can_have():
    types = {row[0] for row in rows(CORPUS[-1], "SELECT DISTINCT type FROM events")}
    assert FACTS.keys() - OF_THE_WHOLE_JOURNAL - types == set()
    assert types - FACTS.keys() == {"paused", "saved", "evaporated"}


async def test_an_old_journal_opens_for_reading_and_nothing_in_it_changes(old):
    before = old.read_bytes()
    await holds_what_was_written(old, readonly=True)
    assert old.read_bytes() == before


async def test_an_old_journal_opens_for_writing_is_settled_and_goes_on(old):
    said = expected(old)
    events = rows(old, "SELECT * FROM events ORDER BY position")
    await holds_what_was_written(old, readonly=False)
    journal = open_journal(old)
    try:
        killed = next(name for name in said["operations"] if name.startswith("work_killed"))
        assert (await journal.state(killed)).status == "interrupted"
        claim = await journal.append(Resume(killed, journal.owner()))
        assert claim.attempt == 2
        page = await history.list_operations(journal)
        assert page.total == len(said["operations"])
        assert (await verify(journal)).ok
    finally:
        await journal.aclose()
    assert rows(old, "SELECT * FROM events ORDER BY position")[: len(events)] == events


async def test_an_old_journals_operations_are_replayed(old):
    journal = open_journal(old, readonly=True)
    try:
        for operation_id in expected(old)["operations"]:
            shown: list = []
            manager = GenericProgressManager(callback=shown.append)
            states = [state async for _, state in replay(journal, operation_id, manager)]
            assert states[-1] == await journal.state(operation_id)
            assert shown
    finally:
        await journal.aclose()


async def test_types_that_this_release_does_not_know_are_kept_hashed_and_shown_and_count_by_their_class(old):
    said = expected(old)["operations"]
    journal = open_journal(old)
    try:
        opaque = [event for event in await journal.read() if isinstance(event.fact, Opaque)]
        assert [(event.type, event.event_class, event.version) for event in opaque] == [
            ("paused", "progress", 1),
            ("saved", "checkpoint", 1),
            ("completed", "terminal", 99),
            ("evaporated", "terminal", 1),
        ]
        assert [event.document()["data"] for event in opaque] == [
            {"until": 5},
            {"where": "there"},
            {"outcome": [1]},
            {"why": "heat"},
        ]
        paused, evaporated = opaque[0].operation_id, opaque[-1].operation_id
        assert (said[paused]["status"], said[paused]["checkpoint"]["position"]) == ("failed", opaque[1].position)
        assert said[evaporated]["error"]["code"] == "evaporated"
        with pytest.raises(OwnershipLost, match="is over"):
            await journal.append(Say((draft(evaporated, 1, StepCompleted(name="late")),)))
    finally:
        await journal.aclose()


async def test_a_changed_payload_of_an_unknown_type_is_found(old):
    connection = engine.connect(old)
    connection.execute("DROP TRIGGER events_no_update")
    connection.execute("UPDATE events SET payload = CAST('{\"why\":\"cold\"}' AS BLOB) WHERE type = 'evaporated'")
    connection.close()
    report = await verify_file(old)
    assert "hash" in {problem.kind for problem in report.problems}


async def test_migrating_makes_a_copy_first_and_leaves_each_event_as_it_was(old, tmp_path):
    everything = "SELECT * FROM events ORDER BY position"
    before, version = rows(old, everything), rows(old, "SELECT version_num FROM alembic_version")
    migrated(old, scripts_with_a_next_schema(tmp_path / "migrations"))
    assert rows(old, "SELECT version_num FROM alembic_version") == [(NEXT,)]
    assert rows(old, everything) == before
    copy = Path(f"{old}.before-{NEXT}")
    assert rows(copy, everything) == before
    assert rows(copy, "SELECT version_num FROM alembic_version") == version
    assert (await verify_file(copy)).ok
    assert copy.stat().st_mode & 0o077 == 0
    assert list(tmp_path.glob("*.partial")) == []


async def test_a_newer_journal_opens_for_reading_and_is_not_written(old, tmp_path):
    migrated(old, scripts_with_a_next_schema(tmp_path / "migrations"))
    await holds_what_was_written(old, readonly=True)
    with pytest.raises(JournalRefused, match="newer release") as raised:
        open_journal(old)
    assert "upgrade" in str(raised.value.hint)


async def test_a_newer_release_may_keep_more_of_an_operation_than_this_one_knows(old, tmp_path):
    migrated(old, scripts_with_a_next_schema(tmp_path / "migrations"))
    connection = engine.connect(old)
    connection.execute("UPDATE operations SET state = json_insert(CAST(state AS TEXT), '$.mood', 'good')")
    connection.execute(
        "UPDATE operations SET status = 'paused', state = json_set(CAST(state AS TEXT), '$.status', 'paused')"
        " WHERE operation_id LIKE 'work_paused%'"
    )
    connection.execute("UPDATE operations SET state = CAST(state AS BLOB)")
    connection.close()
    journal = open_journal(old, readonly=True)
    try:
        page = await history.list_operations(journal)
        assert "paused" in {state.status for state in page.states}
        report = await verify(journal)
        assert report.document()["problems"] == []
    finally:
        await journal.aclose()


def test_a_copy_that_an_earlier_try_left_is_made_anew(old, tmp_path):
    copy = Path(f"{old}.before-{NEXT}")
    copy.write_bytes(b"an older one")
    copy.with_name(copy.name + ".partial").write_bytes(b"half of one")
    migrated(old, scripts_with_a_next_schema(tmp_path / "migrations"))
    assert rows(copy, "SELECT count(*) FROM events") == rows(old, "SELECT count(*) FROM events")


def test_a_copy_with_other_content_is_found(old, tmp_path):
    connection = engine.connect(old)
    other = tmp_path / "copy.db"
    connection.execute("VACUUM INTO ?", (str(other),))
    schema._compare(connection, other)
    changed = engine.connect(other)
    changed.execute("UPDATE operations SET message = 'another' WHERE operation_id LIKE 'work_killed%'")
    changed.close()
    with pytest.raises(JournalCorrupt, match="not the same"):
        schema._compare(connection, other)
    connection.close()


def test_a_new_journal_needs_no_copy(tmp_path):
    path = tmp_path / "journal.db"
    migrated(path, scripts_with_a_next_schema(tmp_path / "migrations"))
    assert list(tmp_path.glob("*.before-*")) == []


def test_a_migration_that_fails_leaves_the_old_schema_and_holds_nobody_up(old, tmp_path):
    scripts = scripts_with_a_next_schema(tmp_path / "migrations")
    script = next(scripts.glob(f"versions/{NEXT}*.py"))
    script.write_text(script.read_text() + "    op.execute('CREATE TABLE labels (twice)')\n")
    before = rows(old, "SELECT name, sql FROM sqlite_master ORDER BY name")
    with pytest.raises(JournalError, match="could not be migrated") as raised:
        migrated_and_held(old, scripts)
    assert "already exists" in raised.value.message
    assert rows(old, "SELECT name, sql FROM sqlite_master ORDER BY name") == before
    reading = textwrap.dedent("""
        import sys
        from ktrdr_ops.core.journal.journal import open_journal
        open_journal(sys.argv[1], readonly=True).close()
    """)
    subprocess.run([sys.executable, "-c", reading, str(old)], check=True, timeout=30)


def migrated_and_held(path: Path, scripts: Path) -> None:
    """As opening does it: when it fails, only the gate is let go."""
    lock = lock_file(path)
    lock.lock_gate()
    connection = engine.connect(path)
    try:
        schema.migrate(connection, lock, schema.version(connection), scripts=scripts)
    finally:
        connection.close()
        lock.unlock_gate()


async def test_a_journal_that_was_left_empty_by_a_kill_is_made_and_is_private(tmp_path):
    path = tmp_path / "journal.db"
    path.touch(mode=0o600)
    journal = open_journal(path)
    await journal.append(Note("", Noted(text="made")))
    await journal.aclose()
    assert path.stat().st_mode & 0o077 == 0
