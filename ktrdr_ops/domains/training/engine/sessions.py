"""One attempt's dealings with the host: finding or starting the session, listening to it, having it stopped.

The session's id is ours, chosen and journaled before it is sent, so that a start whose answer was lost is sent again
and recognised. What the journal knows of it:

    session 1             its id, before its start is sent: whether the host ever had it is not known
    session 1 started     the host said so: from now on one that it does not know is lost, and its outcome with it
    session 1 ended       it failed, was stopped or was lost; a later attempt starts session 2, which goes on from it
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from ktrdr_ops.core.errors import (
    HostAnswerWrong,
    HostRefused,
    HostServiceError,
    HostUnavailable,
    KtrdrOpsError,
    OperationCancelledException,
    OperationInterrupted,
)
from ktrdr_ops.domains.training.engine.errors import (
    HostBusy,
    SessionFailed,
    SessionStopped,
    SessionUnknown,
)
from ktrdr_ops.domains.training.engine.generations import session_of, session_on
from ktrdr_ops.domains.training.engine.host import SERVICE, Look, Session, TrainingHostService
from ktrdr_ops.domains.training.engine.patience import Patience
from ktrdr_ops.domains.training.engine.stopping import stopped

if TYPE_CHECKING:
    from ktrdr_ops.core.attempt import Attempt
    from ktrdr_ops.domains.training.engine.config import TrainingConfig
    from ktrdr_ops.domains.training.engine.epochs import Epochs

T = TypeVar("T")

STOP_DEADLINE = 30.0
"""Seconds in which the host must have stopped after a cancel; later the cancel is not confirmed."""
_GRACE = 2.0
_FASTEST_POLL, _SLOWEST_POLL, _POLL_RATIO = 0.1, 5.0, 4.0
_SAYS_WHY = "The host says why. Change the strategy, by --set too: ktrdr-ops models train --help"
_INVALID = 422
_AN_ANSWER = ("500", "501")
"""A start that fails so was answered; any other answer that cannot be used may have been lost on its way."""


class Training:
    """The sessions of one attempt."""

    def __init__(
        self,
        host: TrainingHostService,
        config: TrainingConfig,
        attempt: Attempt,
        epochs: Epochs,
        stop_deadline: float = STOP_DEADLINE,
        *,
        own_host: bool = False,
    ) -> None:
        self.host = host
        self._own_host = own_host
        self.config = config
        self.attempt = attempt
        self.token = attempt.token
        self.epochs = epochs
        self._id = attempt.operation.operation_id
        self._patience = Patience(attempt, epochs.last_seen)
        self._stop_deadline = stop_deadline
        self._session: Session | None = None
        self._starting: asyncio.Future[None] | None = None
        self._known = False
        self._open()

    def _open(self) -> None:
        """The first session that has not ended. One whose id is journaled may run, whether or not the journal says that
        it was started: its start may have been sent. ``_known``: its host had it, so that it is over once it has not.
        """
        steps = self.attempt.steps
        self.number = next(number for number in count(1) if self._step("ended", number) not in steps)
        self._may_run = self._step() in steps
        self._known = self._step("started") in steps
        named = steps.get(self._step(), {"session_id": f"{self._id}_{secrets.token_hex(4)}"})
        self.session_id = str(named["session_id"])

    @property
    def _may_run(self) -> bool:
        return self.attempt.goes_on_elsewhere

    @_may_run.setter
    def _may_run(self, value: bool) -> None:
        self.attempt.goes_on_elsewhere = value
        if value:
            self._patience.answered = True
            self.attempt.grace_seconds = self._stop_deadline + _GRACE

    async def completed(self, prepare: Callable[[], Awaitable[None]], began: Callable[[], None]) -> Mapping[str, Any]:
        """Have a session completed, an earlier attempt's if there is one: first ``prepare``; ``began`` is called when
        it runs. A cancel at any moment, in ``prepare`` too, stops a session that may run.

        Gives what the host says of the result, empty where it says nothing. Raises SessionFailed, SessionStopped,
        TrainingHostUnavailable, OperationInterrupted for an outcome that is not known, OperationCancelledException
        once the host has stopped (or, ``confirmed=False``, has not).
        """
        try:
            await prepare()
            while True:
                session, found = await self._begun()
                began()
                self.epochs.begin(self.number)
                if await self._listen(session, found):
                    return await self._usable(partial(session.result, self.token)) or {}
        except SessionUnknown as error:
            await self._over("unknown")
            raise OperationInterrupted(
                f"outcome unknown, {self.epochs.last_seen()}",
                hint=f"The host no longer knows the session. Train again: ktrdr-ops resume {self._id} --restart",
                final=True,
            ) from error
        except (OperationCancelledException, OperationInterrupted, asyncio.CancelledError):
            if not self.token.is_cancelled() or self.token.interrupting:
                raise
            raise await self._stopped() from None
        finally:
            await self._settle_start()

    # Beginning

    async def _begun(self) -> tuple[Session, bool]:
        """The session that an earlier attempt started (then True), or a new one."""
        self._open()
        steps = self.attempt.steps
        if self._known:
            started = steps[self._step("started")]
            self._session = session_of(started["generation"], self.host, self.session_id)
            return self._session, True
        session = self._session = await self._usable(lambda: session_on(self.host, self.session_id, self.token))
        if self._step() not in steps:  # only now: before, no start can have been sent
            await self.attempt.complete_step(
                self._step(), {"session_id": self.session_id, "resume_from": self._earlier()}
            )
        resume_from = steps[self._step()]["resume_from"]
        try:
            await self._patience.free(lambda: self._usable(lambda: self._sent(session, resume_from)))
        except (KtrdrOpsError, asyncio.CancelledError):
            if not self._may_run:
                await self._over("not started")
            raise
        self._known = True
        where = {"session_id": self.session_id, "host": self.host.get_base_url(), "generation": session.generation}
        await self.attempt.complete_step(self._step("started"), where)
        return session, False

    async def _usable(self, call: Callable[[], Awaitable[T]]) -> T:
        """See ``Patience``. While the session may run, that the host refuses is no end either: nobody would stop it."""

        async def answered() -> T:
            try:
                return await call()
            except HostRefused as error:
                if not self._may_run:
                    raise
                raise HostAnswerWrong(error.message, hint=error.hint, **error.details) from error
            except SessionUnknown as error:
                if (elsewhere := self._elsewhere()) is None:
                    raise
                raise HostAnswerWrong(f"{error.message}: the session was started on {elsewhere}") from error

        return await self._patience.usable(answered)

    def _elsewhere(self) -> str | None:
        """The address of the host that the session was started on, where that is another than the one asked now. The
        sandbox's own host has another one each time, and its sessions end with it."""
        started = self.attempt.steps.get(self._step("started"))
        at = None if started is None or self._own_host else str(started["host"])
        return None if at == self.host.get_base_url() else at

    def _step(self, what: str = "", number: int | None = None) -> str:
        return f"session {number or self.number} {what}".rstrip()

    def _earlier(self) -> str | None:
        """The last session that the host had."""
        for number in range(self.number - 1, 0, -1):
            if self._step("started", number) in self.attempt.steps:
                return str(self.attempt.steps[self._step("", number)]["session_id"])
        return None

    async def _sent(self, session: Session, resume_from: str | None) -> None:
        """Send the start. A cancel does not cut it off: what becomes of it must be known to stop it."""
        self._starting = asyncio.ensure_future(self._send(session, resume_from))
        await self.token.guard(asyncio.shield(self._starting), "start")

    async def _send(self, session: Session, resume_from: str | None) -> None:
        await self.attempt.fence()  # it may have been suspended, and another attempt cancelled since
        before, self._may_run = self._may_run, True
        try:
            await session.start(self.config, resume_from)
        except HostBusy:
            with contextlib.suppress(HostServiceError):  # it may be busy with this very session: its answer was lost
                if await self.host.listed(self.session_id) is not None:
                    return
                self._may_run = False
            raise
        except HostRefused as error:
            if error.details["status"] == _INVALID:
                self._may_run = False
                raise SessionFailed(error.message, hint=_SAYS_WHY, final=True, **error.details) from error
            self._may_run = before
            raise
        except HostAnswerWrong as error:
            if error.details.get("reason") not in _AN_ANSWER:
                raise
            self._may_run = before
            raise SessionFailed(error.message, hint=_SAYS_WHY, **error.details) from error
        except HostUnavailable as error:
            if error.details.get("reason") == "refused":
                self._may_run = before
            raise

    async def _settle_start(self) -> None:
        """A start that is still on its way when this attempt ends: its answer is the next attempt's."""
        if self._starting is None:
            return
        self._starting.cancel()
        await asyncio.wait({self._starting})
        if not self._starting.cancelled():
            self._starting.exception()  # looked at, so that asyncio does not call it "never retrieved"

    # Listening

    async def _listen(self, session: Session, found: bool) -> bool:
        """True when it has completed; False where it was found stopped: then another follows. Raises SessionFailed,
        SessionStopped, SessionUnknown."""

        async def timed() -> tuple[Look, float]:
            began = time.monotonic()
            return await session.look(self.token), time.monotonic() - began

        while True:
            look, took = await self._usable(timed)
            self._known = True
            for epoch in look.epochs:
                await self.epochs.ended(epoch, look.accelerator)
            if look.status == "completed":
                return True
            if look.status != "running":
                await self._over(look.said, look.error)
                if look.status == "stopped" and found:
                    return False
                raise self._failure(look)
            self.epochs.trains(look.batch)
            found = False
            await self.token.sleep(min(max(_POLL_RATIO * took, _FASTEST_POLL), _SLOWEST_POLL))

    async def _over(self, status: str, error: str | None = None) -> None:
        self._may_run = False
        value = {"session_id": self.session_id, "status": status, "error": None if error is None else error[:2000]}
        await self.attempt.complete_step(self._step("ended"), value)

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

    # Stopping

    async def _stopped(self) -> OperationCancelledException:
        """Have the host stop, whatever happens to this task; what to raise then."""
        stopping = asyncio.ensure_future(self._stop())
        try:
            confirmed = await asyncio.shield(stopping)
        except asyncio.CancelledError:
            stopping.cancel()
            await asyncio.wait({stopping})
            confirmed = False
        details: dict[str, Any] = {} if confirmed else {"confirmed": False}
        said = "" if confirmed else f"; the {SERVICE} did not confirm that session {self.session_id} has stopped"
        return OperationCancelledException(f"the training was cancelled: {self.token.reason}{said}", **details)

    async def _stop(self) -> bool:
        """Whether the host has stopped before the deadline. A session that completed before it could be stopped is
        left as it is: a later attempt takes its result."""
        with contextlib.suppress(TimeoutError, HostRefused):
            async with asyncio.timeout(self._stop_deadline):
                if self._starting is not None:
                    await asyncio.wait({self._starting})
                status = None
                if self._may_run:
                    known = self._known and self._elsewhere() is None
                    status = await stopped(self.host, self.session_id, self._session, known=known)
                if status not in (None, "completed"):
                    await self._over(str(status))
                self._may_run = False
                return True
        return False
