"""Computing indicators, in three steps.

    1 Reading the series       the latest that is published; one that is missing is loaded by a child operation
    2 Processing indicators    each one is kept before the next is begun
    3 Saving                   all as one table, published and put in its place

Which series is meant is decided once, by the first attempt.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ktrdr_ops.core.artifacts import Publication, replace_durably
from ktrdr_ops.core.folders import make_folder
from ktrdr_ops.domains.indicators.engine import library, tables

if TYPE_CHECKING:
    from ktrdr_ops.core.artifacts import Artifact
    from ktrdr_ops.core.attempt import Attempt
    from ktrdr_ops.core.progress import GenericProgressManager

KIND = "indicators"
LOAD = "data_load"
RESULT = "indicators"
"""The name in a table's ``attrs`` of the result that the journal keeps."""


class IndicatorsManager:
    """Computes over the series of one folder; what it makes lies beside them."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir

    async def compute(
        self, symbol: str, timeframe: str, indicators: list[str], progress: GenericProgressManager, attempt: Attempt
    ) -> pd.DataFrame:
        """A column for each output of each indicator, a row for each bar. Raises what a load of a missing series
        raises, InvalidValue, JournalCorrupt, OperationCancelledException."""
        progress.update_progress(1, "Reading the series")
        source: dict[str, Any] = await attempt.step("series", lambda: self._source(symbol, timeframe, attempt))
        await attempt.uses({**source, "kind": tables.SERIES, "key": f"{symbol}:{timeframe}", "evidence": "own"})
        content = await asyncio.to_thread(attempt.objects.read, source["object"])
        bars = await asyncio.to_thread(tables.series, content, source["format"])
        parts = [bars.iloc[:, :0]]
        for number, indicator in enumerate(indicators, 1):
            context = {"indicator": indicator, "rows": len(bars)}
            at = 10 + 80 * (number - 1) / len(indicators)
            total = len(indicators)
            progress.update_progress(
                2, "Processing indicators", number - 1, context, total_items=total, step_range=(at, at)
            )
            parts.append(await self._indicator(indicator, bars, attempt))
        progress.update_progress(3, "Saving")
        return await self._saved(symbol, timeframe, indicators, source, pd.concat(parts, axis=1), attempt)

    async def _source(self, symbol: str, timeframe: str, attempt: Attempt) -> dict[str, Any]:
        key = f"{symbol}:{timeframe}"
        found: Artifact | None = await attempt.catalogue.latest(tables.SERIES, key)
        if found is None:
            await attempt.run_child(LOAD, symbol=symbol, timeframe=timeframe)
            found = await attempt.catalogue.latest(tables.SERIES, key)
        assert found is not None, "a load that completed has published its series"
        return {
            "object": found.object,
            "sha256": found.sha256,
            "format": found.metadata.get("format"),
            "operation_id": found.operation_id,
        }

    async def _indicator(self, indicator: str, bars: pd.DataFrame, attempt: Attempt) -> pd.DataFrame:
        name = f"indicator {indicator}"
        if name not in attempt.steps:
            attempt.token.check_cancellation_point(attempt.operation.operation_id)
            table = await asyncio.to_thread(library.computed, indicator, bars)
            kept = await asyncio.to_thread(attempt.objects.put, tables.stored(table))
            await attempt.complete_step(name, {"object": kept})
        return await asyncio.to_thread(lambda: tables.read(attempt.objects.read(attempt.steps[name]["object"])))

    async def _saved(
        self,
        symbol: str,
        timeframe: str,
        indicators: list[str],
        source: dict[str, Any],
        table: pd.DataFrame,
        attempt: Attempt,
    ) -> pd.DataFrame:
        content = await asyncio.to_thread(tables.stored, table)
        path = self.data_dir / symbol / f"{'1mo' if timeframe == '1M' else timeframe}.indicators.parquet"
        sha256 = tables.canonical_sha256(table)
        result = {
            "symbol": symbol,
            "timeframe": timeframe,
            "indicators": indicators,
            "columns": len(table.columns),
            "rows": len(table),
            "first": table.index[0].isoformat() if len(table) else None,
            "last": table.index[-1].isoformat() if len(table) else None,
            "path": str(path),
            "sha256": sha256,
            "data": {"sha256": source["sha256"], "operation_id": source["operation_id"], "evidence": "own"},
        }
        if "saved" not in attempt.steps:
            published = Publication(
                kind=KIND,
                key=f"{symbol}:{timeframe}",
                object=await asyncio.to_thread(attempt.objects.put, content),
                sha256=sha256,
                size=len(content),
                metadata={"format": "parquet", "rows": len(table), "indicators": indicators},
                name=str(path),
            )
            await attempt.complete_step("saved", publish=[published])
        await asyncio.to_thread(_put_in_place, path, content)
        table.attrs[RESULT] = result
        return table


def _put_in_place(path: Path, content: bytes) -> None:
    """Let the name be this table, durably; a later attempt does so where an earlier one could not."""
    make_folder(path.parent.parent)
    make_folder(path.parent)
    replace_durably(path, content)
