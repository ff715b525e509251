"""The real command line in processes of its own, with a toy domain beside the installed ones."""

from __future__ import annotations

import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from ktrdr_ops.hosts.sandbox import stop_hosts

TOY = Path(__file__).parent / "toy"
ROOT = Path(__file__).parents[3]
DEADLINE = 20.0


@dataclass
class Ran:
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """stdout as the one document that it is."""
        return json.loads(self.out)

    @property
    def lines(self):
        """stdout as one document a line."""
        return [json.loads(line) for line in self.out.splitlines()]


class Running:
    """A command line that runs."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def has_said(self) -> bool:
        """Whether something waits on its stdout."""
        assert self.process.stdout is not None
        return bool(select.select([self.process.stdout.fileno()], [], [], 0)[0])

    def ended(self) -> Ran:
        out, err = self.process.communicate(timeout=DEADLINE)
        return Ran(self.process.returncode, out, err)


class Cli:
    """``ktrdr-ops`` over one journal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = folder / "journal.db"
        self.flag = folder / "go-on"
        self.running: list[Running] = []
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KTRDR_OPS_", "NO_COLOR"))}
        self.environment = {
            **kept,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(TOY)]),
            "HOME": str(folder),
            "TZ": "UTC",
            "TERM": "xterm",
            "COLUMNS": "120",
            "PYTHONIOENCODING": "utf-8",
        }

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "ktrdr_ops", *map(str, arguments)]

    def __call__(self, *arguments: object, journal: Path | None = None, **environment: str) -> Ran:
        ran = subprocess.run(
            self.command("--journal", journal or self.journal, *arguments),
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.environment | environment,
            timeout=DEADLINE,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    def start(self, *arguments: object, **environment: str) -> Running:
        process = subprocess.Popen(
            self.command("--journal", self.journal, *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=self.folder,
            env=self.environment | environment,
        )
        self.running.append(Running(process))
        return self.running[-1]

    def slow(self, *arguments: object, name: str = "slow", **environment: str) -> Running:
        """Work that waits at piece 3 for the flag, and has come there."""
        before = self.count("progressed", "Piece 3")
        running = self.start("toy", "work", name, "--until", self.flag, *arguments, **environment)
        self.until(lambda: self.count("progressed", "Piece 3") > before)
        return running

    def rows(self, query: str, *parameters: object) -> list[tuple]:
        """Rows of the journal's file, read with nothing but sqlite3."""
        if not self.journal.exists():
            return []
        connection = sqlite3.connect(f"file:{self.journal}?mode=ro", uri=True)
        try:
            return connection.execute(query, parameters).fetchall()
        except sqlite3.OperationalError:
            return []
        finally:
            connection.close()

    def count(self, type_: str, text: str = "") -> int:
        rows = self.rows("SELECT CAST(payload AS TEXT) FROM events WHERE type = ?", type_)
        return sum(text in row[0] for row in rows)

    @staticmethod
    def until(condition) -> None:
        """Poll until it holds."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, "it did not come to that"
            time.sleep(0.02)


@pytest.fixture
def cli(tmp_path):
    made = Cli(tmp_path)
    yield made
    for running in made.running:
        if running.process.poll() is None:
            running.signal(signal.SIGKILL)
        running.process.communicate()
    if (tmp_path / "data-host.json").exists():
        stop_hosts(tmp_path)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A journal that has one completed and, after it, one failed operation; for tests that only look."""
    made = Cli(tmp_path_factory.mktemp("done"))
    assert made("toy", "work", "good").code == 0
    assert made("toy", "work", "bad", "--fail", "3").code == 1
    return made
