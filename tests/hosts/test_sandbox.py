"""A host that outlives the command which started it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import httpx
import pytest

from ktrdr_ops.core.errors import HostUnavailable
from ktrdr_ops.hosts.sandbox import ensure_data_host, stop_hosts

START = "import sys; from pathlib import Path; from ktrdr_ops.hosts.sandbox import ensure_data_host; "


@pytest.fixture
def folder(tmp_path):
    yield tmp_path / "sandbox"
    stop_hosts(tmp_path / "sandbox")


def pid_of(folder) -> int:
    return int(json.loads((folder / "data-host.json").read_text())["pid"])


def gone(pid: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            os.waitpid(pid, os.WNOHANG)
        except (ProcessLookupError, ChildProcessError):
            if not os.path.exists(f"/proc/{pid}"):
                return True
        time.sleep(0.02)
    return False


def test_four_commands_at_once_share_one_host_that_outlives_them(folder):
    code = START + "print(ensure_data_host(Path(sys.argv[1])))"
    commands = [
        subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    urls = {command.communicate(timeout=30)[0].strip() for command in commands}
    assert len(urls) == 1
    assert httpx.get(f"{urls.pop()}/health").json()["healthy"]


def test_the_next_command_finds_it_and_another_latency_replaces_it(folder):
    first = ensure_data_host(folder)
    assert ensure_data_host(folder) == first
    pid = pid_of(folder)
    ensure_data_host(folder, latency=0.01)
    assert gone(pid)
    assert pid_of(folder) != pid


def test_one_that_was_killed_is_started_again(folder):
    first = ensure_data_host(folder)
    os.kill(pid_of(folder), 9)
    assert gone(pid_of(folder))
    assert httpx.get(f"{ensure_data_host(folder)}/health").status_code == 200
    assert first


def test_a_proxy_of_the_environment_is_not_asked(folder, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert ensure_data_host(folder) == ensure_data_host(folder)


def test_a_state_file_that_says_nonsense_is_replaced(folder):
    folder.mkdir()
    (folder / "data-host.json").write_text('{"pid": 1, "port": "no port", "latency": 0}')
    assert httpx.get(f"{ensure_data_host(folder)}/health").status_code == 200


def test_an_idle_one_ends(folder):
    ensure_data_host(folder, idle_exit=0.3)
    assert gone(pid_of(folder))


def test_one_that_cannot_start_is_reported_with_its_log(folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(HostUnavailable, match="did not start") as raised:
        ensure_data_host(folder)
    assert "data-host.log" in str(raised.value.hint)


def test_stopping_what_is_not_there_is_no_error(tmp_path):
    assert stop_hosts(tmp_path / "none") == 0
