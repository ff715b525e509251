"""``ktrdr-ops doctor``: whether this machine, these settings and this journal can do the work.

Each check says one thing: ``ok``, ``note`` (works, and should be known) or ``bad`` (does not work), with what to do.
Nothing is made or changed.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from ktrdr_ops.core.errors import HostServiceError, JournalRefused, KtrdrOpsError
from ktrdr_ops.interfaces.cli.frame import CARE, Context, command
from ktrdr_ops.interfaces.cli.journal import size_text
from ktrdr_ops.interfaces.cli.screen import paint, safe

if TYPE_CHECKING:
    from ktrdr_ops.app import AsyncApp
    from ktrdr_ops.settings import Settings

Verdict = Literal["ok", "note", "bad"]

_SIGNS = {"ok": paint("✓", "good"), "note": paint("!", "warn"), "bad": paint("✗", "bad")}
_LITTLE_ROOM = 1 << 30
_NO_ROOM = 64 << 20
_LARGE_LOG = 256 << 20
_HOST_SECONDS = 5.0
_TESTED = {("Linux", "x86_64"), ("Darwin", "arm64")}
_REFUSED, _UNREACHABLE, _USAGE = JournalRefused.exit_code, 5, 2


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, what was found, and (``bad`` only) the exit code that it leads to."""

    name: str
    verdict: Verdict
    detail: str
    hint: str | None = None
    exit_code: int = 0

    def document(self) -> dict[str, str | None]:
        """As ``doctor --json`` prints it."""
        return {"name": self.name, "verdict": self.verdict, "detail": self.detail, "hint": self.hint}


def register(cli: typer.Typer) -> None:
    """Add ``doctor``."""
    command(cli, "doctor", help="Whether everything that is needed is there and works.", panel=CARE)(_doctor)


def _doctor(context: Context) -> int:
    settings = context.settings
    checks = [*_machine(), *_sqlite(), *_domains(), *_folders(settings)]
    if not any(check.name == "SQLite" and check.verdict == "bad" for check in checks):
        checks += _journal(context)
    checks += asyncio.run(_hosts(settings))
    bad = [check for check in checks if check.verdict == "bad"]
    document = {"ok": not bad, "checks": [check.document() for check in checks]}
    width = max(len(check.name) for check in checks)
    context.emit(document, "\n".join(line for check in checks for line in _lines(check, width)))
    return bad[0].exit_code if bad else 0


def _lines(check: Check, width: int) -> Iterator[str]:
    yield f"{_SIGNS[check.verdict]} {check.verdict:<4}  {check.name:<{width}}  {safe(check.detail)}"
    if check.hint:
        yield f"{'':<10}{'':<{width}}{safe(check.hint)}"


def _machine() -> Iterator[Check]:
    version = platform.python_version()
    yield Check("Python", "ok", f"{version} ({sys.executable})")
    system, machine = platform.system(), platform.machine()
    release = platform.release()
    name = f"{system} {machine}" + (", WSL" if "microsoft" in release.lower() else "")
    if (system, machine) in _TESTED:
        yield Check("platform", "ok", name)
    else:
        yield Check("platform", "note", name, "It is tested on Linux x86-64, macOS arm64 and WSL2.")


def _sqlite() -> Iterator[Check]:
    try:
        from ktrdr_ops.core.journal.engine import sqlite
    except JournalRefused as error:
        yield Check("SQLite", "bad", error.message, error.hint, _REFUSED)
        return
    module = sqlite.__name__.partition(".")[0]
    yield Check("SQLite", "ok", f"{sqlite.sqlite_version} ({module}), safe for several writing processes")


def _domains() -> Iterator[Check]:
    from ktrdr_ops.app import installed_domains

    domains = installed_domains()
    types = ", ".join(kind for domain in domains for kind in domain.operation_types)
    if types:
        yield Check("operation types", "ok", types)
    else:
        yield Check("operation types", "note", "none is installed", "pip install --force-reinstall ktrdr-ops")
    for name, why in domains.broken.items():
        yield Check("operation types", "note", f"the domain {name} cannot be loaded: {why}", "See its package.")


def _folders(settings: Settings) -> Iterator[Check]:
    folder = settings.data_dir
    if folder.exists() and not folder.is_dir():
        yield Check("data folder", "bad", f"{folder} is no folder", "Name another: KTRDR_OPS_DATA_DIR", _USAGE)
    elif os.access(_nearest(folder), os.W_OK | os.X_OK):
        yield Check("data folder", "ok", f"{folder}" + ("" if folder.exists() else " (made when it is needed)"))
    else:
        hint = "Check its permissions, or name another: KTRDR_OPS_DATA_DIR"
        yield Check("data folder", "bad", f"{folder} may not be written", hint, 1)


