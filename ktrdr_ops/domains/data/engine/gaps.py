"""What is missing between what is stored and what is asked for.

A period (see ``calendar``) is missing when the market traded, no bar of it is stored, and no earlier request covered
it: an answer without bars is an answer, too. Missing periods that follow one another are one gap; a gap reaches over
the closed days beside it, so that bars on a Sunday evening are not lost. Where a gap touches stored bars it reaches
over up to five of them: those are asked for again, and if they come back different the two sides do not have the same
prices.
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
    """The gaps inside ``asked``, each reaching over the stored bars that it touches."""
    if asked.start >= asked.end:
        return []
    held = set(periods.holding(stored).tolist())
    result = []
    for span in _grouped(_missing(stored, asked, known, periods), asked, periods):
        left = int(periods.holding(np.array([micros(span.start) - 1]))[0])
        right = int(periods.holding(np.array([micros(span.end)]))[0])
        start = (
            _back(stored, int(np.searchsorted(stored, micros(span.start))), timeframe.span)
            if left in held
            else span.start
        )
        end = _ahead(stored, int(np.searchsorted(stored, micros(span.end))), timeframe) if right in held else span.end
        result.append(Span(min(start, span.start), max(end, span.end)))
    return result


def _after(stored: Times, asked: Span, known: Sequence[Span], periods: Periods, timeframe: Timeframe) -> list[Span]:
    """From the last stored bar on, without what was answered already."""
    last = moment(stored[-1])
    start = last + (timeframe.length if timeframe.period == "intraday" else _MICROSECOND)
    rest = Span(max(start, asked.start), asked.end)
    for span in known:
        if span.start <= rest.start < span.end:
            rest = Span(span.end, rest.end)
    if rest.start >= rest.end or not _trades(rest, stored, periods, timeframe):
        return []
    touches = rest.start == start
    return [Span(_back(stored, len(stored), timeframe.span), rest.end)] if touches else [rest]


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
