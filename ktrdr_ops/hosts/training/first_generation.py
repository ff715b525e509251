"""The first generation's routes: every failure is a 500 with a text (what can never be trained is a 422, as a bad body
is), nothing tells of a result, and no model is saved.

As the service that users run: its ``epoch`` counts from 0 until its end, the percentage jumps by epoch, ``batch`` is
one more than ``total_batches`` while the epoch is validated, and a stop answers when the training has stopped.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.hosts.training.plan import from_configurations
from ktrdr_ops.hosts.training.sessions import AlreadyExists, Session, Sessions, TooMany
from ktrdr_ops.hosts.training.shown import SessionId, gone, listed, now

STOP_SECONDS = 30.0


class Start(BaseModel):
    """``POST /training/start``."""

    session_id: SessionId | None = None
    model_configuration: dict[str, Any]
    training_configuration: dict[str, Any]
    data_configuration: dict[str, Any]
    gpu_configuration: dict[str, Any] | None = None


class Stop(BaseModel):
    """``POST /training/stop``."""

    session_id: str
    save_checkpoint: bool = True


def add_routes(app: FastAPI, sessions: Sessions) -> None:
    """Add them."""
    _health_routes(app, sessions)

    @app.post("/training/start")
    def start(asked: Start) -> dict[str, Any]:
        session_id = asked.session_id or str(uuid4())
        try:
            plan = from_configurations(
                asked.model_configuration, asked.training_configuration, asked.data_configuration
            )
            sessions.start(session_id, plan)
        except InvalidValue as error:
            raise HTTPException(422, f"Failed to start training: {error}") from error
        except (AlreadyExists, TooMany) as error:
            raise HTTPException(500, f"Failed to start training: {error}") from error
        return {
            "session_id": session_id,
            "status": "started",
            "message": f"Training session {session_id} started successfully",
            "gpu_allocated": False,
            "estimated_duration_minutes": asked.training_configuration.get("estimated_duration_minutes"),
        }

    @app.get("/training/status/{session_id}")
    def status(session_id: str) -> dict[str, Any]:
        return _status(_known(sessions, session_id, "Failed to get training status"))

    @app.post("/training/stop")
    def stop(asked: Stop) -> dict[str, Any]:
        session = _known(sessions, asked.session_id, "Failed to stop training")
        if not session.live:
            why = f"Session {session.session_id} is not running (status: {session.status})"
            raise HTTPException(500, f"Failed to stop training: {why}")
        session.stop.set()
        session.join(STOP_SECONDS)
        return {
            "session_id": session.session_id,
            "status": "stopped",
            "message": f"Training session {session.session_id} stopped successfully",
            "checkpoint_saved": asked.save_checkpoint,
        }

    @app.get("/training/sessions")
    def all_sessions() -> dict[str, Any]:
        return listed(sessions)

    @app.delete("/training/sessions/{session_id}")
    def forget(session_id: str) -> dict[str, Any]:
        session = _known(sessions, session_id, "Failed to cleanup session")
        if session.live:
            raise HTTPException(500, f"Failed to cleanup session: Session {session_id} is still running")
        return gone(sessions, session)


def _health_routes(app: FastAPI, sessions: Sessions) -> None:
    def health() -> dict[str, Any]:
        return {
            "healthy": True,
            "service": "training-host",
            "timestamp": now(),
            "status": "operational",
            "active_sessions": sessions.live(),
            "gpu_status": {"available": False, "device_count": 0},
            "system_info": {"platform": platform.platform(), "python_version": platform.python_version()},
        }

    for path in ("/health", "/health/", "/health/detailed"):
        app.get(path)(health)


def _known(sessions: Sessions, session_id: str, what: str) -> Session:
    session = sessions.get(session_id)
    if session is None:
        raise HTTPException(500, f"{what}: Session {session_id[:200]} not found")
    return session


def _status(session: Session) -> dict[str, Any]:
    done = len(session.records)
    return {
        "session_id": session.session_id,
        "status": session.status,
        "progress": {
            "epoch": session.epoch,
            "total_epochs": session.plan.epochs,
            "batch": session.batch,
            "total_batches": session.batches,
            "progress_percent": session.percentage,
        },
        "metrics": _metrics(session.records[:done], session.batches),
        "gpu_usage": {},
        "start_time": session.started.isoformat(),
        "last_updated": session.updated.isoformat(),
        "error": session.error,
    }


def _metrics(records: list[Mapping[str, Any]], batches: int) -> dict[str, list[Any]]:
    losses, accuracies = ([each[name] for each in records] for name in ("train_loss", "train_accuracy"))
    return {
        "loss": losses,
        "accuracy": accuracies,
        "epoch_loss": losses,
        "epoch_accuracy": accuracies,
        "total_batches": [batches] * len(records),
        "device": ["cpu"] * len(records),
    }
