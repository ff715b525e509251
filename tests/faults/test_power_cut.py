"""A power cut at any moment: what was acknowledged is there, and the journal opens and is sound.

Processes that work on a journal are recorded call by call (``recorder``), and every state that the disk may have after
each call is rebuilt (``disk_states`` says by which rules), opened as a journal, written to, and verified: SQLite's own
check, anchor, chain, projection, objects. What a state must hold is what had been acknowledged up to that call.

Some runs have three processes of which one is killed in the middle of its calls again and again. In others a sync
fails, or several in a row, and Linux drops what it was to write; then comes the power cut.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.faults.disk_states import records
from tests.faults.fork_server import Child, ForkServer, seed
from tests.faults.recorder.checks import MEMORY, Found, Plan, check_log
from tests.faults.recorder.library import library
from tests.faults.recorder.runs import Run, recorded

FOR_EVER = -1
TIMES = (1, 2, 3, 4, FOR_EVER)
"""So many syncs fail in a row. At the second one the recovery of the first is disturbed."""


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    preload = os.environ.get("LD_PRELOAD")
    os.environ["LD_PRELOAD"] = str(library())
    try:
        made = ForkServer(recorded.__module__)
    finally:
        del os.environ["LD_PRELOAD"]
        if preload is not None:
            os.environ["LD_PRELOAD"] = preload
    with made:
        yield made


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder whose files lie in memory, where there is one."""
    folder = Path(tempfile.mkdtemp(prefix="ktrdr-ops-recorded-", dir=MEMORY if MEMORY.is_dir() else None)).resolve()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Figures:
    """What came of all recordings of a test."""

    began: float = field(default_factory=time.monotonic)
    recordings: int = 0
    states: int = 0
    acknowledged: int = 0
    by_mode: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    failed_syncs: int = 0
    corrupt: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def add(self, log: Path, found: Found) -> None:
        """Take one recording in."""
        self.recordings += 1
        self.states += found.states
        self.acknowledged += found.acknowledged
        self.by_mode += found.by_mode
        self.failed_syncs += sum(record.number for record in records(log.read_bytes()) if record.kind == "s")
        self.corrupt += found.corrupt
        self.lost += found.lost

    @property
    def problems(self) -> list[str]:
        """All that is wrong."""
        return self.corrupt + self.lost

    def show(self, row: str, first: int) -> None:
        """The line of figures."""
        print(
            f"\nFAULTS {row}: {self.states} disk states ({', '.join(f'{n} {m}' for m, n in self.by_mode.items())}) of "
            f"{self.recordings} recordings, {self.acknowledged} events acknowledged, {self.kills} processes killed, "
            f"{self.failed_syncs} syncs failed, {len(self.corrupt)} corrupt, {len(self.lost)} lost, "
            f"{time.monotonic() - self.began:.0f} s, seed {first}"
        )


class Recording:
    """A folder and the log of what is done to it."""

    def __init__(self, server: ForkServer, memory: Path) -> None:
        self.log = memory / "log"
        self._server = server
        self._folder = memory / "recorded"
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        self.log.unlink(missing_ok=True)

    def one(self, run: Run) -> None:
        """Let one process do its part."""
        child = self._server.fork(recorded, *run.arguments(self._folder, self.log))
        assert child.wait(60) == (-9 if run.kill else 0)

    def three(self, run: Run, random_: random.Random) -> int:
        """Let three work at once, the third of which is killed again and again; gives how often."""
        parts = [replace(run, seed=run.seed + number, key=f"work:{number}") for number in range(3)]
        children = [self._fork(part) for part in parts[:2]]
        kills = 0
        while True:
            victim = self._fork(replace(parts[2], seed=run.seed + 3 + kills, kill=random_.randrange(20, 400)))
            ended = victim.wait(60)
            kills += ended == -9
            assert ended in (0, -9)
            if ended == 0 or kills == 4:
                break
        assert [child.wait(60) for child in children] == [0, 0]
        return kills

    def _fork(self, run: Run) -> Child:
        return self._server.fork(recorded, *run.arguments(self._folder, self.log))


