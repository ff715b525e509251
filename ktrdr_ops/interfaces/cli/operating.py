"""Running operations under a terminal's signals.

    Ctrl+C            asks them to stop, through the journal; a second one stops waiting, and says so in the journal
    SIGTERM, SIGHUP   the process is told to go: they end as interrupted, and another attempt goes on

An operation that ended is printed as its document, whatever became of it; what was refused before it began is an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ktrdr_ops.core.errors import (
    JournalError,
    KtrdrOpsError,
    OperationCancelledException,
    OperationInterrupted,
    OwnershipLost,
)
from ktrdr_ops.interfaces.cli import words
from ktrdr_ops.interfaces.cli.documents import timed_document, whole_document
from ktrdr_ops.interfaces.cli.live import Viewer
from ktrdr_ops.interfaces.cli.screen import safe

if TYPE_CHECKING:
    from ktrdr_ops.app import AsyncApp
    from ktrdr_ops.core.events import Json
    from ktrdr_ops.core.progress import GenericProgressState
    from ktrdr_ops.interfaces.cli.frame import Context

Begin = Callable[[Callable[["GenericProgressState"], None]], Awaitable[Any]]
"""Starts operations; what it is given must be told of their progress."""

CTRL_C = "Ctrl+C"
_LAST_SECONDS = 2.0
"""How long this process waits for threads that an operation left behind."""
_BEFORE_ANY = 1.0
"""Seconds that a start which has no id yet may take after Ctrl+C."""


@dataclass(slots=True)
class Ended:
    """What became of it: the ids of what began, what was raised, the signal that ended it, whether it was left behind
    without having stopped."""

    ids: list[str] = field(default_factory=list)
    value: Any = None
    error: BaseException | None = None
    told: signal.Signals | None = None
    left: bool = False


class _Run:
    """One run: its task, its operations, its signals."""

    def __init__(self, context: Context, app: AsyncApp) -> None:
        self.context = context
        self.app = app
        self.ended = Ended()
        self.viewer = Viewer(context, app)
        self.loop = asyncio.get_running_loop()
        self.task: asyncio.Future[Any]
        self.left_behind = asyncio.Event()
        self._cancels = 0
        self._chores: set[asyncio.Task[None]] = set()

    def progressed(self, state: GenericProgressState) -> None:
        """The first news of an operation is that it has begun."""
        if state.operation_id not in self.ended.ids:
            self.ended.ids.append(state.operation_id)
            self.loop.call_soon_threadsafe(self._begun, state.operation_id)

    def _begun(self, operation_id: str) -> None:
        self._chore(self._announce(operation_id))
        if self._cancels:
            self._chore(self._cancel(operation_id))
        if self.ended.told is not None:
            self.app.framework.interrupt_all(f"signal {self.ended.told.name}")

    async def _announce(self, operation_id: str) -> None:
        state = await self.app.journal.state(operation_id)
        if state.attempt > 1:
            kept = f"{state.steps:,} {'step' if state.steps == 1 else 'steps'} kept"
            self.context.say(f"going on with {safe(operation_id)}: attempt {state.attempt}, {kept}")
        self.viewer.begun(state)

    def on_ctrl_c(self) -> None:
        """Ask everything that runs to stop; the second time, wait no longer."""
        self._cancels += 1
        if self._cancels > 1:
            self._chore(self._leave())
            return
        self.context.say("stopping; Ctrl+C again stops waiting for it")
        for operation_id in self.ended.ids:
            self._chore(self._cancel(operation_id))
        self.loop.call_later(_BEFORE_ANY, self._give_up_beginning)

    def on_told_to_go(self, number: signal.Signals) -> None:
        """End as interrupted; told again, go at once."""
        if self.ended.told is not None:
            self.left_behind.set()
        self.ended.told = number
        self.app.framework.interrupt_all(f"signal {number.name}")
        self.loop.call_later(_BEFORE_ANY, self._give_up_beginning)

    def _give_up_beginning(self) -> None:
        if not self.ended.ids:
            self.task.cancel()

    async def _cancel(self, operation_id: str) -> None:
        try:
            await self.app.framework.cancel_operation(operation_id, CTRL_C, "user")
        except KtrdrOpsError:  # it is over, or the journal is: the token tells whatever still runs here
            self.app.framework.cancellation_system.cancel_operation(operation_id, CTRL_C, "user")

    async def _leave(self) -> None:
        """Stop waiting: state in the journal that nobody confirmed the stop."""
        from ktrdr_ops.core.clock import micros
        from ktrdr_ops.core.events import Cancelled
        from ktrdr_ops.core.journal.decisions import Say, draft

        for operation_id in reversed(self.app.framework.tasks.running):
            with contextlib.suppress(KtrdrOpsError):
                state = await self.app.journal.state(operation_id)
                asked = (state.cancellation or {}).get("requested_at")
                latency = None if asked is None else (micros(self.app.journal.clock()) - asked) / 1000
                fact = Cancelled(requested_by="user", reason=f"{CTRL_C} twice", latency_ms=latency, confirmed=False)
                await self.app.journal.append(Say((draft(operation_id, state.attempt, fact),)))
        if self.ended.ids:
            self.left_behind.set()
        else:
            self.task.cancel()

    def _chore(self, work: Any) -> None:
        task = self.loop.create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def finish_chores(self) -> None:
        """Let what was begun here end."""
        if self._chores:
            await asyncio.wait(set(self._chores), timeout=2.0)


async def operate(context: Context, app: AsyncApp, begin: Begin) -> Ended:
    """Run what ``begin`` starts to its end, showing it, under the signals."""
    run = _Run(context, app)
    run.task = asyncio.ensure_future(begin(run.progressed))
    watching = asyncio.ensure_future(run.viewer.run())
    leaving = asyncio.ensure_future(run.left_behind.wait())
    with _signals(run):
        try:
            await asyncio.wait({run.task, leaving}, return_when=asyncio.FIRST_COMPLETED)
            await run.finish_chores()
        finally:
            await _gone(watching, leaving)
            with contextlib.suppress(KtrdrOpsError):
                await run.viewer.close()
            run.viewer.stop()
    return _ended(run)


def _ended(run: _Run) -> Ended:
    ended = run.ended
    if not run.task.done():
        ended.left = True
        ended.error = OperationCancelledException("it was left before it had stopped")
    elif run.task.cancelled():
        ended.error = _told_before(ended)
    else:
        ended.error = run.task.exception()
        ended.value = None if ended.error is not None else run.task.result()
    return ended


def _told_before(ended: Ended) -> KtrdrOpsError:
    if ended.told is not None:
        return OperationInterrupted(f"told to go by {ended.told.name} before it had begun")
    return OperationCancelledException("cancelled before it had begun")


async def _gone(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def _signals(run: _Run) -> Any:
    """Ctrl+C, SIGTERM and SIGHUP go to the run while it lasts."""
    handlers: dict[signal.Signals, Callable[[], None]] = {signal.SIGINT: run.on_ctrl_c}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup: it was meant
            handlers[number] = lambda number=number: run.on_told_to_go(number)  # type: ignore[misc]
    for number, handler in handlers.items():
        run.loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            run.loop.remove_signal_handler(number)


def exit_code(ended: Ended) -> int:
    """0 when it completed; 128 + the signal that ended it; else the error's."""
    error = ended.error
    if error is None:
        return 0
    if isinstance(error, OperationInterrupted) and ended.told is not None:
        return 128 + ended.told
    return error.exit_code if isinstance(error, KtrdrOpsError) else 1


