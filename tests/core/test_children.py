"""Operations by type: children, groups, resumes and recovery, with small real providers."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from ktrdr_ops.core.cancellation import CancellationSystem
from ktrdr_ops.core.domain import OperationProvider
from ktrdr_ops.core.errors import InvalidValue, OperationCancelledException, OperationFailed, OperationInterrupted
from ktrdr_ops.core.events import Interrupted
from ktrdr_ops.core.group import GroupProvider
from ktrdr_ops.core.journal import history
from ktrdr_ops.core.journal.decisions import Resume, Say, draft
from ktrdr_ops.core.journal.history import Filter
from ktrdr_ops.core.journal.journal import open_journal
from ktrdr_ops.core.orchestration import AsyncOperation, AsyncOrchestrationFramework
from ktrdr_ops.core.progress import GenericProgressManager, PlainRenderer
from ktrdr_ops.core.recovery import plan, recover
from tests.core.conftest import Provider


class Count(OperationProvider):
    """Counts to a number in steps; waits for ever at ``hang``, fails at ``fail`` in its first attempt."""

    operation_type = "count"

    def __init__(self) -> None:
        self.counted: list[str] = []

    def validate(self, raw):
        if int(raw.get("to", 3)) < 1:
            raise InvalidValue("to: at least 1")
        return {"name": raw["name"], "to": int(raw.get("to", 3)), "hang": raw.get("hang"), "fail": raw.get("fail")}

    def operation(self, parameters):
        name = parameters["name"]
        return AsyncOperation(
            f"count_{name}", self.operation_type, 2, context={"name": name}, key=f"count:{name}", parameters=parameters
        )

    async def perform(self, operation, progress, token, attempt):
        asked = operation.parameters
        for number in range(asked["to"]):
            progress.update_progress(1, f"counting {number}", number, total_items=asked["to"], step_range=(0, 90))
            if asked["hang"] == number and attempt.number == 1:
                await token.wait()
                token.check_cancellation_point()
            if asked["fail"] == number and attempt.number == 1:
                raise OperationFailed(f"{asked['name']} failed at {number}")
            await attempt.step(str(number), partial(self.counted.append, f"{asked['name']}{number}"))
        return asked["to"]

    def renderer(self):
        return PlainRenderer()


class Adder(Count):
    """A parent that runs two children, one after the other."""

    operation_type = "add"

    async def perform(self, operation, progress, token, attempt):
        first = await attempt.run_child("count", name="x", to=2)
        second = await attempt.run_child("count", name="y", to=3, fail=1)
        return first["value"] + second["value"]


@pytest.fixture
async def framework(tmp_path):
    journal = open_journal(tmp_path / "journal.db")
    providers: dict[str, OperationProvider] = {"count": Count(), "add": Adder()}

    def resolve(operation_type: str) -> OperationProvider:
        if operation_type not in providers:
            raise InvalidValue(f"no {operation_type}", hint="install it")
        return providers[operation_type]

    providers["group"] = GroupProvider(resolve)
    made = AsyncOrchestrationFramework(GenericProgressManager(), CancellationSystem(), journal=journal, resolve=resolve)
    yield made
    await made.aclose()
    await journal.aclose()


def group(*children):
    return {"children": [{"type": "count", "parameters": child} for child in children]}


async def by_key(framework, key):
    page = await history.list_operations(framework.journal, Filter(key=key))
    return page.states[0]


async def until_status(framework, key, status, seconds: float = 10.0):
    async with asyncio.timeout(seconds):
        while True:
            page = await history.list_operations(framework.journal, Filter(key=key, status=status))
            if page.states:
                return page.states[0]
            await asyncio.sleep(0.005)


async def test_a_parent_that_is_run_again_runs_only_what_is_not_completed(framework):
    with pytest.raises(OperationFailed, match="y failed at 1"):
        await framework.run("add", {"name": "sum"})
    assert await framework.run("add", {"name": "sum"}) == 5
    assert framework.resolve("count").counted == ["x0", "x1", "y0", "y1", "y2"]
    parent = await by_key(framework, "count:sum")
    children = await history.children(framework.journal, parent.operation_id)
    assert [(child.key, child.attempt, child.status) for child in children] == [
        ("count:x", 1, "completed"),
        ("count:y", 2, "completed"),
    ]


async def test_a_group_runs_its_children_side_by_side(framework):
    seen = []
    value = await framework.run(
        "group", group({"name": "a"}, {"name": "b"}, {"name": "c"}), progress_callback=seen.append
    )
    assert [child["value"] for child in value["children"]] == [3, 3, 3]
    assert seen[-1].percentage == 100.0
    assert [state.percentage for state in seen] == sorted(state.percentage for state in seen)
    assert "3 of 3 done" in [state.message for state in seen]


async def test_a_group_with_a_failed_child_fails_after_the_others_and_goes_on_with_that_child_alone(framework):
    asked = group({"name": "a"}, {"name": "b", "fail": 1})
    with pytest.raises(OperationFailed, match=r"1 of 2 .*b failed at 1"):
        await framework.run("group", asked)
    assert (await by_key(framework, "count:a")).status == "completed"
    await framework.run("group", asked)
    assert (await by_key(framework, "count:a")).attempt == 1
    assert (await by_key(framework, "count:b")).attempt == 2


async def test_a_child_that_goes_on_with_an_earlier_operation_becomes_the_groups(framework):
    await interrupted(framework, name="a", to=4)
    await framework.run("group", group({"name": "a", "to": 4, "hang": 2}, {"name": "b"}))
    parent = await by_key(framework, "group:*")
    children = await history.children(framework.journal, parent.operation_id)
    assert {(child.key, child.attempt) for child in children} == {("count:a", 2), ("count:b", 1)}


async def test_a_groups_children_are_validated_before_anything_starts(framework):
    with pytest.raises(InvalidValue, match="at least 1"):
        await framework.run("group", group({"name": "a"}, {"name": "b", "to": 0}))
    assert (await framework.journal.head()).position == 0


async def test_cancelling_a_parent_cancels_its_children(framework):
    running = asyncio.ensure_future(framework.run("group", group({"name": "a", "hang": 1}, {"name": "b", "hang": 2})))
    parent = await until_status(framework, "group:*", "running")
    await until_status(framework, "count:b", "running")
    await framework.cancel_operation(parent.operation_id, "enough", "me")
    with pytest.raises(OperationCancelledException):
        await running
    page = await history.list_operations(framework.journal, Filter(status="cancelled"))
    assert {state.key.split(":")[0] for state in page.states} == {"group", "count"}
    assert page.total == 3


async def test_interrupting_and_resuming_a_parent_goes_on_with_its_unfinished_children(framework):
    asked = group({"name": "a"}, {"name": "b", "hang": 2})
    running = asyncio.ensure_future(framework.run("group", asked))
    await until_status(framework, "count:a", "completed")
    await until_status(framework, "count:b", "running")
    framework.interrupt_all("signal SIGTERM")
    with pytest.raises(OperationInterrupted):
        await running
    parent = await by_key(framework, "group:*")
    assert parent.status == "interrupted"
    await framework.resume(parent.operation_id)
    child = await by_key(framework, "count:b")
    assert (child.status, child.attempt) == ("completed", 2)
    assert framework.resolve("count").counted.count("b1") == 1


async def interrupted(framework, **parameters):
    running = asyncio.ensure_future(framework.run("count", {**parameters, "hang": 2}))
    while not (await until_status(framework, f"count:{parameters['name']}", "running")).steps:
        await asyncio.sleep(0.005)
    framework.interrupt_all("signal SIGTERM")
    with pytest.raises(OperationInterrupted):
        await running


async def test_recovery_resumes_what_was_interrupted_and_leaves_the_rest(framework):
    await interrupted(framework, name="a", to=4)
    await interrupted(framework, name="b", to=4)
    await framework.run("count", {"name": "b", "to": 1})
    assert [planned.state.key for planned in await plan(framework)] == ["count:a"], "b was superseded"
    outcomes, left = await recover(framework)
    assert [outcome.status for outcome in outcomes] == ["completed"]
    assert left == []
    assert await plan(framework) == []


async def test_recovery_stops_after_three_attempts_without_a_checkpoint(framework):
    await interrupted(framework, name="a", to=4)
    operation_id = (await by_key(framework, "count:a")).operation_id
    for attempt in (2, 3, 4):
        assert (await plan(framework))[0].resume
        await framework.journal.append(Resume(operation_id, framework.journal.owner()))
        await framework.journal.append(Say((draft(operation_id, attempt, Interrupted(reason="killed")),)))
    (planned,) = await plan(framework)
    assert not planned.resume
    assert "3 attempts" in planned.why


async def test_a_type_that_nobody_knows_is_reported_with_what_is_missing(framework):
    async def work(operation, progress, token):
        await token.wait()
        token.check_cancellation_point()

    running = asyncio.ensure_future(framework.execute_operation(AsyncOperation("alien", "alien", 1), work))
    await until_status(framework, "alien", "running")
    framework.interrupt_all("signal SIGTERM")
    with pytest.raises(OperationInterrupted):
        await running
    (planned,) = await plan(framework)
    assert (planned.resume, planned.why, planned.command) == (False, "no alien", "install it")


async def test_an_interrupted_operation_is_cancelled_without_running(framework):
    await interrupted(framework, name="a", to=4)
    state = await by_key(framework, "count:a")
    assert await framework.cancel_operation(state.operation_id, "not needed", "me")
    assert (await by_key(framework, "count:a")).status == "cancelled"
    assert await plan(framework) == []


async def test_lists_are_filtered_sorted_and_paged_by_key(framework):
    for number in range(25):
        await framework.run("count", {"name": f"n{number:02}", "to": 1})
    pages, cursor = [], None
    while True:
        page = await history.list_operations(framework.journal, sort="key", limit=7, cursor=cursor)
        pages += [state.key for state in page.states]
        cursor = page.cursor
        if cursor is None:
            break
    assert pages == [f"count:n{number:02}" for number in reversed(range(25))]
    assert (await history.list_operations(framework.journal, Filter(grep="n1"))).total == 10
    assert (await history.list_operations(framework.journal, Filter(key="count:n0*"))).total == 10
    assert (await history.list_operations(framework.journal, Filter(status="running"))).total == 0
    with pytest.raises(InvalidValue, match="sort by"):
        await history.list_operations(framework.journal, sort="colour")
    with pytest.raises(InvalidValue, match="cursor"):
        await history.list_operations(framework.journal, cursor="zz")


async def test_an_operation_is_found_by_any_unique_beginning(framework):
    await framework.run("count", {"name": "one", "to": 1})
    await framework.run("count", {"name": "two", "to": 1})
    state = await by_key(framework, "count:one")
    suffix = state.operation_id.rpartition("_")[2]
    for reference in (state.operation_id, suffix, "count_one"):
        assert await history.find(framework.journal, reference) == state.operation_id
    assert (await history.find(framework.journal, "@last")).startswith("count_two")
    from ktrdr_ops.core.errors import AmbiguousOperation, OperationNotFound

    with pytest.raises(AmbiguousOperation, match="count_one_"):
        await history.find(framework.journal, "count_")
    for nobody in ("nobody", "", "%", "@failed", "x" * 10_000):
        with pytest.raises(OperationNotFound):
            await history.find(framework.journal, nobody)


async def test_last_and_failed_name_a_parent_rather_than_its_children(framework):
    with pytest.raises(OperationFailed):
        await framework.run("add", {"name": "sum"})
    parent, child = await by_key(framework, "count:sum"), await by_key(framework, "count:y")
    assert (parent.operation_type, child.parent_id) == ("add", parent.operation_id)
    for reference in ("@last", "@failed"):
        assert await history.find(framework.journal, reference) == parent.operation_id
    await framework.resume(child.operation_id)
    assert await history.find(framework.journal, "@last") == child.operation_id, "a person began it, no parent"
    await framework.resume(parent.operation_id)
    assert await history.find(framework.journal, "@last") == parent.operation_id


async def test_running_names_a_parent_rather_than_its_children(framework):
    running = asyncio.ensure_future(framework.run("group", group({"name": "a", "hang": 1}, {"name": "b", "hang": 2})))
    await until_status(framework, "count:b", "running")
    group_id = (await by_key(framework, "count:b")).parent_id
    for reference in ("@last", "@running"):
        assert await history.find(framework.journal, reference) == group_id
    await framework.cancel_operation(group_id)
    with pytest.raises(OperationCancelledException):
        await running


async def test_the_state_at_any_position_is_the_fold_of_everything_before(framework):
    from ktrdr_ops.core.state import fold_all

    asked = {"name": "a", "to": 5, "fail": 3}
    with pytest.raises(OperationFailed):
        await framework.run("count", asked)
    await framework.run("count", asked)
    framework.journal.flush()
    state = await by_key(framework, "count:a")
    events = [event async for event in framework.journal.read_all(state.operation_id)]
    for index in range(len(events)):
        shortcut = await history.state_at(framework.journal, state.operation_id, position=events[index].position)
        assert shortcut == fold_all(events[: index + 1])
    assert await framework.journal.state(state.operation_id) == fold_all(events)
    assert await history.state_at(framework.journal, state.operation_id, position=0) is None


async def test_operations_that_wait_in_all_threads_of_the_loops_pool_for_others_do_not_hold_those_up(framework):
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    loop = asyncio.get_running_loop()

    framework._resolve = lambda operation_type: Provider()

    def waits():
        return asyncio.run_coroutine_threadsafe(framework.run("work_type", {}), loop).result(10)

    assert await asyncio.wait_for(asyncio.to_thread(waits), 15) == "fine"
