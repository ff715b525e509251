"""What can happen to an operation: a closed set of facts.

Each fact is a frozen dataclass with a literal ``type`` (its stored name, never a class path), a ``class`` (what an
older reader goes by when it does not know the type) and a ``version``. ``load()`` turns a stored payload into its
fact; a type or version that this release does not know becomes ``Opaque`` and is kept, hashed and shown, but changes
state only by its class.

Times are integer microseconds since 1970-01-01 UTC.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args

import orjson

EventClass = Literal["start", "progress", "checkpoint", "cancel", "terminal", "note"]
EVENT_CLASSES: tuple[EventClass, ...] = get_args(EventClass)

Json = Any
"""Anything that JSON can say. The one place where a type is left open: a domain types it at both ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """An operation was asked for. ``parameters`` are as asked, after validation and defaults; ``outlives``: what it
    starts elsewhere may go on without its process."""

    type: ClassVar[str] = "submitted"
    event_class: ClassVar[EventClass] = "start"
    version: ClassVar[int] = 1
    operation_type: str
    key: str
    total_steps: int
    parameters: dict[str, Json]
    digest: str
    context: dict[str, Json] = field(default_factory=dict)
    parent_id: str | None = None
    estimated_seconds: float | None = None
    outlives: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStarted:
    """A process began to work on it. ``slot`` is the byte of the lock file that it holds while it lives. ``parent_id``
    names the operation that started this attempt, where that is another than before."""

    type: ClassVar[str] = "attempt_started"
    event_class: ClassVar[EventClass] = "start"
    version: ClassVar[int] = 1
    pid: int
    host: str
    slot: int
    reason: str = "started"
    parent_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """How far it is: absolute, not a delta. ``context`` holds what differs from the start's context."""

    type: ClassVar[str] = "progressed"
    event_class: ClassVar[EventClass] = "progress"
    version: ClassVar[int] = 1
    step: int
    percentage: float
    message: str
    items: int = 0
    total_items: int | None = None
    eta_seconds: float | None = None
    context: dict[str, Json] = field(default_factory=dict)
    skipped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitStarted:
    """It waits for something outside. ``until`` is when it expects to go on, if that is known."""

    type: ClassVar[str] = "wait_started"
    event_class: ClassVar[EventClass] = "progress"
    version: ClassVar[int] = 1
    reason: str
    until: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitEnded:
    """The wait is over."""

    type: ClassVar[str] = "wait_ended"
    event_class: ClassVar[EventClass] = "progress"
    version: ClassVar[int] = 1
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRetried:
    """A request to a host service failed and will be tried again after ``wait_seconds``."""

    type: ClassVar[str] = "request_retried"
    event_class: ClassVar[EventClass] = "progress"
    version: ClassVar[int] = 1
    service: str
    method: str
    path: str
    attempt: int
    reason: str
    wait_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCompleted:
    """A named piece of work is done; no later attempt does it again. ``value`` is what it gave."""

    type: ClassVar[str] = "step_completed"
    event_class: ClassVar[EventClass] = "checkpoint"
    version: ClassVar[int] = 1
    name: str
    value: Json = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointed:
    """State that a later attempt goes on from: ``value`` itself, or the ``object`` (SHA-256) that holds it."""

    type: ClassVar[str] = "checkpointed"
    event_class: ClassVar[EventClass] = "checkpoint"
    version: ClassVar[int] = 1
    value: Json = None
    object: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactPublished:
    """It published content: ``object`` is the SHA-256 of the stored bytes, ``sha256`` the domain's canonical one."""

    type: ClassVar[str] = "artifact_published"
    event_class: ClassVar[EventClass] = "checkpoint"
    version: ClassVar[int] = 1
    kind: str
    key: str
    object: str
    sha256: str
    size: int
    metadata: dict[str, Json] = field(default_factory=dict)
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested:
    """Somebody asked it to stop."""

    type: ClassVar[str] = "cancel_requested"
    event_class: ClassVar[EventClass] = "cancel"
    version: ClassVar[int] = 1
    requested_by: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """It is done. A completed operation has no further attempt."""

    type: ClassVar[str] = "completed"
    event_class: ClassVar[EventClass] = "terminal"
    version: ClassVar[int] = 1
    result: Json = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The attempt failed. ``final``: going on with it would fail again; the hint says what helps."""

    type: ClassVar[str] = "failed"
    event_class: ClassVar[EventClass] = "terminal"
    version: ClassVar[int] = 1
    code: str
    message: str
    hint: str | None = None
    result: Json = None
    final: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """The attempt stopped because it was told to. ``confirmed`` is false where a host did not say that it stopped."""

    type: ClassVar[str] = "cancelled"
    event_class: ClassVar[EventClass] = "terminal"
    version: ClassVar[int] = 1
    requested_by: str
    reason: str
    latency_ms: float | None = None
    confirmed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """The attempt ended without a result: its process is gone, or was told to go, or nobody can say what became of its
    work. ``final``: no later attempt can go on from it."""

    type: ClassVar[str] = "interrupted"
    event_class: ClassVar[EventClass] = "terminal"
    version: ClassVar[int] = 1
    reason: str
    final: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """Somebody wrote something down."""

    type: ClassVar[str] = "noted"
    event_class: ClassVar[EventClass] = "note"
    version: ClassVar[int] = 1
    text: str
    author: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalRecovered:
    """The writer found out what became of a batch whose COMMIT had raised."""

    type: ClassVar[str] = "journal_recovered"
    event_class: ClassVar[EventClass] = "note"
    version: ClassVar[int] = 1
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A copy was put in the place of the journal; a new incarnation begins.

    ``copied`` and ``anchored`` are heads (incarnation, position, hash): where the copy ended, and how far the history
    that it replaced had come, as far as that is known. ``missing`` events of that history are in the kept file alone.
    """

    type: ClassVar[str] = "restored"
    event_class: ClassVar[EventClass] = "note"
    version: ClassVar[int] = 1
    detail: str
    copied: dict[str, Json] | None = None
    anchored: dict[str, Json] | None = None
    missing: int | None = None
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Archived:
    """Events up to a position were moved to an archive file."""

    type: ClassVar[str] = "archived"
    event_class: ClassVar[EventClass] = "note"
    version: ClassVar[int] = 1
    through: int
    detail: str


