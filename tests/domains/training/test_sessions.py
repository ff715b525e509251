"""One session on the host for one training: its start, what an attempt finds of it, and how it ends."""

from __future__ import annotations

import asyncio
import json

import pytest

from ktrdr_ops.core.errors import HostUnavailable, OperationCancelledException, OperationInterrupted
from ktrdr_ops.core.orchestration import How
from ktrdr_ops.domains.training.engine.errors import SessionFailed, SessionStopped, TrainingServiceError
from tests.domains.training.training_host import TrainingHost, record
from tests.domains.training.trainings import events, step_names, steps, train, until, until_event
from tests.faulty_host import answers, html, refusing_url, reset_at_once


def starts(host):
    return [path for _, path in host.asked if path == "/training/start"]


def once_at(path, behaviour):
    """This for the first request to a path, then the right answers."""
    left = [behaviour]
    return lambda method, asked: left.pop() if asked == path and left else None


def served_then(host, path, behaviour):
    """The host does what the first request to a path asks, and its answer is lost."""
    left = [behaviour]

    def fault(method, asked):
        if asked != path or not left:
            return None

        async def lose(connection):
            lost = left.pop()
            routes = host._first if host.generation == 1 else host._second
            await routes(method, asked, {}, json.loads(host.server.bodies[-1]))
            await lost(connection)

        return lose

    return fault


async def begun(app, host, **asked):
    """A training whose session runs."""
    task = asyncio.create_task(train(app, **asked))
    await host.until(lambda host: host.sessions)
    return task


async def interrupted(app, task):
    """The training's process is told to go."""
    app.framework.interrupt_all("signal SIGTERM")
    with pytest.raises(OperationInterrupted):
        await task


async def test_the_sessions_id_is_journaled_before_it_is_sent(opened, either):
    either.fault = once_at("/training/start", answers(b'{"detail": "Failed to start training: no"}', "500 Error"))
    async with opened(either) as app:
        with pytest.raises(SessionFailed, match="Failed to start training: no") as failed:
            await train(app)
        names = await step_names(app)
    assert failed.value.exit_code == 1
    assert "session 1" in names
    assert "session 1 started" not in names


@pytest.mark.parametrize("lost", [reset_at_once, html], ids=["reset", "html"])
async def test_a_start_whose_answer_was_lost_is_sent_again_and_recognised(opened, either, lost):
    either.fault = served_then(either, "/training/start", lost)
    async with opened(either) as app:
        result = await train(app)
    assert result.epochs == 5
    assert len(starts(either)) == 2
    assert len(either.sessions) == 1


async def test_a_host_that_is_busy_is_waited_for(opened, either):
    either.pace = None
    either.start("somebody_elses", {"epochs": 3}, {})
    other = either.session
    async with opened(either) as app:
        task = asyncio.create_task(train(app))
        waiting = await until_event(app, lambda event: event.type == "wait_started")
        assert waiting.fact.reason == "the training host service is busy: Maximum concurrent sessions (1) reached"
        either.pace, other.status = 0.0, "completed"
        result = await task
        waits = [event.type for event in await events(app) if event.type.startswith("wait_")]
    assert result.epochs == 5
    assert waits == ["wait_started", "wait_ended"]


async def test_a_busy_host_is_given_up_when_patience_ends(opened, either):
    either.start("somebody_elses", {"epochs": 10**6}, {})
    async with opened(either) as app:
        asked = {"symbols": "TEST", "timeframe": "1d"}
        with pytest.raises(HostUnavailable, match="waited 0s for a free session") as refused:
            await app.run("model_train", how=How(wait=0.3), **asked)
        shown = await app.show("@last")
    assert refused.value.exit_code == 5
    assert shown["status"] == "failed"


async def test_a_wait_for_a_busy_host_ends_with_a_cancel(opened, either):
    either.start("somebody_elses", {"epochs": 10**6}, {})
    async with opened(either) as app:
        task = asyncio.create_task(train(app))
        await until_event(app, lambda event: event.type == "wait_started")
        await app.cancel("@last")
        with pytest.raises(OperationCancelledException):
            await task
        [ended] = await events(app, "cancelled")
    assert ended.fact.confirmed
    assert ended.fact.latency_ms < 1000
    assert len(either.sessions) == 1


