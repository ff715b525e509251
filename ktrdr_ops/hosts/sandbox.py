"""The sandbox's hosts: each a process of its own that outlives the command which started it.

Its pid and port stand in a state file in the sandbox's folder, where the next command finds it: it is that host if the
answer at the port comes from that pid, and only such a one is ever ended. Commands that start at once agree by a lock
on a file beside it. A host that nobody has asked for ten minutes ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

from ktrdr_ops.core.errors import HostUnavailable
from ktrdr_ops.hosts.training import require_installed

IDLE_EXIT_SECONDS = 600.0
START_SECONDS = 15.0
LOCK_SECONDS = 2 * START_SECONDS
_POLL_SECONDS = 0.02
_ROOT = Path(__file__).parents[2]
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback is never asked through a proxy
HOSTS = ("data", "training")


def ensure_data_host(folder: Path, *, latency: float | None = None, idle_exit: float = IDLE_EXIT_SECONDS) -> str:
    """The base URL of this sandbox's data host: see ``ensure_host``. ``latency`` in seconds."""
    return ensure_host("data", folder, {"latency": latency}, idle_exit=idle_exit)


def ensure_training_host(
    folder: Path,
    *,
    data_dir: Path,
    models_dir: Path,
    generation: int | None = None,
    max_sessions: int | None = None,
    pace: float | None = None,
    idle_exit: float = IDLE_EXIT_SECONDS,
) -> str:
    """The base URL of this sandbox's training host: see ``ensure_host``. ``pace``: seconds that an epoch takes at
    least. Raises HostUnavailable besides where what it computes with is not installed."""
    require_installed()
    folders = {"data_dir": str(data_dir.resolve()), "models_dir": str(models_dir.resolve())}
    how = {"generation": generation, "max_sessions": max_sessions, "pace": pace}
    return ensure_host("training", folder, {**folders, **how}, idle_exit=idle_exit)


def ensure_host(
    name: str,
    folder: Path,
    wanted: Mapping[str, str | float | None],
    *,
    idle_exit: float = IDLE_EXIT_SECONDS,
) -> str:
    """The base URL of this sandbox's host of that name, which is started if it does not answer.

    One that runs otherwise than ``wanted`` (None: any will do) gives way to a new one, unless it has work. Raises
    HostUnavailable when it has, with the end of its log when it does not come up within 15 s, or when another command
    holds the lock for 30 s.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    chosen = {option: value for option, value in wanted.items() if value is not None}
    with _alone(folder / f"{name}-host.lock"):
        state = _running(folder / f"{name}-host.json")
        if state is not None and (other := {one: value for one, value in chosen.items() if state.get(one) != value}):
            refuse_busy(name, state, f"one with {', '.join(f'{one} {value}' for one, value in other.items())}")
            _end(state)
            state = None
        if state is None:
            said = [text for option, value in chosen.items() for text in (f"--{option.replace('_', '-')}", str(value))]
            state = _start(name, folder, said, idle_exit)
    return f"http://127.0.0.1:{state['port']}"


def running_host(name: str, folder: Path) -> dict[str, Any] | None:
    """What the sandbox's host of that name said of itself when it came up, and how many works it has now (``live``);
    None when none answers."""
    return _running(folder / f"{name}-host.json")


def living_host(name: str, folder: Path) -> str | None:
    """The address of the sandbox's host of that name while its process lives; without asking it, so at once."""
    state_file = folder / f"{name}-host.json"
    state = _announced(state_file)
    return None if state is None or not _lives(state_file, state["pid"]) else f"http://127.0.0.1:{state['port']}"


def refuse_busy(name: str, state: Mapping[str, Any], other: str) -> None:
    """Raises HostUnavailable where a running host has work that its end would cut off, for the sake of ``other``."""
    if state["live"]:
        raise HostUnavailable(
            f"the sandbox's {name} host (process {state['pid']}) is at work, {state['live']} at a time:"
            f" it does not give way to {other}",
            hint="Wait for its end or cancel it (ktrdr-ops --sandbox list); another --journal is another sandbox.",
        )


def stop_hosts(folder: Path, names: Sequence[str] = HOSTS) -> int:
    """End the hosts of this sandbox; gives how many there were."""
    return sum(_stopped(name, folder) for name in names) if folder.is_dir() else 0


