"""Operations of one's own, from a script: `app.operation`, `op.track`, `op.step`, and the tail of the journal."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ktrdr_ops as ko
from ktrdr_ops.core.errors import (
    InvalidValue,
    JournalRefused,
    KeyIsLive,
    OperationCancelledException,
    OperationNotFound,
)
from ktrdr_ops.core.tracking import EVERY_SECONDS, MAX_TRACKS, Track, Tracks, marks_of
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


# Which items are done again


def test_what_a_failed_attempt_completed_is_not_done_again(app):
    done: list[int] = []
    fails = [3]

    @app.operation("count_up")
    def count_up(op):
        for number in op.track(range(6)):
            if number in fails:
                raise RuntimeError("this one")
            done.append(number)

    with pytest.raises(RuntimeError, match="this one"):
        app.run("count_up")
    fails.clear()
    app.run("count_up")
    assert done == [0, 1, 2, 3, 4, 5]
    assert app.show("@last")["attempt"] == 2
    app.run("count_up")  # a completed one is another operation, from the beginning
    assert done == [0, 1, 2, 3, 4, 5] * 2


def test_an_item_at_which_a_loop_breaks_off_is_not_completed(app):
    done: list[str] = []

    @app.operation("broken_off")
    def broken_off(op, last):
        for item in op.track(["a", "b", "c"], name="first"):
            if item == "b" and op.attempt == 1:
                break
            done.append(item)
        for item in op.track(["x", "y"]):
            done.append(item)
            if op.attempt == 1 and item == "y":
                raise RuntimeError

    with pytest.raises(RuntimeError):
        app.run("broken_off", last=1)
    app.run("broken_off", last=1)
    assert done == ["a", "x", "y", "b", "c", "y"]


def test_a_track_in_the_loop_of_another_goes_on_within_its_item(app):
    done: list[tuple[str, int]] = []
    fails = {("b", 2), ("c", 0)}

    @app.operation("nested")
    def nested(op):
        for letter in op.track(["a", "b", "c"]):
            for number in op.track(range(4)):
                if (letter, number) in fails:
                    fails.discard((letter, number))
                    raise RuntimeError
                done.append((letter, number))

    for _ in range(2):
        with pytest.raises(RuntimeError):
            app.run("nested")
    app.run("nested")
    assert done == [(letter, number) for letter in "abc" for number in range(4)]
    marks = [event.fact.value["tracks"] for event in app.events("@last") if event.type == "checkpointed"]
    assert set(marks[-1]) == {"1"}


def test_other_items_in_place_of_completed_ones_are_refused_and_items_behind_them_are_not(app):
    items = ["a", "b", "c"]
    fails = True

    @app.operation("listed")
    def listed(op):
        done = []
        for item in op.track(items):
            if item == "c" and fails:
                raise RuntimeError
            done.append(item)
        return done

    with pytest.raises(RuntimeError):
        app.run("listed")
    fails = False
    items[0] = "A"
    with pytest.raises(InvalidValue, match="2 items that an earlier attempt completed are not the first ones now"):
        app.run("listed")
    items[:] = ["a"]
    with pytest.raises(InvalidValue, match="completed 2 items, and now there are 1"):
        app.run("listed")
    items[:] = ["a", "b", "C", "d"]
    assert app.run("listed") == ["C", "d"]
    items[:] = ["A"]
    assert app.run("listed", how=ko.How(fresh=True)) == ["A"]


@pytest.mark.parametrize(
    "items", [iter([1]), (x for x in [1]), {1, 2}, frozenset([1]), "text", b"bytes", map(str, [1]), 5]
)
def test_what_has_no_length_and_order_of_its_own_cannot_be_tracked(any_app, items):
    @any_app.operation("odd_items")
    def odd_items(op):
        for _ in op.track(items):
            pass

    with pytest.raises(InvalidValue, match="cannot be tracked"):
        any_app.run("odd_items")


def test_an_item_that_says_something_else_in_every_process_is_refused(app):
    @app.operation("addresses")
    def addresses(op):
        for _ in op.track([object()]):
            pass

    with pytest.raises(InvalidValue, match="cannot be recognised"):
        app.run("addresses")


def frame():
    import pandas as pd

    return pd.DataFrame({"a": range(100)})


def array():
    import numpy as np

    return np.arange(2000)


@pytest.mark.parametrize(
    "item", [array, frame, lambda: ("a", array()), lambda: {"of": [array()]}, lambda: ("MSFT", frozenset({"rsi"}))]
)
def test_an_item_whose_text_does_not_say_all_of_it_is_refused(any_app, item):
    @any_app.operation("nameless_items")
    def nameless_items(op):
        for _ in op.track([item()]):
            pass

    with pytest.raises(InvalidValue, match="cannot be recognised by a later attempt: what is printed of it is no name"):
        any_app.run("nameless_items", how=ko.How(fresh=True))


def test_many_kinds_of_items_are_tracked(app):
    import numpy as np
    import pandas as pd

    rows = [[1, "a", None, 2.5], (1,), range(3), [], [{"a": []}]]
    kinds = [*rows, {"a": 1}, {"a": 1}.items(), np.arange(3), pd.Index(["x"])]

    @app.operation("kinds")
    def kinds_of(op):
        return [len(list(op.track(items))) for items in kinds]

    assert app.run("kinds") == [4, 1, 3, 0, 1, 1, 1, 3, 1]


def test_what_is_completed_is_kept_while_the_next_item_takes_long(app):
    slow = threading.Event()

    @app.operation("slow_last")
    def slow_last(op):
        for number in op.track(range(50)):
            if number == 49:
                slow.wait(DEADLINE)

    def last_count():
        kept = [event.fact for event in app.events("@last") if event.type in ("checkpointed", "progressed")]
        marks = [fact.value["tracks"]["1"]["count"] for fact in kept if fact.type == "checkpointed"]
        told = [fact.items for fact in kept if fact.type == "progressed"]
        return marks and marks[-1] == 49 and told[-1] == 49

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(app.run, "slow_last")
        try:
            until(lambda: app.sql("SELECT 1 FROM v_events") and last_count(), "the last checkpoint", 2.0)
        finally:
            slow.set()
        running.result()


def test_a_fast_loop_makes_at_most_ten_checkpoints_and_ten_updates_a_second(app):
    @app.operation("fast")
    def fast(op):
        began = time.monotonic()
        for _ in op.track(range(30_000)):
            pass
        return time.monotonic() - began

    seconds = app.run("fast")
    types = [event.type for event in app.events("@last")]
    most = seconds / EVERY_SECONDS + 2
    assert 1 <= types.count("checkpointed") <= most
    assert 1 <= types.count("progressed") <= most
    document = app.show("@last")
    assert (document["items_processed"], document["total_items"]) == (30_000, 30_000)
    print(f"{seconds / 30_000 * 1e6:.1f} us an item")


def test_the_last_checkpoint_stands_before_what_comes_after_the_loop(app):
    @app.operation("then_step")
    def then_step(op):
        for _ in op.track([1, 2, 3]):
            pass
        op.step("after", lambda: "done")

    app.run("then_step")
    events = app.events("@last")
    step = next(index for index, event in enumerate(events) if event.type == "step_completed")
    counts = [e.fact.value["tracks"]["1"]["count"] for e in events[:step] if e.type == "checkpointed"]
    assert counts[-1] == 3


def test_each_loop_takes_a_track_of_its_own(app):
    @app.operation("twice")
    def twice(op):
        track = op.track([1, 2])
        assert len(track) == 2
        return [list(track), list(track)]

    with pytest.raises(InvalidValue, match="looped over already"):
        app.run("twice")


def test_names_of_tracks_are_told_apart(app):
    @app.operation("named")
    def named(op, names):
        for name in names:
            for _ in op.track([1], name=name):
                pass

    app.run("named", names=["a", "b", None])
    with pytest.raises(InvalidValue, match="two tracks have the name 'a'"):
        app.run("named", names=["a", "a"])
    with pytest.raises(InvalidValue, match="no name of a track"):
        app.run("named", names=["a/b"])
    with pytest.raises(InvalidValue, match="tracks beside one another"):
        app.run("named", names=[None] * (MAX_TRACKS + 1))


# The pure part

ITEMS = st.lists(
    st.one_of(st.integers(), st.text(max_size=3), st.none(), st.tuples(st.integers(), st.text())), max_size=12
)


class Left(Exception):
    """The loop is left."""


def attempt(items, marks, stop, *, breaks, save_every=1):
    """One attempt at a loop that is left at the ``stop``-th item which it is handed; gives the items whose body ended,
    the checkpoints that were queued while it ran, and the last one."""
    queued: list = []
    tracks = Tracks(marks, save=queued.append, tell=lambda track: None, check=lambda: None, later=lambda late: None)
    tracks.enter()
    done = []
    with suppress(Left):
        for number, item in enumerate(Track(tracks, items, None)):
            if number % save_every == 0:
                tracks.save()
            if number == stop:
                if breaks:
                    break
                raise Left
            done.append(item)
    while_running = list(queued)
    tracks.close()
    return done, while_running, queued[-1] if queued else None


@given(ITEMS, st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=4))
def test_however_often_a_loop_is_left_each_item_is_completed_once(items, stops):
    marks: dict = {}
    done = []
    for stop, breaks in stops:
        more, _, last = attempt(items, marks, stop, breaks=breaks)
        done += more
        marks = marks if last is None else marks_of({"tracks": last})
    done += attempt(items, marks, None, breaks=False)[0]
    assert done == list(items)


@given(ITEMS, st.integers(0, 12), st.integers(1, 4), st.data())
def test_a_kill_at_any_moment_repeats_only_what_was_not_queued(items, stop, save_every, data):
    done, queued, _ = attempt(items, {}, stop, breaks=True, save_every=save_every)
    kept = data.draw(st.sampled_from(queued)) if queued else {}
    count = kept.get("1", {"count": 0})["count"]
    assert count <= len(done)
    assert attempt(items, marks_of({"tracks": kept}), None, breaks=True)[0] == list(items)[count:]


@given(ITEMS, ITEMS, st.integers(0, 12))
def test_other_items_are_refused_exactly_when_they_stand_where_completed_ones_stood(items, others, stop):
    done, _, last = attempt(items, {}, stop, breaks=True)
    marks = marks_of({"tracks": last or {}})
    if list(map(repr, others[: len(done)])) == list(map(repr, done)):
        assert attempt(others, marks, None, breaks=True)[0] == others[len(done) :]
    else:
        with pytest.raises(InvalidValue, match="earlier attempt completed"):
            attempt(others, marks, None, breaks=True)


@given(st.lists(st.integers(0, 4), max_size=5), st.lists(st.integers(0, 6), max_size=4))
def test_however_often_nested_loops_are_left_each_item_is_completed_once(lengths, stops):
    marks: dict = {}
    done = []
    for stop in [*stops, None]:
        queued: list = []
        tracks = Tracks(marks, save=queued.append, tell=lambda _: None, check=lambda: None, later=lambda _: None)
        tracks.enter()
        handed_out = 0
        with suppress(Left):
            for outer in Track(tracks, range(len(lengths)), None):
                for inner in Track(tracks, range(lengths[outer]), None):
                    if handed_out == stop:
                        raise Left
                    handed_out += 1
                    done.append((outer, inner))
        tracks.close()
        marks = marks_of({"tracks": queued[-1]}) if queued else marks
        assert len(marks) <= 2  # what was inside a completed item is forgotten
    assert done == [(outer, inner) for outer, length in enumerate(lengths) for inner in range(length)]


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


def test_tracks_in_threads_of_their_own_need_names(app):
    @app.operation("threads")
    def threads(op, named):
        def work(word):
            return list(op.track([word] * 3, name=word if named else None))

        with ThreadPoolExecutor(4) as pool:
            return sum(len(items) for items in pool.map(work, "abcd"))

    assert app.run("threads", named=True) == 12
    with pytest.raises(InvalidValue, match="needs a name"):
        app.run("threads", named=False)


@pytest.mark.parametrize("kind", ["tasks", "threads"])
def test_only_one_task_or_thread_in_a_place_may_leave_its_tracks_without_names(app, kind):
    """Each would take a number by chance: the marks of one attempt would be the other loop's in the next."""
    barrier = threading.Barrier(2)

    @app.operation("unnamed_tasks")
    async def unnamed_tasks(op, named):
        async def work(word):
            for _ in op.track([word] * 3, name=word if named else None):
                await asyncio.sleep(0)

        await asyncio.gather(work("a"), work("b"))

    @app.operation("unnamed_threads")
    def unnamed_threads(op, named):
        def work(word):
            barrier.wait(DEADLINE)
            list(op.track([word] * 3, name=word if named else None))

        with ThreadPoolExecutor(2) as pool:
            for running in [pool.submit(contextvars.copy_context().run, work, word) for word in "ab"]:
                running.result(DEADLINE)

    app.run(f"unnamed_{kind}", named=True)
    with pytest.raises(InvalidValue, match="need names"):
        app.run(f"unnamed_{kind}", named=False)


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
    marks = [event.fact.value["tracks"]["1"]["count"] for event in app.events("@last") if event.type == "checkpointed"]
    assert marks[-1] == len(done)


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
    for item in op.track([1, 2, 3]):
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
            done.extend(op.track([1, 2, 3]))

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
    counts = [event.fact.value["tracks"]["1"]["count"] for event in events if event.type == "checkpointed"]
    assert len(counts) > 4
    assert counts == sorted(set(counts))
    assert counts[-1] == 60
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
