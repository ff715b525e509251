"""A load that is killed at any moment and started again ends as an undisturbed one, and asks for nothing twice."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import textwrap

import pytest

from ktrdr_ops.app import open_app_async
from ktrdr_ops.core.journal.history import steps
from ktrdr_ops.core.journal.verify import verify
from ktrdr_ops.core.progress import GenericProgressManager
from ktrdr_ops.core.replay import replay
from ktrdr_ops.settings import load_settings
from tests.hosts.fixtures import data_host

LOAD = textwrap.dedent("""
    import asyncio, json, sys
    from ktrdr_ops.app import open_app_async
    from ktrdr_ops.settings import load_settings
    async def main():
        settings = load_settings({"journal": sys.argv[1]}, environment=json.loads(sys.argv[2]))
        async with open_app_async(settings=settings) as app:
            await app.run("data_load", symbol="GOOG", timeframe="1d", mode="full")
            print(json.dumps((await app.show("@last"))["result"]))
    asyncio.run(main())
""")


def environment(folder, url: str) -> dict[str, str]:
    return {
        "KTRDR_OPS_JOURNAL": str(folder / "journal.db"),
        "KTRDR_OPS_DATA_DIR": str(folder / "data"),
        "KTRDR_OPS_IB_HOST_URL": url,
        "KTRDR_OPS_PACING": "off",
        "KTRDR_OPS_AS_OF": "2013-03-02T00:00:00+00:00",
    }


def command(folder, url: str) -> list[str]:
    return [sys.executable, "-c", LOAD, str(folder / "journal.db"), json.dumps(environment(folder, url))]


async def result_of(folder, url: str) -> dict:
    done = await asyncio.to_thread(
        subprocess.run, command(folder, url), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    result: dict = json.loads(done.stdout)
    return result


async def kill_after_events(folder, url: str, events: int) -> bool:
    """Start the load and kill it when its journal holds so many events; whether it was still running then."""
    process = await asyncio.create_subprocess_exec(
        *command(folder, url), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    settings = load_settings({"journal": str(folder / "journal.db")}, environment={})
    async with asyncio.timeout(60):
        while not settings.journal.exists() and process.returncode is None:
            await asyncio.sleep(0.005)
        while process.returncode is None and await head(folder) < events:
            await asyncio.sleep(0.001)
    if process.returncode is None:
        process.kill()
    return await process.wait() == -signal.SIGKILL


async def head(folder) -> int:
    from ktrdr_ops.core.journal.journal import JournalMissing, open_journal

    try:
        journal = open_journal(folder / "journal.db", readonly=True)
    except JournalMissing:
        return 0
    try:
        return (await journal.head()).position
    finally:
        await journal.aclose()


async def hold(folder, url: str, undisturbed: dict, attempts: int) -> None:
    settings = load_settings({}, environment=environment(folder, url))
    async with open_app_async(settings=settings) as app:
        document = await app.show("@last")
        assert document["status"] == "completed"
        assert document["attempt"] == attempts
        assert document["result"]["sha256"] == undisturbed["sha256"]
        assert document["result"]["rows"] == undisturbed["rows"]
        events = await app.events("@last")
        names = [json.loads(event.payload)["name"] for event in events if event.type == "step_completed"]
        assert len(names) == len(set(names)), "no step ran twice"
        segments = [name for name in await steps(app.journal, document["operation_id"]) if name.startswith("segment")]
        assert len(segments) == undisturbed["segments"]["total"]
        report = await verify(app.journal, objects=app.objects)
        assert report.document()["ok"], report.document()


async def asked_of(url: str) -> int:
    import httpx

    async with httpx.AsyncClient() as client:
        return int((await client.get(f"{url}/health/detailed")).json()["connection_pool_status"]["historical_requests"])


@pytest.mark.slow
async def test_a_load_that_was_killed_twice_ends_as_an_undisturbed_one(tmp_path):
    with data_host(latency=0.03) as url:
        undisturbed = await result_of(tmp_path / "undisturbed", url)
        whole = await asked_of(url)
        folder = tmp_path / "killed"
        folder.mkdir()
        assert await kill_after_events(folder, url, 18)
        assert await kill_after_events(folder, url, 30)
        await result_of(folder, url)
        await hold(folder, url, undisturbed, 3)
        assert await asked_of(url) - whole <= whole + 2, "at most the segment in flight at each kill is asked for again"


@pytest.mark.slow
async def test_a_load_killed_at_any_of_twenty_moments_ends_as_an_undisturbed_one(tmp_path):
    seed = 20_261_124
    random_ = random.Random(seed)
    with data_host(latency=0.02) as url:
        undisturbed = await result_of(tmp_path / "undisturbed", url)
        whole = await asked_of(url)
        again = []
        for turn in range(20):
            before = await asked_of(url)
            folder = tmp_path / str(turn)
            folder.mkdir()
            killed = await kill_after_events(folder, url, random_.randint(1, 38))
            await result_of(folder, url)
            await hold(folder, url, undisturbed, 1 + killed)
            again.append(await asked_of(url) - before - whole)
        print(f"\nseed {seed}: historical requests beyond an undisturbed load's, each kill: {again}")
        assert max(again) <= 1, "only the request in flight may be asked again"


async def test_replay_of_a_load_shows_what_the_live_run_showed(tmp_path):
    with data_host() as url:
        settings = load_settings({}, environment=environment(tmp_path, url))
        live: list = []
        async with open_app_async(settings=settings) as app:
            await app.run("data_load", symbol="GOOG", timeframe="1d", mode="full", progress_callback=live.append)
            again: list = []
            manager = GenericProgressManager(callback=again.append, renderer=app.domains.renderer("data_load"))
            operation_id = (await app.show("@last"))["operation_id"]
            async for _ in replay(app.journal, operation_id, manager):
                pass
        assert [state.message for state in again] == [state.message for state in live]
        assert [state.percentage for state in again] == [state.percentage for state in live]


async def test_plain_sqlite_in_a_process_of_its_own_finds_each_update_of_a_load(tmp_path):
    with data_host() as url:
        settings = load_settings({}, environment=environment(tmp_path, url))
        raw: list = []
        async with open_app_async(settings=settings) as app:
            await app.run("data_load", symbol="GOOG", timeframe="1d", mode="full", progress_callback=raw.append)
            script = textwrap.dedent("""
                import json, sqlite3, sys
                connection = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
                query = "SELECT CAST(payload AS TEXT) FROM events WHERE type = 'progressed' ORDER BY position"
                print(json.dumps([json.loads(payload)["percentage"] for payload, in connection.execute(query)]))
            """)
            read = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", script, str(settings.journal)],
                capture_output=True,
                text=True,
                check=True,
            )
        assert json.loads(read.stdout) == [state.percentage for state in raw[1:-1]]
