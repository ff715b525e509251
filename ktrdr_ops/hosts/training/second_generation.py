"""The current generation's routes. With ``lying`` its cancel does what the real one was seen to do: it answers success,
``/health`` says idle, and the training goes on."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import uuid4

from fastapi import FastAPI, HTTPException, Query
from pydantic import BaseModel

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.hosts.training.plan import from_yaml
from ktrdr_ops.hosts.training.sessions import AlreadyExists, Session, Sessions, TooMany
from ktrdr_ops.hosts.training.shown import SessionId, gone, listed, now

_STATUS = {"initializing": "pending", "stopped": "cancelled"}
_LIVE = ("pending", "resuming", "running")
_TYPE = "training"


class Start(BaseModel):
    """``POST /training/start``. Dates ISO-8601; what is left out is the strategy's."""

    task_id: SessionId | None = None
    session_id: SessionId | None = None
    strategy_yaml: str
    symbols: list[str] | None = None
    timeframes: list[str] | None = None
    start_date: str | None = None
    end_date: str | None = None


def add_routes(app: FastAPI, sessions: Sessions, *, lying: bool = False) -> None:
    """Add them."""
    _training_routes(app, sessions)
    _session_routes(app, sessions)
    _operation_routes(app, sessions)
    _cancel_routes(app, sessions, lying)


def _training_routes(app: FastAPI, sessions: Sessions) -> None:
    @app.post("/training/start")
    def start(asked: Start) -> dict[str, Any]:
        session_id = asked.session_id or asked.task_id or str(uuid4())
        try:
            plan = from_yaml(asked.strategy_yaml, asked.symbols, asked.timeframes, asked.start_date, asked.end_date)
            sessions.start(session_id, plan)
        except InvalidValue as error:
            raise HTTPException(422, f"Failed to start training: {error}") from error
        except AlreadyExists as error:
            raise HTTPException(409, f"Session conflict: {error}") from error
        except TooMany as error:
            raise HTTPException(503, f"Service temporarily unavailable: {error}. Please try again later.") from error
        return {
            "session_id": session_id,
            "operation_id": session_id,
            "status": "started",
            "message": f"Training session {session_id} started successfully",
            "gpu_allocated": False,
            "estimated_duration_minutes": None,
        }

    @app.get("/training/result/{session_id}")
    def result(session_id: str) -> dict[str, Any]:
        session = _known(sessions, session_id, "Session")
        if session.result is None or session.status != "completed":
            raise HTTPException(400, f"Training not completed yet (status: {session.status})")
        return {
            **session.result,
            "session_id": session_id,
            "status": session.status,
            "start_time": session.started.isoformat(),
            "last_updated": session.updated.isoformat(),
        }


def _session_routes(app: FastAPI, sessions: Sessions) -> None:
    @app.get("/training/sessions")
    def all_sessions() -> dict[str, Any]:
        return listed(sessions)

    @app.delete("/training/sessions/{session_id}")
    def forget(session_id: str) -> dict[str, Any]:
        session = sessions.get(session_id)
        if session is None or session.live:
            why = "not found" if session is None else "is still running"
            raise HTTPException(500, f"Failed to cleanup session: Session {session_id[:200]} {why}")
        return gone(sessions, session)


def _operation_routes(app: FastAPI, sessions: Sessions) -> None:
    @app.get("/api/v1/operations/{operation_id}")
    def operation(operation_id: str) -> dict[str, Any]:
        return {"success": True, "data": _info(_known(sessions, operation_id, "Operation"))}

    @app.get("/api/v1/operations/{operation_id}/metrics")
    def metrics(operation_id: str, cursor: Annotated[int, Query(ge=0)] = 0) -> dict[str, Any]:
        session = _known(sessions, operation_id, "Operation")
        new = session.records[cursor:]
        data = {"operation_id": operation_id, "operation_type": _TYPE, "metrics": [new, cursor + len(new)]}
        return {"success": True, "data": {**data, "cursor": cursor + len(new)}}

    @app.get("/api/v1/operations")
    def operations(
        status: str | None = None,
        operation_type: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        offset: Annotated[int, Query(ge=0)] = 0,
        active_only: bool = False,
    ) -> dict[str, Any]:
        found = [_summary(session) for session in reversed(sessions.all())]
        chosen = [
            each
            for each in found
            if status in (None, each["status"])
            and operation_type in (None, each["operation_type"])
            and (each["status"] in _LIVE or not active_only)
        ]
        active = sum(each["status"] in _LIVE for each in found)
        page = chosen[offset : offset + limit]
        return {"success": True, "data": page, "total_count": len(chosen), "active_count": active}


