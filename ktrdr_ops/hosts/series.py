"""The series that the data host serves: those shipped with the package, or a folder of OHLCV CSV files.

A file is ``SYMBOL_timeframe.csv`` or ``SYMBOL.csv`` (daily), gzipped or not. Its first column is the bar's open time:
an exchange date (a daily bar: midnight UTC of that date) or an ISO-8601 time, UTC where it names no offset. Then come
open, high, low, close, volume. A bar is served as it is in the file; an empty cell and ``nan`` are a missing value.
"""

from __future__ import annotations

import csv
import gzip
import math
import re
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from ktrdr_ops.core.errors import InvalidValue

SAMPLE = Path(__file__).with_name("sample")
_NAME = re.compile(r"(?P<symbol>[A-Z0-9.\-]+)(?:_(?P<timeframe>\d+(?:mo|[mhdwM])))?\.csv(?:\.gz)?")
COLUMNS = ("open", "high", "low", "close", "volume")

Row = tuple[float, float, float, float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """Bars in the order of their open times (aware, UTC): (open, high, low, close, volume) for each time, NaN
    where the file has no value."""

    times: list[datetime]
    rows: list[Row]

    def between(self, start: datetime, end: datetime) -> range:
        """The indexes of the bars from ``start`` to ``end``, both included."""
        return range(bisect_left(self.times, start), bisect_right(self.times, end))


class SeriesSource:
    """The series of one folder, each read when it is first asked for."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or SAMPLE
        if not self.folder.is_dir():
            raise InvalidValue(f"{self.folder} is no folder", hint="Name a folder of OHLCV CSV files with --folder.")
        self._files = self._found()
        self._read: dict[tuple[str, str], Series] = {}

    @property
    def symbols(self) -> list[str]:
        """What there is, sorted."""
        return sorted({symbol for symbol, _ in self._files})

    def timeframes(self, symbol: str) -> list[str]:
        """The timeframes that there are of a symbol."""
        return sorted(timeframe for known, timeframe in self._files if known == symbol)

    def get(self, symbol: str, timeframe: str) -> Series | None:
        """One series; None where there is none. Raises InvalidValue that names the file, and the line of a bad row."""
        key = (symbol, timeframe)
        if key not in self._files:
            return None
        if key not in self._read:
            self._read[key] = read(self._files[key])
        return self._read[key]

    def _found(self) -> dict[tuple[str, str], Path]:
        files: dict[tuple[str, str], Path] = {}
        for path in sorted(self.folder.iterdir()):
            match = _NAME.fullmatch(path.name)
            if match is not None and path.is_file():
                timeframe = match["timeframe"] or "1d"
                files[match["symbol"], "1M" if timeframe == "1mo" else timeframe] = path
        return files


def read(path: Path) -> Series:
    """The series of a file. Raises InvalidValue that names the file, and the line of a row that is no bar."""
    bars: dict[datetime, Row] = {}
    with _readable(path) as file:
        rows = csv.reader(file)
        header = [name.strip().lower() for name in next(rows, [])]
        try:
            places = [header.index(name) for name in COLUMNS]
        except ValueError:
            raise InvalidValue(f"{path}: the columns are not time,{','.join(COLUMNS)}") from None
        for row in filter(None, rows):
            try:
                opened_at, opened_, high, low, close, volume = row[0], *(_number(row[place]) for place in places)
                bars[parse_time(opened_at)] = (opened_, high, low, close, volume)
            except (ValueError, IndexError, OverflowError):
                raise InvalidValue(f"{path}, line {rows.line_num}: {','.join(row)[:200]!r} is no bar") from None
    times = sorted(bars)
    return Series(times, [bars[time] for time in times])


@contextmanager
def _readable(path: Path) -> Iterator[TextIO]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise InvalidValue(f"{path} cannot be read: {error}") from error


def _number(cell: str) -> float:
    value = float(cell or "nan")
    if math.isinf(value):
        raise ValueError(cell)
    return value


def parse_time(text: str) -> datetime:
    """An ISO-8601 date or time, aware, UTC where it names no offset. Raises ValueError, OverflowError."""
    moment = datetime.fromisoformat(text.strip())
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
