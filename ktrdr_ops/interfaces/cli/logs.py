"""Where log records go: to stderr as far as -v asks, to --log-file as lines of JSON with each change of state."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.interfaces.cli.screen import Screen, paint, safe

if TYPE_CHECKING:
    from ktrdr_ops.core.events import Json

OPERATIONS = logging.getLogger("ktrdr_ops.operations")
"""Changes of state, for the log file: on the terminal they are shown as what they are."""

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


class _ToScreen(logging.Handler):
    def __init__(self, screen: Screen, level: int) -> None:
        super().__init__(level)
        self._screen = screen
        self.addFilter(lambda record: record.name != OPERATIONS.name)

    def emit(self, record: logging.LogRecord) -> None:
        sign = "!" if record.levelno >= logging.WARNING else "·"
        text = f"{sign} {safe(record.getMessage())}"
        if record.exc_info and self.level <= logging.INFO:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        try:
            self._screen.write(paint(text, "warn") if record.levelno >= logging.WARNING else text)
        except (OSError, ValueError):  # nobody reads it, or it is closed: whoever logs goes on all the same
            self.handleError(record)


class _AsJson(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        operation = getattr(record, "operation", None)
        if operation is not None:
            line["operation"] = operation
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(screen: Screen, *, verbose: int, quiet: bool, log_file: Path | None) -> None:
    """Send log records where they were asked to go. Raises InvalidValue when the log file cannot be written."""
    wanted = logging.ERROR if quiet else _LEVELS[min(verbose, 2)]
    ours = logging.getLogger("ktrdr_ops")
    ours.addHandler(_ToScreen(screen, wanted))
    ours.setLevel(min(wanted, logging.INFO))
    if log_file is None:
        ours.propagate = False
        return
    root = logging.getLogger()
    root.addHandler(_file_handler(log_file))
    root.setLevel(logging.DEBUG if verbose > 1 else logging.INFO)


def _file_handler(path: Path) -> logging.Handler:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except (OSError, ValueError) as error:
        raise InvalidValue(f"the log file {safe(path)} cannot be written: {error}") from error
    handler.setFormatter(_AsJson())
    return handler


def changed(document: dict[str, Json]) -> None:
    """Log that an operation is in another state now."""
    OPERATIONS.info("%s is %s", document["operation_id"], document["status"], extra={"operation": document})
