"""Processes for fault tests, forked from a server that has imported everything and opened nothing.

A process that is killed after a few milliseconds must not spend half a second on imports first. The server is a fresh
Python (the test's own process may have journals open, whose locks a fork does not inherit): it imports the modules that
hold the functions to be run, opens no journal, and forks one child for each request. A child says JSON lines on its
stdout, which the test reads; what it said before a SIGKILL is in the pipe whole, since short writes are not divided.

Only the server reaps, and only when asked: a pid is never somebody else's while a test may still signal it.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import gc
import importlib
import inspect
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0
"""Seconds after which a child that says nothing, or does not end, fails the test."""


def seed() -> int:
    """What a fault test's random numbers begin with: FAULT_SEED, or one of its own. The test prints it."""
    return int(os.environ.get("FAULT_SEED") or random.SystemRandom().randrange(1 << 32))


def say(*values: Any) -> None:
    """In a child: one line for the test."""
    os.write(1, json.dumps(values).encode() + b"\n")


def hear() -> str:
    """In a child: wait for a line from the test. The child ends when the test is gone."""
    line = b""
    while not line.endswith(b"\n"):
        got = os.read(0, 1)
        if not got:
            os._exit(0)
        line += got
    return line.decode().rstrip("\n")


class Child:
    """A forked process, seen from the test."""

    def __init__(self, server: ForkServer, pid: int, stdin: int, stdout: int) -> None:
        self.pid = pid
        self.ended = False
        self.exit_code: int | None = None
        self._server = server
        self._stdin = stdin
        self._stdout = stdout
        self._rest = b""
        self._lines: list[list[Any]] = []

    def fileno(self) -> int:
        """For ``select``."""
        return self._stdout

    def tell(self, text: str = "") -> None:
        """One line for its ``hear``."""
        os.write(self._stdin, text.encode() + b"\n")

    def signal(self, number: int) -> None:
        """Send a signal. Harmless when it has ended: nobody has reaped it."""
        os.kill(self.pid, number)

    def take(self) -> list[list[Any]]:
        """The lines that it has said by now, without waiting."""
        self._read()
        taken, self._lines = self._lines, []
        return taken

    def _read(self) -> None:
        while not self.ended and select.select([self._stdout], [], [], 0)[0]:
            got = os.read(self._stdout, 1 << 16)
            self.ended = not got
            *whole, self._rest = (self._rest + got).split(b"\n")
            self._lines += [json.loads(line) for line in whole]

    def line(self, seconds: float = PATIENCE) -> list[Any]:
        """The next line. Fails the test when none comes."""
        deadline = time.monotonic() + seconds
        while not self._lines:
            self._read()
            if self._lines:
                break
            assert not self.ended, f"process {self.pid} ended with {self.wait()} and said nothing more"
            assert time.monotonic() < deadline, f"process {self.pid} said nothing for {seconds} s"
            select.select([self._stdout], [], [], deadline - time.monotonic())
        return self._lines.pop(0)

    def stop(self) -> None:
        """SIGSTOP, and wait until it has stopped."""
        self.signal(signal.SIGSTOP)
        deadline = time.monotonic() + PATIENCE
        while _state(self.pid) not in "TtZX":
            assert time.monotonic() < deadline, f"process {self.pid} does not stop"
            time.sleep(0.0002)

    def go_on(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait for its end: its exit code, or minus the signal. Lines that are left stay there for ``take``."""
        if self.exit_code is None:
            deadline = time.monotonic() + seconds
            while not self.ended:
                assert time.monotonic() < deadline, f"process {self.pid} did not end within {seconds} s"
                select.select([self._stdout], [], [], max(deadline - time.monotonic(), 0))
                self._read()
            self.exit_code = self._server.ask({"wait": self.pid})
        return self.exit_code

    def forget(self) -> None:
        """Close the pipes to what has ended: a child that it forked itself hears the end."""
        os.close(self._stdin)
        os.close(self._stdout)

    def kill(self) -> list[list[Any]]:
        """SIGKILL; gives what it had said and nobody had taken yet."""
        if self.exit_code is None:
            self.signal(signal.SIGKILL)
            self.wait()
        return self.take()


class ForkServer:
    """Forks children that run functions of the given modules. A context manager: no child outlives it."""

    def __init__(self, *modules: str) -> None:
        self._children: list[Child] = []
        self._preload = os.environ.get("LD_PRELOAD", "")
        self.ask({"import": modules})

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.kill()
            child.forget()

    def fork(self, function: Callable[..., Any], *arguments: Any) -> Child:
        """Run a function (or coroutine function) in a new child; its arguments must be JSON."""
        if len(self._children) > 100:  # select takes no handle above 1023
            self._forget_ended()
        child_in, stdin = os.pipe()
        stdout, child_out = os.pipe()
        named = [function.__module__, function.__qualname__]
        pid = self.ask({"run": named, "arguments": arguments}, [child_in, child_out])
        os.close(child_in)
        os.close(child_out)
        child = Child(self, pid, stdin, stdout)
        self._children.append(child)
        return child

    def ask(self, request: dict[str, Any], handles: Iterable[int] = ()) -> int:
        """One request to the server, answered by a number."""
        link = _link(self._preload)
        socket.send_fds(link, [json.dumps(request).encode()], list(handles))
        answer: int = json.loads(link.recv(1 << 16))
        return answer

    def _forget_ended(self) -> None:
        kept = []
        for child in self._children:
            if child.exit_code is None:
                kept.append(child)
            else:
                child.forget()
        self._children = kept


@functools.cache
def _link(preload: str) -> socket.socket:
    """The way to this test process's one server with a preloaded library (or none), which ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment["LD_PRELOAD"] = preload
    command = [sys.executable, "-m", __name__, str(theirs.fileno())]
    server = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, cwd=ROOT)
    theirs.close()

    def end() -> None:
        ours.close()
        server.wait(PATIENCE)

    atexit.register(end)
    return ours


def _state(pid: int) -> str:
    """The state letter of a process."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]


def _serve(link: socket.socket) -> None:
    children: set[int] = set()
    while True:
        message, handles, _, _ = socket.recv_fds(link, 1 << 16, 2)
        if not message:
            break
        request = json.loads(message)
        if "import" in request:
            answer = _imported(request["import"])
        elif "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            children.discard(request["wait"])
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                _run(link, request, handles)
            children.add(answer)
            for handle in handles:
                os.close(handle)
        link.send(json.dumps(answer).encode())
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _imported(modules: list[str]) -> int:
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # else each child's first collection would copy all that is shared
    return len(modules)


def _run(link: socket.socket, request: dict[str, Any], handles: list[int]) -> None:
    """The child's life. It never returns into the server."""
    code = 1
    try:
        link.close()
        for handle, name in zip(handles, (0, 1), strict=True):
            os.dup2(handle, name)
            os.close(handle)
        module, name = request["run"]
        result = getattr(importlib.import_module(module), name)(*request["arguments"])
        if inspect.iscoroutine(result):
            asyncio.run(result)
        code = 0
    except BaseException:  # whatever it is, the child must not live on as a second server
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main(link: int) -> None:
    """The server's own process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the test, which then ends the server
    _serve(socket.socket(fileno=link))


if __name__ == "__main__":
    main(int(sys.argv[1]))
