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
from ktrdr_ops.core.errors import OperationCancelledException, OperationInterrupted
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


# That it is lost


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
