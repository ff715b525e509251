"""A training outlives the process that listens to it: kill -9, and the same command goes on with the same session."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys

import pytest

from tests.domains.training.training_host import TrainingHost
from tests.domains.training.trainings import publish_series

TRAIN = """
import sys
from pathlib import Path
from ktrdr_ops.app import open_app
from ktrdr_ops.domains.training import domain
from ktrdr_ops.settings import Settings
folder, url, epochs = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
settings = Settings(journal=folder / "journal.db", data_dir=folder / "data", models_dir=folder / "models",
                    training_host_url=url)
with open_app(settings=settings) as app:
    app.register(domain)
    print(app.run("model_train", symbols="TEST", timeframe="1d", epochs=epochs).model_dump_json())
"""


async def client(folder, host, epochs):
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", TRAIN, str(folder), host.url, str(epochs), stdout=subprocess.PIPE
    )


def read(folder, query):
    """As a stranger reads it."""
    try:
        with sqlite3.connect(f"file:{folder / 'journal.db'}?mode=ro", uri=True) as connection:
            return [row[0] for row in connection.execute(query)]
    except sqlite3.OperationalError:
        return []


def epochs_in(folder):
    names = [json.loads(row)["name"] for row in read(folder, "SELECT payload FROM events WHERE type='step_completed'")]
    return [name for name in names if name.startswith("epoch")]


async def until_epochs(folder, count):
    async with asyncio.timeout(20):
        while len(epochs_in(folder)) < count:
            await asyncio.sleep(0.01)


async def ended(process):
    out, _ = await asyncio.wait_for(process.communicate(), 40)
    return out


async def prepared(opened, host, tmp_path):
    async with opened(host) as app:
        await publish_series(app, "TEST")
    return tmp_path


def same(result, session, epochs):
    """What an undisturbed training gives."""
    assert result["session_id"] == session.session_id
    assert result["epochs"] == epochs
    assert result["metrics"]["train_loss"] == pytest.approx(1 / epochs)


@pytest.mark.slow
async def test_a_client_killed_twice_leaves_one_session_and_each_epoch_once(opened, tmp_path):
    async with TrainingHost(2, pace=0.1) as host:
        folder = await prepared(opened, host, tmp_path)
        for seen in (2, 4):
            process = await client(folder, host, 15)
            await until_epochs(folder, seen)
            process.kill()
            await ended(process)
        result = json.loads(await ended(await client(folder, host, 15)))
    assert len(host.sessions) == 1
    assert [path for _, path in host.asked].count("/training/start") == 1
    assert epochs_in(folder) == [f"epoch {number}" for number in range(1, 16)]
    same(result, host.session, 15)


async def cli(folder, host, *arguments):
    command = [sys.executable, "-m", "ktrdr_ops", "--journal", str(folder / "journal.db"), *arguments]
    environment = {**os.environ, "TRAINING_HOST_SERVICE_URL": host.url, "HOME": str(folder)}
    return await asyncio.create_subprocess_exec(*command, env=environment, stdout=subprocess.PIPE)


@pytest.mark.slow
async def test_sigterm_leaves_the_session_running_and_recover_takes_its_result(opened, tmp_path):
    async with TrainingHost(2, pace=0.1) as host:
        folder = await prepared(opened, host, tmp_path)
        process = await cli(folder, host, "models", "train", "--symbols", "TEST", "--epochs", "15")
        await until_epochs(folder, 2)
        process.send_signal(signal.SIGTERM)
        await ended(process)
        assert process.returncode == 143
        assert host.session.status == "running"
        recovered = await cli(folder, host, "recover")
        await ended(recovered)
        assert recovered.returncode == 0
    assert len(host.sessions) == 1
    assert epochs_in(folder) == [f"epoch {number}" for number in range(1, 16)]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("generation", [1, 2])
async def test_a_client_killed_at_ten_random_moments_leaves_one_session_and_each_epoch_once(
    opened, tmp_path, generation
):
    moments = random.Random(generation)
    async with TrainingHost(generation, pace=0.25) as host:
        folder = await prepared(opened, host, tmp_path)
        for _ in range(10):
            process = await client(folder, host, 100)
            try:
                await asyncio.wait_for(process.wait(), moments.uniform(0.3, 3.0))
            except TimeoutError:
                process.kill()
            await ended(process)
        assert host.session.status == "running"
        result = json.loads(await ended(await client(folder, host, 100)))
    assert len(host.sessions) == 1
    assert epochs_in(folder) == [f"epoch {number}" for number in range(1, 101)]
    same(result, host.session, 100)
