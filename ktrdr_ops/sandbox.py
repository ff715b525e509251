"""The sandbox: embedded hosts of its own, found by all its commands, and nothing of the real store.

Law: the embedded hosts' addresses get into the settings here and nowhere else, and only of a sandbox, so that sample
data cannot get into a real store.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ktrdr_ops.settings import Settings

ORIGIN = "sandbox"


def prepared(settings: Settings, hosts: Sequence[str] = ("ib_host_url",), **wanted: Any) -> Settings:
    """The settings with the addresses of this sandbox's hosts, each of which is started if it does not run; settings
    of no sandbox as they are. Waits until they answer, a second or two. Raises HostUnavailable when one does not come
    up.

    ``hosts`` are the settings that name them. ``wanted``: how they are to run (``latency``, ``pace``, ``generation``,
    ``max_sessions``); what is not said takes the host that runs as it is.
    """
    if not settings.sandbox:
        return settings
    urls: dict[str, Any] = {name: _HOSTS[name](settings, wanted) for name in hosts if name in _HOSTS}
    return replace(settings, **urls, origins={**settings.origins, **dict.fromkeys(urls, ORIGIN)})


def _data(settings: Settings, wanted: Mapping[str, Any]) -> str:
    from ktrdr_ops.hosts.sandbox import ensure_data_host

    return ensure_data_host(folder(settings), latency=wanted.get("latency"))


def _training(settings: Settings, wanted: Mapping[str, Any]) -> str:
    from ktrdr_ops.hosts.sandbox import ensure_training_host

    chosen: dict[str, Any] = {name: wanted.get(name) for name in ("generation", "max_sessions", "pace")}
    return ensure_training_host(folder(settings), data_dir=settings.data_dir, models_dir=settings.models_dir, **chosen)


_HOSTS: dict[str, Callable[[Settings, Mapping[str, Any]], str]] = {
    "ib_host_url": _data,
    "training_host_url": _training,
}


def moved(settings: Settings, hosts: Sequence[str]) -> bool:
    """Whether a host of the sandbox that these settings name has ended, or another took its place."""
    from ktrdr_ops.hosts.sandbox import living_host

    return settings.sandbox and any(
        getattr(settings, name) != living_host(_NAMES[name], folder(settings)) for name in hosts if name in _NAMES
    )


def address(settings: Settings, name: str) -> str:
    """Where the host service of this setting is now: of a sandbox, where its host says that it is while it lives."""
    from ktrdr_ops.hosts.sandbox import living_host

    living = living_host(_NAMES[name], folder(settings)) if settings.sandbox and name in _NAMES else None
    return living or str(getattr(settings, name))


_NAMES = {"ib_host_url": "data", "training_host_url": "training"}


def addresses(settings: Settings) -> dict[str, str | None]:
    """What the settings that name hosts stand for in this sandbox: the hosts that run now; None for one that is started
    when it is needed."""
    from ktrdr_ops.hosts.sandbox import living_host

    return {name: living_host(host, folder(settings)) for name, host in _NAMES.items()}


def folder(settings: Settings) -> Path:
    """Where the sandbox's hosts say where they are: beside its journal."""
    return settings.journal.parent


def stop_hosts(settings: Settings, *names: str) -> int:
    """End the hosts that this sandbox started (default: all); gives how many there were."""
    from ktrdr_ops.hosts.sandbox import HOSTS, stop_hosts

    return stop_hosts(folder(settings), names or HOSTS)


def announced(settings: Settings, name: str = "data") -> str | None:
    """The address that the sandbox's host of that name last said it has. Whether it still runs is for the caller to
    ask."""
    try:
        return f"http://127.0.0.1:{int(json.loads((folder(settings) / f'{name}-host.json').read_text())['port'])}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def announce(settings: Settings, name: str, port: int, **said: Any) -> None:
    """Let the sandbox's commands find a host that this process runs, instead of any other."""
    from ktrdr_ops.hosts.sandbox import announce_alone

    announce_alone(folder(settings), name, port, said)
