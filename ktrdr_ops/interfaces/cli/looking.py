"""Looking: list and show. They change nothing, and need nobody to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.core.journal import history
from ktrdr_ops.core.journal.journal import JournalMissing
from ktrdr_ops.interfaces.cli import words
from ktrdr_ops.interfaces.cli.documents import (
    Reference,
    reading,
    since_micros,
    timed_document,
    whole_timed_document,
)
from ktrdr_ops.interfaces.cli.frame import LOOK, Context, command
from ktrdr_ops.interfaces.cli.screen import safe
from ktrdr_ops.interfaces.cli.watching import follow_events

if TYPE_CHECKING:
    from ktrdr_ops.app import AsyncApp
    from ktrdr_ops.core.events import Event, Json

_COLUMNS = ("operation_id", "status", "percentage", "started_at", "took", "message")
_SHORT = {"id": "operation_id", "type": "operation_type"}
_PAGE = 500


def register(cli: typer.Typer) -> None:
    """Add these commands."""
    command(cli, "list", help="Operations, the latest first", panel=LOOK)(list_)
    command(cli, "show", help="One operation's history: now, --timeline, --full", panel=LOOK)(show)


def list_(
    context: Context,
    status: Annotated[
        list[str] | None, typer.Option(metavar="S", help="running, failed, interrupted, ...; given twice: either.")
    ] = None,
    type: Annotated[str | None, typer.Option(metavar="T", help="Of this operation type.")] = None,
    key: Annotated[
        str | None, typer.Option(metavar="K", help="What it works on; a final * stands for any end.")
    ] = None,
    parent: Annotated[str | None, typer.Option(metavar="ID", help="Children of this one.")] = None,
    since: Annotated[str | None, typer.Option(metavar="WHEN", help="Asked for since: 8h, yesterday, a time.")] = None,
    grep: Annotated[str | None, typer.Option(metavar="TEXT", help="Text in id, key, message or context.")] = None,
    sort: Annotated[str, typer.Option(metavar="FIELD", help=", ".join(history.SORT_FIELDS))] = "created",
    columns: Annotated[str | None, typer.Option(metavar="A,B", help="Fields of the document, or context.NAME.")] = None,
    limit: Annotated[int, typer.Option(metavar="N", help="At most so many.")] = 50,
    all: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
) -> None:
    """Print what the journal has."""
    if limit < 1:
        raise InvalidValue(f"--limit is {limit}; at least 1 is listed", hint="--all lists all of them.")
    chosen = history.Filter(
        status=tuple(status or ()), operation_type=type, key=key, since=since_micros(context, since), grep=grep
    )

    async def read(app: AsyncApp) -> tuple[list[tuple[dict[str, Json], float | None]], int]:
        wanted = chosen
        if parent is not None:
            wanted = replace(chosen, parent_id=await history.find(app.journal, parent))
        found: list[tuple[dict[str, Json], float | None]] = []
        cursor, total = None, 0
        while True:
            size = _PAGE if all else min(limit - len(found), _PAGE)
            page = await history.list_operations(app.journal, wanted, sort=sort, limit=size, cursor=cursor)
            found += [await timed_document(app, state) for state in page.states]
            total, cursor = total or page.total, page.cursor
            if cursor is None or (not all and len(found) >= limit):
                return found, total

    try:
        found, total = context.run(read, readonly=True)
    except JournalMissing as error:
        found, total = [], 0
        context.say(f"{safe(error.message)}\n  {safe(error.hint or '')}")
    documents = [said for said, _ in found]
    rows = [{**said, "took": worked} for said, worked in found]
    text = _table(context, rows, columns.split(",") if columns else None)
    context.emit({"operations": documents, "total": total}, text)
    if len(documents) < total:
        context.say(f"{len(documents):,} of {total:,} are shown: --limit N, or --all")


def _table(context: Context, documents: list[dict[str, Json]], columns: Sequence[str] | None) -> str:
    if not documents:
        return "no operations" if not context.quiet else ""
    chosen = [_SHORT.get(name.strip(), name.strip()) for name in columns] if columns else list(_COLUMNS)
    known = set(documents[0])
    for name in chosen:
        if name not in known and not name.startswith("context."):
            raise InvalidValue(f"there is no column {name!r}", hint=f"One of: {', '.join(sorted(known))}, context.NAME")
    rows = [[_cell(found, name) for name in chosen] for found in documents]
    headings = [name.removesuffix("_at").removeprefix("operation_").upper().replace("_", " ") for name in chosen]
    return words.table(
        [heading.replace("PERCENTAGE", "%") for heading in headings],
        rows,
        context.out.width if context.out.terminal else None,
    )


def _cell(found: dict[str, Json], name: str) -> str:
    if name == "status":
        return words.status_words(found)
    if name == "took":
        return "" if found["took"] is None else words.seconds(found["took"])
    if name == "message" and words.unconfirmed(found):
        return words.UNCONFIRMED
    if name == "percentage":
        return f"{found[name]:.0f}"
    value = found["context"].get(name.removeprefix("context.")) if name.startswith("context.") else found[name]
    if name.endswith("_at"):
        return words.local_and_utc(value)
    return "" if value is None else words.number(value)


def show(
    context: Context,
    operation: Reference,
    timeline: Annotated[bool, typer.Option("--timeline", help="Its events but plain progress.")] = False,
    full: Annotated[bool, typer.Option("--full", help="All of its events.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it has ended.")] = False,
) -> int | None:
    """Print an operation."""
    if follow:
        return follow_events(context, operation, everything=full or not timeline)

    async def read(app: AsyncApp) -> tuple[dict[str, Json], float | None, list[Event], str]:
        operation_id = await history.find(app.journal, operation)
        events = []
        if full:
            events = [event async for event in app.journal.read_all(operation_id)]
        elif timeline:
            events = await history.marks(app.journal, operation_id)
        state = await app.journal.state(operation_id)
        told = words.shown(state, app.domains.renderer(state.operation_type)) if state.live else ""
        return *await whole_timed_document(app, operation_id), events, told

    found, took, events, told = reading(context, operation, read)
    text = words.field_words(found, took)
    if told:
        text += f"\n  {'shown':<10} {told}"
    for child in found.get("children", []):
        text += "\n  " + words.status_words(child) + "  " + safe(child["operation_id"])
    if full or timeline:
        lines = "\n".join(words.event_words(event) for event in events)
        context.emit({"operation": found, "events": [event.document() for event in events]}, f"{text}\n\n{lines}")
    else:
        context.emit(found, text)
    return None
