"""Files that changed at rest: a flipped bit, a cut end, a log that is gone, an old copy in the journal's place.

A process is killed in the middle of its work, so part of its events are in the database and part in the write-ahead
log. Then its files are damaged, and looked at as everybody does: opened, and verified. Whatever changes or drops an
event at or below the anchored head must be found by one of the two. What a look finds besides (indexes, the table of
operations, unused bytes) is counted and asks for nothing.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import random
import secrets
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ktrdr_ops.core.errors import JournalError
from ktrdr_ops.core.journal import engine
from ktrdr_ops.core.journal.anchor import read_anchor
from ktrdr_ops.core.journal.journal import EVENT_COLUMNS, open_journal
from ktrdr_ops.core.journal.reader import connect_for_reading
from ktrdr_ops.core.journal.verify import verify_file

WORKER = textwrap.dedent("""
    import asyncio, os, sys, time
    from pathlib import Path
    from ktrdr_ops.core.events import Completed, Noted, Progressed, StepCompleted
    from ktrdr_ops.core.journal import engine
    from ktrdr_ops.core.journal.anchor import read_anchor
    from ktrdr_ops.core.journal.decisions import Note, Say, draft
    from ktrdr_ops.core.journal.journal import open_journal
    from tests.core.journal.conftest import started

    async def worked(journal, name):
        claim = await started(journal, f"work:{name}")
        for number in range(4):
            journal.say(claim.operation_id, 1, Progressed(step=1, percentage=number, message="so far", items=number))
            await journal.append(Say((draft(claim.operation_id, 1, StepCompleted(name=str(number), value="é" * 40)),)))
        await journal.append(Say((draft(claim.operation_id, 1, Completed(result={"of": name})),)))

    async def main(path):
        journal = open_journal(path)
        await worked(journal, "a")
        await worked(journal, "b")
        connection = engine.connect(path)
        connection.execute("PRAGMA wal_checkpoint(RESTART)")
        connection.close()
        await asyncio.sleep(0.2)
        print("half", flush=True)
        sys.stdin.readline()
        await worked(journal, "c")
        await journal.append(Note("", Noted(text="the last")))
        head, deadline = await journal.head(), time.monotonic() + 20
        while read_anchor(path).anchored.position < head.position and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), 9)

    asyncio.run(main(Path(sys.argv[1])))
""")
SUFFIXES = ("", "-wal", ".anchor")
Files = dict[str, bytes]


@dataclass(frozen=True)
class Base:
    """A journal at rest, an older state of it, and what must not change unnoticed: the rows up to the anchored head."""

    files: Files
    older: Files
    rows: list[tuple[object, ...]]


def files_of(path: Path) -> Files:
    return {suffix: Path(f"{path}{suffix}").read_bytes() for suffix in SUFFIXES}


@contextmanager
def folder() -> Iterator[Path]:
    memory = Path("/dev/shm")  # the files are many and small; nothing here is about a disk
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as made:
        yield Path(made)


@contextmanager
def silence() -> Iterator[None]:
    """Each damage found is a warning; thousands of them say nothing."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def base() -> Iterator[Base]:
    with folder() as made:
        path = made / "journal.db"
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert worker.stdout is not None
        assert worker.stdout.readline() == "half\n"
        older = files_of(path)
        worker.communicate("\n", timeout=30)
        files, rows = files_of(path), rows_of(path)
        assert rows is not None
        anchored = read_anchor(path).anchored
        assert anchored is not None
        assert rows[-1][0] == anchored.position == len(rows) > 30
        yield Base(files, older, rows)


def rows_of(path: Path) -> list[tuple[object, ...]] | None:
    """All events, column by column; None where they cannot be read."""
    try:
        connection = connect_for_reading(path)
        try:
            sql = f"SELECT {EVENT_COLUMNS} FROM events ORDER BY position"
            return [tuple(row) for row in connection.execute(sql).fetchall()]
        finally:
            connection.close()
    except JournalError:
        return None
    except engine.UNREADABLE:
        return None


