"""The embedded data host: the IB host service's contract over real HTTP.

Business failures are HTTP 200 with ``success: false``, a file that cannot be read among them. The span of a historical
request is rounded down to whole days (up to 7), weeks (up to 365 days) or years and counted back from its end, then
filtered to what was asked: the service that users run does so too, and a client has to ask in spans that survive it.
Where bars came and the filter leaves none, the answer is an empty success; where none came, "No data returned".
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, BeforeValidator
from pydantic_core import PydanticCustomError

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.hosts import serving
from ktrdr_ops.hosts.series import COLUMNS, Series, SeriesSource, parse_time
from ktrdr_ops.hosts.serving import Presence, application

SERVICE = "ib-connector"
_LONGEST_ECHO = 40


def _moment(value: object) -> datetime:
    if isinstance(value, str):
        with suppress(ValueError, OverflowError):
            return parse_time(value)
    raise PydanticCustomError("datetime_parsing", "Input should be an ISO-8601 date or time")


Moment = Annotated[datetime, BeforeValidator(_moment)]


class Historical(BaseModel):
    """``POST /data/historical``. Times ISO-8601, UTC where they name no offset."""

    symbol: str
    timeframe: str
    start: Moment
    end: Moment
    instrument_type: Literal["STK", "CASH", "FUT"] | None = None


class Validate(BaseModel):
    """``POST /data/validate``."""

    symbol: str
    timeframes: list[str] | None = None


class DataHost:
    """What the routes answer from: the series, and the counts that health tells."""

    def __init__(self, series: SeriesSource, latency: float) -> None:
        self.series = series
        self.latency = latency
        self.historical_requests = 0
        self.errors = 0
        self.last_error: str | None = None
        self.presence = Presence()
        self.began = time.monotonic()

    def failure(self, error: str) -> str:
        """The text of a business failure, counted."""
        self.errors += 1
        self.last_error = error
        return error

    async def historical(self, asked: Historical) -> dict[str, Any]:
        """Bars as a JSON text inside JSON."""
        self.historical_requests += 1
        if self.latency:
            await asyncio.sleep(self.latency)
        try:
            rows, data = await self._bars(asked)
        except InvalidValue as error:
            return {"success": False, "data": None, "error": self.failure(error.message), "rows": None}
        return {"success": True, "data": data, "error": None, "rows": rows}

    async def _bars(self, asked: Historical) -> tuple[int, str]:
        """How many, and their text. Raises InvalidValue with the error that the client is told."""
        symbol, start, end = asked.symbol.upper(), asked.start, asked.end
        there = self.series.timeframes(symbol)
        if not there:
            raise InvalidValue(f"Symbol validation failed: Symbol {shown(symbol)} not found")
        series = await asyncio.to_thread(self.series.get, symbol, asked.timeframe)
        if series is None:
            raise InvalidValue(f"This host has no {shown(asked.timeframe)} bars of {symbol}, only {', '.join(there)}")
        if start > end:
            raise InvalidValue(f"Start {start.isoformat()} is after end {end.isoformat()}")
        head = series.times[0] if series.times else None
        if head is not None and start < head:
            raise InvalidValue(
                f"Data not available before {head.isoformat()}. Requested start: {start.isoformat()},"
                f" Head timestamp: {head.isoformat()}"
            )
        came = series.between(counted_back(end, rounded_down(end - start)), end)
        if not came:
            raise InvalidValue(f"No data returned for {symbol} {asked.timeframe}")
        kept = range(max(came.start, series.between(start, end).start), came.stop)
        return len(kept), await asyncio.to_thread(bars_text, series, kept)

    def validate(self, symbol: str, timeframes: list[str] | None) -> dict[str, Any]:
        """Whether there is such a symbol, and where its series begin."""
        symbol = symbol.upper()
        known = self.series.timeframes(symbol)
        contract = {"symbol": symbol, "asset_type": "STK", "exchange": "SMART", "currency": "USD"} if known else None
        heads: dict[str, str | None] = {}
        error = None
        try:
            heads = {name: self._head(symbol, name) for name in (timeframes or known)}
        except InvalidValue as unreadable:
            error = self.failure(unreadable.message)
        return {
            "success": error is None,
            "is_valid": bool(known) and error is None,
            "error_message": None if known else f"Symbol {shown(symbol)} not found",
            "contract_info": contract,
            "head_timestamps": {name: head for name, head in heads.items() if head is not None},
            "error": error,
        }

    def head_timestamp(self, symbol: str, timeframe: str) -> dict[str, Any]:
        """Where a series begins."""
        try:
            head = self._head(symbol.upper(), timeframe)
            if head is None:
                raise InvalidValue(f"No head timestamp for {shown(symbol.upper())} {shown(timeframe)}")
        except InvalidValue as error:
            return {"success": False, "timestamp": None, "error": self.failure(error.message)}
        return {"success": True, "timestamp": head, "error": None}

    def _head(self, symbol: str, timeframe: str) -> str | None:
        series = self.series.get(symbol, timeframe)
        return series.times[0].isoformat() if series is not None and series.times else None


def rounded_down(span: timedelta) -> timedelta:
    """What the service asks IB for: whole days up to 7, weeks up to 365 days, else years; one day at least."""
    days = span.days
    if days <= 7:
        return timedelta(days=max(days, 1))
    return timedelta(days=days // 7 * 7) if days <= 365 else timedelta(days=days // 365 * 365)


def counted_back(end: datetime, span: timedelta) -> datetime:
    """Where a request of that span begins; not before the year 1."""
    earliest = datetime.min.replace(tzinfo=UTC)
    return end - span if end - earliest > span else earliest


def bars_text(series: Series, kept: range) -> str:
    """``{"2026-01-05T14:30:00.000Z": {"open": …, "high": …, "low": …, "close": …, "volume": …}, …}``; a missing value
    is null, a whole volume an integer."""
    bars = {}
    for index in kept:
        *prices, volume = series.rows[index]
        values = [*map(_value, prices), int(volume) if volume.is_integer() else _value(volume)]
        bars[series.times[index].strftime("%Y-%m-%dT%H:%M:%S.000Z")] = dict(zip(COLUMNS, values, strict=True))
    return json.dumps(bars, separators=(",", ":"))


def _value(number: float) -> float | None:
    return None if math.isnan(number) else number


def shown(text: str) -> str:
    """What was asked, as an error repeats it: its beginning, in ASCII."""
    ascii_text = text[:_LONGEST_ECHO].encode("ascii", "backslashreplace").decode()
    return ascii_text + "..." * (len(text) > _LONGEST_ECHO)


def create_app(series: SeriesSource, latency: float = 0.0) -> FastAPI:
    """The service as an ASGI application. ``latency``: seconds that each historical request takes longer."""
    host = DataHost(series, latency)
    app = application("IB host service (embedded)", host.presence)
    _health_routes(app, host)
    _data_routes(app, host)
    return app


def _data_routes(app: FastAPI, host: DataHost) -> None:
    @app.post("/data/historical")
    async def historical(asked: Historical) -> dict[str, Any]:
        return await host.historical(asked)

    @app.post("/data/validate")
    def validate(asked: Validate) -> dict[str, Any]:
        return host.validate(asked.symbol, asked.timeframes)

    @app.get("/data/symbol-info/{symbol}")
    def symbol_info(symbol: str) -> dict[str, Any]:
        return host.validate(symbol, None)

    @app.get("/data/head-timestamp")
    def head_timestamp(symbol: str, timeframe: str, instrument_type: str | None = None) -> dict[str, Any]:
        return host.head_timestamp(symbol, timeframe)


def _health_routes(app: FastAPI, host: DataHost) -> None:
    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"healthy": True, "service": SERVICE, "timestamp": _now(), "status": "operational"}

    @app.get("/health/")
    async def gateway_health() -> dict[str, Any]:
        return {
            "healthy": True,
            "service": SERVICE,
            "timestamp": _now(),
            "ib_status": {"connected": True, "connection_count": 1},
            "connection_info": {"service_running": not host.presence.ending, "last_check": _now()},
            "error": None,
        }

    @app.get("/health/detailed")
    async def detailed() -> dict[str, Any]:
        return {
            "healthy": True,
            "ib_gateway_connected": True,
            "active_connections": 1,
            "total_requests": host.presence.requests,
            "error_count": host.errors,
            "last_error": host.last_error,
            "uptime_seconds": round(time.monotonic() - host.began, 3),
            "connection_pool_status": {
                "embedded": True,
                "latency": host.latency,
                "symbols": host.series.symbols,
                "historical_requests": host.historical_requests,
            },
        }


def _now() -> str:
    return datetime.now(UTC).isoformat()


def serve(
    port: int = 0,
    *,
    latency: float = 0.0,
    series: SeriesSource | None = None,
    idle_exit: float | None = None,
    ready: Callable[[int], None] = lambda port: None,
) -> None:
    """Serve as ``serving.serve`` does."""
    serving.serve(create_app(series or SeriesSource(), latency), port, idle_exit=idle_exit, ready=ready)
