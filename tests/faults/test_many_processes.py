"""Several processes write one journal: every event is there, in one gapless order, and nobody starves."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import time

import orjson
import pytest

from ktrdr_ops.core.journal.journal import open_journal
from tests.core.journal.test_journal import chain_problems

WRITER = textwrap.dedent("""
    import asyncio, sys, time
    import orjson
    from ktrdr_ops.core.events import Completed, StepCompleted
    from ktrdr_ops.core.journal.decisions import Say, draft
    from ktrdr_ops.core.journal.journal import open_journal
    from tests.core.journal.conftest import started
    async def main(path, name, count, at_once):
        journal = open_journal(path)
        claim = await started(journal, f"work:{name}")
        print("ready", flush=True)
        sys.stdin.readline()
        began = time.monotonic()
        for first in range(0, count - 3, at_once):
            await asyncio.gather(*(
                journal.append(Say((draft(claim.operation_id, 1, StepCompleted(name=str(number))),)))
                for number in range(first, min(first + at_once, count - 3))
            ))
        await journal.append(Say((draft(claim.operation_id, 1, Completed()),)))
        print(orjson.dumps({"seconds": time.monotonic() - began, "ended": time.monotonic()}).decode(), flush=True)
        sys.stdin.readline()
        await journal.aclose()
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
""")


async def run_writers(path, processes: int, events: int, at_once: int) -> list[dict]:
    """Start the writers together; what each one measured. ``events`` counts its two start events and its end."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(number), str(events), str(at_once)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    measured = []
    try:
        for writer in writers:
            assert await asyncio.to_thread(writer.stdout.readline) == "ready\n", writer.stderr.read()
        for writer in writers:
            writer.stdin.write("go\n")
            writer.stdin.flush()
        for writer in writers:
            line = await asyncio.to_thread(writer.stdout.readline)
            assert line, writer.stderr.read()
            measured.append(orjson.loads(line))
    finally:
        for writer in writers:
            _, errors = writer.communicate("end\n", timeout=60)
            assert "locked" not in errors, errors
            assert writer.returncode == 0, errors
    return measured


async def hold_against(path, processes: int, events: int, measured: list[dict]) -> None:
    journal = open_journal(path)
    try:
        head = await journal.head()
        assert head.position == processes * events
        assert (await journal.rows("SELECT count(*), min(position), max(position) FROM events"))[0] == (
            processes * events,
            1,
            processes * events,
        )
        assert await chain_problems(journal) == []
        seconds = [one["seconds"] for one in measured]
        rates = [(events - 2) / one for one in seconds]
        mean = sum(rates) / len(rates)
        each = [round(rate) for rate in rates]
        print(f"\n{processes} processes, {events} events each: {each} events/s, mean {mean:.0f}")
        assert min(rates) > mean / 2
    finally:
        await journal.aclose()


async def test_three_processes_append_at_once(tmp_path):
    measured = await run_writers(tmp_path / "journal.db", 3, 300, 1)
    await hold_against(tmp_path / "journal.db", 3, 300, measured)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 50])
async def test_eight_processes_append_five_thousand_events_each(tmp_path, at_once):
    began = time.monotonic()
    measured = await run_writers(tmp_path / "journal.db", 8, 5000, at_once)
    print(f"\n{at_once} at once: {time.monotonic() - began:.1f} s in all")
    await hold_against(tmp_path / "journal.db", 8, 5000, measured)
