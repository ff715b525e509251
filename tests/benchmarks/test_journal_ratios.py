"""What the journal costs, as a ratio to raw sqlite3 with the same engine, filesystem and durability in the same run.

Each figure is the best of several rounds that alternate with their floor. The limits are generous: a machine is noisy,
and these tests are there to print figures and to catch a cost that has doubled.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from array import array

import pytest

from ktrdr_ops.core.cancellation import CancellationSystem
from ktrdr_ops.core.events import StepCompleted
from ktrdr_ops.core.journal import engine
from ktrdr_ops.core.journal.decisions import Say, draft
from ktrdr_ops.core.journal.journal import open_journal
from ktrdr_ops.core.orchestration import AsyncOrchestrationFramework
from ktrdr_ops.core.progress import GenericProgressManager
from tests.core.conftest import operation
from tests.core.journal.conftest import started

pytestmark = pytest.mark.benchmark

UPDATES = 100_000
INSERT = "INSERT INTO rows (operation, payload) VALUES (?, ?)"


def raw(path):
    connection = engine.connect(path)
    connection.execute("CREATE TABLE IF NOT EXISTS rows (position INTEGER PRIMARY KEY, operation TEXT, payload BLOB)")
    return connection


def raw_commits(connection, count: int) -> float:
    began = time.perf_counter()
    for number in range(count):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(INSERT, ("work_a", b'{"name":"%d","value":null}' % number))
        connection.execute("COMMIT")
    return (time.perf_counter() - began) / count


def raw_batches(connection, count: int, batch: int = 1000) -> float:
    began = time.perf_counter()
    for _ in range(0, count, batch):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(INSERT, [("work_a", b"x" * 120)] * batch)
        connection.execute("COMMIT")
    return (time.perf_counter() - began) / count


async def test_one_durable_append_against_one_raw_commit(tmp_path):
    journal = open_journal(tmp_path / "journal.db")
    floor = raw(tmp_path / "raw.db")
    claim = await started(journal)
    ours, theirs = [], []
    for turn in range(5):
        theirs.append(raw_commits(floor, 200))
        began = time.perf_counter()
        for number in range(200):
            await journal.append(Say((draft(claim.operation_id, 1, StepCompleted(name=f"{turn}.{number}")),)))
        ours.append((time.perf_counter() - began) / 200)
    floor.close()
    await journal.aclose()
    ratio = min(ours) / min(theirs)
    print(f"\nsingle append {min(ours) * 1e6:.0f} µs, raw commit {min(theirs) * 1e6:.0f} µs: {ratio:.2f} x")
    assert ratio < 6


async def test_a_hundred_thousand_updates_of_one_operation(tmp_path):
    journal = open_journal(tmp_path / "journal.db")
    framework = AsyncOrchestrationFramework(GenericProgressManager(), CancellationSystem(), journal=journal)
    took = array("q", bytes(8 * UPDATES))

    async def work(operation, progress):
        for number in range(UPDATES):
            began = time.perf_counter_ns()
            progress.update_progress(
                1, "fetching", number, {"bars": number, "rate": 0.25}, total_items=UPDATES, step_range=(0, 90)
            )
            took[number] = time.perf_counter_ns() - began

    began = time.perf_counter()
    await framework.execute_operation(operation(), work)
    ours = (time.perf_counter() - began) / UPDATES
    floor = raw(tmp_path / "raw.db")
    theirs = min(raw_batches(floor, UPDATES) for _ in range(3))
    floor.close()
    count, skipped = (
        await journal.rows(
            "SELECT count(*), max(json_extract(CAST(payload AS TEXT), '$.skipped')) FROM events"
            " WHERE type = 'progressed'"
        )
    )[0]
    await framework.aclose()
    await journal.aclose()
    median = statistics.median(took) / 1000
    print(f"\n{count} updates, {skipped} skipped; for the caller {median:.1f} µs at the median")
    print(f"durable end to end {ours * 1e6:.1f} µs each, raw batches {theirs * 1e6:.1f} µs: {ours / theirs:.1f} x")
    assert (count, skipped) == (UPDATES, 0)
    assert median <= 10


async def test_a_list_of_fifty_among_many_operations(tmp_path):
    from ktrdr_ops.core.events import Completed
    from ktrdr_ops.core.journal.history import Filter, list_operations

    journal = open_journal(tmp_path / "journal.db")
    for first in range(0, 5000, 500):
        claims = await asyncio.gather(*(started(journal, f"work:{number}") for number in range(first, first + 500)))
        await asyncio.gather(
            *(journal.append(Say((draft(claim.operation_id, 1, Completed(result=1)),))) for claim in claims)
        )
    took = []
    for _ in range(20):
        began = time.perf_counter()
        page = await list_operations(journal, Filter(status="completed"), limit=50)
        took.append(time.perf_counter() - began)
    await journal.aclose()
    print(f"\na page of 50 among {page.total}: {statistics.median(took) * 1000:.1f} ms")
    assert page.total == 5000
