"""SIGKILL at random points of three writers and a tailer: what was acknowledged is there, and the chain holds.

A writer says what the journal acknowledged, after its future was resolved. Half of the kills come at a random time
after the fork (so opening, settling and migrating are hit too), half at once when a random acknowledgement is read.
Whoever is killed is forked again and goes on with the operation of its key.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import select
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ktrdr_ops.core.events import Completed, Failed, Progressed, StepCompleted, Submitted
from ktrdr_ops.core.journal.decisions import Claim, Draft, Say, Start, draft
from ktrdr_ops.core.journal.journal import Head, Journal, open_journal
from ktrdr_ops.core.journal.reader import connect_for_reading
from ktrdr_ops.core.journal.verify import verify_file
from ktrdr_ops.core.journal.writer import Writer, _Item
from tests.faults.fork_server import Child, ForkServer, say, seed

WRITERS = 3
KILLS_A_JOURNAL = 500
KILLS_A_CHECK = 100
FIRST_MILLISECONDS = 60


def acknowledge_before_commit() -> None:
    """Mutant: who waits is told when its request is decided, before it is committed."""
    decide = Writer._decide

    def hasty(self: Writer, batch: list[_Item]) -> Any:
        answers, rows = decide(self, batch)
        self._tell(batch, answers)
        return answers, rows

    def told_already(self: Writer, batch: list[_Item], answers: list[Any]) -> None:
        for item, answer in zip(batch, answers, strict=True):
            if item.future is not None and not item.future.done():
                tell(self, [item], [answer])

    tell = Writer._tell
    Writer._decide = hasty  # type: ignore[method-assign]
    Writer._tell = told_already  # type: ignore[method-assign]


def writer(path: str, key: str, number: int, mutant: bool) -> None:
    """Write until killed. Says [position, its hash, SHA-256 of the payload] of all that is acknowledged; position and
    hash are None for progress, of which only a flush tells."""
    if mutant:
        acknowledge_before_commit()
    random_ = random.Random(number)
    journal = open_journal(Path(path))
    reading = connect_for_reading(Path(path))
    count = 0
    while True:
        claim = _claim(journal, reading, key)
        for _ in range(random_.randrange(1, 12)):
            said = [
                draft(claim.operation_id, claim.attempt, StepCompleted(name=f"{number}.{count + more}"))
                for more in range(random_.choice((1, 1, 2, 20)))
            ]
            count += len(said)
            shown = draft(
                claim.operation_id, claim.attempt, Progressed(step=1, percentage=1.0, message=f"{number}.{count}")
            )
            journal.say(claim.operation_id, claim.attempt, shown.fact)
            _acknowledged(journal, reading, said)
            if random_.random() < 0.3 and journal.flush(10):
                say(None, None, _digest(shown.payload))
        end = Completed(result=number) if random_.random() < 0.5 else Failed(code="x", message=f"{number}.{count}")
        _acknowledged(journal, reading, [draft(claim.operation_id, claim.attempt, end)])


def _claim(journal: Journal, reading: Any, key: str) -> Claim:
    submitted = Submitted(operation_type="work", key=key, total_steps=1, parameters={}, digest="d")
    claim: Claim = journal.submit(Start("work", submitted, journal.owner())).result(20)
    row = reading.execute("SELECT hash, payload FROM events WHERE position = ?", (claim.position,)).fetchone()
    if row is not None:
        say(claim.position, row[0].hex(), _digest(row[1]))
    return claim


def _acknowledged(journal: Journal, reading: Any, said: list[Draft]) -> None:
    futures = [(one, journal.submit(Say((one,)))) for one in said]
    for one, future in futures:
        position = future.result(20)
        row = reading.execute("SELECT hash FROM events WHERE position = ?", (position,)).fetchone()
        say(position, None if row is None else row[0].hex(), _digest(one.payload))


def _digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


async def tailer(path: str, after: list[Any] | None) -> None:
    """Say [incarnation, position, hash] of each event from where the last one was killed."""
    journal = await asyncio.to_thread(open_journal, Path(path))
    incarnation = (await journal.head()).incarnation
    async for event in journal.tail(after=Head(*after) if after else 0):
        say(incarnation, event.position, event.hash.hex())


@dataclass
class Round:
    """One journal and what its processes have said of it."""

    path: Path
    acknowledged: list[list[Any]] = field(default_factory=list)
    read: list[list[Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    events: int = 0

    def check(self) -> None:
        """Hold the journal against all that was said: SQLite's check, anchor, chain, projection, every
        acknowledgement, and the tailer's reading."""
        report = asyncio.run(verify_file(self.path))
        self.problems += [f"{problem.kind} {problem.position} {problem.detail}" for problem in report.problems]
        connection = connect_for_reading(self.path)
        rows = {
            position: (bytes(hashed).hex(), _digest(payload))
            for position, hashed, payload in connection.execute("SELECT position, hash, payload FROM events")
        }
        connection.close()
        self.events = len(rows)
        if sorted(rows) != list(range(1, len(rows) + 1)):
            self.problems.append("positions have gaps")
        payloads = Counter(digest for _, digest in rows.values())
        for position, hashed, digest in self.acknowledged:
            found = rows.get(position, ("", ""))
            lost = payloads[digest] != 1 if position is None else found[1] != digest
            if lost or (hashed is not None and found[0] != hashed):
                self.problems.append(f"acknowledged, but not there: {position} {digest[:8]}")
        if [position for _, position, _ in self.read] != list(range(1, len(self.read) + 1)):
            self.problems.append("the tailer did not read each event once, in order")
        for _, position, hashed in self.read:
            if rows.get(position, ("",))[0] != hashed:
                self.problems.append(f"the tailer read something else at {position}")


