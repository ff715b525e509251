"""Stopping and going on: cancel, resume, recover, note."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ktrdr_ops.core.errors import InvalidValue, KtrdrOpsError, OperationFinished, OperationNotFound
from ktrdr_ops.core.journal import history
from ktrdr_ops.core.journal.journal import JournalMissing
from ktrdr_ops.interfaces.cli import operating, times, watching, words
from ktrdr_ops.interfaces.cli.documents import Reference, operation_document, whole_document
from ktrdr_ops.interfaces.cli.frame import ACT, Context, command
from ktrdr_ops.interfaces.cli.screen import paint, safe
from ktrdr_ops.interfaces.cli.starting import Wait

if TYPE_CHECKING:
    from ktrdr_ops.app import AsyncApp
    from ktrdr_ops.core.events import Json
    from ktrdr_ops.core.orchestration import How
    from ktrdr_ops.core.recovery import Outcome, Plan
    from ktrdr_ops.core.state import OperationState

T = TypeVar("T")

_WAIT_SECONDS = 5.0
_SIDE_BY_SIDE = 4

References = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids, their ends, @last, @running.")]
Parent = Annotated[str | None, typer.Option("--parent", metavar="ID", help="All unfinished children of this one.")]


def register(cli: typer.Typer) -> None:
    """Add these commands."""
    command(cli, "cancel", help="Stop operations, wherever they run", panel=ACT)(cancel)
    command(cli, "resume", help="Another attempt, from where the last one came", panel=ACT)(resume)
    command(cli, "recover", help="Resume what was interrupted, report the rest", panel=ACT)(recover)
    command(cli, "note", help="Write something down about an operation", panel=ACT)(note)


def over_journal(context: Context, reference: str | None, work: Callable[[AsyncApp], Awaitable[T]]) -> T:
    """Run it over a journal that is there; none is made. Raises OperationNotFound for the reference, or
    JournalMissing without one."""
    path = context.settings.journal
    if not path.exists():
        missing = f"there is no journal at {path}"
        if reference is None:
            raise JournalMissing(missing, hint="Start an operation first, or name the journal with --journal.")
        raise OperationNotFound(
            f"there is no operation {reference[:80]!r}: {missing}", hint="Name the journal with --journal."
        )
    return context.run(work)


# cancel


def cancel(
    context: Context,
    operations: References = None,
    parent: Parent = None,
    type: Annotated[str | None, typer.Option("--type", metavar="T", help="All that run, of this type.")] = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is journaled.")] = "cancelled",
) -> int:
    """Ask them to stop, and wait until that is recorded."""
    _one_way(operations, parent, type)

    async def stop(app: AsyncApp) -> tuple[list[dict[str, Json]], list[KtrdrOpsError]]:
        ids = await _meant(app, operations, parent, type)
        refused: list[KtrdrOpsError] = []
        for operation_id in ids:
            try:
                await app.cancel(operation_id, reason, "user")
            except OperationFinished as error:
                if len(ids) == 1:
                    raise
                refused.append(error)
        await _stopped(app, ids)
        return [await whole_document(app, operation_id) for operation_id in ids], refused

    first = operations[0] if operations else parent
    found, refused = over_journal(context, first, stop)
    for error in refused:
        context.complain(f"{paint('!', 'warn')} {safe(error.message)}")
    _emit(context, found, [words.stopped(one) for one in found], alone=bool(operations and len(operations) == 1))
    return max((error.exit_code for error in refused), default=0)


def _one_way(operations: Sequence[str] | None, *others: str | None) -> None:
    ways = sum(1 for way in (operations, *others) if way)
    if ways != 1:
        raise InvalidValue(
            "name the operations in one way" if ways else "no operation is named",
            hint="Ids, or --parent ID, or (cancel) --type T.",
        )


async def _meant(
    app: AsyncApp, operations: Sequence[str] | None, parent: str | None, operation_type: str | None = None
) -> list[str]:
    """The ids that are meant. Raises OperationNotFound."""
    if parent is not None:
        parent_id = await history.find(app.journal, parent)
        children = await history.children(app.journal, parent_id)
        return [state.operation_id for state in children if _unfinished(app, state)]
    if operation_type is not None:
        live = await history.live(app.journal)
        return [state.operation_id for state in live if state.operation_type == operation_type]
    return list(dict.fromkeys([await history.find(app.journal, one) for one in operations or ()]))


def _unfinished(app: AsyncApp, state: OperationState) -> bool:
    return app.journal.status(state) not in ("completed", "cancelled", "failed")


async def _stopped(app: AsyncApp, ids: Sequence[str]) -> None:
    """Wait for a while until they are recorded as stopped."""
    try:
        await asyncio.wait_for(watching.until_ended(app, ids), _WAIT_SECONDS)
    except TimeoutError:
        return


def _emit(context: Context, found: list[dict[str, Json]], lines: list[str], *, alone: bool) -> None:
    """One that was named alone as its document, else as a list."""
    document = found[0] if alone and len(found) == 1 else {"operations": found, "total": len(found)}
    context.emit(document, "\n".join(lines) if lines else "nothing to do")


# resume


def resume(
    context: Context,
    operations: References = None,
    parent: Parent = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Afresh, with the same parameters.")] = False,
    steal: Annotated[bool, typer.Option("--steal", help="Also from an owner that is alive but hangs.")] = False,
    wait: Wait = None,
) -> int:
    """Begin another attempt and see it to its end."""
    _one_way(operations, parent)
    times.patience(wait, 0.0)

    async def go_on(app: AsyncApp) -> int:
        from ktrdr_ops.core.orchestration import How

        ids = await _resumable(app, operations, parent)
        if dry_run:
            return await _would_resume(context, app, ids, restart)
        how = How(fresh=restart, steal=steal, wait=times.patience(wait, await _usual_patience(app, ids)))
        ended = await operating.operate(context, app, _beginning(app, ids, how))
        if len(ids) == 1:
            return await operating.told(context, app, ended)
        return await _told_together(context, app, ids, ended)

    return over_journal(context, operations[0] if operations else parent, go_on)


async def _resumable(app: AsyncApp, operations: Sequence[str] | None, parent: str | None) -> list[str]:
    if parent is None:
        return await _meant(app, operations, None)
    children = await history.children(app.journal, await history.find(app.journal, parent))
    return [state.operation_id for state in children if app.journal.status(state) != "completed"]


async def _usual_patience(app: AsyncApp, ids: Sequence[str]) -> float:
    """How long a host is waited for where nothing is said: longer for several operations, at which nobody looks."""
    alone = len(ids) == 1 and (await app.journal.state(ids[0])).operation_type != "group"
    return times.FOREGROUND_SECONDS if alone else times.UNATTENDED_SECONDS


def _beginning(app: AsyncApp, ids: Sequence[str], how: How) -> operating.Begin:
    room = asyncio.Semaphore(_SIDE_BY_SIDE)

    async def one(operation_id: str, told: Any) -> Any:
        async with room:
            if not how.fresh:
                return await app.framework.resume(operation_id, steal=how.steal, wait=how.wait, progress_callback=told)
            asked = await history.submitted(app.journal, operation_id)
            return await app.framework.run(
                asked.operation_type,
                asked.parameters,
                parent_id=asked.parent_id,
                progress_callback=told,
                how=how,
            )

    async def begin(told: Any) -> list[Any]:
        if len(ids) == 1:
            return [await one(ids[0], told)]
        return await asyncio.gather(*(one(operation_id, told) for operation_id in ids), return_exceptions=True)

    return begin


async def _told_together(context: Context, app: AsyncApp, ids: Sequence[str], ended: operating.Ended) -> int:
    """Print what became of several; the exit code is the worst."""
    results = ended.value if isinstance(ended.value, list) else []
    code = max((_code(one, ended) for one in results), default=operating.exit_code(ended))
    shown = list(ids) if not set(ended.ids) - set(ids) else ended.ids
    found = [await whole_document(app, operation_id) for operation_id in shown]
    for one in results:
        if isinstance(one, KtrdrOpsError) and one.details.get("operation_id") not in ended.ids:
            context.complain(f"{paint('✗', 'bad')} {safe(one.message)}")
    lines = [await operating.outcome_text(context, app, one) for one in found]
    _emit(context, found, lines, alone=False)
    return operating.leave(app, ended, code)


def _code(result: Any, ended: operating.Ended) -> int:
    error = result if isinstance(result, BaseException) else None
    return operating.exit_code(operating.Ended(ended.ids, None, error, ended.told))


async def _would_resume(context: Context, app: AsyncApp, ids: Sequence[str], restart: bool) -> int:
    plans, lines = [], []
    for operation_id in ids:
        state = await app.journal.state(operation_id)
        found = await operation_document(app, state)
        plan = "restart" if restart else _plan(app, state, found["status"])
        kept = 0 if restart else state.steps
        plans.append({**found, "plan": plan, "steps_kept": kept})
        attempt = "a new operation" if restart else f"attempt {state.attempt + 1}, {kept:,} steps kept"
        lines.append(f"{safe(operation_id)}  {words.status_words(found)}  {plan}: {attempt}")
    context.emit({"operations": plans, "total": len(plans)}, "\n".join(lines) or "nothing to do")
    return 0


def _plan(app: AsyncApp, state: OperationState, status: str) -> str:
    if status == "completed":
        return "nothing: it is completed"
    if status not in ("failed", "cancelled", "interrupted"):
        return "nothing: it runs"
    if state.final:
        return "nothing: it cannot go on from there, only --restart"
    return "resume" if app.provider(state.operation_type).resumable else "restart"


# recover


def recover(
    context: Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    wait: Wait = None,
) -> int:
    """Resume what was interrupted and can go on; say the one command for each that was left."""
    seconds = times.patience(wait, times.UNATTENDED_SECONDS)
    try:
        return over_journal(context, None, lambda app: _recover(context, app, dry_run, seconds))
    except JournalMissing as error:
        context.say(safe(error.message))
        context.emit({"resumed": [], "left": []}, "nothing was interrupted")
        return 0


async def _recover(context: Context, app: AsyncApp, dry_run: bool, wait: float) -> int:
    from ktrdr_ops.core.recovery import plan
    from ktrdr_ops.core.recovery import recover as recovered

    if dry_run:
        plans = await plan(app.framework)
        would = [
            {"operation_id": one.state.operation_id, "status": "interrupted", "detail": one.why}
            for one in plans
            if one.resume
        ]
        _emit_recovered(context, would, [one for one in plans if not one.resume], "would be resumed")
        return 0
    ended = await operating.operate(
        context, app, lambda told: recovered(app.framework, wait=wait, progress_callback=told)
    )
    if ended.error is not None:
        raise ended.error
    outcomes: list[Outcome]
    outcomes, left = ended.value
    resumed = [{"operation_id": one.operation_id, "status": one.status, "detail": one.detail} for one in outcomes]
    _emit_recovered(context, resumed, left, "resumed")
    return operating.leave(app, ended, _recovered_code(ended, outcomes, left))


def _recovered_code(ended: operating.Ended, outcomes: Sequence[Outcome], left: Sequence[Plan]) -> int:
    """128 + the signal; 130 after Ctrl+C; 1 when something failed again; 9 when something stays interrupted."""
    if ended.told is not None:
        return 128 + ended.told
    states = {one.status for one in outcomes}
    if "cancelled" in states:
        return 130
    if "failed" in states:
        return 1
    return 9 if left or "interrupted" in states else 0


def _emit_recovered(context: Context, resumed: list[dict[str, Json]], left: Sequence[Plan], word: str) -> None:
    document = {
        "resumed": resumed,
        "left": [{"operation_id": one.state.operation_id, "why": one.why, **_way_on(one)} for one in left],
    }
    lines = [
        f"{word}: {safe(one['operation_id'])}  {one['status']}  {safe(one['detail'], 400)}".rstrip() for one in resumed
    ]
    for one in left:
        lines += [
            f"left: {safe(one.state.operation_id)}  {safe(one.why)}",
            f"  {'run: ' if _way_on(one)['command'] else ''}{safe(context.with_flags(one.command))}",
        ]
    context.emit(document, "\n".join(lines) or "nothing was interrupted")


def _way_on(plan: Plan) -> dict[str, Json]:
    """The command to run; where there is none, what to do in words."""
    is_command = plan.command.startswith("ktrdr-ops ")
    return {"command": plan.command, "hint": None} if is_command else {"command": None, "hint": plan.command}


# note


def note(
    context: Context,
    operation: Reference,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to write down.")],
) -> None:
    """Write something down; it is an event like any other."""

    async def write(app: AsyncApp) -> dict[str, Json]:
        operation_id = await history.find(app.journal, operation)
        position = await app.note(operation_id, text, author())
        return {"operation_id": operation_id, "position": position, "text": text}

    written = over_journal(context, operation, write)
    context.emit(written, f"noted at position {written['position']:,}: {safe(written['operation_id'])}")


def author() -> str:
    """Who is typing; empty where the system does not say."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
