"""How a range is cut into requests.

A segment is what is kept of one answer: ``start <= bar < end``. Segments lie edge to edge: together they are the range.
What is *asked* for reaches from ``ask_from`` to ``end``, where ``ask_from`` may lie before ``start``: the host rounds
the span of a request down (see ``timeframes``) and counts back from its end, so an odd remainder is asked for as the
next span that survives rounding. Where that would reach before ``floor`` (the host has nothing there and refuses), the
remainder is cut once more instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from ktrdr_ops.domains.data.engine.timeframes import Timeframe

DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Segment:
    """Keeps ``start <= bar < end`` of what is asked for from ``ask_from`` to ``end``. All aware UTC."""

    start: datetime
    end: datetime
    ask_from: datetime

    @property
    def name(self) -> str:
        """What its step is called; equal for equal segments."""
        return f"segment:{stamp(self.start)}/{stamp(self.end)}"


def stamp(moment: datetime) -> str:
    """``2004-08-19T00:00:00Z``; microseconds only where there are some."""
    return moment.isoformat().replace("+00:00", "Z")


def host_rounded(length: timedelta) -> timedelta:
    """What the host makes of the span of a request."""
    if length <= 7 * DAY:
        return length // DAY * DAY
    if length <= 365 * DAY:
        return length // (7 * DAY) * 7 * DAY
    return length // (365 * DAY) * 365 * DAY


def surviving(length: timedelta) -> timedelta:
    """The shortest span, not shorter than ``length``, that the host does not shorten."""
    unit = 1 if length <= 7 * DAY else 7 if length <= 364 * DAY else 365
    span = -(-length // (unit * DAY)) * unit * DAY
    return span if host_rounded(span) == span else 730 * DAY


def segments(
    start: datetime, end: datetime, timeframe: Timeframe, *, newest_first: bool, floor: datetime | None = None
) -> list[Segment]:
    """The range as segments in the order in which they are to be asked for; empty if it is."""
    cut = list(_backward(start, end, timeframe.span) if newest_first else _forward(start, end, timeframe.span))
    return [piece for first, last in cut for piece in _asked(first, last, floor)]


def _forward(start: datetime, end: datetime, span: timedelta) -> Iterator[tuple[datetime, datetime]]:
    while start < end:
        yield start, min(start + span, end)
        start += span


def _backward(start: datetime, end: datetime, span: timedelta) -> Iterator[tuple[datetime, datetime]]:
    while start < end:
        yield max(end - span, start), end
        end -= span


def _asked(start: datetime, end: datetime, floor: datetime | None) -> Iterator[Segment]:
    """One segment, or where the floor forbids widening, whole units first and then what is left."""
    ask_from = end - surviving(end - start)
    if floor is None or ask_from >= floor or ask_from == start:
        yield Segment(start, end, ask_from)
        return
    whole = host_rounded(host_rounded(end - start))  # 365 days are rounded again, to 364
    if not whole:
        yield Segment(start, end, max(ask_from, floor))
        return
    yield Segment(start, start + whole, start)
    yield from _asked(start + whole, end, floor)