@dataclass(frozen=True)
class Looked:
    """What came of one damage: which, whether events changed, and who found it (None: nobody)."""

    kind: str
    what: str
    changed: bool
    found: str | None


Damage = Callable[[random.Random, Base], tuple[str, Files]]


def flip(suffix: str) -> Damage:
    def flipped(chance: random.Random, base: Base) -> tuple[str, Files]:
        content = bytearray(base.files[suffix])
        place = chance.choice((0, 4096)) + chance.randrange(112) if suffix == ".anchor" else None
        where = chance.randrange(len(content)) if place is None else min(place, len(content) - 1)
        content[where] ^= 1 << (bit := chance.randrange(8))
        return f"bit {bit} of byte {where}", {**base.files, suffix: bytes(content)}

    return flipped


def cut(suffix: str) -> Damage:
    def cut_off(chance: random.Random, base: Base) -> tuple[str, Files]:
        length = chance.randrange(len(base.files[suffix]))
        return f"cut at {length}", {**base.files, suffix: base.files[suffix][:length]}

    return cut_off


def without_log(chance: random.Random, base: Base) -> tuple[str, Files]:
    return "", {suffix: content for suffix, content in base.files.items() if suffix != "-wal"}


def old_copy(chance: random.Random, base: Base) -> tuple[str, Files]:
    return "", {**base.older, ".anchor": base.files[".anchor"]}


def old_database(chance: random.Random, base: Base) -> tuple[str, Files]:
    return "", {"": base.older[""], ".anchor": base.files[".anchor"]}


def unanchored(damage: Damage) -> Damage:
    """The mutant: the chain alone."""

    def damaged(chance: random.Random, base: Base) -> tuple[str, Files]:
        what, files = damage(chance, base)
        return what, {suffix: content for suffix, content in files.items() if suffix != ".anchor"}

    return damaged


DAMAGES: dict[str, Damage] = {
    "flip in database": flip(""),
    "flip in log": flip("-wal"),
    "flip in anchor": flip(".anchor"),
    "database cut": cut(""),
    "log cut": cut("-wal"),
    "anchor cut": cut(".anchor"),
    "log deleted": without_log,
    "old copy": old_copy,
    "old database": old_database,
    "unanchored flip in log": unanchored(flip("-wal")),
    "unanchored log deleted": unanchored(without_log),
}


