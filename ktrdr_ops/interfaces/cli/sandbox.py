"""``ktrdr-ops sandbox``: the embedded hosts by themselves, in the foreground."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Annotated

import typer

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.interfaces.cli.frame import CARE, Context, command, group

_LONGEST_LATENCY = 60.0


def register(cli: typer.Typer) -> None:
    """Add ``sandbox`` with its commands."""
    sandbox = group(cli, "sandbox", help="The embedded hosts by themselves.", panel=CARE)
    command(sandbox, "data", help="Serve sample series, or your own CSV files, as the IB host service does.")(_data)


def _data(
    context: Context,
    port: Annotated[int, typer.Option(metavar="N", help="The port on 127.0.0.1 (0: a free one).")] = 0,
    latency: Annotated[
        float, typer.Option(metavar="SECONDS", help="Let each historical request take so much longer.")
    ] = 0.0,
    folder: Annotated[Path | None, typer.Option(metavar="FOLDER", help="SYMBOL_timeframe.csv files to serve.")] = None,
    idle_exit: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="End when nobody has asked for so long.")
    ] = None,
) -> None:
    """Serve until Ctrl+C. Commands with --sandbox and the same journal use this host while it runs."""
    from dataclasses import replace

    from ktrdr_ops.hosts.data_host import serve
    from ktrdr_ops.hosts.series import SeriesSource
    from ktrdr_ops.sandbox import announce, stop_hosts

    if not 0 <= port <= 65535:
        raise InvalidValue(f"{port} is no port", hint="One of 0 to 65535; 0 takes a free one.")
    if not 0 <= latency <= _LONGEST_LATENCY:
        raise InvalidValue(f"a latency of {latency} seconds cannot be meant", hint=f"0 to {_LONGEST_LATENCY:.0f}")
    if idle_exit is not None and idle_exit <= 0:
        raise InvalidValue(f"--idle-exit is {idle_exit}; it is a number of seconds above 0")
    context = context if context.sandbox else replace(context, sandbox=True)
    series = SeriesSource(folder)
    stop_hosts(context.settings)

    def ready(bound: int) -> None:
        announce(context.settings, bound, latency)
        url = f"http://127.0.0.1:{bound}"
        document = {"url": url, "pid": os.getpid(), "latency": latency, "symbols": series.symbols}
        context.emit(document, f"{url}  serves {', '.join(series.symbols) or 'nothing'}")
        context.say(f"Ctrl+C ends it. Use it: {context.command('data', 'load', (series.symbols or ['AAPL'])[0], '1d')}")

    try:
        serve(port, latency=latency, series=series, idle_exit=idle_exit, ready=ready)
    except KeyboardInterrupt:
        context.say("ended")
    except OSError as error:
        why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        raise InvalidValue(f"port {port} {why}", hint="--port 0 takes a free one.") from error
