"""The training host as a service: one generation's contract over the sessions of one process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI

from ktrdr_ops.hosts import serving
from ktrdr_ops.hosts.training import first_generation, second_generation
from ktrdr_ops.hosts.training.sessions import Sessions

_SWITCH_SECONDS = 0.0005
_END_SECONDS = 5.0


def create_app(sessions: Sessions, generation: int = 2, *, lying: bool = False) -> FastAPI:
    """The service as an ASGI application. ``lying``: cancels of the second generation are answered, and do nothing."""
    app = serving.application("Training host service (embedded)", serving.Presence(sessions.live))
    if generation == 1:
        first_generation.add_routes(app, sessions)
    else:
        second_generation.add_routes(app, sessions, lying=lying)
    return app


def serve(
    port: int = 0,
    *,
    data_dir: Path,
    models_dir: Path,
    generation: int = 2,
    max_sessions: int = 1,
    pace: float = 0.0,
    lying: bool = False,
    idle_exit: float | None = None,
    ready: Callable[[int], None] = lambda port: None,
) -> None:
    """``serving.serve`` for a training host, which trains on the series in ``data_dir`` and writes its models below
    ``models_dir``. ``pace``: the least seconds that an epoch takes.

    At its end live sessions are stopped; each leaves a checkpoint to go on from.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)  # trainings hold the interpreter; an answer waits for it, once for each
    sessions = Sessions(data_dir, models_dir, most=max_sessions, pace=pace, keeps_models=generation != 1)
    try:
        serving.serve(create_app(sessions, generation, lying=lying), port, idle_exit=idle_exit, ready=ready)
    finally:
        sessions.stop_all(_END_SECONDS)
