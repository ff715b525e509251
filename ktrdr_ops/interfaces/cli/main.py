"""The commands, put together."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.main import get_command

from ktrdr_ops.interfaces.cli import frame

HELP = "Long operations on market data that survive: every step is an event in one journal."

ROOMS = (
    "demo",
    "starting",
    "looking",
    "watching",
    "replaying",
    "comparing",
    "tracing",
    "stopping",
    "journal",
    "doctor",
    "config",
    "sandbox",
)
"""The files of this folder that bring commands, in the order of the help; each has ``register(cli)``."""


def build() -> typer.Typer:
    """The whole command line."""
    cli = frame.root(HELP)
    for room in ROOMS:
        importlib.import_module(f"{__package__}.{room}").register(cli)
    return cli


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's); gives the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    logging.getLogger("ktrdr_ops").addHandler(logging.NullHandler())
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    try:
        code = get_command(build()).main(
            args=list(arguments),
            prog_name="ktrdr-ops",
            standalone_mode=False,
            obj=frame.Context(arguments=tuple(arguments)),
        )
    except typer.TyperException as error:
        return frame.usage_error(error, arguments)
    except typer.Abort:
        return 130
    return code if isinstance(code, int) else 0
