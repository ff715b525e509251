"""The task manager: bounded, and nothing is left running."""

from __future__ import annotations

import asyncio
import gc

import pytest

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.core.task_manager import AsyncTaskManager


async def forever() -> None:
    await asyncio.Event().wait()


async def test_a_task_is_known_by_its_operation_until_it_has_ended():
    manager = AsyncTaskManager()
    task = manager.start("a", asyncio.sleep(0, "value"))
    assert manager.get("a") is task
    assert list(manager.running) == ["a"]
    assert await task == "value"
    assert manager.get("a") is None
    assert list(manager.running) == []


async def test_an_error_is_the_tasks_own():
    async def fail() -> None:
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        await AsyncTaskManager().start("a", fail())


async def test_one_operation_has_one_task():
    manager = AsyncTaskManager()
    first = manager.start("a", forever())
    with pytest.raises(InvalidValue, match="a has a task already"):
        manager.start("a", forever())
    assert manager.get("a") is first
    assert await manager.cancel("a")


async def test_no_more_than_the_maximum_work_at_once_and_all_get_their_turn():
    manager, at_work, most, done = AsyncTaskManager(max_concurrent=2), 0, 0, []

    async def work(number: int) -> None:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        for _ in range(3):
            await asyncio.sleep(0)
        at_work -= 1
        done.append(number)

    await asyncio.gather(*(manager.start(str(number), work(number)) for number in range(7)))
    assert most == 2
    assert sorted(done) == list(range(7))


def test_a_maximum_below_one_is_refused():
    with pytest.raises(InvalidValue):
        AsyncTaskManager(max_concurrent=0)


async def test_cancel_returns_when_the_task_is_gone():
    manager, ended = AsyncTaskManager(), []

    async def work() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    manager.start("a", work())
    await asyncio.sleep(0)
    assert await manager.cancel("a")
    assert ended == [True]
    assert not await manager.cancel("a")


async def test_a_task_may_cancel_itself():
    manager = AsyncTaskManager()

    async def work() -> None:
        assert await manager.cancel("a")
        await forever()

    task = manager.start("a", work())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_is_cancelled_before_its_turn_never_begins_and_warns_of_nothing():
    manager, begun = AsyncTaskManager(max_concurrent=1), []

    async def work() -> None:
        begun.append(True)

    manager.start("holds the slot", forever())
    manager.start("waits", work())
    await asyncio.sleep(0)
    manager.start("not even scheduled", work())
    await manager.cancel("waits")
    await manager.cancel("not even scheduled")
    await manager.cancel("holds the slot")
    gc.collect()
    assert begun == []


async def test_shutdown_asks_waits_cancels_and_leaves_nothing():
    manager, log, stop = AsyncTaskManager(), [], asyncio.Event()

    async def kind() -> None:
        await stop.wait()
        log.append("kind ended by itself")

    async def stubborn() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            log.append("stubborn cancelled")

    manager.start("kind", kind(), ask=stop.set)
    manager.start("stubborn", stubborn())
    await asyncio.sleep(0)
    await manager.shutdown(grace=0.05)
    assert log == ["kind ended by itself", "stubborn cancelled"]
    assert manager.running == ()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_shutdown_without_tasks_is_immediate_and_later_starts_are_refused():
    manager = AsyncTaskManager()
    await asyncio.wait_for(manager.shutdown(grace=3600), 1)
    with pytest.raises(InvalidValue, match="after shutdown"):
        manager.start("a", forever())


async def test_one_whose_asking_fails_does_not_keep_the_others_running(caplog):
    manager = AsyncTaskManager()
    manager.start("a", forever(), ask=lambda: 1 // 0)
    manager.start("b", forever())
    await manager.shutdown(grace=0)
    assert manager.running == ()
    assert "asking a to stop failed" in caplog.text


async def test_a_shutdown_that_is_cancelled_itself_still_leaves_nothing():
    manager = AsyncTaskManager()
    manager.start("a", forever())
    shutdown = asyncio.create_task(manager.shutdown(grace=3600))
    await asyncio.sleep(0)
    shutdown.cancel()
    with pytest.raises(asyncio.CancelledError):
        await shutdown
    assert manager.running == ()