def look_at(kind: str, seed: str, base: Base, path: Path) -> Looked:
    """Damage the journal and look at it. The same path each time: its lock file's handle stays open for ever."""
    for suffix in (*SUFFIXES, "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    what, files = DAMAGES[kind](random.Random(f"{seed}/{kind}"), base)
    for suffix, content in files.items():
        Path(f"{path}{suffix}").write_bytes(content)
    try:
        found = finder(path)
    except Exception as error:  # a look may raise nothing but our own errors: which one it was is what is asked
        found = f"raised {error!r}"
    rows = rows_of(path)
    changed = rows is None or rows[: len(base.rows)] != base.rows
    return Looked(kind, f"{seed}: {what}", changed, found)


def finder(path: Path) -> str | None:
    try:
        journal = open_journal(path, readonly=True)
    except JournalError:
        return "open"
    damage = journal.damage
    journal.close()
    if damage is not None:
        return "open"
    try:
        report = asyncio.run(verify_file(path))
    except JournalError:
        return "verify"
    return None if report.ok else "verify"


def look_at_many(kinds: list[tuple[str, str]], base: Base) -> list[Looked]:
    with folder() as made, silence():
        return [look_at(kind, seed, base, made / "journal.db") for kind, seed in kinds]


def damaged(base: Base, counts: dict[str, int], processes: int = 1) -> tuple[int, list[Looked]]:
    """Look at so many damages of each kind; gives the seed and what came of each."""
    seed = int(os.environ.get("FAULT_SEED", secrets.randbelow(2**32)))
    print(f"\nFAULT_SEED={seed}")
    wanted = [(kind, f"{seed}/{number}") for kind, count in counts.items() for number in range(count)]
    if processes == 1:
        return seed, look_at_many(wanted, base)
    shares = [wanted[start :: processes * 8] for start in range(processes * 8)]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        return seed, [one for share in pool.map(look_at_many, shares, [base] * len(shares)) for one in share]


def told(row: str, seed: int, looked: list[Looked]) -> str:
    counts = Counter(one.kind for one in looked)
    lines = []
    for kind, count in counts.items():
        changed = [one for one in looked if one.kind == kind and one.changed]
        by = Counter(one.found for one in changed)
        lines.append(
            f"{kind} {count:,}: {len(changed):,} changed or dropped events"
            f" ({by['open']:,} found at open, {by['verify']:,} by verify, {by[None]:,} missed)"
        )
    return f"FAULTS {row}: seed {seed}; " + "; ".join(lines)


def everything_is_found(base: Base, flips: int, processes: int = 1) -> None:
    others = max(flips // 20, 3)
    counts = {
        "flip in database": flips * 45 // 100,
        "flip in log": flips * 45 // 100,
        "flip in anchor": flips // 10,
        "database cut": others,
        "log cut": others,
        "anchor cut": others,
        "log deleted": 1,
        "old copy": 1,
        "old database": 1,
    }
    seed, looked = damaged(base, counts, processes)
    print(told("bit flips", seed, looked))
    missed = [f"{one.kind}, {one.what}" for one in looked if one.changed and one.found is None]
    assert missed == []
    assert [one for one in looked if one.found is not None and one.found.startswith("raised")] == []
    changed = Counter(one.kind for one in looked if one.changed)
    assert changed["flip in anchor"] == changed["anchor cut"] == 0
    if flips > 1000:  # of fewer there may be none that matters
        assert min(changed[kind] for kind in counts if "anchor" not in kind) > 0
    assert changed["log deleted"] == changed["old copy"] == changed["old database"] == 1


def test_what_some_flips_and_cuts_change_is_found(base):
    everything_is_found(base, 100)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_many_flips_and_cuts_change_is_found(base):
    everything_is_found(base, 1500, processes=2)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_what_ten_thousand_flips_and_cuts_change_is_found(base):
    everything_is_found(base, 10_000, processes=2)


def the_chain_alone_misses(base: Base, flips: int, processes: int = 1) -> None:
    counts = {"unanchored flip in log": flips, "unanchored log deleted": 1}
    seed, looked = damaged(base, counts, processes)
    print(told("control, the chain without an anchor", seed, looked))
    missed = Counter(one.kind for one in looked if one.changed and one.found is None)
    assert missed["unanchored flip in log"] > flips // 10
    assert missed["unanchored log deleted"] == 1


def test_the_chain_without_an_anchor_misses_a_dropped_end(base):
    the_chain_alone_misses(base, 20)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_chain_without_an_anchor_misses_most_flips_in_the_log(base):
    the_chain_alone_misses(base, 400, processes=2)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_the_chain_without_an_anchor_misses_thousands_of_flips_in_the_log(base):
    the_chain_alone_misses(base, 4000, processes=2)


def test_an_undamaged_journal_is_found_whole(base):
    with folder() as made:
        path = made / "journal.db"
        for suffix, content in base.files.items():
            Path(f"{path}{suffix}").write_bytes(content)
        assert finder(path) is None
        assert rows_of(path) == base.rows


def test_looking_at_a_damaged_journal_does_not_damage_it_further(base):
    with folder() as made:
        path = made / "journal.db"
        content = bytearray(base.files["-wal"])
        content[4096 + 200] ^= 1
        damaged_files = {**base.files, "-wal": bytes(content)}
        for suffix, stored in damaged_files.items():
            Path(f"{path}{suffix}").write_bytes(stored)
        assert finder(path) == "open"
        with pytest.raises(JournalError, match="missing"):
            open_journal(path)
        assert files_of(path) == damaged_files
