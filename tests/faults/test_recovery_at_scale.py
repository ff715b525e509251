"""A hundred interrupted operations among a hundred thousand finished ones: found at open, resumed once each.

Half of them are recorded as interrupted, half have an owner that was killed and are settled by whoever opens next. One
in ten is of a type that cannot go on, and one in ten of the others fails when it is resumed: whoever fails is resumed
by one of several processes all the same, and by no second one.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ktrdr_ops.core.cancellation import CancellationSystem
from ktrdr_ops.core.domain import OperationProvider
from ktrdr_ops.core.events import Checkpointed, Completed, Interrupted, Submitted
from ktrdr_ops.core.journal.decisions import Claim, Resume, Say, Start, draft
from ktrdr_ops.core.journal.journal import Journal, open_journal
from ktrdr_ops.core.journal.verify import verify
from ktrdr_ops.core.orchestration import AsyncOperation, AsyncOrchestrationFramework, digest
from ktrdr_ops.core.progress import GenericProgressManager, PlainRenderer, ProgressRenderer
from ktrdr_ops.core.recovery import plan, recover
from tests.faults.fork_server import Child, ForkServer, hear, say

INTERRUPTED = 100
PROCESSES = 4
SIDE_BY_SIDE = 4
LIMIT_MS = 50.0
LOADED_MS = 500.0
"""The same where other tests have the processors too."""
_BATCH = 1000


class WorkProvider(OperationProvider):
    """Says who did it; fails for each tenth number."""

    operation_type: ClassVar[str] = "work"
    resumable: ClassVar[bool] = True
    at_once = 0
    most_at_once = 0

    def validate(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        return dict(raw)

    def operation(self, parameters: Mapping[str, Any]) -> AsyncOperation:
        name = f"{self.operation_type}:{parameters['number']}"
        return AsyncOperation(self.operation_type, self.operation_type, 1, key=name, parameters=dict(parameters))

    async def perform(self, operation: AsyncOperation, progress: Any, token: Any, attempt: Any) -> int:
        WorkProvider.at_once += 1
        WorkProvider.most_at_once = max(WorkProvider.at_once, WorkProvider.most_at_once)
        try:
            await attempt.step(f"by {os.getpid()}", lambda: None)
        finally:
            WorkProvider.at_once -= 1
        assert operation.parameters is not None
        if operation.parameters["number"] % 10 == 5:
            raise ValueError("it fails, as it was asked to")
        return os.getpid()

    def renderer(self) -> ProgressRenderer:
        return PlainRenderer()

    def summarise(self, value: Any) -> dict[str, Any]:
        return {"by": value}


class OnceProvider(WorkProvider):
    """Cannot go on."""

    operation_type: ClassVar[str] = "once"
    resumable: ClassVar[bool] = False


PROVIDERS: dict[str, OperationProvider] = {"work": WorkProvider(), "once": OnceProvider()}


def start(journal: Journal, type_: str, number: int) -> Start:
    parameters = {"number": number}
    key = f"{type_}:{number}"
    submitted = Submitted(
        operation_type=type_, key=key, total_steps=1, parameters=parameters, digest=digest(parameters)
    )
    return Start(type_, submitted, journal.owner())


def finished(journal: Journal, first: int, count: int) -> None:
    """Start and complete so many operations, many in a transaction."""
    for begin in range(first, first + count, _BATCH):
        numbers = range(begin, min(begin + _BATCH, first + count))
        starts = [journal.submit(start(journal, "finished", number)) for number in numbers]
        claims: list[Claim] = [future.result(60) for future in starts]
        ends = [journal.submit(Say((draft(claim.operation_id, 1, Completed()),))) for claim in claims]
        for end in ends:
            end.result(60)


def interrupted(path: str) -> None:
    """Start the operations that will be interrupted: the odd ones say so, the even ones' owner is killed."""
    journal = open_journal(Path(path))
    ids = []
    for number in range(INTERRUPTED):
        request = start(journal, "once" if number % 10 == 9 else "work", number)
        claim: Claim = journal.submit(request).result(60)
        facts: list[Checkpointed | Interrupted] = [Checkpointed(value=1)]
        if number % 2:
            facts.append(Interrupted(reason="told to go"))
        journal.submit(Say(tuple(draft(claim.operation_id, 1, fact) for fact in facts))).result(60)
        if number % 2 == 0:
            ids.append(claim.operation_id)
    say(*ids)
    hear()


def owner_again(path: str, *ids: str) -> None:
    """Take some of them up again, to be killed once more."""
    journal = open_journal(Path(path))
    for operation_id in ids:
        claim: Claim = journal.submit(Resume(operation_id, journal.owner())).result(60)
        journal.submit(Say((draft(operation_id, claim.attempt, Checkpointed(value=1)),))).result(60)
    say("done")
    hear()


async def opened(path: str) -> None:
    """Says how many milliseconds it took to open the journal, then to know what was interrupted, and how many of all
    that were spent on a processor; how many operations were found, and how many of them can be resumed."""
    began, used = time.perf_counter(), time.process_time()
    journal = open_journal(Path(path))
    at = time.perf_counter()
    framework = AsyncOrchestrationFramework(
        GenericProgressManager(), CancellationSystem(), journal=journal, resolve=PROVIDERS.__getitem__
    )
    plans = await plan(framework)
    ended = time.perf_counter()
    used = time.process_time() - used
    say((at - began) * 1000, (ended - at) * 1000, used * 1000, len(plans), sum(one.resume for one in plans))
    await framework.aclose()
    await journal.aclose()