def cut(
    server: ForkServer,
    memory: Path,
    states: int,
    *,
    events: int,
    every: int = 1,
    processes: int = 1,
    synchronous: str = "FULL",
) -> Figures:
    """Record runs of about so many requests, one process and three in turn, until so many disk states were seen."""
    first = seed()
    random_ = random.Random(first)
    figures = Figures()
    while figures.states < states and not figures.problems:
        recording = Recording(server, memory)
        run = Run(random_.randrange(1 << 32), events, sessions=2, checkpoint_pages=random_.choice((15, 40, 1000)))
        run = replace(run, synchronous=synchronous)
        if figures.recordings % 2 == 0:
            recording.one(run)
        else:
            figures.kills += recording.three(run, random_)
        plan = Plan(random_.randrange(1 << 32), every=every, torn=2)
        figures.add(recording.log, check_log(recording.log, plan, processes=processes))
    figures.show(f"power cut, synchronous {synchronous}", first)
    return figures


def fail_syncs(
    server: ForkServer, memory: Path, *, step: int, times: tuple[int, ...] = TIMES, every: int = 1, mutant: str = ""
) -> Figures:
    """Let each ``step``-th sync of a run fail, so many times in a row, and cut the power at any moment after it; in
    half of the runs a second process comes after the first."""
    first = seed()
    random_ = random.Random(first)
    figures = Figures()
    for many in times:
        at = 1 + random_.randrange(step)
        while True:
            recording = Recording(server, memory)
            run = Run(first, 24, fail=at, times=many, leave=random_.random() < 0.5, mutant=mutant)
            recording.one(run)
            if random_.random() < 0.5:
                recording.one(Run(first + 1, 8, key="work:b", mutant=mutant))
            plan = Plan(random_.randrange(1 << 32), every=every, names_by_any_sync=True, after_failure=True)
            before = figures.failed_syncs
            figures.add(recording.log, check_log(recording.log, plan))
            if figures.failed_syncs == before:
                break
            at += step
    figures.show(f"failed sync, then power cut{', ' if mutant else ''}{mutant}", first)
    return figures


def test_what_was_acknowledged_survives_a_power_cut_at_some_calls(server, memory):
    assert cut(server, memory, 200, events=14, every=7).problems == []


def test_what_was_acknowledged_survives_some_failed_syncs_followed_by_a_power_cut(server, memory):
    assert fail_syncs(server, memory, step=25, times=(1, 2), every=60).problems == []


def test_a_journal_that_syncs_at_checkpoints_only_loses_acknowledged_events(server, memory):
    figures = cut(server, memory, 100, events=14, every=15, synchronous="NORMAL")
    assert figures.lost or any("missing at the end" in problem for problem in figures.corrupt)


@pytest.mark.slow
def test_what_was_acknowledged_survives_a_power_cut_at_three_thousand_states(server, memory):
    figures = cut(server, memory, 3_000, events=30, every=2, processes=2)
    assert figures.problems == []
    assert figures.kills


@pytest.mark.slow
def test_what_was_acknowledged_survives_failed_syncs_followed_by_a_power_cut(server, memory):
    assert fail_syncs(server, memory, step=7, every=20).problems == []


@pytest.mark.slow
def test_a_journal_that_never_syncs_is_corrupted(server, memory):
    figures = cut(server, memory, 1_000, events=30, every=5, synchronous="OFF")
    assert figures.problems


@pytest.mark.slow
def test_a_writer_that_swallows_the_error_of_a_commit_is_caught(server, memory):
    assert fail_syncs(server, memory, step=5, times=(1,), every=20, mutant="swallow").lost


@pytest.mark.slow
def test_a_writer_that_only_looks_up_what_a_failed_commit_left_is_caught(server, memory):
    assert fail_syncs(server, memory, step=1, times=(2,), every=20, mutant="look_up").lost


@pytest.mark.slow
def test_a_process_that_appends_behind_what_another_could_not_sync_is_caught(server, memory):
    assert fail_syncs(server, memory, step=3, times=(FOR_EVER,), every=15, mutant="trust").problems


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_what_was_acknowledged_survives_a_power_cut_at_thirty_five_thousand_states(server, memory):
    figures = cut(server, memory, 35_000, events=60, processes=2)
    assert figures.problems == []
    assert figures.kills


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_what_was_acknowledged_survives_each_failed_sync_followed_by_a_power_cut(server, memory):
    assert fail_syncs(server, memory, step=1, every=15).problems == []
