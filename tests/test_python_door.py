"""Operations of one's own, from a script: `app.operation`, `op.step`, and the tail of the journal. `op.track` has a
file of its own."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import subprocess
import sys
import threading
import time
import typing
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

import ktrdr_ops as ko
from ktrdr_ops.core.artifacts import ObjectStore
from ktrdr_ops.core.errors import (
    InvalidValue,
    JournalRefused,
    KeyIsLive,
    OperationCancelledException,
    OperationNotFound,
)
from ktrdr_ops.core.tracking import EVERY_SECONDS
from ktrdr_ops.hosts.sandbox import stop_hosts

DEADLINE = 20.0
LATENCY = 0.15
"""What a checkpoint may take to the disk on a machine that has other things to do."""


def until(true, what: str = "it", seconds: float = DEADLINE):
    """Waits until it is true; gives what it then is."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(0.005)
    return found


def counts(events) -> list[int]:
    """How many items the only track had completed at each checkpoint."""
    kept = [event.fact.value["tracks"].values() for event in events if event.type == "checkpointed"]
    return [mark["count"] for marks in kept for mark in marks]


@pytest.fixture
def app(tmp_path):
    with ko.open_app(tmp_path / "journal.db") as app:
        yield app


@pytest.fixture(scope="module")
def any_app(tmp_path_factory):
    """For what is refused before anything begins."""
    with ko.open_app(tmp_path_factory.mktemp("any") / "journal.db") as app:
        yield app


def started(text: str, folder: Path) -> subprocess.Popen[str]:
    """Python that a person runs in a folder; its journal is there too."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("KTRDR_OPS_")}
    own |= {"KTRDR_OPS_JOURNAL": str(folder / "journal.db"), "KTRDR_OPS_DATA_DIR": str(folder / "data")}
    own |= {"KTRDR_OPS_SANDBOX": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    own |= {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", text],
        cwd=folder, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ran(text: str, folder: Path, code: int = 0) -> str:
    """What it printed; nothing on stderr."""
    process = started(text, folder)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, "")
    return out


EXAMPLE = """
import time
import ktrdr_ops as ko

months = [f"{year}-{month:02}" for year in range(2000, 2005) for month in range(1, 13)]

def make(bars, month):
    assert len(bars) == 3270
    with open("made.txt", "a") as file:
        file.write(f"{month} {time.time_ns()}\\n")
    time.sleep(0.015)

with ko.open_app() as app:
    bars = app.run("data_load", symbol="AAPL", timeframe="1d", mode="full")

    @app.operation("feature_build", key="{symbol}")
    def build(op, symbol):
        for month in op.track(months):
            make(bars, month)

    app.run("feature_build", symbol="AAPL")
    for event in app.journal.tail("@last"):
        print(event.position, event.type)
