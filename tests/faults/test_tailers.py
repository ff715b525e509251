"""Four tailers under kills, checkpoints and reconnects: each reads every event once, in order.

A tailer says what it read; whoever is killed, or closes and opens the journal again, goes on behind the last line that
was heard of it. Meanwhile writers append (and are killed now and then), and another process checkpoints the log in all
of SQLite's modes. The control is a tailer that waits for the files' times instead of asking SQLite.
"""

from __future__ import annotations

import asyncio
import os
import random
import select
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from ktrdr_ops.core.events import Event, Progressed, StepCompleted, Submitted
from ktrdr_ops.core.journal import engine
from ktrdr_ops.core.journal.decisions import Claim, Say, Start, draft
from ktrdr_ops.core.journal.journal import Head, Journal, open_journal
from ktrdr_ops.core.journal.reader import connect_for_reading
from ktrdr_ops.core.journal.verify import verify_file
from tests.faults.fork_server import Child, ForkServer, hear, say, seed

TAILERS = 4
WRITERS = 2


def writer(path: str, key: str, number: int, until: int) -> None:
    """Append singly and in batches until the journal has so many events."""
    random_ = random.Random(number)
    journal = open_journal(Path(path))
    submitted = Submitted(operation_type="work", key=key, total_steps=1, parameters={}, digest="d")
    claim: Claim = journal.submit(Start("work", submitted, journal.owner())).result(30)
    count, position = 0, 0
    while position < until:
        for _ in range(random_.choice((0, 1, 1, 5, 100, 300))):
            count += 1
            journal.say(claim.operation_id, claim.attempt, Progressed(step=1, percentage=1.0, message=f"{count}"))
        request = Say((draft(claim.operation_id, claim.attempt, StepCompleted(name=f"{number}.{count}")),))
        position = journal.submit(request).result(30)
        time.sleep(random_.choice((0, 0, 0.001, 0.02)))  # so that tailers also wait
    journal.close()


async def tailer(path: str, after: list[Any] | None, number: int) -> None:
    """Say [incarnation, position, hash] of each event. Closes and opens the journal again every now and then."""
    random_ = random.Random(number)
    while True:
        journal = await asyncio.to_thread(open_journal, Path(path), readonly=random_.random() < 0.5)
        incarnation = (await journal.head()).incarnation
        left = random_.randrange(1, 20_000)
        tail: Any = journal.tail(after=Head(*after) if after else 0)
        async with aclosing(tail) as events:
            async for event in events:
                after = [incarnation, event.position, event.hash.hex()]
                say(*after)
                left -= 1
                if left == 0:
                    break
        await journal.aclose()


def checkpointer(path: str, number: int) -> None:
    """Checkpoint in a random mode, for ever."""
    random_ = random.Random(number)
    connection = engine.connect(Path(path))
    connection.execute("PRAGMA busy_timeout=20")
    while True:
        connection.execute(f"PRAGMA wal_checkpoint({random_.choice(('PASSIVE', 'FULL', 'RESTART', 'TRUNCATE'))})")
        time.sleep(random_.uniform(0, 0.03))


class Tail:
    """What one tailer, under all its processes, has read."""

    def __init__(self, server: ForkServer, path: Path, random_: random.Random) -> None:
        self.last: list[Any] | None = None
        self.positions = 0
        self.hashes: list[str] = []
        self.problems: list[str] = []
        self._server, self._path, self._random = server, path, random_
        self.child = self._forked()

    def _forked(self) -> Child:
        self.kill_at = time.monotonic() + self._random.uniform(0, 0.5)
        return self._server.fork(tailer, str(self._path), self.last, self._random.randrange(1 << 32))

    def hear(self, lines: list[list[Any]]) -> None:
        for line in lines:
            self.last = line
            self.hashes.append(line[2])
            if line[1] != len(self.hashes) and len(self.problems) < 5:
                self.problems.append(f"position {line[1]} was read as number {len(self.hashes)}")

    def kill(self, *, again: bool = True) -> None:
        self.hear(self.child.kill())
        if self.child.exit_code != -9:
            self.problems.append(f"a tailer ended by itself with {self.child.exit_code}")
        if again:
            self.child = self._forked()


