"""Series and indicators as tables: read from what other operations published, written so that equal ones are equal.

The canonical encoding of a table: the column names in their order, as JSON in UTF-8 without spaces, a zero byte, then
for each row in ascending order of time the open time as big-endian signed 64-bit microseconds since 1970-01-01 UTC and
each value as big-endian IEEE 754 binary64, each NaN as ``7ff8000000000000`` and -0.0 as +0.0.
"""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import numpy as np
import pandas as pd

SERIES = "series"


def series(content: bytes, format: object) -> pd.DataFrame:
    """A stored series by open time (UTC, ascending): open, high, low, close, volume. Raises ValueError for none."""
    if format == "csv":
        bars = pd.read_csv(io.BytesIO(content), index_col=0)
        bars.index = pd.to_datetime(bars.index, utc=True)
    else:
        bars = pd.read_parquet(io.BytesIO(content))
        if not isinstance(bars.index, pd.DatetimeIndex):
            bars = bars.set_index("timestamp")
    bars.index = pd.DatetimeIndex(bars.index).tz_convert("UTC").rename("timestamp")
    return bars.sort_index()


def stored(table: pd.DataFrame) -> bytes:
    """As Parquet."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, engine="pyarrow", compression="zstd")
    return buffer.getvalue()


def read(content: bytes) -> pd.DataFrame:
    """What ``stored`` made."""
    return pd.read_parquet(io.BytesIO(content))


def canonical_sha256(table: pd.DataFrame) -> str:
    """Equal tables have equal hashes, whatever wrote them."""
    digest = hashlib.sha256(json.dumps(list(table.columns), separators=(",", ":"), ensure_ascii=False).encode())
    digest.update(b"\0")
    rows: np.ndarray[Any, Any] = np.empty((len(table), 1 + len(table.columns)), ">i8")
    values = table.to_numpy(np.float64) + 0.0
    values[np.isnan(values)] = np.nan
    rows[:, 0] = pd.DatetimeIndex(table.index).tz_localize(None).to_numpy().astype("datetime64[us]").astype(np.int64)
    rows[:, 1:] = values.astype(">f8").view(">i8")
    digest.update(rows.tobytes())
    return digest.hexdigest()
