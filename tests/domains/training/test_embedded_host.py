"""Trainings in the sandbox: the embedded hosts really load and train, each in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ktrdr_ops.app import open_app_async
from ktrdr_ops.core.errors import OperationCancelledException, OperationInterrupted
from ktrdr_ops.core.journal import history
from ktrdr_ops.core.orchestration import How
from ktrdr_ops.hosts.sandbox import ensure_training_host, stop_hosts
from ktrdr_ops.settings import load_settings
from tests.domains.training.trainings import events, step_names, steps, until, until_event

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ASKED = {"symbols": "AAPL,MSFT", "timeframe": "1d", "epochs": 12}


@pytest.fixture
def home(tmp_path):
    yield tmp_path
    stop_hosts(tmp_path)


def settings(home):
    return load_settings({"journal": home / "journal.db", "sandbox": True})


def host(home, **options):
    """The sandbox's training host, as a test wants it."""
    mine = settings(home)
    return ensure_training_host(home, data_dir=mine.data_dir, models_dir=mine.models_dir, **options)


@asynccontextmanager
async def opened(home):
    async with open_app_async(settings=settings(home)) as app:
        yield app


def pid_of(home):
    return int(json.loads((home / "training-host.json").read_text())["pid"])


async def last(app):
    """The id of the last training."""
    page = await history.list_operations(app.journal, history.Filter(operation_type="model_train"), limit=1)
    return page.states[0].operation_id


async def another(app, before):
    now = await last(app)
    return None if now == before else now


def epoch(number):
    return lambda event: getattr(event.fact, "name", "") == f"epoch {number}"


def epochs_in(names):
    return [name for name in names if name.startswith("epoch ")]


async def undisturbed(home, **asked):
    """What a training gives that nobody disturbs, under a key of its own."""
    async with opened(home) as app:
        return await app.run("model_train", how=How(fresh=True), **{**ASKED, **asked})


async def test_missing_series_are_loaded_and_a_model_is_trained_and_published(home):
    async with opened(home) as app:
        result = await app.run("model_train", symbols="AAPL,MSFT,IBM,GOOG", timeframe="1d", epochs=30)
        kept = await steps(app, "train_MLP_4")
        [model] = await app.catalogue.every("model")
        latest = {each.symbol: await app.catalogue.latest("series", f"{each.symbol}:1d") for each in result.data}
        shown = await app.show("train_MLP_4")
    losses = [value["train_loss"] for name, value in kept.items() if name.startswith("epoch ")]
    judged = [value["val_loss"] for name, value in kept.items() if name.startswith("epoch ")]
    assert losses[-1] < losses[0]
    assert result.best_epoch == judged.index(min(judged)) + 1
    assert Path(result.model_path or "").read_bytes()
    assert model.sha256 == result.sha256 == shown["result"]["sha256"]
    assert {each.evidence for each in result.data} == {"own"}
    for each in result.data:
        assert (each.sha256, each.operation_id) == (latest[each.symbol].sha256, latest[each.symbol].operation_id)
    assert result.test_metrics["test_accuracy"] > 0


async def test_the_same_seed_gives_the_same_model_and_so_does_a_run_that_went_on_from_a_checkpoint(home):
    first, again = await undisturbed(home), await undisturbed(home)
    other = await undisturbed(home, seed=7)
    assert first.sha256 == again.sha256 != other.sha256
    host(home, pace=0.3)
    async with opened(home) as app:
        before = await last(app)
        task = asyncio.create_task(app.run("model_train", how=How(fresh=True), **ASKED))
        now = await until(lambda: another(app, before))
        await until_event(app, lambda event: epoch(7)(event) and event.operation_id == now, 60)
        await app.cancel("@running")
        with pytest.raises(OperationCancelledException):
            await task
        resumed = await app.run("model_train", **ASKED)
        names = await step_names(app, await last(app))
    assert resumed.sha256 == first.sha256
    assert "session 2" in names
    assert len(epochs_in(names)) == len(set(names) & set(epochs_in(names)))
    assert not [name for name in names if "of session" in name]


