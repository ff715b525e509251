"""The state of one operation: a pure fold over its events.

The same fold serves the table of current states, the terminal, the page and replay, so they cannot disagree. A progress
event carries absolute state, so leaving out all but the last one before another event changes nothing but the counts
that the journal gives by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from ktrdr_ops.core.clock import iso
from ktrdr_ops.core.events import (
    ArtifactPublished,
    AttemptStarted,
    Cancelled,
    CancelRequested,
    Checkpointed,
    Completed,
    Event,
    Fact,
    Failed,
    Interrupted,
    Json,
    Opaque,
    Progressed,
    RequestRetried,
    StepCompleted,
    Submitted,
    WaitEnded,
    WaitStarted,
)

LIVE = frozenset({"pending", "running", "cancelling"})
STATUSES = ("pending", "running", "cancelling", "completed", "failed", "cancelled", "interrupted")


@dataclass(frozen=True, kw_only=True)
class OperationState:
    """What the events say of one operation. Times in microseconds UTC; ``status`` is the recorded one."""

    # No slots: folding copies the whole state, and a dict is copied six times faster than 34 slots.

    operation_id: str
    operation_type: str = ""
    key: str = ""
    digest: str = ""
    outlives: bool = False
    parent_id: str | None = None
    status: str = "pending"
    attempt: int = 0
    percentage: float = 0.0
    current_step: int = 0
    total_steps: int = 0
    message: str = ""
    items_processed: int = 0
    total_items: int | None = None
    eta_seconds: float | None = None
    base_context: dict[str, Json] = field(default_factory=dict)
    context: dict[str, Json] = field(default_factory=dict)
    waiting: dict[str, Json] | None = None
    created_at: int = 0
    started_at: int | None = None
    attempt_started_at: int | None = None
    finished_at: int | None = None
    last_at: int = 0
    events: int = 0
    last_position: int = 0
    owner: dict[str, Json] | None = None
    steps: int = 0
    artifacts: int = 0
    retries: int = 0
    skipped: int = 0
    checkpoint: dict[str, Json] | None = None
    attempts_without_checkpoint: int = 0
    result: Json = None
    error: dict[str, Json] | None = None
    cancellation: dict[str, Json] | None = None

    @property
    def final(self) -> bool:
        """Whether it was interrupted in a way that no later attempt can go on from."""
        return self.status == "interrupted" and bool((self.error or {}).get("final"))

    @property
    def live(self) -> bool:
        """Whether the events say that somebody works on it, or will."""
        return self.status in LIVE

    def stored(self) -> bytes:
        """As the projection keeps it."""
        return orjson.dumps(self)

    @classmethod
    def restored(cls, stored: bytes) -> OperationState:
        """The state that ``stored()`` gave; what a newer release keeps besides is passed over."""
        said = orjson.loads(stored)
        try:
            return cls(**said)
        except TypeError:
            return cls(**{name: value for name, value in said.items() if name in cls.__dataclass_fields__})


def _submitted(state: OperationState, fact: Submitted, event: Event) -> dict[str, Any]:
    return {
        "operation_type": fact.operation_type,
        "key": fact.key,
        "digest": fact.digest,
        "outlives": fact.outlives,
        "parent_id": fact.parent_id,
        "total_steps": fact.total_steps,
        "base_context": fact.context,
        "context": fact.context,
        "created_at": event.at,
    }


def _attempt_started(state: OperationState, fact: AttemptStarted, event: Event) -> dict[str, Any]:
    return {
        "status": "running",
        "attempt": event.attempt,
        "attempts_without_checkpoint": state.attempts_without_checkpoint + 1,
        "owner": {"pid": fact.pid, "host": fact.host, "slot": fact.slot},
        "parent_id": fact.parent_id or state.parent_id,
        "started_at": event.at if state.started_at is None else state.started_at,
        "attempt_started_at": event.at,
        "finished_at": None,
        "percentage": 0.0,
        "current_step": 0,
        "message": "Starting " + state.operation_type.replace("_", " "),
        "items_processed": 0,
        "total_items": None,
        "eta_seconds": None,
        "context": state.base_context,
        "waiting": None,
        "result": None,
        "error": None,
        "cancellation": None,
    }


def _progressed(state: OperationState, fact: Progressed, event: Event) -> dict[str, Any]:
    return {
        "percentage": fact.percentage,
        "current_step": fact.step,
        "message": fact.message,
        "items_processed": fact.items,
        "total_items": fact.total_items,
        "eta_seconds": fact.eta_seconds,
        "context": {**state.base_context, **fact.context} if fact.context else state.base_context,
        "skipped": fact.skipped,
    }


def _wait_started(state: OperationState, fact: WaitStarted, event: Event) -> dict[str, Any]:
    return {"waiting": {"reason": fact.reason, "since": event.at, "until": fact.until}}


def _checkpoint(state: OperationState, event: Event) -> dict[str, Any]:
    return {
        "checkpoint": {"position": event.position, "at": event.at, "attempt": event.attempt},
        "attempts_without_checkpoint": 0,
    }


def _ended(status: str, event: Event) -> dict[str, Any]:
    return {"status": status, "finished_at": event.at, "waiting": None, "eta_seconds": None}


def _completed(state: OperationState, fact: Completed, event: Event) -> dict[str, Any]:
    return {
        **_ended("completed", event),
        "percentage": 100.0,
        "message": "Operation completed",
        "result": fact.result,
    }


def _failed(state: OperationState, fact: Failed, event: Event) -> dict[str, Any]:
    error: dict[str, Json] = {"code": fact.code, "message": fact.message, "hint": fact.hint}
    if fact.final:
        error["final"] = True
    return {**_ended("failed", event), "error": error, "result": fact.result}


def _cancel_requested(state: OperationState, fact: CancelRequested, event: Event) -> dict[str, Any]:
    if not state.live:
        return {}
    cancellation = state.cancellation or {
        "requested_by": fact.requested_by,
        "reason": fact.reason,
        "requested_at": event.at,
        "confirmed": None,
        "latency_ms": None,
    }
    return {"status": "cancelling", "cancellation": cancellation}


def _cancelled(state: OperationState, fact: Cancelled, event: Event) -> dict[str, Any]:
    asked = state.cancellation or {"requested_at": event.at}
    cancellation = {
        "requested_by": fact.requested_by,
        "reason": fact.reason,
        "requested_at": asked["requested_at"],
        "confirmed": fact.confirmed,
        "latency_ms": fact.latency_ms,
    }
    return {**_ended("cancelled", event), "message": "Operation cancelled", "cancellation": cancellation}


def _interrupted(state: OperationState, fact: Interrupted, event: Event) -> dict[str, Any]:
    error: dict[str, Json] = {"code": "interrupted", "message": fact.reason, "hint": None}
    if fact.final:
        error["final"] = True
    return {**_ended("interrupted", event), "error": error}


_FOLDS: dict[type[Fact], Callable[[OperationState, Any, Event], dict[str, Any]]] = {
    Progressed: _progressed,
    Submitted: _submitted,
    AttemptStarted: _attempt_started,
    WaitStarted: _wait_started,
    WaitEnded: lambda state, fact, event: {"waiting": None},
    RequestRetried: lambda state, fact, event: {"retries": state.retries + 1},
    StepCompleted: lambda state, fact, event: {"steps": state.steps + 1, **_checkpoint(state, event)},
    Checkpointed: lambda state, fact, event: _checkpoint(state, event),
    ArtifactPublished: lambda state, fact, event: {"artifacts": state.artifacts + 1},
    CancelRequested: _cancel_requested,
    Completed: _completed,
    Failed: _failed,
    Cancelled: _cancelled,
    Interrupted: _interrupted,
}


def _by_class(state: OperationState, fact: Opaque, event: Event) -> dict[str, Any]:
    """A type from a newer release: what its class says, and no more."""
    match fact.event_class:
        case "terminal":
            error = {
                "code": fact.type,
                "message": f"ended by {fact.type}, which this version does not know",
                "hint": None,
            }
            return {**_ended("failed", event), "error": error}
        case "cancel":
            return {"status": "cancelling"} if state.live else {}
        case "start":
            return {"status": "running", "attempt": event.attempt or state.attempt, "finished_at": None}
        case "checkpoint":
            return _checkpoint(state, event)
        case _:
            return {}


def fold(state: OperationState | None, event: Event, fact: Fact | Opaque | None = None) -> OperationState:
    """The state after one more event. ``fact`` spares reading the payload where the caller has it."""
    if state is None:
        state = OperationState(operation_id=event.operation_id)
    if fact is None:
        fact = event.fact
    folder = _FOLDS.get(type(fact))  # type: ignore[arg-type]  # Opaque is in no table: it gives None
    if folder is not None:
        changes = folder(state, fact, event)
    elif isinstance(fact, Opaque):
        changes = _by_class(state, fact, event)
    else:
        changes = {}
    changes["events"] = event.sequence
    changes["last_position"] = event.position
    if event.attempt is not None:
        changes["last_at"] = event.at
    after = object.__new__(OperationState)
    after.__dict__.update(state.__dict__)
    after.__dict__.update(changes)
    return after


def fold_all(events: Iterable[Event]) -> OperationState | None:
    """The state after all of one operation's events, in their order; None when there are none."""
    state: OperationState | None = None
    for event in events:
        state = fold(state, event)
    return state


