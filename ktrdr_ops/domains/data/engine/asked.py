"""What a load was asked, and the documents that its steps leave in the journal for later attempts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ktrdr_ops.domains.data.engine.bars import parse_moment
from ktrdr_ops.domains.data.engine.gaps import Mode, Span
from ktrdr_ops.domains.data.engine.segments import stamp
from ktrdr_ops.domains.data.engine.timeframes import Timeframe, timeframe

MOST_COVERED = 400


@dataclass(frozen=True, slots=True)
class Asked:
    """The parameters of one load, typed. ``start`` and ``end`` (not included) are UTC."""

    symbol: str
    timeframe: Timeframe
    mode: Mode
    start: datetime | None
    end: datetime | None
    refresh: bool

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> Asked:
        """From validated parameters."""
        start, end = parameters["start"], parameters["end"]
        return cls(
            parameters["symbol"],
            timeframe(parameters["timeframe"]),
            parameters["mode"],
            None if start is None else parse_moment(start),
            None if end is None else parse_moment(end),
            parameters["refresh"],
        )

    @property
    def key(self) -> str:
        """The key of what it publishes: ``AAPL:1d``."""
        return f"{self.symbol}:{self.timeframe.name}"


@dataclass(frozen=True, slots=True)
class Range:
    """What the load is about: attempts that go on with it use the same "now" and head."""

    now: datetime
    start: datetime | None
    end: datetime
    head: datetime | None

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "now": stamp(self.now),
            "start": None if self.start is None else stamp(self.start),
            "end": stamp(self.end),
            "head": None if self.head is None else stamp(self.head),
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Range:
        """From JSON."""
        optional = {name: document[name] and parse_moment(document[name]) for name in ("start", "head")}
        return cls(parse_moment(document["now"]), optional["start"], parse_moment(document["end"]), optional["head"])


def spans_document(spans: Iterable[Span]) -> list[list[str]]:
    """Spans as JSON."""
    return [[stamp(span.start), stamp(span.end)] for span in spans]


def spans_of(document: Iterable[Any]) -> list[Span]:
    """Spans from JSON."""
    return [Span(parse_moment(start), parse_moment(end)) for start, end in document]
