"""A domain as somebody else's package brings one: pieces of work whose pace and end a test chooses."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from pathlib import Path

from ktrdr_ops.core.artifacts import Publication
from ktrdr_ops.core.domain import Command, CommandContext, CommandResult, Domain, OperationProvider, Option
from ktrdr_ops.core.errors import (
    HostUnavailable,
    InvalidValue,
    OperationCancelledException,
    OperationFailed,
    OperationInterrupted,
)
from ktrdr_ops.core.orchestration import AsyncOperation
from ktrdr_ops.core.progress import ProgressRenderer, with_progress

_DEFAULTS = {
    "pieces": 5,
    "pause": 0.0,
    "until": None,
    "fail": None,
    "stuck": None,
    "rate": None,
    "publish": None,
    "use": None,
}
NAMES = {"good", "bad", "ugly", "slow", "one", "two", "three"}


def lefts(rate, piece):
    """What was left after each piece so far."""
    if rate is None:
        return {}
    return {"left": rate**piece, "toys": 1, "lefts": [rate**one for one in range(1, piece + 1)]}


def held(attempt, waits):
    """Says that it waits for the toy host, where it does."""
    return attempt.waiting("the toy host sleeps", 30) if waits else contextlib.nullcontext()


async def unconfirmed(token):
    """Until it is cancelled; and then the host still runs."""
    try:
        await token.sleep(60)
    except OperationCancelledException as told:
        raise OperationCancelledException("the toy host still runs", confirmed=False) from told


async def used(attempt, name):
    """The toy of that name as an input; one that nobody published was read all the same."""
    found = await attempt.catalogue.latest("toy", name)
    if found is None:
        return {"kind": "toy", "key": name, "sha256": None, "operation_id": None, "evidence": "unknown"}
    ours = {"sha256": found.sha256, "object": found.object, "operation_id": found.operation_id}
    return {"kind": "toy", "key": name, **ours, "evidence": "own"}


async def publish(attempt, name, path):
    """A toy in a file, in two versions."""
    for version in (b"draft of ", b"toy "):
        content = version + name.encode()
        object, sha256 = attempt.objects.put(content), hashlib.sha256(version).hexdigest()
        where = str(path.absolute())
        version_of = Publication(kind="toy", key=name, object=object, sha256=sha256, size=len(content), name=where)
        await attempt.publish(version_of)
    path.write_bytes(content)


class Words(ProgressRenderer):
    def render_progress_message(self, state):
        name = state.context.get("name")
        return with_progress(
            f"{state.message} ({name})" if name and name not in state.message else state.message, state
        )

    def render_step_detail(self, state):
        left = state.context.get("left")
        return state.message if left is None else f"{state.message} · {left:.0%} left"


class Work(OperationProvider):
    """Does ``pieces`` pieces, each a step, with a pause; waits at piece 3 while the file ``until`` is not there."""

    operation_type = "toy_work"

    def validate(self, raw):
        unknown = set(raw) - {"name", *_DEFAULTS}
        if unknown:
            raise InvalidValue(f"there is no parameter {sorted(unknown)[0]!r}", hint="See: ktrdr-ops toy work --help")
        if raw.get("name") not in NAMES:
            raise InvalidValue(f"nobody knows {raw.get('name')!r}", hint=f"Known: {', '.join(sorted(NAMES))}")
        return {**_DEFAULTS, **raw}

    def operation(self, parameters):
        return AsyncOperation(
            operation_id=f"toy_work_{parameters['name']}",
            operation_type="toy_work",
            total_steps=parameters["pieces"],
            context={"name": parameters["name"], "pieces": parameters["pieces"]},
            key=f"toy_work:{parameters['name']}",
            parameters=dict(parameters),
        )

    async def perform(self, operation, progress, token, attempt):
        from ktrdr_ops.core.host_service import Retry

        asked = operation.parameters
        done = 0
        if asked["use"]:
            await attempt.uses(*[await used(attempt, name) for name in asked["use"]])
        for piece in range(1, asked["pieces"] + 1):
            told = lefts(asked["rate"], piece)
            progress.update_progress(piece, f"Piece {piece}", piece, told, total_items=asked["pieces"])
            if asked["fail"] == f"host{piece}" and f"piece {piece}" not in attempt.steps:
                raise HostUnavailable("the toy host refused the connection", hint="Is it running?  ktrdr-ops doctor")
            if asked["fail"] == str(piece) and attempt.number == 1:
                raise OperationFailed(f"piece {piece} broke", hint="Mend it.")
            if asked["fail"] == f"final{piece}":
                raise OperationFailed("there is no such toy", hint="Buy one.", final=True)
            if asked["fail"] == f"lost{piece}":
                raise OperationInterrupted("outcome unknown, last seen piece 2 of 5", final=True)
            if asked["fail"] == "patience":
                raise OperationFailed(f"waits {attempt.patience:g} s")
            if asked["fail"] == f"bug{piece}":
                raise ZeroDivisionError("a defect\x1b[2J")
            if asked["stuck"] == "thread" and piece == 3:
                await asyncio.to_thread(time.sleep, 60)
            if asked["stuck"] == "retry" and piece == 3 and attempt.number == 1:
                attempt.retried(Retry("toy host", "GET", "/toy", 2, "the toy host hung up", 15.0))
            async with held(attempt, asked["stuck"] == "wait" and piece == 3):
                while piece == 3 and asked["until"] and not Path(asked["until"]).exists():
                    await token.sleep(0.02)
            if asked["stuck"] == "liar" and piece == 3:
                await unconfirmed(token)
            while asked["stuck"] == "deaf" and piece == 3:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
            if asked["pause"]:
                await token.sleep(asked["pause"])
            if f"piece {piece}" not in attempt.steps:
                done += 1
                await attempt.complete_step(f"piece {piece}", piece * piece)
        if asked["publish"]:
            await publish(attempt, asked["name"], Path(asked["publish"]))
        return {"name": asked["name"], "pieces": len(attempt.steps), "done_now": done}

    def renderer(self):
        return Words()

    def summarise(self, value):
        return value


async def look(context: CommandContext) -> CommandResult:
    name = context.values["name"]
    found = await context.app.journal.rows("SELECT count(*) FROM operations WHERE key = ?", (f"toy_work:{name}",))
    return CommandResult({"name": name, "operations": found[0][0]}, f"{name}: {found[0][0]}", 4 if name == "bad" else 0)


domain = Domain(
    name="toy",
    help="Pieces of work",
    operation_types=("toy_work",),
    providers=lambda context: {"toy_work": Work()},
    renderer=lambda operation_type: Words(),
    fields=("name",),
    commands=(
        Command(
            "work",
            "Do pieces of work",
            (
                Option("name", "What to work on", required=True, many=True, positional=True),
                Option("pieces", "How many", "int"),
                Option("pause", "Seconds between them", "float"),
                Option("until", "Wait at piece 3 for this file", "path"),
                Option("fail", "Where to fail"),
                Option("rate", "What each piece leaves of what was left", "float"),
                Option("publish", "Put a toy into this file", "path"),
                Option("use", "The names of toys to use", many=True),
                Option("stuck", "Do not stop at piece 3", choices=("thread", "deaf", "liar", "retry", "wait")),
            ),
            operation_type="toy_work",
            each="name",
        ),
        Command(
            "look",
            "How often it was worked on",
            (Option("name", "What", choices=("good", "bad"), required=True, positional=True),),
            run=look,
        ),
    ),
)
