"""What the host's error texts mean."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from ktrdr_ops.domains.data.engine.answers import Meaning, head_in, meaning_of


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        ("No data returned for AAPL 1d", Meaning.NO_DATA),
        ("Symbol validation failed: AAPL", Meaning.INVALID_SYMBOL),
        ("Data not available before 1980-12-12T14:30:00+00:00. Requested start: x", Meaning.BEFORE_HEAD),
        ("Timeout while creating connection", Meaning.ABSENT),
        ("Timeout while acquiring connection", Meaning.ABSENT),
        ("Error 162: Historical Market Data Service error message:HMDS query returned no data", Meaning.NO_DATA),
        ("Error 162: Historical data request pacing violation", Meaning.PACING),
        ("Error 162: something else", Meaning.WRONG),
        ("IB error 165: Historical Market Data Service query message", Meaning.NO_DATA),
        ("Error 100: max rate of messages", Meaning.PACING),
        ("error code=420", Meaning.PACING),
        ("Error 1100, reqId -1: Connectivity between IB and TWS has been lost", Meaning.ABSENT),
        *((f"Error {code}, reqId 7: no", Meaning.FINAL) for code in (200, 354, 10090, 10197, 154, 392)),
        ("the disk is on fire", Meaning.WRONG),
        ("bar 200 of 354", Meaning.WRONG),
    ],
)
def test_an_error_means_what_its_text_and_code_say(error, meaning):
    assert meaning_of(error) is meaning


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ("Data not available before 1980-12-12T14:30:00+00:00. Requested start: …", datetime(1980, 12, 12, 14, 30)),
        ("Data not available before 1980-12-12 14:30:00+00:00. Requested", datetime(1980, 12, 12, 14, 30)),
        ("Data not available before 1980-12-12. Requested", datetime(1980, 12, 12)),
        ("Data not available before the flood.", None),
        ("no", None),
    ],
)
def test_the_head_is_read_from_the_refusal(text, head):
    assert head_in(text) == (None if head is None else head.replace(tzinfo=UTC))
