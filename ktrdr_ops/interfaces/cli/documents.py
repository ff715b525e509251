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
from ktrdr_ops.interfaces.cli import words
from ktrdr_ops.interfaces.cli.screen import safe

if TYPE_CHECKING:
    from ktrdr_ops.app import AsyncApp
    from ktrdr_ops.core.events import Json
    from ktrdr_ops.core.state import OperationState
    from ktrdr_ops.interfaces.cli.frame import Context

T = TypeVar("T")

Reference = Annotated[str, typer.Argument(metavar="ID", help="An id, its end, any unique beginning, @last, @failed.")]


def operation_document(app: AsyncApp, state: OperationState) -> dict[str, Json]:
    """Its document, the status settled."""
    return document(state, app.journal.status(state), stalled=app.journal.stalled(state))


async def whole_document(app: AsyncApp, operation_id: str) -> dict[str, Json]:
    """Its document; a group's with ``children``."""
    state = await app.journal.state(operation_id)
    found = operation_document(app, state)
    if state.operation_type == "group":
        children = await history.children(app.journal, operation_id)
        found["children"] = [operation_document(app, child) for child in children]
    return found


def attempt_seconds(app: AsyncApp, state: OperationState) -> float | None:
    """How long its last attempt took, or takes until now; None before the first."""
    return words.active_seconds(state, app.journal.status(state), micros(app.journal.clock()))


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
