"""The schema comes from the migrations, from a checkout's command line as from inside the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ktrdr_ops.core.errors import JournalRefused
from ktrdr_ops.core.journal import engine, schema
from ktrdr_ops.core.journal.journal import open_journal

CHECKOUT = Path(__file__).parents[3]


def structure(path) -> list[tuple]:
    connection = engine.connect(path)
    try:
        found: list[tuple] = connection.execute(
            "SELECT type, name, sql FROM sqlite_master ORDER BY type, name"
        ).fetchall()
        return found
    finally:
        connection.close()


def alembic(path, *arguments: str) -> subprocess.CompletedProcess[str]:
    ini = path.parent / "alembic.ini"
    text = (CHECKOUT / "alembic.ini").read_text()
    ini.write_text(text.replace("%(here)s", str(CHECKOUT)).replace("journal = ktrdr-ops.db", f"journal = {path}"))
    return subprocess.run(
        [sys.executable, "-m", "alembic", "-c", str(ini), *arguments], capture_output=True, text=True, check=False
    )


def test_upgrading_from_the_command_line_makes_the_same_schema_as_opening(tmp_path):
    by_alembic, by_opening = tmp_path / "a.db", tmp_path / "b.db"
    done = alembic(by_alembic, "upgrade", "head")
    assert done.returncode == 0, done.stderr
    open_journal(by_opening).close()
    assert structure(by_alembic) == structure(by_opening)
    journal = open_journal(by_alembic)
    journal.close()
    assert "0001" in alembic(by_alembic, "current").stdout


def test_the_newest_migration_is_the_one_that_this_release_knows():
    newest = sorted((CHECKOUT / "migrations" / "versions").glob("[0-9]*.py"))[-1]
    assert newest.name.startswith(schema.HEAD)


def test_a_migration_needs_the_journal_alone_and_names_who_has_it(tmp_path):
    path = tmp_path / "journal.db"
    open_journal(path).close()
    connection = engine.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '0000'")
    connection.close()
    hold = (
        "import sys; from ktrdr_ops.core.journal.ownership import lock_file; from pathlib import Path;"
        "lock_file(Path(sys.argv[1])).share(); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(JournalRefused, match=f"process {other.pid} has it open"):
            open_journal(path)
        other.stdin.close()


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 53, 0), True),
        ((4, 0, 0), True),
    ],
)
def test_an_sqlite_with_the_wal_reset_bug_is_not_safe(version, safe):
    assert engine.is_safe(version) is safe


def test_no_safe_sqlite_is_refused_with_the_fix():
    with pytest.raises(JournalRefused, match="can corrupt") as raised:
        engine.load_sqlite(("sqlite3",) if not engine.is_safe(__import__("sqlite3").sqlite_version_info) else ("none",))
    assert "pysqlite3" in str(raised.value.hint)


@pytest.mark.parametrize("folder", ["Dropbox", "OneDrive - Firm", "Mobile Documents"])
def test_a_synced_folder_is_refused(tmp_path, folder):
    (tmp_path / folder).mkdir()
    with pytest.raises(JournalRefused, match="cloud service"):
        open_journal(tmp_path / folder / "journal.db")
    assert list((tmp_path / folder).iterdir()) == []
