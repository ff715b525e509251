"""A cancel from another process while a request hangs: recorded within 1 s, the connection closed, no task left."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import textwrap

import pytest

from ktrdr_ops.core.cancellation import CancellationSystem
from ktrdr_ops.core.errors import OperationCancelledException
from ktrdr_ops.core.host_service import AsyncHostService
from ktrdr_ops.core.journal.journal import open_journal
from ktrdr_ops.core.orchestration import AsyncOrchestrationFramework
from ktrdr_ops.core.progress import GenericProgressManager
from tests import faulty_host as faulty
from tests.core.conftest import operation
from tests.faulty_host import FaultyHost

CANCELLER = textwrap.dedent("""
    import asyncio, sys
    from ktrdr_ops.core.journal.decisions import Cancel
    from ktrdr_ops.core.journal.journal import open_journal
    async def main():
        journal = open_journal(sys.argv[1])
        print("ready", flush=True)
        while operation_id := (await asyncio.to_thread(sys.stdin.readline)).strip():
            await journal.append(Cancel(operation_id, "another process", "enough", journal.owner()))
        await journal.aclose()
    asyncio.run(main())
""")


class Service(AsyncHostService):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url

    def get_service_name(self) -> str:
        return "hanging host"

    def get_base_url(self) -> str:
        return self.url


async def latencies(path, runs: int) -> list[float]:
    """Milliseconds from each request to cancel until the operation's last event, as the journal has them."""
    journal = open_journal(path)
    framework = AsyncOrchestrationFramework(GenericProgressManager(), CancellationSystem(), journal=journal)
    canceller = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CANCELLER, str(path), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    measured = []
    try:
        assert await canceller.stdout.readline() == b"ready\n"
        tasks = asyncio.all_tasks()
        async with FaultyHost(faulty.hang) as host:
            for run in range(runs):
                measured.append(await _one(framework, host, canceller, f"hanging_{run}"))
        assert {task for task in asyncio.all_tasks() - tasks if not task.done()} == set()
    finally:
        canceller.stdin.close()
        await canceller.wait()
        await framework.aclose()
        await journal.aclose()
    return measured


async def _one(framework, host, canceller, name: str) -> float:
    service = Service(host.url)

    async def work(operation, progress, token):
        await service.get("/x", token=token)

    asked = len(host.requests)
    running = asyncio.ensure_future(framework.execute_operation(operation(name), work))
    await host.until(lambda h: len(h.requests) > asked)
    operation_id = framework.tasks.running[0]
    canceller.stdin.write(f"{operation_id}\n".encode())
    with pytest.raises(OperationCancelledException):
        await running
    await host.until(lambda h: h.gone == h.connections)
    await service.aclose()
    state = await framework.journal.state(operation_id)
    assert (state.status, state.cancellation["requested_by"]) == ("cancelled", "another process")
    events = await framework.journal.read(operation_id)
    asked_at = next(event.at for event in events if event.type == "cancel_requested")
    assert state.cancellation["latency_ms"] == pytest.approx((events[-1].at - asked_at) / 1000, abs=50)
    took: float = (events[-1].at - asked_at) / 1000
    return took


async def test_a_hanging_request_is_cancelled_from_another_process(tmp_path):
    assert max(await latencies(tmp_path / "journal.db", 3)) < 1000


@pytest.mark.slow
async def test_fifty_hanging_requests_are_cancelled_from_another_process(tmp_path):
    measured = sorted(await latencies(tmp_path / "journal.db", 50))
    p99 = measured[-1]
    print(f"\n50 cancels from another process: p50 {statistics.median(measured):.1f} ms, p99 {p99:.1f} ms")
    assert p99 < 1000
