"""What is the same in both generations: ids, the list of sessions, and how one that is over is dropped."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field

from ktrdr_ops.hosts.training.plan import SESSION_ID
from ktrdr_ops.hosts.training.sessions import Session, Sessions

SessionId = Annotated[str, Field(pattern=SESSION_ID)]


def now() -> str:
    """The time as both write it."""
    return datetime.now(UTC).isoformat()


def listed(sessions: Sessions) -> dict[str, Any]:
    """``GET /training/sessions``."""
    found = [_summary(session) for session in sessions.all()]
    return {"total_sessions": len(found), "sessions": found, "timestamp": now()}


def _summary(session: Session) -> dict[str, Any]:
    return {
        "session_id": session.session_id,
        "status": session.status,
        "start_time": session.started.isoformat(),
        "last_updated": session.updated.isoformat(),
        "progress": {
            "epoch": session.epoch,
            "total_epochs": session.plan.epochs,
            "batch": session.batch,
            "total_batches": session.batches,
            "progress_percent": session.percentage,
        },
        "gpu_allocated": False,
        "error": session.error,
    }


def gone(sessions: Sessions, session: Session) -> dict[str, Any]:
    """``DELETE /training/sessions/{id}`` of one that is over."""
    sessions.forget(session)
    message = f"Session {session.session_id} cleaned up successfully"
    return {"session_id": session.session_id, "status": "cleaned_up", "message": message}
