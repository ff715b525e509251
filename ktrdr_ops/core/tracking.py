"""Loops that a later attempt goes on with.

A track hands out the items of something that has a length and an order. An item is completed when the loop asks for the
next one: where the body raises or breaks off, it is not. What is completed is kept as a mark: how many items, and the
SHA-256 over what they say of themselves. The marks of all tracks are one checkpoint of the operation, queued at most
ten times a second and never waited for, so that a process that is killed has at most its last 100 ms to do again. A
later attempt compares the beginning of its items with the mark, and passes over it; other items in their place are
refused.

A track that begins in the loop of another belongs to that very item and is forgotten with it. Without a name it is
known by the line of code that begins it, and the lines that called that. What cannot be matched is done again.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sized
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from itertools import islice
from time import monotonic
from typing import Any, Generic, TypeVar

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.core.events import Json
from ktrdr_ops.core.recognising import described, stored

T = TypeVar("T")

NOTHING = object()
EVERY_SECONDS = 0.1
MAX_TRACKS = 1000
_NAME = re.compile(r"[^/\[\]\x00-\x1f]{1,100}")
_AFRESH = "Start afresh with how=ko.How(fresh=True), or give the loop a name of its own."


@dataclass(frozen=True, slots=True)
class Mark:
    """How many items are completed, and the digest over them."""

    count: int
    digest: str


def _framed(said: str) -> bytes:
    """With its length in front, so that texts beside one another are told apart."""
    content = stored(said)
    return b"%d:" % len(content) + content


class Tally:
    """Counts completed items and digests them, in their order."""

    def __init__(self) -> None:
        self.count = 0
        self._hash = hashlib.sha256()

    def add(self, said: str) -> None:
        """One more is completed; ``said`` as ``described`` gives it."""
        self._hash.update(_framed(said))
        self.count += 1

    def mark(self) -> Mark:
        """What is completed now."""
        return Mark(self.count, self._hash.hexdigest())


def length(items: object) -> int:
    """How many items there are to track. Raises InvalidValue for what has no length (a generator, an endless iterator),
    for a set, whose order is another one in every process, and for a text."""
    if isinstance(items, str | bytes | set | frozenset) or not isinstance(items, Sized):
        raise InvalidValue(
            f"a {type(items).__name__} cannot be tracked: what is tracked has a length and an order of its own",
            hint="Track a list: op.track(list(items)), or for a set op.track(sorted(items)).",
        )
    return len(items)


def passed_over(items: Iterator[Any], mark: Mark | None, where: str) -> Tally:
    """Takes from the iterator what an earlier attempt completed. Raises InvalidValue where that is something else."""
    tally = Tally()
    if mark is None:
        return tally
    for item in islice(items, mark.count):
        tally.add(described(item))
    if tally.count < mark.count:
        raise InvalidValue(
            f"track {where}: an earlier attempt completed {mark.count:,} items, and now there are {tally.count:,}",
            hint=_AFRESH,
        )
    if tally.mark() != mark:
        raise InvalidValue(
            f"track {where}: the {mark.count:,} items that an earlier attempt completed are not the first ones now",
            hint=f"Items may be added behind those that are done. {_AFRESH}",
        )
    return tally


def marks_of(document: Json) -> dict[str, Mark]:
    """The marks in a checkpoint, by track."""
    kept = document.get("tracks", {}) if isinstance(document, Mapping) else {}
    return {where: Mark(mark["count"], mark["digest"]) for where, mark in kept.items()}


class _Place:
    """Where tracks begin: an operation's function, or one item of a track."""

    def __init__(
        self, tracks: Tracks, track: Track[Any] | None = None, where: str = "", items: tuple[str, ...] = ()
    ) -> None:
        self.tracks = tracks
        self.track = track
        self.items = items
        self.taken: set[str] = set()
        self.is_over = False
        self._where = where
        self._unnamed: dict[str, tuple[object, int]] = {}

    def take(self, name: str | None, site: str) -> str:
        """The full name of a track that begins here."""
        self.check()
        if len(self.taken) >= MAX_TRACKS:
            raise InvalidValue(
                f"more than {MAX_TRACKS:,} tracks beside one another",
                hint="Track the loop around them too: they are forgotten when its item is done.",
            )
        name = name or self._number(site)
        if not _NAME.fullmatch(name):
            raise InvalidValue(f"{name[:80]!r} is no name of a track", hint="1 to 100 characters without / [ ]")
        if name in self.taken:
            raise InvalidValue(f"two tracks have the name {name!r}", hint="Give each loop a name of its own.")
        self.taken.add(name)
        inside = f"{self._where}[{_digest(self.items[-1:])}]/" if self.items else ""
        return inside + name

    def check(self) -> None:
        """Raises InvalidValue when the item is done already: a later attempt passes over it, and with it over what goes
        on here. So nothing that was done around it counts as done any more."""
        if self.is_over:
            self.tracks.forget(self._where.partition("[")[0])
            raise InvalidValue(
                "the item around this track is done already",
                hint="Await within the loop's body what an item begins; track pairs as op.track(list(zip(a, b))).",
            )

    def _number(self, site: str) -> str:
        """Which comes first is chance where several tasks or threads begin tracks at one line: only one of them may
        leave its tracks without names. Raises InvalidValue."""
        me = task_or_thread()
        whose, count = self._unnamed.get(site, (me, 0))
        if whose is not me:
            raise InvalidValue(
                "tracks of several tasks or threads in one place need names", hint="op.track(items, name='…')"
            )
        self._unnamed[site] = (me, count + 1)
        return f"{site}.{count + 1}"


