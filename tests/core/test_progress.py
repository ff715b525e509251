"""Progress: what the state becomes, who is told, in what words, and in what order."""

from __future__ import annotations

import pickle
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_ops.core.cancellation import CancellationToken
from ktrdr_ops.core.errors import InvalidValue, OperationCancelledException
from ktrdr_ops.core.progress import (
    GenericProgressManager,
    GenericProgressState,
    PlainRenderer,
    ProgressRenderer,
    eta_part,
    format_duration,
    items_part,
    step_part,
    with_parts,
    with_progress,
)

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


@dataclass
class Operation:
    operation_id: str = "feature_build_7f3k"
    operation_type: str = "feature_build"
    total_steps: int = 10
    context: dict[str, Any] = field(default_factory=lambda: {"name": "spring"})
    estimated_duration: timedelta | None = None


@dataclass
class ManualClock:
    now: datetime = NOON

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Shouting(ProgressRenderer):
    def render_progress_message(self, state: GenericProgressState) -> str:
        return f"{state.message.upper()} ({state.context['name']})"


class Broken(ProgressRenderer):
    def render_progress_message(self, state: GenericProgressState) -> str:
        raise ValueError("no words")


def started(callback=None, renderer=None, *, operation: Operation | None = None, **kw: Any) -> GenericProgressManager:
    manager = GenericProgressManager(callback, renderer, **kw)
    manager.start_operation(operation or Operation())
    return manager


def state_of(manager: GenericProgressManager) -> GenericProgressState:
    state = manager.state
    assert state is not None
    return state


def a_state(**changes: Any) -> GenericProgressState:
    state = GenericProgressState(
        "a", current_step=3, total_steps=5, percentage=68.0, message="Fetching", start_time=NOON
    )
    return replace(state, **changes)


# What the state becomes


def test_the_state_has_exactly_the_fields_of_the_specification():
    assert [f.name for f in fields(GenericProgressState)] == [
        "operation_id", "current_step", "total_steps", "percentage", "message", "start_time", "estimated_remaining",
        "items_processed", "total_items", "context",
    ]  # fmt: skip


def test_a_state_survives_pickling():
    state = a_state(context={"nested": [1, {"a": 2}]}, estimated_remaining=timedelta(seconds=4))
    assert pickle.loads(pickle.dumps(state)) == state


def test_a_start_is_zero_percent_and_says_what_begins():
    state = state_of(started(clock=lambda: NOON))
    assert (state.percentage, state.current_step, state.total_steps) == (0.0, 0, 10)
    assert state.message == "Starting feature build"
    assert state.start_time == NOON
    assert state.context == {"name": "spring"}


def test_three_of_ten_steps_are_thirty_percent():
    manager = started()
    manager.update_progress(3, "third")
    assert state_of(manager).percentage == 30.0


def test_half_of_a_step_from_10_to_96_is_53_percent():
    manager = started()
    manager.update_progress(4, "fetching", 50, total_items=100, step_range=(10, 96))
    assert state_of(manager).percentage == 53.0


def test_a_step_range_without_items_is_where_the_step_begins():
    manager = started()
    manager.update_progress(4, "fetching", step_range=(10, 96))
    assert state_of(manager).percentage == 10.0


def test_more_items_than_there_are_do_not_leave_the_steps_range():
    manager = started()
    manager.update_progress(4, "fetching", 132, total_items=100, step_range=(10, 96))
    assert state_of(manager).percentage == 96.0


def test_a_completed_operation_is_at_100_percent_with_nothing_left():
    clock = ManualClock()
    manager = started(clock=clock)
    clock.advance(10)
    manager.update_progress(5, "half")
    assert state_of(manager).estimated_remaining == timedelta(seconds=10)
    manager.complete_operation()
    state = state_of(manager)
    assert (state.percentage, state.current_step, state.message) == (100.0, 10, "Operation completed")
    assert state.estimated_remaining is None


def test_an_operation_that_ends_otherwise_keeps_its_percentage():
    manager = started()
    manager.update_progress(7, "seventh")
    manager.end_operation("Operation cancelled")
    state = state_of(manager)
    assert (state.percentage, state.current_step, state.message) == (70.0, 7, "Operation cancelled")
    assert state.estimated_remaining is None


