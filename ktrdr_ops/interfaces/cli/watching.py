"""Watching: operations as they go, whoever runs them. Ctrl+C only detaches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import orjson
import typer

from ktrdr_ops.core.errors import JournalRefused, KtrdrOpsError, OperationNotFound
from ktrdr_ops.core.journal import history
from ktrdr_ops.core.journal.journal import JournalMissing
from ktrdr_ops.interfaces.cli import operating, words
from ktrdr_ops.interfaces.cli.documents import whole_document
from ktrdr_ops.interfaces.cli.frame import LOOK, Context, command
from ktrdr_ops.interfaces.cli.live import LOOK_SECONDS, Viewer
from ktrdr_ops.interfaces.cli.screen import safe

if TYPE_CHECKING:
    from ktrdr_ops.app import AsyncApp
    from ktrdr_ops.core.events import Event, Json

T = TypeVar("T")

_SETTLE_SECONDS = 1.0
_PAGE = 500


def register(cli: typer.Typer) -> None:
    """Add ``watch``."""
    command(cli, "watch", help="Operations as they go; Ctrl+C only detaches", panel=LOOK)(watch)


def watch(
    context: Context,
    operations: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Default: whatever runs.")] = None,
) -> int:
    """Show operations until those that were named have ended; gives the exit code of the worst."""

    async def attending(app: AsyncApp) -> int:
        ids = [await history.find(app.journal, one) for one in operations or ()]
        if not ids and not await history.live(app.journal):
            context.say("nothing runs; what starts is shown (Ctrl+C ends this)")
        if context.json:
            await _tell_ended(context, app, ids)
            return await stream(context, app, ids, after=(await app.journal.head()).position)
        return await attend(context, app, ids, tell=True)

    return detachable(context, operations or [], attending)


async def _tell_ended(context: Context, app: AsyncApp, ids: Sequence[str]) -> None:
    """The document of each that has ended already: no event of it is to come."""
    for operation_id in ids:
        if not await _goes_on(app, operation_id):
            context.emit_line(await whole_document(app, operation_id), "")


def follow_events(context: Context, reference: str, *, everything: bool) -> int:
    """All events of one operation, those to come too, until it has ended."""

    async def following(app: AsyncApp) -> int:
        operation_id = await history.find(app.journal, reference)
        return await stream(context, app, [operation_id], after=0, everything=everything, children=False)

    return detachable(context, [reference], following)


def detachable(
    context: Context, references: Sequence[str], work: Callable[[AsyncApp], Coroutine[Any, Any, int]]
) -> int:
    """Run it over the journal, opened for writing where that is possible: then dead owners are settled. Ctrl+C is 0."""
    try:
        if not context.settings.journal.exists():
            raise JournalMissing(f"there is no journal at {context.settings.journal}")
        try:
            return context.run(work)
        except JournalRefused:
            return context.run(work, readonly=True)
    except JournalMissing as error:
        if references:
            raise OperationNotFound(f"there is no operation {references[0][:80]!r}: {error.message}") from None
        context.say(f"{safe(error.message)}; nothing runs")
        return 0
    except KeyboardInterrupt:
        context.say("detached; what runs goes on")
        return 0


async def attend(context: Context, app: AsyncApp, ids: Sequence[str], *, tell: bool) -> int:
    """Show them until they have ended; all that is live where none is named, for as long as it is wanted."""
    viewer, ended, settling = Viewer(context, app, tells_ends=not ids), dict.fromkeys(ids, ""), _Settling(app)
    for operation_id in ids:
        viewer.add(operation_id)
    try:
        while not ids or not all(ended.values()):
            if not ids:
                for state in await history.live(app.journal):
                    if state.parent_id is None:
                        viewer.add(state.operation_id)
            for state in await viewer.look():
                status = app.journal.status(state)
                ended[state.operation_id] = "" if state.live and status != "interrupted" else status
            await settling.settle()
            await asyncio.sleep(LOOK_SECONDS)
        await viewer.close()
    finally:
        viewer.stop()
    documents = [await whole_document(app, operation_id) for operation_id in ids]
    if tell:
        for found in documents:
            await operating.tell(context, app, found)
    return max((exit_code(found) for found in documents), default=0)


async def until_ended(app: AsyncApp, ids: Sequence[str]) -> None:
    """Return when none of them is live."""
    settling = _Settling(app)
    while any([await _goes_on(app, operation_id) for operation_id in ids]):
        await settling.settle()
        await asyncio.sleep(LOOK_SECONDS)


async def _goes_on(app: AsyncApp, operation_id: str) -> bool:
    state = await app.journal.state(operation_id)
    return state.live and app.journal.status(state) != "interrupted"


class _Settling:
    """Gives dead owners their ``interrupted``, at most once a second."""

    def __init__(self, app: AsyncApp) -> None:
        self._app = app
        self._next = 0.0

    async def settle(self) -> None:
        """Where it is time, and the journal may be written, and there is one."""
        now = asyncio.get_running_loop().time()
        if self._app.journal.readonly or now < self._next:
            return
        self._next = now + _SETTLE_SECONDS
        if any(self._app.journal.status(state) == "interrupted" for state in await history.live(self._app.journal)):
            await self._app.journal.settle()


async def stream(
    context: Context,
    app: AsyncApp,
    ids: Sequence[str],
    *,
    after: int,
    everything: bool = True,
    children: bool = True,
) -> int:
    """Events behind a position as they come, one a line: of these operations and their children until these have
    ended; of all for ever where none is named."""
    wanted, settling = set(ids), _Settling(app)
    for operation_id in ids if children else ():
        wanted |= {child.operation_id for child in await history.children(app.journal, operation_id)}
    while True:
        goes_on = not ids or any([await _goes_on(app, operation_id) for operation_id in ids])
        page = await app.journal.read(None if children else ids[0], after=after, limit=_PAGE)
        for event in page:
            after = event.position
            if children and _is_child(event, wanted):
                wanted.add(event.operation_id)
            if (not ids or event.operation_id in wanted) and (everything or event.type != "progressed"):
                context.emit_line(event.document(), words.event_words(event))
        if len(page) == _PAGE:
            continue
        if not goes_on:
            if not app.journal.readonly and await app.journal.settle():
                continue  # a dead owner has its last event now
            documents = [await whole_document(app, operation_id) for operation_id in ids]
            return max((exit_code(found) for found in documents), default=0)
        await settling.settle()
        await asyncio.sleep(LOOK_SECONDS / 2)


def _is_child(event: Event, parents: set[str]) -> bool:
    return event.type == "submitted" and orjson.loads(event.payload).get("parent_id") in parents


def exit_code(found: dict[str, Json]) -> int:
    """What the command that ran it exits with."""
    status = found["status"]
    if status == "failed":
        return _codes().get((found["error"] or {}).get("code", ""), 1)
    return {"cancelled": 130, "interrupted": 9}.get(status, 0)


def _codes() -> dict[str, int]:
    """The exit codes of the generic errors, by their codes."""
    found, left = {}, [KtrdrOpsError]
    while left:
        error = left.pop()
        found[error.code] = error.exit_code
        left += error.__subclasses__()
    return found
