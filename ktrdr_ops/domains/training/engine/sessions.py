"""One attempt's dealings with the host: finding or starting the session, listening to it, stopping it.

The session's id is ours, chosen and journaled before it is sent, so that a start whose answer was lost is sent again
and recognised. What the journal knows of it:

    session 1             its id; whether the host ever had it is not known
    session 1 started     the host said so: from now on one that it does not know is lost, and its outcome with it
    session 1 ended       it failed or was stopped; a later attempt starts session 2, which goes on from it
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from ktrdr_ops.core.errors import (
    HostAnswerWrong,
    HostServiceError,
    HostUnavailable,
    OperationCancelledException,
    OperationInterrupted,
)
from ktrdr_ops.core.progress import format_duration
from ktrdr_ops.domains.training.engine.errors import (
    HostBusy,
    SessionFailed,
    SessionStopped,
    SessionUnknown,
    TrainingHostUnavailable,
)
from ktrdr_ops.domains.training.engine.generations import session_on
from ktrdr_ops.domains.training.engine.host import SERVICE, Look, Session, TrainingHostService, status_of

if TYPE_CHECKING:
    from ktrdr_ops.core.attempt import Attempt
    from ktrdr_ops.domains.training.engine.config import TrainingConfig
    from ktrdr_ops.domains.training.engine.epochs import Epochs

T = TypeVar("T")

STOP_DEADLINE = 30.0
"""Seconds in which the host must have stopped after a cancel; later the cancel is not confirmed."""
_GRACE = 2.0
_PROBE_SECONDS = 1.0
_BUSY_FIRST, _BUSY_LONGEST = 0.5, 5.0
_FASTEST_POLL, _SLOWEST_POLL, _POLL_RATIO = 0.1, 5.0, 4.0
_FASTEST_STOP_POLL = 0.05
_NOTHING_USABLE = (HostUnavailable, HostAnswerWrong)
_LOST = ("refused", "reset", "deadline", "truncated", "garbled", "not_json", "content_type", "oversize")


class Training:
    """The session of one attempt."""

    def __init__(
        self,
        host: TrainingHostService,
        config: TrainingConfig,
        attempt: Attempt,
        epochs: Epochs,
        stop_deadline: float = STOP_DEADLINE,
    ) -> None:
        self.host = host
        self.config = config
        self.attempt = attempt
        self.token = attempt.token
        self.epochs = epochs
        self.number = 0
        self.session_id = ""
        self.session: Session
        self._stop_deadline = stop_deadline
        self._answered = False
        self._starting: asyncio.Future[None] | None = None
        self._may_run = False

    async def completed(self, began: Callable[[], None]) -> Mapping[str, Any]:
        """Have a session completed, an earlier attempt's if there is one; ``began`` is called when it runs.

        Gives what the host says of the result, empty where it says nothing. Raises SessionFailed, SessionStopped,
        TrainingHostUnavailable, OperationInterrupted for an outcome that is not known, OperationCancelledException
        once the host has stopped (or, ``confirmed=False``, has not).
        """
        try:
            while True:
                found = await self._begin()
                began()
                self.epochs.begin(self.number)
                if await self._listen(found):
                    return await self._patiently(lambda: self.session.result(self.token)) or {}
        except SessionUnknown as error:
            raise await self._lost() from error
        except (OperationCancelledException, asyncio.CancelledError):
            if not self.token.is_cancelled() or self.token.interrupting:
                raise
            raise await self._stopped() from None
        finally:
            await self._no_start_left()

    # Beginning

    async def _begin(self) -> bool:
        """The session that an earlier attempt started (then True), or a new one."""
        steps = self.attempt.steps
        self.number = next(number for number in count(1) if self._name("ended", number) not in steps)
        if self._name("", self.number) not in steps:
            value = {"session_id": f"{self.attempt.operation.operation_id}_{secrets.token_hex(4)}"}
            await self.attempt.complete_step(self._name(), {**value, "resume_from": self._earlier()})
        self.session_id = steps[self._name()]["session_id"]
        started = self._name("started") in steps
        self._may_run = started
        self._answered = self._answered or started
        self.attempt.grace_seconds = self._stop_deadline + _GRACE
        self.session = await self._patiently(lambda: session_on(self.host, self.session_id, self.token))
        if not started:
            await self._start(steps[self._name()]["resume_from"])
            known = {"session_id": self.session_id, "host": self.host.get_base_url()}
            await self.attempt.complete_step(self._name("started"), {**known, "generation": self.session.generation})
        return started

    def _name(self, what: str = "", number: int | None = None) -> str:
        return f"session {number or self.number} {what}".rstrip()

    def _earlier(self) -> str | None:
        """The last session that the host had."""
        for number in range(self.number - 1, 0, -1):
            if self._name("started", number) in self.attempt.steps:
                return str(self.attempt.steps[self._name("", number)]["session_id"])
        return None

    async def _start(self, resume_from: str | None) -> None:
        """Send the start until it is answered; a busy host is waited for."""
        try:
            await self._sent(resume_from)
        except HostBusy as busy:
            await self._until_free(busy, resume_from)

    async def _sent(self, resume_from: str | None) -> None:
        """One that is on its way is not cut off by a cancel: what became of it must be known to stop it."""

        async def send() -> None:
            self._may_run = True
            try:
                await self.session.start(self.config, resume_from)
            except HostBusy:
                self._may_run = False
                raise
            except HostAnswerWrong as error:
                if error.details.get("reason") in _LOST:
                    raise HostUnavailable(error.message, hint=error.hint, **error.details) from error
                self._may_run = False
                raise SessionFailed(error.message, hint=error.hint, **error.details) from error

        async def tried() -> None:
            self._starting = asyncio.ensure_future(send())
            await self.token.guard(asyncio.shield(self._starting), "start")

        await self._patiently(tried)

    async def _until_free(self, busy: HostBusy, resume_from: str | None) -> None:
        patience = self.attempt.patience
        ends = time.monotonic() + patience
        pause = _BUSY_FIRST
        async with self.attempt.waiting(f"the {SERVICE} is busy ({busy.message})"[:500], patience):
            while (left := ends - time.monotonic()) > 0:
                await self.token.sleep(min(pause, left))
                pause = min(pause * 2, _BUSY_LONGEST)
                try:
                    return await self._sent(resume_from)
                except HostBusy as error:
                    busy = error
        raise TrainingHostUnavailable(
            f"{busy.message}: waited {format_duration(patience)} for a free session",
            hint="Later, or wait longer: --wait 2h. What it is busy with:  ktrdr-ops doctor",
        )

    # Listening

    async def _listen(self, found: bool) -> bool:
        """True when it has completed; False where it was found stopped: then another follows. Raises SessionFailed,
        SessionStopped."""
        while True:
            look, took = await self._patiently(self._look)
            for epoch in look.epochs:
                await self.epochs.ended(epoch, look.accelerator)
            if look.status == "completed":
                return True
            if look.status != "running":
                await self._over(look.said, look.error)
                if look.status == "stopped" and found:
                    return False
                raise self._failure(look)
            if look.batch is not None:
                self.epochs.within(look.batch)
            found = False
            await self.token.sleep(min(max(_POLL_RATIO * took, _FASTEST_POLL), _SLOWEST_POLL))

    async def _look(self) -> tuple[Look, float]:
        """How the session is, and how many seconds the host took to say it."""
        began = time.monotonic()
        return await self.session.look(self.token), time.monotonic() - began

    async def _over(self, status: str, error: str | None = None) -> None:
        self._may_run = False
        value = {"session_id": self.session_id, "status": status, "error": None if error is None else error[:2000]}
        await self.attempt.complete_step(self._name("ended"), value)

    def _failure(self, look: Look) -> SessionFailed | SessionStopped:
        said = f": {look.error[:2000]}" if look.error else ""
        seen = self.epochs.last_seen()
        if look.status == "failed":
            return SessionFailed(
                f"the {SERVICE} says that the training failed, {seen}{said or ', and not why'}",
                hint="Once the cause is mended, the same command again goes on from its last checkpoint.",
                session_id=self.session_id,
            )
        return SessionStopped(
            f"the session was stopped on the host by somebody else (status {look.said}), {seen}{said}",
            hint="The same command again goes on from its last checkpoint.",
            session_id=self.session_id,
        )

    async def _lost(self) -> OperationInterrupted:
        await self._over("unknown")
        return OperationInterrupted(f"outcome unknown, {self.epochs.last_seen()}", hint=_RESTART, final=True)

    # Waiting for a host that is absent

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the call gives. After the host's first answer, one that gives nothing usable is waited for."""
        try:
            value = await call()
        except _NOTHING_USABLE as error:
            if not self._answered:
                raise
            value = await self._until_back(call, error)
        self._answered = True
        return value

    async def _until_back(self, call: Callable[[], Awaitable[T]], error: HostServiceError) -> T:
        patience = self.attempt.patience
        ends = time.monotonic() + patience
        async with self.attempt.waiting(f"no answer: {error.message}"[:500], patience):
            while (left := ends - time.monotonic()) > 0:
                await self.token.sleep(min(_PROBE_SECONDS, left))
                with contextlib.suppress(*_NOTHING_USABLE):
                    return await call()
        raise OperationInterrupted(
            f"the {SERVICE} has given no answer for {format_duration(patience)}: outcome unknown, "
            f"{self.epochs.last_seen()}",
            hint="When it is back, the same command again listens to the session, if it is still there.",
        )

    # Stopping

    async def _stopped(self) -> OperationCancelledException:
        """Have the host stop, whatever happens to this task; what to raise then."""
        stopping = asyncio.ensure_future(self._stop())
        try:
            confirmed = await asyncio.shield(stopping)
        except asyncio.CancelledError:
            stopping.cancel()
            confirmed = False
        details: dict[str, Any] = {} if confirmed else {"confirmed": False}
        said = "" if confirmed else f"; the {SERVICE} did not confirm that session {self.session_id} has stopped"
        return OperationCancelledException(f"the training was cancelled: {self.token.reason}{said}", **details)

    async def _stop(self) -> bool:
        """Whether the host has stopped before the deadline."""
        try:
            async with asyncio.timeout(self._stop_deadline):
                if self._starting is not None:
                    await asyncio.wait({self._starting})
                if self._may_run:
                    await self._answer_to(self.session.stop)
                    await self._until_it_stopped()
                return True
        except TimeoutError:
            return False

    async def _answer_to(self, call: Callable[[], Awaitable[T]]) -> T:
        while True:
            with contextlib.suppress(HostServiceError):
                return await call()
            await asyncio.sleep(_PROBE_SECONDS)

    async def _until_it_stopped(self) -> None:
        """A session that completed before it could be stopped is left: a later attempt takes its result."""
        while True:
            began = time.monotonic()
            said = await self._answer_to(lambda: self.host.listed(self.session_id))
            status = None if said is None else status_of(said)
            if status != "running":
                if status != "completed":
                    await self._over(said or "gone")
                return
            await asyncio.sleep(min(max(_POLL_RATIO * (time.monotonic() - began), _FASTEST_STOP_POLL), 1.0))

    async def _no_start_left(self) -> None:
        """A start that is still on its way when this attempt ends: its answer is the next attempt's."""
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
        if self._starting is not None:
            await asyncio.wait({self._starting})
            if not self._starting.cancelled():
                self._starting.exception()


_RESTART = "The host does not know the session any more. Train again: ktrdr-ops resume ID --restart"
