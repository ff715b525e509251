"""What commands read of an open application: operations as documents, by what people call them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ktrdr_ops.core.clock import micros
from ktrdr_ops.core.errors import OperationNotFound
from ktrdr_ops.core.journal import history
from ktrdr_ops.core.journal.journal import JournalMissing
from ktrdr_ops.core.state import document
from ktrdr_ops.interfaces.cli.screen import safe

if TYPE_CHECKING:
    from ktrdr_ops.app import AsyncApp
    from ktrdr_ops.core.events import Json
    from ktrdr_ops.core.state import OperationState
    from ktrdr_ops.interfaces.cli.frame import Context

T = TypeVar("T")

Reference = Annotated[str, typer.Argument(metavar="ID", help="An id, its end, any unique beginning, @last, @failed.")]


async def timed_document(app: AsyncApp, state: OperationState) -> tuple[dict[str, Json], float | None]:
    """Its document, the status settled, and for how many seconds its attempts worked; None before the first."""
    status, stalled = app.journal.status(state), app.journal.stalled(state)
    state, worked = await history.as_lived(app.journal, state, status, micros(app.journal.clock()))
    return document(state, status, stalled=stalled), worked


async def operation_document(app: AsyncApp, state: OperationState) -> dict[str, Json]:
    """Its document, the status settled."""
    return (await timed_document(app, state))[0]


async def whole_document(app: AsyncApp, operation_id: str) -> dict[str, Json]:
    """Its document; a group's with ``children``."""
    return (await whole_timed_document(app, operation_id))[0]


async def whole_timed_document(app: AsyncApp, operation_id: str) -> tuple[dict[str, Json], float | None]:
    """The same, and for how many seconds its attempts worked."""
    state = await app.journal.state(operation_id)
    found, worked = await timed_document(app, state)
    if state.operation_type == "group":
        children = await history.children(app.journal, operation_id)
        found["children"] = [await operation_document(app, child) for child in children]
    return found, worked


def since_micros(context: Context, text: str | None) -> int | None:
    """A moment that was typed, in microseconds UTC; a local one is said in UTC. Raises InvalidValue."""
    if text is None:
        return None
    from ktrdr_ops.core.clock import utc_now
    from ktrdr_ops.interfaces.cli.times import moment

    meant, was_local = moment(text, utc_now())
    if was_local:
        context.say(f"{safe(text)} is {meant.isoformat(timespec='seconds')} (UTC)")
    return micros(meant)


def reading(context: Context, reference: str, read: Callable[[AsyncApp], Awaitable[T]]) -> T:
    """What ``read`` gives of an open application. Raises OperationNotFound where there is no journal."""
    try:
        return context.run(read, readonly=True)
    except JournalMissing as error:
        raise OperationNotFound(f"there is no operation {reference[:80]!r}: {error.message}", hint=error.hint) from None
