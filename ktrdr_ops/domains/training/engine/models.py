"""Models: the hash by which two are the same, and taking one over from where the host has written it.

A model is a safetensors file. Its canonical encoding is the concatenation, over its arrays in the order of their names
(by code point), of: the name in UTF-8, a zero byte, the dtype as safetensors names it (``F32``), a zero byte, the shape
as decimal numbers with commas (nothing for a scalar), a zero byte, and the values, little-endian, in row-major order.
It depends neither on the order in which a file holds its arrays nor on its metadata.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ktrdr_ops.core.artifacts import Publication, replace_durably

if TYPE_CHECKING:
    from ktrdr_ops.core.artifacts import ObjectStore

MODEL = "model"
SUFFIX = ".safetensors"
MOST_BYTES = 1 << 30
_LENGTH = 8


@dataclass(frozen=True, slots=True)
class Taken:
    """A model that is in the object store; ``sha256`` is canonical."""

    object: str
    sha256: str
    size: int


def canonical_sha256(content: bytes) -> str:
    """The hash of a safetensors file's arrays. Raises ValueError for what is no such file."""
    start = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    if len(content) < _LENGTH or start > len(content):
        raise ValueError("it is no safetensors file")
    header = json.loads(content[_LENGTH:start])
    digest = hashlib.sha256()
    for name in sorted(name for name in header if name != "__metadata__"):
        one = header[name]
        begin, end = one["data_offsets"]
        if not 0 <= begin <= end <= len(content) - start:
            raise ValueError(f"its array {name!r} lies outside of it")
        shape = ",".join(str(int(length)) for length in one["shape"])
        digest.update(b"\0".join((name.encode(), str(one["dtype"]).encode(), shape.encode(), b"")))
        digest.update(content[start + begin : start + end])
    return digest.hexdigest()


def taken_over(path: str | None, claimed: object, objects: ObjectStore) -> Taken | None:
    """The host's model as an object of ours, where its file can be read here and is what the host says; else None."""
    if path is None or not isinstance(claimed, str) or not path.endswith(SUFFIX):
        return None
    file = Path(path)
    try:
        if not file.is_absolute() or not file.is_file() or file.stat().st_size > MOST_BYTES:
            return None
        content = file.read_bytes()
        sha256 = canonical_sha256(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Taken(objects.put(content), sha256, len(content)) if sha256 == claimed else None


def publication(taken: Taken, key: str, name: Path, metadata: dict[str, Any]) -> Publication:
    """A model to publish."""
    return Publication(
        kind=MODEL,
        key=key,
        object=taken.object,
        sha256=taken.sha256,
        size=taken.size,
        metadata={"format": "safetensors", **metadata},
        name=str(name),
    )


def put_in_place(path: Path, content: bytes) -> None:
    """Let the name be this model, durably. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not (path.is_file() and path.read_bytes() == content):
        replace_durably(path, content)
