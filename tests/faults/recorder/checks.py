"""Every state that a disk may have after a power cut is opened as a journal and held against what was acknowledged."""

from __future__ import annotations

import logging
import multiprocessing
import random
import shutil
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ktrdr_ops.core.artifacts import ObjectStore
from ktrdr_ops.core.errors import KtrdrOpsError
from ktrdr_ops.core.events import Noted
from ktrdr_ops.core.journal import engine
from ktrdr_ops.core.journal.decisions import Note
from ktrdr_ops.core.journal.integrity import Problem
from ktrdr_ops.core.journal.journal import open_journal
from ktrdr_ops.core.journal.verify import _Check
from tests.faults.disk_states import Disk, Mode, Record, State, build, digest, records
from tests.faults.recorder.runs import DATABASE

MEMORY = Path("/dev/shm")


@dataclass
class Found:
    """What was found in the states of one recording."""

    states: int = 0
    cuts: int = 0
    acknowledged: int = 0
    by_mode: Counter[str] = field(default_factory=Counter)
    seen: set[bytes] = field(default_factory=set)
    corrupt: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def add(self, other: Found) -> None:
        """Take another's in. Equal states of two parts of a recording are one."""
        self.states += len(other.seen - self.seen)
        self.seen |= other.seen
        self.cuts += other.cuts
        self.acknowledged = max(self.acknowledged, other.acknowledged)
        self.by_mode += other.by_mode
        self.corrupt += other.corrupt
        self.lost += other.lost

    @property
    def problems(self) -> list[str]:
        """All that is wrong."""
        return self.corrupt + self.lost


@dataclass(frozen=True)
class Plan:
    """Which states of a recording are looked at: after every ``every``-th change, least, most and so many torn ones."""

    seed: int
    every: int = 1
    torn: int = 1
    names_by_any_sync: bool = False
    after_failure: bool = False


def check_log(log: Path, plan: Plan, *, processes: int = 1) -> Found:
    """Look at the states of a recording, in so many processes."""
    if processes == 1:
        return _check_part(log, plan, 0, 1)
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        parts = [pool.submit(_check_part, log, plan, part, processes * 4) for part in range(processes * 4)]
        found = Found()
        for part in parts:
            found.add(part.result())
    return found


def _check_part(log: Path, plan: Plan, part: int, parts: int) -> Found:
    """Look at the states of one of so many parts of a recording, each part a row of neighbours."""
    logging.disable(logging.CRITICAL)
    everything = list(records(log.read_bytes()))
    first, last = len(everything) * part // parts, len(everything) * (part + 1) // parts
    folder = Path(tempfile.mkdtemp(prefix="ktrdr-ops-disk-", dir=MEMORY if MEMORY.is_dir() else None))
    try:
        return _Walk(folder, plan).over(everything[:last], first)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        logging.disable(logging.NOTSET)


class _Walk:
    """One way through a recording."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.found = Found()
        self._folder = folder
        self._plan = plan
        self._disk = Disk(names_by_any_sync=plan.names_by_any_sync)
        self._honoured: dict[bytes, int] = {}

    def over(self, everything: list[Record], first: int) -> Found:
        """Cut the power after each record from the first on."""
        random_ = random.Random(self._plan.seed)
        offset = random_.randrange(self._plan.every)
        for number, record in enumerate(everything):
            changed = self._disk.take(record)
            acknowledges = len(self._disk.acknowledged) > self.found.acknowledged
            self.found.acknowledged = len(self._disk.acknowledged)
            if number < first or not (changed or acknowledges):
                continue
            if self._plan.after_failure and not self._disk.failed_syncs:
                continue
            if number % self._every() == offset or acknowledges:
                self._cut(number)
        return self.found

    def _every(self) -> int:
        """Where only some states are looked at, it is fewer of those that are too young to have lost anything: in each
        of them the journal is made anew, which takes long."""
        young = self._plan.every > 1 and not self._disk.acknowledged
        return self._plan.every * (4 if young else 1)

    def _cut(self, number: int) -> None:
        self.found.cuts += 1
        self._look(number, "least", 0)
        self._look(number, "most", 0)
        for which in range(self._plan.torn):
            self._look(number, "torn", self._plan.seed * 1_000_003 + number * 101 + which)

    def _look(self, number: int, mode: Mode, seed: int) -> None:
        state = self._disk.state(mode, seed)
        same = digest(state)
        acknowledged = self._disk.acknowledged
        if self._honoured.get(same, -1) >= len(acknowledged):
            return
        if same not in self.found.seen:
            self.found.seen.add(same)
            self.found.states += 1
            self.found.by_mode[mode] += 1
        self._honoured[same] = len(acknowledged)
        build(state, self._folder)
        where = f"after record {number}, {mode} {seed}"
        corrupt, lost = check(self._folder, state, acknowledged)
        self.found.corrupt += [f"{where}: {what}" for what in corrupt]
        self.found.lost += [f"{where}: {what}" for what in lost]


def check(folder: Path, state: State, acknowledged: list[Any]) -> tuple[list[str], list[str]]:
    """(What is corrupt, which acknowledged events are lost) in a folder that was rebuilt."""
    path = folder / DATABASE
    try:
        journal = open_journal(path)
        try:
            journal.submit(Note("", Noted(text="after the power cut"))).result(20)
        finally:
            journal.close()
        problems, kept = _verified(path)
    except (KtrdrOpsError, engine.sqlite.Error) as error:
        return [f"it cannot be used: {error}"], []
    corrupt = [f"{problem.kind} {problem.position}: {problem.detail}" for problem in problems]
    lost = [f"position {position} is lost" for position, hashed in acknowledged if kept.get(position) != hashed]
    return corrupt, lost


def _verified(path: Path) -> tuple[tuple[Problem, ...], dict[int, str]]:
    """What ``journal verify`` finds, and the hash at each position. Its steps are taken here one after another: handing
    each to a thread, as it does for an event loop's sake, takes longer than the steps."""
    verification = _Check(path)
    try:
        verification.database()
        verification.anchor()
        verification.begin()
        while verification.walk_page():
            pass
        after: str | None = ""
        while after is not None:
            after = verification.compare_page(after)
        verification.look_for_missing_rows()
        verification.look_at_objects(ObjectStore(path.parent / "objects"), verification.objects())
        rows = verification._connection.execute("SELECT position, hash FROM events")
        return verification.report().problems, {position: bytes(hashed).hex() for position, hashed in rows}
    finally:
        verification.close()
