"""How a range is cut into requests that the host leaves whole."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_ops.domains.data.engine.segments import host_rounded, segments, surviving
from ktrdr_ops.domains.data.engine.timeframes import TIMEFRAMES, timeframe

moments = st.datetimes(datetime(1970, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))
frames = st.sampled_from(list(TIMEFRAMES.values()))
LIMITS = {"1m": 1, "5m": 7, "15m": 14, "30m": 30, "1h": 30, "2h": 30, "4h": 120, "1d": 365, "1w": 730, "1M": 730}


@given(moments, st.timedeltas(timedelta(0), timedelta(days=900)), frames, st.booleans(), st.booleans())
def test_segments_cover_exactly_never_exceed_and_never_overlap(start, length, frame, newest_first, floored):
    end = start + length
    floor = start if floored else None
    cut = segments(start, end, frame, newest_first=newest_first, floor=floor)
    ascending = sorted(cut, key=lambda segment: segment.start)
    edges = [segment.start for segment in ascending] + [end]
    assert edges == [start] + [segment.end for segment in ascending] if cut else start == end
    for segment in cut:
        asked = segment.end - segment.ask_from
        assert segment.ask_from <= segment.start < segment.end
        assert asked <= timedelta(days=LIMITS[frame.name])
        assert floor is None or segment.ask_from >= floor
        kept = segment.end - host_rounded(asked)
        assert kept <= segment.start or asked < timedelta(days=1)


@given(moments, st.timedeltas(timedelta(days=1), timedelta(days=4000)), st.booleans())
def test_tail_asks_for_the_newest_first_and_the_others_for_the_oldest(start, length, newest_first):
    cut = segments(start, start + length, timeframe("1d"), newest_first=newest_first)
    starts = [segment.start for segment in cut]
    assert starts == sorted(starts, reverse=newest_first)


@given(st.timedeltas(timedelta(microseconds=1), timedelta(days=730)))
def test_a_surviving_span_is_not_shorter_and_is_not_shortened(length):
    span = surviving(length)
    assert span >= length
    assert host_rounded(span) == span


@pytest.mark.parametrize(
    ("first", "last", "count"),
    [("2000-03-01", "2013-03-02", 14), ("2004-08-19", "2013-03-02", 9), ("2012-03-02", "2013-03-02", 2)],
)
def test_daily_bars_are_asked_for_in_spans_of_364_days(first, last, count):
    start, end = (datetime.fromisoformat(day).replace(tzinfo=UTC) for day in (first, last))
    cut = segments(start, end, timeframe("1d"), newest_first=False, floor=start)
    assert len(cut) == count
    assert all(segment.end - segment.start == timedelta(days=364) for segment in cut[:-1])


def test_a_ten_day_request_would_lose_three_days():
    assert host_rounded(timedelta(days=10)) == timedelta(days=7)
    assert surviving(timedelta(days=10)) == timedelta(days=14)
