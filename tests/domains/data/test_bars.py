"""The convention of a series, and the encoding that its hash is taken of."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_ops.core.errors import HostAnswerWrong
from ktrdr_ops.domains.data.engine.bars import (
    COLUMNS,
    bar_times,
    canonical_sha256,
    differing,
    empty_bars,
    frame_of,
    merged,
    parse_host_data,
)
from ktrdr_ops.domains.data.engine.store import csv_bytes, decoded, encoded

at = st.integers(min_value=-2_000_000_000, max_value=4_000_000_000).map(lambda seconds: seconds * 1_000_000)
numbers = st.floats(allow_nan=True, allow_infinity=True)
rows = st.dictionaries(at, st.tuples(numbers, numbers, numbers, numbers, numbers), max_size=30)


def series(content) -> pd.DataFrame:
    values = np.array(list(content.values()), dtype="float64").reshape(len(content), 5)
    return frame_of(np.array(list(content), dtype="int64"), values)


def by_hand(content) -> str:
    """The encoding as it is documented, with nothing but the standard library."""
    encoded = b""
    for moment, numbers in sorted(content.items()):
        encoded += struct.pack(">q", moment)
        for number in numbers:
            encoded += bytes.fromhex("7ff8000000000000") if math.isnan(number) else struct.pack(">d", number + 0.0)
    return hashlib.sha256(encoded).hexdigest()


@given(rows)
def test_the_canonical_hash_is_what_its_description_says(content):
    assert canonical_sha256(series(content)) == by_hand(content)


@given(rows, st.randoms())
def test_neither_order_nor_parts_nor_format_change_the_hash(content, random):
    bars = series(content)
    shuffled = list(content.items())
    random.shuffle(shuffled)
    cut = len(shuffled) // 2
    parts = [series(dict(shuffled[:cut])), series(dict(shuffled[cut:]))]
    assert canonical_sha256(merged(parts)) == canonical_sha256(bars)
    for format in ("parquet", "csv"):
        read, duplicates = decoded(encoded(bars, format), format, "it")
        assert (canonical_sha256(read), duplicates) == (canonical_sha256(bars), 0)


def test_neither_dtype_nor_zone_nor_unit_change_the_hash():
    index = pd.DatetimeIndex(["2024-01-02", "2024-01-03"])
    frame = pd.DataFrame({name: [1, 2] for name in COLUMNS}, index=index)
    hashes = {
        canonical_sha256(frame),
        canonical_sha256(frame.astype("float32")),
        canonical_sha256(frame.astype("Int64")),
        canonical_sha256(frame.tz_localize("UTC").tz_convert("US/Eastern")),
        canonical_sha256(frame.set_axis(index.as_unit("ns"))[::-1]),
    }
    assert len(hashes) == 1


def test_minus_zero_and_every_nan_are_one_number_each():
    strange_nan = struct.unpack(">d", bytes.fromhex("fff8000000000001"))[0]
    left = series({0: (0.0, float("nan"), 1.0, 1.0, 1.0)})
    right = series({0: (-0.0, strange_nan, 1.0, 1.0, 1.0)})
    assert canonical_sha256(left) == canonical_sha256(right)
    assert canonical_sha256(empty_bars()) == hashlib.sha256(b"").hexdigest()


def test_a_series_has_the_promised_index_and_columns():
    bars = series({2_000_000: (1, 1, 1, 1, 1), 1_000_000: (2, 2, 2, 2, 2)})
    assert bars.index.name == "timestamp"
    assert str(pd.DatetimeIndex(bars.index).tz) == "UTC"
    assert bars.index.is_monotonic_increasing
    assert list(bars.columns) == list(COLUMNS)
    assert (bars.dtypes == "float64").all()


@pytest.mark.parametrize("form", ["2026-01-05T14:30:00", "2026-01-05T14:30:00.000Z", "2026-01-05T14:30:00+00:00"])
def test_the_hosts_times_are_read_in_each_of_their_forms(form):
    bar = {"open": 1.0, "high": 1.5, "low": 0.5, "close": None, "volume": 1000}
    bars, duplicates = parse_host_data(json.dumps({form: bar}))
    assert bar_times(bars) == [datetime(2026, 1, 5, 14, 30, tzinfo=UTC)]
    assert np.isnan(bars.iloc[0]["close"])
    assert duplicates == 0


def test_a_time_that_comes_twice_is_counted_and_its_last_bar_stays():
    bar = '{"open":%d,"high":1,"low":1,"close":1,"volume":NaN}'
    bars, duplicates = parse_host_data(f'{{"2026-01-05": {bar % 1}, "2026-01-05T00:00:00Z": {bar % 2}}}')
    assert (len(bars), duplicates, bars.iloc[0]["open"]) == (1, 1, 2.0)


@pytest.mark.parametrize(
    "data",
    [
        "",
        "[]",
        "{",
        "null",
        '{"monday": {}}',
        '{"2026-01-05": {"open": 1}}',
        '{"2026-01-05": 3}',
        "[" * 100_000,
        '{"2026-01-05": {"open":"1","high":1,"low":1,"close":1,"volume":1}}',
    ],
    ids=range(9),
)
def test_data_that_cannot_be_read_is_a_wrong_answer(data):
    with pytest.raises(HostAnswerWrong, match="cannot be read"):
        parse_host_data(data)


@given(rows)
def test_a_series_does_not_differ_from_itself_and_differs_where_a_value_does(content):
    bars = series(content)
    assert differing(bars, bars) == []
    if len(bars):
        changed = bars.copy()
        changed.iloc[0, 3] = 12345.5 if changed.iloc[0, 3] != 12345.5 else 1.0
        assert differing(bars, changed) == bar_times(bars)[:1]


def test_the_users_csv_is_written_as_they_know_it():
    day = datetime(2024, 1, 2, tzinfo=UTC)
    bars = series({int(day.timestamp() * 1e6): (1.5, 2, 1, 1.25, 1000)})
    assert csv_bytes(bars) == b",open,high,low,close,volume\n2024-01-02T00:00:00Z,1.5,2.0,1.0,1.25,1000.0\n"
    assert bar_times(bars)[0] + timedelta(0) == day