def _digest(items: tuple[str, ...]) -> str:
    return hashlib.sha256(b"".join(map(_framed, items))).hexdigest()[:12]


def task_or_thread() -> asyncio.Task[Any] | threading.Thread:
    """Who calls: the task, or the thread where no loop runs."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        task = None
    return threading.current_thread() if task is None else task


_HERE: ContextVar[_Place | None] = ContextVar("ktrdr_ops_tracks", default=None)


class Tracks:
    """The tracks of one operation. May be used from any thread.

    ``save`` queues a checkpoint that holds the marks, ``tell`` says how far a track is, ``check`` is the cancel point;
    ``later`` has a function called soon by whoever runs the operation.
    """

    def __init__(
        self,
        marks: Mapping[str, Mark],
        *,
        save: Callable[[dict[str, Json]], None],
        tell: Callable[[Track[Any]], None],
        check: Callable[[], None],
        later: Callable[[Callable[[], None]], object],
    ) -> None:
        self.lock = threading.RLock()
        self.check = check
        self.under_way = 0
        self._marks: dict[str, Mark | Tally] = dict(marks)
        self._save = save
        self._tell = tell
        self._later = later
        self._root = _Place(self)
        self._unsaved = False
        self._untold: Track[Any] | None = None
        self._saved_at = self._told_at = self._ended_at = float("-inf")
        self._wake, self._closed = threading.Event(), threading.Event()
        self._keeper: threading.Thread | None = None

    def enter(self) -> None:
        """Tracks that begin in this context, without one of this operation around them, are the outermost."""
        _HERE.set(self._root)

    @property
    def are_here(self) -> bool:
        """Whether the caller has the operation's context; a pool's thread has none."""
        here = _HERE.get()
        return here is not None and here.tracks is self

    def of_item(self, step: str) -> str:
        """The whole name of a step: one in a loop's item is that item's, and of those around it."""
        here = _HERE.get()
        inside = here.items if here is not None and here.tracks is self else ()
        return f"{step} [{_digest(inside)}]" if inside else step

    def place(self, name: str | None) -> _Place:
        """Where a track begins now. Raises InvalidValue in a thread of its own, where only a name tells it apart, and
        nothing says whether it belongs to an item that is under way."""
        here = _HERE.get()
        if here is not None and here.tracks is self:
            return here
        if name is None:
            raise InvalidValue("a track in a thread of its own needs a name", hint="op.track(items, name='…')")
        if self.under_way:
            raise InvalidValue(
                "this thread does not know to which item of the track that is under way its own track belongs",
                hint="pool.submit(contextvars.copy_context().run, func, …), or await asyncio.to_thread(func, …)",
            )
        return self._root

    def begin(self, where: str, items: Iterator[Any]) -> Tally:
        """The tally of a track that begins, with what earlier attempts completed taken from its items."""
        with self.lock:
            mark = self._marks.get(where)
        tally = passed_over(items, mark if isinstance(mark, Mark) else None, where)
        with self.lock:
            self._marks[where] = tally
        return tally

    def completed(self, track: Track[Any], said: str, forget: str | None) -> None:
        """An item is done; with ``forget``, so is what was tracked inside it."""
        with self.lock:
            track.tally.add(said)
            if forget is not None:
                self._forget(forget)
            self._unsaved = True
        if monotonic() - self._saved_at < EVERY_SECONDS or not self.save(EVERY_SECONDS):
            self._wake_keeper()

    def forget(self, where: str) -> None:
        """Have a track, and all inside it, done again by a later attempt."""
        with self.lock:
            self._forget(f"{where}[")
            self._marks.pop(where, None)
            self._unsaved = True
        self.save()

    def _forget(self, beginning: str) -> None:
        for where in [where for where in self._marks if where.startswith(beginning)]:
            del self._marks[where]

    def told(self, track: Track[Any]) -> None:
        """How far it is, said at most ten times a second."""
        now = monotonic()
        if now - self._told_at < EVERY_SECONDS:
            self._untold = track
            self._wake_keeper()
        else:
            self._told_at, self._untold = now, None
            self._tell(track)

    def loops(self, more: int) -> None:
        """So many more outermost loops are under way in the operation's own context."""
        with self.lock:
            self.under_way += more

    def ended(self, track: Track[Any]) -> None:
        """A loop has ended, or was left: what it completed is queued before anything that comes after it."""
        now = monotonic()
        if track.outer is None and now - self._ended_at >= EVERY_SECONDS:
            self._ended_at = now
            self.save()

    def marks(self) -> dict[str, Json]:
        """All marks, for a checkpoint."""
        with self.lock:
            marks = {w: mark.mark() if isinstance(mark, Tally) else mark for w, mark in self._marks.items()}
        return {where: asdict(mark) for where, mark in marks.items() if mark.count}

    def save(self, after: float = 0.0) -> bool:
        """Queue what is not kept yet, if the last time is so many seconds ago; whether all is kept now."""
        with self.lock:
            if self._unsaved and monotonic() - self._saved_at >= after:
                self._unsaved, self._saved_at = False, monotonic()
                self._save(self.marks())
            return not self._unsaved

    def close(self) -> Track[Any] | None:
        """The function has ended: queue what is not kept yet. Gives the track whose last state was not told."""
        self._closed.set()
        self._wake.set()
        self.save()
        return self._untold

    def late(self) -> None:
        """Tell what was held back, if nothing newer was told since."""
        track = self._untold
        if track is not None and not self._closed.is_set():
            self.told(track)

    def _wake_keeper(self) -> None:
        if not self._wake.is_set():
            self._wake.set()
        if self._keeper is None:
            with self.lock:
                if self._keeper is None:
                    self._keeper = threading.Thread(target=self._keep, name="ktrdr-ops-tracks", daemon=True)
                    self._keeper.start()

    def _keep(self) -> None:
        """Saves and tells what was held back, each when its time has come."""
        while True:
            self._wake.wait()
            if self._closed.wait(max(self._due() - monotonic(), 0.0)):
                return
            self._wake.clear()
            now = monotonic()
            self.save(EVERY_SECONDS)
            tell = now >= self._told_at + EVERY_SECONDS
            if tell and self._untold is not None:
                self._later(self.late)
            if self._unsaved or not (tell or self._untold is None):
                self._wake.set()

    def _due(self) -> float:
        """When something that was held back may be saved or told."""
        saved = self._saved_at if self._unsaved else float("inf")
        told = self._told_at if self._untold is not None else float("inf")
        return min(saved, told, monotonic()) + EVERY_SECONDS


