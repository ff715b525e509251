"""Makes the corpus's journal of this release's schema: ``python -m tests.journals.make``, once for each schema, ever.

It holds operations in every state, every type of event that an operation can have, facts of a release that does not
exist yet, and an operation whose process was killed. Beside it lies, as JSON, what every later release must read in it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ktrdr_ops.core.cancellation import CancellationSystem
from ktrdr_ops.core.errors import KtrdrOpsError, OperationCancelledException, OperationInterrupted
from ktrdr_ops.core.events import CancelRequested, JournalRecovered, Noted, Opaque, Progressed, RequestRetried
from ktrdr_ops.core.journal import maintenance, schema
from ktrdr_ops.core.journal.decisions import Draft, Note, Say, draft
from ktrdr_ops.core.journal.journal import Journal, open_journal
from ktrdr_ops.core.orchestration import AsyncOrchestrationFramework
from ktrdr_ops.core.progress import GenericProgressManager
from tests.faults.life_cycles import failing_work, interrupted_work, operation, start, work

CORPUS = Path(__file__).parent
SAID = (
    "operation_type",
    "key",
    "status",
    "attempt",
    "percentage",
    "message",
    "events",
    "steps",
    "artifacts",
    "retries",
    "result",
    "error",
    "cancellation",
    "checkpoint",
    "created_at",
    "finished_at",
)


async def _fill(path: Path) -> None:
    ticks = itertools.count()
    began = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
    journal = open_journal(path, clock=lambda: began + timedelta(milliseconds=250 * next(ticks)))
    made = AsyncOrchestrationFramework(GenericProgressManager(), CancellationSystem(), journal=journal)
    await made.execute_operation(operation("completed"), work)
    for begun, func, error in (
        (operation("failed"), failing_work, KtrdrOpsError),
        (operation("cancelled"), _cancelled_work, OperationCancelledException),
        (operation("resumed"), interrupted_work, OperationInterrupted),
        (operation("interrupted"), interrupted_work, OperationInterrupted),
    ):
        try:
            await made.execute_operation(begun, func)
        except error:
            continue
    await made.execute_operation(operation("resumed"), work)
    await _newer_facts(journal)
    await journal.append(Note("", Noted(text="of the whole journal", author="somebody")))
    await journal.append(Note("", JournalRecovered(detail="a COMMIT raised; its 2 events were kept")))
    claim = await start(journal, "killed")
    journal.say(claim.operation_id, 1, Progressed(step=1, percentage=12.5, message="began", context={"rows": 7}))
    await journal.append(Note(claim.operation_id, Noted(text="of one operation")))
    os.kill(os.getpid(), signal.SIGKILL)


async def _cancelled_work(operation: Any, progress: Any, token: Any, attempt: Any) -> None:
    progress.update_progress(1, "waiting", 1, total_items=9)
    asked = CancelRequested(requested_by="somebody", reason="enough")
    await attempt.journal.append(Say((draft(operation.operation_id, 1, asked),)))
    token.cancel("enough", "somebody")
    token.check_cancellation_point("work")


async def _newer_facts(journal: Journal) -> None:
    paused = await start(journal, "paused")
    await _newer(journal, paused.operation_id, Opaque("paused", "progress", 1, {"until": 5}))
    await _newer(journal, paused.operation_id, Opaque("saved", "checkpoint", 1, {"where": "there"}))
    await _newer(journal, paused.operation_id, Opaque("completed", "terminal", 99, {"outcome": [1]}))
    gone = await start(journal, "evaporated")
    retried = RequestRetried(service="s", method="GET", path="/x", attempt=1, reason="reset", wait_seconds=0.5)
    await journal.append(Say((draft(gone.operation_id, 1, retried),)))
    await _newer(journal, gone.operation_id, Opaque("evaporated", "terminal", 1, {"why": "heat"}))


async def _newer(journal: Journal, operation_id: str, fact: Opaque) -> None:
    said = Draft(operation_id, 1, fact, json.dumps(fact.data).encode())  # type: ignore[arg-type]  # as if it knew it
    await journal.append(Say((said,)))


async def _copy(path: Path, target: Path) -> None:
    journal = open_journal(path, readonly=True)
    report = await maintenance.backup(journal, target)
    assert report["ok"], report
    rows = await journal.rows("SELECT operation_id FROM operations ORDER BY first_position")
    states = {row[0]: await journal.state(row[0]) for row in rows}
    said = {
        operation_id: {name: getattr(state, name) for name in SAID} | {"status": journal.status(state)}
        for operation_id, state in states.items()
    }
    head = await journal.head()
    document = {"events": head.position, "head": head.hash, "operations": said}
    target.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    await journal.aclose()


def main() -> None:
    """Make the journal beside this file. One that is there is never made again: old releases made the old ones."""
    target = CORPUS / f"{schema.HEAD}.db"
    if target.exists():
        sys.exit(f"{target} is there already, and stays as it is")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.db"
        filled = subprocess.run([sys.executable, "-m", "tests.journals.make", str(path)], check=False)
        assert filled.returncode == -signal.SIGKILL
        asyncio.run(_copy(path, target))


if __name__ == "__main__":
    asyncio.run(_fill(Path(sys.argv[1]))) if len(sys.argv) > 1 else main()
