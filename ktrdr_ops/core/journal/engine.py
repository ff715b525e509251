"""Which SQLite, with which settings, on which files - and which are refused.

SQLite 3.7.0 to 3.51.2 can corrupt a WAL that several processes write (fixed in 3.51.3, and in 3.50.7 and 3.44.6): the
standard library's is used where it is safe, else pysqlite3's, and a vulnerable one is refused. The module is always
passed explicitly.
"""

from __future__ import annotations

import importlib
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ktrdr_ops.core.errors import InvalidValue, JournalError, JournalFull, JournalRefused

_NETWORK = frozenset(
    {"nfs", "nfs4", "smbfs", "cifs", "smb2", "smb3", "9p", "afs", "fuse.sshfs", "drvfs", "afpfs", "webdav"}
)
_SYNCED = re.compile(r"/(Dropbox|OneDrive[^/]*|Google Drive|GoogleDrive|Mobile Documents|iCloud[^/]*)(/|$)")
_BUSY_MS = 30_000


def is_safe(version: tuple[int, int, int]) -> bool:
    """Whether this SQLite is free of the WAL-reset bug."""
    if version >= (3, 51, 3):
        return True
    fixed = {50: 7, 44: 6}.get(version[1])
    return version[0] == 3 and fixed is not None and version[2] >= fixed


def load_sqlite(candidates: tuple[str, ...] = ("sqlite3", "pysqlite3")) -> Any:
    """The first DB-API module whose SQLite is safe. Raises JournalRefused that names the fix."""
    seen = []
    for name in candidates:
        try:
            module = importlib.import_module(name + ".dbapi2")
        except ImportError:
            continue
        if is_safe(module.sqlite_version_info):
            return module
        seen.append(f"{name} {module.sqlite_version}")
    raise JournalRefused(
        f"no safe SQLite: {', '.join(seen) or 'none found'} can corrupt a journal that several processes write",
        hint="pip install 'pysqlite3>=0.6.1', or use a Python whose SQLite is 3.51.3 or newer.",
    )


sqlite = load_sqlite()
UNREADABLE: tuple[type[Exception], ...] = (sqlite.DatabaseError, UnicodeDecodeError)
"""What reading a damaged file may raise: SQLite's own errors, or one for text that is none."""


def disk_failed(error: Exception, path: Path) -> JournalError | None:
    """The error to raise where the disk failed, or the room on it; None where it is what the file holds. A journal that
    is whole must not be called damaged, or somebody puts an older copy in its place."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite.SQLITE_FULL:
        return JournalFull(f"no room for the journal {path}", hint="Free some space on that disk.")
    if code in (sqlite.SQLITE_IOERR, sqlite.SQLITE_CANTOPEN):
        return JournalError(f"{path} could not be read: {error}", hint="Is its disk full, or failing? ktrdr-ops doctor")
    return None


def connect(path: Path, *, readonly: bool = False, immutable: bool = False) -> Any:
    """A connection in autocommit mode, usable from any one thread at a time, with the journal's settings."""
    mode = "mode=ro" if readonly else "mode=rwc"
    uri = f"{path.absolute().as_uri()}?{mode}{'&immutable=1' if immutable else ''}"
    try:
        connection = sqlite.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_BUSY_MS / 1000
        )
    except sqlite.OperationalError as error:
        raise JournalRefused(f"{path} cannot be opened: {error}", hint=_hint(path)) from error
    try:
        with _log_kept(connection, path, readonly=readonly):
            _configure(connection, readonly=readonly)
    except sqlite.OperationalError as error:
        if error.sqlite_errorcode & 0xFF == sqlite.SQLITE_FULL:
            raise JournalFull(
                f"no room for the journal {path}", hint="Free some space on that disk; nothing was started."
            ) from error
        raise JournalRefused(f"{path} cannot be used as a journal: {error}", hint=_hint(path)) from error
    except sqlite.DatabaseError as error:
        raise JournalRefused(f"{path} cannot be used as a journal: {error}", hint=_hint(path)) from error
    return connection


