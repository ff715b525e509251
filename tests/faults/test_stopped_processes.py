"""A process that was stopped where others wait for it is named, and its work is taken over only when asked for."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from datetime import timedelta

import pytest

from ktrdr_ops.core.clock import utc_now
from ktrdr_ops.core.errors import JournalBusy, KeyIsLive
from ktrdr_ops.core.events import Completed
from ktrdr_ops.core.journal.decisions import Resume, Say, draft
from ktrdr_ops.core.journal.journal import open_journal
from tests.core.journal.conftest import started

STOPPED = textwrap.dedent("""
    import asyncio, os, signal, sys
    from ktrdr_ops.core.journal.writer import Writer
    from ktrdr_ops.core.journal.journal import open_journal
    from tests.core.journal.conftest import started
    where = sys.argv[2]
    def stop(name):
        if where == name:
            print("stopped", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
    commit = Writer._commit
    def stopping(self):
        if self.stops:
            stop("in the transaction")
        commit(self)
    Writer._commit = stopping
    Writer.stops = False
    async def main():
        journal = open_journal(sys.argv[1])
        if where == "at the gate":
            journal.lock.lock_gate()
            stop("at the gate")
        Writer.stops = True
        await started(journal, "work:stopped")
    asyncio.run(main())
""")


@pytest.mark.parametrize("where", ["at the gate", "in the transaction"])
async def test_a_stopped_process_is_named_instead_of_a_locked_database(tmp_path, where):
    path = tmp_path / "journal.db"
    journal = open_journal(path, gate_seconds=0.4)
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STOPPED, str(path), where, stdout=subprocess.PIPE
    )
    try:
        assert await other.stdout.readline() == b"stopped\n"
        with pytest.raises(JournalBusy, match=rf"process {other.pid} \(stopped\): .*python") as raised:
            await started(journal, "work:mine")
        assert f"kill -CONT {other.pid}" in str(raised.value.hint)
        assert (await journal.rows("SELECT count(*) FROM operations WHERE key = 'work:mine'"))[0] == (0,)
    finally:
        os.kill(other.pid, signal.SIGCONT)
        other.kill()
        await other.wait()
    await started(journal, "work:after")
    given_up = await journal.rows("SELECT count(*) FROM operations WHERE key = 'work:mine'")
    assert given_up[0] == (0,), "what its caller was refused is not started behind its back"
    await journal.aclose()


async def test_opening_names_who_holds_the_gate(tmp_path):
    path = tmp_path / "journal.db"
    open_journal(path).close()
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STOPPED, str(path), "at the gate", stdout=subprocess.PIPE
    )
    try:
        assert await other.stdout.readline() == b"stopped\n"
        with pytest.raises(JournalBusy, match=f"process {other.pid}"):
            await asyncio.to_thread(open_journal, path, gate_seconds=0.2)
    finally:
        other.kill()
        await other.wait()


async def test_a_silent_owner_is_stalled_and_is_stolen_from_only_when_asked(tmp_path):
    path = tmp_path / "journal.db"
    script = textwrap.dedent("""
        import asyncio, sys
        from ktrdr_ops.core.errors import OwnershipLost
        from ktrdr_ops.core.events import Completed
        from ktrdr_ops.core.journal.decisions import Say, draft
        from ktrdr_ops.core.journal.journal import open_journal
        from tests.core.journal.conftest import started
        async def main():
            journal = open_journal(sys.argv[1])
            claim = await started(journal)
            print(claim.operation_id, flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            try:
                await journal.append(Say((draft(claim.operation_id, claim.attempt, Completed(result="stale")),)))
                print("appended", flush=True)
            except OwnershipLost:
                print("refused", flush=True)
            await journal.aclose()
        asyncio.run(main())
    """)
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(path), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    operation_id = (await owner.stdout.readline()).decode().strip()
    os.kill(owner.pid, signal.SIGSTOP)
    later = utc_now() + timedelta(seconds=61)
    journal = open_journal(path, clock=lambda: later)
    state = await journal.state(operation_id)
    assert (journal.status(state), journal.stalled(state)) == ("running", True)
    with pytest.raises(KeyIsLive, match=f"process {owner.pid}"):
        await journal.append(Resume(operation_id, journal.owner()))
    stolen = await journal.append(Resume(operation_id, journal.owner(), steal=True))
    os.kill(owner.pid, signal.SIGCONT)
    owner.stdin.write(b"go on\n")
    assert await owner.stdout.readline() == b"refused\n"
    await owner.wait()
    await journal.append(Say((draft(operation_id, stolen.attempt, Completed(result="mine")),)))
    assert (await journal.state(operation_id)).result == "mine"
    await journal.aclose()
