"""What a computation of indicators is: its parameters, its key, its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import pandas as pd

from ktrdr_ops.core.attempt import Attempt
from ktrdr_ops.core.cancellation import CancellationToken
from ktrdr_ops.core.domain import OperationProvider
from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.core.events import Json
from ktrdr_ops.core.orchestration import AsyncOperation
from ktrdr_ops.core.progress import GenericProgressManager
from ktrdr_ops.domains.indicators.connector import IndicatorsSystemConnector
from ktrdr_ops.domains.indicators.engine import asked, library
from ktrdr_ops.domains.indicators.engine.manager import RESULT
from ktrdr_ops.domains.indicators.renderer import IndicatorsProgressRenderer

OPERATION_TYPE = "indicators_compute"
STEPS = 3
_TAKES = ("symbol", "timeframe", "indicators")


class IndicatorsOperationProvider(OperationProvider):
    """Computations of indicators, by one connector. A later attempt computes no kept indicator again."""

    operation_type: ClassVar[str] = OPERATION_TYPE
    resumable: ClassVar[bool] = True

    def __init__(self, connector: IndicatorsSystemConnector) -> None:
        self.connector = connector

    def validate(self, raw: Mapping[str, Any]) -> dict[str, Json]:
        """Symbol, timeframe, indicators (a list, or a text with commas; default RSI, MACD, BBANDS), each written out
        with its parameters. Raises InvalidValue."""
        unknown = sorted(set(raw) - set(_TAKES))
        if unknown:
            raise InvalidValue(f"there is no parameter {unknown[0][:40]!r}", hint=f"It takes {', '.join(_TAKES)}.")
        return {
            "symbol": asked.symbol(raw.get("symbol")),
            "timeframe": asked.timeframe(raw.get("timeframe")),
            "indicators": library.listed(raw.get("indicators")),
        }

    def operation(self, parameters: Mapping[str, Json]) -> AsyncOperation:
        """Its key is ``indicators_compute:AAPL:1d``."""
        symbol, timeframe = parameters["symbol"], parameters["timeframe"]
        names = [indicator.partition("(")[0] for indicator in parameters["indicators"]]
        return AsyncOperation(
            operation_id=f"indicators_{symbol}_{timeframe}",
            operation_type=OPERATION_TYPE,
            total_steps=STEPS,
            context={"symbol": symbol, "timeframe": timeframe, "indicators": list(dict.fromkeys(names))},
            key=f"{OPERATION_TYPE}:{symbol}:{timeframe}",
            parameters=dict(parameters),
        )

    async def perform(
        self,
        operation: AsyncOperation,
        progress: GenericProgressManager,
        token: CancellationToken,
        attempt: Attempt,
    ) -> pd.DataFrame:
        """The table. Raises IndicatorsServiceError, OperationCancelledException, and what a load raises."""
        return await self.connector.perform(operation, progress, token, attempt)

    def renderer(self) -> IndicatorsProgressRenderer:
        """Its words."""
        return IndicatorsProgressRenderer()

    def summarise(self, value: Any) -> dict[str, Json]:
        """The result document that the returned table carries."""
        return cast("dict[str, Json]", value.attrs[RESULT])