class Track(Generic[T]):
    """Items of one loop, ``for`` or ``async for``; made by ``op.track``."""

    def __init__(self, tracks: Tracks, items: Iterable[T], name: str | None, site: str) -> None:
        self.tally = Tally()
        self.total = length(items)
        self.name = name
        self.item: Any = NOTHING
        self.outer: Track[Any] | None = None
        self.number = 0
        self._items = items
        self._site = site
        self._tracks = tracks
        self._begun = False

    def __len__(self) -> int:
        return self.total

    @property
    def share(self) -> float:
        """How much of it is completed, 0 to 1."""
        return self.tally.count / self.total if self.total else 1.0

    def __iter__(self) -> Iterator[T]:
        if self._begun:
            raise InvalidValue("this track was looped over already", hint="Each loop takes an op.track(…) of its own.")
        self._begun = True
        return self._walk()

    def __aiter__(self) -> AsyncIterator[T]:
        return _Awaited(iter(self))

    def _walk(self) -> Iterator[T]:
        tracks = self._tracks
        around_here = _HERE.get()
        around = tracks.place(self.name)
        with tracks.lock:
            where = around.take(self.name, self._site)
            self.number = len(around.taken)
        self.outer = around.track
        items = iter(self._items)
        self.tally = tracks.begin(where, items)
        began = self.tally.count
        place = around
        outermost = around_here is around and around.track is None
        tracks.loops(outermost)
        try:
            for item in items:
                tracks.check()
                said, self.item = described(item), item
                place = _Place(tracks, self, where, (*around.items, said))
                _HERE.set(place)
                tracks.told(self)
                yield item
                around.check()
                place.is_over = True
                tracks.completed(self, said, f"{where}[" if place.taken or self.tally.count == began else None)
            self.item = NOTHING
            tracks.told(self)
        finally:
            if _HERE.get() is place:
                _HERE.set(around_here)
            tracks.loops(-outermost)
            tracks.ended(self)


class _Awaited(Generic[T]):
    """The same for ``async for``. No generator: one that is left would be closed only some time later."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        try:
            item = next(self._items)
        except StopIteration:
            raise StopAsyncIteration from None
        await asyncio.sleep(0)
        return item
