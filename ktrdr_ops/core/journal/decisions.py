"""What may be appended: each request is decided purely, inside the write transaction, against the states as they are.

``decide(request, view)`` gives the facts to append, or raises: the refusal concerns this request alone. It knows no SQL
and no clock. Ownership rests on the attempt number: every fact that an attempt states carries its number, and one that
is no longer the latest, or whose attempt has ended, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from ktrdr_ops.core.errors import KeyIsLive, OperationFinished, OperationInterrupted, OperationNotFound, OwnershipLost
from ktrdr_ops.core.events import (
    Archived,
    AttemptStarted,
    Cancelled,
    CancelRequested,
    Fact,
    Interrupted,
    JournalRecovered,
    Noted,
    Restored,
    Submitted,
)
from ktrdr_ops.core.journal.ownership import Owner
from ktrdr_ops.core.redaction import storable
from ktrdr_ops.core.state import OperationState

GONE = "the process that ran it is gone"


class View(Protocol):
    """The states as they are inside the transaction."""

    def state(self, operation_id: str) -> OperationState | None:
        """One operation."""

    def latest_with_key(self, key: str) -> OperationState | None:
        """The operation that was last submitted with this key."""

    def live_with_key(self, key: str) -> OperationState | None:
        """The one that is recorded as pending, running or cancelling with this key: it need not be the latest."""

    def live(self) -> Iterable[OperationState]:
        """All that is recorded as pending, running or cancelling."""

    def children(self, parent_id: str) -> Iterable[OperationState]:
        """The operations that this one started."""

    def alive(self, slot: int) -> bool:
        """Whether the owner process that holds this byte lives."""

    def new_id(self, readable: str) -> str:
        """The readable beginning with a suffix that no other operation has."""


class Draft(NamedTuple):
    """A fact about to be appended, with its stored form. A draft alone is a request too: progress of an attempt."""

    operation_id: str
    attempt: int | None
    fact: Fact
    payload: bytes


def draft(operation_id: str, attempt: int | None, fact: Fact) -> Draft:
    """A draft of the fact as it can be stored. Raises InvalidValue when it is too large to be."""
    return Draft(operation_id, attempt, *storable(fact))


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to a start or resume: this process owns this attempt now, since ``position``. ``resumed``: an earlier
    one is gone on with."""

    operation_id: str
    attempt: int
    resumed: bool
    position: int = 0


@dataclass(slots=True)
class Decision:
    """The drafts to append, and what the caller is told after the commit."""

    drafts: list[Draft] = field(default_factory=list)
    answer: object = None


@dataclass(frozen=True, slots=True)
class Start:
    """Start an operation, or go on with the last of its key if that ended without a result and was asked the same.

    ``fresh`` starts anew whatever became of the last one.
    """

    readable: str
    submitted: Submitted
    owner: Owner
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Resume:
    """Another attempt at an operation. ``steal`` takes it from an owner that lives; ``after`` is the last attempt that
    the caller knows of: where there has been another since, it is refused."""

    operation_id: str
    owner: Owner
    steal: bool = False
    reason: str = "resumed"
    after: int | None = None