"""


GONE = """
import os, ktrdr_ops as ko
app = ko.open_app()
app.operation("gone")(lambda op: os._exit(0))
app.run("gone")
"""


def made(folder: Path) -> list[tuple[str, float]]:
    """The months that were made, and when, in seconds."""
    file = folder / "made.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(line.split()[0], int(line.split()[1]) / 1e9) for line in lines if len(line.split()) == 2]


@pytest.mark.slow
def test_a_killed_script_run_again_repeats_at_most_the_last_100_ms(tmp_path):
    try:
        first = started(EXAMPLE, tmp_path)
        until(lambda: first.poll() is not None or len(made(tmp_path)) >= 30, "the thirtieth month")
        killed_at = time.time()
        first.kill()
        assert first.communicate()[1] == ""
        assert first.returncode == -signal.SIGKILL
        before = made(tmp_path)
        out = ran(EXAMPLE, tmp_path)
    finally:
        stop_hosts(tmp_path)
    after = made(tmp_path)[len(before) :]
    months = [f"{year}-{month:02}" for year in range(2000, 2005) for month in range(1, 13)]
    skipped = months.index(after[0][0])
    assert [month for month, _ in before] == months[: len(before)]
    assert [month for month, _ in after] == months[skipped:]
    # A month was completed when the next was begun.
    completed = [at for _, at in before[1:]]
    assert 0 < skipped <= len(completed)
    assert all(killed_at - at <= EVERY_SECONDS + LATENCY for at in completed[skipped:])
    types = [line.split()[1] for line in out.splitlines()]
    assert types[:2] == ["submitted", "attempt_started"]
    assert types.count("attempt_started") == 2
    assert types.count("interrupted") == 1
    assert types[-1] == "completed"


# Steps, checkpoints, artifacts


def test_a_step_is_done_once_by_whichever_thread_comes_first(app):
    calls: list[str] = []

    @app.operation("stepped")
    def stepped(op):
        def work(word):
            calls.append(word)
            time.sleep(0.02)
            return {"word": word}

        with ThreadPoolExecutor(4) as pool:
            values = list(pool.map(lambda _: op.step("slow", work, word="x"), range(4)))
        if op.attempt == 1:
            raise RuntimeError
        return [*values, op.step("more", work, "y")]

    with pytest.raises(RuntimeError):
        app.run("stepped")
    assert app.run("stepped") == [{"word": "x"}] * 4 + [{"word": "y"}]
    assert calls == ["x", "y"]


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_step_whose_name_another_one_has_is_refused(app, kind):
    done: list[str] = []

    @app.operation("plain")
    def plain(op):
        for letter in "abc":
            op.step("load", done.append, letter)

    @app.operation("async")
    async def awaited(op):
        for letter in "abc":
            await op.step("load", done.append, letter)

    for _ in range(2):
        with pytest.raises(InvalidValue, match="the step 'load' was done already in this attempt"):
            app.run(kind)
    assert done == ["a"]


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_step_in_an_item_of_a_track_is_that_items_own(app, kind):
    """One attempt for each item: what is left of the first is not taken for the second's."""
    done: list[str] = []
    left: list[str] = []

    def load(letter):
        done.append(letter)
        return letter.upper()

    def leave(letter):
        if letter not in left:
            left.append(letter)
            raise RuntimeError("left")

    @app.operation("plain")
    def plain(op):
        loaded = []
        for month in op.track([1, 2], name="months"):
            for letter in op.track(["a", "b"], name="letters"):
                loaded.append(op.step("load", load, f"{letter}{month}"))
                leave(f"{letter}{month}")
        return loaded

    @app.operation("async")
    async def awaited(op):
        loaded = []
        for month in op.track([1, 2], name="months"):
            for letter in op.track(["a", "b"], name="letters"):
                loaded.append(await op.step("load", load, f"{letter}{month}"))
                leave(f"{letter}{month}")
        return loaded

    for _ in range(4):
        with pytest.raises(RuntimeError, match="left"):
            app.run(kind)
    assert app.run(kind) == ["B2"]
    assert done == ["a1", "b1", "a2", "b2"]


def test_a_step_that_failed_may_be_tried_again_and_one_of_another_operation_is_another(app):
    tries: list[int] = []

    def third(*_):
        tries.append(1)
        if len(tries) < 3:
            raise OSError

    @app.operation("inside")
    def inside(op):
        return op.step("load", lambda: "inner")

    @app.operation("around")
    def around(op):
        for _ in range(3):
            with suppress(OSError):
                op.step("load", third)
        return app.run("inside")

    assert app.run("around") == "inner"
    assert len(tries) == 3


