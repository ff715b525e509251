"""Moments as people type them."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.interfaces.cli.times import duration, moment

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@pytest.fixture
def new_york(monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_duration_is_so_long_ago():
    assert moment("8h", NOW) == (NOW - timedelta(hours=8), False)
    assert moment("1d12h", NOW) == (NOW - timedelta(hours=36), False)
    assert duration("8 hours") is None


def test_a_time_with_an_offset_is_taken_as_it_is():
    assert moment("2026-11-24T09:30-05:00", NOW) == (datetime(2026, 11, 24, 14, 30, tzinfo=UTC), False)
    assert moment("2026-11-24T09:30Z", NOW) == (datetime(2026, 11, 24, 9, 30, tzinfo=UTC), False)


def test_a_time_without_one_is_local_and_said_to_be(new_york):
    assert moment("2026-11-24T09:30", NOW) == (datetime(2026, 11, 24, 14, 30, tzinfo=UTC), True)
    assert moment("yesterday", NOW) == (datetime(2026, 11, 23, 5, 0, tzinfo=UTC), True)
    assert moment("today", NOW) == (datetime(2026, 11, 24, 5, 0, tzinfo=UTC), True)


def test_an_hour_that_happens_twice_is_refused_with_both_offsets(new_york):
    with pytest.raises(InvalidValue, match="happens twice") as raised:
        moment("2026-11-01T01:30", NOW)
    assert raised.value.hint == "Say which: 2026-11-01T01:30-04:00 or 2026-11-01T01:30-05:00"


def test_an_hour_that_does_not_exist_is_refused(new_york):
    with pytest.raises(InvalidValue, match="does not exist"):
        moment("2026-03-08T02:30", NOW)


@pytest.mark.parametrize("text", ["", "soon", "2026-13-01", "99999999999d", "8x", "\x00", "٣h", "2026-11-24T25:00"])
def test_what_is_no_time_is_refused_with_what_would_be_one(text):
    with pytest.raises(InvalidValue) as raised:
        moment(text, NOW)
    assert "ISO-8601" in (raised.value.hint or "")
