"""The demo's second half: a training on what was loaded, its client killed, another one cancelled."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import urllib.request
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from ktrdr_ops.interfaces.cli.screen import safe
from ktrdr_ops.interfaces.cli.story import DEADLINE, Story, kill_in_time

if TYPE_CHECKING:
    from ktrdr_ops.app import AsyncApp
    from ktrdr_ops.core.events import Event
    from ktrdr_ops.core.state import OperationState

NEEDED = ("jax", "optax", "safetensors")
TRAIN = ("models", "train", "--symbols", "AAPL,MSFT,IBM,GOOG", "--timeframe", "1d", "--epochs", "16")
PATIENT = ("--set", "model.training.early_stopping.patience=16")
ANOTHER = (*TRAIN, *PATIENT, "--seed", "7")
PIECE = "epoch "
KILLED_AFTER = 4
PACE = 0.2
"""Seconds that each epoch takes at least, so that there is something to kill."""


def missing() -> list[str]:
    """Which packages the embedded training host lacks."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


async def trained(story: Story, app: AsyncApp, url: str) -> None:
    """A training whose client is killed, gone on with, and one that is cancelled from another process."""
    operation_id = await _killed(story, app, url)
    await _gone_on(story, app, url, operation_id)
    await _cancelled(story, app, url)


def _is_piece(event: Event) -> bool:
    return event.type == "step_completed" and str(getattr(event.fact, "name", "")).startswith(PIECE)


async def _pieces(app: AsyncApp, operation_id: str) -> list[Event]:
    from ktrdr_ops.core.journal import history

    return [event for event in await history.marks(app.journal, operation_id) if _is_piece(event)]


async def _sessions(url: str) -> list[dict[str, Any]]:
    """What the host says of its sessions, asked directly."""

    def ask() -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{url}/training/sessions", timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["sessions"]
            return found

    return await asyncio.to_thread(ask)


async def _killed(story: Story, app: AsyncApp, url: str) -> str:
    story.chapter(f"A training on the four series; its client is killed with -9 after epoch {KILLED_AFTER}")
    after = (await app.journal.head()).position
    async with story.process(*TRAIN, *PATIENT) as process:
        seen = await kill_in_time(app, process, after, _is_piece, KILLED_AFTER)
    operation_id = seen[-1].operation_id
    status = app.journal.status(await app.journal.state(operation_id))
    sessions = await _sessions(url)
    story.say(f"    kill -9 {process.pid}; the host says: {safe(sessions[0]['status'])}")
    story.claim(
        f"{operation_id} is {status}, {len(seen)} epochs are kept, and the host trains on",
        status == "interrupted" and [each["status"] for each in sessions] == ["running"],
    )
    return operation_id


async def _gone_on(story: Story, app: AsyncApp, url: str, operation_id: str) -> None:
    story.chapter("The same command again")
    before = await _pieces(app, operation_id)
    await story.run(*TRAIN, *PATIENT, shown=True)
    state = await app.journal.state(operation_id)
    result = state.result or {}
    pieces = await _pieces(app, operation_id)
    names = [str(getattr(event.fact, "name", "")) for event in pieces]
    story.say(f"    {safe(_told(state))}")
    story.claim(
        f"attempt {state.attempt} found the session and listened on: {len(await _sessions(url))} session on the host",
        state.status == "completed" and state.attempt == 2 and len(await _sessions(url)) == 1,
    )
    whole = [f"{PIECE}{number}" for number in range(1, result.get("epochs", 0) + 1)]
    story.claim(
        f"each of the {len(names)} epochs is in the journal once: {len(before)} by attempt 1, the others by attempt 2",
        names == whole and len(before) < len(names),
    )
    own = [one for one in result.get("data", []) if one["evidence"] == "own"]
    story.claim(
        f"the model has the sha256 {str(result.get('sha256'))[:12]}…; {len(own)} series are proven to be what it read",
        bool(result.get("sha256")) and len(own) == len(result.get("data", [])) == 4,
    )
    story.quote(await story.run("lineage", operation_id.rpartition("_")[2]))
    story.found["training"] = {"operation_id": operation_id, "attempt": state.attempt, "result": result}


def _told(state: OperationState) -> str:
    result = state.result or {}
    losses = ", ".join(
        f"{name.replace('_', ' ')} {value:.4f}"
        for name, value in {**result.get("metrics", {}), **result.get("test_metrics", {})}.items()
        if name in ("train_loss", "val_loss", "test_accuracy")
    )
    return f"{state.operation_id}  {result.get('epochs')} epochs, the best is {result.get('best_epoch')}  {losses}"


async def _cancelled(story: Story, app: AsyncApp, url: str) -> None:
    story.chapter("Another training, cancelled from another process")
    after = (await app.journal.head()).position
    async with story.process(*ANOTHER) as process:
        began = asyncio.ensure_future(_first(app, after))
        ended = asyncio.ensure_future(process.communicate())
        async with asyncio.timeout(DEADLINE):
            await asyncio.wait({began, ended}, return_when=asyncio.FIRST_COMPLETED)
            began.cancel() if ended.done() and not began.done() else None
            operation_id = (await began).operation_id
            await story.run("cancel", operation_id.rpartition("_")[2], "--reason", "seen enough")
            await ended
    state = await app.journal.state(operation_id)
    told = state.cancellation or {}
    status = {each["session_id"]: each["status"] for each in await _sessions(url)}
    running = [name for name, said in status.items() if said == "running"]
    story.found["cancelled"] = {"operation_id": operation_id, "exit": process.returncode, "cancellation": told}
    story.claim(
        f"{operation_id} is {state.status} in {(told.get('latency_ms') or 0) / 1000:.2f} s, "
        f"and the host has {len(running)} sessions that run",
        state.status == "cancelled" and told.get("confirmed") is True and not running and process.returncode == 130,
    )


async def _first(app: AsyncApp, after: int) -> Event:
    """The first epoch behind a position."""
    tail: Any = app.journal.tail(after=after)
    async with aclosing(tail) as events:
        while not _is_piece(event := cast("Event", await anext(events))):
            pass
    return event
