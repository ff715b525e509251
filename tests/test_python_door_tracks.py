"""`op.track`: loops that a later attempt goes on with."""

from __future__ import annotations

import asyncio
import collections.abc
import contextvars
import dataclasses
import datetime
import decimal
import enum
import pathlib
import signal
import threading
import time
import types
import typing
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pandas as pd
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ktrdr_ops as ko
from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.core.recognising import described
from ktrdr_ops.core.tracking import EVERY_SECONDS, MAX_TRACKS, Track, Tracks, marks_of
from tests.test_python_door import DEADLINE, counts, ran, until


@pytest.fixture
def app(tmp_path):
    with ko.open_app(tmp_path / "journal.db") as app:
        yield app


@pytest.fixture(scope="module")
def any_app(tmp_path_factory):
    """For what is refused before anything begins."""
    with ko.open_app(tmp_path_factory.mktemp("any") / "journal.db") as app:
        yield app


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
    assert len(marks[-1]) == 1


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


@dataclasses.dataclass
class Job:
    name: str
    of: object = dataclasses.field(repr=False, default=None)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    of: object


class Terse:
    def __init__(self, of):
        self.of = of

    def __repr__(self):
        return "Terse(...)"


class Slotted:
    __slots__ = ("__of",)

    def __init__(self, of):
        self.__of = of

    def __repr__(self):
        return "Slotted()"


class Cents(int):
    def __repr__(self):
        return "Cents"


class Model(pydantic.BaseModel):
    of: typing.Any


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


class Named(typing.NamedTuple):
    of: object


class Bare:
    def __repr__(self):
        return "Bare(1, 2, ...)"


def hashable(of):
    return of if isinstance(of, collections.abc.Hashable) else WORDS


ARRAY = np.arange(2000)
WORDS = frozenset({"rsi", "sma"})
HOLDERS: list[typing.Callable[[typing.Any], object]] = [
    *[lambda of: of, lambda of: ("a", of), lambda of: {"of": [of]}, lambda of: collections.deque([of])],
    *[
        Frozen,
        Terse,
        Slotted,
        Named,
        lambda of: Model(of=of),
        lambda of: Job("a", of),
        lambda of: {(1, hashable(of)): 1},
    ],
]


@pytest.mark.parametrize("of", [ARRAY, pd.DataFrame({"a": range(100)}), np.array(0.1), WORDS, set(WORDS)])
@pytest.mark.parametrize("holder", range(len(HOLDERS)))
def test_an_item_that_holds_what_says_not_all_of_itself_is_refused(holder, of):
    with pytest.raises(InvalidValue, match="cannot be recognised by a later attempt: what is printed of it is no name"):
        described(HOLDERS[holder](of))


def test_an_item_that_holds_itself_or_is_nested_too_deep_is_refused():
    itself: list = []
    itself.append({"in": itself})
    deep: object = None
    for _ in range(10_000):
        deep = Job("a", deep)
    for item in (itself, deep):
        with pytest.raises(InvalidValue, match="holds itself, or is nested more than 50 deep"):
            described(item)


def test_an_item_whose_text_leaves_something_out_is_refused_unless_its_attributes_say_it():
    with pytest.raises(InvalidValue, match="leaves something out"):
        described(Bare())
    assert described(Terse(1)) != described(Terse(2))


DAY, ZONE = datetime.date(2026, 1, 2), datetime.timezone(datetime.timedelta(hours=1))
PAIRS = [
    *[(holder(1), holder(2)) for holder in HOLDERS],
    *[(holder("wait..."), holder("at 0x12345678")) for holder in HOLDERS[:4]],
    *[(Job("..."), Job("....")), (Job("a", "x"), Job("a", "y"))],
    *[(None, "None"), (True, 1), (1, 1.0), (0.0, -0.0), ("a", b"a"), (bytearray(b"..."), bytearray(b"...."))],
    *[(Cents(1), Cents(2)), (Colour.RED, Colour.BLUE), (int, str), (range(3), range(4)), ([1], (1,))],
    *[(pathlib.Path("a..."), pathlib.Path("b...")), (uuid.UUID(int=1), uuid.UUID(int=2))],
    *[(decimal.Decimal("1.0"), decimal.Decimal("1.00")), (datetime.timedelta(1), datetime.timedelta(2))],
    *[(DAY, DAY.replace(day=3)), (datetime.datetime(2026, 1, 2, tzinfo=ZONE), datetime.datetime(2026, 1, 2))],
    *[(pd.Timestamp("2026-01-02"), pd.Timestamp("2026-01-02", tz="UTC")), (pd.Timedelta(1), pd.Timedelta(2))],
    *[(pd.Period("2026-01"), pd.Period("2026-02")), (pd.Interval(1, 2), pd.Interval(1, 3)), (pd.NaT, pd.NA)],
    *[(np.float64(0.1), np.float64(0.2)), (np.int64(1), np.int32(1)), (np.str_("..."), np.str_("...."))],
    *[(np.datetime64("2026-01"), np.datetime64("2026-02")), (np.bool_(True), np.bool_(False))],
    *[(types.SimpleNamespace(a=1), types.SimpleNamespace(a=2)), ({"a": 1}.items(), {"a": 2}.items())],
    *[(collections.Counter("a"), collections.Counter("b")), ({1: "a"}, {2: "a"}), ([[], []], [[[]]])],
]


