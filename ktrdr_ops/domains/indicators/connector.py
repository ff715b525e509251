"""How indicators are computed: through an IndicatorsManager, with errors that name the series."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from ktrdr_ops.core.attempt import Attempt
from ktrdr_ops.core.cancellation import CancellationToken
from ktrdr_ops.core.errors import OperationFailed
from ktrdr_ops.core.orchestration import AsyncOperation
from ktrdr_ops.core.progress import GenericProgressManager
from ktrdr_ops.domains.indicators.engine.manager import IndicatorsManager

if TYPE_CHECKING:
    from ktrdr_ops.settings import Settings


class IndicatorsServiceError(OperationFailed):
    """The indicators could not be computed."""

    code = "indicators_failed"


class IndicatorsSystemConnector:
    """Computes with one manager."""

    def __init__(self, manager: IndicatorsManager) -> None:
        self.manager = manager

    @classmethod
    def from_settings(cls, settings: Settings) -> IndicatorsSystemConnector:
        """Over the data folder of the settings."""
        return cls(IndicatorsManager(settings.data_dir))

    async def perform(
        self,
        operation: AsyncOperation,
        progress: GenericProgressManager,
        token: CancellationToken,
        attempt: Attempt,
    ) -> pd.DataFrame:
        """One attempt. Raises IndicatorsServiceError, OperationCancelledException, and what a load raises."""
        asked = operation.parameters or {}
        symbol, timeframe = asked["symbol"], asked["timeframe"]
        try:
            return await self.manager.compute(symbol, timeframe, asked["indicators"], progress, attempt)
        except (OSError, ValueError) as error:
            raise IndicatorsServiceError(
                f"Indicators of {symbol} {timeframe} failed: {error}",
                hint="Is there room, and may it be written? The same command again goes on; what is journaled is kept.",
            ) from error
