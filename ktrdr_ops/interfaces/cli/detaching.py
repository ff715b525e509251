"""--detach: the same command in a process of its own, which outlives the terminal."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING

from ktrdr_ops.core.journal.journal import JournalMissing
from ktrdr_ops.interfaces.cli import words
from ktrdr_ops.interfaces.cli.documents import whole_document
from ktrdr_ops.interfaces.cli.screen import safe
from ktrdr_ops.interfaces.cli.times import UNATTENDED_SECONDS

if TYPE_CHECKING:
    from ktrdr_ops.app import AsyncApp
    from ktrdr_ops.core.events import Json
    from ktrdr_ops.interfaces.cli.frame import Context

_LOOK_SECONDS = 0.03
_BEGUN = (
    "SELECT operation_id FROM events WHERE position > ? AND type = 'attempt_started'"
    " AND json_extract(CAST(payload AS TEXT), '$.pid') = ? ORDER BY position LIMIT 1"
)


def detached(context: Context) -> int:
    """Start it, wait until its first attempt is journaled, print its id. One that ends before that is told in its own
    words, with its own exit code."""
    after = _head(context)
    with TemporaryFile() as out, TemporaryFile() as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "ktrdr_ops", *_unattended(context.arguments)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        found = _begun(context, process, after)
        if found is None:
            return _told(process, out, err)
    context.emit(found, safe(found["operation_id"]))
    watch = context.command("watch", words.suffix(found["operation_id"]))
    context.say(f"it runs as process {process.pid}; watch it: {watch}")
    return 0


def _unattended(arguments: tuple[str, ...]) -> list[str]:
    """The same command in the foreground of its own process, with the patience of one at which nobody looks."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [one for one in arguments[:end] if one != "--detach"]
    if not any(one.partition("=")[0] == "--wait" for one in options):
        options += ["--wait", f"{UNATTENDED_SECONDS:.0f}s"]
    return options + list(arguments[end:])


def _head(context: Context) -> int:
    async def head(app: AsyncApp) -> int:
        return (await app.journal.head()).position

    try:
        return context.run(head, readonly=True)
    except JournalMissing:
        return 0


def _begun(context: Context, process: subprocess.Popen[bytes], after: int) -> dict[str, Json] | None:
    """The document of what the process has begun; None when it ended and had begun nothing."""

    async def look(app: AsyncApp) -> dict[str, Json] | None:
        while True:
            over = process.poll() is not None
            rows = await app.journal.rows(_BEGUN, (after, process.pid))
            if rows:
                return await whole_document(app, rows[0][0])
            if over:
                return None
            await asyncio.sleep(_LOOK_SECONDS)

    while True:
        over = process.poll() is not None
        try:
            return context.run(look, readonly=True)
        except JournalMissing:
            if over:
                return None
            time.sleep(_LOOK_SECONDS)


def _told(process: subprocess.Popen[bytes], out: IO[bytes], err: IO[bytes]) -> int:
    for said, stream in ((out, sys.stdout), (err, sys.stderr)):
        said.seek(0)
        stream.write(said.read().decode("utf-8", "replace"))
        stream.flush()
    return process.wait()