class Victim:
    """A process that will be killed: after a time, or when it has said so many lines."""

    def __init__(self, server: ForkServer, round_: Round, index: int, random_: random.Random, mutant: bool) -> None:
        self.round = round_
        self.tails = index == WRITERS
        self.said = 0
        by_time = random_.random() < 0.5
        self.at = time.monotonic() + random_.uniform(0, FIRST_MILLISECONDS / 1000) if by_time else float("inf")
        self.lines = 1 << 30 if by_time else random_.randrange(1, 30)
        path = str(round_.path)
        if self.tails:
            self.child: Child = server.fork(tailer, path, round_.read[-1] if round_.read else None)
        else:
            self.child = server.fork(writer, path, f"work:{index}", random_.randrange(1 << 48), mutant)

    def hear(self, lines: list[list[Any]]) -> None:
        """Take down what it said."""
        self.said += len(lines)
        (self.round.read if self.tails else self.round.acknowledged).extend(lines)

    def kill(self) -> None:
        """SIGKILL. It must not have ended by itself."""
        self.hear(self.child.kill())
        if self.child.exit_code != -9:
            self.round.problems.append(f"a process ended by itself with {self.child.exit_code}")


def kill_them(server: ForkServer, round_: Round, random_: random.Random, kills: int, mutant: bool = False) -> None:
    """Let three writers and a tailer work on a journal, and kill them so many times."""
    victims = [Victim(server, round_, index, random_, mutant) for index in range(WRITERS + 1)]
    while kills > 0:
        wait = max(min(victim.at for victim in victims) - time.monotonic(), 0)
        select.select([victim.child for victim in victims], [], [], min(wait, 1.0))
        for index, victim in enumerate(victims):
            victim.hear(victim.child.take())
            if victim.said >= victim.lines or victim.at <= time.monotonic() or victim.child.ended:
                victim.kill()
                kills -= 1
                victims[index] = Victim(server, round_, index, random_, mutant)
    for victim in victims:
        victim.kill()


def run(folder: Path, kills: int, *, mutant: bool = False) -> list[str]:
    """Kill so many times, a new journal every now and then; gives what was wrong, and prints the figures."""
    began, first = time.monotonic(), seed()
    random_ = random.Random(first)
    rounds: list[Round] = []
    with ForkServer(__name__) as server:
        for done in range(0, kills, KILLS_A_CHECK):
            if done % KILLS_A_JOURNAL == 0:
                rounds.append(Round(folder / f"{done}.db"))
            kill_them(server, rounds[-1], random_, min(KILLS_A_CHECK, kills - done), mutant)
            rounds[-1].check()
            if rounds[-1].problems:
                break
    problems = [problem for round_ in rounds for problem in round_.problems]
    print(
        f"\nFAULTS sigkill: {kills} kills of {WRITERS} writers and a tailer{', mutant' if mutant else ''}, "
        f"{sum(round_.events for round_ in rounds)} events, "
        f"{sum(len(round_.acknowledged) for round_ in rounds)} acknowledged, {len(problems)} problems, "
        f"{time.monotonic() - began:.0f} s, seed {first}"
    )
    return problems


def test_what_was_acknowledged_survives_kills_at_random_points(tmp_path):
    assert run(tmp_path, 40) == []


def test_a_writer_that_acknowledges_before_the_commit_is_caught(tmp_path):
    assert any("acknowledged, but not there" in problem for problem in run(tmp_path, 40, mutant=True))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_was_acknowledged_survives_a_thousand_kills(tmp_path):
    assert run(tmp_path, 1000) == []


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_what_was_acknowledged_survives_ten_thousand_kills(tmp_path):
    assert run(tmp_path, 10_000) == []
