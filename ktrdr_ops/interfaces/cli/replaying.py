"""Replay: what was shown then, through the same progress manager and renderers as live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from ktrdr_ops.core.clock import iso, moment
from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.core.journal import history
from ktrdr_ops.core.progress import GenericProgressManager, GenericProgressState
from ktrdr_ops.core.replay import replay
from ktrdr_ops.core.state import OperationState, document
from ktrdr_ops.interfaces.cli import words
from ktrdr_ops.interfaces.cli.documents import reading, since_micros
from ktrdr_ops.interfaces.cli.frame import LOOK, Context, command
from ktrdr_ops.interfaces.cli.screen import safe

if TYPE_CHECKING:
    from ktrdr_ops.app import AsyncApp
    from ktrdr_ops.core.events import Event, Json

_LONGEST_PAUSE = 3600.0


def register(cli: typer.Typer) -> None:
    """Add ``replay``."""
    command(cli, "replay", help="What was shown, at a moment or played back", panel=LOOK)(replay_)


@dataclass(frozen=True, slots=True)
class Shown:
    """What an event made a terminal show: the progress with its rendered message."""

    event: Event
    state: OperationState
    progress: GenericProgressState
    detail: str

    def document(self) -> dict[str, Json]:
        """As --json prints it."""
        left = self.progress.estimated_remaining
        return {
            "position": self.event.position,
            "at": iso(self.event.at),
            "type": self.event.type,
            "status": self.state.status,
            "attempt": self.state.attempt,
            "percentage": self.progress.percentage,
            "current_step": self.progress.current_step,
            "total_steps": self.progress.total_steps,
            "items_processed": self.progress.items_processed,
            "total_items": self.progress.total_items,
            "eta_seconds": None if left is None else left.total_seconds(),
            "message": self.progress.message,
        }

    def text(self) -> str:
        """On a line."""
        at = moment(self.event.at).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        said = words.progress_words(self.progress, safe(self.progress.message, 400), self.detail)
        return f"{self.event.position:>8}  {at}Z  {self.progress.percentage:3.0f}%  {said}"


def replay_(
    context: Context,
    operation: Annotated[str, typer.Argument(metavar="ID", help="Which one.")] = "@last",
    at: Annotated[
        str | None, typer.Option("--at", metavar="POSITION|TIME|PERCENT", help="As it was then: 120, 14:05, 8h, 50%.")
    ] = None,
    play: Annotated[bool, typer.Option("--play", help="Play it back.")] = False,
    speed: Annotated[str, typer.Option("--speed", metavar="N", help="So many times as fast.")] = "20x",
) -> int:
    """Show again what was shown; --at shows one moment, --play all of it in its own rhythm."""
    if at is not None and play:
        raise InvalidValue("--at shows one moment, --play all of them", hint="Give one of the two.")
    factor = _speed(speed)

    async def look(app: AsyncApp) -> int:
        operation_id = await history.find(app.journal, operation)
        if at is not None:
            await _at(context, app, operation_id, at)
        elif play:
            await _play(context, app, operation_id, factor)
        else:
            await _all(context, app, operation_id)
        return 0

    try:
        code: int = reading(context, operation, look)
    except KeyboardInterrupt:
        return 0
    return code


def _speed(text: str) -> float:
    try:
        factor = float(text.removesuffix("x"))
    except ValueError:
        factor = 0.0
    if not 0.001 <= factor <= 1e9:
        raise InvalidValue(f"--speed {text[:40]!r} is no speed", hint="For example: --speed 20x")
    return factor


async def shown(app: AsyncApp, operation_id: str) -> AsyncIterator[Shown]:
    """Each thing that was shown, in order, its message rendered by the operation's domain."""
    last: list[GenericProgressState] = []
    asked = await history.submitted(app.journal, operation_id)
    renderer = app.domains.renderer(asked.operation_type)
    manager = GenericProgressManager(last.append, renderer)
    async for event, state in replay(app.journal, operation_id, manager):
        if last:
            progress = last.pop()
            yield Shown(event, state, progress, words.detail(progress, renderer))


async def _all(context: Context, app: AsyncApp, operation_id: str) -> None:
    if context.json:
        documents = [one.document() async for one in shown(app, operation_id)]
        context.emit({"operation_id": operation_id, "shown": documents}, "")
        return
    before = None
    context.out.write(safe(operation_id))
    async for one in shown(app, operation_id):
        looks = (one.progress.message, round(one.progress.percentage), one.state.status)
        if looks != before:
            context.out.write(one.text())
        before = looks


async def _play(context: Context, app: AsyncApp, operation_id: str, factor: float) -> None:
    before: int | None = None
    async for one in shown(app, operation_id):
        if before is not None:
            await asyncio.sleep(min(max(one.event.at - before, 0) / 1e6 / factor, _LONGEST_PAUSE))
        before = one.event.at
        context.emit_line(one.document(), one.text())


async def _at(context: Context, app: AsyncApp, operation_id: str, text: str) -> None:
    """The state as it was. Raises InvalidValue for a moment before its first event."""
    state = await _state_then(context, app, operation_id, text)
    state, took = await history.as_lived(app.journal, state, state.status, state.last_at)
    found = document(state, state.status)
    told = words.shown(state, app.domains.renderer(state.operation_type))
    then = f"{iso(state.last_at)}, position {state.last_position:,}"
    context.emit(found, f"{words.field_words(found, took)}\n  {'shown':<10} {told}\n  {'then':<10} {then}")


async def _state_then(context: Context, app: AsyncApp, operation_id: str, text: str) -> OperationState:
    if text.endswith("%"):
        return await _state_at_percentage(app, operation_id, text)
    if text.isdecimal():
        state = await history.state_at(app.journal, operation_id, position=min(int(text), 2**62))
    else:
        state = await history.state_at(app.journal, operation_id, at=since_micros(context, text))
    if state is None:
        first = (await app.journal.read(operation_id, limit=1))[0]
        raise InvalidValue(
            f"{operation_id} had not begun at {text[:80]}",
            hint=f"Its first event is at position {first.position}, {iso(first.at)}.",
        )
    return state


async def _state_at_percentage(app: AsyncApp, operation_id: str, text: str) -> OperationState:
    """The first state that was so far, in its last attempt that came so far."""
    try:
        wanted = float(text.removesuffix("%"))
    except ValueError:
        wanted = -1.0
    if not 0 <= wanted <= 100:
        raise InvalidValue(f"--at {text[:40]!r} is no percentage", hint="From 0% to 100%.")
    found: OperationState | None = None
    best = 0.0
    async for one in shown(app, operation_id):
        best = max(best, one.state.percentage)
        if one.state.percentage >= wanted and (found is None or found.attempt != one.state.attempt):
            found = one.state
    if found is None:
        raise InvalidValue(f"{operation_id} never came to {wanted:g} %", hint=f"It came to {best:.1f} %.")
    return found
