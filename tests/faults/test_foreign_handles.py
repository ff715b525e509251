"""Two SQLite libraries, or a plain open(), on one journal in one process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap

import pytest

from ktrdr_ops.core.journal import engine
from ktrdr_ops.core.journal.journal import open_journal
from tests.core.journal.conftest import started

WRITER = textwrap.dedent("""
    import asyncio, os, sqlite3, sys
    from ktrdr_ops.core.errors import JournalRefused
    from ktrdr_ops.core.journal import guard
    from ktrdr_ops.core.journal.journal import open_journal
    from tests.core.journal.conftest import started
    if sys.argv[2] == "unguarded":
        guard.guard = lambda path: None
    async def main(path):
        journal = open_journal(path)
        await started(journal, "work:first")
        try:
            connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
            connection.execute("SELECT count(*) FROM events").fetchone()
            connection.close()
            print("connected", flush=True)
        except JournalRefused as error:
            print("refused", flush=True)
        sys.stdin.readline()
        claim = await started(journal, "work:second")
        print(claim.operation_id, flush=True)
        sys.stdin.readline()
        os._exit(0)
    asyncio.run(main(sys.argv[1]))
""")


async def second_event_after_a_foreign_handle(path, mode: str) -> tuple[str, bool]:
    """What the foreign connect came to, and whether the event acknowledged after it is there in the end."""
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, str(path), mode, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    outcome = (await writer.stdout.readline()).decode().strip()
    other = open_journal(path)
    await started(other, "work:other")
    await other.aclose()  # the last one to leave empties and deletes the log; is it the last?
    writer.stdin.write(b"go\n")
    operation_id = (await writer.stdout.readline()).decode().strip()
    writer.stdin.write(b"end\n")
    await writer.wait()
    journal = open_journal(path)
    found = await journal.rows("SELECT count(*) FROM operations WHERE operation_id = ?", (operation_id,))
    await journal.aclose()
    return outcome, bool(found[0][0])


@pytest.mark.skipif(
    engine.sqlite.__name__.startswith("sqlite3"), reason="the journal uses the standard library's SQLite here"
)
async def test_another_sqlite_library_is_refused_and_nothing_is_lost(tmp_path):
    assert await second_event_after_a_foreign_handle(tmp_path / "journal.db", "guarded") == ("refused", True)


@pytest.mark.skipif(
    engine.sqlite.__name__.startswith("sqlite3"), reason="the journal uses the standard library's SQLite here"
)
async def test_control_without_the_hook_an_acknowledged_event_is_lost(tmp_path):
    assert await second_event_after_a_foreign_handle(tmp_path / "journal.db", "unguarded") == ("connected", False)


async def test_a_plain_open_of_its_files_is_refused_while_it_is_open(tmp_path):
    from ktrdr_ops.core.errors import JournalRefused

    journal = open_journal(tmp_path / "journal.db")
    await started(journal)
    for suffix in ("", "-wal", "-shm", ".lock"):
        with pytest.raises(JournalRefused, match="drop its locks"):
            (tmp_path / f"journal.db{suffix}").read_bytes()
    await journal.aclose()
    assert (tmp_path / "journal.db").read_bytes()[:6] == b"SQLite"
