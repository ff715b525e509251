"""Where a training's data and code came from, as far as that can be known.

own             the host is ours, and the file that it says it read has the hash of what an operation published
shared_folder   the host is somebody else's, and names a file of our data folder that has the same hash here
unknown         all else: no hash is claimed
"""

from __future__ import annotations

import asyncio
import hashlib
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ktrdr_ops.core.journal import history

if TYPE_CHECKING:
    from ktrdr_ops.core.attempt import Attempt
    from ktrdr_ops.core.events import Json

SERIES = "series"
_MOST_BYTES = 1 << 30
_COMMIT_LENGTHS = (40, 64)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one series that was used. ``sha256`` is canonical, ``object`` that of the file's bytes."""

    symbol: str
    timeframe: str
    evidence: str = "unknown"
    sha256: str | None = None
    object: str | None = None
    operation_id: str | None = None
    rows: int | None = None

    def used(self) -> dict[str, Json]:
        """As an operation's inputs are recorded."""
        return {
            "kind": SERIES,
            "key": f"{self.symbol}:{self.timeframe}",
            "sha256": self.sha256,
            "object": self.object,
            "operation_id": self.operation_id,
            "rows": self.rows,
            "evidence": self.evidence,
        }


async def evidence(
    series: Iterable[tuple[str, str]],
    files: Iterable[Any],
    attempt: Attempt,
    data_dir: Path,
    *,
    own_host: bool,
    session_id: str,
) -> list[Evidence]:
    """What is known of each series, from the files that the host says it read. Only what was published before it was
    asked to start can be what it read."""
    before = await _named(attempt, session_id)
    told = {(str(each.get("symbol")), str(each.get("timeframe"))): each for each in files if isinstance(each, Mapping)}
    return [
        await _evidence(symbol, timeframe, told.get((symbol, timeframe)), attempt, data_dir, own_host, before)
        for symbol, timeframe in series
    ]


async def _evidence(
    symbol: str,
    timeframe: str,
    told: Mapping[str, Any] | None,
    attempt: Attempt,
    data_dir: Path,
    own_host: bool,
    before: int,
) -> Evidence:
    unknown = Evidence(symbol, timeframe)
    sha = None if told is None else told.get("sha256")
    if told is None or not isinstance(sha, str):
        return unknown
    if not own_host and await asyncio.to_thread(_sha256_of, told.get("path"), data_dir) != sha:
        return unknown
    key = f"{symbol}:{timeframe}"
    published = [
        each
        for each in await attempt.catalogue.every(SERIES, key)
        if each.key == key and each.object == sha and each.position < before
    ]
    if not published:  # a file of the user's that no operation made
        return unknown if own_host else Evidence(symbol, timeframe, "shared_folder", object=sha, rows=_rows(told))
    last = published[0]
    rows = last.metadata.get("rows")
    how = "own" if own_host else "shared_folder"
    return Evidence(
        symbol, timeframe, how, last.sha256, sha, last.operation_id, rows if isinstance(rows, int) else None
    )


async def _named(attempt: Attempt, session_id: str) -> int:
    """The position at which the journal names the session: its start was sent after that."""
    for event in await history.marks(attempt.journal, attempt.operation.operation_id):
        value = getattr(event.fact, "value", None)
        if isinstance(value, dict) and value.get("session_id") == session_id:
            return event.position
    return 0


def _rows(told: Mapping[str, Any]) -> int | None:
    rows = told.get("rows")
    return rows if isinstance(rows, int) else None


def _sha256_of(path: object, data_dir: Path) -> str | None:
    """The hash of a file's bytes, where it lies in the data folder and can be read."""
    if not isinstance(path, str):
        return None
    try:
        file = Path(path).resolve()
        if not file.is_relative_to(data_dir.resolve()) or file.stat().st_size > _MOST_BYTES:
            return None
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except (OSError, ValueError):
        return None


def versions(host: object) -> dict[str, str]:
    """The versions of what made a model: ours, and the packages that the host names."""
    named = host.items() if isinstance(host, Mapping) else ()
    return {
        "ktrdr-ops": version("ktrdr-ops"),
        "python": platform.python_version(),
        **{str(k): str(v)[:40] for k, v in named},
    }


def git_commit(folder: Path) -> str | None:
    """The commit that is checked out where ``folder`` lies; None outside of a repository. Reads files, runs nothing."""
    for parent in (folder, *folder.parents):
        found = parent / ".git"
        try:
            if found.is_file():  # a work tree or submodule: it names its own folder
                found = parent / found.read_text().partition("gitdir:")[2].strip()
            if found.is_dir():
                return _head(found)
        except (OSError, ValueError):
            return None
    return None


def _head(git: Path) -> str | None:
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
        return _commit(head)
    ref = head.partition(":")[2].strip()
    shared = git / "commondir"
    folders = (git, (git / shared.read_text().strip()) if shared.is_file() else git)
    for each in folders:
        if (each / ref).is_file():
            return _commit((each / ref).read_text().strip())
    for each in folders:
        if (each / "packed-refs").is_file():
            for line in (each / "packed-refs").read_text().splitlines():
                commit, _, name = line.partition(" ")
                if name == ref:
                    return _commit(commit)
    return None


def _commit(text: str) -> str | None:
    return text if len(text) in _COMMIT_LENGTHS and set(text) <= set("0123456789abcdef") else None
