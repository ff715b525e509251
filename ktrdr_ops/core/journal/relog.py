"""After a sync has failed: the write-ahead log is written again, as it can be read, and synced.

Linux counts as clean what it could not write. It goes on showing it to everybody who reads, and never tries again: a
later sync succeeds and does not cover it. So the log may have a hole on the disk that nobody can see, and whatever is
appended behind the hole is gone at a power cut, acknowledged or not. Copying such a log into the database is no help:
a power cut in the middle leaves pages there that no log on the disk completes.

Written again, each byte is to be written out once more. What was on the disk already is replaced by itself, and what
was not ends in frames whose checksums do not fit, which SQLite leaves out.
"""

from __future__ import annotations

import os
from pathlib import Path

from ktrdr_ops.core.journal.guard import our_own
from ktrdr_ops.core.journal.ownership import LockFile

_CHUNK = 1 << 20


def write_log_again(database: Path) -> None:
    """Make the whole write-ahead log durable; nothing where there is none. The caller holds the gate. Raises OSError.

    Only the database and SQLite's shared memory carry locks, so closing this handle drops none.
    """
    with our_own():
        try:
            descriptor = os.open(f"{database}-wal", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
    try:
        at = 0
        while content := os.pread(descriptor, _CHUNK, at):
            at += os.pwrite(descriptor, content, at)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_good(lock: LockFile, database: Path) -> None:
    """Where a sync has failed in some process that could not make good for it itself: do so. The caller holds the gate.
    Raises OSError."""
    if lock.doubted:
        write_log_again(database)
        lock.trust()