@pytest.mark.parametrize("number", range(len(PAIRS)))
def test_different_items_have_different_descriptions_which_do_not_change_when_they_are_used(number):
    one, other = PAIRS[number]
    said = described(one)
    assert said != described(other)
    assert str(one) is not None
    with suppress(TypeError):
        hash(one)
    assert described(one) == said


def test_an_attribute_that_is_no_part_of_the_text_is_part_of_what_an_item_is_recognised_by(app):
    items = [Terse(1), Terse(2)]

    @app.operation("terse")
    def terse(op):
        for item in op.track(items):
            if item is items[1]:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        app.run("terse")
    items[0] = Terse(8)
    with pytest.raises(InvalidValue, match="are not the first ones now"):
        app.run("terse")


def test_many_kinds_of_items_are_tracked(app):
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
        marks = counts(app.events("@last"))
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
    assert counts(events[:step])[-1] == 3


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
        for number, item in enumerate(Track(tracks, items, None, "here")):
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
    count = kept.get("here.1", {"count": 0})["count"]
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
            for outer in Track(tracks, range(len(lengths)), None, "outer"):
                for inner in Track(tracks, range(lengths[outer]), None, "inner"):
                    if handed_out == stop:
                        raise Left
                    handed_out += 1
                    done.append((outer, inner))
        tracks.close()
        marks = marks_of({"tracks": queued[-1]}) if queued else marks
        assert len(marks) <= 2  # what was inside a completed item is forgotten
    assert done == [(outer, inner) for outer, length in enumerate(lengths) for inner in range(length)]


STAGES = frozenset({"first", "second"})


class Killed(Exception):
    """The process is gone."""


@dataclasses.dataclass
class Try:
    """One attempt, what is changed before it, and when it is killed. So many of its last checkpoints are lost."""

    skipped: frozenset[str] = frozenset()
    edit: str = "none"
    at: int = 0
    stop: int | None = None
    save_every: int = 1
    lost: int = 0


def edited(items: list[int], change: Try) -> list[int]:
    """The items with another one inserted, or one removed."""
    at = change.at % (len(items) + 1)
    if change.edit == "insert":
        return [*items[:at], max(items, default=0) + 1, *items[at:]]
    return [*items[:at], *items[at + 1 :]] if change.edit == "remove" else items


def works(items, skipped):
    """All the work there is."""
    return [(stage, item, loop, n) for stage in STAGES - skipped for item in items for loop in "xy" for n in range(2)]


def tried(items, one: Try, marks: dict, done: set[tuple[object, ...]]) -> dict:
    """The marks that are there when it was killed or has ended. Raises InvalidValue when it was refused."""
    queued: list[dict] = [marks]
    before = marks_of({"tracks": marks})
    tracks = Tracks(before, save=queued.append, tell=lambda _: None, check=lambda: None, later=lambda _: None)
    tracks.enter()
    worked = 0
    try:
        for stage in sorted(STAGES - one.skipped):
            for item in Track(tracks, items, None, stage):
                for loop in "xy":
                    for number in Track(tracks, range(2), None, loop):
                        if worked == one.stop:
                            raise Killed
                        worked += 1
                        done.add((stage, item, loop, number))
                        if worked % one.save_every == 0:
                            tracks.save()
    except Killed:
        return queued[max(len(queued) - 1 - one.lost, 0)]
    finally:
        tracks.close()
    return queued[-1]