async def test_a_client_killed_while_the_host_trains_leaves_one_session_and_the_same_result(home):
    whole = await undisturbed(home)
    host(home, pace=0.2)
    command = [sys.executable, "-m", "ktrdr_ops", "--sandbox", "--journal", str(home / "journal.db"), "models", "train"]
    asked = ["--symbols", "AAPL,MSFT", "--epochs", "12", "--timeframe", "1d"]
    for seen in (2, 5):
        process = subprocess.Popen([*command, *asked, *(["--new"] if seen == 2 else [])], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while seen > epochs_of_last(home) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        process.kill()
        process.wait(10)
    async with opened(home) as app:
        result = await app.run("model_train", **ASKED)
        names = await step_names(app, await last(app))
    assert result.sha256 == whole.sha256
    assert [name for name in names if name.startswith("session")] == ["session 1", "session 1 started"]
    assert epochs_in(names) == [f"epoch {number}" for number in range(1, result.epochs + 1)]


def epochs_of_last(home):
    """How many epochs the last operation's journal holds, read as a stranger does."""
    query = (
        "SELECT count(*) FROM events WHERE type = 'step_completed' AND operation_id ="
        " (SELECT operation_id FROM events WHERE type = 'submitted' ORDER BY position DESC LIMIT 1)"
        " AND json_extract(CAST(payload AS TEXT), '$.name') LIKE 'epoch %'"
    )
    with sqlite3.connect(f"file:{home / 'journal.db'}?mode=ro", uri=True) as connection:
        return connection.execute(query).fetchone()[0]


async def test_a_host_that_is_killed_makes_one_interrupted_when_the_next_answers(home):
    host(home, pace=0.2)
    async with opened(home) as app:
        task = asyncio.create_task(app.run("model_train", **{**ASKED, "epochs": 200}))
        await until_event(app, epoch(2), 60)
        os.kill(pid_of(home), signal.SIGKILL)
        await until_event(app, lambda event: event.type == "wait_started")
        answers = time.monotonic()
        await asyncio.to_thread(host, home)  # another command starts the sandbox's host again, at another port
        with pytest.raises(OperationInterrupted, match=r"outcome unknown, last seen epoch \d+/200"):
            await task
        assert time.monotonic() - answers < 30
        assert len(await events(app, "interrupted", await last(app))) == 1


async def test_a_host_that_is_paused_is_waited_for(home):
    host(home, pace=0.1)
    async with opened(home) as app:
        task = asyncio.create_task(app.run("model_train", **ASKED))
        await until_event(app, epoch(2), 60)
        os.kill(pid_of(home), signal.SIGSTOP)
        await asyncio.sleep(12)
        os.kill(pid_of(home), signal.SIGCONT)
        result = await task
        told = [event.type for event in await events(app, reference=await last(app))]
    assert result.sha256
    assert [told.count(name) for name in ("wait_started", "wait_ended")] == [1, 1]


async def test_the_first_generation_trains_too_and_no_model_or_hash_is_claimed(home):
    host(home, generation=1)
    async with opened(home) as app:
        result = await app.run("model_train", **ASKED)
        names = await step_names(app, await last(app))
    assert epochs_in(names) == [f"epoch {number}" for number in range(1, result.epochs + 1)]
    assert (result.model_path, result.sha256) == (None, None)
    assert {(each.evidence, each.sha256) for each in result.data} == {("unknown", None)}


async def test_five_trainings_and_four_loads_at_once_give_what_each_gives_alone(home):
    alone = await undisturbed(home, seed=3)
    host(home, max_sessions=5, pace=0.1)
    symbols = ("AAPL", "MSFT", "IBM", "GOOG")
    async with opened(home) as app:
        loads = [app.run("data_load", symbol=each, timeframe="1d", refresh=True) for each in symbols]
        trainings = [app.run("model_train", how=How(fresh=True), **{**ASKED, "seed": seed}) for seed in range(1, 6)]
        *_, _, _, third, _, _ = results = await asyncio.gather(*loads, *trainings)
        told = {seed: await app.events(results[3 + seed].session_id[:-9]) for seed in range(1, 6)}
    assert third.sha256 == alone.sha256
    assert len({each.sha256 for each in results[4:]}) == 5
    for seed, mine in told.items():
        assert mine[0].fact.context["seed"] == seed
        kept = [event.fact.name for event in mine if event.type == "step_completed"]
        assert epochs_in(kept) == [f"epoch {number}" for number in range(1, results[3 + seed].epochs + 1)]
        percentages = [event.fact.percentage for event in mine if event.type == "progressed"]
        assert percentages == sorted(percentages)


@pytest.mark.parametrize("generation", [1, 2])
async def test_thirty_cancels_from_another_process_are_confirmed_within_a_second(home, generation):
    host(home, pace=0.05, generation=generation)
    line = [sys.executable, "-m", "ktrdr_ops", "--sandbox", "--journal", str(home / "journal.db")]
    latencies = []
    async with opened(home) as app:
        for seed in range(30):
            asked = {**ASKED, "epochs": 2000, "seed": seed, "set": ["model.training.early_stopping.patience=2000"]}
            task = asyncio.create_task(app.run("model_train", **asked))
            await until_event(app, in_its_second_epoch(seed, {}), 60)
            process = await asyncio.create_subprocess_exec(
                *line, "cancel", "@running", stdout=asyncio.subprocess.DEVNULL
            )
            with pytest.raises(OperationCancelledException):
                await task
            await process.wait()
            [ended] = await events(app, "cancelled", await last(app))
            assert ended.fact.confirmed
            latencies.append(ended.fact.latency_ms)
    assert max(latencies) < 1000, sorted(latencies)


def in_its_second_epoch(seed, seeds):
    """Whether an event says so of the operation with this seed."""

    def matches(event):
        if event.type == "submitted":
            seeds[event.operation_id] = event.fact.context.get("seed")
        return epoch(2)(event) and seeds[event.operation_id] == seed

    return matches
