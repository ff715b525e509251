"""Cancel requests, from whichever process they come: a thread that watches for them while operations run here.

It has a connection of its own and looks every 5 ms whether anybody has committed (``PRAGMA data_version``, 3 µs). File
watchers fire before a commit is visible, so none is used. The event loop may be busy; a token is set all the same. What
cannot be read is said and looked for again, and so is a journal that went back: a cancel must get through while it can.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from ktrdr_ops.core.events import CancelRequested, load
from ktrdr_ops.core.journal.journal import Journal
from ktrdr_ops.core.journal.reader import connect_for_reading

POLL_SECONDS = 0.005

Handler = Callable[[CancelRequested, int], None]
"""Told of a request and of when it was made (microseconds UTC), in the watching thread; it must not block."""

_CANCELS = (
    "SELECT position, operation_id, type, class, version, payload, at FROM events"
    " WHERE position > ? AND class = 'cancel' ORDER BY position"
)
_HEAD = "SELECT position, hash FROM events ORDER BY position DESC LIMIT 1"
_log = logging.getLogger(__name__)


class CancelWatch:
    """Tells running operations of this process that somebody asked them to stop."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._handlers: dict[str, tuple[int, Handler]] = {}
        self._position = 0
        self._version: int | None = None
        self._head: tuple[int, bytes] = (0, b"")
        self._said = ""
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, operation_id: str, after: int, handler: Handler) -> None:
        """Tell ``handler`` of every request for this operation behind a position, those already there included."""
        with self._guard:
            self._position = after if self._thread is None else min(self._position, after)
            self._version = None
            self._handlers[operation_id] = (after, handler)
            if self._thread is None:
                self._ended = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._ended,), name="ktrdr-ops-cancels", daemon=True
                )
                self._thread.start()

    def remove(self, operation_id: str) -> None:
        """The operation has ended. With none left the thread ends too."""
        with self._guard:
            self._handlers.pop(operation_id, None)
            if self._handlers or self._thread is None:
                return
            self._ended.set()
            thread, self._thread = self._thread, None
        if thread is not threading.current_thread():
            thread.join(1.0)

    def _run(self, ended: threading.Event) -> None:
        connection: Any = None
        while not ended.wait(POLL_SECONDS):
            try:
                connection = connection or connect_for_reading(self._journal.path)
                for (after, handler), row in self._look(connection):
                    position, _, type_, class_, stored_version, payload, at = row
                    if position > after:
                        handler(_asked(load(type_, class_, stored_version, payload)), at)
            except Exception as error:  # a cancel must get through, whatever went wrong at one look
                self._say("cancel requests cannot be read: %s", error)
        if connection is not None:
            connection.close()

    def _look(self, connection: Any) -> list[tuple[tuple[int, Handler], tuple[Any, ...]]]:
        """The new requests with whom they concern."""
        version = connection.execute("PRAGMA data_version").fetchone()[0]
        with self._guard:
            if version == self._version:
                return []
            rows = connection.execute(_CANCELS, (self._position,)).fetchall()
            head, hashed = connection.execute(_HEAD).fetchone() or (0, b"")
            self._version = version
            if head < self._head[0] or (head == self._head[0] and hashed != self._head[1]):
                self._say("the journal went back from position %s to %s: ktrdr-ops journal verify", self._head[0], head)
                self._position = min(self._position, head)
            else:
                self._position = rows[-1][0] if rows else self._position
            self._head = (head, hashed)
            return [(self._handlers[row[1]], row) for row in rows if row[1] in self._handlers]

    def _say(self, message: str, *values: object) -> None:
        if message != self._said:
            _log.error(message, *values)
        self._said = message


def _asked(fact: object) -> CancelRequested:
    return fact if isinstance(fact, CancelRequested) else CancelRequested(requested_by="unknown", reason="cancelled")
