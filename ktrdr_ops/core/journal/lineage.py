"""From what an operation was made, and what was made from it: a walk through the journal, both ways.

    inputs of an operation    what its step "inputs" names; without that step, what its children published
    outputs                   what it published itself
    consumers of an output    the operations whose step "inputs" names it: by the operation that published it, or, where
                              none is named, by the content's hash

Nothing is inferred: what no event names is not shown, and what is known of each input (its evidence) is as recorded.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from ktrdr_ops.core.artifacts import Artifact
from ktrdr_ops.core.attempt import INPUTS
from ktrdr_ops.core.errors import OperationNotFound
from ktrdr_ops.core.events import Event, Json
from ktrdr_ops.core.journal import history
from ktrdr_ops.core.journal.journal import EVENT_COLUMNS, Journal

CHILD = "child"
"""The evidence for what a child published: the operation ran it itself."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a file is to the journal: ``artifact`` is what was published under its name or with its bytes; ``same``:
    whether it holds these bytes; None where the file is gone."""

    path: Path
    sha256: str | None
    artifact: Artifact
    same: bool | None


async def source(journal: Journal, path: Path) -> Source:
    """The artifact that a file is: by its bytes, else by its name (``path`` is absolute). Raises OperationNotFound."""
    sha256 = await asyncio.to_thread(_sha256, path)
    found = [] if sha256 is None else await _artifacts(journal, "$.object", sha256)
    named = [artifact for artifact in found if artifact.name == str(path)]
    if found:
        return Source(path, sha256, (named or found)[-1], True)
    found = await _artifacts(journal, "$.name", str(path))
    if not found:
        raise OperationNotFound(
            f"no operation published {path}, nor anything with its content", hint="See what there is: ktrdr-ops list"
        )
    return Source(path, sha256, found[-1], None if sha256 is None else False)


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


async def _artifacts(journal: Journal, field: str, value: str) -> list[Artifact]:
    """In the order of their being published."""
    sql = (
        f"SELECT {EVENT_COLUMNS} FROM events WHERE type = 'artifact_published'"
        " AND json_extract(CAST(payload AS TEXT), ?) = ? ORDER BY position"
    )
    return [history.artifact(Event(*row)) for row in await journal.rows(sql, (field, value))]


async def lineage(journal: Journal, operation_id: str) -> dict[str, Json]:
    """An operation's document: ``inputs``, each with the ``operation`` that made it and that one's inputs, and
    ``outputs``, each with its ``consumers`` and their outputs. An operation that was shown before has only its name.

    Raises OperationNotFound.
    """
    walk = _Walk(journal, await _uses(journal))
    document = await walk.named(operation_id)
    document["inputs"] = await walk.inputs(operation_id)
    document["outputs"] = await walk.outputs(operation_id)
    return document


async def _uses(journal: Journal) -> dict[str, list[dict[str, Json]]]:
    """What each operation says it was made from."""
    rows = await journal.rows(
        "SELECT operation_id, payload FROM events WHERE type <> 'progressed' AND type = 'step_completed'"
        " AND json_extract(CAST(payload AS TEXT), '$.name') = ? ORDER BY position",
        (INPUTS,),
    )
    found = {operation_id: orjson.loads(payload)["value"] for operation_id, payload in rows}
    return {
        operation_id: [one for one in value if isinstance(one, dict)]
        for operation_id, value in found.items()
        if isinstance(value, list)
    }


@dataclass(slots=True)
class _Walk:
    journal: Journal
    uses: Mapping[str, Sequence[Mapping[str, Json]]]
    above: set[str] = field(default_factory=set)
    below: set[str] = field(default_factory=set)

    async def named(self, operation_id: str) -> dict[str, Json]:
        state = await self.journal.state(operation_id)
        return {
            "operation_id": operation_id,
            "operation_type": state.operation_type,
            "key": state.key,
            "status": self.journal.status(state),
        }

    async def inputs(self, operation_id: str) -> list[dict[str, Json]]:
        self.above.add(operation_id)
        named = [dict(one) for one in self.uses.get(operation_id, ())]
        for child in () if operation_id in self.uses else await history.children(self.journal, operation_id):
            latest = {(one.kind, one.key): one for one in await self._published(child.operation_id)}
            named += [{**_content(one), "evidence": CHILD} for one in latest.values()]
        for one in named:
            one["operation"] = await self._maker(one.get("operation_id"))
        return named

    async def _maker(self, operation_id: Any) -> dict[str, Json] | None:
        if not isinstance(operation_id, str):
            return None
        try:
            found = await self.named(operation_id)
        except OperationNotFound:  # it may have been named by a journal that another was restored over
            return None
        if operation_id not in self.above:
            found["inputs"] = await self.inputs(operation_id)
        return found

    async def outputs(self, operation_id: str) -> list[dict[str, Json]]:
        self.below.add(operation_id)
        published = await self._published(operation_id)
        last = {(artifact.kind, artifact.key): artifact.position for artifact in published}
        users = self._users(operation_id)
        found = []
        for one in published:
            consumers = await self._consumers(one, users, last=last[one.kind, one.key] == one.position)
            place = {"size": one.size, "name": one.name, "position": one.position}
            found.append({**_content(one), **place, "consumers": consumers})
        return found

    def _users(self, operation_id: str) -> dict[str, list[Mapping[str, Json]]]:
        """The other operations' inputs that may be of this one's making."""
        makers = (None, operation_id)
        may_be = {
            user: [one for one in named if one.get("operation_id") in makers] for user, named in self.uses.items()
        }
        return {user: named for user, named in may_be.items() if named and user != operation_id}

    async def _consumers(
        self, artifact: Artifact, users: Mapping[str, Sequence[Mapping[str, Json]]], *, last: bool
    ) -> list[dict[str, Json]]:
        found = []
        for operation_id, inputs in users.items():
            used = next((one for one in inputs if _is(one, artifact, last=last)), None)
            if used is not None:
                found.append(await self._consumer(operation_id, used))
        return found

    async def _consumer(self, operation_id: str, used: Mapping[str, Json]) -> dict[str, Json]:
        found = {**await self.named(operation_id), "evidence": used.get("evidence")}
        if operation_id not in self.below:
            found["outputs"] = await self.outputs(operation_id)
        return found

    async def _published(self, operation_id: str) -> list[Artifact]:
        sql = (
            f"SELECT {EVENT_COLUMNS} FROM events WHERE operation_id = ? AND type <> 'progressed'"
            " AND type = 'artifact_published' ORDER BY sequence"
        )
        return [history.artifact(Event(*row)) for row in await self.journal.rows(sql, (operation_id,))]


def _content(artifact: Artifact) -> dict[str, Json]:
    return {
        "kind": artifact.kind,
        "key": artifact.key,
        "sha256": artifact.sha256,
        "object": artifact.object,
        "operation_id": artifact.operation_id,
    }


def _is(used: Mapping[str, Json], artifact: Artifact, *, last: bool) -> bool:
    """Whether an input that may be of its maker's making is this artifact. One that is named by its operation, kind and
    key alone is its ``last``."""
    maker = used.get("operation_id")
    for name in ("object", "sha256"):
        if used.get(name) is not None:
            return bool(used[name] == getattr(artifact, name))
    return maker is not None and last and (used.get("kind"), used.get("key")) == (artifact.kind, artifact.key)
