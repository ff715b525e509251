"""The IB host service's contract, row by row, over real HTTP."""

from __future__ import annotations

import gzip
import json
from datetime import timedelta

import httpx
import pytest

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.hosts.data_host import rounded_down
from ktrdr_ops.hosts.series import SeriesSource
from tests.hosts.fixtures import data_host


@pytest.fixture(scope="module")
def host():
    with data_host() as url, httpx.Client(base_url=url) as client:
        yield client


def historical(client, symbol="AAPL", timeframe="1d", start="2012-03-03", end="2013-03-02", **more):
    return client.post(
        "/data/historical", json={"symbol": symbol, "timeframe": timeframe, "start": start, "end": end, **more}
    ).json()


def test_health_with_and_without_the_slash_are_two_routes(host):
    plain, slash = host.get("/health").json(), host.get("/health/").json()
    assert plain["healthy"]
    assert "ib_status" not in plain
    assert slash["ib_status"] == {"connected": True, "connection_count": 1}


def test_detailed_health_counts_requests(host):
    before = host.get("/health/detailed").json()["total_requests"]
    historical(host)
    assert host.get("/health/detailed").json()["total_requests"] == before + 1


def test_a_year_comes_as_json_inside_json(host):
    answer = historical(host)
    bars = json.loads(answer["data"])
    assert answer["success"]
    assert answer["rows"] == len(bars) == 249
    assert bars["2013-03-01T00:00:00.000Z"] == {
        "open": 438.0,
        "high": 438.1799,
        "low": 429.98,
        "close": 430.47,
        "volume": 19730300,
    }


@pytest.mark.parametrize("zone", ["", "Z", "+00:00"])
def test_times_may_be_naive_or_carry_an_offset(host, zone):
    assert historical(host, start=f"2013-02-25T00:00:00{zone}", end=f"2013-03-02T00:00:00{zone}")["rows"] == 5


def test_a_ten_day_request_silently_loses_its_first_three_days(host):
    rows = historical(host, start="2013-02-19", end="2013-03-01")["rows"]
    assert rows == historical(host, start="2013-02-22", end="2013-03-01")["rows"] == 6


@pytest.mark.parametrize(("days", "kept"), [(0, 1), (6, 6), (7, 7), (10, 7), (364, 364), (365, 364), (800, 730)])
def test_spans_are_rounded_down(days, kept):
    assert rounded_down(timedelta(days=days)) == timedelta(days=kept)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"symbol": "NOPE"}, "Symbol validation failed: Symbol NOPE not found"),
        ({"timeframe": "1h"}, "This host has no 1h bars of AAPL, only 1d"),
        ({"start": "2014-01-01", "end": "2014-02-01"}, "No data returned for AAPL 1d"),
        ({"start": "2013-02-23", "end": "2013-02-24"}, "No data returned for AAPL 1d"),
        ({"start": "1999-01-01", "end": "2000-06-01"}, "Data not available before 2000-03-01T00:00:00+00:00."),
        ({"start": "2013-03-01", "end": "2013-02-01"}, "Start 2013-03-01T00:00:00+00:00 is after end 2013-02-01"),
        ({"start": "2013-03-01", "end": "0001-01-01"}, "Start 2013-03-01T00:00:00+00:00 is after end 0001-01-01"),
        ({"symbol": "X" * 10_000}, f"Symbol validation failed: Symbol {'X' * 40}... not found"),
        ({"symbol": "../../etc"}, "Symbol validation failed: Symbol ../../ETC not found"),
        ({"timeframe": "1M"}, "This host has no 1M bars of AAPL, only 1d"),
    ],
)
def test_a_business_failure_is_a_200_that_says_so(host, asked, error):
    answer = historical(host, **asked)
    assert answer["success"] is False
    assert answer["error"].startswith(error)
    assert answer["data"] is None


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"symbol": "AAPL"},
        {"symbol": "AAPL", "timeframe": "1d", "start": "x", "end": "y"},
        {"symbol": "AAPL", "timeframe": "1d", "start": 1330732800, "end": "2013-03-02"},
        {"symbol": "AAPL", "timeframe": "1d", "start": "0001-01-01T00:00:00+14:00", "end": "2013-03-02"},
        [],
        "text",
    ],
)
def test_a_bad_body_is_a_422_with_its_place(host, body):
    answer = host.post("/data/historical", json=body)
    assert answer.status_code == 422
    assert {"type", "loc", "msg"} <= set(answer.json()["detail"][0])


