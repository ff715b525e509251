"""The demo is run as it is, and must be able to fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ktrdr_ops.interfaces.cli import demo
from ktrdr_ops.interfaces.cli.frame import Context
from ktrdr_ops.interfaces.cli.main import main
from ktrdr_ops.interfaces.cli.story import Story, kill_in_time


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("KTRDR_OPS_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    return tmp_path


def left(home: Path, within: float = 10.0) -> list[psutil.Process]:
    """The processes that were started with this home and do not end before the time is over."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("XDG_DATA_HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return psutil.wait_procs(found, timeout=within)[1]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_demo_holds_what_it_says_and_leaves_nothing_behind(home):
    # In a process of its own: it starts and kills others.
    ran = subprocess.run(
        [sys.executable, "-m", "ktrdr_ops", "demo", "--json"], capture_output=True, text=True, timeout=110, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = json.loads(ran.stdout)
    assert told["ok"]
    assert [claim for claim in told["claims"] if not claim["holds"]] == []
    assert len(told["claims"]) == 13
    assert told["killed"]["exit"] == -9
    assert told["load"]["attempt"] == 2
    assert told["training"]["attempt"] == 2
    assert told["cancelled"]["cancellation"]["confirmed"] is True
    assert told["verify"]["problems"] == []
    assert list(home.rglob("*.db")) == []
    assert list(home.rglob("demo-*")) == []


def test_a_claim_that_does_not_hold_makes_it_fail(home, capsys, monkeypatch):
    async def told(context, folder):
        story = Story(context, folder)
        story.claim("water is wet", True)
        story.claim("nothing is lost", False)
        return story

    monkeypatch.setattr(demo, "_told", told)
    assert main(["demo"]) == 1
    assert "✗ not so: nothing is lost" in (said := capsys.readouterr().out)
    assert "1 of 2 statements hold" in said
    assert main(["demo", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


@pytest.mark.slow
def test_a_command_that_fails_is_told_with_its_words(home, capsys, monkeypatch):
    monkeypatch.setattr(demo, "SEVERAL", ("data", "load", "NOSUCH", "1d"))
    assert main(["demo"]) == 1
    assert "NOSUCH" in capsys.readouterr().err
    assert list(home.rglob("demo-*")) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_told_to_stop_it_leaves_nothing_behind(home, number, code):
    process = subprocess.Popen([sys.executable, "-m", "ktrdr_ops", "demo"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "$ ktrdr-ops" not in process.stdout.readline():
        assert process.poll() is None
    assert len(left(home, 0.0)) >= 2, "itself and its host"
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert list(home.rglob("demo-*")) == []
    assert left(home) == []


def test_it_keeps_its_folder_when_asked_to(home):
    with demo._folder(True) as kept:
        pass
    with demo._folder(False) as gone:
        pass
    assert kept.is_dir()
    assert kept.is_relative_to(home)
    assert not gone.exists()


def test_it_lies_among_temporary_files_where_a_journal_cannot_lie_at_home(home, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "Dropbox"))
    with demo._folder(False) as folder:
        assert "Dropbox" not in folder.parts


async def test_one_that_ends_before_it_could_be_killed_is_no_success(tmp_path):
    from ktrdr_ops.app import open_app_async
    from ktrdr_ops.core.errors import OperationFailed

    async with open_app_async(tmp_path / "journal.db") as app:
        story = Story(Context(json=True), tmp_path)
        async with story.process("config") as process:
            with pytest.raises(OperationFailed, match="before it could be killed"):
                await kill_in_time(app, process, 0, demo._is_piece, 5)
    assert Path(tmp_path / "journal.db").exists()
