"""After a restart: what was interrupted is resumed where it can be, and reported where it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ktrdr_ops.core.attempt import PATIENCE_SECONDS
from ktrdr_ops.core.errors import KeyIsLive, KtrdrOpsError, OwnershipLost
from ktrdr_ops.core.journal import history

if TYPE_CHECKING:
    from ktrdr_ops.core.orchestration import AsyncOrchestrationFramework
    from ktrdr_ops.core.progress import GenericProgressState
    from ktrdr_ops.core.state import OperationState

MAX_ATTEMPTS_WITHOUT_CHECKPOINT = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """What recovery will do with an operation: resume it, or leave it (``why``) and name the ``command`` to run."""

    state: OperationState
    resume: bool
    why: str
    command: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it: ``status`` is its status now, or ``taken`` when another process was faster."""

    operation_id: str
    status: str
    detail: str


async def plan(framework: AsyncOrchestrationFramework) -> list[Plan]:
    """What is interrupted and not superseded, oldest first. A child whose parent is interrupted too is its parent's."""
    states = await history.interrupted(framework.journal)
    parents = {state.operation_id for state in states}
    mine = [state for state in states if state.parent_id not in parents]
    return [await asyncio.to_thread(_planned, framework, state) for state in mine]


def _planned(framework: AsyncOrchestrationFramework, state: OperationState) -> Plan:
    command = f"ktrdr-ops resume {state.operation_id}"
    try:
        provider = framework.resolve(state.operation_type)
    except KtrdrOpsError as error:
        return Plan(state, False, error.message, error.hint or command)
    if state.final:
        return Plan(state, False, str((state.error or {}).get("message")), command + " --restart")
    if not provider.resumable:
        return Plan(state, False, f"{state.operation_type} cannot go on from where it was", command + " --restart")
    if state.attempts_without_checkpoint >= MAX_ATTEMPTS_WITHOUT_CHECKPOINT:
        why = f"{state.attempts_without_checkpoint} attempts came to no checkpoint"
        return Plan(state, False, why, command)
    return Plan(state, True, "goes on from its last checkpoint" if state.checkpoint else "starts again", command)


async def recover(
    framework: AsyncOrchestrationFramework,
    *,
    side_by_side: int = 4,
    wait: float = PATIENCE_SECONDS,
    progress_callback: Callable[[GenericProgressState], None] | None = None,
) -> tuple[list[Outcome], list[Plan]]:
    """Resume what can be; gives what became of each, and what was left alone. Each is resumed by one process only.
    ``wait``: seconds that each waits for a host that is absent or busy, each time."""
    plans = await plan(framework)
    room = asyncio.Semaphore(side_by_side)

    async def one(state: OperationState) -> Outcome:
        async with room:
            try:
                await framework.resume(
                    state.operation_id,
                    reason="recovered",
                    after=state.attempt,  # whatever became of it since, another process has resumed it
                    wait=wait,
                    progress_callback=progress_callback,
                )
            except (KeyIsLive, OwnershipLost) as error:
                return Outcome(state.operation_id, "taken", str(error))
            except KtrdrOpsError as error:
                status = framework.journal.status(await framework.journal.state(state.operation_id))
                return Outcome(state.operation_id, status, str(error))
            except Exception as error:  # one operation's own failure must not end the recovery of the others
                return Outcome(state.operation_id, "failed", f"{type(error).__name__}: {error}")
            return Outcome(state.operation_id, "completed", "")

    outcomes = await asyncio.gather(*(one(planned.state) for planned in plans if planned.resume))
    return list(outcomes), [planned for planned in plans if not planned.resume]
