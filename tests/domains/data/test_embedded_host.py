"""Loads of the shipped series, through the embedded host in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from ktrdr_ops.app import open_app_async
from ktrdr_ops.core.errors import KtrdrOpsError
from ktrdr_ops.domains.data import domain
from ktrdr_ops.domains.data.engine.errors import UnknownSymbol
from ktrdr_ops.settings import Settings

LOAD = """
import sys
from pathlib import Path
from ktrdr_ops.app import open_app
from ktrdr_ops.domains.data import domain
from ktrdr_ops.settings import Settings
folder = Path(sys.argv[1])
settings = Settings(journal=folder / "journal.db", data_dir=folder / "data", ib_host_url=sys.argv[2], pacing=False,
                    as_of="2013-03-02T00:00:00+00:00")
with open_app(settings=settings) as app:
    app.register(domain)
    print(app.run("data_load", symbol="GOOG", timeframe="1d").attrs["load"]["sha256"])
"""


def start_host(folder, latency):
    state = folder / "host.json"
    command = [sys.executable, "-m", "ktrdr_ops.hosts", "data", "--latency", str(latency), "--state-file", str(state)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return process, f"http://127.0.0.1:{json.loads(state.read_text())['port']}"


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    process, url = start_host(tmp_path_factory.mktemp("host"), 0.05)
    yield url
    process.terminate()
    process.wait(10)


@pytest.fixture
def settings(tmp_path, embedded):
    return Settings(
        journal=tmp_path / "journal.db",
        data_dir=tmp_path / "data",
        ib_host_url=embedded,
        pacing=False,
        as_of="2013-03-02T00:00:00+00:00",
    )


async def test_the_shipped_series_load_as_a_group_without_a_gap(settings):
    names = ("AAPL", "MSFT", "IBM")
    async with open_app_async(settings=settings) as app:
        app.register(domain)
        children = [{"type": "data_load", "parameters": {"symbol": name, "timeframe": "1d"}} for name in names]
        await app.run("group", children=children)
        results = [(await app.show(f"data_load_{name}_1d"))["result"] for name in names]
    assert [result["rows"] for result in results] == [3270] * 3
    assert [result["segments"]["fetched"] for result in results] == [14] * 3
    assert [result["gaps"]["periods"] for result in results] == [0] * 3
    splits = [each["date"] for each in results[0]["quality"]["split_like"]]
    assert {"2000-06-21", "2005-02-28"} <= set(splits)


async def test_what_the_embedded_host_does_not_have_is_a_clear_error(settings):
    async with open_app_async(settings=settings) as app:
        app.register(domain)
        with pytest.raises(UnknownSymbol, match="NOPE"):
            await app.run("data_load", symbol="NOPE", timeframe="1d")
        with pytest.raises(KtrdrOpsError, match="AAPL 1h"):
            await app.run("data_load", symbol="AAPL", timeframe="1h")
        with pytest.raises(KtrdrOpsError, match="no 1h bars of AAPL, only 1d"):
            await app.run("data_load", symbol="AAPL", timeframe="1h", start="2012-01-01")


def segments_in(journal) -> list[str]:
    """Read as a stranger does."""
    try:
        with sqlite3.connect(f"file:{journal}?mode=ro", uri=True) as connection:
            rows = connection.execute("SELECT payload FROM events WHERE type = 'step_completed'").fetchall()
    except sqlite3.OperationalError:
        return []
    names = [json.loads(payload)["name"] for (payload,) in rows]
    return [name for name in names if name.startswith("segment:")]


def run_load(folder, url):
    return subprocess.Popen([sys.executable, "-c", LOAD, str(folder), url], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_load_killed_after_its_fifth_segment_ends_with_the_same_hash_and_asks_for_nothing_twice(tmp_path, embedded):
    undisturbed = run_load(tmp_path / "undisturbed", embedded)
    folder = tmp_path / "killed"
    killed = run_load(folder, embedded)
    deadline = time.monotonic() + 30
    while len(segments_in(folder / "journal.db")) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    kept = segments_in(folder / "journal.db")
    assert 5 <= len(kept) < 9
    sha, _ = run_load(folder, embedded).communicate(timeout=50)
    assert sha == undisturbed.communicate(timeout=50)[0]
    assert len(sha.strip()) == 64
    steps = segments_in(folder / "journal.db")
    assert steps[: len(kept)] == kept
    assert len(steps) == len(set(steps)) == 9
    with sqlite3.connect(f"file:{folder / 'journal.db'}?mode=ro", uri=True) as connection:
        [result] = connection.execute("SELECT payload FROM events WHERE type = 'completed'").fetchone()
    assert json.loads(result)["result"]["requests"] == 9


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_load_killed_at_any_of_twenty_random_moments_ends_with_the_same_hash(tmp_path, embedded):
    whole, _ = run_load(tmp_path / "undisturbed", embedded).communicate(timeout=60)
    moments = random.Random(3)
    for number in range(20):
        folder = tmp_path / str(number)
        killed = run_load(folder, embedded)
        with contextlib.suppress(subprocess.TimeoutExpired):
            killed.communicate(timeout=moments.uniform(0.2, 2.5))
        killed.kill()
        killed.communicate()
        kept = segments_in(folder / "journal.db")
        sha, _ = run_load(folder, embedded).communicate(timeout=60)
        assert sha == whole
        steps = segments_in(folder / "journal.db")
        assert steps[: len(kept)] == kept
        assert len(steps) == len(set(steps)) == 9


async def test_a_cancelled_load_keeps_its_segments_and_another_process_goes_on(settings):
    async with open_app_async(settings=settings) as app:
        app.register(domain)
        task = asyncio.create_task(app.run("data_load", symbol="AAPL", timeframe="1d"))
        async for event in app.journal.tail():
            if event.type == "step_completed" and event.fact.name.startswith("segment:"):
                break
        await app.cancel("@last")
        with pytest.raises(KtrdrOpsError, match="cancelled"):
            await task
    async with open_app_async(settings=replace(settings)) as app:
        app.register(domain)
        loaded = await app.run("data_load", symbol="AAPL", timeframe="1d")
    assert loaded.attrs["load"]["rows"] == 3270
    assert loaded.attrs["load"]["requests"] == 14
