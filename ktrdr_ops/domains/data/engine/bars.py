"""Bars: one convention for a series in memory, and one encoding that its ``sha256`` is taken of.

In memory a series is a DataFrame with a tz-aware UTC ``DatetimeIndex`` (microseconds) named ``timestamp``, the bars'
open times, ascending and unique, and the float64 columns open, high, low, close, volume. NaN is a value like any other:
it is stored.

The canonical encoding is the concatenation, in ascending order of time, of 48 bytes for each bar: the open time as
big-endian signed 64-bit microseconds since 1970-01-01 UTC, then open, high, low, close and volume as big-endian
IEEE 754 binary64. Each NaN is written as ``7ff8000000000000`` and -0.0 as +0.0. There is no header: the canonical hash
of an empty series is the SHA-256 of nothing. It does not depend on file formats, column types or library versions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

from ktrdr_ops.core.errors import HostAnswerWrong

COLUMNS = ("open", "high", "low", "close", "volume")
_ROW = np.dtype([("at", ">i8"), *((name, ">f8") for name in COLUMNS)])
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def frame_of(at: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> pd.DataFrame:
    """A series from open times (int64 µs UTC) and an (n, 5) float array: sorted, of equal times the last row stays."""
    order = np.argsort(at, kind="stable")
    at, values = at[order], values[order]
    last = np.ones(len(at), dtype=bool)
    last[:-1] = at[1:] != at[:-1]
    index = pd.DatetimeIndex(at[last].astype("datetime64[us]"), name="timestamp").tz_localize("UTC")
    return pd.DataFrame(np.ascontiguousarray(values[last], dtype="float64"), index=index, columns=list(COLUMNS))


def empty_bars() -> pd.DataFrame:
    """A series without a bar."""
    return frame_of(np.empty(0, dtype="int64"), np.empty((0, len(COLUMNS))))


def times(bars: pd.DataFrame) -> np.ndarray[Any, Any]:
    """The open times as int64 microseconds UTC."""
    index = pd.DatetimeIndex(bars.index)
    index = index.tz_localize("UTC") if index.tz is None else index.tz_convert("UTC")
    return index.tz_localize(None).to_numpy().astype("datetime64[us]").astype("int64")


def values(bars: pd.DataFrame) -> np.ndarray[Any, Any]:
    """The five columns as an (n, 5) float64 array."""
    return bars[list(COLUMNS)].to_numpy(dtype="float64", na_value=np.nan)


def normalised(bars: pd.DataFrame) -> pd.DataFrame:
    """The same rows in the convention above; of rows with one time the last stays."""
    return frame_of(times(bars), values(bars))


def canonical(bars: pd.DataFrame) -> bytes:
    """The canonical encoding, as the module describes it, of a series in any order and of any dtype."""
    at, content = times(bars), values(bars)
    rows = np.empty(len(at), dtype=_ROW)
    order = np.argsort(at, kind="stable")
    rows["at"] = at[order]
    for position, name in enumerate(COLUMNS):
        column = content[order, position] + 0.0
        column[np.isnan(column)] = np.nan
        rows[name] = column
    return rows.tobytes()


def canonical_sha256(bars: pd.DataFrame) -> str:
    """The hash by which two series are the same series."""
    return hashlib.sha256(canonical(bars)).hexdigest()


def between(bars: pd.DataFrame, start: datetime | None, end: datetime | None) -> pd.DataFrame:
    """The bars with ``start <= open time < end``; None leaves a side open."""
    keep = np.ones(len(bars), dtype=bool)
    if start is not None:
        keep &= np.asarray(bars.index >= pd.Timestamp(start))
    if end is not None:
        keep &= np.asarray(bars.index < pd.Timestamp(end))
    return bars[keep]


def merged(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """All rows of the parts as one series; where parts hold the same time, the last part's row stays."""
    present = [part for part in parts if len(part)]
    if not present:
        return empty_bars()
    return frame_of(
        np.concatenate([times(part) for part in present]), np.concatenate([values(part) for part in present])
    )


def differing(old: pd.DataFrame, new: pd.DataFrame) -> list[datetime]:
    """The times that both hold with different values (NaN equals NaN), ascending."""
    shared, left, right = np.intersect1d(times(old), times(new), return_indices=True)
    before, after = values(old)[left], values(new)[right]
    differs = ~((before == after) | (np.isnan(before) & np.isnan(after))).all(axis=1)
    return [moment_at(int(at)) for at in shared[differs]]


def moment_at(at: int) -> datetime:
    """The aware UTC datetime of int64 microseconds."""
    return pd.Timestamp(at, unit="us", tz="UTC").to_pydatetime()


def bar_times(bars: pd.DataFrame) -> list[datetime]:
    """The open times as aware UTC datetimes."""
    return [moment_at(int(at)) for at in times(bars)]


def parse_moment(text: str) -> datetime:
    """An ISO-8601 time as aware UTC; one without a zone is UTC. Raises ValueError."""
    parsed = datetime.fromisoformat(text)
    return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)


def parse_host_data(data: str) -> tuple[pd.DataFrame, int]:
    """The bars of a host's ``data`` string, and how many times came twice. Raises HostAnswerWrong."""
    try:
        pairs = json.loads(data, object_pairs_hook=_Pairs)
        rows = [(_micros(at), [_number(bar, name) for name in COLUMNS]) for at, bar in pairs.items]
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError) as error:
        raise HostAnswerWrong(f"the host's bars cannot be read: {type(error).__name__}: {error}") from error
    at = np.array([row[0] for row in rows], dtype="int64")
    content = np.array([row[1] for row in rows], dtype="float64").reshape(len(rows), len(COLUMNS))
    bars = frame_of(at, content)
    return bars, len(rows) - len(bars)


class _Pairs:
    """A JSON object as it was written: a time that stands twice must be seen twice."""

    __slots__ = ("items",)

    def __init__(self, items: list[tuple[str, Any]]) -> None:
        self.items = items


def _micros(text: str) -> int:
    delta = parse_moment(text) - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def _number(bar: _Pairs, name: str) -> float:
    value = dict(bar.items)[name]
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}, not a number")
    return float(value)
