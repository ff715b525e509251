"""``ktrdr-ops sandbox``: the embedded hosts by themselves, in the foreground."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.interfaces.cli.frame import CARE, Context, command, group

_LONGEST_LATENCY = 60.0
_LONGEST_PACE = 600.0
_MOST_SESSIONS = 64
_Port = Annotated[int, typer.Option(metavar="N", help="The port on 127.0.0.1 (0: a free one).")]
_IdleExit = Annotated[float | None, typer.Option(metavar="SECONDS", help="End when nobody has asked for so long.")]


def register(cli: typer.Typer) -> None:
    """Add ``sandbox`` with its commands."""
    sandbox = group(cli, "sandbox", help="The embedded hosts by themselves.", panel=CARE)
    command(sandbox, "data", help="Serve sample series, or your own CSV files, as the IB host service does.")(_data)
    command(sandbox, "training", help="Train on the sandbox's series, as the training host service does.")(_training)


def _data(
    context: Context,
    port: _Port = 0,
    latency: Annotated[
        float, typer.Option(metavar="SECONDS", help="Let each historical request take so much longer.")
    ] = 0.0,
    folder: Annotated[Path | None, typer.Option(metavar="FOLDER", help="SYMBOL_timeframe.csv files to serve.")] = None,
    idle_exit: _IdleExit = None,
) -> None:
    """Serve until Ctrl+C. Commands with --sandbox and the same journal use this host while it runs."""
    from ktrdr_ops.hosts.data_host import serve
    from ktrdr_ops.hosts.series import SeriesSource

    if not 0 <= latency <= _LONGEST_LATENCY:
        raise InvalidValue(f"a latency of {latency} seconds cannot be meant", hint=f"0 to {_LONGEST_LATENCY:.0f}")
    series = SeriesSource(folder)
    use = ("data", "load", (series.symbols or ["AAPL"])[0], "1d")
    said = {"latency": latency, "symbols": series.symbols}
    _serve(
        _sandboxed(context),
        "data",
        lambda ready: serve(port, latency=latency, series=series, idle_exit=idle_exit, ready=ready),
        (port, idle_exit),
        said,
        f"serves {', '.join(series.symbols) or 'nothing'}",
        use,
    )


def _training(
    context: Context,
    port: _Port = 0,
    generation: Annotated[int, typer.Option(metavar="1|2", help="Which of the service's two contracts.")] = 2,
    max_sessions: Annotated[int, typer.Option(metavar="N", help="How many may train at a time.")] = 1,
    pace: Annotated[float, typer.Option(metavar="SECONDS", help="Let each epoch take at least so long.")] = 0.0,
    idle_exit: _IdleExit = None,
) -> None:
    """Train until Ctrl+C, which ends what trains. Commands with --sandbox and the same journal use this host."""
    from ktrdr_ops.hosts.training import require_installed

    if generation not in (1, 2):
        raise InvalidValue(f"there is no generation {generation}", hint="1 or 2.")
    if not 1 <= max_sessions <= _MOST_SESSIONS:
        raise InvalidValue(f"{max_sessions} sessions at a time cannot be meant", hint=f"1 to {_MOST_SESSIONS}")
    if not 0 <= pace <= _LONGEST_PACE:
        raise InvalidValue(f"a pace of {pace} seconds cannot be meant", hint=f"0 to {_LONGEST_PACE:.0f}")
    require_installed()
    from ktrdr_ops.hosts.training.host import serve

    context = _sandboxed(context)
    settings = context.settings
    folders: dict[str, Any] = {
        "data_dir": settings.data_dir.resolve(),
        "models_dir": settings.models_dir.resolve(),
    }
    how: dict[str, Any] = {"generation": generation, "max_sessions": max_sessions, "pace": pace}
    _serve(
        context,
        "training",
        lambda ready: serve(port, **folders, **how, idle_exit=idle_exit, ready=ready),
        (port, idle_exit),
        {**how, **{name: str(folder) for name, folder in folders.items()}},
        f"generation {generation}, {max_sessions} at a time",
        ("models", "train", "--symbols", "AAPL,MSFT"),
    )


def _sandboxed(context: Context) -> Context:
    return context if context.sandbox else replace(context, sandbox=True)


def _serve(
    context: Context,
    name: str,
    serve: Callable[[Callable[[int], None]], None],
    limits: tuple[int, float | None],
    said: dict[str, Any],
    words: str,
    use: tuple[str, ...],
) -> None:
    """Serve in the place of the sandbox's host of that name, and say where and how to use it."""
    from ktrdr_ops.hosts.sandbox import refuse_busy, running_host
    from ktrdr_ops.sandbox import announce, folder, stop_hosts

    port, idle_exit = limits
    if not 0 <= port <= 65535:
        raise InvalidValue(f"{port} is no port", hint="One of 0 to 65535; 0 takes a free one.")
    if idle_exit is not None and idle_exit <= 0:
        raise InvalidValue(f"--idle-exit is {idle_exit}; it is a number of seconds above 0")
    running = running_host(name, folder(context.settings))
    if running is not None:
        refuse_busy(name, running, "another")
        stop_hosts(context.settings, name)
        context.say(f"the {name} host that this sandbox had (process {running['pid']}) is ended; this one replaces it")

    def ready(bound: int) -> None:
        announce(context.settings, name, bound, **said)
        url = f"http://127.0.0.1:{bound}"
        context.emit({"url": url, "pid": os.getpid(), **said}, f"{url}  {words}")
        context.say(f"Ctrl+C ends it. Use it: {context.command(*use)}")

    try:
        serve(ready)
    except KeyboardInterrupt:
        context.say("ended")
    except OSError as error:
        why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        raise InvalidValue(f"port {port} {why}", hint="--port 0 takes a free one.") from error
