"""Clocks that are ten years off, jump with every reading or run backwards, in owners and in those who judge them.

Order is by position only; whoever lives is not robbed, and whoever is dead is found dead, whatever the clocks say. The
control is an owner that is judged by wall time, as a lease would be.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path

import pytest

from ktrdr_ops.core.cancellation import CancellationSystem
from ktrdr_ops.core.clock import Clock, micros, utc_now
from ktrdr_ops.core.errors import KeyIsLive, OperationCancelledException
from ktrdr_ops.core.events import AttemptStarted, Cancelled, Checkpointed, Event, Progressed, WaitEnded
from ktrdr_ops.core.journal import decisions, history
from ktrdr_ops.core.journal.decisions import Cancel, Decision, Resume, Settle, View
from ktrdr_ops.core.journal.journal import Journal, open_journal
from ktrdr_ops.core.journal.verify import verify
from ktrdr_ops.core.orchestration import AsyncOperation, AsyncOrchestrationFramework
from ktrdr_ops.core.progress import GenericProgressManager
from ktrdr_ops.core.state import OperationState, fold_all
from tests.faults.fork_server import Child, ForkServer, say, seed

TEN_YEARS = timedelta(days=3652)
KINDS = ("right", "ahead", "behind", "wild", "backwards")
KEYS = 4


def clock(kind: str, random_: random.Random) -> Clock:
    """A clock that is wrong in its own way."""
    began = utc_now()
    readings = 0

    def backwards() -> timedelta:
        nonlocal readings
        readings += 1
        return 2 * (began - utc_now()) - timedelta(seconds=readings)

    offsets: dict[str, Callable[[], timedelta]] = {
        "right": timedelta,
        "ahead": lambda: TEN_YEARS,
        "behind": lambda: -TEN_YEARS,
        "wild": lambda: TEN_YEARS * random_.uniform(-1, 1),
        "backwards": backwards,
    }
    return lambda: utc_now() + offsets[kind]()


async def owner(path: str, key: str, kind: str, number: int) -> None:
    """Run an operation of a key until it is killed or cancelled. Says its id and attempt, once it has worked."""
    journal = await asyncio.to_thread(open_journal, Path(path), clock=clock(kind, random.Random(number)))
    framework = AsyncOrchestrationFramework(GenericProgressManager(), CancellationSystem(), journal=journal)

    async def work(operation, progress, token, attempt):
        if attempt.number > 1:
            assert attempt.restore() == attempt.number - 1
        for step in range(1, 4):
            progress.update_progress(step, f"step {step}", items_processed=step, total_items=3)
            await attempt.step(f"{number}.{step}", lambda: number)
        async with attempt.waiting("nothing", 5):
            await attempt.checkpoint(attempt.number)
        assert journal.flush(20)
        say(operation.operation_id, attempt.number)
        await token.wait()
        token.check_cancellation_point()

    try:
        await framework.execute_operation(AsyncOperation(key, "work", 4, key=key), work)
    except OperationCancelledException:
        say("cancelled")


async def neither_stolen(journal: Journal, operation_id: str) -> list[str]:
    """What is wrong with how an owner that lives is judged."""
    found = []
    if journal.status(await journal.state(operation_id)) != "running":
        found.append("an owner that lives is taken for dead")
    if await journal.settle():
        found.append("an owner that lives was settled")
    try:
        await journal.append(Resume(operation_id, journal.owner()))
    except KeyIsLive:
        return found
    return [*found, "an owner that lives was robbed"]


async def nor_immortal(journal: Journal, operation_id: str) -> list[str]:
    """What is wrong with how an owner that is dead is judged."""
    found = []
    if journal.status(await journal.state(operation_id)) != "interrupted":
        found.append("an owner that is dead is taken for alive")
    if await journal.settle() != [operation_id]:
        found.append("an owner that is dead was not settled")
    return found


async def cancelled(journal: Journal, child: Child, operation_id: str) -> list[str]:
    await journal.append(Cancel(operation_id, "test", "enough", journal.owner()))
    if await asyncio.to_thread(child.line) != ["cancelled"]:
        return ["it was not cancelled"]
    await asyncio.to_thread(child.wait)
    return []


async def in_order(journal: Journal) -> list[str]:
    """What is wrong with the order of events, lists and folds."""
    report = await verify(journal)
    found = [f"verify: {problem.kind} {problem.position} {problem.detail}" for problem in report.problems]
    events = [event async for event in journal.read_all()]
    if [event.position for event in events] != list(range(1, len(events) + 1)):
        found.append("events are not in the order of their positions")
    firsts = list(dict.fromkeys(event.operation_id for event in events))
    page = await history.list_operations(journal, limit=len(firsts))
    if [state.operation_id for state in page.states] != firsts[::-1]:
        found.append("the list is not in the order of positions")
    for operation_id in firsts:
        own = [event for event in events if event.operation_id == operation_id]
        if fold_all(own) != await journal.state(operation_id):
            found.append(f"{operation_id} is not the fold of its events")
        last = [event for event in own if event.type == "checkpointed"][-1].fact
        if await history.last_checkpoint(journal, operation_id) != last or not isinstance(last, Checkpointed):
            found.append("the last checkpoint is not the last by position")
        found += sane(own)
    return found


def sane(own: list[Event]) -> list[str]:
    """What no clock may bring about within one operation."""
    found, percentage, attempt = [], 0.0, 0
    for event in own:
        fact = event.fact
        if isinstance(fact, AttemptStarted):
            percentage = 0.0
            if event.attempt != attempt + 1:
                found.append("attempts are not counted one by one")
            attempt = event.attempt or 0
        if isinstance(fact, Progressed):
            if fact.percentage < percentage or (fact.eta_seconds is not None and fact.eta_seconds < 0):
                found.append(f"progress ran backwards: {fact}")
            percentage = fact.percentage
        if isinstance(fact, Cancelled) and (fact.latency_ms is None or fact.latency_ms < 0):
            found.append(f"a latency of {fact.latency_ms} ms")
        if isinstance(fact, WaitEnded) and fact.seconds < 0:
            found.append(f"a wait of {fact.seconds} s")
    return found


async def trials(path: Path, count: int) -> list[str]:
    """So many attempts under wrong clocks, judged under other wrong clocks; gives what was wrong."""
    began, first = time.monotonic(), seed()
    random_ = random.Random(first)
    mine = {kind: clock(kind, random_) for kind in KINDS}
    kind = "right"
    journal = await asyncio.to_thread(open_journal, path, clock=lambda: mine[kind]())
    found: list[str] = []
    ends: Counter[str] = Counter()
    async with aclosing(journal):
        with ForkServer(__name__) as server:
            for number in range(count):
                kind, theirs = random_.choice(KINDS), random_.choice(KINDS)
                key = f"work{random_.randrange(KEYS)}"
                child = server.fork(owner, str(path), key, theirs, random_.randrange(1 << 32))
                operation_id, _ = await asyncio.to_thread(child.line)
                wrong = await neither_stolen(journal, operation_id)
                how = random_.choice(("killed", "killed", "cancelled"))
                ends[how] += 1
                if how == "killed":
                    child.kill()
                    wrong += await nor_immortal(journal, operation_id)
                else:
                    wrong += await cancelled(journal, child, operation_id)
                found += [f"{number}: {one} (owner's clock {theirs}, ours {kind})" for one in wrong]
        found += await in_order(journal)
        head = await journal.head()
    print(
        f"\nFAULTS clock: {count} attempts under clocks {', '.join(KINDS)}, {dict(ends)}, {head.position} events, "
        f"{len(found)} problems, {time.monotonic() - began:.0f} s, seed {first}"
    )
    return found


async def test_wrong_clocks_change_neither_order_nor_ownership(tmp_path):
    assert await trials(tmp_path / "journal.db", 8) == []


@pytest.mark.slow
async def test_a_hundred_attempts_under_wrong_clocks(tmp_path):
    assert await trials(tmp_path / "journal.db", 100) == []


@pytest.mark.full
@pytest.mark.timeout(1800)
async def test_a_thousand_attempts_under_wrong_clocks(tmp_path):
    assert await trials(tmp_path / "journal.db", 1000) == []


def judge_by_wall_time(monkeypatch, now: Clock) -> None:
    """Mutant: an owner lives while its last event is less than 60 s old."""

    def owned(state: OperationState, view: View) -> bool:
        return state.live and state.owner is not None and micros(now()) - state.last_at < 60_000_000

    def settle(request: Settle, view: View) -> Decision:
        dead = [state for state in view.live() if not owned(state, view)]
        return Decision([decisions._interrupted(state, "?") for state in dead], [state.operation_id for state in dead])

    monkeypatch.setattr(decisions, "owned", owned)
    monkeypatch.setitem(decisions._DECIDERS, Settle, settle)


@pytest.mark.parametrize("theirs", ["ahead", "behind"])
async def test_an_owner_judged_by_wall_time_is_robbed_or_immortal(tmp_path, monkeypatch, theirs):
    judge_by_wall_time(monkeypatch, utc_now)
    journal = await asyncio.to_thread(open_journal, tmp_path / "journal.db")
    async with aclosing(journal):
        with ForkServer(__name__) as server:
            child = server.fork(owner, str(tmp_path / "journal.db"), "work", theirs, 1)
            operation_id, _ = await asyncio.to_thread(child.line)
            if theirs == "behind":
                assert "an owner that lives was settled" in await neither_stolen(journal, operation_id)
            else:
                child.kill()
                assert "an owner that is dead was not settled" in await nor_immortal(journal, operation_id)
