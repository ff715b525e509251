"""``ktrdr-ops journal``: what the file is, whether it is whole, where it ends, a copy of it, and a copy put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ktrdr_ops.interfaces.cli.frame import CARE, Context, command, group
from ktrdr_ops.interfaces.cli.screen import paint, safe
from ktrdr_ops.interfaces.cli.stopping import author

if TYPE_CHECKING:
    from ktrdr_ops.app import AsyncApp
    from ktrdr_ops.core.events import Json
    from ktrdr_ops.core.journal.verify import Report

BROKEN = 4
_SHOWN_PROBLEMS = 50


def register(cli: typer.Typer) -> None:
    """Add ``journal`` with its commands."""
    journal = group(cli, "journal", help="The journal's file: what it holds, whether it is whole.", panel=CARE)
    command(journal, "info", help="Where the journal is, how large, what it holds.")(_info)
    command(journal, "verify", help="Check every event, the table of operations, and all objects.")(_verify)
    command(journal, "head", help="Where the journal ends: the last position and its hash.")(_head)
    command(journal, "backup", help="Write a copy that is verified before it gets its name.")(_backup)
    command(journal, "restore", help="Put a copy in the journal's place; what was there is kept beside it.")(_restore)


def _info(context: Context) -> None:
    from ktrdr_ops.core.journal.maintenance import info

    said = context.run(lambda app: info(app.journal), readonly=True)
    context.emit(said, _info_text(said))


def _info_text(said: dict[str, Json]) -> str:
    counts = ", ".join(f"{count:,} {status}" for status, count in said["operations"].items() if count)
    pages = said["pages"]
    rows = {
        "made": said["created_at"],
        "events": f"{said['events']:,}",
        "operations": counts or "none yet",
        "head": _head_text(said["head"]),
        "anchor": _anchor_text(said["anchor"]),
        "size": f"{size_text(said['size'])}, write-ahead log {size_text(said['wal_size'])}",
        "pages": f"{pages['page_count']:,} of {size_text(pages['page_size'])}, {pages['freelist_count']:,} free",
        "journal id": said["journal_id"],
        "incarnation": said["incarnation"],
        "schema": said["schema"],
        "SQLite": f"{said['sqlite']['version']} ({said['sqlite']['module']})",
    }
    return "\n".join([safe(said["path"]), *(f"  {name:<12} {safe(value)}" for name, value in rows.items())])


def _anchor_text(anchor: dict[str, Json]) -> str:
    position = anchor["position"]
    return f"{anchor['state']}" + ("" if position is None else f" at position {position:,}")


def _head(context: Context) -> None:
    async def head(app: AsyncApp) -> dict[str, Json]:
        found = await app.journal.head()
        return {"incarnation": found.incarnation, "position": found.position, "hash": found.hash}

    found = context.run(head, readonly=True)
    context.emit(found, _head_text(found))


def _head_text(head: dict[str, Json]) -> str:
    return f"position {head['position']:,}  {head['hash']}" if head["position"] else "no event yet"


def _verify(context: Context) -> int:
    from ktrdr_ops.core.journal.verify import verify

    with _progress(context) as told:
        report = context.run(
            lambda app: verify(app.journal, objects=app.objects, on_progress=told),
            readonly=True,
        )
    context.emit(report.document(), _report_text(report))
    if not report.ok:
        context.say("  Nothing was changed. A good copy takes its place with: journal restore COPY")
    return 0 if report.ok else BROKEN


def _report_text(report: Report) -> str:
    walked = f"{counted(report.events, 'event')} of {counted(report.operations, 'operation')}"
    if report.ok:
        head = f", head {report.position:,} {report.hash[:16]}…" if report.events else ""
        return f"{paint('✓', 'good')} verified: {walked}{head}"
    lines = [f"{paint('✗', 'bad')} broken: {counted(len(report.problems), 'problem')} in {walked}"]
    for problem in report.problems[:_SHOWN_PROBLEMS]:
        where = "" if problem.position is None else f"position {problem.position:,}  "
        whose = f"{safe(problem.operation_id)}  " if problem.operation_id else ""
        lines.append(f"  {problem.kind:<10}  {where}{whose}{safe(problem.detail, 300)}")
    if len(report.problems) > _SHOWN_PROBLEMS:
        lines.append(f"  … and {len(report.problems) - _SHOWN_PROBLEMS:,} more: --json has them all")
    return "\n".join(lines)


def _backup(
    context: Context, target: Annotated[Path, typer.Argument(help="The copy's file; it must not exist.")]
) -> None:
    from ktrdr_ops.core.journal.maintenance import backup

    made = context.run(lambda app: backup(app.journal, target), readonly=True)
    walked = f"{counted(made['events'], 'event')} of {counted(made['operations'], 'operation')}"
    sign, path = paint("✓", "good"), safe(made["path"])
    context.emit(made, f"{sign} {path}: {walked}, {size_text(made['size'])}, verified")


def _restore(context: Context, copy: Annotated[Path, typer.Argument(help="A copy that journal backup made.")]) -> None:
    import asyncio

    from ktrdr_ops.core.journal.restore import restore

    done = asyncio.run(restore(context.settings.journal, copy, by=author()))
    head, missing = done["head"]["position"], done["missing"]
    lines = [f"{paint('✓', 'good')} {safe(done['path'])}: {counted(head - 1, 'event')} restored, verified"]
    if missing:
        lines.append(f"  {counted(missing, 'event')} that had been written after them: not in this copy")
    if done["kept"] is not None:
        lines.append(f"  What was there is kept: {safe(done['kept'])}")
    context.emit(done, "\n".join(lines))


@contextmanager
def _progress(context: Context) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal, gone when it is done; else nothing."""
    if not context.live:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=context.err.stream, no_color=not context.err.colors)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("Verifying events", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def counted(number: int, what: str) -> str:
    """``1 event``, ``2,000 events``."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def size_text(size: int) -> str:
    """1536 is ``1.5 KiB``."""
    amount, units = float(size), iter(("bytes", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while amount >= 1024 and unit != "TiB":
        amount, unit = amount / 1024, next(units)
    return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
