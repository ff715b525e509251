"""Another program's database is not touched, whatever it is named for."""

from __future__ import annotations

import shutil
import sqlite3

import pytest

import ktrdr_ops as ko
from ktrdr_ops.core.errors import JournalRefused

COMMANDS = (
    ("note", "x", "y"),
    ("cancel", "x"),
    ("resume", "x"),
    ("recover",),
    ("run", "toy_work", "--param", "name=x"),
    ("list",),
    ("doctor",),
    ("journal", "verify"),
    pytest.param(("journal", "restore", "good.db"), marks=pytest.mark.slow),
)


def rollback(path):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE trades (price)")
    connection.commit()
    connection.close()


def killed_with_a_log(path, *, in_log_only):
    """What a process leaves that was killed: the database, with its log beside it."""
    connection = sqlite3.connect(path.with_name("made.db"))
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE trades (price)")
    if not in_log_only:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute("INSERT INTO trades VALUES (1)")
    connection.commit()
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{path.with_name('made.db')}{suffix}", f"{path}{suffix}")
    connection.close()
    path.with_name("made.db").unlink()


MAKERS = {
    "rollback": rollback,
    "log": lambda path: killed_with_a_log(path, in_log_only=False),
    "in the log only": lambda path: killed_with_a_log(path, in_log_only=True),
}


@pytest.fixture(
    params=["rollback", *(pytest.param(name, marks=pytest.mark.slow) for name in MAKERS if name != "rollback")]
)
def theirs(tmp_path, request):
    """A folder that holds nothing but another program's database."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    MAKERS[request.param](folder / "o.db")
    return folder / "o.db"


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_no_command_changes_another_programs_database(cli, theirs, arguments):
    if "restore" in arguments:
        assert cli("toy", "work", "one").code == 0
        assert cli("journal", "backup", "good.db").code == 0
    before = contents(theirs.parent)
    ran = cli(*arguments, journal=theirs)
    assert "another program's: it has the tables trades" in ran.out + ran.err
    assert ran.code == 7
    assert contents(theirs.parent) == before


def test_opening_it_from_python_changes_nothing_either(theirs):
    before = contents(theirs.parent)
    for readonly in (False, True):
        with pytest.raises(JournalRefused, match="another program"):
            ko.open_app(theirs, readonly=readonly)
    assert contents(theirs.parent) == before


def test_a_journal_whose_tables_are_all_in_its_log_is_opened(cli):
    made = cli.folder / "made.db"
    running = cli.start("toy", "work", "slow", "--until", cli.flag)
    cli.until(lambda: cli.count("progressed"))
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{cli.journal}{suffix}", f"{made}{suffix}")
    cli.flag.touch()
    assert running.ended().code == 0
    assert cli("journal", "verify", journal=made).code == 0
    assert cli("note", "slow", "kept", journal=made).code == 3
