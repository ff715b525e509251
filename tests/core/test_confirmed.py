"""A cancel is confirmed only where all that was started elsewhere, by the operation and its children, has stopped."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from ktrdr_ops.core.attempt import Attempt
from ktrdr_ops.core.errors import OperationCancelledException, OperationInterrupted, OwnershipLost
from ktrdr_ops.core.events import Cancelled
from ktrdr_ops.core.journal.decisions import Resume, Say, draft
from ktrdr_ops.core.journal.journal import Journal
from ktrdr_ops.core.orchestration import How
from tests.core.conftest import Provider, operation, unreachable


class Remote(Provider):
    """Starts work elsewhere that takes ``seconds`` to stop, or does not (None)."""

    seconds: float | None = 0.5

    def operation(self, parameters):
        return operation(outlives=True)

    async def perform(self, operation, progress, token, attempt):
        attempt.goes_on_elsewhere = True
        attempt.grace_seconds = 2.0
        await token.wait()
        if token.interrupting:
            token.check_cancellation_point()
        if self.seconds is None:
            raise OperationCancelledException("it did not stop", confirmed=False)
        await asyncio.sleep(self.seconds)
        attempt.goes_on_elsewhere = False
        token.check_cancellation_point()


async def parent_of_remote(operation, progress_manager, token, attempt):
    await attempt.run_child("work_type")


async def running(framework, many):
    async with asyncio.timeout(10):
        while len(framework.tasks.running) < many:
            await asyncio.sleep(0.01)


async def told(framework):
    """Status and word of every operation, oldest first."""
    rows = await framework.journal.rows("SELECT operation_id FROM operations ORDER BY first_position")
    states = [await framework.journal.state(row[0]) for row in rows]
    return [(state.status, (state.cancellation or {}).get("confirmed")) for state in states]


@pytest.mark.parametrize("outlives", [True, False])
async def test_a_cancel_without_an_owner_is_confirmed_unless_its_work_may_go_on_elsewhere(framework, outlives):
    with pytest.raises(OperationInterrupted) as gone:
        await framework.execute_operation(operation(outlives=outlives), unreachable)
    operation_id = gone.value.details["operation_id"]
    assert await framework.cancel_operation(operation_id)
    state = await framework.journal.state(operation_id)
    assert (state.status, state.cancellation["confirmed"]) == ("cancelled", not outlives)


@pytest.mark.parametrize("outlives", [True, False])
async def test_a_parent_is_no_more_confirmed_than_its_children(framework, outlives):
    class Waiting(Provider):
        def operation(self, parameters):
            return replace(super().operation(parameters), outlives=outlives)

        async def perform(self, operation, progress, token, attempt):
            await token.sleep(60)

    framework._resolve = lambda operation_type: Waiting()

    async def parent(operation, progress_manager, token, attempt):
        await attempt.run_child("work_type")

    running = asyncio.ensure_future(
        framework.execute_operation(operation("parent", operation_type="parent_type"), parent)
    )
    async with asyncio.timeout(10):
        while len(framework.tasks.running) < 2:
            await asyncio.sleep(0.01)
    framework.interrupt_all("signal SIGTERM")
    with pytest.raises(OperationInterrupted):
        await running
    assert await framework.cancel_operation("parent")
    rows = await framework.journal.rows("SELECT operation_id FROM operations ORDER BY first_position")
    for row in rows:
        state = await framework.journal.state(row[0])
        assert (state.status, state.cancellation["confirmed"]) == ("cancelled", not outlives)


@pytest.mark.parametrize("seconds", [0.5, None])
async def test_a_parent_waits_for_its_children_to_stop_and_says_what_they_say(framework, seconds):
    Remote.seconds = seconds
    framework._resolve = lambda operation_type: Remote()
    task = asyncio.ensure_future(framework.execute_operation(operation("parent"), parent_of_remote))
    await running(framework, 2)
    assert await framework.cancel_operation("parent")
    with pytest.raises(OperationCancelledException):
        await task
    assert await told(framework) == [("cancelled", seconds is not None)] * 2


async def test_a_parent_is_not_confirmed_beside_a_child_that_was_cancelled_before_it_and_is_not(framework):
    framework._resolve = lambda operation_type: Remote()
    task = asyncio.ensure_future(framework.execute_operation(operation("parent"), parent_of_remote))
    await running(framework, 2)
    framework.interrupt_all("signal SIGTERM")
    with pytest.raises(OperationInterrupted):
        await task
    [(child,)] = await framework.journal.rows("SELECT operation_id FROM operations WHERE parent_id IS NOT NULL")
    assert await framework.cancel_operation(child)
    assert await framework.cancel_operation("parent")
    assert await told(framework) == [("cancelled", False)] * 2


@pytest.mark.parametrize("outlives", [True, False])
@pytest.mark.parametrize("where", ["append", "take_over"])
async def test_a_later_attempt_whose_task_is_cancelled_as_it_begins_knows_nothing_of_the_earlier_one(
    framework, monkeypatch, where, outlives
):
    with pytest.raises(OperationInterrupted) as gone:
        await framework.execute_operation(operation(outlives=outlives), unreachable)
    operation_id = gone.value.details["operation_id"]
    begun = asyncio.Event()
    of = Attempt if where == "take_over" else Journal
    real = getattr(of, where)

    async def slow(self, request):
        value = await real(self, request)
        if where == "take_over" or isinstance(request, Resume):
            begun.set()
            await asyncio.sleep(0.05)
        return value

    monkeypatch.setattr(of, where, slow)
    how = How(resume=operation_id)
    task = asyncio.ensure_future(framework.execute_operation(operation(outlives=outlives), unreachable, how=how))
    await asyncio.wait_for(begun.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    state = await framework.journal.state(operation_id)
    assert (state.attempt, await told(framework)) == (2, [("cancelled", not outlives)])


async def test_whenever_its_task_is_cancelled_no_operation_is_left_running(framework):
    async def work(operation, progress_manager, token):
        await token.sleep(60)

    for tick in range(40):
        task = asyncio.ensure_future(framework.execute_operation(operation(f"work_{tick}"), work))
        for _ in range(tick):
            await asyncio.sleep(0)
        await asyncio.sleep(tick / 20_000)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert {status for status, _ in await told(framework)} <= {"cancelled"}


async def test_what_ends_without_a_word_while_a_cancel_is_asked_is_not_said_to_have_stopped(framework):
    async def work(operation, progress_manager, token):
        await token.wait()
        raise OperationInterrupted("no answer for 60 s: outcome unknown")

    task = asyncio.ensure_future(framework.execute_operation(operation(outlives=True), work))
    await running(framework, 1)
    assert await framework.cancel_operation("work")
    with pytest.raises(OperationInterrupted):
        await task
    assert [status for status, _ in await told(framework)] == ["interrupted"]


async def test_an_attempt_that_was_taken_over_learns_it_before_what_cannot_be_taken_back(framework):
    async def work(operation, progress_manager, token, attempt):
        await attempt.fence()
        owner = framework.journal.owner()
        await framework.journal.append(Resume(operation.operation_id, owner, steal=True))
        fact = Cancelled(requested_by="user", reason="enough")
        await framework.journal.append(Say((draft(operation.operation_id, 2, fact),)))
        await attempt.fence()

    with pytest.raises(OwnershipLost, match=r"attempt 1 of work_.* is over"):
        await framework.execute_operation(operation(), work)