def test_total_items_holds_within_a_step_and_goes_with_it():
    manager = started()
    manager.update_progress(1, "one", 5, total_items=10)
    manager.update_progress(1, "one", 6)
    assert state_of(manager).total_items == 10
    manager.update_progress(1, "one", 7, total_items=20)
    assert state_of(manager).total_items == 20
    manager.update_progress(2, "two")
    assert state_of(manager).total_items is None


def test_a_context_is_laid_over_the_operations_own_for_that_update():
    operation = Operation(context={"name": "spring", "kind": "x"})
    manager = started(operation=operation)
    manager.update_progress(1, "one", context={"kind": "y", "part": 1})
    assert state_of(manager).context == {"name": "spring", "kind": "y", "part": 1}
    manager.update_progress(1, "two")
    assert state_of(manager).context == {"name": "spring", "kind": "x"}
    assert operation.context == {"name": "spring", "kind": "x"}


def test_a_manager_starts_the_next_operation_from_nothing():
    manager = started()
    manager.update_progress(9, "nearly", 5, {"part": 1}, total_items=6)
    manager.start_operation(Operation(operation_id="next", context={}))
    state = state_of(manager)
    assert (state.operation_id, state.percentage, state.total_items, state.context) == ("next", 0.0, None, {})


def test_progress_before_a_start_is_refused():
    manager = GenericProgressManager()
    assert manager.state is None
    for call in (
        manager.complete_operation,
        lambda: manager.update_progress(1, "x"),
        lambda: manager.end_operation("x"),
    ):
        with pytest.raises(InvalidValue, match="no operation has been started"):
            call()


anything = (
    st.integers() | st.floats() | st.none() | st.text() | st.booleans() | st.lists(st.integers(), max_size=3)
    | st.just(np.int64(7)) | st.just(np.arange(3)) | st.just(np.float32("nan")) | st.just(object())
)  # fmt: skip


@given(
    updates=st.lists(
        st.tuples(
            st.integers(-5, 20) | anything,
            st.integers(-5, 200) | anything,
            st.integers(0, 100) | anything,
            st.none() | st.tuples(st.floats(), st.floats()) | anything,
        ),
        max_size=30,
    ),
    total_steps=st.integers(-1, 12) | anything,
)
def test_the_percentage_never_falls_or_leaves_0_to_100_whatever_is_told(updates, total_steps):
    percentages: list[float] = []
    manager = started(
        lambda state: percentages.append(state.percentage), operation=Operation(total_steps=total_steps, context={})
    )
    for step, items, total, step_range in updates:
        manager.update_progress(step, "x", items, total_items=total, step_range=step_range)
    assert len(percentages) == len(updates) + 1
    assert percentages == sorted(percentages)
    assert all(0.0 <= percentage <= 100.0 for percentage in percentages)
    state = state_of(manager)
    assert type(state.current_step) is int
    assert type(state.items_processed) is int
    assert state.total_items is None or type(state.total_items) is int


@given(context=st.dictionaries(st.text(), anything, max_size=4) | anything, message=anything)
def test_no_context_or_message_breaks_an_update(context, message):
    manager = started(lambda state: None)
    manager.update_progress(1, message, context=context)
    assert isinstance(state_of(manager).message, str)
    if not isinstance(context, dict) or "name" not in context:
        assert state_of(manager).context["name"] == "spring"


def test_a_value_without_meaning_is_said_once(caplog):
    manager = started()
    for _ in range(3):
        manager.update_progress("many", "x")  # type: ignore[arg-type]
    assert len(caplog.records) == 1


# What is left to go


def test_nothing_is_estimated_before_3_seconds_or_2_percent_have_gone():
    clock = ManualClock()
    manager = started(clock=clock, operation=Operation(total_steps=100))
    clock.advance(2.9)
    manager.update_progress(1, "one")
    assert state_of(manager).estimated_remaining is None
    clock.advance(0.1)
    manager.update_progress(1, "one")
    assert state_of(manager).estimated_remaining == timedelta(seconds=297)
    manager = started(clock=clock, operation=Operation(total_steps=100))
    clock.advance(1)
    manager.update_progress(2, "two")
    assert state_of(manager).estimated_remaining == timedelta(seconds=49)


