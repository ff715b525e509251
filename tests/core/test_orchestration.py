"""Operations from their first event to their last, over a real journal."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import textwrap
import threading
import time

import orjson
import pytest

from ktrdr_ops.core.artifacts import Publication
from ktrdr_ops.core.cancellation import CancellationSystem
from ktrdr_ops.core.errors import (
    InvalidValue,
    JournalCorrupt,
    JournalFull,
    KeyIsLive,
    KtrdrOpsError,
    OperationCancelledException,
    OperationFailed,
    OperationInterrupted,
    OwnershipLost,
)
from ktrdr_ops.core.journal import history
from ktrdr_ops.core.journal.decisions import Resume
from ktrdr_ops.core.journal.history import Filter
from ktrdr_ops.core.orchestration import AsyncOperation, AsyncOrchestrationFramework, How
from ktrdr_ops.core.progress import GenericProgressManager, ProgressRenderer
from ktrdr_ops.core.replay import replay
from tests.core.conftest import operation


class Loud(ProgressRenderer):
    def render_progress_message(self, state) -> str:
        return f"{state.message}!" if not state.message.endswith("!") else state.message


async def types_of(framework, operation_id=None):
    return [event.type async for event in framework.journal.read_all(operation_id)]


async def last_state(framework):
    page = await history.list_operations(framework.journal, limit=1)
    return page.states[0] if page.states else None


async def until(condition, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


async def test_an_operation_is_journaled_from_its_submission_to_its_result(framework, shown):
    async def work(operation, progress_manager, token):
        progress_manager.update_progress(1, "first", items_processed=3, context={"found": 3})
        progress_manager.update_progress(3, "third")
        return {"rows": 7}

    assert await framework.execute_operation(operation(), work, Loud()) == {"rows": 7}
    assert await types_of(framework) == ["submitted", "attempt_started", "progressed", "progressed", "completed"]
    state = await last_state(framework)
    assert (state.status, state.result, state.percentage) == ("completed", {"rows": 7}, 100.0)
    assert shown.messages == ["Starting work type!", "first!", "third!", "Operation completed!"]
    assert [seen.percentage for seen in shown.states] == [0.0, 25.0, 75.0, 100.0]


@pytest.mark.parametrize("taken", [2, 3, 4])
async def test_a_function_takes_two_three_or_four_arguments(framework, taken):
    seen: list[tuple] = []

    async def two(operation, progress):
        seen.append((operation, progress))

    async def three(operation, progress, token):
        seen.append((operation, progress, token))

    async def four(operation, progress, token, attempt):
        seen.append((operation, progress, token, attempt))

    await framework.execute_operation(operation(), {2: two, 3: three, 4: four}[taken])
    assert len(seen[0]) == taken
    assert seen[0][0].operation_id.startswith("work_")


async def test_a_function_that_takes_one_argument_is_refused_and_the_attempt_says_so(framework):
    async def one(operation):
        return 1

    with pytest.raises(InvalidValue, match="takes"):
        await framework.execute_operation(operation(), one)
    assert (await last_state(framework)).status == "failed"


async def test_a_plain_function_runs_in_a_thread_and_is_cancelled_at_its_next_update(framework):
    began = threading.Event()

    def work(operation, progress):
        began.set()
        while True:
            progress.update_progress(1, "working")
            threading.Event().wait(0.002)

    running = asyncio.ensure_future(framework.execute_operation(operation(), work))
    await asyncio.to_thread(began.wait, 10)
    assert await framework.cancel_operation((await last_state(framework)).operation_id)
    with pytest.raises(OperationCancelledException):
        await running
    assert (await last_state(framework)).status == "cancelled"


async def test_without_a_journal_it_makes_one_that_is_gone_afterwards():
    framework = AsyncOrchestrationFramework(GenericProgressManager(), CancellationSystem())
    path = framework.journal.path

    async def work(operation, progress):
        return 5

    assert await framework.execute_operation(operation(), work) == 5
    assert path.exists()
    await framework.aclose()
    assert not path.exists()


async def test_an_exception_is_recorded_raised_again_and_the_next_start_goes_on(framework):
    tries = []

    async def work(operation, progress, token, attempt):
        tries.append(attempt.number)
        if attempt.number == 1:
            raise ValueError("no luck")
        return "done"

    with pytest.raises(ValueError, match="no luck") as raised:
        await framework.execute_operation(operation(), work)
    assert "attempt 1" in raised.value.__notes__[0]
    state = await last_state(framework)
    assert state.error == {"code": "exception", "message": "ValueError: no luck", "hint": None}
    assert await framework.execute_operation(operation(), work) == "done"
    assert tries == [1, 2]


async def test_our_own_errors_keep_code_and_hint(framework):
    async def work(operation, progress):
        raise OperationFailed("2 of 5 parts failed", hint="again", result={"failed": 2})

    with pytest.raises(OperationFailed) as raised:
        await framework.execute_operation(operation(), work)
    state = await last_state(framework)
    assert state.error == {"code": "failed", "message": "2 of 5 parts failed", "hint": "again"}
    assert state.result == {"failed": 2}
    assert raised.value.details["operation_id"] == state.operation_id


async def test_secrets_reach_neither_parameters_nor_progress_nor_errors(framework):
    async def work(operation, progress):
        progress.update_progress(
            1, "GET https://me:hunter2@host/", context={"api_key": "k-123", "deep": {"token": "t"}}
        )
        said = "GET /x?page=2&token=tk-9 failed, api_key='ak-7', password=pw-5"
        raise RuntimeError(f"Authorization: Bearer abcdefghijkl; {said}")

    secret = operation(parameters={"password": "hunter2", "url": "https://me:hunter2@host/x"})
    with pytest.raises(RuntimeError):
        await framework.execute_operation(secret, work)
    framework.journal.flush()
    stored = b"".join([event.payload async for event in framework.journal.read_all()])
    for leaked in (b"hunter2", b"k-123", b'"t"', b"abcdefghijkl", b"tk-9", b"ak-7", b"pw-5"):
        assert leaked not in stored
    assert b"page=2&token=" in stored


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("\ud800", "surrogate"),
        ("x" * (2 << 20), "65,536"),
        (object(), "cannot be stored"),
        (2**80, "64 bits"),
    ],
)
async def test_start_parameters_are_strict(framework, value, why):
    async def work(operation, progress):
        return 1

    with pytest.raises(InvalidValue, match=why):
        await framework.execute_operation(operation(parameters={"value": value}), work)
    assert await types_of(framework) == [], "nothing was started"


async def test_start_parameters_may_not_be_a_hundred_deep(framework):
    async def work(operation, progress):
        return 1

    value: dict = {}
    for _ in range(100):
        value = {"deeper": value}
    with pytest.raises(InvalidValue, match="64 levels"):
        await framework.execute_operation(operation(parameters=value), work)


async def test_progress_never_fails_for_a_value_and_says_what_it_replaced(framework, caplog):
    import numpy
    import pandas

    deep: dict = {}
    for _ in range(100):
        deep = {"deeper": deep}
    hostile = {
        "nan": float("nan"),
        "surrogate": "\ud800",
        "deep": deep,
        "large": "x" * (2 << 20),
        "object": object(),
        "numpy": numpy.int64(5),
        "array": numpy.arange(3),
        "when": pandas.Timestamp("2026-01-02", tz="UTC"),
        7: "a key that is no text",
    }

    async def work(operation, progress):
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                progress.update_progress(1, "hostile", context=hostile)
        return 1

    await framework.execute_operation(operation(), work)
    context = [event async for event in framework.journal.read_all() if event.type == "progressed"][-1].fact.context
    assert context["nan"] == {"$float": "nan"}
    assert context["numpy"] == 5
    assert context["array"] == [0, 1, 2]
    assert context["when"].startswith("2026-01-02")
    assert context["large"]["$replaced"] == "too large"
    assert "$replaced" in str(context["deep"])
    assert context["object"]["$replaced"] == "cannot be stored"
    assert sum("too large" in record.message for record in caplog.records) <= 1


@pytest.mark.parametrize("name", ["", "../../etc", "a b", "x" * 200, "nul\0"])
async def test_an_id_has_safe_characters_only(framework, name):
    async def work(operation, progress):
        return 1

    with pytest.raises(InvalidValue, match="operation id"):
        await framework.execute_operation(operation(name), work)


async def test_a_step_runs_once_ever(framework):
    ran = []

    async def work(operation, progress, token, attempt):
        def first():
            ran.append("fetch")
            return {"rows": 5}

        value = await attempt.step("fetch", first)

        async def second():
            ran.append("second")
            return 2

        await attempt.step("second", second)
        if attempt.number == 1:
            raise OperationFailed("half way")
        return value

    with pytest.raises(OperationFailed):
        await framework.execute_operation(operation(), work)
    assert await framework.execute_operation(operation(), work) == {"rows": 5}
    assert ran == ["fetch", "second"]


async def test_a_checkpoint_is_given_to_the_next_attempt_however_large(framework):
    large = ["x" * 1000] * 3000

    async def work(operation, progress, token, attempt):
        if attempt.number == 1:
            assert attempt.restore() is None
            await attempt.checkpoint({"at": 1})
            await attempt.checkpoint(large)
            raise OperationFailed("later")
        return attempt.restore()

    with pytest.raises(OperationFailed):
        await framework.execute_operation(operation(), work)
    assert await framework.execute_operation(operation(), work, summarise=len) == large
    stored = [event.fact async for event in framework.journal.read_all() if event.type == "checkpointed"]
    assert stored[0].value == {"at": 1}
    assert stored[1].object is not None


async def test_artifacts_are_published_with_their_step_and_found_by_key(framework):
    async def work(operation, progress, token, attempt):
        sha = attempt.objects.put(b"content")
        publication = Publication(kind="part", key="a[1]", object=sha, sha256="c" * 64, size=7, metadata={"rows": 1})
        await attempt.complete_step("part", 1, publish=[publication])
        other = Publication(kind="part", key="a[1]", object=attempt.objects.put(b"more"), sha256="d" * 64, size=4)
        return [artifact.position for artifact in await attempt.publish(other)]

    positions = await framework.execute_operation(operation(), work)
    catalogue = history.Catalogue(framework.journal)
    latest = await catalogue.latest("part", "a[1]")
    assert latest is not None
    assert (latest.position, latest.sha256) == (positions[0], "d" * 64)
    earlier = await catalogue.latest("part", "a[1]", as_of=positions[0] - 1)
    assert earlier is not None
    assert earlier.metadata == {"rows": 1}
    assert [artifact.sha256[0] for artifact in await catalogue.every("part", "a[")] == ["d", "c"]
    assert await catalogue.every("part", "b") == []


async def test_what_is_not_in_the_object_store_cannot_be_published(framework):
    async def work(operation, progress, token, attempt):
        await attempt.publish(Publication(kind="part", key="k", object="0" * 64, sha256="c" * 64, size=1))

    with pytest.raises(JournalCorrupt, match="missing"):
        await framework.execute_operation(operation(), work)


async def test_waits_and_retries_are_events(framework):
    from ktrdr_ops.core.host_service import Retry

    async def work(operation, progress, token, attempt):
        async with attempt.waiting("pacing", 5.0):
            framework.journal.flush()
            state = await last_state(framework)
            assert state.waiting is not None
            assert state.waiting["reason"] == "pacing"
        attempt.retried(Retry("host", "GET", "/x", 1, "reset", 0.5))

    await framework.execute_operation(operation(), work)
    assert (await types_of(framework))[2:] == ["wait_started", "wait_ended", "request_retried", "completed"]
    state = await last_state(framework)
    assert (state.waiting, state.retries) == (None, 1)


async def test_two_operations_at_once_never_share_progress_or_token(framework, shown):
    async def work(operation, progress, token):
        for step in range(1, 5):
            progress.update_progress(step, f"{operation.context['name']} {step}")
            await asyncio.sleep(0)
        token.check_cancellation_point()
        return operation.context["name"]

    names = [f"n{number}" for number in range(10)]
    values = await asyncio.gather(
        *(framework.execute_operation(operation(name, context={"name": name}), work) for name in names)
    )
    assert values == names
    for name in names:
        mine = [state for state in shown.states if state.operation_id.startswith(name + "_")]
        assert [state.message for state in mine if " " in state.message and state.message[0] == "n"] == [
            f"{name} {step}" for step in range(1, 5)
        ]


async def test_a_cancel_ends_a_function_that_only_sleeps(framework, shown):
    async def work(operation, progress, token):
        await asyncio.sleep(3600)

    running = asyncio.ensure_future(framework.execute_operation(operation(), work))
    await until(lambda: framework.tasks.running)
    operation_id = framework.tasks.running[0]
    began = time.monotonic()
    await framework.cancel_operation(operation_id, "enough", "me")
    with pytest.raises(OperationCancelledException):
        await running
    assert time.monotonic() - began < 1.0
    state = await last_state(framework)
    assert state.status == "cancelled"
    assert (state.cancellation["requested_by"], state.cancellation["reason"]) == ("me", "enough")
    assert 0 <= state.cancellation["latency_ms"] < 1000
    assert shown.messages[-1] == "Operation cancelled"
    assert framework.tasks.running == ()
    assert await framework.cancel_operation("work_nobody") is False


async def test_a_cancel_does_not_touch_the_operations_after_it(framework):
    async def forever(operation, progress, token):
        await token.wait()
        token.check_cancellation_point()

    async def quick(operation, progress):
        progress.update_progress(1, "fine")
        return 1

    running = asyncio.ensure_future(framework.execute_operation(operation(), forever))
    await until(lambda: framework.tasks.running)
    framework.cancellation_system.cancel_all_operations("all", "me")
    with pytest.raises(OperationCancelledException):
        await running
    assert await framework.execute_operation(operation("other"), quick) == 1
    assert await framework.execute_operation(operation(), quick) == 1, "an old request does not cancel a new attempt"


async def test_an_outer_task_that_is_cancelled_leaves_a_final_event(framework):
    async def work(operation, progress):
        await asyncio.sleep(3600)

    running = asyncio.ensure_future(framework.execute_operation(operation(), work))
    await until(lambda: framework.tasks.running)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    state = await last_state(framework)
    assert state.status == "cancelled"
    assert state.cancellation["requested_by"] == "task"


async def test_a_signal_interrupts_and_the_next_start_goes_on(framework):
    async def work(operation, progress, token, attempt):
        await attempt.step("first", lambda: 1)
        if attempt.number == 1:
            await asyncio.sleep(3600)
        return dict(attempt.steps)

    running = asyncio.ensure_future(framework.execute_operation(operation(), work))
    await until(lambda: framework.tasks.running)
    assert framework.interrupt_all("signal SIGTERM") == 1
    with pytest.raises(OperationInterrupted, match="SIGTERM"):
        await running
    assert (await last_state(framework)).status == "interrupted"
    assert await framework.execute_operation(operation(), work) == {"first": 1}
    assert (await last_state(framework)).attempt == 2


async def test_an_attempt_that_lost_its_operation_stops_and_says_so(framework):
    async def work(operation, progress, token, attempt):
        await attempt.step("first", lambda: 1)
        while attempt.number == 1:
            progress.update_progress(1, "still here")
            await asyncio.sleep(0.005)

    running = asyncio.ensure_future(framework.execute_operation(operation(), work))
    await until(lambda: framework.tasks.running)
    operation_id = framework.tasks.running[0]
    await framework.journal.append(Resume(operation_id, framework.journal.owner(), steal=True))
    with pytest.raises(OwnershipLost):
        await running
    assert (await last_state(framework)).attempt == 2


async def test_a_live_key_is_refused(framework):
    async def work(operation, progress, token):
        await token.wait()
        token.check_cancellation_point()

    running = asyncio.ensure_future(framework.execute_operation(operation(), work))
    await until(lambda: framework.tasks.running)
    with pytest.raises(KeyIsLive):
        await framework.execute_operation(operation(), work)
    with pytest.raises(KeyIsLive):
        await framework.execute_operation(operation(), work, how=How(fresh=True))
    await framework.aclose()
    with pytest.raises(OperationInterrupted):
        await running


async def test_replay_shows_message_for_message_what_was_shown_live(framework, shown):
    async def work(operation, progress, token, attempt):
        for items in range(30):
            progress.update_progress(
                1 + items // 10, f"part {items}", items, {"n": items}, total_items=30, step_range=(0, 90)
            )
            await asyncio.sleep(0)

    await framework.execute_operation(operation(context={"name": "x"}), work, Loud())
    again = []
    manager = GenericProgressManager(callback=again.append, renderer=Loud())
    operation_id = (await last_state(framework)).operation_id
    async for _ in replay(framework.journal, operation_id, manager):
        pass
    assert [state.message for state in again] == shown.messages
    assert [state.percentage for state in again] == [state.percentage for state in shown.states]
    assert [state.context for state in again] == [state.context for state in shown.states]


async def test_a_kill_9_leaves_an_operation_that_the_same_start_finishes(tmp_path):
    script = textwrap.dedent("""
        import asyncio, os, signal, sys
        from ktrdr_ops.core.cancellation import CancellationSystem
        from ktrdr_ops.core.journal.journal import open_journal
        from ktrdr_ops.core.orchestration import AsyncOrchestrationFramework
        from ktrdr_ops.core.progress import GenericProgressManager
        from tests.core.conftest import operation
        async def work(operation, progress, token, attempt):
            for number in range(10):
                await attempt.step(f"part {number}", lambda: print("ran", number, flush=True) or number)
                if number == 4 and attempt.number == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
            return sorted(attempt.steps)
        async def main():
            journal = open_journal(sys.argv[1])
            framework = AsyncOrchestrationFramework(GenericProgressManager(), CancellationSystem(), journal=journal)
            print(await framework.execute_operation(operation(), work))
            await journal.aclose()
        asyncio.run(main())
    """)
    command = [sys.executable, "-c", script, str(tmp_path / "journal.db")]
    first = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert first.returncode == -9, first.stderr
    second = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    assert first.stdout.split() == ["ran", "0", "ran", "1", "ran", "2", "ran", "3", "ran", "4"]
    assert second.stdout.count("ran") == 5


async def test_a_start_whose_caller_is_cancelled_is_not_left_running(framework):
    async def work(operation, progress):
        await asyncio.sleep(3600)

    for number in range(40):
        task = asyncio.ensure_future(framework.execute_operation(operation(f"work_{number}"), work))
        for _ in range(number % 8):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    page = await history.list_operations(framework.journal, Filter(status="running"))
    assert page.states == []


async def test_a_thread_that_is_cancelled_has_ended_before_it_is_said_so(framework):
    at_work = threading.Event()
    ended = threading.Event()

    def work(operation, progress, token):
        at_work.set()
        token_wait = 0
        while token_wait < 60:
            threading.Event().wait(0.01)
            token_wait += 1
        ended.set()
        token.check_cancellation_point()

    running = asyncio.ensure_future(framework.execute_operation(operation(), work))
    await asyncio.to_thread(at_work.wait, 10)
    await framework.cancel_operation("work")
    with pytest.raises(OperationCancelledException):
        await running
    assert ended.is_set()


async def test_a_lost_child_fails_its_parent_and_leaves_no_operation_running(framework):
    async def parent(operation, progress):
        raise OwnershipLost("attempt 1 of work_child is over", operation_id="work_child", attempt=1)

    with pytest.raises(OwnershipLost):
        await framework.execute_operation(operation(), parent)
    assert (await last_state(framework)).status == "failed"


async def test_an_estimate_is_learned_from_what_past_runs_of_the_same_key_took(framework, shown):
    async def work(operation, progress_manager):
        await asyncio.sleep(pause)
        progress_manager.update_progress(0, "begun")

    pause = 1.2
    await framework.execute_operation(operation(), work)
    assert await history.typical_seconds(framework.journal, "work") == pytest.approx(pause, abs=0.6)
    pause = 0.0
    await framework.execute_operation(operation(), work, how=How(fresh=True))
    left = [state.estimated_remaining for state in shown.states if state.message == "begun"]
    assert left[0] is None
    assert left[1].total_seconds() == pytest.approx(1.2, abs=0.6)
    await framework.execute_operation(operation("other"), work)
    assert [state.estimated_remaining for state in shown.states if state.message == "begun"][-1] is None


async def test_an_operation_is_cancelled_by_its_readable_id(framework):
    async def work(operation, progress, token):
        await token.sleep(3600)

    running = asyncio.ensure_future(framework.execute_operation(operation("data_work"), work))
    await until(lambda: framework.tasks.running)
    assert framework.cancellation_system.cancel_operation("data_work")
    with pytest.raises(OperationCancelledException):
        await running
    assert framework.cancellation_system.cancel_operation("data_work") is False


@pytest.mark.parametrize("what", ["checkpoint", "step"])
async def test_what_must_come_back_whole_is_never_redacted(framework, what):
    async def work(operation, progress, token, attempt):
        if what == "checkpoint":
            await attempt.checkpoint({"page_token": "abc"})
        else:
            await attempt.step("page", lambda: {"page_token": "abc"})

    with pytest.raises(InvalidValue, match="secret's name"):
        await framework.execute_operation(operation(), work)


async def test_numbers_of_numpy_are_numbers_wherever_they_are_given(framework):
    import numpy

    async def work(operation, progress, token, attempt):
        progress.update_progress(1, "loss", context={"loss": numpy.float64(0.5), "rows": numpy.int32(3)})
        await attempt.checkpoint({"loss": numpy.float64(0.25)})
        return {"loss": numpy.float64(1.5), "rows": numpy.int64(7)}

    await framework.execute_operation(operation(), work)
    assert (await last_state(framework)).result == {"loss": 1.5, "rows": 7}
    contexts = [event.fact.context async for event in framework.journal.read_all() if event.type == "progressed"]
    assert contexts == [{"loss": 0.5, "rows": 3}]


async def test_progress_survives_objects_that_raise_or_are_huge(framework):
    import numpy

    class Hostile(dict):
        def items(self):
            raise RuntimeError("no")

    class Nameless:
        def __str__(self) -> str:
            raise RuntimeError("no")

    nested: list = [1]
    for _ in range(40):
        nested = [nested, nested]
    hostile = {"h": Hostile(), "big": numpy.zeros(1_000_000), "nested": nested, Nameless(): 1}

    async def work(operation, progress):
        began = time.monotonic()
        progress.update_progress(1, "hostile", context=hostile)
        return time.monotonic() - began

    assert await framework.execute_operation(operation(), work) < 1.0
    assert "progressed" in await types_of(framework)


def fill(journal) -> None:
    """No page more for the journal's file, as on a full disk."""
    connection = journal._writer._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages}")


