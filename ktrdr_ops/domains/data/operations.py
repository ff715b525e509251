"""What a load is: its parameters, its key, its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from ktrdr_ops.core.attempt import Attempt
from ktrdr_ops.core.cancellation import CancellationToken
from ktrdr_ops.core.clock import Clock, utc_now
from ktrdr_ops.core.domain import OperationProvider
from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.core.events import Json
from ktrdr_ops.core.orchestration import AsyncOperation
from ktrdr_ops.core.parameters import what_is_wrong
from ktrdr_ops.core.progress import GenericProgressManager
from ktrdr_ops.domains.data.connector import DataSystemConnector
from ktrdr_ops.domains.data.engine import dates, symbols, timeframes
from ktrdr_ops.domains.data.engine.bars import parse_moment
from ktrdr_ops.domains.data.engine.gaps import MODES, Mode
from ktrdr_ops.domains.data.engine.manager import RESULT
from ktrdr_ops.domains.data.engine.segments import stamp
from ktrdr_ops.domains.data.renderer import DataProgressRenderer

OPERATION_TYPE = "data_load"
STEPS = 5


class DataLoadParameters(BaseModel):
    """What a load takes. Times are ISO-8601 UTC; ``end`` is not included."""

    model_config = ConfigDict(extra="forbid", strict=True)

    symbol: str
    timeframe: str
    mode: Mode = "full"
    start: str | None = None
    end: str | None = None
    refresh: bool = False

    @field_validator("symbol", mode="before")
    @classmethod
    def _symbol(cls, value: object) -> str:
        return symbols.symbol(value)

    @field_validator("timeframe", mode="before")
    @classmethod
    def _timeframe(cls, value: object) -> str:
        return timeframes.timeframe(value).name

    @field_validator("mode", mode="before")
    @classmethod
    def _mode(cls, value: object) -> object:
        if value not in MODES:
            raise InvalidValue(
                f"unknown mode {timeframes.shown(value)}: valid are {', '.join(MODES)}",
                hint="tail: what came since; backfill: what lies before; full: both; local: ask nobody.",
            )
        return value

    @field_validator("start", mode="before")
    @classmethod
    def _start(cls, value: object) -> str | None:
        return None if value is None else stamp(dates.beginning(value, "start"))

    @field_validator("end", mode="before")
    @classmethod
    def _end(cls, value: object) -> str | None:
        return None if value is None else stamp(dates.ending(value, "end"))


def validated(raw: Mapping[str, Any]) -> dict[str, Json]:
    """The parameters with defaults, normalised. Raises InvalidValue."""
    try:
        parameters = DataLoadParameters.model_validate(dict(raw))
    except ValidationError as error:
        raise InvalidValue(
            f"a load cannot be asked so: {what_is_wrong(error)}",
            hint=f"It takes {', '.join(DataLoadParameters.model_fields)}; the first two are needed.",
        ) from None
    _consistent(parameters)
    return parameters.model_dump()


def _consistent(parameters: DataLoadParameters) -> None:
    start, end = parameters.start, parameters.end
    if start and end and parse_moment(start) >= parse_moment(end):
        raise InvalidValue(f"the start {start} is not before the end {end}", hint="Change the two dates.")
    if parameters.refresh and parameters.mode != "full":
        raise InvalidValue(
            f"refresh loads the whole series anew, which {parameters.mode} does not", hint="--mode full --refresh"
        )
    if start and parameters.mode == "tail":
        raise InvalidValue(
            "tail begins at the last stored bar; it takes no start", hint="--mode full loads from a start on."
        )


def data_load(parameters: Mapping[str, Json]) -> AsyncOperation:
    """The operation for validated parameters."""
    symbol, timeframe = parameters["symbol"], parameters["timeframe"]
    return AsyncOperation(
        operation_id=f"{OPERATION_TYPE}_{symbol}_{timeframe}",
        operation_type=OPERATION_TYPE,
        total_steps=STEPS,
        context={"symbol": symbol, "timeframe": timeframe, "mode": parameters["mode"]},
        key=f"{OPERATION_TYPE}:{symbol}:{timeframe}",
        parameters=dict(parameters),
    )


class DataOperationProvider(OperationProvider):
    """Loads of market data, by one connector. A later attempt asks for no journaled segment again."""

    operation_type: ClassVar[str] = OPERATION_TYPE
    resumable: ClassVar[bool] = True

    def __init__(self, connector: DataSystemConnector, *, clock: Clock = utc_now) -> None:
        self.connector = connector
        self._clock = clock

    def validate(self, raw: Mapping[str, Any]) -> dict[str, Json]:
        """Symbol, timeframe, mode (default ``full``), start, end, refresh. Raises InvalidValue, also for a start that
        is still to come."""
        parameters = validated(raw)
        now = self.connector.manager.as_of or self._clock()
        if parameters["start"] is not None and parse_moment(parameters["start"]) >= now:
            raise InvalidValue(
                f"the start {parameters['start']} is not before now ({stamp(now)})", hint="Ask for an earlier start."
            )
        return parameters

    def operation(self, parameters: Mapping[str, Json]) -> AsyncOperation:
        """Its key is ``data_load:AAPL:1h``."""
        return data_load(parameters)

    async def perform(
        self,
        operation: AsyncOperation,
        progress: GenericProgressManager,
        token: CancellationToken,
        attempt: Attempt,
    ) -> pd.DataFrame:
        """The series as a DataFrame. Raises DataServiceError, OperationCancelledException."""
        return await self.connector.perform(operation, progress, token, attempt)

    def renderer(self) -> DataProgressRenderer:
        """Its words."""
        return DataProgressRenderer()

    def summarise(self, value: Any) -> dict[str, Json]:
        """The result document that the returned DataFrame carries."""
        return cast("dict[str, Json]", value.attrs[RESULT])
