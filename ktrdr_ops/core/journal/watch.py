"""Cancel requests, from whichever process they come: a thread that watches for them while operations run here.

It has a connection of its own and looks every 5 ms whether anybody has committed (``PRAGMA data_version``, 3 µs). File
watchers fire before a commit is visible, so none is used. The event loop may be busy; a token is set all the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

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


class CancelWatch:
    """Tells running operations of this process that somebody asked them to stop."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._handlers: dict[str, tuple[int, Handler]] = {}
        self._position = 0
        self._version: int | None = None
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
        connection = connect_for_reading(self._journal.path)
        try:
            while not ended.wait(POLL_SECONDS):
                version = connection.execute("PRAGMA data_version").fetchone()[0]
                with self._guard:
                    if version == self._version:
                        continue
                    self._version = version
                    rows = connection.execute(_CANCELS, (self._position,)).fetchall()
                    told = [(self._handlers[row[1]], row) for row in rows if row[1] in self._handlers]
                    self._position = rows[-1][0] if rows else self._position
                for (after, handler), (position, _, type_, class_, stored_version, payload, at) in told:
                    if position > after:
                        handler(_asked(load(type_, class_, stored_version, payload)), at)
        finally:
            connection.close()


def _asked(fact: object) -> CancelRequested:
    return fact if isinstance(fact, CancelRequested) else CancelRequested(requested_by="unknown", reason="cancelled")
