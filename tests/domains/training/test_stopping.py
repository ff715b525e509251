"""A cancel counts when the host has stopped; being told to go leaves the session running."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest

from ktrdr_ops.core.errors import OperationCancelledException, OperationInterrupted
from tests.domains.training.trainings import events, steps, train, until_event


def started(event):
    return getattr(event.fact, "name", "") == "session 1 started"


async def running(app, host, **asked):
    task = asyncio.create_task(train(app, **asked))
    await until_event(app, started)
    return task


async def cancelled(app, task):
    """Cancel it; gives its terminal event."""
    await app.cancel("@last", "enough", "user")
    with pytest.raises(OperationCancelledException):
        await task
    [ended] = await events(app, "cancelled")
    return ended


async def test_a_cancel_is_recorded_when_the_host_has_stopped(opened, either):
    either.pace, either.stop_seconds = None, 0.2
    async with opened(either) as app:
        task = await running(app, either)
        ended = await cancelled(app, task)
        kept = await steps(app)
    assert either.session.status == "stopped"
    assert (ended.fact.confirmed, ended.fact.reason) == (True, "enough")
    assert 200 <= ended.fact.latency_ms < 1200
    assert kept["session 1 ended"]["session_id"] == either.session.session_id


async def test_a_training_that_was_cancelled_goes_on_in_a_second_session(opened, either):
    either.pace = None
    async with opened(either) as app:
        await cancelled(app, await running(app, either))
        first, either.pace = either.session, 0.0
        result = await train(app)
    assert result.session_id != first.session_id
    assert len(either.sessions) == 2


async def test_a_host_whose_cancel_lies_leaves_the_cancel_unconfirmed(opened, either):
    either.pace, either.lies = 0.05, True
    async with opened(either) as app:
        app.provider("model_train").connector.manager.stop_deadline = 0.4
        task = await running(app, either, epochs=1000)
        ended = await cancelled(app, task)
        shown = await app.show("@last")
        kept = await steps(app)
    assert not ended.fact.confirmed
    assert 400 <= ended.fact.latency_ms < 1400
    assert shown["cancellation"]["confirmed"] is False
    assert either.session.status == "running"
    assert "session 1 ended" not in kept


async def test_the_session_of_an_unconfirmed_cancel_is_found_by_the_next_attempt(opened, host):
    host.pace, host.lies = None, True
    async with opened(host) as app:
        app.provider("model_train").connector.manager.stop_deadline = 0.2
        await cancelled(app, await running(app, host))
        host.advance(5)
        result = await train(app)
    assert result.session_id == host.session.session_id
    assert len(host.sessions) == 1


async def test_a_cancel_while_the_start_is_on_its_way_stops_what_it_started(opened, either):
    either.pace = None
    coming = asyncio.Event()

    def slow(method, path):
        if path != "/training/start":
            return None
        coming.set()

        async def later(connection):
            either.fault = lambda method, path: None
            await asyncio.sleep(0.3)
            either.server.requests.append("POST /training/start HTTP/1.1")
            either.server.bodies.append(body)
            await either._answer(connection)

        body = either.server.bodies[-1]
        return later

    either.fault = slow
    async with opened(either) as app:
        task = asyncio.create_task(train(app))
        await asyncio.wait_for(coming.wait(), 5)
        ended = await cancelled(app, task)
    assert ended.fact.confirmed
    assert either.session.status == "stopped"


async def test_being_told_to_go_leaves_the_session_running(opened, either):
    either.pace = None
    async with opened(either) as app:
        task = await running(app, either)
        began = time.monotonic()
        app.framework.interrupt_all("signal SIGTERM")
        with pytest.raises(OperationInterrupted):
            await task
        assert time.monotonic() - began < 1.0
    assert either.session.status == "running"
    assert not [path for _, path in either.asked if path.endswith(("/stop", "/cancel"))]


async def test_a_task_that_is_cancelled_stops_the_session_too(opened, either):
    either.pace = None
    async with opened(either) as app:
        task = await running(app, either)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await app.show("@last"))["status"] == "cancelled"
    assert either.session.status == "stopped"


async def test_a_session_that_completed_before_it_could_be_stopped_keeps_its_result(opened, host):
    host.pace = None
    async with opened(host) as app:
        task = await running(app, host)
        host.lies = True
        await app.cancel("@last")
        host.advance(5)
        with pytest.raises(OperationCancelledException):
            await task
        [ended] = await events(app, "cancelled")
        assert ended.fact.confirmed
        assert (await train(app)).epochs == 5
    assert len(host.sessions) == 1


async def test_a_cancel_at_the_beginning_of_a_later_attempt_stops_the_session_of_the_earlier(opened, either):
    either.pace = None
    away = False

    async def broken(connection):
        connection.reset()

    either.fault = lambda method, path: broken if away else None
    async with opened(either) as app:
        task = await running(app, either)
        app.framework.interrupt_all("signal SIGTERM")
        with pytest.raises(OperationInterrupted):
            await task
        away = True
        task = asyncio.create_task(train(app))
        await until_event(app, lambda event: event.type == "wait_started")
        await app.cancel("@last")
        away = False
        with pytest.raises(OperationCancelledException):
            await task
        [ended] = await events(app, "cancelled")
    assert ended.fact.confirmed
    assert either.session.status == "stopped"


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_cancel_from_another_process_is_confirmed_within_a_second_thirty_times(opened, either, settings):
    either.pace = None
    cancel = [sys.executable, "-m", "ktrdr_ops", "--journal", str(settings.journal), "cancel", "@running"]
    latencies = []
    async with opened(either) as app:
        for seed in range(30):
            task = await running_as(app, seed)
            process = await asyncio.create_subprocess_exec(*cancel, stdout=asyncio.subprocess.DEVNULL)
            with pytest.raises(OperationCancelledException):
                await task
            await process.wait()
            [ended] = await events(app, "cancelled")
            assert ended.fact.confirmed
            latencies.append(ended.fact.latency_ms)
    assert {session.status for session in either.sessions.values()} == {"stopped"}
    assert max(latencies) < 1000, sorted(latencies)


async def running_as(app, seed):
    """A training of its own, whose session runs."""
    task = asyncio.create_task(train(app, seed=seed))
    async with asyncio.timeout(10):
        async for event in app.journal.tail(after=0):
            if started(event):
                found = await app.show(event.operation_id)
                if found["context"]["seed"] == seed:
                    return task
    raise AssertionError("unreachable")