async def recovering(path: str) -> None:
    """Says that it is open; hears when to begin; says what became of each, and how many ran at once."""
    journal = await asyncio.to_thread(open_journal, Path(path))
    framework = AsyncOrchestrationFramework(
        GenericProgressManager(), CancellationSystem(), journal=journal, resolve=PROVIDERS.__getitem__
    )
    say("open")
    at = int(hear())
    while time.monotonic_ns() < at:
        pass
    outcomes, left = await recover(framework, side_by_side=SIDE_BY_SIDE)
    say(dict(Counter(one.status for one in outcomes)), len(left), WorkProvider.most_at_once)
    await framework.aclose()
    await journal.aclose()


async def attempts(path: Path) -> dict[str, int]:
    """How many attempts each operation has had that is not one of the finished ones."""
    journal = open_journal(path, readonly=True)
    sql = (
        "SELECT operation_id, count(*) FROM events WHERE type = 'attempt_started' AND"
        " operation_id IN (SELECT operation_id FROM operations WHERE operation_type <> 'finished') GROUP BY 1"
    )
    rows = await journal.rows(sql)
    await journal.aclose()
    return {str(operation_id): int(count) for operation_id, count in rows}


def build(server: ForkServer, path: Path, count: int) -> list[str]:
    """So many finished operations, and the interrupted ones in their midst. Gives those whose owner was killed."""
    journal = open_journal(path)
    finished(journal, 0, count // 2)
    owner = server.fork(interrupted, str(path))
    ids: list[str] = owner.line(120)
    owner.kill()
    finished(journal, count // 2, count - count // 2)
    journal.close()
    return ids


def measure(server: ForkServer, path: Path, ids: list[str], rounds: int) -> list[list[float]]:
    """How long opening and reporting take, each time after the owner of half of them was killed."""
    measured = []
    for number in range(rounds):
        if number:
            owner = server.fork(owner_again, str(path), *ids)
            assert owner.line(60) == ["done"]
            owner.kill()
        measured.append(server.fork(opened, str(path)).line(60))
        assert measured[-1][3:] == [INTERRUPTED, INTERRUPTED * 9 // 10]
    return measured


def recover_at_once(server: ForkServer, path: Path) -> list[list[Any]]:
    """What each of four processes says that recover at the same moment."""
    children: list[Child] = [server.fork(recovering, str(path)) for _ in range(PROCESSES)]
    for child in children:
        assert child.line() == ["open"]
    at = time.monotonic_ns() + 2_000_000
    for child in children:
        child.tell(str(at))
    return [child.line(120) for child in children]


async def what_was_wrong(path: Path, before: dict[str, int]) -> list[str]:
    """Whether each was resumed once, and the journal holds."""
    after = await attempts(path)
    journal = open_journal(path, readonly=True)
    rows = await journal.rows(
        "SELECT operation_id, operation_type, status FROM operations WHERE operation_type <> 'finished'"
    )
    more = Counter((type_, status, after[id_] - before[id_]) for id_, type_, status in rows)
    report = await verify(journal)
    await journal.aclose()
    once_each = {("work", "completed", 1): 80, ("work", "failed", 1): 10, ("once", "interrupted", 0): 10}
    found = [] if more == once_each else [f"(type, status, attempts): operations is {dict(more)}"]
    return found + [f"verify: {problem.kind} {problem.detail}" for problem in report.problems]


def run(path: Path, count: int, *, rounds: int = 5, limit_ms: float = LOADED_MS) -> None:
    """Build, open, recover; prints the figures."""
    began = time.monotonic()
    with ForkServer(__name__) as server:
        ids = build(server, path, count)
        built = time.monotonic() - began
        measured = measure(server, path, ids, rounds)
        before = asyncio.run(attempts(path))
        assert Counter(before.values()) == {1: INTERRUPTED // 2, rounds: INTERRUPTED // 2}, (
            "opening has resumed something"
        )
        said = recover_at_once(server, path)
    wrong = asyncio.run(what_was_wrong(path, before))
    times = sorted(opening + reporting for opening, reporting, *_ in measured)
    print(
        f"\nFAULTS recovery: {INTERRUPTED} interrupted among {count} finished ({built:.0f} s to build), found and "
        f"reported in {times[0]:.0f} to {times[-1]:.0f} ms (open, report, processor: "
        f"{[[round(ms) for ms in one[:3]] for one in measured]}); "
        f"{PROCESSES} processes recovered at once: {[one[0] for one in said]}, each once"
    )
    assert wrong == []
    assert all(one[2] <= SIDE_BY_SIDE for one in said)
    assert times[0] < limit_ms
    assert min(one[2] for one in measured) < LIMIT_MS


def test_interrupted_operations_are_found_at_open_and_resumed_once_each(tmp_path):
    run(tmp_path / "journal.db", 500, rounds=2)


@pytest.mark.slow
def test_a_hundred_among_ten_thousand_are_found_and_resumed_once_each(tmp_path):
    run(tmp_path / "journal.db", 10_000)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_a_hundred_among_a_hundred_thousand_are_found_and_resumed_once_each(tmp_path):
    run(tmp_path / "journal.db", 100_000, limit_ms=LIMIT_MS)
