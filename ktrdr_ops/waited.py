"""The application for code that does not await: scripts and notebooks. Law: it waits, and does nothing else."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from ktrdr_ops.core.domain import Domain
from ktrdr_ops.core.errors import InvalidValue, JournalRefused
from ktrdr_ops.core.events import Event, Json
from ktrdr_ops.core.journal import history

if TYPE_CHECKING:
    from ktrdr_ops.app import AsyncApp
    from ktrdr_ops.core.orchestration import How, ProgressCallback
    from ktrdr_ops.core.recovery import Outcome, Plan

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_LAST_SECONDS = 5.0
"""How long what is cancelled at the end may take to stop."""


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._under_way: set[Future[Any]] = set()
        self._ending = self._ended = False
        self._chores: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ktrdr-ops-loop", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether nothing can be waited for any more."""
        return self._loop.is_closed()

    @property
    def is_around(self) -> bool:
        """Whether the caller is part of what a call of this loop does: an operation, in whichever thread."""
        return self in _AROUND.get()

    def check(self) -> None:
        """Raises InvalidValue in the loop's own thread (a progress callback, an async operation), which would wait for
        itself."""
        if threading.get_ident() == self._thread.ident:
            raise InvalidValue(
                "this call waits for the thread that makes it",
                hint="In a callback or an async operation use open_app_async, or call it from a thread of your own.",
            )

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Its result. Ctrl+C while waiting cancels it there; what it then states is waited for.

        Raises what ``check`` raises, and JournalRefused where the application was closed, also meanwhile.
        """
        try:
            self.check()
            ended, future = self._begun(coroutine)
        except BaseException:
            coroutine.close()
            raise
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            ended.wait()
            raise
        except Exception as error:  # whatever it is that came of the end
            if self._ending and not self.is_around:
                raise _closed() from error
            raise
        finally:
            self._under_way.discard(future)

    def _begun(self, coroutine: Coroutine[Any, Any, T]) -> tuple[threading.Event, Future[T]]:
        """While the application closes, what runs in it may still make its calls, and nobody else."""
        ended = threading.Event()

        async def until_ended() -> T:
            _AROUND.set(_AROUND.get() | {self})
            try:
                return await coroutine
            finally:
                ended.set()

        with self._lock:
            if self._ended or (self._ending and not self.is_around):
                raise _closed()
            future = asyncio.run_coroutine_threadsafe(until_ended(), self._loop)
            self._under_way.add(future)
        return ended, future

    def soon(self, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have it done without waiting; nothing where the loop has ended."""

        def begin() -> None:
            task = self._loop.create_task(make())
            self._chores.add(task)
            task.add_done_callback(self._chores.discard)

        with suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(begin)

    def at_exit(self, make: Callable[[], Coroutine[Any, Any, None]], seconds: float) -> None:
        """Have it done while the interpreter ends; not under what still goes on, which ends with the process."""
        if not self._under_way:
            with suppress(TimeoutError, RuntimeError):
                asyncio.run_coroutine_threadsafe(make(), self._loop).result(seconds)

    def close(self, last: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Do what is last to be done, cancel all else, and end the thread. Whoever still waits is told."""
        self._ending = True
        ending = asyncio.run_coroutine_threadsafe(self._end(last), self._loop)
        try:
            ending.result()
        except KeyboardInterrupt:
            ending.cancel()
            raise
        finally:
            self._thread.join()
            for future in tuple(self._under_way):
                future.cancel()
            self._loop.close()

    async def _end(self, last: Callable[[], Coroutine[Any, Any, None]] | None) -> None:
        try:
            if last is not None:
                await last()
        finally:
            try:
                await self._cancel_all()
                await self._loop.shutdown_asyncgens()
                await self._loop.shutdown_default_executor()
            finally:
                self._loop.call_soon(self._loop.stop)

    async def _cancel_all(self) -> None:
        with self._lock:
            self._ended = True
        await asyncio.sleep(0)  # what was begun before that has a task now
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_LAST_SECONDS)


_AROUND: ContextVar[frozenset[Loop]] = ContextVar("ktrdr_ops_around", default=frozenset())


def _closed() -> JournalRefused:
    return JournalRefused("this application was closed", hint="Open another: app = ko.open_app()")


class SyncJournal:
    """The journal's reads, waited for."""

    def __init__(self, loop: Loop, app: AsyncApp) -> None:
        self._loop = loop
        self._app = app
        self.path = app.journal.path

    def read(self, reference: str | None = None, *, after: int = 0, limit: int = 500) -> list[Event]:
        """Events behind a position, of one operation or of all."""
        return self._loop.wait(self._read(reference, after, limit))

    async def _read(self, reference: str | None, after: int, limit: int) -> list[Event]:
        journal = self._app.journal
        operation_id = None if reference is None else await history.find(journal, reference)
        return await journal.read(operation_id, after=after, limit=limit)

    def tail(self, reference: str | None = None, *, after: int = 0) -> Generator[Event, None, None]:
        """Events as they come; of an operation until it has ended, else for ever. ``after=0``: from the beginning."""
        coming = self._app.tail(reference, after=after)
        try:
            while (event := self._loop.wait(_next(coming))) is not None:
                yield event
        finally:  # never waited for: whoever drops the tail may be the loop's own thread, or the interpreter's end
            self._loop.soon(coming.aclose)


async def _next(coming: AsyncIterator[Event]) -> Event | None:
    return await anext(coming, None)


class App:
    """The application for scripts and notebooks: the same calls as ``AsyncApp``'s, waited for. Made by ``open_app``.

    It is open until ``close``, the end of its ``with`` block, or the end of the process.
    """

    def __init__(self, loop: Loop, app: AsyncApp) -> None:
        self._loop = loop
        self._app = app
        self.settings = app.settings
        self.journal = SyncJournal(loop, app)
        self._closing = threading.Lock()
        atexit.register(self._flush)

    def __enter__(self) -> App:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End what runs here as interrupted, write what is queued, close everything; calls that wait in other threads
        end with JournalRefused. Closing again waits until it is closed, and does nothing.

        Raises InvalidValue in an operation of its own, and in a progress callback: it would wait for itself.
        """
        self._loop.check()
        if self._loop.is_around:
            raise InvalidValue(
                "an operation cannot close the application that runs it: it would wait for itself",
                hint="Close it when app.run has returned.",
            )
        with self._closing:
            if not self._loop.closed:
                atexit.unregister(self._flush)
                self._loop.close(self._app.aclose)

    def _flush(self) -> None:
        """The process ends without having closed it."""
        self._app.journal.flush(2.0)
        if self._app._pool is not None:  # its connections would complain
            self._loop.at_exit(self._app._pool.aclose, 2.0)

    def register(self, domain: Domain) -> None:
        """Serve one more domain in this application."""
        self._app.register(domain)

    def operation(self, operation_type: str, *, key: str | None = None, steps: int = 1) -> Callable[[F], F]:
        """Serve a function as an operation type."""
        return self._app.operation(operation_type, key=key, steps=steps)

    def run(
        self,
        operation_type: str,
        *,
        progress_callback: ProgressCallback | None = None,
        how: How | None = None,
        **parameters: Any,
    ) -> Any:
        """Run an operation of an installed type and give what it returns."""
        return self._loop.wait(
            self._app.run(operation_type, progress_callback=progress_callback, how=how, **parameters)
        )

    def resume(self, reference: str, *, steal: bool = False, progress_callback: ProgressCallback | None = None) -> Any:
        """Another attempt at an operation."""
        return self._loop.wait(self._app.resume(reference, steal=steal, progress_callback=progress_callback))

    def recover(self, *, side_by_side: int = 4) -> tuple[list[Outcome], list[Plan]]:
        """Resume what was interrupted and can go on."""
        return self._loop.wait(self._app.recover(side_by_side=side_by_side))

    def cancel(self, reference: str, reason: str = "cancelled", requested_by: str = "user") -> str:
        """Ask an operation to stop, wherever it runs."""
        return self._loop.wait(self._app.cancel(reference, reason, requested_by))

    def note(self, reference: str, text: str, author: str = "") -> int:
        """Write something down about an operation."""
        return self._loop.wait(self._app.note(reference, text, author))

    def show(self, reference: str) -> dict[str, Json]:
        """An operation's document."""
        return self._loop.wait(self._app.show(reference))

    def events(self, reference: str) -> list[Event]:
        """All events of an operation."""
        return self._loop.wait(self._app.events(reference))

    def sql(self, query: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query over the journal's views."""
        return self._loop.wait(self._app.sql(query, parameters))
