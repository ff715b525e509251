"""Where series lie: immutable objects, and the one name of each series that people read.

The name is ``{data_dir}/{SYMBOL}/{timeframe}.parquet``, or the ``{data_dir}/{SYMBOL}_{timeframe}.csv`` that people had
before. It is a copy of an object; whatever is in its place is kept as an object before it is replaced.
"""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ktrdr_ops.core.artifacts import ObjectStore, replace_durably
from ktrdr_ops.domains.data.engine.bars import COLUMNS, empty_bars, frame_of, parse_moment, times, values
from ktrdr_ops.domains.data.engine.calendar import micros
from ktrdr_ops.domains.data.engine.errors import SeriesUnreadable
from ktrdr_ops.domains.data.engine.symbols import symbol as checked_symbol
from ktrdr_ops.domains.data.engine.timeframes import timeframe as checked_timeframe

Format = Literal["parquet", "csv"]
_SCHEMA = pa.schema(
    [pa.field("timestamp", pa.timestamp("us", tz="UTC")), *(pa.field(name, pa.float64()) for name in COLUMNS)]
)


@dataclass(frozen=True, slots=True)
class Found:
    """A file in a series' place, as it was read."""

    path: Path
    format: Format
    content: bytes
    object: str


class SeriesFiles:
    """The files of one data folder. Raises InvalidValue for symbols and timeframes that are none: no path escapes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, symbol: str, timeframe: str, format: Format) -> Path:
        """The series' name in this format."""
        name, bars = checked_symbol(symbol), checked_timeframe(timeframe).file_name
        return self.folder / f"{name}_{bars}.csv" if format == "csv" else self.folder / name / f"{bars}.parquet"

    def find(self, symbol: str, timeframe: str, preferred: Format) -> Found | None:
        """What is there, in the preferred format if it is in both; None if it is in neither. Raises OSError."""
        formats: tuple[Format, Format] = ("parquet", "csv") if preferred == "parquet" else ("csv", "parquet")
        for format in formats:
            path = self.path(symbol, timeframe, format)
            if path.is_file():
                content = path.read_bytes()
                return Found(path, format, content, hashlib.sha256(content).hexdigest())
        return None

    def move(self, path: Path, content: bytes) -> None:
        """Let the name be this content, atomically and durably. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (path.is_file() and path.read_bytes() == content):
            replace_durably(path, content)


def parquet_bytes(bars: pd.DataFrame) -> bytes:
    """A series as Parquet: timestamp (µs UTC; pandas reads it as the index) and five doubles, zstd."""
    at = pa.array(times(bars), type=pa.int64()).cast(pa.timestamp("us")).cast(pa.timestamp("us", tz="UTC"))
    content = values(bars)
    columns = [at, *(pa.array(content[:, position]) for position in range(len(COLUMNS)))]
    schema = _SCHEMA.with_metadata(pa.Schema.from_pandas(empty_bars(), preserve_index=True).metadata)
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), sink, compression="zstd")
    return sink.getvalue()


def csv_bytes(bars: pd.DataFrame) -> bytes:
    """A series as the CSV that people have: an unnamed UTC timestamp, then the five columns."""
    stamps = np.datetime_as_string(times(bars).astype("datetime64[us]"), unit="s")
    frame = pd.DataFrame(values(bars), index=[f"{text}Z" for text in stamps], columns=list(COLUMNS))
    return frame.to_csv(lineterminator="\n").encode()


def encoded(bars: pd.DataFrame, format: Format) -> bytes:
    """The series in this format."""
    return csv_bytes(bars) if format == "csv" else parquet_bytes(bars)


def decoded(content: bytes, format: Format, name: str) -> tuple[pd.DataFrame, int]:
    """The series in these bytes, and how many rows had the time of another. Raises SeriesUnreadable."""
    try:
        at, rows = _from_csv(content) if format == "csv" else _from_parquet(content)
    except (ValueError, KeyError, IndexError, TypeError, UnicodeDecodeError, pa.ArrowException, csv.Error) as error:
        raise SeriesUnreadable(
            f"{name} is not a readable series: {error}",
            hint="Move it away and load again; what the journal published is still in its objects.",
        ) from error
    bars = frame_of(at, rows)
    return bars, len(at) - len(bars)


def _from_parquet(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    frame = pq.read_table(io.BytesIO(content)).to_pandas()
    frame = frame.set_index("timestamp") if "timestamp" in frame.columns else frame
    if not isinstance(frame.index, pd.DatetimeIndex):
        raise KeyError("it has no column timestamp")
    return times(frame), values(frame)


def _from_csv(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    header = [cell.strip().lower() for cell in next(reader, [])]
    positions = [header.index(name) for name in COLUMNS]
    rows = [row for row in reader if row]
    at = np.array([micros(parse_moment(row[0])) for row in rows], dtype="int64")
    cells = [[float(row[position]) if row[position] else np.nan for position in positions] for row in rows]
    return at, np.array(cells, dtype="float64").reshape(len(rows), len(COLUMNS))


def read_object(objects: ObjectStore, sha: str, format: Format) -> pd.DataFrame:
    """A series that was published. Raises JournalCorrupt when the object is gone or changed."""
    return decoded(objects.read(sha), format, f"object {sha}")[0]
