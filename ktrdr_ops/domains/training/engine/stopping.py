"""Having a session stop: it counts when the host no longer lists it as running, whatever its cancel answered."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ktrdr_ops.core.errors import HostRefused
from ktrdr_ops.domains.training.engine.generations import session_on
from ktrdr_ops.domains.training.engine.host import Session, TrainingHostService
from ktrdr_ops.domains.training.engine.patience import NOTHING_USABLE, PROBE_SECONDS

T = TypeVar("T")

_FASTEST, _SLOWEST, _RATIO = 0.05, 1.0, 4.0


async def stopped(host: TrainingHostService, session_id: str, session: Session | None, *, known: bool) -> str:
    """How the session is when it no longer runs: ``stopped``, ``failed``, ``completed``, or ``gone`` where the host
    does not list it though it had it (``known``; else its start may still come in). Without end if it goes on, or the
    host stays away: the deadline is the caller's.

    ``session`` is None where the generation is not known yet. Raises HostRefused where the host refuses the question.
    """
    if session is None:
        session = await _answered(lambda: session_on(host, session_id, None))
    asked = float("-inf")
    while True:
        if time.monotonic() - asked >= PROBE_SECONDS:  # one that came too early did nothing
            with contextlib.suppress(HostRefused):
                await _answered(session.stop)
            asked = time.monotonic()
        began = time.monotonic()
        status = await _answered(lambda: host.listed(session_id))
        if status is None and known:
            return "gone"
        if status not in (None, "running"):
            return status
        known |= status is not None
        await asyncio.sleep(min(max(_RATIO * (time.monotonic() - began), _FASTEST), _SLOWEST))


async def _answered(call: Callable[[], Awaitable[T]]) -> T:
    while True:
        with contextlib.suppress(*NOTHING_USABLE):
            return await call()
        await asyncio.sleep(PROBE_SECONDS)