def _stopped(name: str, folder: Path) -> bool:
    if not (folder / f"{name}-host.json").exists():
        return False
    with _alone(folder / f"{name}-host.lock"):
        state = _running(folder / f"{name}-host.json")
        if state is not None:
            _end(state)
        return state is not None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _locked(descriptor):
            if time.monotonic() > deadline:
                raise HostUnavailable(
                    f"another command has been at the sandbox's host for {LOCK_SECONDS:g} s",
                    hint=f"Is one of them stopped? It holds {path}.",
                )
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def announce(state_file: Path, port: int, said: Mapping[str, Any]) -> None:
    """Say where this process's host is, and hold a lock of its own beside it for as long as this process lives."""
    own = _alive(state_file, os.getpid())
    _held[state_file] = descriptor = os.open(own, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    _locked(descriptor)
    for earlier in set(own.parent.glob(own.name.replace(str(os.getpid()), "*"))) - {own}:
        earlier.unlink(missing_ok=True)
    temporary = state_file.with_suffix(f".{os.getpid()}")
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps({"pid": os.getpid(), "port": port, **said}))
    os.replace(temporary, state_file)


def announce_alone(folder: Path, name: str, port: int, said: Mapping[str, Any]) -> None:
    """``announce`` by a process that no command started: one that is just starting a host goes first."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _alone(folder / f"{name}-host.lock"):
        announce(folder / f"{name}-host.json", port, said)


_held: dict[Path, int] = {}


def _alive(state_file: Path, pid: int) -> Path:
    return state_file.with_suffix(f".{pid}.alive")


def _running(state_file: Path) -> dict[str, Any] | None:
    """What the state file says, if the host that wrote it lives and is not about to end. One that is only silent (it is
    stopped, or has more to do than it can) lives: ``live`` is then 1, since nobody can say that it has no work."""
    state = _announced(state_file)
    if state is None:
        return None
    try:
        with _DIRECT.open(f"http://127.0.0.1:{state['port']}/embedded", timeout=2) as answer:
            said = json.load(answer)
        alive = not said["ending"] and said["pid"] == state["pid"]
    except (OSError, HTTPException) as error:
        refused = isinstance(getattr(error, "reason", error), ConnectionRefusedError)
        return None if refused or not _lives(state_file, state["pid"]) else {**state, "live": 1}
    except (ValueError, LookupError, TypeError):
        return None
    return {**state, "live": said["live"]} if alive else None


def _announced(state_file: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads(state_file.read_text())
        return {**state, "port": int(state["port"]), "pid": int(state["pid"])}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _lives(state_file: Path, pid: int) -> bool:
    """Whether the process that announced itself there still holds its lock."""
    try:
        descriptor = os.open(_alive(state_file, pid), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _locked(descriptor)
    finally:
        os.close(descriptor)


def _start(name: str, folder: Path, options: Sequence[str], idle_exit: float) -> dict[str, Any]:
    state_file = folder / f"{name}-host.json"
    state_file.unlink(missing_ok=True)
    log = folder / f"{name}-host.log"
    everywhere = ["--state-file", str(state_file), "--idle-exit", str(idle_exit)]
    log.touch(mode=0o600)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ktrdr_ops.hosts", name, *everywhere, *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))},
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        state = _running(state_file) if state_file.exists() else None
        if state is not None and state["pid"] == process.pid:
            process.returncode = 0  # it outlives this process on purpose: no warning that it still runs
            return state
        time.sleep(_POLL_SECONDS)
    process.kill()
    process.wait()
    tail = log.read_text(errors="replace")[-2000:]
    raise HostUnavailable(f"the embedded {name} host did not start:\n{tail}", hint=f"Its log: {log}")


def _end(state: dict[str, Any]) -> None:
    """SIGTERM, and wait until its port is free."""
    with suppress(ProcessLookupError):
        os.kill(int(state["pid"]), signal.SIGTERM)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            with _DIRECT.open(f"http://127.0.0.1:{state['port']}/embedded", timeout=1):
                time.sleep(_POLL_SECONDS)
        except (OSError, HTTPException):
            return
