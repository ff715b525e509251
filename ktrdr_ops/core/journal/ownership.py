"""The lock file: who may write now, who is reading, and which owners live.

POSIX byte-range locks on one file beside the database. Byte 0 is the gate (held around a write transaction), byte 1 the
share byte (held shared by every process that has the journal open, exclusively by a migration), and each owner process
holds one random byte far behind them. The kernel frees a byte the moment its process is gone, whatever killed it, so a
free byte is a dead owner, at once and exactly.

The file is empty, unless a sync of the journal has failed: then its first byte says so.

Closing any handle of a file drops all POSIX locks that the process has on it, so there is one handle a process and lock
file, and it stays open until the process exits. Locks are not inherited by forked children: they may not use it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from ktrdr_ops.core.errors import JournalBusy, JournalError, JournalRefused

_DOUBT = b"?"
_GATE = 0
_SHARE = 1
_FIRST_SLOT = 1 << 32
_TRY_SECONDS = 0.01
_SLOTS = (1 << 61) - _FIRST_SLOT

# struct flock, for F_GETLK: Linux has type and whence first, the BSDs have them last.
_BSD = sys.platform == "darwin"
_FLOCK = "qqihh" if _BSD else "hhqqi4x"


def _flock(kind: int, offset: int) -> bytes:
    return (
        struct.pack(_FLOCK, offset, 1, 0, kind, os.SEEK_SET)
        if _BSD
        else struct.pack(_FLOCK, kind, os.SEEK_SET, offset, 1, 0)
    )


def _holder(answer: bytes) -> tuple[int, int]:
    """(lock type, pid) of what F_GETLK answered."""
    values = struct.unpack(_FLOCK, answer)
    return (values[3], values[2]) if _BSD else (values[0], values[4])


@dataclass(frozen=True, slots=True)
class Owner:
    """This process as an owner: what an attempt_started event says of it."""

    pid: int
    host: str
    slot: int


class LockFile:
    """The one handle that this process has on a journal's lock file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pid = os.getpid()
        self._owner: Owner | None = None
        self._guard = threading.Lock()
        self._fd = _open(path)

    def lock_gate(self, seconds: float | None = None) -> None:
        """Wait until this process may write: without limit, or so many seconds. Raises JournalBusy that names the
        process which holds the gate."""
        self._check_process()
        if seconds is None:
            fcntl.lockf(self._handle(), fcntl.LOCK_EX, 1, _GATE)
        elif not self.try_gate(seconds):
            raise busy(self.gate_holder())

    def try_gate(self, seconds: float) -> bool:
        """Whether this process may write now, after so many seconds at most."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.lockf(self._handle(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _GATE)
            except (BlockingIOError, PermissionError):
                if time.monotonic() > deadline:
                    return False
                time.sleep(_TRY_SECONDS)
            else:
                return True

    def unlock_gate(self) -> None:
        """Let the next one write."""
        fcntl.lockf(self._handle(), fcntl.LOCK_UN, 1, _GATE)

    def gate_holder(self) -> int | None:
        """The pid that holds the gate, if another process does."""
        return self._pid_on(_GATE)

    @property
    def doubted(self) -> bool:
        """Whether a sync has failed and nobody has made good for it."""
        return os.pread(self._handle(), 1, 0) == _DOUBT

    def doubt(self) -> None:
        """Under the gate: tell whoever writes next that what can be read of the log may not be on the disk. The mark
        needs no sync: it is in the same memory as what it tells of, and is gone with it."""
        os.pwrite(self._handle(), _DOUBT, 0)

    def trust(self) -> None:
        """Under the gate: what can be read of the log is on the disk again."""
        os.ftruncate(self._handle(), 0)

    def share(self) -> None:
        """Say that this process has the journal open."""
        if self._fd is not None:
            fcntl.lockf(self._fd, fcntl.LOCK_SH, 1, _SHARE)

    def unshare(self) -> None:
        """This process has closed the journal."""
        if self._fd is not None:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, _SHARE)

    def take_share_alone(self, what: str = "must be migrated") -> None:
        """For a migration or a restore: nobody else may have the journal open. Raises JournalRefused that names a
        pid."""
        self._check_process()
        try:
            fcntl.lockf(self._handle(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _SHARE)
        except OSError:
            pid = self._pid_on(_SHARE)
            raise JournalRefused(
                f"the journal {what}, but process {pid} has it open",
                hint="End that process, then run the command again.",
            ) from None

    def owner(self) -> Owner:
        """This process's own byte, taken at the first call and held until the process is gone."""
        self._check_process()
        with self._guard:
            if self._owner is None:
                slot = self._take_slot()
                self._owner = Owner(self._pid, socket.gethostname(), slot)
            return self._owner

    def alive(self, slot: int) -> bool:
        """Whether the process that holds this byte lives. This process's own byte is never probed."""
        if self._owner is not None and self._owner.slot == slot:
            return self._pid == os.getpid()
        return self._pid_on(slot) is not None

    def _take_slot(self) -> int:
        while True:
            slot = _FIRST_SLOT + secrets.randbelow(_SLOTS)
            try:
                fcntl.lockf(self._handle(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
            except BlockingIOError:
                continue
            return slot

    def _pid_on(self, offset: int) -> int | None:
        if self._fd is None:
            return None
        answer = fcntl.fcntl(self._fd, fcntl.F_GETLK, _flock(fcntl.F_WRLCK, offset))
        kind, pid = _holder(answer)
        return None if kind == fcntl.F_UNLCK else pid

    def _handle(self) -> int:
        if self._fd is None:
            raise JournalRefused(
                f"the journal's lock file {self.path} may not be written by this user",
                hint="Check who owns the folder, or name another journal with --journal.",
            )
        return self._fd

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise JournalError(
                "a forked child may not use its parent's journal",
                hint="Open the journal in the child itself, after an exec (multiprocessing: use the 'spawn' method).",
            )


def describe(pid: int) -> str:
    """A process in words: its id, state and command."""
    import psutil

    try:
        process = psutil.Process(pid)
        command = " ".join(process.cmdline())[:120] or process.name()
        return f"process {pid} ({process.status()}): {command}"
    except psutil.Error:
        return f"process {pid}"


def busy(pid: int | None) -> JournalBusy:
    """The error for a gate that is not let go. A stopped process is named as such: SQLite would only say "locked"."""
    who = "another process" if pid is None else describe(pid)
    return JournalBusy(
        f"the journal is held by {who}",
        hint=f"If it is stopped, let it go on: kill -CONT {pid}     or end it: kill {pid}" if pid else None,
    )


def _open(path: Path) -> int | None:
    """The handle: for writing if it may be, else for reading; None where there is no file and none may be made."""
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        try:
            return os.open(path, flags | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return None
        except PermissionError:
            continue
        except OSError as error:
            if error.errno == errno.EROFS:
                continue
            raise JournalRefused(f"the journal's lock file {path} cannot be opened: {error.strerror}") from error
    return None


_FILES: dict[tuple[int, str], LockFile] = {}
_FILES_GUARD = threading.Lock()


def lock_file(database: Path) -> LockFile:
    """The process's one handle on the lock file of a database; kept until the process exits."""
    path = Path(f"{os.path.realpath(database)}.lock")
    with _FILES_GUARD:
        key = (os.getpid(), str(path))
        if key not in _FILES:
            _FILES[key] = LockFile(path)
        return _FILES[key]
