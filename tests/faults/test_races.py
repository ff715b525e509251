"""One owner: races of resumers have one winner each, and a stopped owner that comes back appends nothing.

A race: an interrupted operation, and several processes that resume it at the same nanosecond. A zombie: an owner that
is stopped anywhere in its appending (also in a transaction, or at the gate), robbed, and let go on. The controls are an
owner whose appends carry no attempt, and an owner's lock made with ``flock``, which outlives it in a forked child.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import time
from collections import Counter
from contextlib import aclosing, suppress
from pathlib import Path

import pytest

from ktrdr_ops.core.errors import JournalBusy, KeyIsLive, KtrdrOpsError, OwnershipLost
from ktrdr_ops.core.events import Interrupted, Progressed, StepCompleted, Submitted
from ktrdr_ops.core.journal import decisions
from ktrdr_ops.core.journal.decisions import Claim, Resume, Say, Start, draft
from ktrdr_ops.core.journal.journal import Journal, open_journal
from ktrdr_ops.core.journal.ownership import LockFile, lock_file
from ktrdr_ops.core.journal.verify import verify
from tests.faults.fork_server import Child, ForkServer, hear, say, seed

SUBMITTED = Submitted(operation_type="work", key="work:raced", total_steps=1, parameters={}, digest="d")


def racer(path: str) -> None:
    """Hears (operation, when) and resumes it then; says whether it won. Hears "end": interrupts what it won."""
    journal = open_journal(Path(path))
    owner = journal.owner()
    say("open")
    while True:
        operation_id, _, at = hear().partition(" ")
        request = Resume(operation_id, owner) if operation_id != "start" else Start("work", SUBMITTED, owner)
        while time.monotonic_ns() < int(at):
            pass
        try:
            claim: Claim = journal.submit(request).result(20)
        except KeyIsLive:
            say("lost", None)
            continue
        say("won", claim.attempt)
        if hear() == "end":
            facts = StepCompleted(name=f"{claim.attempt}"), Interrupted(reason="raced")
            drafts = tuple(draft(claim.operation_id, claim.attempt, fact) for fact in facts)
            journal.submit(Say(drafts)).result(20)
            say("ended")


def race(racers: list[Child], what: str) -> tuple[int, int]:
    """(who won, its attempt). Fails unless just one did."""
    at = time.monotonic_ns() + 300_000 + 50_000 * len(racers)
    for racer_ in racers:
        racer_.tell(f"{what} {at}")
    said = [racer_.line() for racer_ in racers]
    won = [index for index, line in enumerate(said) if line[0] == "won"]
    assert len(won) == 1, f"{len(won)} winners of {what}: {said}"
    return won[0], said[won[0]][1]


def races(path: Path, count: int, processes: int) -> None:
    """So many races, one winner each. Every tenth winner is killed instead of ending; every fifth race is one of
    starts instead of resumes."""
    began, first = time.monotonic(), seed()
    random_ = random.Random(first)
    journal = open_journal(path)
    claim: Claim = journal.submit(Start("work", SUBMITTED, journal.owner())).result()
    journal.submit(Say((draft(claim.operation_id, 1, Interrupted(reason="to be raced for")),))).result()
    winners: Counter[int] = Counter()
    with ForkServer(__name__) as server:
        racers = [server.fork(racer, str(path)) for _ in range(processes)]
        for racer_ in racers:
            racer_.line()
        for number in range(count):
            what = "start" if random_.random() < 0.2 else claim.operation_id
            winner, attempt = race(racers, what)
            assert attempt == number + 2
            winners[winner] += 1
            if random_.random() < 0.1:
                racers[winner].kill()
                racers[winner] = server.fork(racer, str(path))
                assert racers[winner].line() == ["open"]
            else:
                racers[winner].tell("end")
                assert racers[winner].line() == ["ended"]
    asyncio.run(hold_races(journal, count))
    print(
        f"\nFAULTS races: {count} races of {processes} processes, one winner each, wins {sorted(winners.values())}, "
        f"{time.monotonic() - began:.0f} s, seed {first}"
    )


async def hold_races(journal: Journal, count: int) -> None:
    async with aclosing(journal):
        report = await verify(journal)
        assert report.problems == ()
        starts = await journal.rows(
            "SELECT count(*), count(DISTINCT attempt) FROM events WHERE type = 'attempt_started'"
        )
        assert starts[0] == (count + 1, count + 1)
        assert await stale(journal) == 0


async def stale(journal: Journal) -> int:
    """How many events an attempt appended after the next one had begun."""
    sql = (
        "SELECT count(*) FROM events e JOIN events s ON s.operation_id = e.operation_id AND s.attempt = e.attempt + 1"
        " AND s.type = 'attempt_started' WHERE s.position < e.position"
    )
    return int((await journal.rows(sql))[0][0])


def zombie(path: str, unfenced: bool) -> None:
    """Hears a number, starts an operation and appends to it until it is refused; says how often it was not."""
    if unfenced:
        decisions._fence = lambda said, view: None  # mutant: appends that carry no attempt
    journal = open_journal(Path(path))
    owner = journal.owner()
    while number := hear():
        submitted = Submitted(operation_type="work", key=f"work:{number}", total_steps=1, parameters={}, digest="d")
        claim: Claim = journal.submit(Start("work", submitted, owner)).result(20)
        say(claim.operation_id)
        count, refused = 0, False
        random_ = random.Random(number)
        deadline = time.monotonic() + (0.2 if unfenced else 20)
        while not refused and time.monotonic() < deadline:
            count += 1
            time.sleep(random_.uniform(0, 0.004))  # else it would nearly always be stopped where it holds the gate
            shown = Progressed(step=1, percentage=1.0, message=f"{count}")
            journal.say(claim.operation_id, claim.attempt, shown)
            request = Say((draft(claim.operation_id, claim.attempt, StepCompleted(name=f"{count}")),))
            try:
                journal.submit(request).result(20)
            except OwnershipLost:
                refused = True
        with suppress(KtrdrOpsError):  # the mutant's is refused by the index on terminals
            request = Say((draft(claim.operation_id, claim.attempt, Interrupted(reason="it came back")),))
            journal.submit(request).result(20)
            refused = False
        say("refused" if refused else "appended")


async def rob(journal: Journal, owner: Child, operation_id: str, random_: random.Random) -> int:
    """Stop the owner at a random point, steal its operation, let it go on. Gives how often it had to be let go on
    before, because it held the gate."""
    held = 0
    while True:
        await asyncio.sleep(random_.uniform(0, 0.01))
        owner.stop()
        try:
            claim = await journal.append(Resume(operation_id, journal.owner(), steal=True))
        except JournalBusy as error:
            if f"process {owner.pid} (stopped)" not in str(error):
                raise
            owner.go_on()
            held += 1
            continue
        step = draft(operation_id, claim.attempt, StepCompleted(name="the thief's"))
        await journal.append(Say((step,)))
        owner.go_on()
        return held


async def zombies(path: Path, count: int, *, unfenced: bool = False) -> int:
    """Rob so many stopped owners; gives the number of stale appends, and prints the figures."""
    began, first = time.monotonic(), seed()
    random_ = random.Random(first)
    journal = open_journal(path, gate_seconds=0.1)
    held = 0
    answers: Counter[str] = Counter()
    async with aclosing(journal):
        with ForkServer(__name__) as server:
            owner = server.fork(zombie, str(path), unfenced)
            for number in range(count):
                owner.tell(str(number + 1))
                operation_id = (await asyncio.to_thread(owner.line))[0]
                held += await rob(journal, owner, operation_id, random_)
                answers[(await asyncio.to_thread(owner.line))[0]] += 1
            report = await verify(journal)
            assert report.problems == ()
        found = await stale(journal)
    print(
        f"\nFAULTS zombies{', mutant' if unfenced else ''}: {count} stopped owners robbed, {dict(answers)}, "
        f"{held} held the gate and were named, {found} stale appends, {time.monotonic() - began:.0f} s, seed {first}"
    )
    assert unfenced or answers == {"refused": count}
    return found


def flock_instead_of_byte_ranges() -> None:
    """Mutant: an owner's lock is a flock on a file of its own. The owner's children inherit it."""

    def take(self: LockFile) -> int:
        slot = random.randrange(1 << 32, 1 << 60)
        handle = os.open(f"{self.path}.{slot}", os.O_RDWR | os.O_CREAT)
        fcntl.flock(handle, fcntl.LOCK_EX)
        return slot

    def alive(self: LockFile, slot: int) -> bool:
        handle = os.open(f"{self.path}.{slot}", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    LockFile._take_slot = take  # type: ignore[method-assign]
    LockFile.alive = alive  # type: ignore[method-assign]


def parent_of_one_that_lives(path: str, with_flock: bool) -> None:
    """Own an operation, and have a forked child that outlives its parent."""
    if with_flock:
        flock_instead_of_byte_ranges()
    journal = open_journal(Path(path))
    claim: Claim = journal.submit(Start("work", SUBMITTED, journal.owner())).result(20)
    pid = os.fork()
    if pid == 0:
        os.close(1)  # else the test would wait for its end too
        hear()
        os._exit(0)
    say(claim.operation_id, journal.owner().slot)
    hear()


def seen_alive(path: str, slot: int, with_flock: bool) -> None:
    """Says whether another process sees the owner as alive."""
    if with_flock:
        flock_instead_of_byte_ranges()
    say(lock_file(Path(path)).alive(slot))


def dead_but_alive(path: Path, *, with_flock: bool) -> bool:
    """Whether an owner that was killed is taken for alive because of a child that it had forked."""
    with ForkServer(__name__) as server:
        owner = server.fork(parent_of_one_that_lives, str(path), with_flock)
        _, slot = owner.line()
        assert server.fork(seen_alive, str(path), slot, with_flock).line() == [True]
        owner.signal(9)
        owner.wait()
        found: bool = server.fork(seen_alive, str(path), slot, with_flock).line()[0]
    return found


@pytest.mark.parametrize("processes", [2, 8])
def test_a_race_of_resumers_has_one_winner(tmp_path, processes):
    races(tmp_path / "journal.db", 15, processes)


async def test_a_stopped_owner_that_comes_back_appends_nothing(tmp_path):
    assert await zombies(tmp_path / "journal.db", 8) == 0


async def test_without_the_fence_a_stopped_owner_appends_when_it_comes_back(tmp_path):
    assert await zombies(tmp_path / "journal.db", 3, unfenced=True) > 0


@pytest.mark.parametrize("with_flock", [False, True])
def test_a_killed_owner_is_dead_though_its_forked_child_lives_and_a_flock_would_not_say_so(tmp_path, with_flock):
    assert dead_but_alive(tmp_path / "journal.db", with_flock=with_flock) is with_flock


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 8])
def test_two_hundred_races_have_one_winner_each(tmp_path, processes):
    races(tmp_path / "journal.db", 200, processes)


@pytest.mark.slow
async def test_a_hundred_stopped_owners_append_nothing(tmp_path):
    assert await zombies(tmp_path / "journal.db", 100) == 0


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("processes", [2, 8])
def test_a_thousand_races_have_one_winner_each(tmp_path, processes):
    races(tmp_path / "journal.db", 1000, processes)


@pytest.mark.full
@pytest.mark.timeout(1800)
async def test_five_hundred_stopped_owners_append_nothing(tmp_path):
    assert await zombies(tmp_path / "journal.db", 500) == 0
