"""The typed call for people: a training as one awaited function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktrdr_ops.core.orchestration import AsyncOrchestrationFramework, ProgressCallback
from ktrdr_ops.domains.training.connector import TrainingSystemConnector
from ktrdr_ops.domains.training.engine.host import TrainingHostService
from ktrdr_ops.domains.training.operations import TrainingConfig, TrainingOperationProvider, model_train

if TYPE_CHECKING:
    from ktrdr_ops.domains.training.engine.manager import TrainingManager
    from ktrdr_ops.domains.training.engine.results import TrainingResult
    from ktrdr_ops.settings import Settings


class TrainingDomainInterface:
    """Trains models with a framework. Without a ``manager`` one is made of ``settings`` (default: the user's).

    The framework's ``host_service`` is used if it is a TrainingHostService; else one is made of the settings. Series
    that are missing are loaded by the framework, which must be able to resolve ``data_load``.
    """

    def __init__(
        self,
        orchestrator: AsyncOrchestrationFramework,
        manager: TrainingManager | None = None,
        *,
        settings: Settings | None = None,
    ) -> None:
        self.orchestrator = orchestrator
        self._provider = TrainingOperationProvider(_connector(orchestrator, manager, settings))
        self.progress_renderer = self._provider.renderer()

    async def execute_training(
        self, config: TrainingConfig, progress_callback: ProgressCallback | None = None
    ) -> TrainingResult:
        """What came of it; the journal keeps the same as its result. Raises TrainingServiceError,
        OperationCancelledException, OperationInterrupted (an outcome that nobody knows), KeyIsLive."""
        result: TrainingResult = await self.orchestrator.execute_operation(
            model_train(config),
            self._provider.perform,
            self.progress_renderer,
            progress_callback=progress_callback,
            summarise=self._provider.summarise,
        )
        return result

    async def aclose(self) -> None:
        """Close the connections to the host, if they are this interface's alone."""
        host = self._provider.connector.manager.host
        if host is not self.orchestrator.host_service:
            await host.aclose()


def _connector(
    orchestrator: AsyncOrchestrationFramework, manager: TrainingManager | None, settings: Settings | None
) -> TrainingSystemConnector:
    if manager is not None:
        return TrainingSystemConnector(manager)
    if settings is None:
        from ktrdr_ops.settings import load_settings

        settings = load_settings()
    host = orchestrator.host_service
    return TrainingSystemConnector.from_settings(settings, host=host if isinstance(host, TrainingHostService) else None)
