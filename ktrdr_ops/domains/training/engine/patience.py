"""Waiting for a host: one that does not answer, and one that is busy. Each wait is told, and ends with a cancel."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from ktrdr_ops.core.errors import HostAnswerWrong, HostServiceError, HostUnavailable, OperationInterrupted
from ktrdr_ops.core.progress import format_duration
from ktrdr_ops.domains.training.engine.errors import HostBusy, TrainingHostUnavailable
from ktrdr_ops.domains.training.engine.host import SERVICE

if TYPE_CHECKING:
    from ktrdr_ops.core.attempt import Attempt

T = TypeVar("T")

NOTHING_USABLE = (HostUnavailable, HostAnswerWrong)
PROBE_SECONDS = 1.0
_FIRST_PROBE = 0.2
_BUSY_FIRST, _BUSY_LONGEST = 0.5, 5.0


class Patience:
    """One attempt's. Before the host's first answer (``answered``) an absent one is not waited for."""

    def __init__(self, attempt: Attempt, last_seen: Callable[[], str]) -> None:
        self.answered = False
        self._attempt = attempt
        self._last_seen = last_seen

    async def usable(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the call gives, however long the host is away, asked about once a second. Raises OperationInterrupted,
        which a later attempt goes on from, when patience ends; before the first answer what the call raises."""
        try:
            value = await call()
        except NOTHING_USABLE as error:
            if not self.answered:
                raise
            value = await self._until_back(call, error)
        self.answered = True
        return value

    async def _until_back(self, call: Callable[[], Awaitable[T]], error: HostServiceError) -> T:
        patience, token = self._attempt.patience, self._attempt.token
        ends, pause = time.monotonic() + patience, _FIRST_PROBE
        async with self._attempt.waiting(error.message[:500], patience):
            while (left := ends - time.monotonic()) > 0:
                await token.sleep(min(pause, left))
                pause = PROBE_SECONDS
                with contextlib.suppress(*NOTHING_USABLE):
                    return await call()
        raise OperationInterrupted(
            f"no answer for {format_duration(patience)}: outcome unknown, {self._last_seen()} ({error.message})",
            hint="When the host is back, the same command again listens to the session, if it is still there.",
        )

    async def free(self, start: Callable[[], Awaitable[None]]) -> None:
        """Start it; while the host is busy, again. Raises TrainingHostUnavailable when patience ends."""
        try:
            return await start()
        except HostBusy as error:
            busy = error.message
        patience, pause = self._attempt.patience, _BUSY_FIRST
        ends = time.monotonic() + patience
        async with self._attempt.waiting(busy[:500], patience):
            while (left := ends - time.monotonic()) > 0:
                await self._attempt.token.sleep(min(pause, left))
                pause = min(pause * 2, _BUSY_LONGEST)
                with contextlib.suppress(HostBusy):
                    return await start()
        raise TrainingHostUnavailable(
            f"{busy}: waited {format_duration(patience)} for a free session",
            hint="Later, or wait longer: --wait 2h",
            service=SERVICE,
        )
