"""An operation's own operations: each runs once to its result, and stops with the operation that started it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ktrdr_ops.core.events import Json
from ktrdr_ops.core.journal import history
from ktrdr_ops.core.operation import How, ProgressCallback, digest
from ktrdr_ops.core.progress import GenericProgressState
from ktrdr_ops.core.redaction import strict

if TYPE_CHECKING:
    from ktrdr_ops.core.attempt import Attempt
    from ktrdr_ops.core.orchestration import AsyncOrchestrationFramework


async def run_child(
    framework: AsyncOrchestrationFramework,
    parent: Attempt,
    operation_type: str,
    parameters: Mapping[str, Any],
    callback: ProgressCallback | None = None,
) -> Json:
    """The journaled result of a child, which is run unless an earlier attempt of its parent has completed it."""
    parent.token.check_cancellation_point(parent.operation.operation_id)
    provider = await framework.resolved(operation_type)
    operation = provider.operation(provider.validate(parameters))
    parent_id = parent.operation.operation_id
    wanted = digest(strict(operation.context if operation.parameters is None else operation.parameters))
    key = operation.key or operation.operation_id
    mine = [
        state
        for state in await history.children(framework.journal, parent_id)
        if state.key == key and state.digest == wanted
    ]
    if mine and mine[-1].status == "completed":
        return mine[-1].result
    begun: list[str] = []

    def forward(state: GenericProgressState) -> None:
        if not begun:
            begun.append(state.operation_id)
            parent.token.add_callback(lambda: _stop(framework, parent, state.operation_id))
        if callback is not None:
            callback(state)

    await framework.execute_operation(
        replace(operation, parent_id=parent_id),
        provider.perform,
        provider.renderer(),
        progress_callback=forward,
        summarise=provider.summarise,
        how=How(resume=mine[-1].operation_id if mine and not mine[-1].live else None, wait=parent.patience),
    )
    return (await framework.journal.state(begun[0])).result


def _stop(framework: AsyncOrchestrationFramework, parent: Attempt, operation_id: str) -> None:
    token = framework.cancellation_system.get_token(operation_id)
    if token is not None:
        asked = parent.token
        token.cancel(asked.reason or "cancelled", asked.requested_by or "parent", interrupt=asked.interrupting)