async def test_an_absent_host_before_its_first_answer_fails_fast(opened, either):
    either.server.url = refusing_url()
    async with opened(either) as app:
        with pytest.raises(HostUnavailable, match=r"Training of mlp on TEST failed: .* cannot be connected") as refused:
            await train(app)
        assert not await events(app, "wait_started")
    assert refused.value.exit_code == 5
    assert "doctor" in (refused.value.hint or "")


async def test_an_attempt_after_an_interrupted_one_listens_to_the_session_that_runs(opened, either):
    either.pace = None
    async with opened(either) as app:
        task = await begun(app, either)
        either.advance(2)
        await until_event(app, lambda event: getattr(event.fact, "name", "") == "epoch 2")
        await interrupted(app, task)
        assert either.session.status == "running"
    async with opened(either) as app:
        task = asyncio.create_task(train(app))
        await until_event(app, lambda event: event.type == "attempt_started" and event.attempt == 2)
        either.advance(3)
        result = await task
        names = await step_names(app)
    assert len(either.sessions) == 1
    assert len(starts(either)) == 1
    assert result.epochs == 5
    assert [name for name in names if name.startswith("epoch")] == [f"epoch {number}" for number in range(1, 6)]


async def test_the_result_of_a_session_that_completed_meanwhile_is_taken(opened, either):
    either.pace = None
    async with opened(either) as app:
        task = await begun(app, either)
        await until_event(app, lambda event: getattr(event.fact, "name", "") == "session 1 started")
        await interrupted(app, task)
    either.advance(5)
    async with opened(either) as app:
        [found], [] = await app.recover()
        shown = await app.show("@last")
    assert found.status == "completed"
    assert shown["result"]["epochs"] == 5
    assert shown["result"]["session_id"] == either.session.session_id


async def test_a_session_that_the_host_no_longer_knows_is_an_outcome_unknown_once(opened, either):
    either.pace = None
    async with opened(either) as app:
        task = await begun(app, either, epochs=100)
        either.advance(92)
        await until_event(app, lambda event: getattr(event.fact, "name", "") == "epoch 92")
        either.sessions.clear()
        with pytest.raises(OperationInterrupted, match="outcome unknown, last seen epoch 92/100"):
            await task
        assert len(await events(app, "interrupted")) == 1
        again = await app.recover()
        assert again[0] == []
        with pytest.raises(OperationInterrupted, match="outcome unknown"):
            await train(app, epochs=100)
        assert len(await events(app, "interrupted")) == 1
    assert len(starts(either)) == 1


async def test_a_session_that_is_gone_when_the_next_attempt_asks_is_an_outcome_unknown(opened, either):
    either.pace = None
    async with opened(either) as app:
        task = await begun(app, either)
        await until_event(app, lambda event: getattr(event.fact, "name", "") == "session 1 started")
        await interrupted(app, task)
        either.sessions.clear()
        with pytest.raises(OperationInterrupted, match="outcome unknown, no epoch of 5 seen"):
            await train(app)


async def test_a_training_that_failed_on_the_host_fails_with_its_words_and_the_next_session_goes_on(opened, either):
    either.pace = None
    async with opened(either) as app:
        task = await begun(app, either)
        either.advance(2)
        first = either.session
        await until_event(app, lambda event: getattr(event.fact, "name", "") == "epoch 2")
        first.status, first.error = "failed", "CUDA out of memory"
        with pytest.raises(SessionFailed, match="failed, last seen epoch 2/5: CUDA out of memory"):
            await task
        assert (await app.show("@last"))["status"] == "failed"
        assert (await steps(app))["session 1 ended"]["status"] == "failed"
        either.pace = 0.0
        result = await train(app)
        kept = await steps(app)
    assert result.session_id != first.session_id
    assert kept["session 2"] == {"session_id": result.session_id, "resume_from": first.session_id}
    sent = json.dumps(either.session.asked)
    assert (first.session_id in sent, "resume_from" in sent) == (either.generation == 2,) * 2


async def test_a_session_that_somebody_else_stopped_is_a_failure_that_says_so(opened, either):
    either.pace = None
    async with opened(either) as app:
        task = await begun(app, either)
        either.session.status = "stopped"
        with pytest.raises(SessionStopped, match="stopped on the host by somebody else"):
            await task
        assert (await app.show("@last"))["status"] == "failed"


