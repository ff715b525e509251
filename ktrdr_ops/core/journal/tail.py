"""One operation's events as they come, until it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from ktrdr_ops.core.events import Event
from ktrdr_ops.core.journal.journal import Journal
from ktrdr_ops.core.state import LIVE

_LOOK_SECONDS = 1.0
"""How often a silent operation is looked at: nobody writes anything when its process is killed."""


async def until_over(journal: Journal, operation_id: str, *, after: int = 0) -> AsyncGenerator[Event, None]:
    """Each event behind a position, in order. Ends when the operation is over and all that was written of it is given;
    notes behind its terminal event are given too. Raises what ``Journal.tail`` raises, and OperationNotFound.
    """
    position = after
    async with aclosing(journal.tail(operation_id, after=after)) as events:
        coming: asyncio.Future[Event] | None = None
        try:
            while not await _is_over(journal, operation_id, position):
                looks_again = False
                while not looks_again:
                    coming = coming or asyncio.ensure_future(anext(events))
                    if not (await asyncio.wait({coming}, timeout=_LOOK_SECONDS))[0]:
                        break
                    event, coming = coming.result(), None
                    yield event
                    position = event.position
                    looks_again = event.event_class in ("terminal", "note")
        finally:
            if coming is not None:
                coming.cancel()
                with suppress(asyncio.CancelledError, StopAsyncIteration):
                    await coming


async def _is_over(journal: Journal, operation_id: str, position: int) -> bool:
    state = await journal.state(operation_id)
    return journal.status(state) not in LIVE and state.last_position <= position
