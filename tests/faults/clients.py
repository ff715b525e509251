"""Processes that use one journal on behalf of a test, forked from a server that has imported everything already."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from ktrdr_ops.core.errors import KtrdrOpsError
from ktrdr_ops.core.events import Cancelled, Completed, Failed, Progressed, StepCompleted, Submitted
from ktrdr_ops.core.journal.decisions import Cancel, Claim, Resume, Say, Start, draft
from ktrdr_ops.core.journal.journal import Journal, open_journal

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__, "ktrdr_ops.core.journal.journal"])

ENDS: dict[str, Completed | Failed | Cancelled] = {
    "completed": Completed(),
    "failed": Failed(code="x", message="m"),
    "cancelled": Cancelled(requested_by="me", reason="r"),
}


class Client:
    """One process with the journal open. ``call`` gives what it answered, or the code of the error that it met."""

    def __init__(self, path: Path) -> None:
        self._ours, theirs = _CONTEXT.Pipe()
        self.process: ForkServerProcess = _CONTEXT.Process(target=_serve, args=(str(path), theirs), daemon=True)
        self.process.start()
        theirs.close()
        assert self._ours.recv() == "open"

    def call(self, name: str, *arguments: Any) -> Any:
        """Ask, and wait for the answer."""
        self._ours.send((name, arguments))
        return self._ours.recv()

    def begin(self, calls: list[tuple[str, tuple[Any, ...]]]) -> None:
        """Make these calls, one after the other, without waiting for each other's process."""
        self._ours.send(("many", (calls,)))

    def ended(self) -> list[tuple[int, int, str, tuple[Any, ...], Any]]:
        """What ``begin`` made: (began, ended, name, arguments, answer); times in nanoseconds of one clock."""
        made: list[tuple[int, int, str, tuple[Any, ...], Any]] = self._ours.recv()
        return made

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.join()
        self._ours.close()

    def close(self) -> None:
        """Close the journal and end."""
        self._ours.send(("close", ()))
        self.process.join()
        self._ours.close()


def _serve(path: str, pipe: Connection) -> None:
    asyncio.run(_answer(path, pipe))


async def _answer(path: str, pipe: Connection) -> None:
    journal = open_journal(path)
    pipe.send("open")
    while True:
        name, arguments = pipe.recv()
        if name == "close":
            await journal.aclose()
            return
        if name == "many":
            made = []
            for one, given in arguments[0]:
                began = time.monotonic_ns()
                answer = await _call(journal, one, given)
                made.append((began, time.monotonic_ns(), one, given, answer))
            pipe.send(made)
        else:
            pipe.send(await _call(journal, name, arguments))


async def _call(journal: Journal, name: str, arguments: tuple[Any, ...]) -> Any:
    try:
        return await _CALLS[name](journal, *arguments)
    except KtrdrOpsError as error:
        return error.code if error.code != "journal" else f"journal: {error}"


async def _start(journal: Journal, key: str, digest: str) -> tuple[str, int]:
    submitted = Submitted(operation_type="work", key=key, total_steps=1, parameters={}, digest=digest)
    claim: Claim = await journal.append(Start("work", submitted, journal.owner()))
    return claim.operation_id, claim.attempt


async def _resume(journal: Journal, operation_id: str) -> tuple[str, int]:
    claim: Claim = await journal.append(Resume(operation_id, journal.owner()))
    return claim.operation_id, claim.attempt


async def _step(journal: Journal, operation_id: str, attempt: int, name: str) -> int:
    position: int = await journal.append(Say((draft(operation_id, attempt, StepCompleted(name=name)),)))
    return position


async def _progress(journal: Journal, operation_id: str, attempt: int, message: str) -> None:
    journal.say(operation_id, attempt, Progressed(step=1, percentage=1.0, message=message))


async def _end(journal: Journal, operation_id: str, attempt: int, how: str) -> int:
    position: int = await journal.append(Say((draft(operation_id, attempt, ENDS[how]),)))
    return position


async def _cancel(journal: Journal, operation_id: str) -> str:
    await journal.append(Cancel(operation_id, "me", "r", journal.owner()))
    return "asked"


async def _read(journal: Journal, operation_id: str) -> tuple[str, int, int]:
    state = await journal.state(operation_id)
    return state.status, state.attempt, state.steps


async def _events(journal: Journal) -> list[tuple[int, str, int | None, str, bytes]]:
    return [
        (event.position, event.operation_id, event.attempt, event.type, event.payload)
        async for event in journal.read_all()
    ]


_CALLS: dict[str, Any] = {
    "start": _start,
    "resume": _resume,
    "step": _step,
    "progress": _progress,
    "end": _end,
    "cancel": _cancel,
    "read": _read,
    "events": _events,
}
