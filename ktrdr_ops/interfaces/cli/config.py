"""``ktrdr-ops config``: each setting, its value, and what said so."""

from __future__ import annotations

import typer

from ktrdr_ops.interfaces.cli.frame import CARE, Context, command
from ktrdr_ops.interfaces.cli.screen import paint, safe


def register(cli: typer.Typer) -> None:
    """Add ``config``."""
    command(cli, "config", help="Each setting with its value and where that comes from.", panel=CARE)(_config)


def _config(context: Context) -> None:
    from ktrdr_ops.settings import describe

    document = context.settings.document()
    if context.settings.sandbox:
        from ktrdr_ops.sandbox import ORIGIN, addresses

        hosts = addresses(context.settings)
        document |= {name: {"value": url, "origin": ORIGIN} for name, url in hosts.items()}
    width = max(map(len, document))
    values = {name: _text(said["value"]) for name, said in document.items()}
    widest = max(map(len, values.values()))
    lines = [
        f"{name:<{width}}  {values[name]:<{widest}}  " + paint(f"{safe(said['origin'])} · {describe(name)}", "dim")
        for name, said in document.items()
    ]
    context.emit(document, "\n".join(lines))


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "-" if value is None else safe(value)