def _nearest(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _journal(context: Context) -> Iterator[Check]:
    path = context.settings.journal
    try:
        from ktrdr_ops.core.journal import engine

        engine.check_file(path, writing=True)
    except KtrdrOpsError as error:
        yield Check("journal", "bad", error.message, error.hint, error.exit_code)
        return
    if path.exists():
        yield from _existing(context, path)
    elif os.access(_nearest(path.parent), os.W_OK | os.X_OK):
        yield Check("journal", "ok", f"{path} (made with the first operation)")
    else:
        yield Check("journal", "bad", f"{path.parent} may not be written", "Name another with --journal.", _REFUSED)
    yield _room(path)


def _existing(context: Context, path: Path) -> Iterator[Check]:
    try:
        found = context.run(_opened, readonly=True)
    except KtrdrOpsError as error:
        yield Check("journal", "bad", error.message, error.hint, error.exit_code)
        return
    yield _version(path, found["schema"])
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        yield Check("permissions", "note", f"others may read the journal ({mode:04o})", f"chmod 600 {path}")
    log = found["wal_size"]
    if log > _LARGE_LOG:
        hint = "A reader that never ends keeps it: look for one that has had the journal open for long."
        yield Check("write-ahead log", "note", f"{size_text(log)}, larger than it should be", hint)
    else:
        yield Check("write-ahead log", "ok", size_text(log))
    yield from _owners(found)


async def _opened(app: AsyncApp) -> dict[str, Any]:
    from ktrdr_ops.core.journal import history
    from ktrdr_ops.core.journal.maintenance import info

    said = await info(app.journal)
    live = [(state, app.journal.status(state), app.journal.stalled(state)) for state in await history.live(app.journal)]
    interrupted = await history.interrupted(app.journal)
    return {**said, "live": live, "interrupted": interrupted}


def _version(path: Path, found: str) -> Check:
    from ktrdr_ops.core.journal import engine, schema

    kind = engine.filesystem_of(os.path.realpath(path))
    where = f"{path}" + (f" on {kind}" if kind else "")
    if schema.is_newer(found):
        hint = "Reading works. To write, upgrade: pip install -U ktrdr-ops"
        return Check("journal", "bad", f"{where}, written by a newer release (schema {found})", hint, _REFUSED)
    if found != schema.HEAD:
        return Check("journal", "note", f"{where}, schema {found}", "It is migrated when it is opened for writing.")
    return Check("journal", "ok", where)


def _owners(found: dict[str, Any]) -> Iterator[Check]:
    for state, status, stalled in found["live"]:
        owner = state.owner or {}
        if status == "interrupted":
            continue
        who = f"{state.operation_id} is {status}" + (f" (process {owner['pid']})" if owner else "")
        if stalled:
            hint = f"Take it over: ktrdr-ops resume --steal {state.operation_id}"
            yield Check("operations", "note", f"{who}, but has been silent for a minute or more", hint)
        else:
            yield Check("operations", "ok", who)
    if found["interrupted"]:
        count = len(found["interrupted"])
        yield Check("operations", "note", f"{count} interrupted", "Go on with what can: ktrdr-ops recover")


def _room(path: Path) -> Check:
    free = shutil.disk_usage(_nearest(path)).free
    detail = f"{size_text(free)} free for the journal"
    if free < _NO_ROOM:
        return Check("room", "bad", detail, "Free some space on that disk.", _REFUSED)
    if free < _LITTLE_ROOM:
        return Check("room", "note", detail, "A long run may need more.")
    return Check("room", "ok", detail)


async def _hosts(settings: Settings) -> list[Check]:
    """The hosts, asked side by side. The second is needed by trainings only."""
    if settings.sandbox:
        return list(await asyncio.gather(*(_sandbox_host(settings, name) for name in ("data", "training"))))
    needed = _host("IB host", settings.ib_host_url, needed=True)
    later = _host("training host", settings.training_host_url, needed=False)
    return list(await asyncio.gather(needed, later))


async def _sandbox_host(settings: Settings, name: str) -> Check:
    from ktrdr_ops.sandbox import announced

    url = announced(settings, name)
    found = None if url is None else await _host(f"embedded {name} host", url, needed=True)
    if found is None or found.verdict == "bad":
        return Check(f"embedded {name} host", "ok", "not running; the next command that needs it starts it")
    return found


async def _host(name: str, url: str, *, needed: bool) -> Check:
    from ktrdr_ops.core.host_service import AsyncHostService

    class Host(AsyncHostService):
        def get_service_name(self) -> str:
            return name

        def get_base_url(self) -> str:
            return url

        def get_health_path(self) -> str:
            return "/health/" if "training" not in name else "/health"

    host = Host(deadline=_HOST_SECONDS, tries=1)
    try:
        answer = await host.check_health()
    except HostServiceError as error:
        hint = "Start it, or name it: IB_HOST_SERVICE_URL. No IB at hand? Add --sandbox." if needed else None
        if needed:
            return Check(name, "bad", error.message, hint, error.exit_code)
        hint = "Start it, or name it: TRAINING_HOST_SERVICE_URL. None at hand? Add --sandbox."
        return Check(name, "note", f"{error.message}; only trainings need it", hint)
    finally:
        await host.aclose()
    return _answered(name, url, answer)


def _answered(name: str, url: str, answer: dict[str, Any]) -> Check:
    gateway = answer.get("ib_status")
    if isinstance(gateway, dict) and not gateway.get("connected"):
        hint = "Start the gateway, or log in to it. Until then nothing that is asked can be answered."
        return Check(name, "bad", f"{url} answers, but its gateway is not connected", hint, _UNREACHABLE)
    if answer.get("healthy") is False:
        return Check(name, "bad", f"{url} says that it is not healthy: {answer.get('error')}", None, _UNREACHABLE)
    return Check(name, "ok", f"{url}" + (", gateway connected" if isinstance(gateway, dict) else ""))
