"""A training host service on loopback that follows a script, in either generation, with the faults a test asks for.

It trains nothing: its losses fall by a formula of session and epoch, at the pace that a test says. Also a process of
its own, for tests that stop or kill it:  python -m tests.domains.training.training_host GENERATION PACE PORT
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.faulty_host import Behaviour, Connection, FaultyHost, answers

Fault = Callable[[str, str], Behaviour | None]
RUNNING = ("initializing", "running")


@dataclass
class Scripted:
    """One session: its epochs so far, in the records of the second generation."""

    session_id: str
    epochs: int
    asked: dict[str, Any]
    status: str = "running"
    error: str | None = None
    records: list[dict[str, Any]] = field(default_factory=list)
    batch: tuple[int, int] = (0, 0)
    stopping: bool = False
    seed: int = 42


def record(epoch: int, seed: int = 42) -> dict[str, Any]:
    """Of the default seed the loss is 1 / (epoch + 1); any other is seen in it."""
    return {
        "epoch": epoch,
        "train_loss": (seed - 42) + 1 / (epoch + 1),
        "train_accuracy": epoch / (epoch + 10),
        "val_loss": 1.5 / (epoch + 1),
        "val_accuracy": epoch / (epoch + 20),
        "learning_rate": 0.001,
        "duration": 0.01,
        "timestamp": "2026-01-05T14:30:00",
    }


class TrainingHost:
    """`pace` seconds an epoch (0: as fast as it goes), None: only when a test calls `advance`.

    `lies`: its cancel answers success and training goes on. `stop_seconds`: how long a true stop takes.
    `fault` may give a behaviour for a request (method, path), instead of the right answer.
    """

    def __init__(self, generation: int = 2, *, pace: float | None = 0.0, max_sessions: int = 1) -> None:
        self.generation = generation
        self.pace = pace
        self.max_sessions = max_sessions
        self.lies = False
        self.stop_seconds = 0.0
        self.files: list[dict[str, Any]] = []
        self.model: dict[str, Any] = {}
        self.sessions: dict[str, Scripted] = {}
        self.fault: Fault = lambda method, path: None
        self.server = FaultyHost(self._answer)
        self.trainers: list[asyncio.Task[None]] = []
        self.asked: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return self.server.url

    async def __aenter__(self) -> TrainingHost:
        await self.server.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        for trainer in self.trainers:
            trainer.cancel()
        await self.server.__aexit__(*error)

    @property
    def session(self) -> Scripted:
        """The last one that was started."""
        return list(self.sessions.values())[-1]

    def advance(self, epochs: int = 1, session: Scripted | None = None) -> None:
        """Train so many epochs, and complete after the last."""
        session = session or self.session
        for _ in range(epochs):
            if session.status == "running" and len(session.records) < session.epochs:
                session.records.append(record(len(session.records), session.seed))
        if session.status == "running" and len(session.records) >= session.epochs:
            session.status = "completed"

    async def until(self, condition: Callable[[TrainingHost], bool], within: float = 10.0) -> None:
        async with asyncio.timeout(within):
            while not condition(self):
                await asyncio.sleep(0.005)

    async def _train(self, session: Scripted) -> None:
        while session.status == "running" and self.pace is not None:
            await asyncio.sleep(self.pace)
            self.advance(1, session)

    async def _stop(self, session: Scripted) -> None:
        if session.status in RUNNING and not self.lies:
            await asyncio.sleep(self.stop_seconds)
            session.status = "stopped"

    async def _answer(self, connection: Connection) -> None:
        method, target, _ = self.server.requests[-1].split(" ")
        body = self.server.bodies[-1]
        parts = urlsplit(target)
        self.asked.append((method, parts.path))
        behaviour = self.fault(method, parts.path)
        if behaviour is None:
            routes = self._first if self.generation == 1 else self._second
            status, value = await routes(method, parts.path, parse_qs(parts.query), json.loads(body) if body else {})
            behaviour = answers(json.dumps(value).encode(), status)
        await behaviour(connection)

    # What both generations have

    async def _both(self, method: str, path: str) -> tuple[str, Any] | None:
        if (method, path) == ("GET", "/training/sessions"):
            listed = [
                {"session_id": each.session_id, "status": each.status, "error": each.error}
                for each in self.sessions.values()
            ]
            return ok(total_sessions=len(listed), sessions=listed)
        return None

    def start(self, session_id: str, training: dict[str, Any], asked: dict[str, Any]) -> str | None:
        """Why not; None when it has started. ``training`` says epochs and seed."""
        if session_id in self.sessions:
            return f"Session {session_id} already exists"
        if sum(each.status in RUNNING for each in self.sessions.values()) >= self.max_sessions:
            return f"Maximum concurrent sessions ({self.max_sessions}) reached"
        self.sessions[session_id] = Scripted(session_id, training["epochs"], asked, seed=training.get("seed", 42))
        if self.pace is not None:
            self.trainers.append(asyncio.create_task(self._train(self.session)))
        return None

    # The first generation

    async def _first(self, method: str, path: str, query: Any, body: Any) -> tuple[str, Any]:
        found = await self._both(method, path)
        if found is not None:
            return found
        session = self.sessions.get(body.get("session_id") or path.rpartition("/")[2])
        if path == "/health":
            return ok(healthy=True, service="training-host", gpu_status={})
        if path == "/training/start":
            refused = self.start(body["session_id"], body["training_configuration"], body)
            if refused:
                return "500 Error", {"detail": f"Failed to start training: {refused}"}
            return ok(session_id=body["session_id"], status="started", message="", gpu_allocated=False)
        if path.startswith("/training/status/"):
            if session is None:
                name = path.rpartition("/")[2]
                return "500 Error", {"detail": f"Failed to get training status: Session {name} not found"}
            return "200 OK", first_status(session)
        if path == "/training/stop":
            if session is None:
                return "500 Error", {"detail": f"Failed to stop training: Session {body['session_id']} not found"}
            if session.status not in RUNNING:
                detail = f"Failed: Session {session.session_id} is not running (status: {session.status})"
                return "500 Error", {"detail": detail}
            await self._stop(session)
            return ok(session_id=session.session_id, status="stopped", message="", checkpoint_saved=True)
        return "404 Not Found", {"detail": "Not Found"}

    # The second generation

    async def _second(self, method: str, path: str, query: Any, body: Any) -> tuple[str, Any]:
        found = await self._both(method, path)
        if found is not None:
            return found
        if path == "/health":
            return ok(healthy=True, service="training-worker", worker_status="idle", current_operation=None)
        if path == "/training/start":
            strategy = yaml.safe_load(body["strategy_yaml"])
            refused = self.start(body["session_id"], strategy["model"]["training"], body)
            if refused and "exists" in refused:
                return "409 Conflict", {"detail": f"Session conflict: {refused}"}
            if refused:
                return "503 Unavailable", {"detail": f"Service temporarily unavailable: {refused}. Retry later"}
            return ok(session_id=body["session_id"], operation_id=body["session_id"], status="started")
        if path == "/api/v1/operations":
            return ok(success=True, data=[], total_count=0, active_count=0)
        name = path.removeprefix("/api/v1/operations/").removeprefix("/training/result/").partition("/")[0]
        session = self.sessions.get(name)
        if path.endswith("/cancel"):
            if session is not None and not session.stopping:
                session.stopping = True
                self.trainers.append(asyncio.create_task(self._stop(session)))
            return ok(success=True, data={"success": session is not None})
        if session is None:
            return "404 Not Found", {"detail": "Not Found"}
        if path.startswith("/training/result/"):
            if session.status != "completed":
                return "400 Bad Request", {"detail": f"Training not completed yet (status: {session.status})"}
            return "200 OK", self._result(session)
        if path.endswith("/metrics"):
            cursor = int(query.get("cursor", ["0"])[0])
            new = session.records[cursor:]
            data = {"operation_id": name, "operation_type": "training", "metrics": [new, len(session.records)]}
            return ok(success=True, data={**data, "cursor": len(session.records)})
        return ok(success=True, data=second_status(session))

    def _result(self, session: Scripted) -> dict[str, Any]:
        last = session.records[-1]
        return {
            "model_path": "/nowhere/model.pt",
            "model_info": {"type": "mlp"},
            "training_metrics": {"epochs_trained": len(session.records), "best_epoch": len(session.records), **last},
            "test_metrics": {"test_accuracy": 0.5, "test_loss": 0.7},
            "per_symbol_metrics": {"TEST": {"accuracy": 0.5}},
            "data_summary": {"symbols": session.asked["symbols"], "total_samples": 100, "files": self.files},
            "artifacts": {},
            "resource_usage": {},
            "session_id": session.session_id,
            "status": "completed",
            **self.model,
        }


def ok(**value: Any) -> tuple[str, Any]:
    return "200 OK", value


def first_status(session: Scripted) -> dict[str, Any]:
    """Lists that grow, and a progress that is wrong in the ways that were seen."""
    done = len(session.records)
    return {
        "session_id": session.session_id,
        "status": session.status,
        "progress": {
            "epoch": min(done, session.epochs),
            "total_epochs": session.epochs,
            "batch": 32,
            "total_batches": 31,
            "progress_percent": 100.0 if done % 2 else 20.0,
        },
        "metrics": {
            "loss": [0.5] * done,
            "accuracy": [0.5] * done,
            "epoch_loss": [each["train_loss"] for each in session.records],
            "epoch_accuracy": [each["train_accuracy"] for each in session.records],
            "device": ["cpu"] * done,
        },
        "gpu_usage": {},
        "error": session.error,
    }


def second_status(session: Scripted) -> dict[str, Any]:
    words = {"stopped": "cancelled"}
    return {
        "operation_id": session.session_id,
        "operation_type": "training",
        "status": words.get(session.status, session.status),
        "progress": {
            "percentage": 81.0,
            "current_step": "Training",
            "context": {"batch": session.batch[0], "total_batches": session.batch[1], "total_epochs": session.epochs},
        },
        "error_message": session.error,
        "result_summary": None,
    }


async def _serve(generation: int, pace: float, port: int) -> None:
    host = TrainingHost(generation, pace=pace)
    server = await asyncio.start_server(host.server._serve, "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])))
