"""Several operations as one: the core operation type ``group``, whose children run side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ktrdr_ops.core.domain import OperationProvider
from ktrdr_ops.core.errors import (
    HostUnavailable,
    InvalidValue,
    KeyIsLive,
    KtrdrOpsError,
    OperationCancelledException,
    OperationFailed,
)
from ktrdr_ops.core.events import Json
from ktrdr_ops.core.orchestration import AsyncOperation, digest
from ktrdr_ops.core.progress import PlainRenderer

if TYPE_CHECKING:
    from ktrdr_ops.core.attempt import Attempt
    from ktrdr_ops.core.cancellation import CancellationToken
    from ktrdr_ops.core.progress import GenericProgressManager, GenericProgressState, ProgressRenderer

MAX_CHILDREN = 1000
SIDE_BY_SIDE = 8


class GroupProvider(OperationProvider):
    """Runs its children side by side and fails when one of them does, after the others have ended.

    Parameters: ``children``, a list of ``{"type": …, "parameters": {…}}``. Its key is a digest of them.
    """

    operation_type = "group"

    def __init__(self, resolve: Callable[[str], OperationProvider], *, side_by_side: int = SIDE_BY_SIDE) -> None:
        self._resolve = resolve
        self._side_by_side = side_by_side

    def validate(self, raw: Mapping[str, Any]) -> dict[str, Json]:
        """Every child's parameters validated by its own provider."""
        children = raw.get("children")
        if not isinstance(children, list | tuple) or not 0 < len(children) <= MAX_CHILDREN:
            raise InvalidValue(
                f"a group has 1 to {MAX_CHILDREN} children", hint='children=[{"type": …, "parameters": {…}}]'
            )
        validated: list[Json] = []
        for child in children:
            provider = self._resolve(child["type"])
            asked = {"type": child["type"], "parameters": provider.validate(child["parameters"])}
            if asked in validated:
                raise InvalidValue(f"a group runs each operation once, and {child['parameters']} is in it twice")
            validated.append(asked)
        return {"children": validated}

    def operation(self, parameters: Mapping[str, Json]) -> AsyncOperation:
        """One step for each child."""
        children = parameters["children"]
        types = sorted({child["type"] for child in children})
        return AsyncOperation(
            operation_id="group_" + "_".join(types)[:80],
            operation_type=self.operation_type,
            total_steps=len(children),
            context={"types": types, "children": len(children)},
            key=f"group:{digest(parameters)[:16]}",
            parameters=dict(parameters),
        )

    async def perform(
        self,
        operation: AsyncOperation,
        progress: GenericProgressManager,
        token: CancellationToken,
        attempt: Attempt,
    ) -> Json:
        """The children's results, in their order. Raises OperationFailed that names those that failed."""
        children = (operation.parameters or {})["children"]
        board = _Board(progress, len(children))
        room = asyncio.Semaphore(self._side_by_side)

        async def run(index: int) -> Json:
            child = children[index]
            async with room:
                token.check_cancellation_point(operation.operation_id)
                result = await attempt.run_child(
                    child["type"], progress_callback=board.follower(index), **child["parameters"]
                )
            board.ended(index)
            return result

        outcomes = await asyncio.gather(*(run(index) for index in range(len(children))), return_exceptions=True)
        token.check_cancellation_point(operation.operation_id)
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failures:
            raise _failure(failures, len(children))
        return {"children": list(outcomes)}

    def renderer(self) -> ProgressRenderer:
        """Its messages say all there is to say."""
        return PlainRenderer()

    def summarise(self, value: Any) -> dict[str, Json]:
        """How many there were; their results are their own."""
        return {"children": len(value["children"])}


class _Board:
    """Makes one progress of the children's: the mean of their percentages, told when it has moved by a percent."""

    def __init__(self, progress: GenericProgressManager, total: int) -> None:
        self._progress = progress
        self._percentages = [0.0] * total
        self._done = 0
        self._told = -1.0

    def follower(self, index: int) -> Callable[[GenericProgressState], None]:
        """What a child's progress is told to."""

        def follow(state: GenericProgressState) -> None:
            self._percentages[index] = state.percentage
            if sum(self._percentages) / len(self._percentages) >= self._told + 1.0:
                self._tell()

        return follow

    def ended(self, index: int) -> None:
        """A child is done."""
        self._done += 1
        self._percentages[index] = 100.0
        self._tell()

    def _tell(self) -> None:
        total = len(self._percentages)
        mean = self._told = sum(self._percentages) / total
        message = f"{self._done} of {total} done"
        self._progress.update_progress(self._done, message, self._done, total_items=total, step_range=(mean, mean))


def _failure(failures: list[BaseException], total: int) -> BaseException:
    for failure in failures:
        if not isinstance(failure, KtrdrOpsError):
            return failure
    if all(isinstance(failure, OperationCancelledException) for failure in failures) and len(failures) == total:
        return OperationCancelledException("all of its operations were cancelled")
    messages = "; ".join(str(failure) for failure in failures)
    message = f"{len(failures)} of {total} operations did not complete: {messages}"[:8000]
    for reason in (HostUnavailable, KeyIsLive):  # the same for all: it is the group's, with its exit code and hint
        if len(failures) == total and all(isinstance(failure, reason) for failure in failures):
            return reason(message, hint=next(one.hint for one in failures if isinstance(one, reason)))
    return OperationFailed(message, hint="The others are kept; a resume runs only what is not completed.")
