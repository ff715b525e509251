"""``indicators show``: what was computed last, and from what."""

from __future__ import annotations

import asyncio
from typing import Any

import pandas as pd

from ktrdr_ops.core.domain import CommandContext, CommandResult
from ktrdr_ops.core.errors import OperationNotFound
from ktrdr_ops.domains.indicators.engine import tables
from ktrdr_ops.domains.indicators.engine.asked import symbol as checked_symbol
from ktrdr_ops.domains.indicators.engine.asked import timeframe as checked_timeframe
from ktrdr_ops.domains.indicators.engine.manager import KIND

_SHOWN = 8


async def show(context: CommandContext) -> CommandResult:
    """The last rows of the latest table. Raises OperationNotFound where none was computed, JournalCorrupt."""
    app, given = context.app, context.values
    symbol, timeframe = checked_symbol(given["symbol"]), checked_timeframe(given["timeframe"])
    artifact = await app.catalogue.latest(KIND, f"{symbol}:{timeframe}")
    if artifact is None:
        raise OperationNotFound(
            f"no indicators of {symbol} {timeframe} have been computed",
            hint=f"Compute them: ktrdr-ops indicators compute {symbol} {timeframe}",
        )
    table = await asyncio.to_thread(lambda: tables.read(app.objects.read(artifact.object)))
    last = table.iloc[-_SHOWN:]
    rows: list[dict[str, Any]] = [
        {"timestamp": at.isoformat(), **dict(zip(table.columns, map(_plain, row), strict=True))}
        for at, row in zip(pd.DatetimeIndex(last.index), last.to_numpy().tolist(), strict=True)
    ]
    document: dict[str, Any] = {
        "symbol": symbol,
        "timeframe": timeframe,
        "indicators": artifact.metadata.get("indicators"),
        "rows": len(table),
        "sha256": artifact.sha256,
        "path": artifact.name,
        "operation_id": artifact.operation_id,
        "last": rows,
    }
    return CommandResult(document, _text(document, rows))


def _plain(number: float) -> float | None:
    return number if number - number == 0 else None  # NaN and infinity are no JSON


def _text(document: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    names = [name for name in rows[-1] if name != "timestamp"] if rows else []
    widths = [max(len(name), 12) for name in names]
    lines = [
        f"{document['symbol']} {document['timeframe']}   {document['rows']:,} rows",
        "  ".join([f"{'timestamp':<25}", *(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))]),
    ]
    for row in rows:
        cells = [
            f"{'' if row[name] is None else format(row[name], '.6g'):>{width}}"
            for name, width in zip(names, widths, strict=True)
        ]
        lines.append("  ".join([f"{row['timestamp']:<25}", *cells]))
    return "\n".join(
        [*lines, f"{document['path']}", f"published by {document['operation_id']}", f"sha256 {document['sha256']}"]
    )
