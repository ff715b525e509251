"""A story that the demo tells: commands run as processes of their own, and claims that are checked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ktrdr_ops
from ktrdr_ops.core.errors import OperationFailed
from ktrdr_ops.interfaces.cli.frame import Context
from ktrdr_ops.interfaces.cli.screen import paint, safe

if TYPE_CHECKING:
    from ktrdr_ops.app import AsyncApp
    from ktrdr_ops.core.events import Event, Json

DEADLINE = 60.0


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement, and whether the journal bears it out."""

    text: str
    holds: bool

    def document(self) -> dict[str, Json]:
        """As --json prints it."""
        return {"claim": self.text, "holds": self.holds}


@dataclass(slots=True)
class Story:
    """What is told, what is claimed, and the documents of what was found."""

    context: Context
    folder: Path
    claims: list[Claim] = field(default_factory=list)
    found: dict[str, Json] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """One more line."""
        if not self.context.json:
            self.context.out.write(text)

    def chapter(self, text: str) -> None:
        """What comes now."""
        self.say(f"\n{paint(text, 'bold')}")

    def claim(self, text: str, holds: bool) -> None:
        """A statement that has been checked."""
        self.claims.append(Claim(text, holds))
        self.say(f"  {paint('✓', 'good') if holds else paint('✗ not so:', 'bad')} {safe(text)}")

    @asynccontextmanager
    async def process(self, *words: str, shown: bool = False) -> AsyncIterator[asyncio.subprocess.Process]:
        """A command as a process of its own, as a person would type it. It does not outlive the block."""
        self.say(f"  $ ktrdr-ops --sandbox {shlex.join(words)}")
        own = {name: value for name, value in os.environ.items() if not name.startswith("KTRDR_OPS_")}
        own |= {"KTRDR_OPS_JOURNAL": str(self.folder / "journal.db"), "KTRDR_OPS_SANDBOX": "true"}
        own["XDG_CONFIG_HOME"] = str(self.folder)
        package = str(Path(ktrdr_ops.__file__).parents[1])
        own["PYTHONPATH"] = os.pathsep.join(filter(None, [package, own.get("PYTHONPATH")]))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "ktrdr_ops", "--sandbox", *words),
            cwd=self.folder,
            env=own,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=None if shown and self.context.live else asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def run(self, *words: str, shown: bool = False) -> str:
        """Its stdout. Raises OperationFailed with what it said when it did not succeed."""
        async with self.process(*words, shown=shown) as process, asyncio.timeout(DEADLINE):
            out, err = await process.communicate()
        if process.returncode:
            said = (err or out).decode(errors="replace").strip()
            raise OperationFailed(f"ktrdr-ops {' '.join(words)} ended with exit code {process.returncode}: {said}")
        return out.decode(errors="replace")

    def quote(self, text: str) -> None:
        """What a command printed."""
        self.say("\n".join(f"    {line}" for line in text.rstrip().splitlines()))


async def kill_in_time(
    app: AsyncApp, process: asyncio.subprocess.Process, after: int, is_piece: Callable[[Event], bool], count: int
) -> list[Event]:
    """Watch the journal from this process, and kill the other one when it has so many pieces. Gives their events."""

    async def watch() -> list[Event]:
        seen: list[Event] = []
        tail: Any = app.journal.tail(after=after)
        async with aclosing(tail) as events:
            async for event in events:
                seen += [event] if is_piece(event) else []
                if len(seen) == count:
                    process.kill()
                    return seen
        return seen

    watching = asyncio.ensure_future(watch())
    communicating = asyncio.ensure_future(process.communicate())
    async with asyncio.timeout(DEADLINE):
        await asyncio.wait({watching, communicating}, return_when=asyncio.FIRST_COMPLETED)
        if not watching.done():
            watching.cancel()
            _, err = await communicating
            raise OperationFailed(
                f"it ended before it could be killed: {(err or b'').decode(errors='replace')[-2000:]}"
            )
        await communicating
    return watching.result()