@contextmanager
def _log_kept(connection: Any, path: Path, *, readonly: bool) -> Iterator[None]:
    """Close the connection when what is done inside fails, without the loss of the log.

    When the last connection that may write closes, SQLite copies the log into the database and deletes it. It has
    deleted logs that it had not been able to read, acknowledged events and all: the shared memory's file could not be
    enlarged, then not be opened for writing. While one that only reads is open too, a close is not the last.
    """
    reading = None
    try:
        if not readonly and _has_log(path):
            reading = sqlite.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_MS / 1000)
            reading.execute("SELECT count(*) FROM sqlite_master").fetchone()
        yield
    except BaseException:
        connection.close()
        raise
    finally:
        if reading is not None:
            reading.close()


def _has_log(path: Path) -> bool:
    """Whether there is a log to keep. Where a rollback journal is left of the file's making, there is none yet, and
    only a connection that may write can read."""
    real = os.path.realpath(path)
    try:
        return os.path.getsize(f"{real}-wal") > 0 and not os.path.exists(f"{real}-journal")
    except OSError:
        return False


def _configure(connection: Any, *, readonly: bool) -> None:
    execute = connection.execute
    execute("PRAGMA recursive_triggers=ON")
    execute("PRAGMA foreign_keys=ON")
    if readonly:
        execute("PRAGMA query_only=ON")
        return
    if execute("PRAGMA page_count").fetchone()[0] == 0:
        execute("PRAGMA auto_vacuum=INCREMENTAL")  # after WAL is on it is silently ignored
    if execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
        raise sqlite.OperationalError("this filesystem does not allow write-ahead logging")
    execute("PRAGMA synchronous=FULL")
    if sys.platform == "darwin":
        execute("PRAGMA fullfsync=ON")
        execute("PRAGMA checkpoint_fullfsync=ON")


def check_file(path: Path, *, writing: bool) -> None:
    """Refuse what cannot be a journal, before anything is created or locked."""
    if "\0" in str(path):
        raise InvalidValue("the journal's path has a NUL character in it", hint="Name another file with --journal.")
    if path.is_dir():
        raise JournalRefused(f"{path} is a directory", hint=f"Name a file in it: --journal {path / 'journal.db'}")
    _refuse_shared_filesystem(path)
    if path.exists():
        _check_existing(path, writing=writing)
    elif not writing:
        raise JournalRefused(
            f"there is no journal at {path}", hint="Start an operation first, or name the journal with --journal."
        )


def _check_existing(path: Path, *, writing: bool) -> None:
    if not stat.S_ISREG(path.stat().st_mode):
        raise JournalRefused(f"{path} is not a regular file", hint="Name another file with --journal.")
    if not os.access(path, os.R_OK):
        raise JournalRefused(f"{path} may not be read by this user", hint=_hint(path))
    if writing and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        raise JournalRefused(
            f"{path} is read-only for this user",
            hint="Reading works: list, show, replay, journal verify. " + _hint(path),
        )


def _hint(path: Path) -> str:
    try:
        owner = path.stat().st_uid if path.exists() else path.parent.stat().st_uid
    except OSError:
        return "Check the path and its permissions."
    if owner == os.getuid():
        return "Check the path and its permissions, or name another file with --journal."
    return f"It belongs to user id {owner}; you are {os.getuid()}."


def _refuse_shared_filesystem(path: Path) -> None:
    real = os.path.realpath(path)
    if _SYNCED.search(real):
        raise JournalRefused(
            f"{path} lies in a folder that a cloud service copies, which tears a live database apart",
            hint="Keep the journal on a local disk, and back it up with: ktrdr-ops journal backup",
        )
    kind = filesystem_of(real)
    if kind in _NETWORK:
        raise JournalRefused(
            f"{path} lies on a network filesystem ({kind}), where locks and syncs do not hold",
            hint="Keep the journal on a local disk.",
        )


def filesystem_of(path: str) -> str:
    """The type of the filesystem that holds the path, from the longest mount point above it; ``""`` if unknown."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    best, kind = "", ""
    for line in mounts.splitlines():
        _, point, type_, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, type_
    return kind
