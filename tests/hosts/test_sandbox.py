"""A host that outlives the command which started it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from ktrdr_ops.core.errors import HostUnavailable
from ktrdr_ops.hosts import sandbox
from ktrdr_ops.hosts.sandbox import (
    ensure_data_host,
    ensure_training_host,
    living_host,
    running_host,
    stop_hosts,
)
from tests.hosts.fixtures import sample_series

START = "import sys; from pathlib import Path; from ktrdr_ops.hosts.sandbox import ensure_data_host; "


@pytest.fixture
def folder(tmp_path):
    yield tmp_path / "sandbox"
    stop_hosts(tmp_path / "sandbox")


def pid_of(folder, name: str = "data") -> int:
    return int(json.loads((folder / f"{name}-host.json").read_text())["pid"])


def training_host_of(folder, **wanted) -> str:
    return ensure_training_host(folder, data_dir=folder / "data", models_dir=folder / "models", **wanted)


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


def test_what_it_writes_is_its_users_alone(folder):
    ensure_data_host(folder)
    assert {path.name: path.stat().st_mode & 0o077 for path in folder.iterdir() if path.stat().st_mode & 0o077} == {}


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


def test_the_host_of_another_sandbox_at_the_port_is_neither_used_nor_ended(folder, tmp_path):
    other = tmp_path / "other"
    try:
        theirs = ensure_data_host(other)
        state = json.loads((other / "data-host.json").read_text())
        bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        folder.mkdir()
        (folder / "data-host.json").write_text(json.dumps({**state, "pid": bystander.pid}))
        assert stop_hosts(folder) == 0
        assert ensure_data_host(folder, latency=0.01) != theirs
        assert httpx.get(f"{theirs}/health").status_code == 200
        assert bystander.poll() is None
        bystander.communicate(b"\n")
    finally:
        stop_hosts(other)


@pytest.mark.parametrize("answer", [b"SSH-2.0\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"])
def test_something_else_at_the_port_is_not_taken_for_the_host(folder, answer):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]

        def reply() -> None:
            connection, _ = stranger.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=reply, daemon=True)
        thread.start()
        folder.mkdir()
        (folder / "data-host.json").write_text(json.dumps({"pid": os.getpid(), "port": port, "latency": 0.0}))
        assert not ensure_data_host(folder).endswith(f":{port}")
        thread.join(5)


def test_a_lock_that_is_never_released_is_named(folder, monkeypatch):
    monkeypatch.setattr(sandbox, "LOCK_SECONDS", 0.1)
    folder.mkdir()
    with (folder / "data-host.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(HostUnavailable, match="another command") as raised:
            ensure_data_host(folder)
    assert "data-host.lock" in str(raised.value.hint)


def test_it_starts_from_a_checkout_that_only_the_working_folder_leads_to(folder, monkeypatch):
    root = Path(sandbox.__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", ".")
    command = [sys.executable, "-c", START + "print(ensure_data_host(Path(sys.argv[1])))", str(folder)]
    assert subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.startswith("http://")


@pytest.mark.slow
def test_an_idle_one_ends(folder):
    ensure_data_host(folder, idle_exit=2.0)
    assert gone(pid_of(folder))


def test_one_that_cannot_start_is_reported_with_its_log(folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(HostUnavailable, match="did not start") as raised:
        ensure_data_host(folder)
    assert "data-host.log" in str(raised.value.hint)


def test_stopping_what_is_not_there_is_no_error(tmp_path):
    assert stop_hosts(tmp_path / "none") == 0


# Two hosts


@pytest.mark.slow
def test_each_host_is_found_replaced_and_ended_by_itself(folder):
    data, training = ensure_data_host(folder), training_host_of(folder, pace=0.5)
    assert httpx.get(f"{training}/health").json()["worker_status"] == "idle"
    assert training_host_of(folder) == training, "any will do"
    pid = pid_of(folder, "training")
    first = training_host_of(folder, generation=1)
    assert gone(pid)
    assert "worker_status" not in httpx.get(f"{first}/health").json()
    assert ensure_data_host(folder) == data
    assert stop_hosts(folder, ["training"]) == 1
    assert running_host("training", folder) is None
    assert stop_hosts(folder) == 1


@pytest.mark.slow
def test_a_training_host_over_other_folders_is_another(folder, tmp_path):
    training_host_of(folder)
    pid = pid_of(folder, "training")
    ensure_training_host(folder, data_dir=tmp_path / "elsewhere", models_dir=folder / "models")
    assert pid_of(folder, "training") != pid


@pytest.mark.slow
def test_a_host_at_work_does_not_give_way_to_another(folder):
    sample_series(folder / "data", "AAPL", since="2011")
    url = training_host_of(folder, pace=0.2)
    body = {"session_id": "s", "strategy_yaml": "model: {}", "symbols": ["AAPL"], "timeframes": ["1d"]}
    assert httpx.post(f"{url}/training/start", json=body).status_code == 200
    with pytest.raises(HostUnavailable, match=r"at work, 1 at a time: it does not give way to one with pace 0\.1"):
        training_host_of(folder, pace=0.1)
    assert training_host_of(folder, pace=0.2) == url
    assert stop_hosts(folder) == 1, "who says so ends it all the same"


def test_what_the_training_host_computes_with_is_named_where_it_is_missing(folder, monkeypatch):
    monkeypatch.setattr("ktrdr_ops.hosts.training.NEEDS", ("jax", "no_such_package"))
    with pytest.raises(HostUnavailable, match="needs no_such_package, which") as raised:
        training_host_of(folder)
    assert raised.value.hint == "pip install 'ktrdr-ops[training]'"


def test_the_data_host_and_who_starts_a_host_load_nothing_that_trains():
    code = "import sys; import ktrdr_ops.hosts.data_host, ktrdr_ops.hosts.sandbox; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert {"jax", "optax", "safetensors", "pandas"} & set(ran.stdout.split()) == set()


@pytest.mark.slow
def test_a_host_that_is_silent_but_lives_is_not_replaced(folder):
    url, pid = ensure_data_host(folder), pid_of(folder)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert ensure_data_host(folder) == url
        assert pid_of(folder) == pid
        with pytest.raises(HostUnavailable, match="is at work"):
            ensure_data_host(folder, latency=0.5)
    finally:
        os.kill(pid, signal.SIGCONT)
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    ensure_data_host(folder)  # the lock of one that was killed is free
    assert pid_of(folder) != pid


@pytest.mark.slow
def test_a_host_that_ends_slowly_does_not_speak_for_the_one_that_took_its_place(folder):
    ensure_data_host(folder)
    slow = pid_of(folder)
    os.kill(slow, signal.SIGSTOP)
    (folder / "data-host.json").unlink()
    try:
        ensure_data_host(folder)
        pid = pid_of(folder)
    finally:
        os.kill(slow, signal.SIGKILL)
    assert gone(slow)
    os.kill(pid, signal.SIGSTOP)
    try:
        state = running_host("data", folder)
        assert state is not None
        assert state["pid"] == pid
        assert living_host("data", folder) is not None
    finally:
        os.kill(pid, signal.SIGCONT)
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    assert living_host("data", folder) is None