def is_refusal(ended: Ended) -> bool:
    """Whether there is no outcome of ours to print: nothing began, or it is no longer ours to tell."""
    return not ended.ids or isinstance(ended.error, OwnershipLost | JournalError)


async def told(context: Context, app: AsyncApp, ended: Ended) -> int:
    """Print what became of the one operation that was run; gives the exit code. Raises what was refused."""
    if ended.error is not None and is_refusal(ended):
        raise ended.error
    found = await whole_document(app, ended.ids[0])
    if found["error"] is None and isinstance(ended.error, KtrdrOpsError):
        found["error"] = ended.error.document()
    await tell(context, app, found)
    return leave(app, ended, exit_code(ended))


async def tell(context: Context, app: AsyncApp, found: dict[str, Json]) -> None:
    """The outcome: a completed one is the result, on stdout; any other is said on stderr."""
    text = await outcome_text(context, app, found)
    if context.json or found["status"] == "completed":
        context.emit(found, text)
    else:
        context.complain(text)


async def outcome_text(context: Context, app: AsyncApp, found: dict[str, Json]) -> str:
    """How it ended, and the command that goes on; with -q without hints."""
    command = context.command("resume", words.suffix(found["operation_id"]))
    state = await app.journal.state(found["operation_id"])
    _, took = await timed_document(app, state)
    text = words.outcome(found, command, took, goes_on_elsewhere=state.outlives)
    return text.partition("\n")[0] if context.quiet else text


def leave(app: AsyncApp, ended: Ended, code: int) -> int:
    """The exit code. A thread that an operation left behind must not keep the process: it would be waited for, so this
    process ends by itself after a moment, what it had to say being said."""
    if ended.error is not None or ended.told is not None:
        app.journal.flush(5.0)
        sys.stdout.flush()
        timer = threading.Timer(0.0 if ended.left else _LAST_SECONDS, os._exit, (code,))
        timer.daemon = True
        timer.start()
    if ended.left:
        timer.join()
    return code
