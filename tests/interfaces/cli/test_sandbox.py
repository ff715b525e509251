"""The sandbox from the command line: its host is found by its commands, and gets into nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import httpx
import pytest

from ktrdr_ops.app import open_app, open_app_async
from ktrdr_ops.hosts.sandbox import living_host, stop_hosts
from ktrdr_ops.interfaces.cli.main import main
from ktrdr_ops.sandbox import announce, announced, prepared
from ktrdr_ops.settings import load_settings
from tests.hosts.fixtures import sample_series


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("KTRDR_OPS_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("IB_HOST_SERVICE_URL", "http://127.0.0.1:9")
    yield tmp_path
    stop_hosts(tmp_path)


def settings(home, **more):
    return load_settings({"journal": home / "journal.db", **more})


@contextmanager
def serving(home, *options: str, host: str = "data"):
    """A host in the foreground of a process of its own; gives it, and what it said when it was ready."""
    command = [sys.executable, "-m", "ktrdr_ops", "--journal", str(home / "journal.db"), "sandbox", host, "--json"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = ""
    while not said.rstrip().endswith("}"):
        line = process.stdout.readline()
        assert line, process.communicate()
        said += line
    try:
        yield process, json.loads(said)
    finally:
        process.kill()
        process.communicate()


def health(url: str) -> dict:
    with urllib.request.urlopen(f"{url}/health/detailed", timeout=5) as answer:
        found: dict = json.load(answer)
        return found


def test_settings_of_no_sandbox_stay_as_they_are(home):
    plain = settings(home)
    assert prepared(plain) is plain
    assert list(home.iterdir()) == []


def test_a_sandbox_gets_its_own_host_whatever_the_users_is(home):
    before = settings(home, sandbox=True)
    after = prepared(before, latency=0.0)
    assert before.ib_host_url == "http://127.0.0.1:9"
    assert after.origin("ib_host_url") == "sandbox"
    assert health(after.ib_host_url)["connection_pool_status"]["embedded"]
    assert announced(after) == after.ib_host_url
    assert prepared(before).ib_host_url == after.ib_host_url, "the next command finds it"


def test_a_state_file_that_is_none_is_passed_over(home):
    assert announced(settings(home, sandbox=True)) is None
    for content in ("", "[]", "{}", '{"port": "x"}'):
        (home / "data-host.json").write_text(content)
        assert announced(settings(home, sandbox=True)) is None
    (home / "data-host.json").unlink()


async def test_an_app_that_stays_open_starts_its_host_again_and_is_not_held_up_by_it(home):
    waits = []

    async def beat():
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            waits.append(time.monotonic() - last)
            last = time.monotonic()

    async with open_app_async(settings=settings(home, sandbox=True)) as app:
        beating = asyncio.create_task(beat())
        for symbol in ("AAPL", "MSFT"):
            began = time.monotonic()
            await app.run("data_load", symbol=symbol, timeframe="1d", start="2012-01-01", end="2012-06-01")
            assert max(waits) < (time.monotonic() - began) / 2
            os.kill(json.loads((home / "data-host.json").read_text())["pid"], signal.SIGKILL)
            while living_host("data", home) is not None:
                await asyncio.sleep(0.01)
            waits.clear()
        beating.cancel()


def test_looking_at_a_sandbox_starts_no_host(home):
    with open_app(home / "journal.db", sandbox=True) as app:
        assert app.sql("SELECT count(*) FROM v_operations") == [(0,)]
    assert main(["--journal", str(home / "journal.db"), "--sandbox", "list"]) == 0
    assert not (home / "data-host.json").exists()


def test_a_host_in_the_foreground_is_the_one_that_commands_use(home, capsys):
    with serving(home, "--latency", "0.01") as (process, said):
        assert said["symbols"] == ["AAPL", "GOOG", "IBM", "MSFT"]
        assert said["pid"] == process.pid
        assert main(["--journal", str(home / "journal.db"), "--sandbox", "data", "load", "GOOG", "1d", "--json"]) == 0
        load = json.loads(capsys.readouterr().out)
        assert load["result"]["source"].endswith(said["url"])
        assert health(said["url"])["total_requests"] >= load["result"]["requests"]
        assert main(["--journal", str(home / "journal.db"), "--sandbox", "doctor", "--json"]) == 0
        checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
        assert checks["embedded data host"]["detail"] == f"{said['url']}, gateway connected"


@pytest.mark.slow
def test_a_training_host_in_the_foreground_is_the_one_that_trainings_use(home):
    mine = settings(home, sandbox=True)
    with serving(home, "--generation", "1", "--max-sessions", "3", "--pace", "0.01", host="training") as (_, said):
        assert (said["generation"], said["max_sessions"], said["pace"]) == (1, 3, 0.01)
        ready = prepared(mine, ("training_host_url",))
        assert ready.training_host_url == said["url"] == announced(mine, "training")
        assert ready.ib_host_url == mine.ib_host_url, "only what was named is started"
        assert ready.origin("training_host_url") == "sandbox"
        with urllib.request.urlopen(f"{said['url']}/health", timeout=5) as answer:
            assert "gpu_status" in json.load(answer)


@pytest.mark.parametrize("host", ["data", pytest.param("training", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_one_in_the_foreground_says_that_it_replaces_the_one_that_runs(home, host):
    with serving(home, host=host) as (first, _), serving(home, host=host) as (second, said):
        first.communicate(timeout=20)
        assert first.returncode in (0, 143)
        second.send_signal(signal.SIGINT)
        _, err = second.communicate(timeout=20)
        assert f"the {host} host that this sandbox had (process {first.pid}) is ended; this one replaces it" in err
        assert said["pid"] == second.pid


def test_a_training_host_at_work_is_not_replaced(home, capsys):
    mine = settings(home, sandbox=True)
    sample_series(mine.data_dir, "AAPL", since="2011")
    url = prepared(mine, ("training_host_url",), pace=0.2).training_host_url
    body = {"strategy_yaml": "model: {}", "symbols": ["AAPL"], "timeframes": ["1d"]}
    assert httpx.post(f"{url}/training/start", json=body).status_code == 200
    assert main(["--journal", str(home / "journal.db"), "sandbox", "training", "--json"]) == 5
    assert "at work" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert httpx.get(f"{url}/health").json()["worker_status"] == "busy"


def test_ctrl_c_ends_a_host_in_the_foreground_without_complaint(home):
    with serving(home) as (process, _):
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in err


def test_it_serves_the_users_own_files(home):
    (home / "mine").mkdir()
    rows = "date,open,high,low,close,volume\n2020-01-02,1,2,0.5,1.5,100\n"
    (home / "mine" / "TEST_1d.csv").write_text(rows)
    with serving(home, "--folder", str(home / "mine")) as (_, said):
        assert said["symbols"] == ["TEST"]


def test_a_host_that_nobody_asks_ends_by_itself(home):
    with serving(home, "--idle-exit", "0.2") as (process, _):
        process.communicate(timeout=20)
    assert process.returncode == 0


def test_after_its_end_the_next_command_starts_another(home):
    gone = settings(home, sandbox=True)
    announce(gone, "data", 9, latency=0.0)
    assert announced(gone) == "http://127.0.0.1:9"
    assert prepared(gone).ib_host_url != "http://127.0.0.1:9"


@pytest.mark.parametrize(
    "options",
    [("--port", "70000"), ("--latency", "-1"), ("--latency", "nan"), ("--idle-exit", "0"), ("--folder", "/nowhere")],
)
def test_options_that_cannot_be_meant_are_refused(home, capsys, options):
    assert main(["--journal", str(home / "journal.db"), "sandbox", "data", *options, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "invalid_value"


@pytest.mark.parametrize(
    "options", [("--generation", "3"), ("--max-sessions", "0"), ("--pace", "-1"), ("--idle-exit", "0")]
)
def test_options_of_a_training_host_that_cannot_be_meant_are_refused(home, capsys, options):
    assert main(["--journal", str(home / "journal.db"), "sandbox", "training", *options, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "invalid_value"


def test_a_port_that_is_taken_is_refused(home):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [
            sys.executable,
            "-m",
            "ktrdr_ops",
            "--journal",
            str(home / "j.db"),
            "sandbox",
            "data",
            "--port",
            port,
        ]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ran.returncode == 2
    assert f"port {port} is taken" in ran.stderr
