"""The embedded data host: the IB host service's contract over real HTTP.

Business failures are HTTP 200 with ``success: false``. The span of a historical request is rounded down to whole days
(up to 7), weeks (up to 365 days) or years and counted back from its end, then filtered to what was asked: the service
that users run does so too, and a client has to ask in spans that survive it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from ktrdr_ops.hosts.series import Series, SeriesSource

SERVICE = "ib-connector"


class Historical(BaseModel):
    """``POST /data/historical``. Times ISO-8601, UTC where they name no offset."""

    symbol: str
    timeframe: str
    start: datetime
    end: datetime
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
        self.requests = 0
        self.historical_requests = 0
        self.errors = 0
        self.last_error: str | None = None
        self.began = time.monotonic()
        self.last_request = time.monotonic()

    def failure(self, error: str) -> dict[str, Any]:
        """A business failure, counted."""
        self.errors += 1
        self.last_error = error
        return {"success": False, "data": None, "error": error, "rows": None}

    async def historical(self, asked: Historical) -> dict[str, Any]:
        """Bars as a JSON text inside JSON."""
        self.historical_requests += 1
        if self.latency:
            await asyncio.sleep(self.latency)
        symbol = asked.symbol.upper()
        if not self.series.timeframes(symbol):
            return self.failure(f"Symbol validation failed: Symbol {symbol} not found")
        series = self.series.get(symbol, asked.timeframe)
        if series is None:
            there = ", ".join(self.series.timeframes(symbol))
            return self.failure(f"This host has no {asked.timeframe} bars of {symbol}, only {there}")
        start, end = _aware(asked.start), _aware(asked.end)
        head = series.times[0] if series.times else None
        if head is not None and start < head:
            return self.failure(
                f"Data not available before {head.isoformat()}. Requested start: {start.isoformat()},"
                f" Head timestamp: {head.isoformat()}"
            )
        found = series.between(max(start, end - rounded_down(end - start)), end)
        if not found:
            return self.failure(f"No data returned for {symbol} {asked.timeframe}")
        return {"success": True, "data": bars_text(series, found), "error": None, "rows": len(found)}

    def validate(self, symbol: str, timeframes: list[str] | None) -> dict[str, Any]:
        """Whether there is such a symbol, and where its series begin."""
        symbol = symbol.upper()
        known = self.series.timeframes(symbol)
        heads = {name: self._head(symbol, name) for name in (timeframes or known)}
        return {
            "success": True,
            "is_valid": bool(known),
            "error_message": None if known else f"Symbol {symbol} not found",
            "contract_info": {"symbol": symbol, "asset_type": "STK", "exchange": "SMART", "currency": "USD"}
            if known
            else None,
            "head_timestamps": {name: head for name, head in heads.items() if head is not None},
            "error": None,
        }

    def head_timestamp(self, symbol: str, timeframe: str) -> dict[str, Any]:
        """Where a series begins."""
        head = self._head(symbol.upper(), timeframe)
        error = None if head is not None else f"No head timestamp for {symbol.upper()} {timeframe}"
        return {"success": head is not None, "timestamp": head, "error": error}

    def _head(self, symbol: str, timeframe: str) -> str | None:
        series = self.series.get(symbol, timeframe)
        return series.times[0].isoformat() if series is not None and series.times else None


def rounded_down(span: timedelta) -> timedelta:
    """What the service asks IB for: whole days up to 7, weeks up to 365 days, else years; one day at least."""
    days = span.days
    if days <= 7:
        return timedelta(days=max(days, 1))
    return timedelta(days=days // 7 * 7) if days <= 365 else timedelta(days=days // 365 * 365)


def bars_text(series: Series, found: range) -> str:
    """``{"2026-01-05T14:30:00.000Z": {"open": …, "high": …, "low": …, "close": …, "volume": …}, …}``"""
    names = ("open", "high", "low", "close", "volume")
    return json.dumps(
        {
            series.times[index].strftime("%Y-%m-%dT%H:%M:%S.000Z"): dict(zip(names, series.rows[index], strict=True))
            for index in found
        },
        separators=(",", ":"),
    )


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def create_app(series: SeriesSource, latency: float = 0.0) -> FastAPI:
    """The service as an ASGI application. ``latency``: seconds that each historical request takes longer."""
    host = DataHost(series, latency)
    app = FastAPI(title="IB host service (embedded)", redirect_slashes=False, docs_url=None, redoc_url=None)
    app.state.host = host

    @app.middleware("http")
    async def count(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        host.last_request = time.monotonic()
        if request.url.path.startswith("/data/"):
            host.requests += 1
        return await call_next(request)

    _health_routes(app, host)

    @app.post("/data/historical")
    async def historical(asked: Historical) -> dict[str, Any]:
        return await host.historical(asked)

    @app.post("/data/validate")
    async def validate(asked: Validate) -> dict[str, Any]:
        return host.validate(asked.symbol, asked.timeframes)

    @app.get("/data/symbol-info/{symbol}")
    async def symbol_info(symbol: str) -> dict[str, Any]:
        return host.validate(symbol, None)

    @app.get("/data/head-timestamp")
    async def head_timestamp(symbol: str, timeframe: str, instrument_type: str | None = None) -> dict[str, Any]:
        return host.head_timestamp(symbol, timeframe)

    return app


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
            "connection_info": {"service_running": True, "last_check": _now(), "embedded": True},
            "error": None,
        }

    @app.get("/health/detailed")
    async def detailed() -> dict[str, Any]:
        return {
            "healthy": True,
            "ib_gateway_connected": True,
            "active_connections": 1,
            "total_requests": host.requests,
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
    """Serve on 127.0.0.1 until Ctrl+C or SIGTERM, or for ``idle_exit`` seconds after the last request.

    ``port=0`` takes a free one; ``ready`` is told which, once it answers. Raises OSError when the port is taken.
    """
    app = create_app(series or SeriesSource(), latency)
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=1, lifespan="off"
    )
    asyncio.run(_serve(uvicorn.Server(config), port, app.state.host, idle_exit, ready))


def bound_socket(port: int) -> socket.socket:
    """A listening socket on 127.0.0.1 (0: a free port). uvicorn's own names no protocol, and asyncio then leaves
    Nagle's algorithm on, which holds each answer back for 40 ms."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    return made


async def _serve(
    server: uvicorn.Server,
    port: int,
    host: DataHost,
    idle_exit: float | None,
    ready: Callable[[int], None],
) -> None:
    listening = bound_socket(port)
    async with _idle_watch(server, host, idle_exit):
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        while not server.started and not serving.done():  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.005)
        if server.started:
            ready(listening.getsockname()[1])
        await serving


@asynccontextmanager
async def _idle_watch(server: uvicorn.Server, host: DataHost, idle_exit: float | None) -> AsyncIterator[None]:
    async def watch(seconds: float) -> None:
        while (idle := time.monotonic() - host.last_request) < seconds:  # noqa: ASYNC110  # it sleeps until it may be time
            await asyncio.sleep(seconds - idle)
        server.should_exit = True

    watching = asyncio.ensure_future(watch(idle_exit)) if idle_exit is not None else None
    try:
        yield
    finally:
        if watching is not None:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
