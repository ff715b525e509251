"""``ktrdr-ops demo``: the main job in a minute, offline, in a sandbox of its own.

It runs the commands that a person would type, each as a process of its own, kills one of them, and tells what became of
it. Whatever it says happened, it reads from the journal: each statement is a claim that is checked, and a claim that
does not hold makes the demo fail.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ktrdr_ops.core.errors import JournalRefused, OperationFailed
from ktrdr_ops.interfaces.cli import demo_training
from ktrdr_ops.interfaces.cli.frame import START, Context, command
from ktrdr_ops.interfaces.cli.screen import paint, safe
from ktrdr_ops.interfaces.cli.story import Story, kill_in_time

if TYPE_CHECKING:
    from ktrdr_ops.app import AsyncApp
    from ktrdr_ops.core.events import Event
    from ktrdr_ops.core.state import OperationState

SEVERAL = ("data", "load", "AAPL", "MSFT", "IBM", "1d")
ALONE = ("data", "load", "GOOG", "1d")
UNDISTURBED = (*ALONE, "--refresh")
PIECE = "segment"
KILLED_AFTER = 5
LATENCY = 0.15
"""Seconds that each of the host's answers takes longer, so that there is something to kill."""


def register(cli: typer.Typer) -> None:
    """Add ``demo``."""
    command(cli, "demo", help="The main job in a minute: load, train, kill -9, go on, replay, verify.", panel=START)(
        _demo
    )


def _demo(
    context: Context,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the sandbox there to look around.")] = False,
) -> int:
    """Offline; nothing of the real store is touched."""
    began = time.monotonic()
    with _folder(keep) as folder:
        story = asyncio.run(_to_its_end(_told(context, folder)))
    seconds = time.monotonic() - began
    ok = all(claim.holds for claim in story.claims)
    if context.json:
        document = {"ok": ok, "seconds": round(seconds, 2), "folder": str(folder) if keep else None}
        context.emit({**document, "claims": [claim.document() for claim in story.claims], **story.found}, "")
    else:
        held = sum(claim.holds for claim in story.claims)
        sign = paint("✓", "good") if ok else paint("✗", "bad")
        context.out.write(f"\n{sign} {held} of {len(story.claims)} statements hold, in {seconds:.0f} s")
        if keep:
            context.out.write(f"  look around: ktrdr-ops --sandbox --journal {safe(folder / 'journal.db')} list")
    return 0 if ok else OperationFailed.exit_code


@contextmanager
def _folder(keep: bool) -> Iterator[Path]:
    """A folder for this sandbox: among the user's data, or among temporary files where a journal cannot lie there."""
    import platformdirs

    from ktrdr_ops.core.journal import engine

    home = Path(platformdirs.user_data_dir("ktrdr-ops", appauthor=False))
    try:
        engine.check_file(home / "demo.db", writing=True)
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = Path(tempfile.mkdtemp(prefix="demo-", dir=home))
    except (JournalRefused, OSError):
        folder = Path(tempfile.mkdtemp(prefix="ktrdr-ops-demo-"))
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


