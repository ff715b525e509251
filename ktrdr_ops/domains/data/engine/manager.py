"""A load, from a symbol to a stored series, in five steps.

    1 Validating symbol and range   "now", the head timestamp and the range
    2 Loading stored data           what is stored now; a file of the user's is kept as an object first
    3 Analyzing gaps                which spans to ask for
    4 Fetching segments             each stored and journaled before the next is asked for
    5 Merging and saving            compared where old and new overlap, published, then the people's name is moved

A segment whose answer cannot be used has failed; the others go on, then the load fails and says which. What is
journaled is not asked for again by a later attempt, but for five bars beside what it asks for, to be compared. When
the host has revised its bars the attempt fails, and the next begins anew (see ``left``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from ktrdr_ops.core.artifacts import Publication
from ktrdr_ops.core.attempt import Attempt
from ktrdr_ops.core.errors import HostAnswerWrong, HostRefused, HostUnavailable, InvalidValue
from ktrdr_ops.core.progress import GenericProgressManager
from ktrdr_ops.domains.data.engine.answers import Fetched
from ktrdr_ops.domains.data.engine.asked import Asked, Range, spans_document, spans_of
from ktrdr_ops.domains.data.engine.bars import (
    bar_times,
    between,
    canonical_sha256,
    empty_bars,
    merged,
    times,
)
from ktrdr_ops.domains.data.engine.calendar import complete_until, moment, periods
from ktrdr_ops.domains.data.engine.errors import (
    DataHostUnavailable,
    DataServiceError,
    NothingStored,
    SeriesRevised,
    UnknownSymbol,
)
from ktrdr_ops.domains.data.engine.gaps import Span, gaps, united
from ktrdr_ops.domains.data.engine.ib_host import Caller, IbHostService, unknown_hint
from ktrdr_ops.domains.data.engine.left import REVISED, SEGMENT, answered, reading, remaining
from ktrdr_ops.domains.data.engine.merging import Merge, lacking, series_revised
from ktrdr_ops.domains.data.engine.segments import Segment, stamp
from ktrdr_ops.domains.data.engine.store import Format, parquet_bytes, read_object
from ktrdr_ops.domains.data.engine.stored import SERIES, Stored, StoredSeries, extent

RESULT = "load"
"""Where a returned DataFrame carries the load's result: ``bars.attrs["load"]``."""

_FIRST_DAY = moment(-315_619_200_000_000)  # 1960-01-01, where the calendars begin
_RANGES = {1: (0.0, 4.0), 2: (4.0, 7.0), 3: (7.0, 10.0), 4: (10.0, 96.0), 5: (96.0, 100.0)}


class DataManager:
    """Loads series from one host into one data folder. ``as_of`` is what "now" means; None is the attempt's clock."""

    def __init__(
        self, host: IbHostService, stored: StoredSeries, *, format: Format = "parquet", as_of: datetime | None = None
    ) -> None:
        self.host = host
        self.stored = stored
        self.format = format
        self.as_of = as_of

    async def load_data(self, asked: Asked, progress: GenericProgressManager, attempt: Attempt) -> pd.DataFrame:
        """The series, cut to the asked range; ``attrs["load"]`` is the result document.

        Raises DataServiceError (NothingStored, UnknownSymbol, SeriesRevised, DataHostUnavailable among it),
        InvalidValue for a range that cannot be, OperationCancelledException.
        """
        return await _Load(self, asked, progress, attempt).run()

    def source(self, asked: Asked) -> str:
        """Who is asked for bars, as the result says it."""
        return "stored" if asked.mode == "local" else f"{self.host.get_service_name()} {self.host.get_base_url()}"


