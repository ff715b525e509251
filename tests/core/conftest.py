"""A framework over a real journal."""

from __future__ import annotations

import pytest

from ktrdr_ops.core.cancellation import CancellationSystem
from ktrdr_ops.core.domain import OperationProvider
from ktrdr_ops.core.errors import OperationInterrupted
from ktrdr_ops.core.journal.journal import open_journal
from ktrdr_ops.core.orchestration import AsyncOperation, AsyncOrchestrationFramework
from ktrdr_ops.core.progress import GenericProgressManager, PlainRenderer


class Shown:
    """What a person was shown."""

    def __init__(self) -> None:
        self.states: list = []

    def __call__(self, state) -> None:
        self.states.append(state)

    @property
    def messages(self) -> list[str]:
        return [state.message for state in self.states]


@pytest.fixture
def shown() -> Shown:
    return Shown()


@pytest.fixture
async def framework(tmp_path, shown):
    journal = open_journal(tmp_path / "journal.db")
    made = AsyncOrchestrationFramework(GenericProgressManager(callback=shown), CancellationSystem(), journal=journal)
    yield made
    await made.aclose()
    await journal.aclose()


def operation(name: str = "work", **more) -> AsyncOperation:
    return AsyncOperation(**{"operation_id": name, "operation_type": "work_type", "total_steps": 4, **more})


async def unreachable(operation, progress_manager, token):
    raise OperationInterrupted("no answer for 60 s: outcome unknown")


class Provider(OperationProvider):
    operation_type = "work_type"

    def validate(self, raw):
        return dict(raw)

    def operation(self, parameters):
        return operation()

    async def perform(self, operation, progress, token, attempt):
        return "fine"

    def renderer(self):
        return PlainRenderer()