def document(state: OperationState, status: str, *, stalled: bool = False) -> dict[str, Json]:
    """An operation as ``--json`` prints it. ``status`` is the settled one (see ``Journal``); times ISO-8601 UTC."""
    waiting = state.waiting and {
        **state.waiting,
        "since": iso(state.waiting["since"]),
        "until": iso(state.waiting["until"]),
    }
    cancellation = state.cancellation and {
        **state.cancellation,
        "requested_at": iso(state.cancellation["requested_at"]),
    }
    checkpoint = state.checkpoint and {**state.checkpoint, "at": iso(state.checkpoint["at"]), "steps": state.steps}
    owner = state.owner if state.live else None
    error = state.error
    if status == "interrupted" and error is None:
        error = {"code": "interrupted", "message": "the process that ran it is gone", "hint": None}
    return {
        "operation_id": state.operation_id,
        "operation_type": state.operation_type,
        "key": state.key,
        "parent_id": state.parent_id,
        "status": status,
        "stalled": stalled,
        "attempt": state.attempt,
        "percentage": state.percentage,
        "current_step": state.current_step,
        "total_steps": state.total_steps,
        "message": state.message,
        "items_processed": state.items_processed,
        "total_items": state.total_items,
        "context": state.context,
        "waiting": waiting if status in LIVE else None,
        "created_at": iso(state.created_at),
        "started_at": iso(state.started_at),
        "finished_at": iso(state.finished_at),
        "events": state.events,
        "last_position": state.last_position,
        "owner": owner and {"pid": owner["pid"], "host": owner["host"]},
        "checkpoint": checkpoint,
        "result": state.result,
        "error": error,
        "cancellation": cancellation,
    }
