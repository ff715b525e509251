"""What a training is: its parameters, its key, its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ktrdr_ops.core.attempt import Attempt
from ktrdr_ops.core.cancellation import CancellationToken
from ktrdr_ops.core.domain import OperationProvider
from ktrdr_ops.core.events import Json
from ktrdr_ops.core.orchestration import AsyncOperation
from ktrdr_ops.core.progress import GenericProgressManager
from ktrdr_ops.domains.training.connector import TrainingSystemConnector
from ktrdr_ops.domains.training.engine.config import TrainingConfig
from ktrdr_ops.domains.training.engine.results import TrainingResult
from ktrdr_ops.domains.training.renderer import TrainingProgressRenderer

__all__ = ["OPERATION_TYPE", "STEPS", "TrainingConfig", "TrainingOperationProvider", "model_train"]

OPERATION_TYPE = "model_train"
STEPS = 4


def model_train(config: TrainingConfig) -> AsyncOperation:
    """The operation for a configuration."""
    return AsyncOperation(
        operation_id=f"train_{config.model_type}_{len(config.symbols)}",
        operation_type=OPERATION_TYPE,
        total_steps=STEPS,
        context={
            "model_type": config.model_type,
            "symbols": config.symbols,
            "timeframes": config.timeframes,
            "strategy": config.name,
            "epochs": config.epochs,
            "seed": config.seed,
        },
        key=f"{OPERATION_TYPE}:{config.key}",
        parameters=config.model_dump(),
        outlives=True,
    )


class TrainingOperationProvider(OperationProvider):
    """Trainings, by one connector. A later attempt goes on with the session that an earlier one left on the host."""

    operation_type: ClassVar[str] = OPERATION_TYPE
    resumable: ClassVar[bool] = True

    def __init__(self, connector: TrainingSystemConnector) -> None:
        self.connector = connector

    def validate(self, raw: Mapping[str, Any]) -> dict[str, Json]:
        """A strategy (mapping, or the path of its YAML), symbols, timeframes, epochs, seed, model_type, start, end,
        set: each left out is the strategy's. What it gives holds the strategy itself, and is valid again.
        Raises InvalidValue."""
        return TrainingConfig.asked(raw).model_dump()

    def operation(self, parameters: Mapping[str, Json]) -> AsyncOperation:
        """Its key is ``model_train:{strategy}:{symbols}:{timeframes}:{digest of all parameters}``: trainings that
        differ in anything run side by side."""
        return model_train(TrainingConfig(**parameters))

    async def perform(
        self,
        operation: AsyncOperation,
        progress: GenericProgressManager,
        token: CancellationToken,
        attempt: Attempt,
    ) -> TrainingResult:
        """The result. Raises TrainingServiceError, OperationInterrupted, OperationCancelledException."""
        return await self.connector.perform(operation, progress, token, attempt)

    def renderer(self) -> TrainingProgressRenderer:
        """Its words."""
        return TrainingProgressRenderer()

    def summarise(self, value: Any) -> dict[str, Json]:
        """The result document."""
        document: dict[str, Json] = value.model_dump()
        return document
