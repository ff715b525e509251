"""What is missing between what is stored and what is asked for.

A period (see ``calendar``) is missing when the market traded, no bar of it is stored, and no earlier request covered
it: an answer without bars is an answer, too. Missing periods that follow one another are one gap; a gap reaches over
the closed days beside it, so that bars on a Sunday evening are not lost. Up to five of the stored bars on each side of
a gap are asked for again, also beyond a stretch that was answered without bars: if they come back different the two
sides do not have the same prices.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import numpy as np

from ktrdr_ops.domains.data.engine.calendar import Periods, Times, micros, moment
from ktrdr_ops.domains.data.engine.segments import DAY
from ktrdr_ops.domains.data.engine.timeframes import Timeframe

Mode = Literal["local", "tail", "backfill", "full"]
MODES: tuple[Mode, ...] = ("local", "tail", "backfill", "full")
OVERLAP = 5
MOST_GAPS = 400
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """``start <= t < end``, aware UTC."""

    start: datetime
    end: datetime


def united(spans: Iterable[Span]) -> list[Span]:
    """The same moments as ascending spans that neither touch nor overlap."""
    result: list[Span] = []
    for span in sorted(span for span in spans if span.start < span.end):
        if result and span.start <= result[-1].end:
            result[-1] = Span(result[-1].start, max(result[-1].end, span.end))
        else:
            result.append(span)
    return result


def gaps(
    mode: Mode, stored: Times, asked: Span, known: Sequence[Span], periods: Periods, timeframe: Timeframe
) -> list[Span]:
    """What to ask for, ascending. ``stored``: open times (µs UTC, ascending); ``known``: what was answered before."""
    if mode == "local" or asked.start >= asked.end:
        return []
    if not len(stored):
        return _grouped(_missing(stored, asked, known, periods), asked, periods)
    first, last = moment(stored[0]), moment(stored[-1])
    if mode == "tail":
        return [Span(moment(stored[-OVERLAP:][0]), asked.end)] if last < asked.end else []
    before = Span(asked.start, min(first, asked.end))
    found = _around(before, stored, known, periods, timeframe)
    if mode == "full":
        inside = Span(max(asked.start, first), min(asked.end, last))
        found += _around(inside, stored, known, periods, timeframe)
        found += _after(stored, asked, known, periods, timeframe)
    return _fewer(found, timeframe.span)


def missing_periods(stored: Times, asked: Span, periods: Periods) -> list[tuple[datetime, datetime, int]]:
    """Runs of periods without a bar: the first and last day (midnights UTC) and how many periods."""
    positions = _missing(stored, asked, [], periods)
    return [(moment(periods.starts[run[0]]), moment(periods.last_days[run[-1]]), len(run)) for run in _runs(positions)]


def _missing(stored: Times, asked: Span, known: Sequence[Span], periods: Periods) -> Times:
    expected = periods.within(asked.start, asked.end)
    absent = np.setdiff1d(expected, periods.holding(stored))
    opens = periods.opens[absent]
    answered = np.zeros(len(absent), dtype=bool)
    for span in known:
        answered |= (opens >= micros(span.start)) & (opens < micros(span.end))
    return absent[~answered]


def _runs(positions: Times) -> list[Times]:
    if not len(positions):
        return []
    return np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1)


def _grouped(positions: Times, asked: Span, periods: Periods) -> list[Span]:
    """Each run with the closed days on both its sides, inside what is asked."""
    spans = []
    for run in _runs(positions):
        before, after = run[0] - 1, run[-1] + 1
        start = moment(periods.last_days[before]) + DAY if before >= 0 else asked.start
        end = moment(periods.starts[after]) if after < len(periods.starts) else asked.end
        spans.append(Span(max(start, asked.start), min(end, asked.end)))
    return [span for span in spans if span.start < span.end]


def _around(asked: Span, stored: Times, known: Sequence[Span], periods: Periods, timeframe: Timeframe) -> list[Span]:
    """The gaps inside ``asked``, with stored bars on both their sides."""
    if asked.start >= asked.end:
        return []
    found = _grouped(_missing(stored, asked, known, periods), asked, periods)
    return [part for span in found for part in reaching(span, stored, timeframe)]


def _after(stored: Times, asked: Span, known: Sequence[Span], periods: Periods, timeframe: Timeframe) -> list[Span]:
    """From the last stored bar on, without what was answered already; with the last stored bars in any case."""
    last = moment(stored[-1])
    start = last + (timeframe.length if timeframe.period == "intraday" else _MICROSECOND)
    rest = [
        span
        for span in without(Span(max(start, asked.start), asked.end), known)
        if _trades(span, stored, periods, timeframe)
    ]
    return [part for span in rest for part in reaching(span, stored, timeframe)]


def without(span: Span, known: Iterable[Span]) -> list[Span]:
    """What is left of the span, ascending."""
    left, start = [], span.start
    for each in united(known):
        if start < each.end and each.start < span.end:
            left.append(Span(start, each.start))
            start = each.end
    return [part for part in (*left, Span(start, span.end)) if part.start < part.end]


def reaching(span: Span, held: Times, timeframe: Timeframe, *, left: bool = True, right: bool = True) -> list[Span]:
    """The span over up to five of the nearest held bars on its sides; those beyond one request's reach on their own."""
    parts = []
    position = int(np.searchsorted(held, micros(span.start)))
    if left and position:
        near = Span(_back(held, position, timeframe.span), moment(held[position - 1]) + timeframe.length)
        if span.start - near.start < timeframe.span:
            span = Span(near.start, span.end)
        else:
            parts.append(near)
    position = int(np.searchsorted(held, micros(span.end)))
    if right and position < len(held):
        near = Span(moment(held[position]), _ahead(held, position, timeframe))
        if near.end - span.end < timeframe.span:
            span = Span(span.start, near.end)
        else:
            parts.append(near)
    return [*parts, span]


def _trades(rest: Span, stored: Times, periods: Periods, timeframe: Timeframe) -> bool:
    expected = periods.within(rest.start, rest.end)
    if timeframe.period == "intraday":
        return bool(len(expected))
    return bool(len(np.setdiff1d(expected, periods.holding(stored))))


def _back(stored: Times, position: int, reach: timedelta) -> datetime:
    """Where up to five stored bars before this position begin, none of them further away than one request reaches."""
    before = stored[max(position - OVERLAP, 0) : position]
    near = before[before >= before[-1:] - reach // _MICROSECOND]
    return moment(near[0])


def _ahead(stored: Times, position: int, timeframe: Timeframe) -> datetime:
    """Where up to five stored bars from this position on end, as near as that."""
    after = stored[position : position + OVERLAP]
    near = after[after <= after[:1] + timeframe.span // _MICROSECOND]
    return moment(near[-1]) + timeframe.length


def _fewer(found: list[Span], reach: timedelta) -> list[Span]:
    """Neighbours that one request can hold are one; and never more than a plan can list."""
    result = _joined(found, reach)
    while len(result) > MOST_GAPS:
        reach *= 2
        result = _joined(found, reach)
    return result


def _joined(found: list[Span], reach: timedelta) -> list[Span]:
    result: list[Span] = []
    for span in united(found):
        if result and span.end - result[-1].start <= reach:
            result[-1] = Span(result[-1].start, span.end)
        else:
            result.append(span)
    return result