def make_room(journal) -> None:
    journal._writer._connection.execute("PRAGMA max_page_count=1000000")


async def test_a_start_without_room_is_refused_before_any_work(framework):
    ran = []

    async def work(operation, progress):
        ran.append(1)

    fill(framework.journal)
    with pytest.raises(JournalFull, match="no room"):
        for number in range(200):
            await framework.execute_operation(operation(f"work_{number}", parameters={"x": "y" * 5000}), work)
    state = await last_state(framework)
    assert len(ran) == (0 if state is None else state.last_position // 3)


async def test_with_a_full_disk_progress_is_kept_and_the_result_recorded_when_there_is_room(framework, shown):
    async def work(operation, progress):
        fill(framework.journal)
        for number in range(3000):
            progress.update_progress(1, f"update {number}", number)
        await until(lambda: framework.journal.backlog[1] is not None)
        return {"done": True}

    running = asyncio.ensure_future(framework.execute_operation(operation(), work))
    await until(lambda: any("Waiting for the journal" in message for message in shown.messages))
    assert framework.journal.backlog[0] > 0, "the counter that people are shown"
    make_room(framework.journal)
    assert await running == {"done": True}
    types = await types_of(framework)
    assert types == ["submitted", "attempt_started", *["progressed"] * 3000, "completed"]


async def test_a_result_that_cannot_be_journaled_is_in_the_error_of_who_must_go(framework, shown):
    async def work(operation, progress):
        fill(framework.journal)
        return {"rows": ["x" * 100] * 300}

    running = asyncio.ensure_future(framework.execute_operation(operation(), work))
    await until(lambda: any("Waiting for the journal" in message for message in shown.messages))
    framework.interrupt_all("signal SIGTERM")
    with pytest.raises(OperationFailed, match=r"could not be journaled \(there is no room left.*completed") as raised:
        await running
    assert '"rows"' in raised.value.message
    assert raised.value.exit_code == 1


def test_a_bare_operation_is_the_specs():
    made = AsyncOperation(operation_id="a", operation_type="t", total_steps=3)
    assert (made.estimated_duration, made.context, made.key, made.parameters, made.parent_id) == (
        None,
        {},
        None,
        None,
        None,
    )


def test_an_errors_docstring_is_its_default_message():
    for error in (OperationFailed(), KtrdrOpsError()):
        assert error.message
        assert orjson.dumps(error.document())
