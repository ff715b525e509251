"""Replay: past events through the same progress manager and renderers as live ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING

from ktrdr_ops.core.clock import moment
from ktrdr_ops.core.events import Event
from ktrdr_ops.core.progress import GenericProgressManager, GenericProgressState
from ktrdr_ops.core.state import OperationState, fold

if TYPE_CHECKING:
    from ktrdr_ops.core.journal.journal import Journal

_SHOWN = frozenset({"attempt_started", "progressed", "completed", "failed", "cancelled", "interrupted"})


def progress_state(state: OperationState) -> GenericProgressState:
    """The progress that a state shows, its message raw."""
    return GenericProgressState(
        operation_id=state.operation_id,
        current_step=state.total_steps if state.status == "completed" else state.current_step,
        total_steps=state.total_steps,
        percentage=state.percentage,
        message=_message(state),
        start_time=moment(state.attempt_started_at or state.created_at),
        estimated_remaining=None if state.eta_seconds is None else timedelta(seconds=state.eta_seconds),
        items_processed=state.items_processed,
        total_items=state.total_items,
        context=dict(state.context),
    )


def _message(state: OperationState) -> str:
    if state.status == "failed" and state.error is not None:
        return f"Operation failed: {state.error['message']}"
    return "Operation interrupted" if state.status == "interrupted" else state.message


async def replay(
    journal: Journal, operation_id: str, manager: GenericProgressManager
) -> AsyncIterator[tuple[Event, OperationState]]:
    """One operation's events with the state after each, shown through the manager as they were shown live."""
    state: OperationState | None = None
    async for event in journal.read_all(operation_id):
        state = fold(state, event)
        if event.type in _SHOWN:
            manager.show(progress_state(state))
        yield event, state
