"""What operations publish, by kind and key, and where its content lies.

Content is immutable and named by the SHA-256 of its bytes: written to a temporary file, fsynced, renamed, its folder
fsynced, and only then journaled. A name that people use is moved by the domain after that.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ktrdr_ops.core.errors import InvalidValue, JournalCorrupt
from ktrdr_ops.core.folders import make_folder, sync_folder

if TYPE_CHECKING:
    from ktrdr_ops.core.events import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What an operation is about to publish: ``object`` is in the store already."""

    kind: str
    key: str
    object: str
    sha256: str
    size: int
    metadata: Mapping[str, Json] = field(default_factory=dict)
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact(Publication):
    """A publication as the journal holds it. ``at`` is UTC."""

    operation_id: str
    attempt: int
    position: int
    at: datetime


class ObjectStore:
    """A folder of immutable content, each file named by the SHA-256 of its bytes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made: set[Path] = set()

    def path(self, sha: str) -> Path:
        """Where the content lies (or would lie). Raises InvalidValue for what is no SHA-256."""
        if len(sha) != 64 or not set(sha) <= set("0123456789abcdef"):
            raise InvalidValue(f"{sha!r} is not the SHA-256 of an object")
        return self.root / sha[:2] / sha

    def put(self, content: bytes) -> str:
        """Keep the content; on return it is on disk. Gives its SHA-256; storing it again changes nothing."""
        sha = hashlib.sha256(content).hexdigest()
        target = self.path(sha)
        self._make(target.parent)
        if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == sha:
            sync_folder(target.parent)  # whoever put it there may have been killed before its name was on the disk
        else:
            replace_durably(target, content)
        return sha

    def _make(self, folder: Path) -> None:
        if folder not in self._made or not folder.is_dir():
            make_folder(self.root)
            make_folder(folder)
            self._made.add(folder)

    def read(self, sha: str) -> bytes:
        """The content. Raises JournalCorrupt when it is gone or no longer has this hash."""
        try:
            content = self.path(sha).read_bytes()
        except FileNotFoundError:
            raise JournalCorrupt(f"object {sha} is missing from {self.root}") from None
        if hashlib.sha256(content).hexdigest() != sha:
            raise JournalCorrupt(f"object {sha} in {self.root} is not what was stored")
        return content


def replace_durably(target: Path, content: bytes) -> None:
    """Put a whole file in the place of ``target``: readers see the old or the new one, a power cut leaves one of
    both.
    """
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:40]}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(target.parent)
