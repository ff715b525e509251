"""The head anchor: how far the journal had come, in a small file beside the database.

The chain shows that each event follows from the one before it. It cannot show that the end is missing: a database that
lost its last events, or an older copy of the whole file, is sound in itself. So incarnation, position and hash of the
head are kept a second time, in ``<journal>.anchor``, and compared at open, in each write transaction and by
``journal verify``.

It is never ahead of the database: what is written is a head that a COMMIT of this very process has put on the disk. The
head that a transaction reads may be less safe than that: what a process wrote that was killed before its sync is there
to be read, and gone after a power cut.

Two slots, each with a checksum. One of them always holds an anchor that was synced; writes without a sync go to the
other, so a torn write costs at most the latter.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from ktrdr_ops.core.errors import JournalCorrupt
from ktrdr_ops.core.events import Json
from ktrdr_ops.core.folders import sync_folder
from ktrdr_ops.core.journal import engine
from ktrdr_ops.core.journal.reader import file_identity

_log = logging.getLogger(__name__)

IDLE_SECONDS = 0.05
ENDED_SECONDS = 0.005  # long enough for the next operation of a row of short ones not to wait for a sync
HEALS = "Put a good copy in its place: ktrdr-ops journal restore COPY"
_MAGIC = b"ktrdrHA1"
_RECORD = struct.Struct(">8sQQ?7x16s32s")  # magic, serial, position, synced, incarnation, hash
_SLOT = _RECORD.size + 32
_APART = 4096  # a torn write of one slot leaves the other's block alone
_SIZE = _APART + _SLOT
_ZEROES = bytes(_SLOT)

State = Literal["anchored", "restored", "unanchored", "behind", "differs"]


@dataclass(frozen=True, slots=True)
class Anchored:
    """A head as the anchor names it. ``incarnation`` is 16 bytes, ``hash`` 32."""

    incarnation: bytes
    position: int
    hash: bytes

    def document(self) -> dict[str, Json]:
        """As it is printed, and named by a ``restored`` event."""
        return {"incarnation": self.incarnation.hex(), "position": self.position, "hash": self.hash.hex()}


@dataclass(frozen=True, slots=True)
class _Slot:
    serial: int
    synced: bool
    anchored: Anchored


@dataclass(frozen=True, slots=True)
class Slots:
    """What an anchor file holds. ``damaged``: how many slots have content that nobody wrote there whole."""

    slots: tuple[_Slot | None, _Slot | None] = (None, None)
    damaged: int = 0

    @property
    def newest(self) -> _Slot | None:
        """The anchor that counts."""
        return max((slot for slot in self.slots if slot is not None), key=lambda slot: slot.serial, default=None)

    @property
    def anchored(self) -> Anchored | None:
        """The head that it names."""
        return None if self.newest is None else self.newest.anchored

    def with_slot(self, where: int, slot: _Slot) -> Slots:
        """The same after a write."""
        return Slots((slot, self.slots[1]) if where == 0 else (self.slots[0], slot))

    @property
    def free(self) -> int:
        """The slot to write next: not the one whose anchor is known to be on the disk."""
        first, second = self.slots
        if first is None or second is None:
            return 0 if first is None else 1
        if first.synced != second.synced:
            return 1 if first.synced else 0
        return 0 if first.serial < second.serial else 1


def _packed(slot: _Slot) -> bytes:
    head = slot.anchored
    record = _RECORD.pack(_MAGIC, slot.serial, head.position, slot.synced, head.incarnation, head.hash)
    return record + hashlib.sha256(record).digest()


def _unpacked(raw: bytes) -> _Slot | None:
    record, checksum = raw[: _RECORD.size], raw[_RECORD.size :]
    if len(raw) != _SLOT or hashlib.sha256(record).digest() != checksum:
        return None
    magic, serial, position, synced, incarnation, hashed = _RECORD.unpack(record)
    return _Slot(serial, synced, Anchored(incarnation, position, hashed)) if magic == _MAGIC else None


def _parsed(raw: bytes) -> Slots:
    parts = (raw[:_SLOT], raw[_APART:_SIZE])
    slots = tuple(_unpacked(part) for part in parts)
    damaged = sum(slot is None and part.strip(b"\0") != b"" for slot, part in zip(slots, parts, strict=True))
    return Slots((slots[0], slots[1]), damaged)


def anchor_path(database: Path) -> Path:
    """The anchor's file: beside the database itself, also when that is reached by a symbolic link."""
    return Path(f"{os.path.realpath(database)}.anchor")