async def test_epochs_of_a_later_session_that_began_anew_are_kept_beside_the_first(opened, host):
    host.pace = None
    async with opened(host) as app:
        task = await begun(app, host)
        host.advance(3)
        await until_event(app, lambda event: getattr(event.fact, "name", "") == "epoch 3")
        host.session.status, host.session.error = "failed", "no"
        with pytest.raises(SessionFailed):
            await task
        task = asyncio.create_task(train(app))
        await host.until(lambda host: len(host.sessions) == 2)
        host.advance(5)
        for each in host.session.records[:2]:
            each["train_loss"] += 1
        await task
        names = await step_names(app)
    assert [name for name in names if name.startswith("epoch")] == [
        "epoch 1", "epoch 2", "epoch 3", "epoch 1 of session 2", "epoch 2 of session 2", "epoch 4", "epoch 5"
    ]  # fmt: skip


async def test_a_status_that_nobody_knows_is_no_status_for_ever(opened, either):
    either.pace = None
    async with opened(either) as app:
        asked = {"symbols": "TEST", "timeframe": "1d", "epochs": 5}
        task = asyncio.create_task(app.run("model_train", how=How(wait=0.5), **asked))
        await host_has_session(either)
        either.session.status = "resting"
        with pytest.raises(OperationInterrupted, match="no answer for 0s: outcome unknown"):
            await task


async def host_has_session(host):
    await host.until(lambda host: host.sessions)


async def test_a_422_is_final(opened, either):
    body = b'{"detail": [{"type": "x", "loc": ["body", "symbols"], "msg": "no such", "input": ""}]}'
    either.fault = once_at("/training/start", answers(body, "422 Unprocessable Entity"))
    async with opened(either) as app:
        with pytest.raises(TrainingServiceError, match="symbols: no such") as refused:
            await train(app)
    assert refused.value.details["final"] is True


async def test_percentages_that_the_host_has_wrong_are_not_believed_and_batches_are_clamped(opened):
    async with TrainingHost(1, pace=None) as host, opened(host) as app:
        task = await begun(app, host)
        for _ in range(5):
            told = len(host.session.records) + 1
            await until_event(app, lambda event, told=told: batch_in(event) == (told, "31/31"))
            host.advance(1)
        await task
        percentages = [event.fact.percentage for event in await events(app, "progressed")]
    assert percentages == sorted(percentages)


def batch_in(event):
    context = getattr(event.fact, "context", {})
    return (context.get("epoch"), context.get("batch"))


async def test_a_host_that_still_runs_after_the_last_epoch_is_in_no_further_one(opened, either):
    either.pace = None
    async with opened(either) as app:
        task = await begun(app, either)
        either.session.batch = (7, 31)
        either.session.records += [record(at, either.session.seed) for at in range(5)]
        await until_event(app, lambda event: getattr(event.fact, "name", "") == "epoch 5")
        asked = len(either.asked)
        await until(lambda: asyncio.sleep(0, len(either.asked) > asked + 4))
        either.advance(0)
        await task
        told = {event.fact.context.get("epoch", 0) for event in await events(app, "progressed")}
    assert max(told) == 5


async def test_the_generations_are_told_apart_by_what_a_status_call_answers_too(opened):
    async with TrainingHost(2) as host, opened(host) as app:
        host.fault = once_at("/health", answers(b'{"healthy": false, "service": "x", "error": "busy"}'))
        assert (await train(app)).epochs == 5
        assert (await steps(app))["session 1 started"]["generation"] == 2


async def test_a_result_that_is_not_written_yet_is_waited_for(opened, host):
    async with opened(host) as app:
        waits = answers(b'{"detail": "Training not completed yet (status: running)"}', "400 Bad Request")
        left = [waits, waits]
        host.fault = lambda method, path: left.pop() if path.startswith("/training/result/") and left else None
        assert (await train(app)).test_metrics == {"test_accuracy": 0.5, "test_loss": 0.7}


async def test_a_training_is_not_silent_while_the_host_says_that_it_trains(opened, host, monkeypatch):
    monkeypatch.setattr("ktrdr_ops.domains.training.engine.epochs.SAY_SECONDS", 0.2)
    host.pace = None
    async with opened(host) as app:
        task = await begun(app, host)
        host.advance(1)
        await until_event(app, epoch_again(3))
        host.advance(4)
        await task
        losses = [event for event in await events(app, "progressed") if "train_loss" in event.fact.context]
    assert len(losses) == 5


def epoch_again(times):
    """The event that says for so many times that epoch 1 is the last."""
    left = [None] * times
    return lambda event: getattr(event.fact, "context", {}).get("epoch") == 1 and (left.pop(), not left)[1]
