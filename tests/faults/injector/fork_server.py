"""Runs a life cycle again and again, each time in a process of its own, with a fault at another of its system calls.

The server is a process that has imported everything and opened nothing; for each run it forks a child, arms the
injector there and lets it go. A run costs some milliseconds instead of a second.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.injector.library import library

CHECKOUT = Path(__file__).parents[3]
FOR_EVER = -1


@dataclass(frozen=True)
class Fault:
    """What happens at the ``at``-th call, from 1: the process is killed (``error`` 0), or so many calls in a row fail
    with an errno. ``torn``: a write has done its first half before. ``reads``: reading calls are meant and counted.
    """

    at: int = 0
    error: int = 0
    times: int = 1
    torn: bool = False
    reads: bool = False

    def __str__(self) -> str:
        name = errno.errorcode.get(self.error, "SIGKILL")
        often = "for ever" if self.times == FOR_EVER else f"{self.times} x"
        return f"{name} {often}{' torn' * self.torn}{' reading' * self.reads}"


@dataclass(frozen=True)
class Ran:
    """How a run ended: ``ended`` is "ok", "raised" or a signal's name. ``told``: what the process was told, as it was
    told it; ``fired``: the calls that were hit; ``calls``: how many there were."""

    ended: str
    told: list[dict[str, Any]] = field(default_factory=list)
    fired: list[str] = field(default_factory=list)
    calls: int = 0
    errors: str = ""


class ForkServer:
    """Use as a context manager. ``run`` and ``check`` work on a folder that ``prepared`` gives."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")
        self._root = Path(
            tempfile.mkdtemp(prefix="ktrdr-ops-faults-", dir=memory if os.access(memory, os.W_OK) else None)
        ).resolve()
        self._templates: dict[str, Path] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.injector.serve", str(self._root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=CHECKOUT,
            env={**os.environ, "LD_PRELOAD": str(library()), "PYTHONPATH": str(CHECKOUT)},
        )

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()
        shutil.rmtree(self._root, ignore_errors=True)

    def prepared(self, cycle: str) -> Path:
        """A folder as the cycle finds it; what an earlier run of it left is gone."""
        template = self._templates.get(cycle)
        if template is None:
            template = self._templates[cycle] = self._root / f"{cycle}-before"
            template.mkdir()
            made = self._ask(do="prepare", cycle=cycle, folder=str(template), deadline=60)
            assert made.ended in ("ok", "SIGKILL"), made
        folder = self._root / cycle
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder)
        return folder

    def run(self, cycle: str, folder: Path, fault: Fault, *, mutant: str = "", deadline: int = 20) -> Ran:
        """Run the cycle in the folder; "SIGALRM" says that it did not end by its deadline (seconds)."""
        return self._ask(
            do="run", cycle=cycle, folder=str(folder), fault=asdict(fault), mutant=mutant, deadline=deadline
        )

    def check(self, cycle: str, folder: Path, ran: Ran) -> list[str]:
        """What is wrong with the folder after a run, seen by a process that nothing is injected into."""
        checked = self._ask(do="check", cycle=cycle, folder=str(folder), told=ran.told, deadline=60)
        found = [line["problem"] for line in checked.told]
        return found if checked.ended == "ok" else [*found, f"the check itself ended: {checked.ended} {checked.errors}"]

    def _ask(self, **request: Any) -> Ran:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the fork server is gone"
        return Ran(**json.loads(answer))
