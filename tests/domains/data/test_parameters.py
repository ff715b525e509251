"""What a load can be asked, and what happens to what it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.domains.data.engine.store import SeriesFiles
from ktrdr_ops.domains.data.engine.symbols import instrument_type, symbol
from ktrdr_ops.domains.data.operations import data_load, validated

BAD_SYMBOLS = [
    "", " ", "../../etc", "..", ".", "-", "A..B", "AAPL.", ".AAPL", "-AAPL", "BTC/USD", "A\\B", "CON", "con", "NUL",
    "COM1", "LPT9.X", "AA\0PL", "AAPL\n", "A A", "\u202eLPAA", "\ud800", "ſ", "ıBM", "A" * 10_000, "É", "A_B", "~",
    "$HOME",
]  # fmt: skip


@pytest.mark.parametrize("value", [*BAD_SYMBOLS, None, 5, ["AAPL"], float("nan")], ids=lambda value: ascii(value)[:20])
def test_a_bad_symbol_is_refused_with_a_hint_in_printable_ascii(value):
    with pytest.raises(InvalidValue) as refused:
        validated({"symbol": value, "timeframe": "1d"})
    assert refused.value.exit_code == 2
    assert refused.value.hint
    assert len(refused.value.message) < 200
    assert refused.value.message.isascii()
    assert refused.value.message.isprintable()


@given(st.text(max_size=60))
def test_whatever_symbol_is_taken_names_a_file_inside_of_the_data_folder(text):
    folder = Path("/data")
    try:
        name = symbol(text)
    except InvalidValue:
        return
    for format in ("parquet", "csv"):
        path = SeriesFiles(folder).path(name, "1d", format)
        assert folder in Path(os.path.normpath(path)).parents
        assert os.path.normpath(path) == str(path)


@pytest.mark.parametrize("name", ["AAPL", "aapl", "BRK.B", "BF-B", "EUR.USD", "0700.HK", "CONN", "A"])
def test_symbols_of_markets_are_taken_in_upper_case(name):
    assert validated({"symbol": name, "timeframe": "1d"})["symbol"] == name.upper()


def test_forex_is_told_from_stocks():
    assert [instrument_type(name) for name in ("EUR.USD", "BRK.B", "AAPL")] == ["CASH", "STK", "STK"]


@pytest.mark.parametrize("value", ["1D", "3m", "", "1h ", None, 1, "x" * 100_000])
def test_an_unknown_timeframe_lists_the_valid_ones(value):
    with pytest.raises(InvalidValue, match="valid are 1m, 5m, 15m, 30m, 1h, 2h, 4h, 1d, 1w, 1M"):
        validated({"symbol": "AAPL", "timeframe": value})


@pytest.mark.parametrize("value", ["FULL", "head", "", None, 3, []])
def test_an_unknown_mode_lists_the_valid_ones(value):
    with pytest.raises(InvalidValue, match="valid are local, tail, backfill, full"):
        validated({"symbol": "AAPL", "timeframe": "1d", "mode": value})


@pytest.mark.parametrize(
    "more",
    [
        {"start": "2013-01-01", "end": "2012-01-01"},
        {"start": "2013-01-01T10:00Z", "end": "2013-01-01T10:00+00:00"},
        {"start": "yesterday"},
        {"start": "2013-02-30"},
        {"start": "0001-01-01"},
        {"end": "9999-12-31"},
        {"end": 20130101},
        {"start": "2013-01-01\0"},
        {"mode": "tail", "start": "2013-01-01"},
        {"mode": "tail", "refresh": True},
        {"refresh": "yes"},
        {"colour": "red"},
    ],
    ids=str,
)
def test_dates_and_combinations_that_cannot_be_meant_are_refused_with_a_hint(more):
    with pytest.raises(InvalidValue) as refused:
        validated({"symbol": "AAPL", "timeframe": "1d", **more})
    assert refused.value.hint


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"symbol": "AAPL"}, "timeframe is missing"),
        ({"refresh": "maybe"}, "refresh is 'maybe'; it is true or false"),
        ({"colour": "red"}, "there is no parameter 'colour'"),
    ],
)
def test_what_is_missing_or_wrong_is_named_in_plain_words(given, said):
    with pytest.raises(InvalidValue) as refused:
        validated(given if "symbol" in given else {"symbol": "AAPL", "timeframe": "1d", **given})
    assert refused.value.message == f"a load cannot be asked so: {said}"


def test_symbols_with_a_comma_between_them_are_told_to_be_several_words():
    with pytest.raises(InvalidValue) as refused:
        validated({"symbol": "AAPL,MSFT", "timeframe": "1d"})
    assert refused.value.hint == "Several symbols have a space between them: AAPL MSFT"


def test_parameters_are_normalised_and_validating_them_again_changes_nothing():
    parameters = validated({"symbol": "aapl", "timeframe": "1h", "start": "2013-01-01", "end": "2013-01-31"})
    assert parameters == {
        "symbol": "AAPL",
        "timeframe": "1h",
        "mode": "full",
        "start": "2013-01-01T00:00:00Z",
        "end": "2013-02-01T00:00:00Z",
        "refresh": False,
    }
    assert validated(parameters) == parameters


def test_an_operation_is_named_and_keyed_by_its_series():
    operation = data_load(validated({"symbol": "AAPL", "timeframe": "1h", "mode": "backfill"}))
    assert (operation.operation_id, operation.key) == ("data_load_AAPL_1h", "data_load:AAPL:1h")
    assert operation.context == {"symbol": "AAPL", "timeframe": "1h", "mode": "backfill"}
    assert operation.total_steps == 5


def test_a_minute_and_a_month_are_two_files_even_where_case_does_not_count():
    files = SeriesFiles(Path("/data"))
    names = {str(files.path("AAPL", name, "parquet")).lower() for name in ("1m", "1M")}
    assert names == {"/data/aapl/1m.parquet", "/data/aapl/1mo.parquet"}


@pytest.fixture
def berlin(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("berlin")
def test_a_time_without_a_zone_is_local_and_an_hour_that_comes_twice_is_refused():
    asked = {"symbol": "AAPL", "timeframe": "1d"}
    assert validated({**asked, "start": "2024-07-01T12:00"})["start"] == "2024-07-01T10:00:00Z"
    with pytest.raises(InvalidValue) as refused:
        validated({**asked, "start": "2024-10-27T02:30"})
    assert refused.value.hint == "Say which: 2024-10-27T02:30:00+02:00 or 2024-10-27T02:30:00+01:00"


def test_importing_the_domain_and_its_renderer_loads_nothing_heavy():
    script = (
        "import sys; from ktrdr_ops.domains.data import domain; domain.renderer('data_load');"
        "heavy = ('pandas', 'numpy', 'pydantic', 'httpx', 'pyarrow', 'exchange_calendars');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