SKIPPED = st.sampled_from([frozenset(), frozenset({"first"}), frozenset({"second"})])
EDITS = st.sampled_from(["none", "insert", "remove"])
TRIES = st.builds(Try, SKIPPED, EDITS, st.integers(0, 5), st.integers(0, 20), st.integers(1, 3), st.integers(0, 2))


@settings(max_examples=300)
@given(st.integers(1, 3), st.lists(TRIES, min_size=1, max_size=4), st.builds(Try, SKIPPED, EDITS, st.integers(0, 5)))
def test_nothing_that_was_not_done_is_ever_passed_over(count, tries, last):
    """Two stages over equal items, each with two loops inside; items come and go, and stages are skipped, between
    attempts that are killed at any moment."""
    items, marks = list(range(count)), {}
    done: set[tuple[object, ...]] = set()
    try:
        for one in [*tries, last]:
            items = edited(items, one)
            marks = tried(items, one, marks, done)
    except InvalidValue as error:  # refused is not passed over
        if "earlier attempt completed" not in error.message:
            raise
    else:
        assert set(works(items, last.skipped)) <= done


# Which track it is


def test_what_was_done_inside_an_item_is_not_taken_for_another_items_that_took_its_place(app):
    done: list[tuple[str, int]] = []
    items = ["a", "c"]

    @app.operation("inserted")
    def inserted(op):
        for letter in op.track(items):
            for number in op.track(range(6)):
                if len(done) == 10 and op.attempt == 1:
                    raise RuntimeError
                done.append((letter, number))

    with pytest.raises(RuntimeError):
        app.run("inserted")
    items[:] = ["a", "b", "c"]
    app.run("inserted")
    assert set(done) == {(letter, number) for letter in "abc" for number in range(6)}


def test_a_loop_is_not_taken_for_an_equal_one_that_a_later_attempt_does_not_come_to(app):
    done: list[tuple[str, int]] = []

    @app.operation("staged")
    def staged(op):
        if op.restore() != "downloaded":
            for number in op.track(range(6)):
                done.append(("down", number))
            op.checkpoint("downloaded")
        for number in op.track(range(6)):
            if number == 3 and op.attempt == 1:
                raise RuntimeError
            done.append(("proc", number))

    with pytest.raises(RuntimeError):
        app.run("staged")
    app.run("staged")
    assert done == [(stage, number) for stage in ("down", "proc") for number in range(6)]


def test_a_loop_in_a_function_belongs_to_the_line_that_calls_it(app):
    done: list[tuple[str, int]] = []

    def stage(op, name, fails_at=None):
        for number in op.track(range(6)):
            if number == fails_at:
                raise RuntimeError
            done.append((name, number))

    @app.operation("helped")
    def helped(op):
        if op.attempt == 1:
            stage(op, "down")
        stage(op, "proc", 3 if op.attempt == 1 else None)

    with pytest.raises(RuntimeError):
        app.run("helped")
    app.run("helped")
    assert done == [(name, number) for name in ("down", "proc") for number in range(6)]


def test_loops_that_are_written_alike_are_told_apart(app):
    done: list[int] = []
    fails = [7, 10]

    def work(number):
        if fails and len(done) == fails[0]:
            raise RuntimeError(fails.pop(0))
        done.append(number)

    @app.operation("alike")
    def alike(op):
        for number in op.track(range(4)):
            work(number)
        for number in op.track(range(4)):
            work(number)
        for _ in range(2):
            for number in op.track(range(4)):
                work(number)

    for _ in range(2):
        with pytest.raises(RuntimeError):
            app.run("alike")
    app.run("alike")
    assert done == [0, 1, 2, 3] * 4


SCRIPT = """
import os, time, ktrdr_ops as ko
# above
with ko.open_app() as app:
    @app.operation("edited")
    def edited(op):
        # before
        for part in op.track(range(20)):
            if part == 10 and op.attempt == 1:
                time.sleep(0.5)
                os.kill(os.getpid(), 9)
            print(part, flush=True)
        # after
    app.run("edited")
"""
RUN_THE_FILE = "import runpy; runpy.run_path('script.py', run_name='__main__')"
ALIKE = """print("one more stage")
        for part in op.track(range(20)):
            print("again", part)"""


