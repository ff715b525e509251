"""What a disk may hold after a power cut, from the recorder's log of everything that was done to a folder.

A ``Disk`` takes the records one after another. After each of them the power may be cut; then the folder is rebuilt as

* **least**: only what was synced. A file has what it had at the last sync of that file; a folder has the names that it
  had at the last sync of that folder.
* **most**: all that was done.
* **torn**: of what was done since the last sync of a file, a random part: each write not at all, whole, some of its
  512-byte sectors, or (the last one) cut at any byte; each truncation or not. Each folder has the names of some moment
  since its last sync.

So the model is harder than ext4 or xfs, whose one journal makes a name durable together with the file and keeps the
order of names across folders; within one folder the order is kept, as there. ``names_by_any_sync`` is ext4's rule: each
sync, of whatever file, makes all names before it durable.

A sync that failed is modelled as Linux behaves: what was dirty counts as clean from then on, is seen by everybody who
reads, and never reaches the disk, unless its 4,096-byte page is written again: then the whole page is dirty. (In torn
states a part of it may have reached the disk before the error.)

A file named ``acks`` at the top is not part of the state: each of its lines is a JSON acknowledgement that the process
gave at that point, and which every later state must honour.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

SECTOR = 512
PAGE = 4096
_RECORD = struct.Struct("<Ic3xiiq")
Mode = Literal["least", "most", "torn"]
State = dict[str, bytes | None]
"""The content of each file by its path below the folder; None for a folder."""


@dataclass(frozen=True, slots=True)
class Record:
    """One call that was made: see recorder.c."""

    kind: str
    pid: int
    handle: int
    number: int
    payload: bytes

    @property
    def path(self) -> str:
        """The path that it names."""
        return os.fsdecode(self.payload)


def records(log: bytes) -> Iterator[Record]:
    """The records of a log in their order."""
    at = 0
    while at + _RECORD.size <= len(log):
        size, kind, pid, handle, number = _RECORD.unpack_from(log, at)
        at += _RECORD.size
        yield Record(kind.decode(), pid, handle, number, log[at : at + size])
        at += size


def _put(content: bytearray, at: int, data: bytes) -> None:
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    content[at : at + len(data)] = data


def _resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


@dataclass(slots=True)
class _Change:
    """A write, or (``data`` is None) a truncation, that no sync has covered. ``lost``: a sync of it failed."""

    at: int
    data: bytes | None
    lost: bool = False

    def apply(self, content: bytearray) -> None:
        if self.data is None:
            _resize(content, self.at)
        else:
            _put(content, self.at, self.data)

    def apply_some(self, content: bytearray, random_: random.Random, *, last: bool) -> None:
        """Apply a random part of it."""
        how = random_.random()
        if how < 0.3:
            return
        if self.data is None or how < 0.6:
            self.apply(content)
        elif last and how < 0.8:
            _put(content, self.at, self.data[: random_.randrange(len(self.data) + 1)])
        else:
            start = self.at
            end = self.at + len(self.data)
            while start < end:
                stop = min((start // SECTOR + 1) * SECTOR, end)
                if random_.random() < 0.5:
                    _put(content, start, self.data[start - self.at : stop - self.at])
                start = stop


@dataclass(slots=True, eq=False)
class _File:
    synced: bytearray = field(default_factory=bytearray)
    seen: bytearray = field(default_factory=bytearray)
    pending: list[_Change] = field(default_factory=list)
    lost: set[int] = field(default_factory=set)

    def change(self, at: int, data: bytes | None) -> None:
        change = _Change(at, data)
        change.apply(self.seen)
        if data is None:
            self.lost = {page for page in self.lost if page * PAGE < at}
        elif self.lost and data:
            touched = self.lost & set(range(at // PAGE, (at + len(data) - 1) // PAGE + 1))
            for page in touched:
                whole = bytes(self.seen[page * PAGE : (page + 1) * PAGE])
                self.pending.append(_Change(page * PAGE, whole))
            self.lost -= touched
        self.pending.append(change)

    def sync(self) -> None:
        for change in self.pending:
            if not change.lost:
                change.apply(self.synced)
        self.pending.clear()

    def fail_to_sync(self) -> None:
        for change in self.pending:
            if change.data:
                change.lost = True
                self.lost |= set(range(change.at // PAGE, (change.at + len(change.data) - 1) // PAGE + 1))

    def content(self, mode: Mode, random_: random.Random) -> bytes:
        if mode == "least" or not self.pending:
            return bytes(self.synced)
        if mode == "most" and not self.lost:
            return bytes(self.seen)
        content = bytearray(self.synced)
        for change in self.pending:
            if mode == "torn":
                change.apply_some(content, random_, last=change is self.pending[-1])
            elif not change.lost:
                change.apply(content)
        return bytes(content)


@dataclass(slots=True, eq=False)
class _Folder:
    synced: dict[str, _File | _Folder] = field(default_factory=dict)
    moments: list[dict[str, _File | _Folder]] = field(default_factory=lambda: [{}])
    """The names since the last sync, after each change."""

    @property
    def names(self) -> dict[str, _File | _Folder]:
        return self.moments[-1]

    def put(self, name: str, node: _File | _Folder) -> None:
        self.moments.append({**self.names, name: node})

    def drop(self, name: str) -> _File | _Folder:
        left = dict(self.names)
        node = left.pop(name)
        self.moments.append(left)
        return node

    def rename(self, old: str, new: str) -> None:
        left = dict(self.names)
        left[new] = left.pop(old)
        self.moments.append(left)

    def sync(self) -> None:
        self.synced = self.names
        self.moments = [self.names]

    def at(self, mode: Mode, random_: random.Random) -> dict[str, _File | _Folder]:
        if mode == "least":
            return self.synced
        return self.names if mode == "most" else random_.choice(self.moments)


class Disk:
    """A folder and what is known to be on its disk, after the records that it was given."""

    def __init__(self, *, names_by_any_sync: bool = False) -> None:
        self.acknowledged: list[Any] = []
        self.failed_syncs = 0
        self.synced = 0
        self._names_by_any_sync = names_by_any_sync
        self._root = _Folder()
        self._acks = _File()
        self._folders: list[_Folder] = [self._root]
        self._handles: dict[tuple[int, int], tuple[str, _File | _Folder]] = {}

    def take(self, record: Record) -> bool:
        """Do what was done. False when it changes nothing of what the disk may hold."""
        return bool(getattr(self, f"_take_{record.kind}")(record))

    def state(self, mode: Mode, seed: int = 0) -> State:
        """What the folder holds when the power is cut now."""
        state: State = {}
        self._render(self._root, "", mode, random.Random(seed), state)
        return state

    def _render(self, folder: _Folder, path: str, mode: Mode, random_: random.Random, state: State) -> None:
        for name, node in folder.at(mode, random_).items():
            if isinstance(node, _Folder):
                state[path + name] = None
                self._render(node, f"{path}{name}/", mode, random_, state)
            else:
                state[path + name] = node.content(mode, random_)

    def _parent(self, path: str) -> tuple[_Folder, str]:
        *parents, name = path.split("/")
        folder = self._root
        for parent in parents:
            found = folder.names[parent]
            assert isinstance(found, _Folder)
            folder = found
        return folder, name

    def _take_o(self, record: Record) -> bool:
        path = record.path
        if not path:
            self._handles[record.pid, record.handle] = ("", self._root)
            return False
        folder, name = self._parent(path)
        node = self._acks if path == "acks" else folder.names.get(name)
        made = node is None
        if node is None:
            node = _File()
            folder.put(name, node)
        self._handles[record.pid, record.handle] = (path, node)
        if record.number & os.O_TRUNC and isinstance(node, _File) and node.seen:
            node.change(0, None)
            return True
        return made

    def _take_w(self, record: Record) -> bool:
        path, node = self._handles[record.pid, record.handle]
        assert isinstance(node, _File)
        if path == "acks":
            self.acknowledged += [json.loads(line) for line in record.payload.splitlines()]
            return False
        node.change(record.number, record.payload)
        return True

    def _take_t(self, record: Record) -> bool:
        node = self._handles[record.pid, record.handle][1]
        assert isinstance(node, _File)
        node.change(record.number, None)
        return True

    def _take_s(self, record: Record) -> bool:
        node = self._handles[record.pid, record.handle][1]
        self.synced += 1
        if record.number:
            self.failed_syncs += 1
            if isinstance(node, _File):
                node.fail_to_sync()
            return True
        node.sync()
        if self._names_by_any_sync:
            for folder in self._folders:
                folder.sync()
        return True

    def _take_c(self, record: Record) -> bool:
        del self._handles[record.pid, record.handle]
        return False

    def _take_r(self, record: Record) -> bool:
        old, new = (self._parent(path) for path in record.path.split("\0"))
        assert old[0] is new[0], "names are moved within one folder only"
        old[0].rename(old[1], new[1])
        return True

    def _take_u(self, record: Record) -> bool:
        if not record.path.endswith("-shm"):
            folder, name = self._parent(record.path)
            folder.drop(name)
        return True

    _take_d = _take_u

    def _take_m(self, record: Record) -> bool:
        folder, name = self._parent(record.path)
        made = _Folder()
        self._folders.append(made)
        folder.put(name, made)
        return True


def digest(state: State) -> bytes:
    """The same for equal states alone."""
    whole = hashlib.blake2b(digest_size=16)
    for path in sorted(state):
        content = state[path]
        whole.update(f"{path}\0{-1 if content is None else len(content)}\0".encode())
        whole.update(content or b"")
    return whole.digest()


def build(state: State, folder: Path) -> None:
    """Make the folder hold this state and nothing else. Lock files are left out: the locks are not on the disk, and
    the mark that one may hold tells of what a power cut does away with."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path, content in state.items():
        if content is None:
            (folder / path).mkdir()
        elif not path.endswith(".lock"):
            (folder / path).write_bytes(content)
