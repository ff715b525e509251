"""What is written of a session is true: that it has stopped, that it is lost, what it read."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest

from ktrdr_ops.core.attempt import Attempt
from ktrdr_ops.core.errors import OperationCancelledException, OperationInterrupted, OwnershipLost
from ktrdr_ops.core.events import Cancelled
from ktrdr_ops.core.journal.decisions import Resume, Say, draft
from ktrdr_ops.domains.training.connector import TrainingSystemConnector
from ktrdr_ops.domains.training.engine.host import TrainingHostService
from tests.domains.training import training_host
from tests.domains.training.training_host import TrainingHost
from tests.domains.training.trainings import events, publish_series, steps, train, until, until_event
from tests.faulty_host import FaultyHost, answers


def step(name):
    return lambda event: getattr(event.fact, "name", "") == name


def says(text, status="500 Error"):
    return answers(json.dumps({"detail": text}).encode(), status)


async def interrupted(app, host, at="session 1 started"):
    """A training whose process was told to go: its session runs on."""
    task = asyncio.create_task(train(app, epochs=50))
    await until_event(app, step(at))
    app.framework.interrupt_all("signal SIGTERM")
    with pytest.raises(OperationInterrupted):
        await task
    assert host.session.status == "running"


async def cancellation(app):
    return (await app.show("@last"))["cancellation"]


# That it has stopped


async def test_a_cancel_before_a_later_attempt_has_looked_for_its_session_stops_that(opened, either):
    either.pace = None
    async with opened(either) as app:
        await interrupted(app, either)

        def at_once(state):
            app.framework.cancellation_system.get_token(state.operation_id).cancel("enough", "user")

        with pytest.raises(OperationCancelledException):
            await app.resume("@last", progress_callback=at_once)
        assert (await cancellation(app))["confirmed"] is True
        assert (await app.show("@last"))["attempt"] == 2
    assert either.session.status == "stopped"


async def test_a_start_that_was_sent_and_not_journaled_may_have_started_a_session(opened, either, monkeypatch):
    either.pace = None
    real, away = Attempt.complete_step, False

    async def dying(self, name, value=None, **more):
        if name == "session 1 started" and self.number == 1:
            self.token.cancel("signal SIGTERM", "signal", interrupt=True)
            self.token.check_cancellation_point()
        await real(self, name, value, **more)

    async def slow(connection):
        await asyncio.sleep(60)

    monkeypatch.setattr(Attempt, "complete_step", dying)
    either.fault = lambda method, path: slow if away and path == "/health" else None
    async with opened(either) as app:
        with pytest.raises(OperationInterrupted):
            await train(app, epochs=50)
        assert "session 1 started" not in await steps(app)
        assert either.session.status == "running"
        away = True
        task = asyncio.create_task(app.resume("@last"))
        await until(lambda: asyncio.sleep(0, either.asked.count(("GET", "/health")) > 1))
        away = False
        await app.cancel("@last", "enough", "user")
        with pytest.raises(OperationCancelledException):
            await task
        assert (await cancellation(app))["confirmed"] is True
    assert either.session.status == "stopped"


async def test_a_stop_that_came_too_early_is_sent_again(opened):
    async with TrainingHost(1, pace=None) as host, opened(host) as app:
        task = asyncio.create_task(train(app, epochs=50))
        await until_event(app, step("session 1 started"))
        asked = []

        def early(method, path):
            if path == "/training/stop":
                asked.append(path)
                if len(asked) == 1:
                    name = host.session.session_id
                    return says(f"Failed to stop training: Session {name} is not running (status: initializing)")
            return None

        host.fault = early
        await app.cancel("@last", "enough", "user")
        with pytest.raises(OperationCancelledException):
            await task
        assert (await cancellation(app))["confirmed"] is True
        assert (len(asked), host.session.status) == (2, "stopped")


async def test_a_group_whose_process_is_gone_is_not_confirmed_while_its_trainings_run(opened, settings, tmp_path):
    program = tmp_path / "group.py"
    program.write_text(
        textwrap.dedent(
            """
            import asyncio, sys
            from ktrdr_ops.app import open_app_async
            from ktrdr_ops.settings import load_settings

            async def main():
                flags = dict(zip(("journal", "data_dir", "models_dir", "training_host_url"), sys.argv[1:]))
                async with open_app_async(settings=load_settings(flags, environment={})) as app:
                    asked = {"symbols": "TEST", "timeframe": "1d", "epochs": 50}
                    children = [{"type": "model_train", "parameters": {**asked, "seed": seed}} for seed in (1, 2)]
                    await app.run("group", children=children)

            asyncio.run(main())
            """
        )
    )
    async with TrainingHost(2, pace=None, max_sessions=2) as host:
        async with opened(host):
            pass  # the series is published
        where = (settings.journal, settings.data_dir, settings.models_dir, host.url)
        client = subprocess.Popen([sys.executable, str(program), *map(str, where)])
        await until(lambda: asyncio.sleep(0, len(host.sessions) == 2), within=30)
        client.kill()
        client.wait()
        async with opened(host) as app:
            [(group,)] = await app.sql("SELECT operation_id FROM v_operations WHERE operation_type = 'group'")
            await app.cancel(group, "enough", "user")
            ids = await app.sql("SELECT operation_id FROM v_operations WHERE operation_type <> 'stored'")
            told = [(await app.show(operation_id))["cancellation"]["confirmed"] for (operation_id,) in ids]
    assert told == [False] * 3
    assert {session.status for session in host.sessions.values()} == {"running"}


async def test_a_host_that_is_busy_with_this_very_session_has_started_it(opened):
    async with TrainingHost(2, pace=None) as host:
        lost = []

        async def broken(connection):
            connection.reset()

        def answer_lost(method, path):
            if path != "/training/start" or len(lost) == 2:
                return None
            lost.append(path)
            if len(lost) == 2:
                return says("Service temporarily unavailable: Maximum concurrent sessions (1) reached", "503 Busy")
            body = json.loads(host.server.bodies[-1])
            host.start(body["session_id"], {"epochs": 5}, body)
            return broken

        host.fault = answer_lost
        async with opened(host) as app:
            task = asyncio.create_task(train(app))
            await until_event(app, step("session 1 started"))
            host.fault = lambda method, path: None
            host.advance(5)
            assert (await task).epochs == 5
            assert [event for event in await events(app, "wait_started") if "busy" in event.fact.reason] == []
    assert (len(lost), len(host.sessions)) == (2, 1)


async def test_a_start_that_comes_in_after_its_cancel_is_stopped_too(opened, either):
    """The answer is lost, the host does not list the session yet: that is not gone."""
    either.pace = None
    came = []

    async def slowly(connection):
        body = json.loads(either.server.bodies[-1])
        if not came:
            came.append(asyncio.create_task(later(body)))
        await asyncio.sleep(60)

    async def later(body):
        await asyncio.sleep(0.7)
        either.start(body["session_id"], {"epochs": 50}, body)

    either.fault = lambda method, path: slowly if path == "/training/start" else None
    async with opened(either) as app:
        app.provider("model_train").connector.manager.host._deadline = 0.3
        task = asyncio.create_task(train(app, epochs=50))
        await until(lambda: asyncio.sleep(0, bool(came)))
        await app.cancel("@last", "enough", "user")
        with pytest.raises(OperationCancelledException):
            await task
        assert (await cancellation(app))["confirmed"] is True
    assert either.session.status == "stopped"


async def test_a_start_that_may_still_come_in_is_not_confirmed(opened, either):
    came = []

    async def never(connection):
        came.append(connection)
        await asyncio.sleep(60)

    either.fault = lambda method, path: never if path == "/training/start" else None
    async with opened(either) as app:
        manager = app.provider("model_train").connector.manager
        manager.host._deadline, manager.stop_deadline = 0.3, 1.0
        task = asyncio.create_task(train(app, epochs=50))
        await until(lambda: asyncio.sleep(0, bool(came)))
        await app.cancel("@last", "enough", "user")
        with pytest.raises(OperationCancelledException):
            await task
        assert (await cancellation(app))["confirmed"] is False


async def test_a_proxy_that_is_busy_does_not_speak_for_the_host(opened):
    async with TrainingHost(2, pace=None) as host:
        served = []

        async def behind(connection):
            body = json.loads(host.server.bodies[-1])
            host.start(body["session_id"], {"epochs": 50}, body)
            await says("upstream connect error", "503 Service Unavailable")(connection)

        def proxy(method, path):
            if path in ("/training/start", "/training/sessions") and len(served) < 2:
                served.append(path)
                return behind if path == "/training/start" else says("upstream connect error", "503 Unavailable")
            return None

        host.fault = proxy
        async with opened(host) as app:
            task = asyncio.create_task(train(app, epochs=50))
            await until_event(app, lambda event: event.type == "wait_started")
            await app.cancel("@last", "enough", "user")
            with pytest.raises(OperationCancelledException):
                await task
            assert (await cancellation(app))["confirmed"] is True
        assert host.session.status == "stopped"


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden", "429 Too Many Requests", "410 Gone"])
async def test_a_refusal_while_the_session_runs_is_waited_for(opened, either, status):
    either.pace = None
    async with opened(either) as app:
        task = asyncio.create_task(train(app))
        await until_event(app, step("session 1 started"))
        either.fault = lambda method, path: says("no", status) if "status" in path or "operations" in path else None
        await until_event(app, lambda event: event.type == "wait_started")
        either.fault = lambda method, path: None
        either.advance(5)
        assert (await task).epochs == 5


@pytest.mark.parametrize("lies", [False, True])
async def test_a_group_says_what_its_trainings_say(opened, lies):
    async with TrainingHost(2, pace=None, max_sessions=2) as host, opened(host) as app:
        host.lies, host.stop_seconds = lies, 0.6
        app.provider("model_train").connector.manager.stop_deadline = 2.0
        asked = {"symbols": "TEST", "timeframe": "1d", "epochs": 50}
        children = [{"type": "model_train", "parameters": {**asked, "seed": seed}} for seed in (1, 2)]
        task = asyncio.create_task(app.run("group", children=children))
        await until(lambda: asyncio.sleep(0, len(host.sessions) == 2))
        [(group,)] = await app.sql("SELECT operation_id FROM v_operations WHERE operation_type = 'group'")
        await app.cancel(group, "enough", "user")
        with pytest.raises(OperationCancelledException):
            await task
        below = await app.sql("SELECT operation_id FROM v_operations WHERE parent_id = ?", (group,))
        told = [(await app.show(one))["cancellation"]["confirmed"] for one in (group, *(row[0] for row in below))]
        assert told == [not lies] * 3
        assert {each.status for each in host.sessions.values()} == {"running" if lies else "stopped"}


async def test_an_attempt_that_was_cancelled_while_it_was_suspended_starts_nothing(opened):
    async with TrainingHost(2, pace=None) as host, opened(host) as app:
        host.start("somebody", {"epochs": 5}, {})
        task = asyncio.create_task(train(app, epochs=50))
        await until_event(app, lambda event: event.type == "wait_started")
        [(mine,)] = await app.sql("SELECT operation_id FROM v_operations WHERE operation_type = 'model_train'")
        await app.journal.append(Resume(mine, app.journal.owner(), steal=True))
        await app.journal.append(Say((draft(mine, 2, Cancelled(requested_by="user", reason="enough")),)))
        host.advance(5)
        with pytest.raises(OwnershipLost):
            await task
        assert list(host.sessions) == ["somebody"]


# That it is lost


@pytest.mark.parametrize("then", ["resume", "cancel"])
async def test_another_host_that_does_not_know_the_session_says_nothing_of_it(opened, host, then):
    host.pace = None
    async with TrainingHost(pace=None) as other, opened(host) as app:
        await interrupted(app, host)
        manager = app.provider("model_train").connector.manager
        manager.host._url_of_host, manager.stop_deadline = other.url, 1.0
        task = asyncio.create_task(app.resume("@last"))
        waiting = await until_event(app, lambda event: event.type == "wait_started" and event.attempt == 2)
        assert f"the session was started on {host.url}" in waiting.fact.reason
        if then == "cancel":
            await app.cancel("@last", "enough", "user")
            with pytest.raises(OperationCancelledException):
                await task
            assert (await cancellation(app))["confirmed"] is False
        else:
            manager.host._url_of_host = host.url
            host.advance(50)
            assert (await task).epochs == 50


async def test_another_service_that_does_not_find_the_session_says_nothing_of_it(opened, either):
    either.pace = None
    async with opened(either) as app:
        await interrupted(app, either)
        health = b'{"healthy": true}'

        async def elsewhere(connection):
            line = stranger.requests[-1]
            await (answers(health) if " /health" in line else says("Not Found", "404 Not Found"))(connection)

        async with FaultyHost(elsewhere) as stranger:
            app.provider("model_train").connector.manager.host._url_of_host = stranger.url
            task = asyncio.create_task(app.resume("@last"))
            waiting = await until_event(app, lambda event: event.type == "wait_started" and event.attempt == 2)
            app.provider("model_train").connector.manager.host._url_of_host = either.url
            either.advance(50)
            assert (await task).epochs == 50
        assert "no training host service" in waiting.fact.reason


async def test_a_text_that_says_not_found_of_something_else_is_a_fault_of_the_host(opened):
    async with TrainingHost(1, pace=None) as host, opened(host) as app:
        task = asyncio.create_task(train(app))
        await until_event(app, step("session 1 started"))
        once = []

        def fault(method, path):
            if path.startswith("/training/status") and not once:
                once.append(path)
                return says("Failed to get training status: NVML shared library not found")
            return None

        host.fault = fault
        host.advance(5)
        assert (await task).epochs == 5
    assert once


async def test_a_number_under_a_secrets_name_is_left_out_and_the_epoch_kept(opened, host, monkeypatch):
    real = training_host.record
    monkeypatch.setattr(training_host, "record", lambda *given: {**real(*given), "token_accuracy": 0.5})
    async with opened(host) as app:
        assert (await train(app)).epochs == 5
        kept = await steps(app)
    assert "token_accuracy" not in kept["epoch 1"]
    assert kept["epoch 1"]["train_loss"] == 1.0


async def test_a_loss_that_is_no_number_is_kept_as_none_and_the_training_goes_on(opened, either, monkeypatch):
    real = training_host.record
    lost = {"train_loss": float("nan"), "val_loss": float("inf"), "huge": 10**400}
    monkeypatch.setattr(training_host, "record", lambda *given: {**real(*given), **lost})
    async with opened(either) as app:
        assert (await train(app)).epochs == 5
        kept = await steps(app)
    assert [kept[f"epoch {number}"]["train_loss"] for number in range(1, 6)] == [None] * 5
    assert kept["epoch 5"].get("val_loss") is kept["epoch 5"].get("huge") is None


# What it read


async def test_a_publication_after_the_host_had_read_its_file_is_no_evidence(opened, host, settings):
    host.pace = None
    async with opened(host) as app:
        app.provider("model_train").connector.manager.own_host = True
        first = await app.catalogue.latest("series", "TEST:1d")
        host.files = [{"symbol": "TEST", "timeframe": "1d", "sha256": first.object, "path": "/x", "rows": 100}]
        task = asyncio.create_task(train(app))
        await until_event(app, step("session 1 started"))
        await publish_series(app, "TEST", again=True)
        again = await app.catalogue.latest("series", "TEST:1d")
        host.advance(5)
        [data] = (await task).data
    assert (again.object, again.operation_id != first.operation_id) == (first.object, True)
    assert (data.evidence, data.operation_id) == ("own", first.operation_id)


def test_only_the_sandboxs_own_host_reads_our_files(settings):
    given = TrainingHostService("http://gpu:5002")
    sandbox = replace(settings, sandbox=True)
    assert not TrainingSystemConnector.from_settings(sandbox, host=given).manager.own_host
    assert TrainingSystemConnector.from_settings(sandbox).manager.own_host
