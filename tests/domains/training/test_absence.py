"""A host that does not answer is waited for; one that comes back without the session has lost it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from ktrdr_ops.core.errors import OperationCancelledException, OperationInterrupted
from ktrdr_ops.core.orchestration import How
from tests.domains.training.trainings import events, step_names, train, until_event


@dataclass
class Process:
    """A scripted host in a process of its own, that can be stopped and killed."""

    generation: int
    pace: float
    port: int = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def begin(self):
        command = [sys.executable, "-m", "tests.domains.training.training_host"]
        self.process = subprocess.Popen(
            [*command, str(self.generation), str(self.pace), str(self.port)], stdout=subprocess.PIPE, text=True
        )
        self.port = int(self.process.stdout.readline())

    def tell(self, number):
        os.kill(self.process.pid, number)

    def end(self):
        self.process.kill()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture(params=[pytest.param(1, marks=pytest.mark.slow), 2], ids=["first", "second"])
def process(request):
    made = Process(request.param, 0.05)
    made.begin()
    yield made
    made.end()


def epoch(number):
    return lambda event: getattr(event.fact, "name", "") == f"epoch {number}"


def wait_started(event):
    return event.type == "wait_started"


def waits(told):
    return [event.type for event in told if event.type.startswith("wait_")]


def impatient(app):
    """Calls about sessions are given up after a second."""
    app.provider("model_train").connector.manager.host._deadline = 1.0


async def paused_for(app, process, seconds):
    task = asyncio.create_task(train(app, epochs=20))
    await until_event(app, epoch(3))
    process.tell(signal.SIGSTOP)
    await asyncio.sleep(seconds)
    process.tell(signal.SIGCONT)
    return await task


@pytest.mark.slow
async def test_a_host_that_is_paused_is_waited_for_and_the_training_goes_on(opened, process):
    async with opened(process) as app:
        impatient(app)
        result = await paused_for(app, process, 1.6)
        told = await events(app)
        names = await step_names(app)
    assert result.epochs == 20
    assert waits(told) == ["wait_started", "wait_ended"]
    assert [name for name in names if name.startswith("epoch")] == [f"epoch {number}" for number in range(1, 21)]


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_host_that_is_paused_for_half_a_minute_is_waited_for(opened, process):
    async with opened(process) as app:
        result = await paused_for(app, process, 30)
        told = await events(app)
    assert result.epochs == 20
    assert waits(told) == ["wait_started", "wait_ended"]


async def test_a_host_killed_and_started_again_makes_one_interrupted_within_two_seconds_of_its_answer(opened, process):
    async with opened(process) as app:
        task = asyncio.create_task(train(app, epochs=1000))
        await until_event(app, epoch(3))
        process.end()
        await until_event(app, wait_started)
        await asyncio.sleep(0.3)
        process.begin()
        back = time.time()
        with pytest.raises(OperationInterrupted, match=r"outcome unknown, last seen epoch \d+/1000"):
            await task
        told = await events(app)
    [ended] = [event for event in told if event.event_class == "terminal"]
    assert ended.type == "interrupted"
    assert ended.at / 1e6 - back < 2.0
    assert waits(told) == ["wait_started", "wait_ended"]


async def test_a_host_that_stays_away_is_given_up_when_patience_ends_and_found_again_by_the_next_attempt(opened, host):
    host.pace = None
    asked = {"symbols": "TEST", "timeframe": "1d", "epochs": 5}
    gone = False

    async def broken(connection):
        connection.reset()

    host.fault = lambda method, path: broken if gone else None
    async with opened(host) as app:
        task = asyncio.create_task(app.run("model_train", how=How(wait=0.5), **asked))
        await host.until(lambda host: host.sessions)
        host.advance(2)
        await until_event(app, epoch(2))
        gone = True
        with pytest.raises(OperationInterrupted, match="outcome unknown, last seen epoch 2/5"):
            await task
        [ended] = await events(app, "interrupted")
        gone = False
        host.advance(3)
        [outcome], [] = await app.recover()
    assert "no answer" in ended.fact.reason
    assert outcome.status == "completed"
    assert len(host.sessions) == 1


async def test_a_host_that_is_absent_when_a_later_attempt_begins_is_waited_for(opened, host):
    host.pace = None
    gone = False

    async def broken(connection):
        connection.reset()

    host.fault = lambda method, path: broken if gone else None
    async with opened(host) as app:
        task = asyncio.create_task(train(app))
        await until_event(app, lambda event: getattr(event.fact, "name", "") == "session 1 started")
        app.framework.interrupt_all("signal SIGTERM")
        with pytest.raises(OperationInterrupted):
            await task
        gone = True
        task = asyncio.create_task(train(app))
        await until_event(app, wait_started)
        gone = False
        host.advance(5)
        assert (await task).epochs == 5


async def test_a_cancel_while_the_host_is_away_is_not_confirmed(opened, host):
    host.pace = None
    async with opened(host) as app:
        app.provider("model_train").connector.manager.stop_deadline = 0.5
        task = asyncio.create_task(train(app))
        await until_event(app, lambda event: getattr(event.fact, "name", "") == "session 1 started")

        async def broken(connection):
            connection.reset()

        host.fault = lambda method, path: broken
        await until_event(app, wait_started)
        await app.cancel("@last")
        with pytest.raises(OperationCancelledException, match="did not confirm"):
            await task
        [ended] = await events(app, "cancelled")
    assert not ended.fact.confirmed