def test_what_is_left_follows_from_time_and_percentage():
    clock = ManualClock()
    manager = started(clock=clock)
    clock.advance(30)
    manager.update_progress(4, "fourth")
    assert state_of(manager).estimated_remaining == timedelta(seconds=45)


def test_an_attempt_that_begins_at_60_percent_does_not_take_that_for_its_speed():
    clock = ManualClock()
    manager = started(clock=clock)
    clock.advance(0.5)
    manager.update_progress(4, "fetching", 60, total_items=100, step_range=(0, 100))
    clock.advance(10)
    manager.update_progress(4, "fetching", 65, total_items=100, step_range=(0, 100))
    assert state_of(manager).estimated_remaining == timedelta(seconds=70)


@given(jumps=st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, 100), st.integers(1, 10)), max_size=20))
def test_an_estimate_is_never_negative_even_when_the_clock_goes_backwards(jumps):
    clock = ManualClock()
    manager = started(clock=clock)
    for seconds, items, step in jumps:
        clock.advance(seconds)
        manager.update_progress(step, "x", items, total_items=100, step_range=(0, 100))
        left = state_of(manager).estimated_remaining
        assert left is None or left >= timedelta(0)


def test_time_that_is_waited_is_no_time_in_which_it_works():
    clock = ManualClock()
    manager = started(clock=clock)
    clock.advance(15)
    manager.wait_started()
    clock.advance(100)
    manager.wait_started()
    clock.advance(100)
    manager.wait_ended()
    clock.advance(100)
    manager.wait_ended()
    clock.advance(15)
    manager.update_progress(4, "fourth")
    assert state_of(manager).estimated_remaining == timedelta(seconds=45)


def test_before_it_has_a_pace_of_its_own_the_estimate_is_what_past_runs_took():
    clock = ManualClock()
    manager = started(clock=clock, operation=Operation(total_steps=1000, estimated_duration=timedelta(seconds=60)))
    clock.advance(2)
    manager.update_progress(1, "one")
    assert state_of(manager).estimated_remaining == timedelta(seconds=58)
    clock.advance(10)
    manager.update_progress(200, "much faster")
    assert state_of(manager).estimated_remaining == timedelta(seconds=48)


def test_a_percentage_next_to_nothing_gives_no_estimate_rather_than_an_absurd_one():
    clock = ManualClock()
    manager = started(clock=clock)
    clock.advance(10)
    manager.update_progress(1, "x", 1, total_items=10**300, step_range=(0, 100))
    assert state_of(manager).estimated_remaining is None


# Who is told


def test_each_call_tells_the_callback_once_with_the_rendered_message_and_keeps_the_raw_one():
    told: list[str] = []
    manager = GenericProgressManager(lambda state: told.append(state.message), Shouting())
    manager.start_operation(Operation())
    manager.update_progress(1, "one")
    assert state_of(manager).message == "one"
    manager.update_progress(2, "two")
    manager.complete_operation()
    assert told == ["STARTING FEATURE BUILD (spring)", "ONE (spring)", "TWO (spring)", "OPERATION COMPLETED (spring)"]


def test_what_a_callback_was_given_is_not_changed_by_later_updates_or_by_the_caller():
    told: list[GenericProgressState] = []
    manager = started(told.append)
    losses = [0.5]
    manager.update_progress(1, "one", 1, {"losses": losses}, total_items=9)
    losses.append(0.4)
    manager.update_progress(2, "two", 2, {"losses": losses})
    assert (told[1].message, told[1].percentage, told[1].context["losses"]) == ("one", 10.0, [0.5])
    told[2].context["name"] = "mine"
    told[2].message = "mine"
    assert (state_of(manager).message, state_of(manager).context["name"]) == ("two", "spring")


def test_a_context_that_cannot_be_copied_is_told_all_the_same():
    told: list[GenericProgressState] = []
    lock = threading.Lock()
    started(told.append).update_progress(1, "one", context={"lock": lock, "list": [1]})
    assert told[1].context["lock"] is lock


