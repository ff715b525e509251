"""Whatever is asked in whatever order: the rules of ownership hold. Pure: no file, no clock."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from ktrdr_ops.core.errors import KtrdrOpsError
from ktrdr_ops.core.events import (
    Cancelled,
    Completed,
    Event,
    Failed,
    Interrupted,
    Progressed,
    StepCompleted,
    Submitted,
)
from ktrdr_ops.core.journal.decisions import Cancel, Resume, Say, Settle, Start, decide, draft
from ktrdr_ops.core.journal.ownership import Owner
from ktrdr_ops.core.state import LIVE, OperationState, fold, fold_all

KEYS = ("a", "b")
PROCESSES = (1, 2, 3)


class Memory:
    """A journal in memory: the view that decisions are made against, and the events that followed."""

    def __init__(self) -> None:
        self.states: dict[str, OperationState] = {}
        self.events: list[Event] = []
        self.dead: set[int] = set()

    def state(self, operation_id):
        return self.states.get(operation_id)

    def latest_with_key(self, key):
        found = [state for state in self.states.values() if state.key == key]
        return found[-1] if found else None

    def live_with_key(self, key):
        found = [state for state in self.states.values() if state.key == key and state.live]
        return found[0] if found else None

    def live(self):
        return [state for state in self.states.values() if state.live]

    def children(self, parent_id):
        return [state for state in self.states.values() if state.parent_id == parent_id]

    def alive(self, slot):
        return slot not in self.dead

    def new_id(self, readable):
        return f"{readable}_{len(self.states)}"

    def ask(self, request) -> None:
        try:
            decision = decide(request, self)
        except KtrdrOpsError:
            return
        for said in decision.drafts:
            state = self.states.get(said.operation_id)
            event = Event(
                len(self.events) + 1,
                said.operation_id,
                (state.events if state else 0) + 1,
                said.attempt,
                said.fact.type,
                said.fact.event_class,
                said.fact.version,
                len(self.events),
                said.payload,
                b"",
                b"",
            )
            self.events.append(event)
            self.states[said.operation_id] = fold(state, event, said.fact)


def submitted(key: str, digest: str) -> Submitted:
    return Submitted(operation_type="t", key=key, total_steps=1, parameters={}, digest=digest)


owners = st.builds(lambda pid: Owner(pid, "host", pid), st.sampled_from(PROCESSES))
ids = st.sampled_from([f"{key}_{number}" for key in KEYS for number in range(4)])
facts = st.sampled_from(
    [
        Completed(),
        Failed(code="x", message="m"),
        Cancelled(requested_by="me", reason="r"),
        Interrupted(reason="r"),
        Progressed(step=1, percentage=10.0, message="m"),
        StepCompleted(name="s"),
    ]
)
requests = st.one_of(
    st.builds(
        lambda key, digest, owner, fresh: Start(key, submitted(key, digest), owner, fresh),
        st.sampled_from(KEYS),
        st.sampled_from(["d1", "d2"]),
        owners,
        st.booleans(),
    ),
    st.builds(lambda id_, owner, steal: Resume(id_, owner, steal), ids, owners, st.booleans()),
    st.builds(lambda id_, attempt, fact: Say((draft(id_, attempt, fact),)), ids, st.integers(1, 4), facts),
    st.builds(lambda id_, owner: Cancel(id_, "me", "r", owner), ids, owners),
    st.just(Settle()),
    st.builds(lambda pid: ("die", pid), st.sampled_from(PROCESSES)),
)


@settings(max_examples=300)
@given(st.lists(requests, max_size=60))
def test_the_rules_hold_whatever_is_asked_in_whatever_order(asked):
    memory = Memory()
    for request in asked:
        if isinstance(request, tuple) and request[0] == "die":
            memory.dead.add(request[1])
        else:
            memory.ask(request)
        live = Counter(state.key for state in memory.states.values() if state.status in LIVE)
        assert all(count <= 1 for count in live.values()), "one live operation a key"
    terminals = Counter((e.operation_id, e.attempt) for e in memory.events if e.event_class == "terminal")
    assert all(count == 1 for count in terminals.values()), "one terminal an attempt"
    completed = Counter(e.operation_id for e in memory.events if e.type == "completed")
    assert all(count == 1 for count in completed.values())
    for operation_id, state in memory.states.items():
        events = [event for event in memory.events if event.operation_id == operation_id]
        assert state == fold_all(events), "the projection is the fold"
        attempts = [event.attempt for event in events if event.type == "attempt_started"]
        assert attempts == list(range(1, len(attempts) + 1))
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        if state.status == "completed":
            assert events[-1].type == "completed", "nothing follows a completed"


@given(st.lists(requests, max_size=60))
def test_what_is_said_in_an_attempt_lies_between_its_start_and_its_end(asked):
    memory = Memory()
    for request in asked:
        if not isinstance(request, tuple):
            memory.ask(request)
    for operation_id in memory.states:
        current: int | None = None
        for event in (e for e in memory.events if e.operation_id == operation_id and e.attempt is not None):
            if event.type == "attempt_started":
                assert current is None, "the one before has ended"
                current = event.attempt
            else:
                assert event.attempt == current
                current = None if event.event_class == "terminal" else current
