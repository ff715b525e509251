"""What the IB host's answers mean. Pure: an answer or an error text in, what to do out.

The host says business failures with HTTP 200 and ``success: false``; what they mean is in the text alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

import pandas as pd

from ktrdr_ops.core.errors import HostAnswerWrong
from ktrdr_ops.domains.data.engine.bars import between, parse_host_data, parse_moment


class Meaning(Enum):
    """What to do about a failure that the host tells."""

    NO_DATA = "an answer: there are no bars"
    BEFORE_HEAD = "ask again from the head on"
    INVALID_SYMBOL = "final, if the gateway is connected"
    ABSENT = "the gateway does not answer: later may work"
    PACING = "asked too often: wait, then ask again"
    FINAL = "asking again would be refused again"
    WRONG = "nothing known: the segment has failed"


FINAL_CODES = frozenset({200, 354, 10090, 10197, 154, 392})
PACING_CODES = frozenset({100, 420})
GATEWAY_CODES = frozenset({502, 504, 1100, 1300, 2110})
PACING_WAIT_SECONDS = 60.0

_CODE = re.compile(r"\b(?:error|code)[\s:=#(]*(\d{3,5})\b", re.IGNORECASE)
_HEAD = re.compile(r"not available before\s+(\S+(?: \d\d:\d\d\S*)?)", re.IGNORECASE)
_TEXTS: tuple[tuple[str, Meaning], ...] = (
    ("not available before", Meaning.BEFORE_HEAD),
    ("pacing violation", Meaning.PACING),
    ("no data returned", Meaning.NO_DATA),
    ("returned no data", Meaning.NO_DATA),
    ("while creating connection", Meaning.ABSENT),
    ("while acquiring connection", Meaning.ABSENT),
    ("not connected", Meaning.ABSENT),
    ("symbol validation failed", Meaning.INVALID_SYMBOL),
    ("no security definition", Meaning.INVALID_SYMBOL),
    ("this host has no", Meaning.FINAL),
)


def meaning_of(error: str) -> Meaning:
    """What the host's error text asks of its client."""
    lowered = error.lower()
    for text, meaning in _TEXTS:
        if text in lowered:
            return meaning
    codes = {int(code) for code in _CODE.findall(error)}
    if codes & PACING_CODES:
        return Meaning.PACING
    if codes & FINAL_CODES:
        return Meaning.FINAL
    if 165 in codes:
        return Meaning.NO_DATA
    if codes & GATEWAY_CODES:
        return Meaning.ABSENT
    return Meaning.WRONG


def head_in(error: str) -> datetime | None:
    """The head timestamp that ``Data not available before …`` names; None if it cannot be read."""
    found = _HEAD.search(error)
    if found is None:
        return None
    try:
        return parse_moment(found.group(1).rstrip(".,;"))
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Fetched:
    """The bars that came for a request, without those that were not asked for."""

    bars: pd.DataFrame
    duplicates: int = 0
    outside: int = 0
    notes: list[str] = field(default_factory=list)


def fetched(answer: dict[str, Any], start: datetime, end: datetime) -> Fetched:
    """The bars of a ``success: true`` answer to a request from ``start`` to ``end`` (both included).

    Raises HostAnswerWrong when nothing of it is readable, it holds fewer bars than it says, or all of its bars lie
    outside what was asked.
    """
    data, rows = answer.get("data"), answer.get("rows")
    if data is None:
        raise HostAnswerWrong(f"the host says success, and {rows or 'no'} rows, and sends no data")
    if not isinstance(data, str):
        raise HostAnswerWrong(f"the host's data is {type(data).__name__}, not a string of JSON")
    bars, duplicates = parse_host_data(data)
    if isinstance(rows, int) and rows > len(bars) + duplicates:
        raise HostAnswerWrong(
            f"the host says {rows} rows and sent {len(bars) + duplicates} (asked from {start:%Y-%m-%d} to "
            f"{end:%Y-%m-%d}): the answer was cut short"
        )
    kept = between(bars, start, end)
    if len(bars) and pd.Timestamp(end) == bars.index[-1]:
        kept = bars[bars.index >= pd.Timestamp(start)]
    outside = len(bars) - len(kept)
    if outside and not len(kept):
        first, last = bars.index[0], bars.index[-1]
        raise HostAnswerWrong(
            f"asked for {start:%Y-%m-%d} to {end:%Y-%m-%d}, the host sent {len(bars)} bars from {first:%Y-%m-%d} to "
            f"{last:%Y-%m-%d}"
        )
    return Fetched(kept, duplicates, outside, _notes(answer, len(bars), duplicates, outside, start))


def _notes(answer: dict[str, Any], came: int, duplicates: int, outside: int, start: datetime) -> list[str]:
    notes = []
    rows = answer.get("rows")
    if isinstance(rows, int) and rows not in (came, came + duplicates):
        notes.append(f"from {start:%Y-%m-%d}: the host says {rows} rows and sent {came}")
    if outside:
        notes.append(f"from {start:%Y-%m-%d}: {outside} bars outside of what was asked were left out")
    return notes
