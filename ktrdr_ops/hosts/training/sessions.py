"""Sessions: each a training in a thread of its own; how many at once is bounded. Gone with the process, and an hour
after their end."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Literal

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.hosts.training import network
from ktrdr_ops.hosts.training.plan import Plan
from ktrdr_ops.hosts.training.samples import samples, summary
from ktrdr_ops.hosts.training.state import save_model
from ktrdr_ops.hosts.training.trainer import Diverged, Stopped, Trainer, Watch

Status = Literal["initializing", "running", "completed", "failed", "stopped"]
LIVE: tuple[Status, ...] = ("initializing", "running")
KEPT_SECONDS = 3600.0


class AlreadyExists(Exception):
    """There is a session of that id."""


class TooMany(Exception):
    """There are as many live sessions as the host takes."""


@dataclass
class Session:
    """One training, as far as it is. Written by its own thread only, but for ``stop``."""

    session_id: str
    plan: Plan
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    updated: datetime = field(default_factory=lambda: datetime.now(UTC))
    ended: datetime | None = None
    status: Status = "initializing"
    error: str | None = None
    epoch: int = 0
    batch: int = 0
    batches: int = 0
    records: list[Mapping[str, Any]] = field(default_factory=list)
    result: dict[str, Any] | None = None
    stop: Event = field(default_factory=Event)
    thread: Thread | None = None

    @property
    def live(self) -> bool:
        """Whether it trains, or is about to."""
        return self.status in LIVE

    @property
    def percentage(self) -> float:
        """Of the epochs that it was asked for."""
        return 100.0 if self.status == "completed" else 100.0 * len(self.records) / self.plan.epochs

    def at_batch(self, epoch: int, batch: int, batches: int) -> None:
        """It has come to this batch."""
        self.epoch, self.batch, self.batches = epoch, batch, batches

    def after_epoch(self, record: Mapping[str, Any]) -> None:
        """This epoch has ended."""
        self.epoch = record["epoch"] + 1
        self.records.append(record)
        self.updated = datetime.now(UTC)

    def join(self, seconds: float) -> None:
        """Wait until it is over, so long at most."""
        if self.thread is not None:
            self.thread.join(seconds)

    def end(self, status: Status, error: str | None = None) -> None:
        """It is over; the status last, so that whoever sees it sees the rest."""
        self.error = error
        self.ended = self.updated = datetime.now(UTC)
        self.status = status


class Sessions:
    """All sessions of one host. ``keeps_models`` says whether a completed one leaves a model and a result."""

    def __init__(
        self, data_dir: Path, models_dir: Path, *, most: int = 1, pace: float = 0.0, keeps_models: bool = True
    ) -> None:
        self.data_dir = data_dir
        self.folder = models_dir / "sessions"
        self.most = most
        self.pace = pace
        self.keeps_models = keeps_models
        self._sessions: dict[str, Session] = {}
        self._lock = Lock()

    def start(self, session_id: str, plan: Plan) -> Session:
        """Begin one. Raises AlreadyExists, TooMany."""
        with self._lock:
            if self.get(session_id) is not None:
                raise AlreadyExists(f"Session {session_id} already exists")
            if self.live() >= self.most:
                raise TooMany(f"Maximum concurrent sessions ({self.most}) reached")
            session = self._sessions[session_id] = Session(session_id, plan)
            session.thread = Thread(target=self._train, args=(session,), name=session_id, daemon=True)
            session.thread.start()
        return session

    def get(self, session_id: str) -> Session | None:
        """One that is known."""
        return next((session for session in self.all() if session.session_id == session_id), None)

    def all(self) -> list[Session]:
        """Those that are known, oldest first."""
        now = datetime.now(UTC)
        for session in list(self._sessions.values()):
            if session.ended is not None and (now - session.ended).total_seconds() > KEPT_SECONDS:
                self._sessions.pop(session.session_id, None)
        return list(self._sessions.values())

    def live(self) -> int:
        """How many train."""
        return sum(session.live for session in list(self._sessions.values()))

    def forget(self, session: Session) -> None:
        """Drop one that is over, with its checkpoint."""
        self._sessions.pop(session.session_id, None)
        self._checkpoint(session.session_id).unlink(missing_ok=True)

    def stop_all(self, seconds: float) -> None:
        """Have all stop; returns when they have, or after so long."""
        for session in self.all():
            session.stop.set()
        deadline = time.monotonic() + seconds
        for session in self.all():
            session.join(max(deadline - time.monotonic(), 0.0))

    def _train(self, session: Session) -> None:
        try:
            session.result = self._trained(session)
            session.end("completed")
        except Stopped:
            session.end("stopped")
        except (InvalidValue, Diverged) as error:
            session.end("failed", str(error))
        except Exception as error:  # whatever ends a training is its status: nobody waits for this thread
            session.end("failed", f"{type(error).__name__}: {error}")

    def _trained(self, session: Session) -> dict[str, Any]:
        plan, began = session.plan, time.monotonic()
        earlier = None if plan.resume_from is None else self._checkpoint(plan.resume_from)
        if earlier is not None:  # whoever goes on from this session, however soon it fails, goes on from there
            with suppress(OSError):
                os.link(earlier, self._checkpoint(session.session_id))
        found = samples(plan, self.data_dir)
        trainer = Trainer(plan, found, self._checkpoint(session.session_id), earlier)
        session.status = "running"
        watch = Watch(stop=session.stop, on_epoch=session.after_epoch, on_batch=session.at_batch, pace=self.pace)
        trainer.run(watch)
        result = self._result(session, trainer, time.monotonic() - began) if self.keeps_models else {}
        self._checkpoint(session.session_id).unlink(missing_ok=True)
        return result

    def _result(self, session: Session, trainer: Trainer, seconds: float) -> dict[str, Any]:
        state, plan, found = trainer.state, session.plan, trainer.samples
        arrays = {**state.best, "scaler.mean": found.mean, "scaler.scale": found.scale}
        path = (self.folder / f"{session.session_id}.safetensors").absolute()
        about = {"activation": plan.activation, "features": ",".join(found.names), "horizon": str(plan.horizon)}
        sha256 = save_model(path, arrays, about)
        test, each_symbol = trainer.test_metrics()
        best = state.records[state.best_epoch - 1]
        kept = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
        return {
            "model_path": str(path),
            "model_info": {
                "type": "mlp",
                "sha256": sha256,
                "layers": [len(found.names), *plan.hidden_layers, 1],
                "parameters": sum(value.size for value in state.best.values()),
                "features": found.names,
                "seed": plan.seed,
                "versions": network.versions(),
            },
            "training_metrics": {
                "epochs_trained": state.epoch,
                "best_epoch": state.best_epoch,
                **{name: best[name] for name in kept},
                "history": {name: [each[name] for each in state.records] for name in kept},
            },
            "test_metrics": test,
            "per_symbol_metrics": each_symbol,
            "data_summary": summary(plan, found),
            "artifacts": {},
            "resource_usage": {"device": "cpu", "gpu_used": False, "seconds": round(seconds, 3)},
        }

    def _checkpoint(self, session_id: str) -> Path:
        return self.folder / f"{session_id}.checkpoint.safetensors"