def test_a_step_is_shared_by_the_tasks_that_come_to_it(app):
    calls: list[int] = []

    def load(number):
        calls.append(number)
        return number

    @app.operation("shared")
    async def shared(op):
        async def work(number):
            return await op.step("load", load, number)

        first = await work(0)
        return [first, *await asyncio.gather(work(1), work(2))]

    assert app.run("shared") == [0, 0, 0]
    assert calls == [0]


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_checkpoint_of_ones_own_stands_beside_those_of_the_tracks(app, size):
    text = "x" * size

    @app.operation("kept")
    def kept(op):
        seen = [op.restore()]
        for number in op.track([1, 2, 3]):
            if number == 2:
                op.checkpoint({"text": text, "number": number})
                seen.append(op.restore())
            if number == 3 and op.attempt == 1:
                raise RuntimeError
        return [None if value is None else (len(value["text"]), value["number"]) for value in seen]

    with pytest.raises(RuntimeError):
        app.run("kept")
    assert app.run("kept") == [(size, 2)]
    sizes = [len(event.payload) for event in app.events("@last") if event.type == "checkpointed"]
    assert max(sizes) < 1000


def test_content_is_published(app):
    @app.operation("published")
    def published(op, word):
        return op.publish("text", f"word:{word}", word.encode(), language="en").object

    sha = app.run("published", word="hello")
    fact = next(event.fact for event in app.events("@last") if event.type == "artifact_published")
    assert (fact.kind, fact.key, fact.object, fact.size, fact.metadata) == (
        "text",
        "word:hello",
        sha,
        5,
        {"language": "en"},
    )


class Watched(ObjectStore):
    """Knows which threads put content there."""

    threads: typing.ClassVar[list[threading.Thread]] = []

    def put(self, content: bytes) -> str:
        self.threads.append(threading.current_thread())
        return super().put(content)


def test_content_is_hashed_and_written_beside_the_event_loop(app):
    loops: list[threading.Thread] = []
    app._app.objects = Watched(app._app.objects.root)

    @app.operation("plain")
    def plain(op):
        op.publish("text", "k", b"x")

    @app.operation("async")
    async def awaited(op):
        loops.append(threading.current_thread())
        await op.publish("text", "k", b"y")

    app.run("plain")
    app.run("async")
    assert len(Watched.threads) == 2
    assert loops[0] not in Watched.threads


def test_progress_in_words_of_ones_own(app):
    @app.operation("two_steps", steps=2)
    def two_steps(op):
        op.progress("begun")
        op.progress("half of the first", 1, 2, context={"rows": 7})
        for _ in op.track(range(2), name="rest"):
            pass
        op.progress("the second", step=2)
        op.progress("half of it", 5, total_items=10)

    shown: list = []
    app.run("two_steps", progress_callback=shown.append)
    said = {state.message: (state.current_step, state.percentage, state.items_processed) for state in shown}
    assert said["begun"] == (1, 0.0, 0)
    assert said["half of the first"] == (1, 25.0, 1)
    assert said["the second"] == (2, 50.0, 0)
    assert said["half of it"] == (2, 75.0, 5)
    assert shown[-1].message == "Operation completed"


# Threads, loops, other processes


def test_a_call_that_would_wait_for_its_own_thread_says_so(app):
    said = []

    @app.operation("one_step")
    def one_step(op):
        list(op.track(range(3)))

    def callback(state):
        try:
            said.append(app.show("@last")["status"])  # in the function's thread nothing is wrong with it
        except InvalidValue as error:
            said.append(error.message)

    app.run("one_step", progress_callback=callback)
    assert set(said) - {"running"} == {"this call waits for the thread that makes it"}


def test_an_interpreter_that_holds_a_tail_ends(tmp_path):
    script = """
import ktrdr_ops as ko
app = ko.open_app()
app.operation("held")(lambda op: None)
app.run("held")
tail = app.journal.tail()
print(next(tail).type)
"""
    process = started(script, tmp_path)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err, out) == (0, "", "submitted\n")


def test_plain_functions_may_wait_for_others_of_their_kind(app):
    @app.operation("inner")
    def inner(op, number):
        return number

    @app.operation("outer")
    def outer(op, number):
        barrier.wait(DEADLINE)
        return app.run("inner", number=number)

    many = (os.cpu_count() or 1) + 8  # more than asyncio's own pool has threads
    barrier = threading.Barrier(many)
    with ThreadPoolExecutor(many) as pool:
        assert list(pool.map(lambda number: app.run("outer", number=number), range(many))) == list(range(many))


