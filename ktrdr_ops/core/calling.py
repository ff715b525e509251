"""How an operation function is called: with as many of its arguments as it takes, in a thread if it is not async."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from ktrdr_ops.core.errors import InvalidValue

if TYPE_CHECKING:
    from ktrdr_ops.core.attempt import Attempt


def called(func: Callable[..., Any], attempt: Attempt) -> Coroutine[Any, Any, Any]:
    arguments = (attempt.operation, attempt.progress, attempt.token, attempt)
    given = arguments[: _how_many(func)]
    if is_async(func):
        called: Coroutine[Any, Any, Any] = func(*given)
        return called
    return _in_thread(func, given)


def is_async(func: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine; also an object whose ``__call__`` is async."""
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(getattr(func, "__call__", None))  # noqa: B004  # what its type says is meant


async def _in_thread(func: Callable[..., Any], given: tuple[Any, ...]) -> Any:
    # A thread of its own: in a pool, functions that wait for other operations could leave no thread to those.
    own = ThreadPoolExecutor(1, thread_name_prefix="ktrdr-ops-function")
    running = asyncio.get_running_loop().run_in_executor(own, partial(copy_context().run, func, *given))
    own.shutdown(wait=False)
    while not running.done():
        # A thread cannot be stopped from outside: it is told by its token, and waited for.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({running})
    value = running.result()
    return await value if inspect.isawaitable(value) else value


def _how_many(func: Callable[..., Any]) -> int:
    """How many of its four arguments an operation function takes."""
    kinds = [parameter.kind for parameter in inspect.signature(func).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return 4
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = sum(kind in positional for kind in kinds)
    if not 2 <= taken <= 4:
        raise InvalidValue("an operation function takes (operation, progress_manager[, cancellation_token[, attempt]])")
    return taken