@dataclass(frozen=True, slots=True)
class Opaque:
    """A fact of a type or version that this release does not know."""

    type: str
    event_class: EventClass
    version: int
    data: Json


Fact = (
    Submitted
    | AttemptStarted
    | Progressed
    | WaitStarted
    | WaitEnded
    | RequestRetried
    | StepCompleted
    | Checkpointed
    | ArtifactPublished
    | CancelRequested
    | Completed
    | Failed
    | Cancelled
    | Interrupted
    | Noted
    | JournalRecovered
    | Restored
    | Archived
)

FACTS: dict[str, type[Fact]] = {fact.type: fact for fact in get_args(Fact)}
_FIELDS: dict[str, frozenset[str]] = {name: frozenset(f.name for f in fields(fact)) for name, fact in FACTS.items()}


def payload(fact: Fact) -> bytes:
    """The stored form of a fact: JSON, keys in the order of its fields."""
    return orjson.dumps(fact)


def load(type_: str, event_class: EventClass, version: int, stored: bytes) -> Fact | Opaque:
    """A stored payload as its fact, or ``Opaque``. Fields that this release does not know are passed over."""
    data = orjson.loads(stored)
    fact = FACTS.get(type_)
    if fact is None or version > fact.version:
        return Opaque(type_, event_class, version, data)
    known = _FIELDS[type_]
    return fact(**{name: value for name, value in data.items() if name in known})


@dataclass(frozen=True, slots=True)
class Event:
    """A fact as the journal holds it.

    ``position`` is the gapless order of the whole journal, ``sequence`` that of one operation, both from 1. ``at`` is
    in microseconds UTC. ``operation_id`` is ``""`` for what concerns the journal itself; ``attempt`` is None for what
    no attempt says (submitted, cancel requests, notes).
    """

    position: int
    operation_id: str
    sequence: int
    attempt: int | None
    type: str
    event_class: EventClass
    version: int
    at: int
    payload: bytes
    writer: bytes
    hash: bytes

    @property
    def fact(self) -> Fact | Opaque:
        """The payload, typed."""
        return load(self.type, self.event_class, self.version, self.payload)

    def document(self) -> dict[str, Json]:
        """As ``--json`` prints it: one flat object, times ISO-8601 UTC, the payload under ``data``."""
        from ktrdr_ops.core.clock import iso

        return {
            "position": self.position,
            "operation_id": self.operation_id,
            "sequence": self.sequence,
            "attempt": self.attempt,
            "type": self.type,
            "class": self.event_class,
            "at": iso(self.at),
            "data": orjson.loads(self.payload),
        }
