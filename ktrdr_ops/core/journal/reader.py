"""Reads: short queries over aiosqlite, each one closed before anything is awaited again.

There is one connection for each event loop. A reader that held a cursor across an await would keep the write-ahead log
from being emptied.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import aiosqlite

from ktrdr_ops.core.errors import JournalCorrupt, JournalError
from ktrdr_ops.core.journal import engine


def connect_for_reading(path: Path) -> Any:
    """A connection that cannot write. Where the folder may not be written and no log is there, the file cannot change
    under it and is read as immutable."""
    frozen = not os.access(path.parent, os.W_OK) and not Path(f"{path}-wal").exists()
    return engine.connect(path, readonly=True, immutable=frozen)


def file_identity(path: Path) -> tuple[int, int] | None:
    """Which file a path names now; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Reader:
    """Rows of one journal, for any event loop of this process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connections: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[aiosqlite.Connection]] = (
            WeakKeyDictionary()
        )
        self._guard = threading.Lock()
        self._file = file_identity(path)

    @property
    def replaced(self) -> bool:
        """Whether the path names another file by now, or none."""
        return file_identity(self._path) != self._file

    async def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of one query. Raises JournalCorrupt where the file is damaged, JournalError else."""
        connection = await self._connection()
        try:
            return [tuple(row) for row in await connection.execute_fetchall(sql, parameters)]
        except engine.sqlite.OperationalError as error:
            raise JournalError(f"the journal could not be read: {error}") from error
        except engine.UNREADABLE as error:
            raise JournalCorrupt(f"the journal is damaged: {error}", hint="ktrdr-ops journal verify") from error

    async def data_version(self) -> int:
        """A number that changes when anybody else has committed."""
        return int((await self.rows("PRAGMA data_version"))[0][0])

    async def aclose(self) -> None:
        """Close this loop's connection."""
        with self._guard:
            opening = self._connections.pop(asyncio.get_running_loop(), None)
        if opening is not None:
            await (await opening).close()

    async def _connection(self) -> aiosqlite.Connection:
        loop = asyncio.get_running_loop()
        with self._guard:
            opening = self._connections.get(loop)
            if opening is None:
                opening = self._connections[loop] = loop.create_task(self._open())
        return await asyncio.shield(opening)

    async def _open(self) -> aiosqlite.Connection:
        return await aiosqlite.Connection(lambda: connect_for_reading(self._path), 64)