def test_an_async_function_awaits_and_goes_on(app):
    done: list = []

    @app.operation("awaited")
    async def awaited(op):
        async for letter in op.track(["a", "b"]):
            async for number in op.track([1, 2, 3]):
                await asyncio.sleep(0)
                if (letter, number) == ("b", 2) and op.attempt == 1:
                    raise RuntimeError
                done.append(letter + str(number))
        await op.checkpoint({"at": "end"})
        artifact = await op.publish("text", "k", b"x")
        return [
            await op.step("plain", lambda: 1),
            await op.step("async", asyncio.sleep, 0, 2),
            op.restore(),
            artifact.key,
        ]

    with pytest.raises(RuntimeError):
        app.run("awaited")
    assert app.run("awaited") == [1, 2, {"at": "end"}, "k"]
    assert done == ["a1", "a2", "a3", "b1", "b2", "b3"]


async def test_the_awaited_twin_serves_functions_too(tmp_path):
    async with ko.open_app_async(tmp_path / "journal.db") as app:

        @app.operation("both", key="{of}")
        async def both(op, of, times=2):
            async def one(name):
                return [item async for item in op.track([of] * times, name=name)]

            return await asyncio.gather(one("left"), one("right"))

        @app.operation("plain")
        def plain(op):
            return list(op.track([1]))

        assert await app.run("both", of="x") == [["x", "x"], ["x", "x"]]
        assert [event.type async for event in app.tail("@last")][-1] == "completed"
        assert await app.run("plain") == [1]


def test_a_plain_function_that_gives_a_coroutine_does_not_wait_for_itself(app):
    @app.operation("confused")
    def confused(op):
        async def later():
            return op.step("never", lambda: 1)

        return later()

    with pytest.raises(InvalidValue, match="in a thread of its own"):
        app.run("confused")


CANCEL = "import ktrdr_ops as ko\nwith ko.open_app() as app:\n    print(app.cancel('@last', 'enough', 'somebody'))"


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_it_stops_at_the_next_item_when_another_process_cancels_it(tmp_path, app, kind):
    begun = threading.Event()
    done: list[int] = []

    @app.operation("plain")
    def plain(op):
        for number in op.track(range(100_000)):
            begun.set()
            time.sleep(0.005)
            done.append(number)

    @app.operation("async")
    async def awaited(op):
        async for number in op.track(range(100_000)):
            begun.set()
            await asyncio.sleep(0.005)
            done.append(number)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(app.run, kind)
        assert begun.wait(DEADLINE)
        ran(CANCEL, tmp_path)
        with pytest.raises(OperationCancelledException, match="enough"):
            running.result(DEADLINE)
    document = app.show("@last")
    assert document["status"] == "cancelled"
    assert document["cancellation"]["requested_by"] == "somebody"
    assert document["cancellation"]["latency_ms"] < 1000
    assert counts(app.events("@last"))[-1] == len(done)


def test_ctrl_c_in_a_script_cancels_and_the_script_run_again_goes_on(tmp_path):
    text = """
import time, ktrdr_ops as ko
with ko.open_app() as app:
    @app.operation("slow")
    def slow(op):
        for item in op.track(range(40)):
            with open("made.txt", "a") as file:
                file.write(f"{item} {time.time_ns()}\\n")
            time.sleep(0.02)
    app.run("slow")
"""
    first = started(text, tmp_path)
    until(lambda: first.poll() is not None or len(made(tmp_path)) >= 10, "the tenth item")
    first.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in first.communicate(timeout=60)[1]
    with ko.open_app(tmp_path / "journal.db", readonly=True) as app:
        assert app.show("@last")["status"] == "cancelled"
    ran(text, tmp_path)
    assert [item for item, _ in made(tmp_path)] == [str(number) for number in range(40)]