@pytest.mark.parametrize("place", ["symbol", "timeframe", "start"])
def test_a_lone_surrogate_is_answered_like_any_other_wrong_value(host, place):
    body = {"symbol": "AAPL", "timeframe": "1d", "start": "2012-01-01", "end": "2012-02-01", place: "\ud800"}
    answer = host.post("/data/historical", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == (422 if place == "start" else 200)
    assert "\\ud800" in answer.text


def test_bars_that_the_filter_leaves_out_make_an_empty_success(host):
    answer = historical(host, start="2013-03-01T12:00:00", end="2013-03-01T18:00:00")
    assert answer == {"success": True, "data": "{}", "error": None, "rows": 0}


def test_a_web_page_under_another_name_is_not_answered(host):
    assert host.get("/health", headers={"Host": "rebound.example"}).status_code == 403
    assert host.post("/data/historical", json={}, headers={"Host": "rebound.example:80"}).status_code == 403
    assert host.get("/health", headers={"Host": "localhost:5001"}).status_code == 200


def test_an_unknown_instrument_type_is_a_422(host):
    body = {"symbol": "AAPL", "timeframe": "1d", "start": "2012-01-01", "end": "2012-02-01", "instrument_type": "OPT"}
    assert host.post("/data/historical", json=body).status_code == 422


def test_validation_tells_where_series_begin(host):
    known = host.post("/data/validate", json={"symbol": "goog", "timeframes": ["1d", "1h"]}).json()
    assert known["is_valid"]
    assert known["head_timestamps"] == {"1d": "2004-08-19T00:00:00+00:00"}
    unknown = host.post("/data/validate", json={"symbol": "NOPE"}).json()
    assert (unknown["success"], unknown["is_valid"]) == (True, False)
    assert unknown["error_message"] == "Symbol NOPE not found"
    assert host.get("/data/symbol-info/IBM").json()["is_valid"]


def test_a_head_timestamp_needs_both_names(host):
    asked = {"symbol": "MSFT", "timeframe": "1d"}
    assert host.get("/data/head-timestamp", params=asked).json()["timestamp"] == "2000-03-01T00:00:00+00:00"
    assert host.get("/data/head-timestamp", params={"symbol": "MSFT"}).status_code == 422
    assert host.get("/data/head-timestamp", params={**asked, "timeframe": "1h"}).json()["success"] is False


def test_a_folder_of_csv_files_is_served_as_it_is(tmp_path):
    (tmp_path / "TEST_1h.csv").write_text(
        ",open,high,low,close,volume\n2026-01-05T14:30:00Z,1,2,0.5,1.5,100\n2026-01-05T15:30:00Z,1.5,2,1,1,50\n"
    )
    with gzip.open(tmp_path / "TEST.csv.gz", "wt") as file:
        file.write("date,open,high,low,close,volume\n2026-01-05,1,2,0.5,1.5,100\n")
    (tmp_path / "notes.txt").write_text("not a series")
    with data_host(tmp_path) as url, httpx.Client(base_url=url) as client:
        hours = historical(client, "TEST", "1h", "2026-01-05T14:30:00", "2026-01-06")
        assert json.loads(hours["data"])["2026-01-05T14:30:00.000Z"]["close"] == 1.5
        assert hours["rows"] == 2
        assert historical(client, "TEST", "1d", "2026-01-05", "2026-01-06")["rows"] == 1
        assert historical(client, "AAPL")["success"] is False


BROKEN = {
    "a bad cell": (b"date,open,high,low,close,volume\n2026-01-05,1,2,0.5,x,100\n", "S_1d.csv, line 2"),
    "an infinity": (b"date,open,high,low,close,volume\n2026-01-05,1,inf,0.5,1,100\n", "S_1d.csv, line 2"),
    "a bad date": (b"date,open,high,low,close,volume\n05/01/2026,1,2,0.5,1,100\n", "S_1d.csv, line 2"),
    "no columns": (b"", "S_1d.csv: the columns are not"),
    "another encoding": (b"date,open,high,low,close,volume\n2026-01-05,1,2,0.5,1,\xe9\n", "S_1d.csv cannot be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_is_a_business_failure_on_every_route(tmp_path, name):
    content, error = BROKEN[name]
    (tmp_path / "S_1d.csv").write_bytes(content)
    with data_host(tmp_path) as url, httpx.Client(base_url=url) as client:
        answers = [
            historical(client, "S"),
            client.post("/data/validate", json={"symbol": "S"}).json(),
            client.get("/data/symbol-info/S").json(),
            client.get("/data/head-timestamp", params={"symbol": "S", "timeframe": "1d"}).json(),
        ]
        assert client.get("/health/detailed").json()["error_count"] == 4
    assert [answer["success"] for answer in answers] == [False] * 4
    assert all(error in answer["error"] for answer in answers)


def test_a_folder_file_that_is_no_gzip_is_a_business_failure(tmp_path):
    (tmp_path / "S_1d.csv.gz").write_bytes(b"not gzip")
    (tmp_path / "DIR_1d.csv").mkdir()
    with data_host(tmp_path) as url, httpx.Client(base_url=url) as client:
        assert "cannot be read" in historical(client, "S")["error"]
        assert historical(client, "DIR")["error"] == "Symbol validation failed: Symbol DIR not found"


def test_missing_values_are_null_and_blank_lines_and_a_byte_order_mark_are_nothing(tmp_path):
    (tmp_path / "S_1d.csv").write_bytes(
        b"\xef\xbb\xbfdate,open,high,low,close,volume\n\n2026-01-06,1,2,nan,,7.5\n2026-01-05,1,2,0.5,1.5,100\n\n"
    )
    with data_host(tmp_path) as url, httpx.Client(base_url=url) as client:
        text = historical(client, "S", start="2026-01-05", end="2026-01-07")["data"]
    first = '"2026-01-05T00:00:00.000Z":{"open":1.0,"high":2.0,"low":0.5,"close":1.5,"volume":100}'
    second = '"2026-01-06T00:00:00.000Z":{"open":1.0,"high":2.0,"low":null,"close":null,"volume":7.5}'
    assert text == "{" + first + "," + second + "}"


def test_a_file_that_is_no_series_is_named_with_its_line(tmp_path):
    (tmp_path / "A_1d.csv").write_text("date,open,high,low,close,volume\n2026-01-05,1,2,0.5,x,100\n")
    (tmp_path / "B_1d.csv").write_text("date,price\n2026-01-05,1\n")
    source = SeriesSource(tmp_path)
    with pytest.raises(InvalidValue, match=r"A_1d\.csv, line 2"):
        source.get("A", "1d")
    with pytest.raises(InvalidValue, match=r"B_1d\.csv: the columns"):
        source.get("B", "1d")
    with pytest.raises(InvalidValue, match="no folder"):
        SeriesSource(tmp_path / "none")
