"""What a recorded process does: it works on a journal, and says what was acknowledged in the recorder's log itself.

Every function here runs in a child of the fork server, which was started with the recorder preloaded.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import os
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ktrdr_ops.core.artifacts import ObjectStore
from ktrdr_ops.core.errors import KtrdrOpsError
from ktrdr_ops.core.events import ArtifactPublished, Completed, Failed, Progressed, StepCompleted, Submitted
from ktrdr_ops.core.journal.decisions import Claim, Say, Start, draft
from ktrdr_ops.core.journal.journal import Journal, open_journal
from ktrdr_ops.core.journal.ownership import LockFile
from ktrdr_ops.core.journal.reader import connect_for_reading
from ktrdr_ops.core.journal.writer import Writer

DATABASE = "deep/state/journal.db"
"""Below the folder that is recorded: its folders' own names must be on the disk too."""
# Imported here, each would be imported again in every child.
LAZY = ("alembic.command", "sqlalchemy.dialects.sqlite", "logging.config", "mako.template", "psutil")


@dataclass(frozen=True)
class Run:
    """One process's part in a recording. ``events``: how many requests it makes, about; ``sessions``: how often it
    opens and closes the journal for them. ``fail``, ``times``: which sync fails first, and how many do (-1: all from
    then on). ``kill``: after how many records it is killed. ``leave``: it ends without closing the journal."""

    seed: int
    events: int
    key: str = "work:a"
    sessions: int = 1
    checkpoint_pages: int = 40
    synchronous: str = "FULL"
    fail: int = 0
    times: int = 0
    kill: int = 0
    leave: bool = False
    mutant: str = ""

    def arguments(self, folder: Path, log: Path) -> tuple[Any, ...]:
        """For the fork server."""
        return str(folder.resolve()), str(log), asdict(self)


def preload() -> None:
    """In the server, before it forks."""
    for name in LAZY:
        importlib.import_module(name)


def recorded(folder: str, log: str, options: dict[str, Any]) -> None:
    """A process that does as it is told by a ``Run``."""
    run = Run(**options)
    logging.disable(logging.CRITICAL)
    if run.mutant:
        MUTANTS[run.mutant]()
    recorder = ctypes.CDLL(None)
    recorder.record_arm(folder.encode(), log.encode(), *(ctypes.c_long(n) for n in (run.fail, run.times, run.kill)))
    acks = os.open(f"{folder}/acks", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    random_ = random.Random(run.seed)
    for session in range(run.sessions):
        try:
            worker = _Worker(Path(folder), acks, run, random_)
        except KtrdrOpsError:
            continue
        while worker.made < run.events * (session + 1) / run.sessions and worker.operation():
            pass
        if run.leave and session == run.sessions - 1:
            os._exit(0)
        worker.close()


class _Worker:
    made = 0

    def __init__(self, folder: Path, acks: int, run: Run, random_: random.Random) -> None:
        path = folder / DATABASE
        self._journal: Journal = open_journal(path)
        self._objects = ObjectStore(path.parent / "objects")
        self._acks = acks
        self._run = run
        self._random = random_
        writer = self._journal._writer
        assert writer is not None
        writer._connection.execute(f"PRAGMA wal_autocheckpoint={run.checkpoint_pages}")
        writer._connection.execute(f"PRAGMA synchronous={run.synchronous}")
        self._reading = connect_for_reading(path)

    def close(self) -> None:
        self._reading.close()
        self._journal.close()

    def operation(self) -> bool:
        """Run one operation of the key, from its claim to its end. False when this process can write no more."""
        try:
            self.made += 1
            submitted = Submitted(operation_type="work", key=self._run.key, total_steps=1, parameters={}, digest="d")
            claim: Claim = self._journal.submit(Start("work", submitted, self._journal.owner())).result(20)
            self._acknowledge(claim.position)
            for _ in range(self._random.randrange(1, 6)):
                self._some(claim)
            ends = (Completed(result="x" * 50), Failed(code="x", message="m"))
            self._say(claim, self._random.choice(ends))
        except (KtrdrOpsError, OSError):  # it was told so, and acknowledged nothing
            return not self._stopped()
        return True

    def _stopped(self) -> bool:
        writer = self._journal._writer
        return writer is None or writer._stopped is not None

    def _some(self, claim: Claim) -> None:
        what = self._random.random()
        if what < 0.2:
            content = self._random.randbytes(self._random.randrange(1, 3000))
            sha = self._objects.put(content)
            self._say(claim, ArtifactPublished(kind="k", key="a", object=sha, sha256=sha, size=len(content)))
        elif what < 0.4:
            self.made += 1
            shown = Progressed(step=1, percentage=1.0, message="m" * self._random.randrange(1500))
            self._journal.say(claim.operation_id, claim.attempt, shown)
            if self._journal.flush(20) and not self._stopped() and self._journal.backlog[1] is None:
                sql = "SELECT max(position) FROM events WHERE operation_id = ?"
                self._acknowledge(self._reading.execute(sql, (claim.operation_id,)).fetchone()[0])
        else:
            count = self._random.choice((1, 1, 2, 8))
            self._say(claim, *(StepCompleted(name=f"{self.made}.{step}") for step in range(count)))

    def _say(self, claim: Claim, *facts: Any) -> None:
        """One request a fact, all waiting together; each is marked when its future is resolved."""
        self.made += len(facts)
        said = [Say((draft(claim.operation_id, claim.attempt, fact),)) for fact in facts]
        futures = [self._journal.submit(one) for one in said]
        for future in futures:
            self._acknowledge(future.result(20))

    def _acknowledge(self, position: int) -> None:
        found = self._reading.execute("SELECT hash FROM events WHERE position = ?", (position,)).fetchone()
        hashed = None if found is None else bytes(found[0]).hex()
        os.write(self._acks, json.dumps([position, hashed]).encode() + b"\n")


def swallow() -> None:
    """Mutant: a COMMIT that raises is taken for one that did not."""

    def swallowed(self: Writer, batch: Any, answers: list[Any], rows: Any, unknown: Any) -> list[Any]:
        return answers

    Writer._settle_unknown = swallowed  # type: ignore[method-assign]


def look_up() -> None:
    """Mutant: when a COMMIT raises, its events are looked up, and acknowledged where they are there."""

    def looked_up(self: Writer, batch: Any, answers: list[Any], rows: list[Any], unknown: Any) -> list[Any]:
        self._connection.close()
        self._connection = self._reconnect()
        self._projection = type(self._projection)(self._connection, self._lock.alive)
        if all(self._is_there(row) for row in rows):
            return answers
        raise unknown

    Writer._settle_unknown = looked_up  # type: ignore[method-assign]


def trust() -> None:
    """Mutant: nobody minds that a sync has failed in another process."""
    LockFile.doubted = property(lambda self: False)  # type: ignore[assignment, method-assign]


MUTANTS = {"swallow": swallow, "look_up": look_up, "trust": trust}
preload()
