"""Append, duplicate, crash, reopen, cancel, resume in any order, against a model that is a list and a few dictionaries.

The journal is used by a process of its own; a crash is a SIGKILL of it. After each crash everything that was
acknowledged is there, in the model's order, and what was running is interrupted.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.faults.clients import Client

KEYS = st.sampled_from(["a", "b", "c"])
LIVE = ("running", "cancelling")
FOLDER = "/dev/shm" if os.path.isdir("/dev/shm") else None


@functools.cache
def empty_journal() -> Path:
    """A journal without events, made once: making one takes longer than all that an example does with it."""
    path = Path(tempfile.mkdtemp(dir=FOLDER)) / "journal.db"
    Client(path).close()
    atexit.register(shutil.rmtree, path.parent)
    return path


class Model:
    """An operation as a person would keep it on paper."""

    def __init__(self, operation_id: str, key: str, digest: str) -> None:
        self.operation_id, self.key, self.digest = operation_id, key, digest
        self.status, self.attempt = "running", 1


class JournalMachine(RuleBasedStateMachine):
    """Each rule says what must be answered."""

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=FOLDER))
        self.path = self.folder / "journal.db"
        shutil.copy(empty_journal(), self.path)
        self.client = Client(self.path)
        self.operations: list[Model] = []
        self.acknowledged: list[tuple[str, int | None, str]] = []
        self.steps = 0

    @rule(key=KEYS, digest=st.sampled_from(["d1", "d2"]))
    def start(self, key: str, digest: str) -> None:
        answer = self.client.call("start", key, digest)
        last = next((one for one in reversed(self.operations) if one.key == key), None)
        if any(one.key == key and one.status in LIVE for one in self.operations):
            assert answer == "already_running"
        elif last is not None and last.status != "completed" and last.digest == digest:
            self._claimed(last, answer)
        else:
            operation_id, attempt = answer
            assert attempt == 1
            assert operation_id not in [one.operation_id for one in self.operations]
            self.operations.append(Model(operation_id, key, digest))
            self.acknowledged += [(operation_id, None, "submitted"), (operation_id, 1, "attempt_started")]

    @precondition(lambda self: self.operations)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.operations))
        answer = self.client.call("resume", one.operation_id)
        if one.status == "completed":
            assert answer == "finished"
        elif any(other.key == one.key and other.status in LIVE for other in self.operations):
            assert answer == "already_running"
        else:
            self._claimed(one, answer)

    @precondition(lambda self: self.operations)
    @rule(data=st.data(), stale=st.booleans())
    def step(self, data: st.DataObject, stale: bool) -> None:
        one = data.draw(st.sampled_from(self.operations))
        attempt = one.attempt - stale
        self.steps += 1
        answer = self.client.call("step", one.operation_id, attempt, str(self.steps))
        if one.status in LIVE and not stale:
            assert isinstance(answer, int)
            self.acknowledged.append((one.operation_id, attempt, "step_completed"))
        else:
            assert answer == "ownership_lost"

    @precondition(lambda self: self.operations)
    @rule(data=st.data(), message=st.text(max_size=20))
    def progress(self, data: st.DataObject, message: str) -> None:
        one = data.draw(st.sampled_from(self.operations))
        assert self.client.call("progress", one.operation_id, one.attempt, message) is None

    @precondition(lambda self: self.operations)
    @rule(data=st.data(), how=st.sampled_from(["completed", "failed", "cancelled"]), twice=st.booleans())
    def end(self, data: st.DataObject, how: str, twice: bool) -> None:
        one = data.draw(st.sampled_from(self.operations))
        answer = self.client.call("end", one.operation_id, one.attempt, how)
        if one.status in LIVE:
            assert isinstance(answer, int)
            one.status = how
            self.acknowledged.append((one.operation_id, one.attempt, how))
            if twice:
                assert self.client.call("end", one.operation_id, one.attempt, how) == "ownership_lost"
        else:
            assert answer == "ownership_lost"

    @precondition(lambda self: self.operations)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.operations))
        answer = self.client.call("cancel", one.operation_id)
        if one.status in LIVE:
            assert answer == "asked"
            if one.status == "running":
                self.acknowledged.append((one.operation_id, None, "cancel_requested"))
            one.status = "cancelling"
        elif one.status == "interrupted":
            assert answer == "asked"
            one.attempt += 1
            one.status = "cancelled"
            self.acknowledged += [
                (one.operation_id, one.attempt, "attempt_started"),
                (one.operation_id, one.attempt, "cancelled"),
            ]
        else:
            assert answer == "finished"

    @rule(clean=st.booleans())
    def crash_and_reopen(self, clean: bool) -> None:
        if clean:
            self.client.close()
        else:
            self.client.kill()
        self.client = Client(self.path)
        for one in self.operations:
            if one.status in LIVE:
                one.status = "interrupted"
                self.acknowledged.append((one.operation_id, one.attempt, "interrupted"))
        self._compare()

    @invariant()
    def the_journal_says_what_the_model_says(self) -> None:
        if getattr(self, "operations", None):
            one = self.operations[-1]
            assert self.client.call("read", one.operation_id)[:2] == (one.status, one.attempt)

    def teardown(self) -> None:
        if hasattr(self, "client"):
            self._compare()
            self.client.kill()
            shutil.rmtree(self.folder)

    def _claimed(self, one: Model, answer: object) -> None:
        one.attempt += 1
        one.status = "running"
        assert answer == (one.operation_id, one.attempt)
        self.acknowledged.append((one.operation_id, one.attempt, "attempt_started"))

    def _compare(self) -> None:
        events = self.client.call("events")
        assert [event[0] for event in events] == list(range(1, len(events) + 1))
        said = [event[1:4] for event in events if event[3] != "progressed"]
        interrupted = [one for one in said if one[2] == "interrupted"]
        expected = [one for one in self.acknowledged if one[2] != "interrupted"]
        assert [one for one in said if one[2] != "interrupted"] == expected
        assert sorted(interrupted) == sorted(one for one in self.acknowledged if one[2] == "interrupted")


def run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        JournalMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"\nFAULTS state machine: {examples} examples of {steps} steps: 0 differences")


def test_the_journal_does_what_a_list_would():
    run(8, 30)


@pytest.mark.slow
def test_the_journal_does_what_a_list_would_in_a_hundred_examples():
    run(100, 50)


@pytest.mark.full
def test_the_journal_does_what_a_list_would_in_three_thousand_examples():
    run(3000, 50)
