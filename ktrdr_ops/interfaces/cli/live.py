"""How operations go, shown while they do: on a terminal a region that is drawn again, else a line now and then.

Both are drawn from the journal's states, so the process that runs an operation and one that only watches it show the
same.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ktrdr_ops.core.clock import micros
from ktrdr_ops.core.events import Event
from ktrdr_ops.core.journal.journal import EVENT_COLUMNS
from ktrdr_ops.core.state import LIVE, OperationState, document
from ktrdr_ops.interfaces.cli import logs, words
from ktrdr_ops.interfaces.cli.screen import safe, unpainted
from ktrdr_ops.interfaces.cli.sparkline import curves

if TYPE_CHECKING:
    from rich.live import Live

    from ktrdr_ops.app import AsyncApp
    from ktrdr_ops.core.events import RequestRetried
    from ktrdr_ops.interfaces.cli.frame import Context

LOOK_SECONDS = 0.1
LINE_SECONDS = 10.0
LINE_PERCENT = 5.0
_BAR = 30


@dataclass(slots=True)
class Told:
    """What was last said of an operation. ``waited``: for what it last was said to wait."""

    status: str
    attempt: int
    percentage: float
    at: float
    waited: str | None = None

    def is_due(self, state: OperationState, status: str, now: float) -> bool:
        """Whether there is enough to say again."""
        if (status, state.attempt) != (self.status, self.attempt):
            return True
        if state.waiting is not None and state.waiting["reason"] != self.waited:
            return True
        moved = state.percentage - self.percentage
        return state.live and (moved >= LINE_PERCENT or now - self.at >= LINE_SECONDS)


@dataclass(frozen=True, slots=True)
class Retry:
    """The last request that failed and is tried again, ``until`` when (microseconds UTC)."""

    position: int
    number: int
    reason: str
    until: int

    @classmethod
    def of(cls, event: Event) -> Retry:
        """From its event."""
        fact = cast("RequestRetried", event.fact)
        return cls(event.position, fact.attempt, fact.reason, event.at + int(fact.wait_seconds * 1e6))

    def words(self, now: int) -> str:
        """``retry 2: the host refused the connection, next in 15 s``."""
        left = math.ceil(max(self.until - now, 0) / 1e6)
        return f"retry {self.number}: {safe(self.reason, 160)}, next {f'in {left} s' if left else 'now'}"


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
        self._retries: dict[tuple[str, int], Retry] = {}
        self._counted: dict[str, int] = {}
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
            await self._learn(state)
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

    async def _learn(self, state: OperationState) -> None:
        """Look for its last retry where there are more than there were; say it where no region is drawn."""
        if state.retries == self._counted.get(state.operation_id, 0):
            return
        first = state.operation_id not in self._told
        self._counted[state.operation_id] = state.retries
        retry = await _last_retry(self._app, state)
        if retry is not None:
            self._retries[state.operation_id, state.attempt] = retry
            if state.live and not first and not self._context.live:
                self._context.say(f"{safe(state.operation_id)}  {retry.words(self._now())}")

    def _now(self) -> int:
        return micros(self._app.journal.clock())

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
        waited = state.waiting["reason"] if state.waiting is not None else told.waited if told is not None else None
        self._told[state.operation_id] = Told(status, state.attempt, state.percentage, now, waited)

    def _line(self, state: OperationState, status: str) -> str:
        said = words.status_words(document(state, status, stalled=self._app.journal.stalled(state)))
        held = self._held(state, status)
        return f"{safe(state.operation_id)}  {said}  {state.percentage:.0f}%  {held}{self._message(state)}"

    def _held(self, state: OperationState, status: str) -> str:
        """For what it waits, if it does."""
        if status != "running":
            return ""
        if state.waiting is not None:
            return f"waiting: {safe(state.waiting['reason'], 80)}  "
        retry = self._retries.get((state.operation_id, state.attempt))
        now = self._now()
        if retry is not None and (now < retry.until or state.last_position == retry.position):
            return f"{retry.words(now)}  "
        return ""

    def _message(self, state: OperationState, room: int | None = None) -> str:
        return words.shown(state, self._app.domains.renderer(state.operation_type), room)

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
            told = curves(state.context)
            if told:
                lines.append(f"    {safe(told)}")
        return lines

    def _head(self, state: OperationState, status: str) -> str:
        domain = self._app.domains.of_type(state.operation_type)
        found: dict[str, Any] = document(state, status)
        attempt = f"  attempt {state.attempt}" if state.attempt > 1 else ""
        return words.headline(found, domain.fields if domain is not None else ()) + attempt

    def _body(self, state: OperationState, status: str, *, child: bool) -> str:
        name = f"{words.suffix(state.operation_id)} " if child else ""
        said = "" if status == state.status and status not in ("pending", "cancelling") else f"{status}: "
        before = f"  {name}{bar(state.percentage, width=self._bar())} {state.percentage:3.0f}%  {said}"
        before += self._held(state, status)
        return before + self._message(state, None if child else self._context.err.width - len(before))


async def _last_retry(app: AsyncApp, state: OperationState) -> Retry | None:
    """The last one of its last attempt."""
    sql = (
        f"SELECT {EVENT_COLUMNS} FROM events WHERE operation_id = ? AND attempt = ? AND type <> 'progressed'"
        " AND type = 'request_retried' ORDER BY sequence DESC LIMIT 1"
    )
    rows = await app.journal.rows(sql, (state.operation_id, state.attempt))
    return Retry.of(Event(*rows[0])) if rows else None
