"""The typed call for people: indicators as one awaited function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from ktrdr_ops.core.orchestration import AsyncOrchestrationFramework, ProgressCallback
from ktrdr_ops.domains.indicators.connector import IndicatorsSystemConnector
from ktrdr_ops.domains.indicators.operations import IndicatorsOperationProvider

if TYPE_CHECKING:
    from ktrdr_ops.domains.indicators.engine.manager import IndicatorsManager
    from ktrdr_ops.settings import Settings


class IndicatorsDomainInterface:
    """Computes indicators with a framework. Without a ``manager`` one is made of ``settings`` (default: the user's)."""

    def __init__(
        self,
        orchestrator: AsyncOrchestrationFramework,
        manager: IndicatorsManager | None = None,
        *,
        settings: Settings | None = None,
    ) -> None:
        self.orchestrator = orchestrator
        self._provider = IndicatorsOperationProvider(_connector(manager, settings))
        self.progress_renderer = self._provider.renderer()

    async def execute_compute(
        self,
        symbol: str,
        timeframe: str,
        indicators: Sequence[str] | None = None,
        progress_callback: ProgressCallback | None = None,
    ) -> pd.DataFrame:
        """A row for each bar by its open time (tz-aware UTC), a float64 column for each output, NaN where there are
        not bars enough behind; ``attrs["indicators"]`` is the result that the journal keeps.

        ``indicators``: such as ``["RSI(21)", "MACD"]``; default RSI, MACD, BBANDS. Raises InvalidValue,
        IndicatorsServiceError, OperationCancelledException, KeyIsLive, and what a load of a missing series raises.
        """
        asked = {"symbol": symbol, "timeframe": timeframe, "indicators": None if indicators is None else [*indicators]}
        table: pd.DataFrame = await self.orchestrator.execute_operation(
            self._provider.operation(self._provider.validate(asked)),
            self._provider.perform,
            self.progress_renderer,
            progress_callback=progress_callback,
            summarise=self._provider.summarise,
        )
        return table


def _connector(manager: IndicatorsManager | None, settings: Settings | None) -> IndicatorsSystemConnector:
    if manager is not None:
        return IndicatorsSystemConnector(manager)
    if settings is None:
        from ktrdr_ops.settings import load_settings

        settings = load_settings()
    return IndicatorsSystemConnector.from_settings(settings)