def test_an_interrupted_operation_is_resumed_and_recovered(tmp_path):
    done: list[int] = []
    text = """
import os, signal, ktrdr_ops as ko
app = ko.open_app()
@app.operation("left")
def left(op, number):
    for item in op.track([1, 2, 3], "parts"):
        if item == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        op.step(f"durable {item}", lambda: None)
app.run("left", number=%d)
"""
    for number in (1, 2):
        ran(text % number, tmp_path, -signal.SIGKILL)
    with ko.open_app(tmp_path / "journal.db") as app:

        @app.operation("left")
        def left(op, number):
            done.extend(op.track([1, 2, 3], "parts"))

        app.resume("left_number-1")
        outcomes, left_alone = app.recover()
        assert [outcome.status for outcome in outcomes] == ["completed"]
        assert left_alone == []
    assert set(done) <= {2, 3}
    assert done.count(3) == 2


def test_recovery_leaves_alone_what_no_function_serves_and_says_so(tmp_path):
    ran(GONE, tmp_path)
    with ko.open_app(tmp_path / "journal.db") as app:
        outcomes, left_alone = app.recover()
    assert outcomes == []
    assert "no installed domain has the operation type 'gone'" in left_alone[0].why


HOLD_THE_GATE = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)
print("held", flush=True)
sys.stdin.read()
"""


def test_checkpoints_are_kept_while_the_queue_is_full_and_nobody_waits_for_it(app):
    journal = app._app.journal
    took: list[float] = []

    @app.operation("full_queue")
    def full_queue(op):
        journal._writer._limit = 10_000
        holder = [sys.executable, "-c", HOLD_THE_GATE, str(journal.lock.path)]
        with subprocess.Popen(holder, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as held:
            assert held.stdout.readline() == "held\n"
            began = time.monotonic()
            for number in op.track(range(60)):
                for part in range(20):
                    op.progress(f"{number} {part}")
                time.sleep(0.01)
            took.append(time.monotonic() - began)
            held.stdin.close()

    app.run("full_queue")
    events = app.events("@last")
    marks = counts(events)
    assert len(marks) > 4
    assert marks == sorted(set(marks))
    assert marks[-1] == 60
    assert max(event.fact.skipped for event in events if event.type == "progressed") > 500
    assert took[0] < 60 * 0.01 + 1.0


# What is served


def test_serving_a_type_again_replaces_the_function(app):
    for answer in (1, 2):

        @app.operation("cell")
        def cell(op):
            return answer  # noqa: B023  # called before the next one

        assert app.run("cell") == answer
        assert cell(None) == answer


@pytest.mark.parametrize("taken", ["data_load", "group"])
def test_a_type_that_is_somebody_elses_is_refused(any_app, taken):
    with pytest.raises(InvalidValue, match=taken):
        any_app.operation(taken)(lambda op: None)


def with_generator(op):
    yield 1


@pytest.mark.parametrize(
    ("func", "options", "why"),
    [
        (lambda: None, {}, "does not take op"),
        (lambda op, *rest: None, {}, "needs a name of its own"),
        (lambda op, **rest: None, {}, "needs a name of its own"),
        (lambda op, how: None, {}, "app.run's own"),
        (lambda op, at=len: None, {}, "at: "),
        (with_generator, {}, "is a generator"),
        (lambda op, a: None, {"key": "{b}"}, "does not take: b"),
        (lambda op, a: None, {"key": "{"}, "no format string"),
        (lambda op: None, {"steps": 0}, "at least one step"),
    ],
)
def test_a_function_that_cannot_be_served_is_refused_when_it_is_decorated(any_app, func, options, why):
    with pytest.raises(InvalidValue, match=why):
        any_app.operation("odd", **options)(func)


@pytest.mark.parametrize("name", ["", "a b", "1a", "a-b", "x" * 61])
def test_a_name_that_is_no_type_is_refused(any_app, name):
    with pytest.raises(InvalidValue, match="no operation type"):
        any_app.operation(name)(lambda op: None)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "needs symbol"),
        ({"symbol": "A", "sybmol": "B"}, "does not take sybmol"),
        ({"symbol": "A", "days": {1}}, "days: "),
        ({"symbol": "A", "days": float("nan")}, "days: "),
        ({"symbol": b"A"}, "symbol: "),
    ],
)
def test_parameters_are_the_functions_own_and_json(app, given, why):
    @app.operation("taking", key="{symbol}")
    def taking(op, symbol, days=1):
        return [symbol, days]

    with pytest.raises(InvalidValue, match=why):
        app.run("taking", **given)
    with pytest.raises(OperationNotFound):
        app.show("@last")
    assert app.run("taking", symbol="A", days=(1, 2)) == ["A", [1, 2]]


@pytest.mark.parametrize(
    ("key", "expected"),
    [("{symbol}", "taking:A/1"), (None, "taking:symbol=A/1,days=1"), ("{symbol}:{days:03}", "taking:A/1:001")],
)
def test_the_key_says_what_it_works_on(app, key, expected):
    @app.operation("taking", key=key)
    def taking(op, symbol, days=1):
        with pytest.raises(KeyIsLive):
            app.run("taking", symbol=symbol)

    app.run("taking", symbol="A/1")
    document = app.show("@last")
    assert document["key"] == expected
    assert document["operation_id"].startswith("taking_")


def test_a_key_that_cannot_be_made_of_the_parameters_is_refused(any_app):
    any_app.operation("keyed", key="{number:03d}")(lambda op, number: number)
    assert any_app.run("keyed", number=1) == 1
    with pytest.raises(InvalidValue, match="cannot be made of"):
        any_app.run("keyed", number="one")


def test_what_it_returns_is_given_and_kept_as_far_as_it_is_json(app):
    returns = {"mapping": {"rows": 3}, "number": 3, "object": Path}
    app.operation("returning")(lambda op, what: returns[what])
    for what, kept in {"mapping": {"rows": 3}, "number": {"value": 3}, "object": {"type": "type"}}.items():
        assert app.run("returning", what=what) is returns[what]
        assert app.show("@last")["result"] == kept


# The tail, and an application that is not closed


def test_a_tail_of_an_operation_ends_with_it_also_behind_notes(app):
    app.operation("noted")(lambda op: list(op.track([1])))
    app.run("noted")
    app.note("@last", "looks right")
    types = [event.type for event in app.journal.tail("@last")]
    assert types[-2:] == ["completed", "noted"]
    end = app.show("@last")["last_position"]
    assert list(app.journal.tail("@last", after=end)) == []
    assert [event.type for event in app.journal.tail("@last", after=end - 1)] == ["noted"]


def test_a_tail_follows_a_running_operation_to_its_end(app):
    @app.operation("running")
    def running(op):
        for _ in op.track(range(20)):
            time.sleep(0.005)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(app.run, "running")
        until(lambda: app.sql("SELECT 1 FROM v_events"), "the first event")
        types = [event.type for event in app.journal.tail("@last")]
        future.result()
    assert (types[0], types[-1]) == ("submitted", "completed")


def test_a_tail_of_one_whose_process_is_gone_ends(tmp_path):
    ran(GONE, tmp_path)
    with ko.open_app(tmp_path / "journal.db", readonly=True) as app:
        assert [event.type for event in app.journal.tail("@last")] == ["submitted", "attempt_started"]
    with ko.open_app(tmp_path / "journal.db") as app:
        assert [event.type for event in app.journal.tail("@last")][-1] == "interrupted"


def test_a_tail_that_is_left_lets_the_application_close(tmp_path):
    with ko.open_app(tmp_path / "journal.db") as app:
        app.operation("any_type")(lambda op: None)
        app.run("any_type")
        tail = app.journal.tail()
        assert next(tail).type == "submitted"
    tail.close()


def test_an_application_is_open_until_it_is_closed(tmp_path):
    app = ko.open_app(tmp_path / "journal.db")
    app.operation("any_type")(lambda op: 1)
    assert app.run("any_type") == 1
    app.close()
    app.close()
    with pytest.raises(JournalRefused, match="was closed"):
        app.run("any_type")


def test_an_application_is_not_closed_by_what_it_runs(app):
    said: list[str] = []

    def close(of=None):
        try:
            app.close()
        except InvalidValue as error:
            said.append(error.message)

    app.operation("plain")(close)

    @app.operation("async")
    async def awaited(op):
        close()

    @app.operation("in_a_thread")
    def in_a_thread(op):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(contextvars.copy_context().run, close).result(DEADLINE)

    app.run("plain")
    app.run("in_a_thread")
    assert set(said) == {"an operation cannot close the application that runs it: it would wait for itself"}
    said.clear()
    app.run("async")
    app.run("plain", progress_callback=close)
    assert said[0] == "this call waits for the thread that makes it"
    assert app.show("@last")["status"] == "completed"


def test_whoever_closes_an_application_a_second_time_waits_until_it_is_closed(tmp_path):
    app = ko.open_app(tmp_path / "journal.db")
    begun = threading.Event()

    @app.operation("lasting")
    def lasting(op):
        begun.set()
        time.sleep(0.3)

    with ThreadPoolExecutor(5) as pool:
        running = pool.submit(app.run, "lasting")
        assert begun.wait(DEADLINE)
        for closing in [pool.submit(lambda: (app.close(), app._loop.closed)) for _ in range(4)]:
            assert closing.result(DEADLINE) == (None, True)
        with suppress(JournalRefused):  # the function's end and the application's are a race
            running.result(DEADLINE)


CLOSED_UNDER_OTHERS = """
import threading, time, ktrdr_ops as ko
app = ko.open_app()

