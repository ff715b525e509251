"""The sandbox: an embedded data host of its own, found by all its commands, and nothing of the real store.

Law: the embedded host's address gets into the settings here and nowhere else, and only of a sandbox, so that sample
data cannot get into a real store.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ktrdr_ops.settings import Settings

ORIGIN = "sandbox"


def prepared(settings: Settings, hosts: Sequence[str] = ("ib_host_url",), *, latency: float | None = None) -> Settings:
    """The settings with the address of this sandbox's data host, which is started if it does not run; others as they
    are. Waits until it answers, about a second. Raises HostUnavailable when it does not come up.

    ``latency``: seconds that each of its answers takes longer; None takes the host that runs as it is.
    """
    if not settings.sandbox or "ib_host_url" not in hosts:
        return settings
    from ktrdr_ops.hosts.sandbox import ensure_data_host

    url = ensure_data_host(folder(settings), latency=latency)
    return replace(settings, ib_host_url=url, origins={**settings.origins, "ib_host_url": ORIGIN})


def folder(settings: Settings) -> Path:
    """Where the sandbox's hosts say where they are: beside its journal."""
    return settings.journal.parent


def stop_hosts(settings: Settings) -> None:
    """End the hosts that this sandbox started."""
    from ktrdr_ops.hosts.sandbox import stop_hosts

    stop_hosts(folder(settings))


def announced(settings: Settings) -> str | None:
    """The address that the sandbox's data host last said it has. Whether it still runs is for the caller to ask."""
    try:
        return f"http://127.0.0.1:{int(json.loads(_state_file(settings).read_text())['port'])}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def announce(settings: Settings, port: int, latency: float) -> None:
    """Let the sandbox's commands find a data host that this process runs, instead of any other."""
    state_file = _state_file(settings)
    state_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(state_file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # a command that is just starting a host holds it
        temporary = state_file.with_suffix(f".{os.getpid()}")
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps({"pid": os.getpid(), "port": port, "latency": latency}))
        os.replace(temporary, state_file)
    finally:
        os.close(descriptor)


def _state_file(settings: Settings) -> Path:
    return folder(settings) / "data-host.json"
