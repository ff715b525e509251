"""A data host for a test: the embedded one, in a thread of this process, over real HTTP on loopback."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from ktrdr_ops.hosts.data_host import create_app
from ktrdr_ops.hosts.series import SeriesSource
from ktrdr_ops.hosts.serving import bound_socket


@contextmanager
def data_host(folder: Path | None = None, *, latency: float = 0.0) -> Iterator[str]:
    """The base URL of a data host that serves the shipped series, or those of a folder."""
    config = uvicorn.Config(
        create_app(SeriesSource(folder), latency),
        host="127.0.0.1",
        port=0,
        log_level="warning",
        timeout_graceful_shutdown=1,
        lifespan="off",
    )
    server = uvicorn.Server(config)
    socket = bound_socket(0)
    began = threading.Event()

    async def serve() -> None:
        serving = asyncio.ensure_future(server.serve(sockets=[socket]))
        while not server.started:
            await asyncio.sleep(0.002)
        began.set()
        await serving

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert began.wait(20)
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