def test_a_callback_or_renderer_that_raises_is_logged_once_and_breaks_nothing(caplog):
    told: list[str] = []

    def fail(state: GenericProgressState) -> None:
        told.append(state.message)
        raise ValueError("no screen")

    manager = started(fail, Broken())
    for step in range(5):
        manager.update_progress(step, f"step {step}")
    manager.complete_operation()
    assert told == ["Starting feature build", *(f"step {step}" for step in range(5)), "Operation completed"]
    assert len(caplog.records) == 2
    assert state_of(manager).percentage == 100.0


def test_the_sink_gets_each_update_raw_and_before_the_callback_and_nothing_else():
    order: list[tuple[str, str]] = []
    manager = started(
        lambda state: order.append(("callback", state.message)),
        Shouting(),
        sink=lambda state: order.append(("sink", state.message)),
    )
    manager.update_progress(1, "one")
    manager.end_operation("over")
    assert order == [
        ("callback", "STARTING FEATURE BUILD (spring)"),
        ("sink", "one"),
        ("callback", "ONE (spring)"),
        ("callback", "OVER (spring)"),
    ]


def test_what_the_sink_raises_is_the_callers_and_the_callback_is_not_told():
    told: list[str] = []

    def refuse(state: GenericProgressState) -> None:
        raise OSError("the disk is full")

    manager = started(lambda state: told.append(state.message), sink=refuse)
    with pytest.raises(OSError, match="the disk is full"):
        manager.update_progress(1, "one")
    assert told == ["Starting feature build"]


def test_an_update_is_a_check_point_and_leaves_no_trace_when_it_stops():
    token = CancellationToken("a")
    kept: list[GenericProgressState] = []
    manager = started(sink=kept.append, token=token)
    token.cancel("enough")
    with pytest.raises(OperationCancelledException, match="a was cancelled: enough"):
        manager.update_progress(1, "one")
    assert kept == []
    assert state_of(manager).message == "Starting feature build"
    manager.end_operation("Operation cancelled")
    assert state_of(manager).message == "Operation cancelled"


def test_updates_from_many_threads_reach_the_sink_whole_and_in_the_order_of_the_changes():
    kept: list[tuple[float, int, str]] = []
    passing = threading.Event()

    def keep(state: GenericProgressState) -> None:
        seen = (state.percentage, state.items_processed, state.message)
        passing.wait(1e-6)  # lets the other threads run in the middle of it
        assert seen == (state.percentage, state.items_processed, state.message)
        kept.append(seen)

    manager = started(lambda state: None, sink=keep, operation=Operation(total_steps=1))
    start = threading.Barrier(4)

    def work(number: int) -> None:
        start.wait()
        for item in range(number, 400, 4):
            manager.update_progress(1, str(item), item, total_items=400, step_range=(0, 100))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    percentages = [percentage for percentage, _, _ in kept]
    assert sorted(item for _, item, _ in kept) == list(range(400))
    assert all(message == str(item) for _, item, message in kept)
    assert percentages == sorted(percentages)


def test_a_callback_may_wait_for_another_threads_update():
    told: list[str] = []

    def wait(state: GenericProgressState) -> None:
        told.append(state.message)
        if state.message == "outer":
            thread = threading.Thread(target=manager.update_progress, args=(2, "inner"))
            thread.start()
            thread.join(10)
            assert not thread.is_alive()

    manager = started(wait)
    manager.update_progress(1, "outer")
    assert told == ["Starting feature build", "outer", "inner"]


def test_a_bound_manager_has_the_templates_parts_and_a_state_of_its_own():
    told: list[str] = []
    template = GenericProgressManager(lambda state: told.append(f"template {state.message}"), Shouting())
    one, two = (
        template.bound(),
        template.bound(callback=lambda state: told.append(state.message), renderer=PlainRenderer()),
    )
    one.start_operation(Operation(operation_id="one"))
    two.start_operation(Operation(operation_id="two"))
    one.update_progress(5, "half")
    two.update_progress(1, "begun")
    assert (state_of(one).percentage, state_of(two).percentage, template.state) == (50.0, 10.0, None)
    assert told[2:] == ["template HALF (spring)", "begun"]