async def _to_its_end(telling: Coroutine[Any, Any, Story]) -> Story:
    """SIGTERM and SIGHUP end it as Ctrl+C does: nothing that it started is left."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(telling)
    told: list[signal.Signals] = []

    def go(number: signal.Signals) -> None:
        told.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, go, number)
    try:
        return await task
    except asyncio.CancelledError:
        if told:
            raise typer.Exit(128 + told[0]) from None
        raise


async def _told(context: Context, folder: Path) -> Story:
    from ktrdr_ops.app import open_app_async
    from ktrdr_ops.sandbox import prepared, stop_hosts
    from ktrdr_ops.settings import load_settings

    nothing = folder / "none.toml"
    flags = {"journal": folder / "journal.db", "sandbox": True}
    settings = load_settings(flags, environment={}, folder=folder, user_file=nothing)
    story = Story(context, folder)
    lacks = demo_training.missing()
    hosts = ("ib_host_url",) if lacks else ("ib_host_url", "training_host_url")
    starting = asyncio.ensure_future(
        asyncio.to_thread(prepared, settings, hosts, latency=LATENCY, pace=demo_training.PACE)
    )
    try:
        ready = await asyncio.shield(starting)
        await _began(story, ready.ib_host_url)
        async with open_app_async(settings=settings, readonly=True) as app:
            await _several(story, app)
            await _killed(story, app)
            await _finished(story, app)
            await _looked_back(story, app)
            if lacks:
                story.say(
                    f"\nNo training is shown: {', '.join(lacks)} not installed (pip install 'ktrdr-ops[training]')"
                )
            else:
                await demo_training.trained(story, app, ready.training_host_url)
            story.chapter("Is the journal whole?")
            await _verified(story, app)
    finally:
        await asyncio.wait({starting})
        await asyncio.to_thread(stop_hosts, settings)
    return story


async def _began(story: Story, url: str) -> None:
    """The first command, which makes the journal."""
    story.say(f"A sandbox of its own in {safe(story.folder)}; nothing else is touched.")
    story.say(f"A data host at {url} serves sample series over HTTP; each answer takes {LATENCY} s.")
    story.chapter("Three series, side by side, as one group")
    await story.run(*SEVERAL, shown=True)


async def _several(story: Story, app: AsyncApp) -> None:
    from ktrdr_ops.core.journal import history

    group = await app.journal.state(await history.find(app.journal, "@last"))
    while group.parent_id is not None:
        group = await app.journal.state(group.parent_id)
    children = await history.children(app.journal, group.operation_id)
    for child in children:
        story.say(f"    {_loaded(child)}")
    pieces = [event for child in children for event in await _pieces(app, child.operation_id)]
    ended = [child for child in children if child.status == "completed"]
    story.found["group"] = {"operation_id": group.operation_id, "children": [child.operation_id for child in children]}
    story.claim(
        f"{group.operation_id}: {len(ended)} of {len(children)} completed, {len(pieces)} {PIECE}s journaled one by one",
        group.status == "completed" and len(ended) == len(children) == len(SEVERAL) - 3,
    )


def _loaded(state: OperationState) -> str:
    result = state.result or {}
    took = ((state.finished_at or 0) - (state.attempt_started_at or 0)) / 1e6
    days = f"{str(result.get('first'))[:10]} → {str(result.get('last'))[:10]}"
    content = f"sha256 {str(result.get('sha256'))[:12]}…"
    return safe(f"{state.operation_id}  {result.get('rows'):,} rows  {days}  {content}  {took:.1f} s")


async def _pieces(app: AsyncApp, operation_id: str) -> list[Event]:
    """The events that say that a piece is stored for good."""
    from ktrdr_ops.core.journal import history

    return [event for event in await history.marks(app.journal, operation_id) if _is_piece(event)]


def _is_piece(event: Event) -> bool:
    return event.type == "step_completed" and str(getattr(event.fact, "name", "")).startswith(PIECE)


async def _killed(story: Story, app: AsyncApp) -> None:
    story.chapter(f"One series, killed with -9 when its {KILLED_AFTER}th {PIECE} is in the journal")
    after = (await app.journal.head()).position
    async with story.process(*ALONE) as process:
        seen = await kill_in_time(app, process, after, _is_piece, KILLED_AFTER)
    operation_id = seen[-1].operation_id
    before = await _pieces(app, operation_id)
    story.say(f"    kill -9 {process.pid} at position {seen[-1].position:,}")
    story.found["killed"] = {"operation_id": operation_id, "exit": process.returncode, f"{PIECE}s": len(before)}
    story.claim(
        f"the process is dead (signal {-(process.returncode or 0)}), {len(before)} {PIECE}s of {operation_id} are kept",
        process.returncode == -9 and len(before) >= KILLED_AFTER,
    )
    story.quote(await story.run("list"))
    state = await app.journal.state(operation_id)
    story.claim(
        f"its last word was {state.status!r}; its lock is free, so all see that it is {app.journal.status(state)!r}",
        app.journal.status(state) == "interrupted",
    )


async def _finished(story: Story, app: AsyncApp) -> None:
    story.chapter("The same command again")
    operation_id = story.found["killed"]["operation_id"]
    before = await _pieces(app, operation_id)
    await story.run(*ALONE, shown=True)
    state = await app.journal.state(operation_id)
    pieces = await _pieces(app, operation_id)
    names = [getattr(event.fact, "name", "") for event in pieces]
    began = await _first_piece(app, operation_id, state.attempt)
    story.say(f"    {_loaded(state)}")
    story.claim(
        f"attempt {state.attempt} of the same operation went on at {PIECE} {began} of {len(names)} and completed it",
        state.status == "completed" and state.attempt == 2 and began == len(before) + 1,
    )
    twice, rest = len(names) - len(set(names)), len(pieces) - len(before)
    story.claim(
        f"attempt 1 fetched {len(before)} {PIECE}s, attempt 2 the other {rest}; {twice} were fetched twice",
        twice == 0 and {event.attempt for event in pieces[len(before) :]} == {state.attempt},
    )
    story.found["load"] = {"operation_id": operation_id, "attempt": state.attempt, "result": state.result}


async def _first_piece(app: AsyncApp, operation_id: str, attempt: int) -> int | None:
    """The number of the piece that an attempt asked for first, as its progress said."""
    async for event in app.journal.read_all(operation_id):
        context = getattr(event.fact, "context", None) if event.attempt == attempt else None
        if context and PIECE in context:
            return int(context[PIECE])
    return None


async def _looked_back(story: Story, app: AsyncApp) -> None:
    from ktrdr_ops.core.journal import history
    from ktrdr_ops.core.state import fold_all

    operation_id = story.found["load"]["operation_id"]
    story.chapter("Is it the same as if nothing had happened?")
    await story.run(*UNDISTURBED, shown=True)
    undisturbed = await app.journal.state(await history.find(app.journal, "@last"))
    story.say(f"    {_loaded(undisturbed)}")
    hashes = {(story.found["load"]["result"] or {}).get("sha256"), (undisturbed.result or {}).get("sha256")}
    story.claim("an undisturbed load of everything has the same sha256", len(hashes) == 1 and None not in hashes)

    story.chapter("What was shown then")
    suffix = operation_id.rpartition("_")[2]
    story.quote(await story.run("replay", suffix, "--at", "50%"))
    events = [event async for event in app.journal.read_all(operation_id)]
    story.claim(
        f"its {len(events)} events, folded again, give the state that the journal shows",
        fold_all(events) == await app.journal.state(operation_id),
    )


async def _verified(story: Story, app: AsyncApp) -> None:
    from ktrdr_ops.core.journal.verify import verify

    story.quote(await story.run("journal", "verify"))
    report = await verify(app.journal, objects=app.objects)
    story.found["verify"] = report.document()
    story.claim(
        f"{report.events:,} events of {report.operations:,} operations: no position is missing, every hash holds",
        report.ok,
    )
