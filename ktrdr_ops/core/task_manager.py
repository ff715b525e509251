"""Which asyncio task carries which operation. Belongs to one event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from typing import Any, TypeVar

from ktrdr_ops.core.errors import InvalidValue

T = TypeVar("T")

_log = logging.getLogger(__name__)


class AsyncTaskManager:
    """Starts tasks by operation id, at most ``max_concurrent`` of them at work at once, and leaves none behind."""

    def __init__(self, max_concurrent: int | None = None) -> None:
        if max_concurrent is not None and max_concurrent < 1:
            raise InvalidValue(f"max_concurrent is {max_concurrent}; at least one must be able to run")
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._asks: dict[str, Callable[[], object]] = {}
        self._slots = asyncio.Semaphore(max_concurrent) if max_concurrent is not None else nullcontext()
        self._closed = False

    def start(
        self, operation_id: str, coro: Coroutine[Any, Any, T], *, ask: Callable[[], object] | None = None
    ) -> asyncio.Task[T]:
        """A task that runs the coroutine, once there is room for it. ``ask`` asks it kindly to stop, at shutdown.

        Raises InvalidValue, and closes the coroutine, when a task carries this operation already or after ``shutdown``.
        """
        if self._closed or operation_id in self._tasks:
            coro.close()
            raise InvalidValue(
                "no task can be started after shutdown" if self._closed else f"{operation_id} has a task already"
            )
        task = asyncio.get_running_loop().create_task(self._run(coro), name=operation_id)
        self._tasks[operation_id] = task
        if ask is not None:
            self._asks[operation_id] = ask

        def ended(_: asyncio.Task[T]) -> None:
            coro.close()  # one that was cancelled before its turn was never awaited
            self._tasks.pop(operation_id, None)
            self._asks.pop(operation_id, None)

        task.add_done_callback(ended)
        return task

    async def _run(self, coro: Coroutine[Any, Any, T]) -> T:
        async with self._slots:
            return await coro

    def get(self, operation_id: str) -> asyncio.Task[Any] | None:
        """The task of an operation that has not ended."""
        return self._tasks.get(operation_id)

    @property
    def running(self) -> tuple[str, ...]:
        """The ids of the operations that have not ended, in the order of their starts."""
        return tuple(self._tasks)

    async def cancel(self, operation_id: str) -> bool:
        """Cancel its task and return when it is gone. False if there is none. From inside the task: do not wait."""
        task = self._tasks.get(operation_id)
        if task is None:
            return False
        task.cancel()
        if task is not asyncio.current_task():
            await asyncio.wait({task})
        return True

    async def shutdown(self, grace: float = 5.0) -> None:
        """Ask everything to stop, give it ``grace`` seconds, cancel the rest; return when nothing is left running.

        Later starts raise.
        """
        self._closed = True
        for operation_id, ask in tuple(self._asks.items()):
            try:
                ask()
            except Exception:  # the others must be asked all the same; this one is cancelled after the grace
                _log.exception("asking %s to stop failed", operation_id)
        try:
            if left := self._others():
                await asyncio.wait(left, timeout=grace)
        finally:
            left = self._others()
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left)

    def _others(self) -> set[asyncio.Task[Any]]:
        return {task for task in self._tasks.values() if not task.done() and task is not asyncio.current_task()}