def drive(server: ForkServer, path: Path, events: int, random_: random.Random) -> tuple[list[Tail], int, int]:
    """Until every tailer has read what the writers wrote. Gives the tailers, how often one was killed, and the position
    that each of them has read at least: one that was opened last may have settled an owner after the others' end."""
    open_journal(path).close()
    tails = [Tail(server, path, random_) for _ in range(TAILERS)]
    keys = [f"work:{index}" for index in range(WRITERS)]
    writers = [server.fork(writer, str(path), key, random_.randrange(1 << 32), events) for key in keys]
    server.fork(checkpointer, str(path), random_.randrange(1 << 32))
    kills, total = 0, 0
    quiet_since = time.monotonic()
    while total == 0 or any(len(tail.hashes) < total for tail in tails):
        select.select([tail.child for tail in tails], [], [], 0.05)
        before = sum(len(tail.hashes) for tail in tails)
        for tail in tails:
            tail.hear(tail.child.take())
            if time.monotonic() > tail.kill_at:
                tail.kill()
                kills += 1
        for index, one in enumerate(writers):
            one.take()
            if (one.ended and one.wait() != 0) or (not one.ended and random_.random() < 0.002):
                one.kill()
                writers[index] = server.fork(writer, str(path), keys[index], random_.randrange(1 << 32), events)
        if all(one.ended for one in writers):
            total = last_position(path)  # again each time: a tailer that opens the journal settles what a kill left
        if sum(len(tail.hashes) for tail in tails) > before:
            quiet_since = time.monotonic()
        assert time.monotonic() - quiet_since < 30, f"nothing is read any more: {[len(tail.hashes) for tail in tails]}"
        assert not any(tail.problems for tail in tails), [tail.problems for tail in tails]
    for tail in tails:
        tail.kill(again=False)
    return tails, kills, total


def last_position(path: Path) -> int:
    connection = connect_for_reading(path)
    try:
        return int(connection.execute("SELECT max(position) FROM events").fetchone()[0])
    finally:
        connection.close()


def run(path: Path, events: int) -> None:
    """Hold what four tailers read against the journal, and print the figures."""
    began, first = time.monotonic(), seed()
    with ForkServer(__name__) as server:
        tails, kills, total = drive(server, path, events, random.Random(first))
    connection = connect_for_reading(path)
    hashes = [bytes(row[0]).hex() for row in connection.execute("SELECT hash FROM events ORDER BY position")]
    connection.close()
    for tail in tails:
        assert tail.problems == []
        assert tail.hashes == hashes[: len(tail.hashes)]
        assert len(tail.hashes) >= total
    assert asyncio.run(verify_file(path)).problems == ()
    print(
        f"\nFAULTS tailers: {len(hashes)} events, {TAILERS} tailers killed {kills} times, each event once, in order, "
        f"{time.monotonic() - began:.0f} s, seed {first}"
    )


async def trusting_the_files(journal: Journal, after: int) -> AsyncIterator[Event]:
    """Mutant: a tail that looks again when a file's time or size has changed, as a file watcher tells it."""

    def changed() -> tuple[tuple[int, int], ...]:
        files = (os.stat(path) for path in (journal.path, f"{journal.path}-wal"))
        return tuple((found.st_mtime_ns, found.st_size) for found in files)

    while True:
        seen = changed()
        while page := await journal.read(after=after):
            for event in page:
                after = event.position
                yield event
        while changed() == seen:
            await asyncio.sleep(0.0005)


async def watcher(path: str, trusting: bool) -> None:
    """Say the position of each event, read by our tail or by the mutant."""
    journal = await asyncio.to_thread(open_journal, Path(path), readonly=True)
    events = trusting_the_files(journal, 0) if trusting else journal.tail(after=0)
    async for event in events:
        say(event.position)


def obedient(path: str) -> None:
    """Append one event for each line that is heard; say its position."""
    journal = open_journal(Path(path))
    submitted = Submitted(operation_type="work", key="work", total_steps=1, parameters={}, digest="d")
    claim: Claim = journal.submit(Start("work", submitted, journal.owner())).result(30)
    say(claim.position)
    while number := hear():
        request = Say((draft(claim.operation_id, claim.attempt, StepCompleted(name=number)),))
        say(journal.submit(request).result(30))


def missed(path: Path, appends: int, *, trusting: bool, patience: float = 1.0) -> int:
    """How many of so many single appends were not read within some time. The mutant's first is enough."""
    open_journal(path).close()
    found = 0
    with ForkServer(__name__) as server:
        writing = server.fork(obedient, str(path))
        reading = server.fork(watcher, str(path), trusting)
        position, read = writing.line()[0], 0
        for number in range(appends):
            deadline = time.monotonic() + patience
            while read < position and time.monotonic() < deadline:
                select.select([reading], [], [], max(deadline - time.monotonic(), 0))
                read = max([read, *(line[0] for line in reading.take())])
            found += read < position
            if trusting and found:
                break
            writing.tell(f"{number}")
            position = writing.line()[0]
    print(f"\nFAULTS tailers{', mutant' if trusting else ''}: {found} of {number + 1} single events read late or never")
    return found


def test_four_tailers_under_kills_and_checkpoints_read_each_event_once(tmp_path):
    run(tmp_path / "journal.db", 3_000)


@pytest.mark.parametrize("trusting", [False, True])
def test_a_tailer_that_trusts_the_files_times_misses_events_and_ours_does_not(tmp_path, trusting):
    late = missed(tmp_path / "journal.db", 60 if trusting else 5, trusting=trusting)
    assert (late > 0) is trusting


@pytest.mark.slow
def test_twenty_thousand_events_are_read_once_each(tmp_path):
    run(tmp_path / "journal.db", 20_000)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_events_are_read_once_each(tmp_path):
    run(tmp_path / "journal.db", 100_000)