@pytest.mark.parametrize(
    ("edit", "begins_at"),
    [
        pytest.param({}, 10, marks=pytest.mark.slow),
        (
            {
                "# above": "import json\n\n\ndef more():\n    pass\n\n",
                "# before": "found = []",
                "# after": "len(found)",
            },
            10,
        ),
        pytest.param({"# before": "print('new', 1)\n        if True:\n            pass"}, 10, marks=pytest.mark.slow),
        ({"# before": ALIKE}, 0),
        pytest.param({"# after": ALIKE}, 0, marks=pytest.mark.slow),
        pytest.param({"op.track(range(20))": "op.track(list(range(20)))"}, 0, marks=pytest.mark.slow),
    ],
)
def test_a_killed_script_goes_on_unless_it_is_no_longer_clear_which_loop_it_was(tmp_path, edit, begins_at):
    (tmp_path / "script.py").write_text(SCRIPT)
    assert ran(RUN_THE_FILE, tmp_path, -signal.SIGKILL).split() == [str(number) for number in range(10)]
    text = SCRIPT
    for old, new in edit.items():
        text = text.replace(old, new)
    (tmp_path / "script.py").write_text(text)
    lines = ran(RUN_THE_FILE, tmp_path).splitlines()
    assert [int(line) for line in lines if line.isdigit()] == list(range(begins_at, 20))
    assert [line for line in lines if line.startswith("again")] == [
        f"again {n}" for n in range(20 if ALIKE in text else 0)
    ]


def test_a_command_that_has_no_source_goes_on_too(tmp_path):
    ran(SCRIPT, tmp_path, -signal.SIGKILL)
    assert ran("\n\n" + SCRIPT, tmp_path).split() == [str(number) for number in range(10, 20)]


# Threads and tasks


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


def test_a_thread_that_does_not_know_which_item_it_works_on_is_refused_a_track(app):
    done: list[tuple[str, int]] = []

    @app.operation("pooled")
    def pooled(op, with_context):
        def work(letter):
            for number in op.track(range(4), name="numbers"):
                done.append((letter, number))

        with ThreadPoolExecutor(1) as pool:
            for letter in op.track(["a", "b", "c"]):
                run = contextvars.copy_context().run if with_context else lambda func, given: func(given)
                pool.submit(run, work, letter).result(DEADLINE)

    for _ in range(3):
        with pytest.raises(InvalidValue, match="does not know to which item"):
            app.run("pooled", with_context=False)
    assert done == []
    app.run("pooled", with_context=True)
    assert done == [(letter, number) for letter in "abc" for number in range(4)]


def test_a_thread_of_asyncio_knows_which_item_it_works_on(app):
    done: list[tuple[str, int]] = []

    @app.operation("to_thread")
    async def to_thread(op):
        def work(letter):
            for number in op.track(range(4)):
                if (letter, number) == ("b", 2) and op.attempt == 1:
                    raise RuntimeError
                done.append((letter, number))

        async for letter in op.track(["a", "b"]):
            await asyncio.to_thread(work, letter)

    with pytest.raises(RuntimeError):
        app.run("to_thread")
    app.run("to_thread")
    assert done == [(letter, number) for letter in "ab" for number in range(4)]


def test_each_item_may_be_done_by_a_task_of_its_own(app):
    done: list[tuple[str, int]] = []

    @app.operation("timed")
    async def timed(op):
        async def work(letter):
            async for number in op.track(range(3)):
                if (letter, number) == ("b", 2) and op.attempt == 1:
                    raise RuntimeError
                done.append((letter, number))

        for letter in op.track(["a", "b"]):
            await asyncio.create_task(work(letter))

    with pytest.raises(RuntimeError):
        app.run("timed")
    app.run("timed")
    assert done == [(letter, number) for letter in "ab" for number in range(3)]


def test_what_goes_on_when_its_item_is_done_is_refused_and_that_item_is_done_again(app):
    done: list[str] = []

    @app.operation("late")
    async def late(op, awaited):
        async def work(letter):
            async for _ in op.track([1, 2], name=letter):
                await asyncio.sleep(0)
            done.append(letter)

        tasks = []
        async for letter in op.track(["a", "b"]):
            tasks.append(asyncio.create_task(work(letter)))
            if awaited:
                await tasks[-1]
        await asyncio.gather(*tasks)

    for _ in range(2):
        with pytest.raises(InvalidValue, match="the item around this track is done already"):
            app.run("late", awaited=False)
    app.run("late", awaited=True)
    assert done == ["a", "b"]


def test_tracks_that_are_walked_over_in_step_are_refused(app):
    @app.operation("zipped")
    def zipped(op):
        return list(zip(op.track([1, 2]), op.track([3, 4]), strict=True))

    for _ in range(2):
        with pytest.raises(InvalidValue, match="the item around this track is done already"):
            app.run("zipped")
