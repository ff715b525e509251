"""Being told to stop: the signal and nothing else. Who writes the event is the framework.

A token is told once, from any thread, and the first reason wins. The code that works looks at check points, and waits
through ``guard``, which ends what it waits for as soon as the token is told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from threading import Lock
from typing import Any, TypeVar
from weakref import WeakSet

from ktrdr_ops.core.clock import Clock, utc_now
from ktrdr_ops.core.errors import InvalidValue, OperationCancelledException

T = TypeVar("T")

_log = logging.getLogger(__name__)


class CancellationToken:
    """Whether one operation was told to stop; by whom, why and when (aware, UTC).

    ``interrupting`` says that the process was told to go: the same stop, but the attempt ends as interrupted. All
    methods may be called from any thread; the awaited ones from any event loop.
    """

    def __init__(self, operation_id: str | None = None, *, clock: Clock = utc_now) -> None:
        self.operation_id = operation_id
        self.reason: str | None = None
        self.requested_by: str | None = None
        self.requested_at: datetime | None = None
        self.interrupting = False
        self._cancelled = False
        self._callbacks: dict[object, Callable[[], None]] = {}
        self._clock = clock
        self._lock = Lock()

    def is_cancelled(self) -> bool:
        """Whether it was told to stop."""
        return self._cancelled

    def cancel(self, reason: str = "cancelled", requested_by: str = "caller", *, interrupt: bool = False) -> bool:
        """Tell it to stop. True for the first call, whose words count; False for every later one: it changes nothing.

        The callbacks are called in this thread, before it returns.
        """
        with self._lock:
            if self._cancelled:
                return False
            self.reason, self.requested_by, self.requested_at = reason, requested_by, self._clock()
            self.interrupting = interrupt
            self._cancelled = True
            callbacks = list(self._callbacks.values())
            self._callbacks.clear()
        for callback in callbacks:
            self._call(callback)
        return True

    def check_cancellation_point(self, operation_name: str = "operation") -> None:
        """Go on, or raise OperationCancelledException, whose message holds ``operation_name`` and the reason."""
        if self._cancelled:
            raise self._error(operation_name)

    def add_callback(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call it once when the token is told, in the thread that tells it; at once if it was told already.

        Returns what takes the callback back. One that raises is logged, and the others are called all the same.
        """
        key = object()
        with self._lock:
            waits = not self._cancelled
            if waits:
                self._callbacks[key] = callback
        if not waits:
            self._call(callback)

        def remove() -> None:
            with self._lock:
                self._callbacks.pop(key, None)

        return remove

    async def wait(self) -> None:
        """Return when it is told to stop."""
        told = asyncio.Event()
        remove = self.add_callback(_in_this_loop(told.set))
        try:
            await told.wait()
        finally:
            remove()

    async def guard(self, awaitable: Awaitable[T], operation_name: str = "operation") -> T:
        """Await it. When the token is told first: cancel it, wait until it has ended, OperationCancelledException.

        With a token that was told before, nothing is begun. A result that was there before the token was told is
        returned. When the waiting task is itself cancelled, the awaitable is ended in the same way and CancelledError
        goes on. One that ignores its cancellation is waited for.
        """
        task = asyncio.ensure_future(awaitable)
        stopped = self._cancelled
        if stopped:
            task.cancel()

        def stop() -> None:
            nonlocal stopped
            stopped = task.cancel() or stopped

        remove = self.add_callback(_in_this_loop(stop))
        try:
            await _ended(task)
        finally:
            remove()
        if stopped:
            raise self._error(operation_name) from (None if task.cancelled() else task.exception())
        return task.result()

    async def sleep(self, seconds: float, operation_name: str = "operation") -> None:
        """Sleep, unless it is told to stop: then OperationCancelledException, at once."""
        await self.guard(asyncio.sleep(seconds), operation_name)

    def _error(self, operation_name: str) -> OperationCancelledException:
        return OperationCancelledException(
            f"{operation_name} was cancelled: {self.reason}",
            operation_id=self.operation_id,
            operation_name=operation_name,
            reason=self.reason,
            requested_by=self.requested_by,
        )

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:  # somebody else's code: it must not keep the others from being told
            _log.exception("a callback of the cancellation of %s failed", self.operation_id or "an operation")


def _in_this_loop(function: Callable[[], object]) -> Callable[[], None]:
    """A callback for any thread that has the function called in the loop that runs now."""
    loop = asyncio.get_running_loop()

    def call() -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits in it any more
            loop.call_soon_threadsafe(function)

    return call


async def _ended(task: asyncio.Future[Any]) -> None:
    """Return when the task has ended. A cancellation of the waiter is passed on to it, and raised afterwards."""
    interrupted: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            interrupted = error
            task.cancel()
    if interrupted is not None:
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not call it "never retrieved"
        raise interrupted


class CancellationSystem:
    """The tokens of what is live in this process. May be used from any thread."""

    def __init__(self, *, clock: Clock = utc_now) -> None:
        self._clock = clock
        self._lock = Lock()
        self._tokens: dict[str, CancellationToken] = {}
        self._readable: dict[str, str] = {}
        self._nameless: WeakSet[CancellationToken] = WeakSet()

    def create_cancellation_token(self, operation_id: str | None = None) -> CancellationToken:
        """A fresh token, whatever was cancelled before.

        It is live until ``cleanup_token``; one without an id for as long as somebody holds it. Raises InvalidValue for
        an id whose token is still live: two operations never share one, or lose theirs to another.
        """
        token = CancellationToken(operation_id, clock=self._clock)
        with self._lock:
            if operation_id is None:
                self._nameless.add(token)
            elif operation_id in self._tokens:
                raise InvalidValue(
                    f"{operation_id} is running in this process already",
                    hint="Wait until it has ended, or cancel it.",
                )
            else:
                self._tokens[operation_id] = token
        return token

    def name_token(self, token: CancellationToken, operation_id: str, readable: str | None = None) -> None:
        """A token that was made before its operation had an id is that operation's from now on. The ``readable``
        beginning of the id names the latest operation that has it."""
        token.operation_id = operation_id
        with self._lock:
            self._nameless.discard(token)
            self._tokens[operation_id] = token
            if readable is not None:
                self._readable[readable] = operation_id

    def get_token(self, operation_id: str) -> CancellationToken | None:
        """The live token of an operation."""
        with self._lock:
            return self._tokens.get(operation_id) or self._tokens.get(self._readable.get(operation_id, ""))

    def cancel_operation(self, operation_id: str, reason: str = "cancelled", requested_by: str = "caller") -> bool:
        """Tell one operation to stop. False if no such operation is live here; the first reason wins."""
        token = self.get_token(operation_id)
        if token is None:
            return False
        token.cancel(reason, requested_by)
        return True

    def cancel_all_operations(
        self, reason: str = "cancelled", requested_by: str = "caller", *, interrupt: bool = False
    ) -> int:
        """Tell everything that is live now to stop; later operations are not concerned. Returns how many were told."""
        with self._lock:
            tokens = [*self._tokens.values(), *self._nameless]
        return sum(token.cancel(reason, requested_by, interrupt=interrupt) for token in tokens)

    def cleanup_token(self, operation_id: str) -> None:
        """The operation has ended: forget its token. An unknown id is no error."""
        with self._lock:
            self._tokens.pop(operation_id, None)
            for readable in [name for name, whole in self._readable.items() if whole == operation_id]:
                del self._readable[readable]
