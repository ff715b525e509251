"""Tracing: from what an operation or a file was made, and what was made from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ktrdr_ops.core.errors import AmbiguousOperation, OperationNotFound
from ktrdr_ops.core.journal import history
from ktrdr_ops.interfaces.cli import words
from ktrdr_ops.interfaces.cli.documents import reading
from ktrdr_ops.interfaces.cli.frame import LOOK, Context, command
from ktrdr_ops.interfaces.cli.screen import paint, safe

if TYPE_CHECKING:
    from ktrdr_ops.app import AsyncApp
    from ktrdr_ops.core.events import Json
    from ktrdr_ops.core.journal.lineage import Source

_EVIDENCE = {
    "own": "own: it read this very content",
    "shared_folder": "shared_folder: the same path and content on both sides",
    "unknown": "unknown: nothing is proven",
    "child": "child: the operation ran it itself",
}
_SHA = 12


def register(cli: typer.Typer) -> None:
    """Add ``lineage``."""
    command(cli, "lineage", help="From what it was made, and what was made from it", panel=LOOK)(lineage_)


def lineage_(
    context: Context,
    reference: Annotated[str, typer.Argument(metavar="ID|FILE", help="An operation, or a file that one published.")],
) -> None:
    """Walk the journal both ways from an operation or a file."""
    path = Path(reference).absolute()
    is_file = path.is_file()

    async def read(app: AsyncApp) -> tuple[Source | None, dict[str, Json]]:
        from ktrdr_ops.core.journal.lineage import lineage

        found, operation_id = await _meant(app, reference, path, is_file)
        return found, await lineage(app.journal, operation_id)

    found, document = reading(context, reference, read)
    file = None if found is None else _file(found)
    text = "\n".join([*([] if found is None else [_file_text(found)]), *_tree(document)])
    context.emit({"file": file, **document}, text)


async def _meant(app: AsyncApp, reference: str, path: Path, is_file: bool) -> tuple[Source | None, str]:
    """The file, if it is one, and the operation. Raises OperationNotFound."""
    from ktrdr_ops.core.journal.lineage import source

    if not is_file:
        try:
            return None, await history.find(app.journal, reference)
        except AmbiguousOperation:
            raise
        except OperationNotFound:
            if path.name == reference:
                raise
    found = await source(app.journal, path)
    return found, found.artifact.operation_id


def _file(found: Source) -> dict[str, Json]:
    artifact = found.artifact
    return {
        "path": str(found.path),
        "sha256": found.sha256,
        "same": found.same,
        "published": {"kind": artifact.kind, "key": artifact.key, "object": artifact.object, "name": artifact.name},
    }


def _file_text(found: Source) -> str:
    artifact = found.artifact
    what = f"{safe(artifact.kind)} {safe(artifact.key)}"
    if found.same:
        return f"{safe(found.path)} is {what}, as it was published"
    why = "it is gone" if found.same is None else "its content is not what was published"
    return paint(f"! {safe(found.path)} has the name of {what}, but {why}", "warn")


def _tree(document: Mapping[str, Json]) -> Iterator[str]:
    yield f"{paint(safe(document['operation_id']), 'bold')}  {_status(document)}"
    if not document["inputs"]:
        yield "  ← nothing that the journal names"
    yield from _above(document["inputs"], "  ")
    if not document["outputs"]:
        yield "  → nothing published"
    yield from _below(document["outputs"], "  ")


def _above(inputs: Sequence[Mapping[str, Json]], indent: str) -> Iterator[str]:
    for one in inputs:
        yield f"{indent}← {_what(one)}  {_evidence(one)}"
        maker = one["operation"]
        if maker is not None:
            seen = "" if "inputs" in maker else "  (see above)"
            yield f"{indent}    by {safe(maker['operation_id'])}  {_status(maker)}{seen}"
            yield from _above(maker.get("inputs", ()), indent + "      ")
        elif one.get("operation_id") is not None:
            yield f"{indent}    by {safe(one['operation_id'])}, which this journal does not have"


def _below(outputs: Sequence[Mapping[str, Json]], indent: str) -> Iterator[str]:
    """Of several publications of one kind and key only those that somebody used, and the last."""
    several: dict[tuple[str, str], list[Mapping[str, Json]]] = {}
    for one in outputs:
        several.setdefault((one["kind"], one["key"]), []).append(one)
    for group in several.values():
        for number, one in enumerate(group, 1):
            if number < len(group) and not one["consumers"]:
                continue
            name = "" if one["name"] is None else f"  {safe(one['name'])}"
            of = "" if len(group) == 1 else f"  {number} of {len(group)}"
            yield f"{indent}→ {_what(one)}{of}{name}"
            for consumer in one["consumers"]:
                seen = "" if "outputs" in consumer else "  (see above)"
                used = f"{safe(consumer['operation_id'])}  {_status(consumer)}  {_evidence(consumer)}"
                yield f"{indent}    used by {used}{seen}"
                yield from _below(consumer.get("outputs", ()), indent + "      ")


def _what(one: Mapping[str, Json]) -> str:
    sha = one.get("sha256")
    known = f"sha256 {safe(str(sha)[:_SHA])}…" if sha else "sha256 not known"
    return f"{safe(one.get('kind'))} {safe(one.get('key'))}  {known}"


def _evidence(one: Mapping[str, Json]) -> str:
    said: Any = one.get("evidence")
    if said in (None, "unknown"):
        return paint(_EVIDENCE["unknown"], "warn")
    return _EVIDENCE.get(str(said)) or safe(said)


def _status(document: Mapping[str, Json]) -> str:
    return words.status_words({"stalled": False, "waiting": None, **document})
