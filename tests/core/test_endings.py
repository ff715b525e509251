"""Ends that are neither a result nor a plain stop: an outcome that nobody knows, a stop that no host confirmed."""

from __future__ import annotations

import asyncio
import time

import pytest

from ktrdr_ops.core.attempt import PATIENCE_SECONDS
from ktrdr_ops.core.errors import OperationCancelledException, OperationInterrupted
from ktrdr_ops.core.orchestration import How
from ktrdr_ops.core.recovery import plan
from tests.core.conftest import Provider, operation, unreachable


async def lost(operation, progress_manager, token):
    raise OperationInterrupted("outcome unknown, last seen piece 92 of 100", final=True)


async def fine(operation, progress_manager):
    return "fine"


async def ends(framework):
    rows = await framework.journal.rows("SELECT operation_id, type FROM events WHERE class = 'terminal' ORDER BY 1")
    return [row[1] for row in rows]


async def test_an_outcome_that_nobody_knows_interrupts_once_and_only_a_fresh_start_does_it_again(framework, shown):
    with pytest.raises(OperationInterrupted, match="last seen piece 92") as first:
        await framework.execute_operation(operation(), lost)
    operation_id = first.value.details["operation_id"]
    state = await framework.journal.state(operation_id)
    assert (state.status, state.final) == ("interrupted", True)
    assert state.error["message"] == "outcome unknown, last seen piece 92 of 100"
    assert shown.messages[-1] == "Operation interrupted"
    for again in (
        framework.execute_operation(operation(), fine),
        framework.execute_operation(operation(), fine, how=How(resume=operation_id)),
    ):
        with pytest.raises(OperationInterrupted, match="cannot go on: outcome unknown") as refused:
            await again
        assert refused.value.hint.endswith(f"ktrdr-ops resume {operation_id} --restart")
    assert await ends(framework) == ["interrupted"]
    assert await framework.execute_operation(operation(), fine, how=How(fresh=True)) == "fine"
    assert sorted(await ends(framework)) == ["completed", "interrupted"]


async def test_recovery_leaves_an_outcome_that_nobody_knows_to_a_person(framework):
    framework._resolve = lambda operation_type: Provider()
    with pytest.raises(OperationInterrupted):
        await framework.execute_operation(operation(), lost)
    (planned,) = await plan(framework)
    assert (planned.resume, planned.why) == (False, "outcome unknown, last seen piece 92 of 100")
    assert planned.command.endswith("--restart")


async def test_a_host_that_could_not_be_reached_interrupts_and_the_next_attempt_goes_on(framework):
    with pytest.raises(OperationInterrupted):
        await framework.execute_operation(operation(), unreachable)
    assert await framework.execute_operation(operation(), fine) == "fine"
    assert await ends(framework) == ["interrupted", "completed"]


async def test_a_child_whose_outcome_nobody_knows_fails_its_parent_which_can_go_on(framework):
    class Losing(Provider):
        operation_type = "losing"

        def operation(self, parameters):
            return operation("child", operation_type="losing")

        async def perform(self, operation, progress, token, attempt):
            await lost(operation, progress, token)

    framework._resolve = lambda operation_type: Losing()

    async def parent(operation, progress_manager, token, attempt):
        await attempt.run_child("losing")

    with pytest.raises(OperationInterrupted):
        await framework.execute_operation(operation("parent"), parent)
    assert sorted(await ends(framework)) == ["failed", "interrupted"]


@pytest.mark.parametrize("confirmed", [True, False])
async def test_a_cancel_says_whether_the_stop_was_confirmed(framework, confirmed):
    async def work(operation, progress_manager, token):
        try:
            await token.sleep(60)
        except OperationCancelledException as told:
            if confirmed:
                raise
            raise OperationCancelledException("the host still runs", confirmed=False) from told

    running = asyncio.ensure_future(framework.execute_operation(operation(), work))
    async with asyncio.timeout(10):
        while not await framework.cancel_operation("work"):
            await asyncio.sleep(0.01)
    with pytest.raises(OperationCancelledException):
        await running
    (state,) = [
        await framework.journal.state(row[0])
        for row in await framework.journal.rows("SELECT operation_id FROM operations")
    ]
    assert state.status == "cancelled"
    assert state.cancellation["confirmed"] is confirmed


async def test_a_stop_that_was_not_confirmed_is_said_also_where_the_callers_task_was_cancelled(framework):
    async def work(operation, progress_manager, token):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise OperationCancelledException("the host still runs", confirmed=False) from None

    running = asyncio.ensure_future(framework.execute_operation(operation(), work))
    async with asyncio.timeout(10):
        while not framework.tasks.running:
            await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    rows = await framework.journal.rows("SELECT operation_id FROM operations")
    assert (await framework.journal.state(rows[0][0])).cancellation["confirmed"] is False


@pytest.mark.parametrize(("grace", "survives"), [(30.0, True), (0.05, False)])
async def test_a_function_has_the_time_to_stop_that_it_asked_for(framework, grace, survives):
    ended = []

    async def work(operation, progress_manager, token, attempt):
        attempt.grace_seconds = grace
        await token.wait()
        await asyncio.sleep(0.5)
        ended.append(time.monotonic())
        raise OperationCancelledException("stopped in order")

    running = asyncio.ensure_future(framework.execute_operation(operation(), work))
    async with asyncio.timeout(10):
        while not await framework.cancel_operation("work"):
            await asyncio.sleep(0.01)
    with pytest.raises(OperationCancelledException):
        await running
    assert bool(ended) is survives


async def test_an_attempt_has_the_patience_that_its_start_was_given_and_so_have_its_children(framework):
    seen = {}

    class Child(Provider):
        async def perform(self, operation, progress, token, attempt):
            seen["child"] = attempt.patience

    framework._resolve = lambda operation_type: Child()

    async def parent(operation, progress_manager, token, attempt):
        seen["parent"] = attempt.patience
        await attempt.run_child("work_type")

    await framework.execute_operation(operation("parent"), parent, how=How(wait=7.0))
    assert seen == {"parent": 7.0, "child": 7.0}
    assert PATIENCE_SECONDS == 600


async def test_what_an_operation_was_made_from_is_recorded_once(framework):
    async def work(operation, progress_manager, token, attempt):
        await attempt.uses({"kind": "series", "key": "A:1d", "sha256": None, "evidence": "unknown"})
        await attempt.uses({"kind": "series", "key": "B:1d"})
        return attempt.steps["inputs"]

    found = await framework.execute_operation(operation(), work)
    assert found == [{"kind": "series", "key": "A:1d", "sha256": None, "evidence": "unknown"}]