@dataclass(slots=True)
class _Load:
    manager: DataManager
    asked: Asked
    progress: GenericProgressManager
    attempt: Attempt
    caller: Caller = field(init=False)
    reading: str = field(init=False)
    earlier: pd.DataFrame = field(default_factory=empty_bars)
    bars_so_far: int = 0

    def __post_init__(self) -> None:
        self.reading = reading(self.attempt.steps, self.attempt.number)
        self.caller = Caller(self.attempt.token, self.attempt.retried, self.attempt.waiting)

    async def run(self) -> pd.DataFrame:
        if "saved" not in self.attempt.steps:
            span = await self._validated()
            stored = await self._stored()
            wanted = await self._analyzed(span, stored)
            try:
                await self._fetched(wanted)
                await self._merged()
            except SeriesRevised as error:
                await self.attempt.complete_step(self._name(REVISED), error.message)
                raise
        return await self._returned()

    def _name(self, step: str) -> str:
        return f"{step}{self.reading}"

    def _tell(self, step: int, message: str, done: int = 0, total: int | None = None, **context: Any) -> None:
        self.progress.update_progress(
            step, message, items_processed=done, context=context, total_items=total, step_range=_RANGES[step]
        )

    # 1

    async def _validated(self) -> Range:
        self._tell(1, "Validating symbol and range")
        return Range.of(await self.attempt.step(self._name("range"), self._range))

    async def _range(self) -> dict[str, Any]:
        asked, now = self.asked, self.manager.as_of or self.attempt.now()
        until = await asyncio.to_thread(complete_until, asked.symbol, asked.timeframe, now)
        end = until if asked.end is None else min(asked.end, until)
        if asked.start is not None and asked.start >= end:
            raise InvalidValue(
                f"the start {stamp(asked.start)} is not before the last complete bar ({stamp(end)})",
                hint="The end is capped at now. Ask for an earlier start.",
            )
        if asked.mode in ("local", "tail"):
            return Range(now, asked.start, end, None).document()
        head = await self._head()
        start = max([_FIRST_DAY, *(known for known in (asked.start, head) if known is not None)])
        if start >= end:
            raise DataServiceError(
                f"there are no bars of {asked.symbol} {asked.timeframe.name} before {stamp(start)}, and the load ends "
                f"at {stamp(end)}",
                hint="Ask for a later end.",
            )
        return Range(now, start, end, head).document()

    async def _head(self) -> datetime | None:
        asked = self.asked
        contract = await self.manager.host.contract(asked.symbol, asked.timeframe.name, self.caller)
        if not contract.valid:
            raise UnknownSymbol(
                f"the {self.manager.host.get_service_name()} does not know {asked.symbol}: {contract.error}",
                hint=unknown_hint(asked.symbol),
            )
        if contract.head is None and asked.start is None:
            raise DataServiceError(
                f"the {self.manager.host.get_service_name()} does not say since when it has bars of {asked.symbol} "
                f"{asked.timeframe.name}: {contract.error}",
                hint="It may not have this timeframe at all. If it has: --start 2010-01-01",
            )
        return contract.head

    # 2

    async def _stored(self) -> Stored | None:
        self._tell(2, "Loading stored data")
        stored = await self.manager.stored.current(self.asked, self.attempt)
        if self._name("stored") not in self.attempt.steps:
            value = None if stored is None else {"object": stored.object, **extent(stored.bars)}
            await self.attempt.complete_step(
                self._name("stored"), value, publish=() if stored is None else stored.publish
            )
        if (stored is None or not len(stored.bars)) and self.asked.mode in ("local", "tail"):
            asked = self.asked
            raise NothingStored(
                f"nothing is stored of {asked.symbol} {asked.timeframe.name}",
                hint=f"Load it: ktrdr-ops data load {asked.symbol} {asked.timeframe.name} --mode full",
            )
        return stored

    # 3

    async def _analyzed(self, span: Range, stored: Stored | None) -> list[Segment]:
        self._tell(3, "Analyzing gaps")

        async def analyze() -> list[list[str]]:
            known = [] if self.asked.refresh else await self._known(stored)
            return await asyncio.to_thread(self._gaps, span, stored, known)

        spans = spans_of(await self.attempt.step(self._name("plan"), analyze))
        earlier = self._answered()
        self.earlier = await asyncio.to_thread(self._bars_of, earlier.values())
        self.bars_so_far = sum(value["rows"] for value in earlier.values())
        return remaining(self.asked, spans, earlier, times(self.earlier), span.head)

    def _answered(self) -> dict[str, Any]:
        return answered(self.attempt.steps, self.reading)

    def _bars_of(self, values: Iterable[Any]) -> pd.DataFrame:
        return merged(read_object(self.attempt.objects, value["object"], "parquet") for value in values)

    async def _known(self, stored: Stored | None) -> list[Span]:
        """What was asked and answered before: the stored series' own requests, and answers without bars."""
        empty = [
            spans_of([artifact.metadata["span"]])[0]
            for artifact in await self.attempt.catalogue.every(SEGMENT, self.asked.key)
            if artifact.key == self.asked.key and artifact.metadata.get("rows") == 0
        ]
        return united([*empty, *([] if stored is None else stored.covered)])

    def _gaps(self, span: Range, stored: Stored | None, known: list[Span]) -> list[list[str]]:
        asked = self.asked
        bars = empty_bars() if stored is None else stored.bars
        at = times(bars)
        start = span.start or moment(at[0])
        if asked.refresh:
            first = min([start, *bar_times(bars.iloc[:1])])
            last = max([span.end, *(bar + asked.timeframe.length for bar in bar_times(bars.iloc[-1:]))])
            return spans_document([Span(first, last)])
        calendar = periods(asked.symbol, asked.timeframe, span.end)
        return spans_document(gaps(asked.mode, at, Span(start, span.end), known, calendar, asked.timeframe))

    # 4

    async def _fetched(self, wanted: list[Segment]) -> None:
        failed: list[tuple[Segment, HostAnswerWrong]] = []
        before = len(self._answered())
        total = before + len(wanted)
        for number, segment in enumerate(wanted, before + 1):
            self._tell_segment(number, total)
            try:
                value = await self._fetch(segment)
            except HostAnswerWrong as error:
                failed.append((segment, error))
                continue
            self.bars_so_far += value["rows"]
        if total:
            self._tell_segment(total, total, done=total)
        if failed:
            raise self._failure(failed, total)

    def _tell_segment(self, number: int, total: int, done: int | None = None) -> None:
        self._tell(
            4,
            f"Fetching segment {number}/{total}" if done is None else f"Fetched {total} segments",
            number - 1 if done is None else done,
            total,
            segment=number,
            segments=total,
            bars=self.bars_so_far,
        )

    async def _fetch(self, segment: Segment) -> dict[str, Any]:
        asked, before = self.asked, self.caller.requests
        name = asked.timeframe.name
        try:
            answer = await self.manager.host.historical(asked.symbol, name, segment.ask_from, segment.end, self.caller)
        except HostUnavailable as error:
            raise DataHostUnavailable(
                f"Data load failed for {asked.symbol}: {error.message}",
                hint=error.hint,
                **{**error.details, "result": self._partial()},
            ) from error
        except HostRefused as error:
            raise DataServiceError(
                f"Data load failed for {asked.symbol}: {error.message}",
                hint=error.hint,
                final=True,
                result=self._partial(),
            ) from error
        value, publication = await asyncio.to_thread(self._kept, segment, answer)
        value["requests"] = self.caller.requests - before
        await self.attempt.complete_step(self._name(segment.name), value, publish=[publication])
        return value

    def _kept(self, segment: Segment, answer: Fetched) -> tuple[dict[str, Any], Publication]:
        """Put the segment into the object store; gives its step's value and what to publish. Raises SeriesRevised."""
        bars = between(answer.bars, segment.start, segment.end)
        revised = lacking(between(self.earlier, segment.start, segment.end), bars)
        if revised:
            raise series_revised(self.asked, revised, "bars that came before are")
        content = parquet_bytes(bars)
        object, sha256 = self.attempt.objects.put(content), canonical_sha256(bars)
        covered = self._covered(segment, bars)
        span = spans_document([covered])[0]
        value = {
            "object": object,
            "sha256": sha256,
            **extent(bars),
            "span": span,
            "duplicates": answer.duplicates,
            "notes": [*answer.notes, *_cut_short(segment, covered)],
        }
        publication = Publication(
            kind=SEGMENT,
            key=self.asked.key,
            object=object,
            sha256=sha256,
            size=len(content),
            metadata={**extent(bars), "span": span},
        )
        return value, publication

    def _covered(self, segment: Segment, bars: pd.DataFrame) -> Span:
        """Where the answer is taken as complete. One that begins late or ends early by two periods or more may have
        been cut short: it counts from its first bar on, or up to its last."""
        if not len(bars):
            return Span(segment.start, segment.end)
        timeframe = self.asked.timeframe
        calendar = periods(self.asked.symbol, timeframe, segment.end)
        expected = calendar.within(segment.start, segment.end)
        first, last = bar_times(bars.iloc[[0, -1]])
        before, after = calendar.holding(times(bars)[[0, -1]])
        late = np.searchsorted(expected, before)
        early = len(expected) - np.searchsorted(expected, after, side="right")
        ended = last + (timeframe.length if timeframe.period == "intraday" else timedelta(microseconds=1))
        return Span(
            segment.start if late < 2 else first,
            segment.end if early < 2 else min(ended, segment.end),
        )

    def _failure(self, failed: list[tuple[Segment, HostAnswerWrong]], total: int) -> DataServiceError:
        named = ", ".join(f"{segment.start:%Y-%m-%d} to {segment.end:%Y-%m-%d}" for segment, _ in failed[:5])
        more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
        return DataServiceError(
            f"Data load failed for {self.asked.symbol}: {len(failed)} of {total} segments: {named}{more} "
            f"({failed[0][1].message})",
            hint="The other segments are kept. The same command again asks for these only.",
            result={
                **self._partial(total, len(failed)),
                "failed_segments": [
                    {"start": stamp(segment.start), "end": stamp(segment.end), "message": error.message[:300]}
                    for segment, error in failed[:50]
                ],
            },
        )

    def _partial(self, total: int | None = None, failed: int = 0) -> dict[str, Any]:
        asked = self.asked
        fetched = self._answered().values()
        return {
            "symbol": asked.symbol,
            "timeframe": asked.timeframe.name,
            "mode": asked.mode,
            "source": self.manager.source(asked),
            "segments": {"total": total, "fetched": len(fetched), "failed": failed},
            "requests": sum(value["requests"] for value in fetched),
        }

    # 5

    async def _merged(self) -> None:
        self._tell(5, "Merging and saving", self.bars_so_far, bars=self.bars_so_far)
        stored = self.manager.stored
        current = await stored.current(self.asked, self.attempt)
        values = list(self._answered().values())
        merge = Merge(
            self.asked, self.attempt.objects, stored.files, self.manager.format, self.manager.source(self.asked), values
        )
        done = await asyncio.to_thread(merge.into, current)
        publish = [*(current.publish if current else ()), *([done.publication] if done.publication else [])]
        await self.attempt.complete_step("saved", done.saved, publish=publish)

    async def _returned(self) -> pd.DataFrame:
        """Move the people's name (again, if an earlier attempt could not) and give the bars that were asked for."""
        saved, asked, objects = self.attempt.steps["saved"], self.asked, self.attempt.objects
        series = empty_bars()
        if saved["object"] is not None:
            await self._moved(saved)
            series = await asyncio.to_thread(read_object, objects, saved["object"], saved["format"])
        bars = between(series, asked.start, asked.end)
        bars.attrs[RESULT] = saved["result"]
        return bars

    async def _moved(self, saved: dict[str, Any]) -> None:
        """The name moves to what was saved, unless another operation has published since."""
        latest = await self.attempt.catalogue.latest(SERIES, self.asked.key)
        if latest is not None and latest.object == saved["object"]:
            await self.manager.stored.move(self.asked, latest, self.attempt)


def _cut_short(segment: Segment, covered: Span) -> list[str]:
    late = f"asked from {stamp(segment.start)}, the answer begins at {stamp(covered.start)}"
    early = f"asked up to {stamp(segment.end)}, the answer ends at {stamp(covered.end)}"
    return [*([late] if covered.start > segment.start else []), *([early] if covered.end < segment.end else [])]
