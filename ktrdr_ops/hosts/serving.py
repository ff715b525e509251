"""Serving an embedded host on 127.0.0.1: who may ask, until when, and how the sandbox recognises it.

A host answers only those who call it 127.0.0.1 or localhost: a web page cannot read it under a name of its own. Beside
its contract it has one route, ``/embedded``, which says which process answers.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError

IDENTITY = "/embedded"
_LIVE_SECONDS = 1.0
"""How often it is looked whether a work still goes on: from its end on the host is idle."""
_OWN_NAMES = frozenset({"127.0.0.1", "localhost"})


class Presence:
    """Whether a host has something to do. ``live`` tells how many works of its own it has, which no idle end cuts."""

    def __init__(self, live: Callable[[], int] = lambda: 0) -> None:
        self.live = live
        self.requests = 0
        self.ending = False
        self._in_flight = 0
        self._busy_at = time.monotonic()

    @contextmanager
    def answering(self, path: str) -> Iterator[None]:
        """One request, counted unless it asks for health; the host is not idle until it is answered."""
        self.requests += not path.startswith(("/health", IDENTITY))
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1
            self._busy_at = time.monotonic()

    def idle(self) -> float:
        """Seconds since it was last seen busy."""
        if self._in_flight or self.live():
            self._busy_at = time.monotonic()
        return time.monotonic() - self._busy_at


def application(title: str, presence: Presence) -> FastAPI:
    """An application without routes but its identity's, guarded and counted; its errors are as FastAPI's own."""
    app = FastAPI(title=title, redirect_slashes=False, docs_url=None, redoc_url=None)
    app.state.presence = presence

    @app.middleware("http")
    async def own_names_only(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.headers.get("host", "").partition(":")[0] not in _OWN_NAMES:
            return Response("this host answers to 127.0.0.1 and localhost only", 403)
        with presence.answering(request.url.path):
            return await call_next(request)

    @app.exception_handler(RequestValidationError)
    async def unprocessable(request: Request, error: RequestValidationError) -> Response:
        # FastAPI's own handler repeats the input as UTF-8, which a lone surrogate has not; JSON escapes have it.
        detail = json.dumps({"detail": jsonable_encoder(error.errors())})
        return Response(detail, 422, media_type="application/json")

    @app.get(IDENTITY)
    async def embedded() -> dict[str, int | bool]:
        return {"pid": os.getpid(), "ending": presence.ending, "live": presence.live()}

    return app


def serve(app: FastAPI, port: int, *, idle_exit: float | None, ready: Callable[[int], None]) -> None:
    """Serve an ``application`` on 127.0.0.1 until Ctrl+C or SIGTERM, or until it was idle for ``idle_exit`` seconds.

    ``port=0`` takes a free one; ``ready`` is told which, once it answers. Raises OSError when the port is taken.
    """
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=1, lifespan="off"
    )
    # uvicorn ends by the signal that it was told by, once more: as an exception it lets what is around it end too.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        asyncio.run(_serve(uvicorn.Server(config), port, app.state.presence, idle_exit, ready))
    finally:
        signal.signal(signal.SIGTERM, before)


def bound_socket(port: int) -> socket.socket:
    """A listening socket on 127.0.0.1 (0: a free port). uvicorn's own names no protocol, and asyncio then leaves
    Nagle's algorithm on, which holds each answer back for 40 ms."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    return made


async def _serve(
    server: uvicorn.Server,
    port: int,
    presence: Presence,
    idle_exit: float | None,
    ready: Callable[[int], None],
) -> None:
    listening = bound_socket(port)
    async with _idle_watch(server, presence, idle_exit):
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        while not server.started and not serving.done():  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.005)
        if server.started:
            ready(listening.getsockname()[1])
        await serving


@asynccontextmanager
async def _idle_watch(server: uvicorn.Server, presence: Presence, idle_exit: float | None) -> AsyncIterator[None]:
    async def watch(seconds: float) -> None:
        while (idle := presence.idle()) < seconds:  # noqa: ASYNC110  # it sleeps until it may be time
            await asyncio.sleep(min(seconds - idle, _LIVE_SECONDS) if presence.live() else seconds - idle)
        presence.ending = server.should_exit = True

    watching = asyncio.ensure_future(watch(idle_exit)) if idle_exit is not None else None
    try:
        yield
    finally:
        if watching is not None:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
