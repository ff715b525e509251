"""How operations go, shown while they do: on a terminal a region that is drawn again, else a line now and then.

Both are drawn from the journal's states, so the process that runs an operation and one that only watches it show the
same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ktrdr_ops.core.replay import progress_state
from ktrdr_ops.core.state import LIVE, OperationState, document
from ktrdr_ops.interfaces.cli import logs, words
from ktrdr_ops.interfaces.cli.screen import safe, unpainted

if TYPE_CHECKING:
    from rich.live import Live

    from ktrdr_ops.app import AsyncApp
    from ktrdr_ops.interfaces.cli.frame import Context

LOOK_SECONDS = 0.1
LINE_SECONDS = 10.0
LINE_PERCENT = 5.0
_BAR = 30


@dataclass(slots=True)
class Told:
    """What was last said of an operation."""

    status: str
    attempt: int
    percentage: float
    at: float

    def is_due(self, state: OperationState, status: str, now: float) -> bool:
        """Whether there is enough to say again."""
        if (status, state.attempt) != (self.status, self.attempt):
            return True
        moved = state.percentage - self.percentage
        return state.live and (moved >= LINE_PERCENT or now - self.at >= LINE_SECONDS)


def bar(percentage: float, *, width: int = _BAR) -> str:
    """``━━━━╸━━━``: how far, without colour: what is to come is a thinner line."""
    full = percentage / 100 * width
    whole = int(full)
    half = "╸" if full - whole >= 0.5 and whole < width else ""
    return "━" * whole + half + "─" * (width - whole - len(half))


class Viewer:
    """Shows operations and their children, from ``add`` until ``close``.

    ``tells_ends``: lines say how what was added ended; else whoever uses this says it.
    """

    def __init__(self, context: Context, app: AsyncApp, *, tells_ends: bool = False) -> None:
        self._tells_ends = tells_ends
        self._drawn: list[str] = []
        self._context = context
        self._app = app
        self._roots: list[str] = []
        self._told: dict[str, Told] = {}
        self._live: Live | None = None

    def add(self, operation_id: str) -> None:
        """Show this one too."""
        if operation_id not in self._roots:
            self._roots.append(operation_id)

    def begun(self, state: OperationState) -> None:
        """Show this one too, and say now that it has begun."""
        self.add(state.operation_id)
        if state.operation_id in self._told:
            return
        self._told[state.operation_id] = Told("running", state.attempt, 0.0, time.monotonic())
        logs.changed(document(state, "running"))
        if not self._context.live:
            self._context.say(self._head(state, "running"))

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> list[OperationState]:
        """Show what there is now; gives the states of what was added, without their children."""
        if not self._roots:
            return []
        states = await self._states()
        for state in states:
            self._note(state)
        if self._context.live:
            self._draw(states)
        return [state for state in states if state.operation_id in self._roots]

    async def close(self) -> None:
        """Show the end, and leave the terminal as it was."""
        try:
            await self.look()
        finally:
            self.stop()

    def stop(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._context.err.above = None
            self._live.stop()
            self._live = None

    async def _states(self) -> list[OperationState]:
        marks = ", ".join("?" * len(self._roots))
        rows = await self._app.journal.rows(
            f"SELECT state FROM operations WHERE operation_id IN ({marks}) OR parent_id IN ({marks})"
            " ORDER BY first_position",
            (*self._roots, *self._roots),
        )
        return [OperationState.restored(row[0]) for row in rows]

    def _note(self, state: OperationState) -> None:
        """Log changes of state, and say a line where no region is drawn and one is due."""
        status, now = self._app.journal.status(state), time.monotonic()
        told = self._told.get(state.operation_id)
        if told is not None and not told.is_due(state, status, now):
            return
        if told is None or (told.status, told.attempt) != (status, state.attempt):
            logs.changed(document(state, status, stalled=self._app.journal.stalled(state)))
        ends_here = status not in LIVE and not self._tells_ends and state.operation_id in self._roots
        if not self._context.live and not ends_here and (status in LIVE or told is not None):
            self._context.say(self._line(state, status))
        self._told[state.operation_id] = Told(status, state.attempt, state.percentage, now)

    def _line(self, state: OperationState, status: str) -> str:
        said = words.status_words(document(state, status, stalled=self._app.journal.stalled(state)))
        return f"{safe(state.operation_id)}  {said}  {state.percentage:.0f}%  {self._message(state)}"

    def _message(self, state: OperationState) -> str:
        progress = progress_state(state)
        renderer = self._app.domains.renderer(state.operation_type)
        return words.progress_words(progress, words.rendered(progress, renderer), words.detail(progress, renderer))

    def _draw(self, states: Sequence[OperationState]) -> None:
        from rich.console import Group
        from rich.text import Text

        screen = self._context.err
        lines = self._region(states)
        room = max(self._height() - 2, 4)
        if len(lines) > room:
            lines = [*lines[: room - 1], f"  … and {len(lines) - room + 1} more lines: ktrdr-ops list"]
        lines = [unpainted(screen.fit(line)) for line in lines]
        if lines == self._drawn:
            return
        self._drawn = lines
        texts = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines]
        if self._live is None:
            self._live = self._begin()
        self._live.update(Group(*texts), refresh=True)

    def _begin(self) -> Live:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        screen = self._context.err
        console = Console(
            file=screen.stream, no_color=not screen.colors, highlight=False, markup=False, emoji=False, soft_wrap=False
        )
        live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        live.start()
        screen.above = lambda text: console.print(Text.from_ansi(text.rstrip("\n")))
        return live

    def _bar(self) -> int:
        return _BAR if self._context.err.width >= 110 else _BAR * 2 // 3

    def _height(self) -> int:
        import shutil

        return shutil.get_terminal_size((80, 24)).lines

    def _region(self, states: Sequence[OperationState]) -> list[str]:
        lines = []
        for state in states:
            status = self._app.journal.status(state)
            if state.operation_id in self._roots:
                lines.append(self._head(state, status))
            elif not state.live and len(states) > 8:
                continue
            lines.append(self._body(state, status, child=state.operation_id not in self._roots))
        return lines

    def _head(self, state: OperationState, status: str) -> str:
        domain = self._app.domains.of_type(state.operation_type)
        found: dict[str, Any] = document(state, status)
        attempt = f"  attempt {state.attempt}" if state.attempt > 1 else ""
        return words.headline(found, domain.fields if domain is not None else ()) + attempt

    def _body(self, state: OperationState, status: str, *, child: bool) -> str:
        name = f"{words.suffix(state.operation_id)} " if child else ""
        said = "" if status == state.status and status not in ("pending", "cancelling") else f"{status}: "
        if state.waiting is not None and status == "running":
            said = f"waiting: {safe(state.waiting['reason'], 80)}  "
        return (
            f"  {name}{bar(state.percentage, width=self._bar())} {state.percentage:3.0f}%  {said}{self._message(state)}"
        )
