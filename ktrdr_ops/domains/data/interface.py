"""The typed call for people: a load as one awaited function."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from ktrdr_ops.core.orchestration import AsyncOrchestrationFramework, ProgressCallback
from ktrdr_ops.domains.data.connector import DataSystemConnector
from ktrdr_ops.domains.data.engine.ib_host import IbHostService
from ktrdr_ops.domains.data.operations import DataOperationProvider

if TYPE_CHECKING:
    from ktrdr_ops.domains.data.engine.manager import DataManager
    from ktrdr_ops.settings import Settings


class DataDomainInterface:
    """Loads market data with a framework. Without a ``manager`` one is made of ``settings`` (default: the user's).

    The framework's ``host_service`` is asked for bars if it is an IbHostService; else one is made of the settings.
    """

    def __init__(
        self,
        orchestrator: AsyncOrchestrationFramework,
        manager: DataManager | None = None,
        *,
        settings: Settings | None = None,
    ) -> None:
        self.orchestrator = orchestrator
        self._provider = DataOperationProvider(_connector(orchestrator, manager, settings))
        self.progress_renderer = self._provider.renderer()

    async def execute_data_load(
        self,
        symbol: str,
        timeframe: str,
        mode: str,
        progress_callback: ProgressCallback | None = None,
        *,
        start: str | None = None,
        end: str | None = None,
        refresh: bool = False,
    ) -> pd.DataFrame:
        """The series: a tz-aware UTC ``DatetimeIndex`` named ``timestamp`` (the bars' open times), sorted, unique, and
        open, high, low, close, volume; ``attrs["load"]`` is the result that the journal keeps.

        ``start`` and ``end`` are ISO-8601; a day as the end is included. Raises InvalidValue, DataServiceError,
        OperationCancelledException, KeyIsLive.
        """
        asked = {"symbol": symbol, "timeframe": timeframe, "mode": mode, "start": start, "end": end, "refresh": refresh}
        operation = self._provider.operation(self._provider.validate(asked))
        bars: pd.DataFrame = await self.orchestrator.execute_operation(
            operation,
            self._provider.perform,
            self.progress_renderer,
            progress_callback=progress_callback,
            summarise=self._provider.summarise,
        )
        return bars

    async def aclose(self) -> None:
        """Close the connections to the host, if they are this interface's alone."""
        host = self._provider.connector.manager.host
        if host is not self.orchestrator.host_service:
            await host.aclose()


def _connector(
    orchestrator: AsyncOrchestrationFramework, manager: DataManager | None, settings: Settings | None
) -> DataSystemConnector:
    if manager is not None:
        return DataSystemConnector(manager)
    if settings is None:
        from ktrdr_ops.settings import load_settings

        settings = load_settings()
    host = orchestrator.host_service
    return DataSystemConnector.from_settings(settings, host=host if isinstance(host, IbHostService) else None)
