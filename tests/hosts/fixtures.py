"""Hosts for a test: the embedded ones over real HTTP on loopback, the data host in a thread of this process, the
training host in a process of its own that can be paused and killed."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

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


@dataclass(frozen=True)
class TrainingHostProcess:
    """An embedded training host in a process of its own."""

    url: str
    process: subprocess.Popen[bytes]
    data_dir: Path
    models_dir: Path

    def pause(self) -> None:
        """Let it stand still, connections open, until ``go_on``."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash does. Returns when it is gone."""
        self.process.kill()
        self.process.wait(10)


@contextmanager
def training_host(
    data_dir: Path,
    models_dir: Path,
    *,
    generation: int = 2,
    max_sessions: int = 1,
    pace: float = 0.0,
    lying_cancel: bool = False,
    idle_exit: float | None = None,
    port: int = 0,
) -> Iterator[TrainingHostProcess]:
    """A training host over these folders, which answers when it is given, and is gone afterwards."""
    options: dict[str, object] = {"port": port, "generation": generation, "max-sessions": max_sessions, "pace": pace}
    if idle_exit is not None:
        options["idle-exit"] = idle_exit
    with TemporaryDirectory() as folder:
        state_file, log = Path(folder, "state.json"), Path(folder, "log")
        folders = ["--data-dir", str(data_dir), "--models-dir", str(models_dir), "--state-file", str(state_file)]
        command = [sys.executable, "-m", "ktrdr_ops.hosts", "training", *folders, *["--lying-cancel"] * lying_cancel]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + 40
            while not state_file.exists():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            url = f"http://127.0.0.1:{json.loads(state_file.read_text())['port']}"
            yield TrainingHostProcess(url, process, data_dir, models_dir)
        finally:
            process.kill()
            process.wait(10)


def sample_series(folder: Path, *symbols: str, since: str = "2007") -> Path:
    """Write the shipped daily bars of these symbols into a data folder as CSV files; gives the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    source = SeriesSource()
    for symbol in symbols:
        series = source.get(symbol, "1d")
        assert series is not None
        lines = [
            f"{moment:%Y-%m-%dT%H:%M:%SZ},{','.join(map(str, row))}\n"
            for moment, row in zip(series.times, series.rows, strict=True)
            if f"{moment:%Y}" >= since
        ]
        (folder / f"{symbol}_1d.csv").write_text(",open,high,low,close,volume\n" + "".join(lines))
    return folder
