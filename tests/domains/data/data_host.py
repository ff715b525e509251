"""An IB host service on loopback with bars that a test gives it, and the faults that a test asks for."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd

from ktrdr_ops.domains.data.engine.bars import between, frame_of, parse_moment
from ktrdr_ops.domains.data.engine.calendar import periods
from ktrdr_ops.domains.data.engine.segments import host_rounded
from ktrdr_ops.domains.data.engine.timeframes import timeframe
from tests.faulty_host import Behaviour, Connection, FaultyHost, answers

Fault = Callable[[dict[str, Any]], Behaviour | None]


def daily(first: str, last: str, symbol: str = "TEST", seed: int = 1) -> pd.DataFrame:
    """Daily bars of each session from one day to another, stamped with the exchange's date."""
    end = parse_moment(last)
    known = periods(symbol, timeframe("1d"), end)
    start_us, end_us = (np.datetime64(day, "us").astype("int64") for day in (first, last))
    at = known.starts[(known.starts >= start_us) & (known.starts <= end_us)]
    steps = np.random.default_rng(seed).normal(0, 0.5, (len(at), 2))
    close = 100 + steps[:, 0].cumsum() * 0.1
    opened = close + steps[:, 1]
    rows = np.column_stack([opened, np.maximum(opened, close) + 1, np.minimum(opened, close) - 1, close, at % 997 + 1])
    return frame_of(at, rows.round(2))


class DataHost:
    """`bars` by (symbol, timeframe); `asked` holds the bodies of all historical requests in order.

    `fault` may give a behaviour for a historical request, instead of the right answer.
    """

    def __init__(self, bars: dict[tuple[str, str], pd.DataFrame]) -> None:
        self.bars = bars
        self.connected = True
        self.fault: Fault = lambda asked: None
        self.asked: list[dict[str, Any]] = []
        self.validated = 0
        self.server = FaultyHost(self._answer)

    @property
    def url(self) -> str:
        return self.server.url

    async def __aenter__(self) -> DataHost:
        await self.server.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.server.__aexit__(*error)

    async def _answer(self, connection: Connection) -> None:
        method, target, _ = self.server.requests[-1].split(" ")
        body = self.server.bodies[-1]
        parts = urlsplit(target)
        routes: dict[tuple[str, str], Callable[[], Awaitable[Any] | Any]] = {
            ("GET", "/health/"): self._health,
            ("POST", "/data/validate"): lambda: self._validate(json.loads(body)),
            ("GET", "/data/head-timestamp"): lambda: self._head(parse_qs(parts.query)),
        }
        if (method, parts.path) == ("POST", "/data/historical"):
            asked = json.loads(body)
            self.asked.append(asked)
            behaviour = self.fault(asked) or says(**self._historical(asked))
            await behaviour(connection)
        elif (method, parts.path) in routes:
            await answers(json.dumps(routes[method, parts.path]()).encode())(connection)
        else:
            await answers(b'{"detail": "Not Found"}', "404 Not Found")(connection)

    def _health(self) -> dict[str, Any]:
        status = {"connected": self.connected, "connection_count": int(self.connected)}
        return {"healthy": True, "service": "ib-connector", "ib_status": status, "error": None}

    def _validate(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.validated += 1
        valid = self.connected and any(symbol == asked["symbol"] for symbol, _ in self.bars)
        heads = {name: self._first(asked["symbol"], name) for name in asked.get("timeframes", [])}
        why = None if valid else f"Symbol {asked['symbol']} not found"
        return {"success": True, "is_valid": valid, "error_message": why, "head_timestamps": heads, "error": None}

    def _head(self, query: dict[str, list[str]]) -> dict[str, Any]:
        first = self._first(query["symbol"][0], query["timeframe"][0])
        return {"success": first is not None, "timestamp": first, "error": None if first else "no head"}

    def _first(self, symbol: str, name: str) -> str | None:
        bars = self.bars.get((symbol, name))
        return None if bars is None else bars.index[0].isoformat()

    def _historical(self, asked: dict[str, Any]) -> dict[str, Any]:
        bars = self.bars.get((asked["symbol"], asked["timeframe"]))
        if bars is None:
            return {"success": False, "error": f"Symbol validation failed: {asked['symbol']} not found"}
        start, end = parse_moment(asked["start"]), parse_moment(asked["end"])
        head = bars.index[0].to_pydatetime()
        if start < head:
            message = f"Data not available before {head.isoformat()}. Requested start: {start} Head timestamp: {head}"
            return {"success": False, "error": message}
        return found(_rounded(bars, start, end), asked)


def _rounded(bars: pd.DataFrame, start: datetime, end: datetime) -> pd.DataFrame:
    """As the service does: the span rounded down to what IB takes, counted back from its end."""
    return bars[
        (bars.index >= pd.Timestamp(max(start, end - host_rounded(end - start)))) & (bars.index <= pd.Timestamp(end))
    ]


def found(bars: pd.DataFrame, asked: dict[str, Any]) -> dict[str, Any]:
    if not len(bars):
        return {"success": False, "error": f"No data returned for {asked['symbol']} {asked['timeframe']}"}
    return {"success": True, "data": bars.to_json(orient="index", date_format="iso"), "rows": len(bars), "error": None}


def says(**body: Any) -> Behaviour:
    return answers(json.dumps(body).encode())


def failing(message: str) -> Behaviour:
    return says(success=False, data=None, rows=None, error=message)


def part_of(bars: pd.DataFrame, start: str, end: str) -> pd.DataFrame:
    return between(bars, parse_moment(start), parse_moment(end))
