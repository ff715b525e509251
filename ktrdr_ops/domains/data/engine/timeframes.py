"""The bar lengths a host knows, and how much of each one request may span.

The spans are the host's limits lowered to what survives its rounding (whole days up to 7, whole weeks up to 365 days,
whole years beyond, always down): a longer request silently loses its beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from ktrdr_ops.core.errors import InvalidValue

Period = Literal["intraday", "day", "week", "month"]


@dataclass(frozen=True, slots=True)
class Timeframe:
    """``length`` of one bar (a month counts as 31 days), ``span`` of one request, ``file_name`` of its files."""

    name: str
    length: timedelta
    span: timedelta
    period: Period
    file_name: str


def _timeframe(name: str, length: timedelta, days: int, period: Period = "intraday") -> Timeframe:
    return Timeframe(name, length, timedelta(days=days), period, "1mo" if name == "1M" else name)


TIMEFRAMES = {
    each.name: each
    for each in (
        _timeframe("1m", timedelta(minutes=1), 1),
        _timeframe("5m", timedelta(minutes=5), 6),
        _timeframe("15m", timedelta(minutes=15), 14),
        _timeframe("30m", timedelta(minutes=30), 28),
        _timeframe("1h", timedelta(hours=1), 28),
        _timeframe("2h", timedelta(hours=2), 28),
        _timeframe("4h", timedelta(hours=4), 119),
        _timeframe("1d", timedelta(days=1), 364, "day"),
        _timeframe("1w", timedelta(days=7), 730, "week"),
        _timeframe("1M", timedelta(days=31), 730, "month"),
    )
}


def timeframe(name: object) -> Timeframe:
    """The timeframe of that name. Raises InvalidValue with the valid ones."""
    if isinstance(name, str) and name in TIMEFRAMES:
        return TIMEFRAMES[name]
    raise InvalidValue(
        f"unknown timeframe {shown(name)}: valid are {', '.join(TIMEFRAMES)}",
        hint="1m is a minute, 1M a month. Example: ktrdr-ops data load AAPL 1d",
    )


def shown(value: object) -> str:
    """A value from outside as it may stand in a message: escaped, ASCII, cut at 40 characters."""
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:40]}... ({len(value if isinstance(value, str) else text)} characters)"
