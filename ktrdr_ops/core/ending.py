"""How an attempt ends: its result, its terminal event, stated whatever happens, and what its caller is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from ktrdr_ops.core.errors import (
    InvalidValue,
    JournalCorrupt,
    JournalError,
    JournalRefused,
    JournalStopped,
    KtrdrOpsError,
    OperationCancelledException,
    OperationFailed,
    OperationInterrupted,
)
from ktrdr_ops.core.events import Cancelled, Completed, Failed, Interrupted, Json, payload
from ktrdr_ops.core.redaction import strict

if TYPE_CHECKING:
    from ktrdr_ops.core.attempt import Attempt

FULL_RETRY_SECONDS = 1.0
"""How often the terminal event is tried again while the journal's disk is full."""


def summary(value: Any, summarise: Callable[[Any], Json] | None) -> Json:
    if summarise is not None:
        return strict(summarise(value), "result")
    try:
        return strict(value, "result")
    except InvalidValue:
        return {"type": type(value).__name__}


def stop_error(attempt: Attempt, error: BaseException) -> KtrdrOpsError:
    operation_id = attempt.operation.operation_id
    if attempt.token.interrupting:
        return OperationInterrupted(
            f"{operation_id} was interrupted: {attempt.token.reason}",
            hint=f"Go on: ktrdr-ops resume {operation_id}",
            operation_id=operation_id,
        )
    if isinstance(error, OperationCancelledException):
        error.details["operation_id"] = operation_id
        return error
    return OperationFailed(str(error), operation_id=operation_id)


async def ended(attempt: Attempt, fact: Completed | Failed | Cancelled | Interrupted) -> None:
    """State the terminal event. While the disk is full, or the gate held, it is tried again until it can be written or
    the operation is told to stop; then what could not be journaled is in the error. Raises OperationFailed."""
    while True:
        try:
            return await attempt.end(fact)
        except JournalError as error:
            if isinstance(error, JournalStopped | JournalCorrupt | JournalRefused):
                raise
            if attempt.token.is_cancelled():
                said = f"{fact.type} {payload(fact).decode()}"
                raise OperationFailed(
                    f"{attempt.operation.operation_id} ended, but it could not be journaled ({error}): {said}",
                    hint=error.hint,
                    operation_id=attempt.operation.operation_id,
                ) from error
            attempt.progress.end_operation(f"Waiting for the journal to record: {fact.type} ({error})")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(attempt.token.wait(), FULL_RETRY_SECONDS)


async def shielded(statement: Coroutine[Any, Any, None]) -> None:
    """Await a statement to the journal to its end, whatever happens to the task that makes it."""
    task = asyncio.ensure_future(statement)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except Exception:  # raised below, from the task itself
            break
    task.result()
    if cancelled is not None:
        raise cancelled