def test_a_replayed_state_is_shown_as_it_was_recorded():
    live: list[GenericProgressState] = []
    raw: list[GenericProgressState] = []
    clock = ManualClock()
    manager = GenericProgressManager(live.append, Shouting(), clock=clock)
    manager.start_operation(Operation())
    raw.append(state_of(manager))
    for step in range(1, 11):
        clock.advance(7)
        manager.update_progress(step, f"step {step}", step, {"part": step}, total_items=10)
        raw.append(state_of(manager))
    manager.complete_operation()
    raw.append(state_of(manager))

    def no_clock() -> datetime:
        raise AssertionError("replay has no clock")

    replayed: list[GenericProgressState] = []
    kept: list[GenericProgressState] = []
    replayer = GenericProgressManager(replayed.append, Shouting(), sink=kept.append, clock=no_clock)
    for state in raw:
        replayer.show(state)
    assert replayed == live
    assert kept == []


def test_a_shown_state_stays_the_callers():
    state = a_state(context={"name": "spring"})
    manager = GenericProgressManager(lambda told: told.context.clear(), Shouting())
    manager.show(state)
    assert (state.message, state.context) == ("Fetching", {"name": "spring"})
    manager.update_progress(4, "later")
    assert (state.message, state.current_step) == ("Fetching", 3)


# In what words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (-5, "0s"), (0.9, "0s"), (30, "30s"), (59.9, "59s"), (60, "1m"), (90, "1m 30s"), (120, "2m"),
     (3599, "59m 59s"), (3600, "1h"), (3750, "1h 2m"), (90_000, "25h")],
)  # fmt: skip
def test_durations_are_said_as_people_are_used_to(seconds, text):
    assert format_duration(seconds) == text
    assert format_duration(timedelta(seconds=seconds)) == text


def test_all_parts_stand_in_their_order():
    state = a_state(items_processed=2400, total_items=4000, estimated_remaining=timedelta(seconds=45.7))
    assert with_progress("Fetching", state) == "Fetching [3/5] (2400/4000 items) ETA: 45s"


def test_missing_parts_are_left_out():
    assert with_progress("Fetching", a_state()) == "Fetching [3/5]"
    assert with_progress("Starting", a_state(current_step=0)) == "Starting"
    assert items_part(a_state(items_processed=5)) == ""
    assert items_part(a_state(total_items=5)) == ""
    assert step_part(a_state(total_steps=0)) == ""
    assert eta_part(a_state(estimated_remaining=timedelta(0))) == ""
    assert with_parts("", "(x)", "") == "(x)"


@given(
    message=st.text(max_size=20),
    step=st.integers(0, 9),
    items=st.integers(0, 50),
    total=st.none() | st.integers(0, 50),
    left=st.none() | st.integers(0, 100_000),
)
def test_rendering_a_rendered_message_again_adds_nothing(message, step, items, total, left):
    state = a_state(
        current_step=step,
        items_processed=items,
        total_items=total,
        estimated_remaining=None if left is None else timedelta(seconds=left),
    )
    rendered = with_progress(message, state)
    assert with_progress(rendered, state) == rendered


def test_a_renderer_needs_no_step_detail_and_the_plain_one_changes_nothing():
    assert Shouting().render_step_detail(a_state()) == ""
    assert PlainRenderer().render_progress_message(a_state(message="as it is [3/5]")) == "as it is [3/5]"


# What it costs


def test_an_update_costs_its_caller_microseconds():
    manager = started(sink=lambda state: None, token=CancellationToken("a"))
    took = []
    for item in range(20_000):
        context = {"part": item, "value": 1.5}
        began = time.perf_counter_ns()
        manager.update_progress(4, "fetching", item, context, total_items=20_000, step_range=(10, 96))
        took.append(time.perf_counter_ns() - began)
    # Coverage traces each line and makes it four times as slow; `make bench` measures without it.
    assert statistics.median(took) < 50_000


@pytest.mark.benchmark
def test_an_update_costs_less_than_5_microseconds_at_the_median():
    manager = started(sink=lambda state: None, token=CancellationToken("a"))
    took = []
    for item in range(100_000):
        context = {"part": item, "value": 1.5}
        began = time.perf_counter_ns()
        manager.update_progress(4, "fetching", item, context, total_items=100_000, step_range=(10, 96))
        took.append(time.perf_counter_ns() - began)
    median, p99 = statistics.median(took) / 1000, sorted(took)[99_000] / 1000
    print(f"\nupdate_progress without a callback: median {median:.2f} µs, p99 {p99:.2f} µs")
    assert median < 5
