"""Cancellation: told once, from anywhere, and nothing is left waiting."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from ktrdr_ops.core.cancellation import CancellationSystem, CancellationToken
from ktrdr_ops.core.errors import InvalidValue, OperationCancelledException

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


def in_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    return thread


async def test_the_first_reason_wins_and_only_its_caller_is_told_so():
    token = CancellationToken("a", clock=lambda: NOON)
    assert token.cancel("no longer needed", "ann")
    assert not token.cancel("told to go", "bob", interrupt=True)
    assert (token.reason, token.requested_by, token.requested_at) == ("no longer needed", "ann", NOON)
    assert token.is_cancelled()
    assert not token.interrupting


def test_of_many_threads_that_cancel_exactly_one_is_first():
    for _ in range(50):
        token, start = CancellationToken(), threading.Barrier(8)

        def cancel(number: int, token: CancellationToken = token, start: threading.Barrier = start) -> tuple[int, bool]:
            start.wait()
            return number, token.cancel(f"reason {number}", str(number))

        with ThreadPoolExecutor(8) as threads:
            winners = [number for number, first in threads.map(cancel, range(8)) if first]
        assert len(winners) == 1
        assert (token.reason, token.requested_by) == (f"reason {winners[0]}", str(winners[0]))


def test_a_check_point_passes_until_the_token_is_told_and_then_names_the_place_and_the_reason():
    token = CancellationToken("data_load_x")
    token.check_cancellation_point("fetching")
    token.cancel("wrong range")
    with pytest.raises(OperationCancelledException, match="fetching was cancelled: wrong range") as caught:
        token.check_cancellation_point("fetching")
    assert caught.value.details["reason"] == "wrong range"
    assert caught.value.details["operation_id"] == "data_load_x"


def test_an_interrupt_is_the_same_stop_and_says_what_it_is():
    token = CancellationToken()
    token.cancel("SIGTERM", "signal", interrupt=True)
    assert token.interrupting
    with pytest.raises(OperationCancelledException):
        token.check_cancellation_point()


def test_a_callback_is_called_once_in_the_cancelling_thread():
    token, calls = CancellationToken(), []
    token.add_callback(lambda: calls.append(threading.get_ident()))
    thread = in_thread(token.cancel)
    thread.join()
    token.cancel()
    assert calls == [thread.ident]


def test_a_callback_that_comes_late_is_called_at_once_and_one_taken_back_never():
    token, calls = CancellationToken(), []
    token.add_callback(lambda: calls.append("taken back"))()
    token.cancel()
    remove = token.add_callback(lambda: calls.append("late"))
    remove()
    assert calls == ["late"]


def test_a_callback_that_raises_is_logged_and_the_others_are_called(caplog):
    token, calls = CancellationToken("a"), []

    def fail() -> None:
        raise ZeroDivisionError

    token.add_callback(fail)
    token.add_callback(lambda: calls.append("second"))
    assert token.cancel()
    assert calls == ["second"]
    assert "ZeroDivisionError" in caplog.text


def test_a_callback_may_ask_and_cancel_the_token_again():
    token, seen = CancellationToken(), []
    token.add_callback(lambda: seen.append((token.is_cancelled(), token.cancel("again"))))
    token.cancel("first")
    assert seen == [(True, False)]


def test_a_cancel_from_another_thread_wakes_the_waiters_of_every_loop():
    token = CancellationToken()
    waiting = threading.Barrier(4)

    async def wait() -> str | None:
        async def signal() -> None:
            waiting.wait()

        waiter = asyncio.create_task(token.wait())
        await asyncio.sleep(0)
        await signal()
        await asyncio.wait_for(waiter, 10)
        return token.reason

    with ThreadPoolExecutor(3) as threads:
        loops = [threads.submit(asyncio.run, wait()) for _ in range(3)]
        waiting.wait()
        token.cancel("from outside")
        assert [loop.result(10) for loop in loops] == ["from outside"] * 3


async def test_waiting_for_a_token_that_was_told_returns_at_once():
    token = CancellationToken()
    token.cancel()
    await asyncio.wait_for(token.wait(), 1)


def test_a_waiter_whose_loop_is_gone_does_not_disturb_the_cancel():
    token = CancellationToken()
    loop = asyncio.new_event_loop()
    task = loop.create_task(token.wait())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert token.cancel()
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # its loop was closed under it on purpose


async def test_guard_gives_the_result_and_the_error_of_what_it_awaits():
    token = CancellationToken()

    async def fail() -> None:
        raise ValueError("its own")

    assert await token.guard(asyncio.sleep(0, "value")) == "value"
    with pytest.raises(ValueError, match="its own"):
        await token.guard(fail())
    assert token._callbacks == {}


async def test_guard_ends_what_it_awaits_before_it_raises_and_leaves_no_task():
    token, ended = CancellationToken(), []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    asyncio.get_running_loop().call_later(0.01, token.cancel, "enough")
    with pytest.raises(OperationCancelledException, match="the request was cancelled: enough"):
        await token.guard(work(), "the request")
    assert ended == [True]
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert token._callbacks == {}


async def test_guard_is_woken_by_a_cancel_from_another_thread():
    token, waiting = CancellationToken(), threading.Event()

    async def work() -> None:
        waiting.set()
        await asyncio.Event().wait()

    thread = in_thread(lambda: waiting.wait(10) and token.cancel("from a thread"))
    with pytest.raises(OperationCancelledException, match="from a thread"):
        await asyncio.wait_for(token.guard(work()), 10)
    thread.join()


async def test_guard_begins_nothing_when_the_token_was_told_before():
    token, begun = CancellationToken(), []
    token.cancel()

    async def work() -> None:
        begun.append(True)

    with pytest.raises(OperationCancelledException):
        await token.guard(work())
    gc.collect()
    assert begun == []


async def test_guard_keeps_a_result_that_was_there_before_the_cancel():
    token = CancellationToken()

    async def work() -> str:
        token.cancel()
        return "done already"

    assert await token.guard(work()) == "done already"


async def test_guard_cancels_even_what_hides_its_cancellation_or_fails_in_it():
    for answer in ("a value", ValueError("while cleaning up")):
        token = CancellationToken()

        async def work(answer: object = answer) -> object:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if isinstance(answer, Exception):
                    raise answer from None
            return answer

        asyncio.get_running_loop().call_soon(token.cancel, "enough")
        with pytest.raises(OperationCancelledException, match="enough"):
            await token.guard(work())


async def test_a_cancelled_waiter_ends_what_it_guards_and_goes_on_as_cancelled():
    token, begun, ended = CancellationToken(), asyncio.Event(), []

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    task = asyncio.create_task(token.guard(work()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not token.is_cancelled()


async def test_a_deadline_around_guard_is_a_deadline():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await CancellationToken().guard(asyncio.Event().wait())
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_guards_within_guards_end_once_and_leave_nothing():
    token = CancellationToken()
    asyncio.get_running_loop().call_later(0.01, token.cancel, "enough")
    with pytest.raises(OperationCancelledException, match="enough"):
        await token.guard(token.guard(token.sleep(60, "inner"), "middle"), "outer")
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_sleep_ends_at_once_when_the_token_is_told():
    token = CancellationToken()
    await token.sleep(0)
    asyncio.get_running_loop().call_later(0.01, token.cancel)
    with pytest.raises(OperationCancelledException, match="pausing was cancelled"):
        await asyncio.wait_for(token.sleep(3600, "pausing"), 10)


def test_cancelling_an_unknown_operation_says_false():
    assert CancellationSystem().cancel_operation("nobody") is False


def test_cancelling_one_operation_leaves_the_others_alone():
    system = CancellationSystem()
    one, other = system.create_cancellation_token("one"), system.create_cancellation_token("other")
    assert system.cancel_operation("one", "enough", "ann")
    assert (one.reason, one.requested_by) == ("enough", "ann")
    assert not other.is_cancelled()


def test_cancel_all_tells_what_is_live_and_poisons_nothing_later():
    system = CancellationSystem()
    named, nameless = system.create_cancellation_token("named"), system.create_cancellation_token()
    system.create_cancellation_token("over")
    system.cleanup_token("over")
    assert system.cancel_all_operations("shutting down", interrupt=True) == 2
    assert named.interrupting
    assert nameless.is_cancelled()
    assert system.cancel_all_operations() == 0
    assert not system.create_cancellation_token("later").is_cancelled()
    assert not system.create_cancellation_token().is_cancelled()


def test_an_operation_that_has_ended_is_unknown_again_and_its_id_free():
    system = CancellationSystem()
    first = system.create_cancellation_token("a")
    system.cleanup_token("a")
    system.cleanup_token("a")
    assert system.get_token("a") is None
    assert not system.cancel_operation("a")
    assert system.create_cancellation_token("a") is not first


def test_two_live_operations_never_share_a_token_or_lose_theirs():
    system = CancellationSystem()
    first = system.create_cancellation_token("a")
    with pytest.raises(InvalidValue, match="running in this process already"):
        system.create_cancellation_token("a")
    assert system.get_token("a") is first


def test_a_token_without_an_id_is_forgotten_with_its_holder():
    system = CancellationSystem()
    system.create_cancellation_token()
    gc.collect()
    assert system.cancel_all_operations() == 0
