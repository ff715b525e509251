"""When a market trades, as periods: a session for bars up to a day, a week or a month of sessions for longer ones.

Stocks follow New York (XNYS), forex 24 hours on 5 days. A period lasts from midnight UTC of its first day to the next
period's midnight; that is enough for bars stamped with the exchange's date, its opening time, or midnight in New York.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import numpy as np

from ktrdr_ops.domains.data.engine.symbols import instrument_type
from ktrdr_ops.domains.data.engine.timeframes import Period, Timeframe

_FIRST = "1960-01-01"
_DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Times = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Periods:
    """Ascending int64 µs UTC: first day's midnight, first opening, last closing, last day's midnight."""

    starts: Times
    opens: Times
    closes: Times
    last_days: Times

    def holding(self, at: Times) -> Times:
        """For each time the position of the period that holds it; -1 before the first."""
        return np.searchsorted(self.starts, at, side="right") - 1

    def within(self, start: datetime, end: datetime) -> Times:
        """Positions of the periods that open before ``end`` and close after ``start``."""
        return np.flatnonzero((self.opens < micros(end)) & (self.closes > micros(start)))


def micros(moment: datetime) -> int:
    """Microseconds since 1970-01-01 UTC."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def moment(at: int) -> datetime:
    """The aware UTC datetime of microseconds."""
    return _EPOCH + timedelta(microseconds=int(at))


def periods(symbol: str, timeframe: Timeframe, until: datetime) -> Periods:
    """The market's periods from 1960 to beyond ``until``. The first call loads the calendar library (about 0.3 s)."""
    name = "24/5" if instrument_type(symbol) == "CASH" else "XNYS"
    period: Period = "day" if timeframe.period == "intraday" else timeframe.period
    decade = -(-(until.year + 1) // 10) * 10  # few calendars are made, whatever is asked
    return _periods(name, period, max(decade, 2030))


@lru_cache(maxsize=16)
def _periods(name: str, period: Period, last_year: int) -> Periods:
    days, opens, closes = _sessions(name, last_year)
    if period == "day":
        return Periods(days, opens, closes, days)
    dates = days.astype("datetime64[us]")
    weeks = (dates.astype("datetime64[D]").astype("int64") + 3) // 7
    group = weeks if period == "week" else dates.astype("datetime64[M]").astype("int64")
    first = np.flatnonzero(np.diff(group, prepend=group[0] - 1))
    last = np.append(first[1:] - 1, len(group) - 1)
    midnight = (group[first] * 7 - 3) * _DAY_US if period == "week" else _months(group[first])
    return Periods(midnight, opens[first], closes[last], days[last])


def _months(number: Times) -> Times:
    return number.astype("datetime64[M]").astype("datetime64[us]").astype("int64")


@lru_cache(maxsize=4)
def _sessions(name: str, last_year: int) -> tuple[Times, Times, Times]:
    import exchange_calendars

    # It still reads times as pandas 3.0 had them. Ignored for good: `catch_warnings` is not safe in threads.
    warnings.filterwarnings("ignore", message="Series.values returning an ndarray that drops timezone")
    schedule = exchange_calendars.get_calendar(name, start=_FIRST, end=f"{last_year}-12-31").schedule
    opens = schedule["open"].dt.tz_convert("UTC").dt.tz_localize(None)
    closes = schedule["close"].dt.tz_convert("UTC").dt.tz_localize(None)
    return _us(schedule.index), _us(opens), _us(closes)


def _us(column: Any) -> Times:
    return np.asarray(column.to_numpy().astype("datetime64[us]").astype("int64"))


def complete_until(symbol: str, timeframe: Timeframe, now: datetime) -> datetime:
    """Bars that open before this are over at ``now``. One still being made would differ when asked for again."""
    if timeframe.period == "intraday":
        minute = now.replace(second=0, microsecond=0)
        return minute - timeframe.length + timedelta(minutes=1)
    known = periods(symbol, timeframe, now)
    unfinished = int(np.searchsorted(known.closes, micros(now), side="right"))
    return min(now, moment(known.starts[unfinished])) if unfinished < len(known.starts) else now
