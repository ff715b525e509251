"""Keeps this process from dropping its own locks.

POSIX locks belong to a process and a file: whoever closes any handle of the file drops them all. So while a journal is
open here, a plain ``open()`` of its files is refused, and so is another SQLite library's ``connect`` (the standard
library's, where the journal uses pysqlite3): one such connect and close has lost a committed event. The audit hook that
refuses them cannot be taken away again; it costs a comparison of names for each event.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ktrdr_ops.core.errors import JournalRefused
from ktrdr_ops.core.journal import engine

_SUFFIXES = ("", "-wal", "-shm", ".lock")
_guarded: dict[str, set[str]] = {}
_installed = False
_ours = threading.local()
os.register_at_fork(after_in_child=_guarded.clear)  # a child has none of its parent's locks to lose


def guard(database: Path) -> None:
    """Refuse foreign handles on this journal's files from now on."""
    global _installed
    real = os.path.realpath(database)
    for suffix in _SUFFIXES:
        _guarded.setdefault(os.path.basename(real + suffix), set()).add(real + suffix)
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True


def release(database: Path) -> None:
    """The journal is closed here; its lock file stays guarded, since its handle stays open."""
    real = os.path.realpath(database)
    for suffix in _SUFFIXES[:-1]:
        _guarded.get(os.path.basename(real + suffix), set()).discard(real + suffix)


@contextmanager
def our_own() -> Iterator[None]:
    """Let this thread open a journal's write-ahead log: nobody has locks on that file."""
    _ours.opens = True
    try:
        yield
    finally:
        _ours.opens = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in ("open", "sqlite3.connect") or not _guarded or getattr(_ours, "opens", False):
        return
    if event == "sqlite3.connect" and engine.sqlite.__name__.startswith("sqlite3"):
        return  # the same library keeps count of its own handles
    path = _path(arguments[0])
    if path is None or os.path.basename(path) not in _guarded:
        return
    if os.path.realpath(path) in _guarded[os.path.basename(path)]:
        raise JournalRefused(
            f"{path} is a journal that this process has open: another handle on it would drop its locks",
            hint="Ask through app.sql(…), copy it with `ktrdr-ops journal backup`, or use another process (mode=ro).",
        )


def _path(argument: Any) -> str | None:
    if not isinstance(argument, str | bytes | os.PathLike):
        return None
    try:
        path = os.fsdecode(argument)
    except (TypeError, ValueError):
        return None
    return unquote(urlsplit(path).path) if path.startswith("file:") else path
