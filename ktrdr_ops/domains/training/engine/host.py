"""The training host service as a session sees it, whichever generation answers.

What a session's calls raise: ``HostUnavailable`` and ``HostAnswerWrong`` (nothing usable came: later may work),
``HostBusy``, ``SessionUnknown``, ``HostRefused`` (final).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ktrdr_ops.core.errors import HostAnswerWrong, HostRefused, HostServiceError
from ktrdr_ops.core.host_service import AsyncHostService
from ktrdr_ops.domains.training.engine.errors import HostBusy, SessionUnknown

if TYPE_CHECKING:
    from ktrdr_ops.core.cancellation import CancellationToken
    from ktrdr_ops.core.host_service import HttpPool
    from ktrdr_ops.domains.training.engine.config import TrainingConfig

SERVICE = "training host service"
STATUS_DEADLINE = 8.0
"""Seconds for a call about a session. Under training one was seen to take 2.5 s; a paused host never answers."""
SESSIONS = "/training/sessions"
START = "/training/start"
MOST_CONCURRENT = "Maximum concurrent sessions"

Status = Literal["running", "completed", "failed", "stopped"]

_STATUSES: dict[str, Status] = {
    **dict.fromkeys(("initializing", "initialized", "pending", "resuming", "started", "running"), "running"),
    "completed": "completed",
    "failed": "failed",
    "stopped": "stopped",
    "cancelled": "stopped",
}


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch that has ended: ``number`` from 1, and its flat metrics, None where one is no finite number."""

    number: int
    metrics: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Batch:
    """Where a session is within an epoch (from 1): ``batch`` of ``batches``, clamped."""

    epoch: int
    batch: int
    batches: int


@dataclass(frozen=True, slots=True)
class Look:
    """What a session says of itself: its epochs that were not told before, and where it is now.

    ``said`` is the host's own word for the status, ``error`` its text; ``accelerator`` is None on a plain processor.
    """

    status: Status
    said: str
    epochs: list[Epoch] = field(default_factory=list)
    batch: Batch | None = None
    error: str | None = None
    accelerator: str | None = None


class TrainingHostService(AsyncHostService):
    """The client of the training host service at ``url``. Each call is one try: its callers wait where that helps."""

    def __init__(
        self, url: str | Callable[[], str], *, pool: HttpPool | None = None, deadline: float = STATUS_DEADLINE
    ) -> None:
        super().__init__(pool=pool, deadline=deadline, tries=1)
        self._url_of_host = url

    def get_service_name(self) -> str:
        """As people call it."""
        return SERVICE

    def get_base_url(self) -> str:
        """As it was given, or as whoever knows says now."""
        return self._url_of_host if isinstance(self._url_of_host, str) else self._url_of_host()

    def read_json(self, body: bytes) -> Any:
        """Python's JSON: a loss that is no number is written NaN by hosts in Python, and is read as None."""
        return json.loads(body)

    async def listed(self, session_id: str) -> Status | None:
        """The status of a session that it lists; None where it lists no such session. Raises HostAnswerWrong where
        what answers lists none at all: it is another service."""
        try:
            sessions = object_in(await self.get(SESSIONS), SESSIONS).get("sessions")
        except HostRefused as error:
            raise HostAnswerWrong(
                f"what answers is no {SERVICE}: {error.message}", hint=error.hint, **error.details
            ) from error
        if not isinstance(sessions, list):
            raise HostAnswerWrong(f"the {SERVICE} lists no sessions at {SESSIONS}")
        for each in sessions:
            if isinstance(each, dict) and each.get("session_id") == session_id:
                return status_of(each.get("status"))
        return None

    async def lost(self, session_id: str, error: HostServiceError) -> HostServiceError:
        """What it means that a session was not found: SessionUnknown where the list of a training host lacks it too.
        A 404 may be another service's, or another page's: then the answer is only wrong. Raises what the list raises.
        """
        if await self.listed(session_id) is None:
            return SessionUnknown(error.message)
        return HostAnswerWrong(f"the {SERVICE} lists the session and says: {error.message}", **error.details)


class Session(Protocol):
    """One session on a host of one generation."""

    generation: int

    async def start(self, config: TrainingConfig, resume_from: str | None) -> None:
        """Start it. One that exists already under its id was started by us. Raises HostBusy besides."""

    async def look(self, token: CancellationToken) -> Look:
        """How it is now. Raises SessionUnknown besides."""

    async def stop(self) -> None:
        """Ask it to stop. One that is over or unknown is no error."""

    async def result(self, token: CancellationToken) -> dict[str, Any] | None:
        """What came of a completed one; None where the host tells nothing of results. Raises SessionUnknown."""


def says_unknown(error: HostServiceError, session_id: str) -> bool:
    """Whether a 500 says that there is no such session."""
    return error.details.get("status") == 500 and f"Session {session_id} not found" in error.message


def busy(error: HostServiceError) -> HostBusy:
    """That the host has as many sessions as it takes, in its own words."""
    found = re.search(rf"{MOST_CONCURRENT}[^.;(]*(\(\d+\) reached)?", error.message)
    said = found.group().strip() if found else error.message
    return HostBusy(f"the {SERVICE} is busy: {said}", **error.details)


def object_in(body: Any, path: str) -> dict[str, Any]:
    """The answer's object. Raises HostAnswerWrong for another form."""
    if not isinstance(body, dict):
        raise HostAnswerWrong(f"the {SERVICE} answered {path} with {type(body).__name__}, not an object")
    return body


def status_of(said: object) -> Status:
    """What a host's word for a status means. Raises HostAnswerWrong for one that nobody knows."""
    status = _STATUSES.get(str(said))
    if status is None:
        raise HostAnswerWrong(f"the {SERVICE} says the status {str(said)[:40]!r}, which means nothing known")
    return status


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value - value != 0:
        return None
    return float(value) if abs(value) <= sys.float_info.max else None


def whole(value: object) -> int:
    """A whole number from 0 on; 0 for anything else."""
    found = number(value)
    return int(found) if found is not None and found > 0 else 0


def batch_of(epoch: int, epochs: int, progress: Mapping[str, Any]) -> Batch | None:
    """The batch within an epoch, clamped to what there is; None where the host does not say."""
    batch, batches = (whole(progress.get(name)) for name in ("batch", "total_batches"))
    if not batches or not 1 <= epoch <= epochs:
        return None
    return Batch(epoch, min(batch, batches), batches)
