"""What is missing, by the market's calendar."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_ops.domains.data.engine.bars import times
from ktrdr_ops.domains.data.engine.calendar import complete_until, micros, moment, periods
from ktrdr_ops.domains.data.engine.gaps import Span, gaps, missing_periods, united
from ktrdr_ops.domains.data.engine.timeframes import timeframe
from tests.domains.data.data_host import daily

DAY = timeframe("1d")


def day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


NOW = day("2013-03-02")
CALENDAR = periods("TEST", DAY, NOW)
BARS = times(daily("2010-01-04", "2013-03-01"))
NOTHING = np.empty(0, dtype="int64")
ALL = Span(day("2010-01-04"), NOW)


def moment_of(position):
    return moment(BARS[position])


def found(mode, stored, asked=ALL, known=(), frame=DAY, calendar=CALENDAR):
    return gaps(mode, stored, asked, list(known), calendar, frame)


def test_with_nothing_stored_everything_is_missing():
    assert found("full", NOTHING) == [ALL]
    assert found("local", NOTHING) == []


def test_with_everything_stored_nothing_is_missing_but_tail_asks_for_five_bars_again():
    assert not found("full", BARS)
    assert not found("backfill", BARS)
    [again] = found("tail", BARS)
    assert micros(again.start) == BARS[-5]
    assert again.end == NOW


def test_a_weekend_or_holiday_is_not_a_gap():
    assert found("full", NOTHING, Span(day("2013-02-16"), day("2013-02-19"))) == []  # Presidents' Day
    assert found("full", NOTHING, Span(day("2012-10-29"), day("2012-10-31"))) == []  # Hurricane Sandy


def test_backfill_asks_before_the_first_bar_and_full_on_both_sides_and_inside():
    middle = np.concatenate([BARS[100:300], BARS[320:600]])
    [before] = found("backfill", middle)
    assert (before.start, micros(before.end)) == (ALL.start, middle[4] + 86_400_000_000)
    spans = found("full", middle)
    assert spans[0] == before
    assert micros(spans[1].start) == BARS[295]
    assert micros(spans[1].end) == BARS[324] + 86_400_000_000
    assert micros(spans[-1].start) == BARS[595]


def test_what_was_answered_before_is_not_asked_for_again():
    empty = Span(day("2010-01-04"), day("2011-01-03"))
    spans = found("full", NOTHING, known=[empty])
    assert spans == [Span(day("2011-01-01"), NOW)]
    later = BARS[micros(day("2012-01-03")) <= BARS]
    assert found("backfill", later, known=[Span(day("2010-01-01"), day("2012-01-03"))]) == []


def test_what_is_asked_for_beyond_a_covered_stretch_reaches_back_to_stored_bars():
    stored = BARS[:300]  # up to 2011-03-11
    covered = Span(day("2010-01-04"), day("2011-06-01"))
    [near] = found("full", stored, known=[covered])
    assert (micros(near.start), near.end) == (BARS[295], NOW)
    far = Span(day("2010-01-04"), day("2012-06-01"))
    overlap, rest = found("full", stored, known=[far])
    assert (micros(overlap.start), micros(overlap.end)) == (BARS[295], BARS[299] + 86_400_000_000)
    assert rest == Span(day("2012-06-01"), NOW)


def test_a_gap_inside_reaches_over_a_covered_stretch_on_each_side():
    stored = np.concatenate([BARS[:300], BARS[400:]])
    covered = [Span(moment_of(300), moment_of(330)), Span(moment_of(370), moment_of(400))]
    [gap] = found("full", stored, known=covered)
    assert micros(gap.start) == BARS[295]
    assert micros(gap.end) == BARS[404] + 86_400_000_000


def test_after_the_last_bar_only_what_was_not_answered_is_asked_for():
    answered = Span(day("2011-12-31"), NOW)
    [gap] = found("full", BARS[:300], known=[answered])
    assert (micros(gap.start), gap.end) == (BARS[295], answered.start)


def test_gaps_that_one_request_can_hold_are_one():
    holes = np.delete(BARS, [10, 20, 30, 40])
    assert len(found("full", holes)) == 1


def test_a_plan_never_lists_more_than_it_can():
    hours = np.array([micros(day("1990-01-02")), micros(day("2013-03-01"))])
    known = [
        Span(day(f"{year}-{month:02}-01"), day(f"{year}-{month:02}-20"))
        for year in range(1990, 2013)
        for month in range(1, 13)
    ]
    asked = Span(day("1990-01-02"), NOW)
    assert 200 < len(found("full", hours, asked, known, timeframe("1m"))) <= 400


@given(st.sets(st.integers(0, len(BARS) - 1), min_size=1, max_size=60))
def test_what_full_asks_for_holds_every_missing_session(missing):
    stored = np.delete(BARS, sorted(missing))
    spans = found("full", stored)
    for position in missing:
        assert any(micros(span.start) <= BARS[position] < micros(span.end) for span in spans)
    assert sum(count for *_, count in missing_periods(stored, ALL, CALENDAR)) == len(missing)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=20))
def test_united_spans_hold_the_same_days_once(pairs):
    spans = [Span(NOW + timedelta(days=a), NOW + timedelta(days=b)) for a, b in pairs]
    result = united(spans)
    assert all(a.end < b.start for a, b in pairwise(result))
    for number in range(51):
        moment = NOW + timedelta(days=number)
        assert any(s.start <= moment < s.end for s in spans) == any(s.start <= moment < s.end for s in result)


@pytest.mark.parametrize(
    ("frame", "now", "until"),
    [
        ("1d", "2013-03-01T18:00", "2013-03-01T00:00"),  # the session is still open
        ("1d", "2013-03-01T21:00", "2013-03-01T21:00"),  # it has closed
        ("1d", "2013-03-02T12:00", "2013-03-02T12:00"),  # a Saturday
        ("1h", "2013-03-01T18:10", "2013-03-01T17:11"),  # 17:00 is over, 17:30 is not
        ("1w", "2013-03-01T18:00", "2013-02-25T00:00"),
        ("1M", "2013-03-01T18:00", "2013-03-01T00:00"),
    ],
)
def test_a_bar_that_is_still_being_made_is_not_asked_for(frame, now, until):
    assert complete_until("TEST", timeframe(frame), day(now)) == day(until)


def test_forex_trades_on_a_stock_holiday_and_sunday_evenings_belong_to_a_gap():
    calendar = periods("EUR.USD", timeframe("1h"), NOW)
    fridays = np.array([micros(day("2013-02-15T10:00"))])
    asked = Span(day("2013-02-15"), day("2013-02-20"))
    [gap] = gaps("full", fridays, asked, [], calendar, timeframe("1h"))
    assert gap.start <= day("2013-02-17T22:00")
    assert gap.end == day("2013-02-20")


def test_weeks_and_months_are_periods_of_their_own():
    weeks, months = periods("TEST", timeframe("1w"), NOW), periods("TEST", timeframe("1M"), NOW)
    assert micros(day("2013-02-25")) in weeks.starts
    assert micros(day("2013-02-01")) in months.starts
    stored = np.array([micros(day("2013-02-22")), micros(day("2013-03-01"))])  # stamped with their Fridays
    assert missing_periods(stored, Span(day("2013-02-18"), day("2013-03-02")), weeks) == []