def _cancel_routes(app: FastAPI, sessions: Sessions, lying: bool) -> None:
    told: set[str] = set()

    @app.delete("/api/v1/operations/{operation_id}/cancel")
    def cancel(operation_id: str, reason: str | None = None) -> dict[str, Any]:
        session = sessions.get(operation_id)
        if session is None or not session.live:
            why = "not found" if session is None else f"cannot be cancelled (status: {_status(session)})"
            message = f"Operation {operation_id[:200]} {why}"
            return {"success": True, "data": {"success": False, "operation_id": operation_id, "error": message}}
        if lying:
            told.add(operation_id)
        else:
            session.stop.set()
        data = {"success": True, "operation_id": operation_id, "status": "cancelled", "cancelled_at": now()}
        return {"success": True, "data": {**data, "cancellation_reason": reason}}

    @app.get("/health")
    def health() -> dict[str, Any]:
        busy = [each.session_id for each in sessions.all() if each.live and each.session_id not in told]
        return {
            "healthy": True,
            "service": "training-worker",
            "timestamp": now(),
            "status": "operational",
            "worker_status": "busy" if busy else "idle",
            "current_operation": busy[0] if busy else None,
        }


def _known(sessions: Sessions, name: str, what: str) -> Session:
    session = sessions.get(name)
    if session is None:
        raise HTTPException(404, f"{what} not found: {name[:200]}")
    return session


def _status(session: Session) -> str:
    return _STATUS.get(session.status, session.status)


def _info(session: Session) -> dict[str, Any]:
    plan, done = session.plan, len(session.records)
    status, ended = _status(session), session.ended
    return {
        "operation_id": session.session_id,
        "parent_operation_id": None,
        "operation_type": _TYPE,
        "status": status,
        "created_at": session.started.isoformat(),
        "started_at": session.started.isoformat(),
        "completed_at": None if ended is None else ended.isoformat(),
        "progress": {
            "percentage": session.percentage,
            "current_step": _step(session),
            "steps_completed": done,
            "steps_total": plan.epochs,
            "items_processed": done,
            "items_total": plan.epochs,
            "current_item": None,
            "context": {
                "epoch": session.epoch,
                "total_epochs": plan.epochs,
                "batch": session.batch,
                "total_batches": session.batches,
            },
        },
        "metadata": {
            "symbol": plan.symbols[0],
            "timeframe": plan.timeframes[0],
            "mode": None,
            "start_date": plan.start,
            "end_date": plan.end,
            "parameters": {"strategy_name": plan.strategy, "symbols": plan.symbols, "timeframes": plan.timeframes},
        },
        "error_message": session.error,
        "warnings": [],
        "errors": [] if session.error is None else [session.error],
        "result_summary": None if session.result is None else session.result["test_metrics"],
        "metrics": None,
        "is_backend_local": False,
    }


def _summary(session: Session) -> dict[str, Any]:
    until = session.ended or session.updated
    return {
        "operation_id": session.session_id,
        "operation_type": _TYPE,
        "status": _status(session),
        "created_at": session.started.isoformat(),
        "progress_percentage": session.percentage,
        "current_step": _step(session),
        "symbol": session.plan.symbols[0],
        "duration_seconds": (until - session.started).total_seconds(),
    }


def _step(session: Session) -> str:
    return f"Epoch {min(session.epoch + 1, session.plan.epochs)}/{session.plan.epochs}" if session.live else "Finished"