@dataclass(frozen=True, slots=True)
class Say:
    """What a running attempt states. All of it is appended, or nothing."""

    drafts: tuple[Draft, ...]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ask an operation to stop. Where nobody owns it, it is cancelled here and now, and so are its unfinished
    children; not confirmed where the work of one may go on elsewhere all the same.
    """

    operation_id: str
    requested_by: str
    reason: str
    owner: Owner


@dataclass(frozen=True, slots=True)
class Settle:
    """Give every operation whose owner is gone its ``interrupted``."""


@dataclass(frozen=True, slots=True)
class Note:
    """Write something down, about an operation or (``""``) about the journal."""

    operation_id: str
    fact: Noted | JournalRecovered | Restored | Archived


Request = Start | Resume | Say | Draft | Cancel | Settle | Note


def decide(request: Request, view: View) -> Decision:
    """The facts that follow from a request. Raises what the caller is to be told instead."""
    decider: Callable[..., Decision] = _DECIDERS[type(request)]
    return decider(request, view)


def owned(state: OperationState, view: View) -> bool:
    """Whether a live process works on it."""
    return state.live and state.owner is not None and view.alive(state.owner["slot"])


def _say(request: Say, view: View) -> Decision:
    for said in request.drafts:
        _fence(said, view)
    return Decision([_no_more_than_its_children(said, view) for said in request.drafts])


def _no_more_than_its_children(said: Draft, view: View) -> Draft:
    """A parent's cancel is not confirmed while a child's work may go on."""
    fact = said.fact
    if not isinstance(fact, Cancelled) or not fact.confirmed or not _children_may_run(said.operation_id, view):
        return said
    return draft(said.operation_id, said.attempt, replace(fact, confirmed=False))


def _children_may_run(operation_id: str, view: View) -> bool:
    return any(_may_run(child, view) for child in view.children(operation_id))


def _may_run(state: OperationState, view: View) -> bool:
    """Whether its work, or that of a child, may go on elsewhere though nobody here works on it."""
    if state.status == "cancelled":
        own = (state.cancellation or {}).get("confirmed") is False
    else:
        own = state.outlives and state.attempt > 0 and not state.final and state.status not in ("completed", "failed")
    return own or _children_may_run(state.operation_id, view)


def _progress(request: Draft, view: View) -> Decision:
    _fence(request, view)
    return Decision([request])


def _fence(said: Draft, view: View) -> None:
    state = _existing(said.operation_id, view)
    if state.attempt != said.attempt or not state.live:
        raise OwnershipLost(
            f"attempt {said.attempt} of {said.operation_id} is over: it is {state.status}, attempt {state.attempt}",
            hint=f"See what happened: ktrdr-ops show {said.operation_id}",
            operation_id=said.operation_id,
            attempt=said.attempt,
        )


def _start(request: Start, view: View) -> Decision:
    key = request.submitted.key
    decision = Decision()
    holder = view.live_with_key(key)
    if holder is not None:
        decision.drafts += _released(holder, view)
    last = view.latest_with_key(key)
    goes_on = last is not None and last.status != "completed" and last.digest == request.submitted.digest
    if last is not None and goes_on and not request.fresh:
        return _claim(decision, last, request.owner, "the same start again", request.submitted.parent_id)
    if holder is not None and holder.owner is None:
        decision.drafts += _cancelled_unowned(holder, request.owner, "start", "another start took its place", view)
    operation_id = view.new_id(request.readable)
    decision.drafts.append(draft(operation_id, None, request.submitted))
    return _claimed(decision, operation_id, 1, request.owner, "started", resumed=False)


def _resume(request: Resume, view: View) -> Decision:
    state = _existing(request.operation_id, view)
    if state.status == "completed":
        raise OperationFinished(
            f"{state.operation_id} is completed; there is nothing left to do",
            hint=f"Its result: ktrdr-ops show {state.operation_id}",
        )
    if request.after is not None and state.attempt != request.after:
        raise OwnershipLost(
            f"{state.operation_id} was taken up by another process: it is {state.status}, attempt {state.attempt}",
            hint=f"See what happened: ktrdr-ops show {state.operation_id}",
        )
    decision = Decision()
    holder = view.live_with_key(state.key)
    if holder is not None and holder.operation_id == state.operation_id and request.steal and owned(state, view):
        decision.drafts.append(_interrupted(state, "another process took it over"))
    elif holder is not None:
        decision.drafts += _released(holder, view)
    return _claim(decision, state, request.owner, request.reason)


def _released(holder: OperationState, view: View) -> list[Draft]:
    """What frees the key that an operation holds: its ``interrupted`` if its owner is gone, nothing if it has none.
    Raises KeyIsLive when the owner lives."""
    if owned(holder, view):
        raise _key_is_live(holder)
    return [] if holder.owner is None else [_interrupted(holder, GONE)]


def _cancel(request: Cancel, view: View) -> Decision:
    state = _existing(request.operation_id, view)
    if state.status in ("completed", "failed", "cancelled"):
        raise OperationFinished(
            f"{state.operation_id} is over: it is {state.status}", hint="There is nothing to cancel."
        )
    decision = Decision(answer=True)
    if owned(state, view):
        if state.status != "cancelling":
            asked = CancelRequested(requested_by=request.requested_by, reason=request.reason)
            decision.drafts.append(draft(state.operation_id, None, asked))
        return decision
    if state.live and state.owner is not None:
        decision.drafts.append(_interrupted(state, GONE))
    decision.drafts += _cancelled_unowned(state, request.owner, request.requested_by, request.reason, view)
    for child in view.children(state.operation_id):
        if child.live or child.status == "interrupted":
            decision.drafts += _cancel(replace(request, operation_id=child.operation_id), view).drafts
    return decision


def _settle(request: Settle, view: View) -> Decision:
    dead = [state for state in view.live() if state.owner is not None and not view.alive(state.owner["slot"])]
    return Decision([_interrupted(state, GONE) for state in dead], [state.operation_id for state in dead])


def _note(request: Note, view: View) -> Decision:
    if request.operation_id:
        _existing(request.operation_id, view)
    return Decision([draft(request.operation_id, None, request.fact)])


def _existing(operation_id: str, view: View) -> OperationState:
    state = view.state(operation_id)
    if state is None:
        raise OperationNotFound(f"there is no operation {operation_id}", hint="See what there is: ktrdr-ops list")
    return state


def _key_is_live(state: OperationState) -> KeyIsLive:
    owner = state.owner or {}
    return KeyIsLive(
        f"already running as {state.operation_id} (process {owner.get('pid')}, attempt {state.attempt})",
        hint=f"Watch it: ktrdr-ops watch {state.operation_id}     Stop it: ktrdr-ops cancel {state.operation_id}",
        operation_id=state.operation_id,
    )


def _interrupted(state: OperationState, reason: str) -> Draft:
    return draft(state.operation_id, state.attempt, Interrupted(reason=reason))


def _claim(
    decision: Decision, state: OperationState, owner: Owner, reason: str, parent_id: str | None = None
) -> Decision:
    if state.final:
        raise OperationInterrupted(
            f"{state.operation_id} cannot go on: {(state.error or {}).get('message')}",
            hint=f"Do all of it afresh: ktrdr-ops resume {state.operation_id} --restart",
            operation_id=state.operation_id,
            final=True,
        )
    attempt = state.attempt + 1
    return _claimed(decision, state.operation_id, attempt, owner, reason, resumed=attempt > 1, parent_id=parent_id)


def _claimed(
    decision: Decision,
    operation_id: str,
    attempt: int,
    owner: Owner,
    reason: str,
    *,
    resumed: bool,
    parent_id: str | None = None,
) -> Decision:
    decision.drafts.append(_attempt_started(operation_id, attempt, owner, reason, parent_id))
    decision.answer = Claim(operation_id, attempt, resumed)
    return decision


def _attempt_started(operation_id: str, attempt: int, owner: Owner, reason: str, parent_id: str | None = None) -> Draft:
    fact = AttemptStarted(pid=owner.pid, host=owner.host, slot=owner.slot, reason=reason, parent_id=parent_id)
    return draft(operation_id, attempt, fact)


def _cancelled_unowned(state: OperationState, owner: Owner, requested_by: str, reason: str, view: View) -> list[Draft]:
    attempt = state.attempt + 1
    confirmed = not _may_run(state, view)
    cancelled = Cancelled(requested_by=requested_by, reason=reason, latency_ms=0.0, confirmed=confirmed)
    return [
        _attempt_started(state.operation_id, attempt, owner, "to cancel it: nobody owned it"),
        draft(state.operation_id, attempt, cancelled),
    ]


_DECIDERS: dict[type[Request], Callable[..., Decision]] = {
    Say: _say,
    Draft: _progress,
    Start: _start,
    Resume: _resume,
    Cancel: _cancel,
    Settle: _settle,
    Note: _note,
}