@app.operation("endless")
def endless(op):
    for _ in op.track(range(10**6)):
        time.sleep(0.01)
        app.journal.read(limit=1)

def again():
    while True:
        app.show("@last")

said = []
def waits(call):
    try:
        call()
    except Exception as error:
        said.append(f"{type(error).__name__} {error}")

calls = [lambda: app.run("endless"), lambda: list(app.journal.tail()), again, again, again, again]
threads = [threading.Thread(target=waits, args=(call,)) for call in calls]
threads[0].start()
while not app.sql("SELECT 1 FROM v_events WHERE type = 'progressed'"):
    time.sleep(0.01)
for thread in threads[1:]:
    thread.start()
time.sleep(0.2)
app.close()
for thread in threads:
    thread.join(10)
print(len(said), *set(said), sep="\\n")
"""


def test_calls_that_wait_in_other_threads_end_when_the_application_is_closed(tmp_path):
    out = ran(CLOSED_UNDER_OTHERS, tmp_path)
    assert out.splitlines() == ["6", "JournalRefused this application was closed"]
    with ko.open_app(tmp_path / "journal.db", readonly=True) as app:
        assert app.show("@last")["status"] == "interrupted"


def test_a_script_that_used_http_and_closes_nothing_says_nothing_at_its_end(tmp_path):
    text = """
import ktrdr_ops as ko
app = ko.open_app()
print(len(app.run("data_load", symbol="AAPL", timeframe="1d")) > 0)
"""
    try:
        assert ran(text, tmp_path) == "True\n"
    finally:
        stop_hosts(tmp_path)


def test_a_script_that_closes_nothing_ends_and_loses_nothing(tmp_path):
    text = """
import ktrdr_ops as ko
app = ko.open_app()
app.operation("any_type")(lambda op: list(op.track(range(3))))
app.run("any_type")
print(app.note("@last", "the end"))
"""
    noted = int(ran(text, tmp_path))
    with ko.open_app(tmp_path / "journal.db") as app:
        assert app.events("@last")[-1].position == noted
