"""Minutes of work: three writers, kills, stops and backups; memory, handles and the write-ahead log stay flat.

One writer is never killed: its memory and handles are watched. All are stopped now and then, wherever they are. A
backup is made every few seconds and verified. The controls are a writer that leaks, and a reader that holds a cursor.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ktrdr_ops.core.events import Checkpointed, Completed, Failed, Progressed, StepCompleted, Submitted
from ktrdr_ops.core.journal.decisions import Claim, Say, Start, draft
from ktrdr_ops.core.journal.journal import open_journal
from ktrdr_ops.core.journal.maintenance import backup
from ktrdr_ops.core.journal.reader import connect_for_reading
from ktrdr_ops.core.journal.verify import verify_file
from tests.faults.fork_server import Child, ForkServer, hear, say, seed

WRITERS = 3
SAMPLE_SECONDS = 0.25
RSS_GROWTH = 4 << 20
"""More than the memory of a process moves by itself (SQLite's cache, the allocator), in bytes."""
WAL_LIMIT = 32 << 20
"""The log begins again at every checkpoint (4 MiB) that no backup is in the way of."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


def writer(path: str, name: str, number: int, leaking: bool) -> None:
    """Run short operations, one after the other, until killed. Says the last position that was acknowledged."""
    random_ = random.Random(number)
    journal = open_journal(Path(path))
    leaked: list[Any] = []
    count = 0
    while True:
        count += 1
        submitted = Submitted(
            operation_type="work", key=f"{name}:{count % 20}", total_steps=1, parameters={}, digest=f"{count}"
        )
        claim: Claim = journal.submit(Start(name, submitted, journal.owner())).result(60)
        for step in range(random_.randrange(2, 12)):
            for items in range(random_.randrange(5)):
                journal.say(
                    claim.operation_id, claim.attempt, Progressed(step=1, percentage=1.0, message="m", items=items)
                )
            facts = StepCompleted(name=f"{step}"), Checkpointed(value=list(range(step)))
            drafts = tuple(draft(claim.operation_id, claim.attempt, fact) for fact in facts)
            journal.submit(Say(drafts)).result(60)
            time.sleep(random_.uniform(0, 0.02))
        end = Completed(result=count) if random_.random() < 0.8 else Failed(code="x", message="m")
        say(journal.submit(Say((draft(claim.operation_id, claim.attempt, end),))).result(60))
        if leaking:
            leaked += [os.dup(1), bytes(b"x" * 1_000_000)]


async def copier(path: str, target: str) -> None:
    """Back up again and again: after each line that is heard. Says how many events the copy holds."""
    journal = await asyncio.to_thread(open_journal, Path(path), readonly=True)
    while True:
        await asyncio.to_thread(hear)
        document = await backup(journal, Path(target))
        os.unlink(target)
        say(document["ok"], document["events"])


def holding_a_cursor(path: str) -> None:
    """Mutant: a reader in the midst of a query, for ever."""
    rows = connect_for_reading(Path(path)).execute("SELECT * FROM operations, events")
    say(len(next(rows)))
    hear()


@dataclass
class Samples:
    """What was measured of the writer that is never killed, and of the log."""

    rss: list[int] = field(default_factory=list)
    handles: list[int] = field(default_factory=list)
    wal: list[int] = field(default_factory=list)

    def take(self, pid: int, path: Path) -> None:
        self.rss.append(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE)
        self.handles.append(len(os.listdir(f"/proc/{pid}/fd")))
        self.wal.append(os.stat(f"{path}-wal").st_size)

    def not_flat(self) -> list[str]:
        """What grew: the last fifth against the second one (the first warms up)."""
        found = []
        before, after = (statistics.median(part) for part in self._parts(self.rss))
        if after - before > RSS_GROWTH:
            found.append(f"memory: {before / 2**20:.1f} to {after / 2**20:.1f} MiB")
        few, many = (max(part) for part in self._parts(self.handles))
        if many > few:
            found.append(f"handles: {few} to {many}")
        if max(self.wal) > WAL_LIMIT:
            found.append(f"log: {max(self.wal) / 2**20:.1f} MiB")
        return found

    def _parts(self, values: list[int]) -> tuple[list[int], list[int]]:
        fifth = max(len(values) // 5, 1)
        return values[fifth : 2 * fifth], values[-fifth:]

    def figures(self) -> str:
        rss = [round(statistics.median(part) / 2**20, 1) for part in self._parts(self.rss)]
        handles = [max(part) for part in self._parts(self.handles)]
        return f"memory {rss} MiB, handles {handles}, log at most {max(self.wal) / 2**20:.1f} MiB"


class Soak:
    """The processes of one run."""

    def __init__(self, server: ForkServer, path: Path, random_: random.Random, leaking: bool) -> None:
        self.server, self.path, self.random, self.leaking = server, path, random_, leaking
        self.kills = self.stops = self.backups = 0
        self.position = 0
        self.stopped: dict[int, float] = {}
        self.writers = [self.forked(index) for index in range(WRITERS)]
        self.copier = server.fork(copier, str(path), str(path.with_name("copy.db")))
        self.copying = False
        self.copy_at = time.monotonic() + 0.5

    def forked(self, index: int) -> Child:
        number = self.random.randrange(1 << 32)
        return self.server.fork(writer, str(self.path), f"work{index}", number, self.leaking and index == 0)

    def disturb(self) -> None:
        """Kill, stop, let go on, back up: whatever is due."""
        now = time.monotonic()
        for index, child in enumerate(self.writers):
            self.position = max([self.position, *(line[0] for line in child.take())])
            assert not child.ended, f"a writer ended by itself with {child.wait()}"
            if index in self.stopped:
                if now > self.stopped[index]:
                    child.go_on()
                    del self.stopped[index]
            elif self.random.random() < 0.01:
                child.signal(19)
                self.stopped[index] = now + self.random.uniform(0, 0.3)
                self.stops += 1
            elif index > 0 and self.random.random() < 0.02:
                child.kill()
                self.kills += 1
                self.writers[index] = self.forked(index)
        for ok, events in self.copier.take():
            assert ok
            assert events
            self.copying = False
            self.backups += 1
            self.copy_at = now + 2
        if not self.copying and now > self.copy_at:
            self.copier.tell()
            self.copying = True

    def end(self) -> None:
        for child in self.writers:
            child.kill()
        deadline = time.monotonic() + 60
        while self.copying and time.monotonic() < deadline:
            self.copying = not self.copier.line(60)[0]
            self.backups += 1


def soak(path: Path, seconds: float, *, leaking: bool = False, cursor: bool = False) -> list[str]:
    """Run so long; gives what was not flat, and prints the figures."""
    first = seed()
    open_journal(path).close()
    samples = Samples()
    with ForkServer(__name__) as server:
        run = Soak(server, path, random.Random(first), leaking)
        ends = time.monotonic() + seconds
        sample_at = holds_at = time.monotonic() + 0.5
        while (now := time.monotonic()) < ends:
            run.disturb()
            if cursor and now > holds_at:
                assert server.fork(holding_a_cursor, str(path)).line()[0] > 0
                holds_at = ends
            if now > sample_at:
                samples.take(run.writers[0].pid, path)
                sample_at = now + SAMPLE_SECONDS
            time.sleep(0.02)
        run.end()
    report = asyncio.run(verify_file(path))
    assert report.problems == ()
    assert report.position >= run.position > 0
    which = ", a writer that leaks" * leaking + ", a reader that holds a cursor" * cursor
    print(
        f"\nFAULTS soak: {seconds:.0f} s, {WRITERS} writers{which}: {report.events} events, {report.operations} "
        f"operations, {run.kills} kills, {run.stops} stops, {run.backups} verified backups; {samples.figures()}; "
        f"seed {first}"
    )
    return samples.not_flat()


@pytest.mark.slow
def test_memory_handles_and_log_stay_flat(tmp_path):
    assert soak(tmp_path / "journal.db", 2) == []


@pytest.mark.slow
def test_a_leak_of_memory_and_handles_is_seen(tmp_path):
    found = " ".join(soak(tmp_path / "journal.db", 2, leaking=True))
    assert "memory" in found
    assert "handles" in found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_reader_that_holds_a_cursor_is_seen_by_the_size_of_the_log(tmp_path):
    assert "log" in " ".join(soak(tmp_path / "journal.db", 20, cursor=True))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_half_a_minute_stays_flat(tmp_path):
    assert soak(tmp_path / "journal.db", 30) == []


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_five_minutes_stay_flat(tmp_path):
    assert soak(tmp_path / "journal.db", 300) == []