def read_anchor(database: Path) -> Slots:
    """What is anchored; nothing where there is no anchor, and both slots damaged where it cannot be read."""
    path = anchor_path(database)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _parsed(os.pread(descriptor, _SIZE, 0))
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return Slots()
    except OSError as error:
        _log.warning("the journal's head anchor %s cannot be read: %s", path, error.strerror)
        return Slots(damaged=2)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a database stands to its anchor, and where it ends.

    ``anchored``: it holds what the anchor names. ``restored``: its new incarnation says that it took that history's
    place. ``unanchored``: there is no anchor. ``behind``: it ends before. ``differs``: it holds another event there.
    """

    state: State
    anchored: Anchored | None
    head: int
    damaged: int = 0

    @property
    def missing(self) -> int | None:
        """How many events are missing; None when that cannot be told."""
        if self.state == "differs" or self.anchored is None:
            return None if self.state == "differs" else 0
        return max(self.anchored.position - self.head, 0) if self.state == "behind" else 0

    def problem(self) -> str | None:
        """What is wrong, in words; None where nothing is."""
        if self.anchored is None or self.state not in ("behind", "differs"):
            return None
        position = self.anchored.position
        if self.state == "behind":
            return (
                f"it ends at position {self.head:,}, but {position:,} had been written:"
                f" {_events(position - self.head)} missing at the end"
            )
        return f"at position {position:,} it holds another event than was written there: this is another history"

    def document(self) -> dict[str, Json]:
        """As ``journal info`` and ``journal verify`` print it; position and hash are null where there is no anchor."""
        named = self.anchored
        return {
            "state": self.state,
            "position": None if named is None else named.position,
            "hash": None if named is None else named.hash.hex(),
            "damaged_slots": self.damaged,
        }


def _events(count: int) -> str:
    return f"{count:,} event is" if count == 1 else f"{count:,} events are"


def standing(connection: Any, found: Slots) -> Standing:
    """How the database of this connection stands to the anchor, which must have been read before.

    Raises what ``engine.UNREADABLE`` names for a file that cannot be read.
    """
    anchored = found.anchored
    execute = connection.execute
    if execute("SELECT count(*) FROM sqlite_master WHERE name IN ('events', 'incarnations')").fetchone()[0] < 2:
        return Standing("unanchored" if anchored is None else "behind", anchored, 0, found.damaged)
    head = int(execute("SELECT coalesce(max(position), 0) FROM events").fetchone()[0])
    if anchored is None:
        return Standing("unanchored", None, head, found.damaged)
    archived, archived_hash = execute("SELECT archived_through, archived_hash FROM journal").fetchone() or (0, None)
    if not isinstance(archived, int):
        archived = 0  # a damaged row can hold anything
    state: State = "behind" if max(head, archived) < anchored.position else "differs"
    if _holds(connection, anchored, archived, archived_hash):
        state = "anchored"
    elif _took_its_place(connection, anchored):
        state = "restored"
    return Standing(state, anchored, max(head, archived), found.damaged)


def _holds(connection: Any, anchored: Anchored, archived: int, archived_hash: object) -> bool:
    if anchored.position < archived:
        return True  # it was moved to an archive since: there is nothing left to compare
    incarnation = connection.execute(
        "SELECT name FROM incarnations WHERE from_position <= ? ORDER BY number DESC LIMIT 1", (anchored.position,)
    ).fetchone()
    if incarnation is None or incarnation[0] != anchored.incarnation:
        return False
    if anchored.position == archived:
        return archived_hash == anchored.hash
    return _hash_at(connection, anchored.position) == anchored.hash


def _hash_at(connection: Any, position: int) -> object:
    found = connection.execute("SELECT hash FROM events WHERE position = ?", (position,)).fetchone()
    return None if found is None else found[0]


def _took_its_place(connection: Any, anchored: Anchored) -> bool:
    """Whether the last incarnation began as a restore that names just this anchor: it was stopped before it could write
    the new one."""
    begun = connection.execute(
        "SELECT e.payload FROM events e JOIN incarnations i ON e.position = i.from_position"
        " WHERE e.type = 'restored' ORDER BY i.number DESC LIMIT 1"
    ).fetchone()
    try:
        return begun is not None and orjson.loads(begun[0]).get("anchored") == anchored.document()
    except (orjson.JSONDecodeError, AttributeError):
        return False


def refusal(database: Path, problem: str, missing: int | None = None, *, readable: bool = True) -> JournalCorrupt:
    """The error for a journal that is not what was written: how much is missing, and what heals it."""
    hint = f"Reading works. {HEALS}" if readable else HEALS
    return JournalCorrupt(f"{database} is not what was written: {problem}", hint=hint, missing=missing)


def check_before_opening(database: Path, connect: Any) -> Standing:
    """How a file that may not be there, or not be readable, stands to its anchor. ``connect`` gives a connection that
    only reads: one that may write would, at its close, do away with what can still be read of a damaged log.

    Raises JournalCorrupt where something was anchored and nothing can be read.
    """
    found = read_anchor(database)
    anchored = found.anchored
    if anchored is None:
        if found.damaged:
            _log.warning("no slot of the head anchor of %s is whole: a missing end would not be noticed", database)
        return Standing("unanchored", None, 0, found.damaged)
    if not database.exists() or database.stat().st_size == 0:
        what = "is empty" if database.exists() else "is gone"
        raise JournalCorrupt(
            f"the database {database} {what}, but {_events(anchored.position)} known to have been in it",
            hint=f"{HEALS}. If the journal was deleted on purpose, delete {anchor_path(database).name} too.",
            missing=anchored.position,
        )
    connection = connect(database)
    try:
        stands = standing(connection, found)
    except engine.UNREADABLE as error:
        damaged = refusal(database, f"SQLite cannot read it ({error})", readable=False)
        raise engine.disk_failed(error, database) or damaged from error
    finally:
        connection.close()
    if stands.state == "behind" and stands.head == 0:
        raise refusal(database, str(stands.problem()), stands.missing, readable=False)
    return stands


class AnchorFile:
    """The writer's one handle on the anchor of its journal. Every call is made under the gate.

    What cannot be read or written of it is logged once and stops nobody from appending.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._file = file_identity(database)
        self._path = anchor_path(database)
        self._descriptor: int | None = None
        self._raw = b""
        self._slots = Slots()
        self._mine: Anchored | None = None
        self._replaces: Anchored | None = None
        self._due: float | None = None
        self._look_again = 0.0
        self._trouble = False
        self._named = False

    @property
    def due(self) -> float | None:
        """After how many seconds without work it is to be settled; None: there is nothing to settle."""
        return self._due

    def check(self, connection: Any) -> None:
        """Inside the write transaction, when the head is not what this process wrote last: raises JournalCorrupt
        where the database lacks what is anchored."""
        slots = self._read()
        anchored = slots.anchored
        if anchored is None or _hash_at(connection, anchored.position) == anchored.hash:
            return
        stands = standing(connection, slots)
        problem = stands.problem()
        if problem is not None:
            raise refusal(self._database, problem, stands.missing)
        if stands.state == "restored":
            self._replaces = anchored

    def hold(self) -> None:
        """Inside the write transaction, before anything is inserted: write down the last head that this process knows
        to be on the disk. Raises JournalCorrupt when the path names another file by now."""
        now = time.monotonic()
        if now >= self._look_again:
            self._look_again = now + IDLE_SECONDS
            if file_identity(self._database) != self._file:
                raise refusal(self._database, "another file was put in its place while it was open")
        if self._mine is not None:
            self._write(self._read(), sync=False)

    def committed(self, head: Anchored, *, ended: bool) -> None:
        """A COMMIT of this process put events on the disk up to this head. ``ended``: an attempt's end is among them,
        so it is settled sooner."""
        self._mine = head
        self._due = ENDED_SECONDS if ended or self._due == ENDED_SECONDS else IDLE_SECONDS

    def settle(self) -> None:
        """Write the last head that this process committed, and sync it."""
        self._due = None
        self._write(self._read(), sync=True)

    def close(self) -> None:
        """Let go of the handle. It has no locks."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _read(self) -> Slots:
        try:
            raw = os.pread(self._handle(), _SIZE, 0)
        except OSError as error:
            self._say(error)
            return Slots()
        if raw != self._raw:
            self._raw, self._slots = raw, _parsed(raw)
        return self._slots

    def _write(self, slots: Slots, *, sync: bool) -> None:
        mine, newest = self._mine, slots.newest
        if mine is None:
            return
        if newest is not None and newest.anchored != self._replaces:
            if newest.anchored.position > mine.position:
                return  # another process is further, and settles that itself
            if newest.anchored == mine and (newest.synced or not sync):
                return
        slot, where = _Slot(1 if newest is None else newest.serial + 1, sync, mine), slots.free
        packed = _packed(slot)
        try:
            os.pwrite(self._handle(), packed, where * _APART)
            if sync:
                self._sync()
        except OSError as error:
            self._say(error)
            return
        self._trouble = False
        written = self._raw.ljust(_SIZE, b"\0")  # what will be read next, unless somebody else writes
        self._raw = packed + written[_SLOT:] if where == 0 else written[:_APART] + packed
        self._slots = slots.with_slot(where, slot)

    def _handle(self) -> int:
        if self._descriptor is None:
            mode = stat.S_IMODE(os.stat(self._database).st_mode)  # whoever may read the journal may see where it ends
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
        return self._descriptor

    def _sync(self) -> None:
        os.fsync(self._handle())
        if not self._named:
            sync_folder(self._path.parent)
            self._named = True

    def _say(self, error: OSError) -> None:
        if not self._trouble:
            _log.warning("the journal's head anchor %s cannot be kept: %s", self._path, error.strerror)
        self._trouble = True


def anchor_anew(database: Path, head: Anchored) -> None:
    """Anchor a head whatever was anchored before; on the disk on return. For a restore, which holds the gate alone.

    Both slots are written, one after the other: none may go on naming the history that was replaced.
    """
    slots = read_anchor(database)
    serial = 1 if slots.newest is None else slots.newest.serial + 1
    mode = stat.S_IMODE(os.stat(database).st_mode)
    descriptor = os.open(anchor_path(database), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
    try:
        for turn, slot in enumerate((slots.free, 1 - slots.free)):
            os.pwrite(descriptor, _packed(_Slot(serial + turn, True, head)), slot * _APART)
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_folder(database.parent)
