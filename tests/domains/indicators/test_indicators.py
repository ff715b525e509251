"""Indicators over a series of the user's own, from the command's words to the table that people read."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ktrdr_ops.app import open_app_async
from ktrdr_ops.core.cancellation import CancellationSystem
from ktrdr_ops.core.domain import CommandContext
from ktrdr_ops.core.errors import InvalidValue, OperationNotFound
from ktrdr_ops.core.journal import history
from ktrdr_ops.core.orchestration import AsyncOrchestrationFramework, How
from ktrdr_ops.core.progress import GenericProgressManager, GenericProgressState
from ktrdr_ops.domains.indicators.engine import library, tables
from ktrdr_ops.domains.indicators.engine.commands import show
from ktrdr_ops.domains.indicators.engine.manager import IndicatorsManager
from ktrdr_ops.domains.indicators.interface import IndicatorsDomainInterface
from ktrdr_ops.domains.indicators.renderer import IndicatorsProgressRenderer
from ktrdr_ops.settings import Settings

BARS = 300


def bars() -> pd.DataFrame:
    random = np.random.default_rng(1)
    close = 100 + random.normal(0, 1, BARS).cumsum()
    index = pd.date_range("2024-01-01", periods=BARS, freq="D", tz="UTC", name="timestamp")
    spread = random.uniform(0.1, 2, BARS)
    return pd.DataFrame(
        {"open": close - 0.1, "high": close + spread, "low": close - spread, "close": close, "volume": 1000.0 + spread},
        index=index,
    )


@pytest.fixture
def settings(tmp_path) -> Settings:
    (tmp_path / "data").mkdir()
    table = bars().rename_axis(None)
    table.to_csv(tmp_path / "data" / "TEST_1d.csv", date_format="%Y-%m-%dT%H:%M:%SZ")
    return Settings(journal=tmp_path / "journal.db", data_dir=tmp_path / "data", models_dir=tmp_path / "models")


@pytest.fixture
async def app(settings):
    async with open_app_async(settings=settings) as opened:
        await opened.run("data_load", symbol="TEST", timeframe="1d", mode="local")
        yield opened


async def last(app):
    chosen = history.Filter(operation_type="indicators_compute")
    return (await history.list_operations(app.journal, chosen, limit=1)).states[0]


# What may be asked


@pytest.mark.parametrize(
    ("written", "out"),
    [
        ("rsi", "RSI(14)"),
        ("RSI(21)", "RSI(21)"),
        ("macd( 10, 20 )", "MACD(10,20,9)"),
        ("OBV", "OBV"),
        ("bollinger", "BBANDS(5,2,2,0)"),
    ],
)
def test_an_indicator_is_written_out_with_all_of_its_parameters(written, out):
    found = library.written_out(written)
    assert found.partition("(")[0] == out.partition("(")[0]
    if not written.startswith("boll"):
        assert found == out
    assert library.written_out(found) == found


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("RSIX", "no indicator 'RSIX'"),
        ("RSI(a)", "timeperiod"),
        ("RSI(1,2)", "2 were given"),
        ("RSI(14.5)", "timeperiod"),
        ("RSI(-5)", "RSI: timeperiod is -5, which is out of its range"),
        ("MACD(12,1)", "MACD: slowperiod is 1"),
        ("", "1 to 64"),
        ("../x", "no indicator"),
        (["RSI", 3], "no indicator"),
        ("MAVP", "no indicator 'MAVP'"),
    ],
)
def test_what_cannot_be_meant_is_refused(asked, why):
    with pytest.raises(InvalidValue, match="(?i)" + why.replace("(", r"\(")):
        library.listed(asked)


def test_a_list_splits_at_commas_outside_of_brackets_and_holds_nothing_twice():
    assert library.listed("RSI,MACD(12,26,9),rsi(14)") == ["RSI(14)", "MACD(12,26,9)"]
    assert len(library.listed(None)) == 3
    assert len(library.known()) > 100


async def test_parameters_are_checked_before_anything_is_journaled(app):
    before = (await app.journal.head()).position
    for wrong in (
        {"symbol": "../x"},
        {"timeframe": "2d"},
        {"indicators": "NOPE"},
        {"indicators": "RSI(-5)"},
        {"window": 3},
    ):
        with pytest.raises(InvalidValue):
            await app.run("indicators_compute", **{"symbol": "TEST", "timeframe": "1d", **wrong})
    assert (await app.journal.head()).position == before


# What is computed


def test_the_numbers_are_those_of_the_definitions():
    table = bars()
    change = table.close.diff()
    up, down = change.clip(lower=0), -change.clip(upper=0)
    gain, loss = up[1:15].mean(), down[1:15].mean()
    for at in range(15, BARS):
        gain, loss = (gain * 13 + up.iloc[at]) / 14, (loss * 13 + down.iloc[at]) / 14
    assert library.computed("RSI(14)", table).iloc[-1, 0] == pytest.approx(100 * gain / (gain + loss), rel=1e-9)
    mean, deviation = table.close[-20:].mean(), table.close[-20:].std(ddof=0)
    upper, middle, lower = library.computed(library.written_out("BBANDS(20)"), table).iloc[-1]
    assert (upper, middle, lower) == pytest.approx((mean + 2 * deviation, mean, mean - 2 * deviation))
    assert library.computed("RSI(14)", table).iloc[:14, 0].isna().all()


def test_an_indicator_looks_back_only():
    table = bars()
    changed = table.copy()
    changed.iloc[-1] *= 2
    for indicator in library.listed("RSI,MACD,BBANDS,ATR,ADX,STOCH,OBV,CCI,EMA"):
        before, after = library.computed(indicator, table), library.computed(indicator, changed)
        pd.testing.assert_frame_equal(before.iloc[:-1], after.iloc[:-1])


def test_a_parameter_that_the_library_refuses_is_a_clear_error():
    with pytest.raises(InvalidValue, match=r"RSI\(1\) cannot be computed"):
        library.computed("RSI(1)", bars())


# The operation


async def test_a_computation_publishes_a_table_and_says_what_it_was_made_from(app):
    shown: list[str] = []
    table = await app.run(
        "indicators_compute", symbol="test", timeframe="1d", progress_callback=lambda state: shown.append(state.message)
    )
    state = await last(app)
    series = await app.catalogue.latest("series", "TEST:1d")
    found = await app.catalogue.latest("indicators", "TEST:1d")
    assert (state.status, state.key) == ("completed", "indicators_compute:TEST:1d")
    assert state.result["data"] == {"sha256": series.sha256, "operation_id": series.operation_id, "evidence": "own"}
    assert state.result["sha256"] == found.sha256 == tables.canonical_sha256(table)
    pd.testing.assert_frame_equal(pd.read_parquet(found.name), table, check_freq=False)
    (used,) = (await history.steps(app.journal, state.operation_id))["inputs"]
    assert (used["kind"], used["key"], used["operation_id"]) == ("series", "TEST:1d", series.operation_id)
    assert any(message.startswith("Processing indicators RSI, MACD, Bollinger") for message in shown)


async def test_the_same_series_gives_the_same_hash_and_another_series_another(app):
    first = await app.run("indicators_compute", symbol="TEST", timeframe="1d")
    again = await app.run("indicators_compute", symbol="TEST", timeframe="1d", how=How(fresh=True))
    assert tables.canonical_sha256(first) == tables.canonical_sha256(again)
    changed = first.copy()
    changed.iloc[-1, 0] += 1e-12
    assert tables.canonical_sha256(changed) != tables.canonical_sha256(first)
    assert tables.canonical_sha256(first.rename(columns={first.columns[0]: "x"})) != tables.canonical_sha256(first)


async def test_a_series_that_is_missing_is_loaded_by_a_child(settings):
    async with open_app_async(settings=settings) as app:
        with pytest.raises(Exception, match="Data load failed for NONE"):
            await app.run("indicators_compute", symbol="NONE", timeframe="1d")
        page = await history.list_operations(app.journal, limit=10)
        child, parent = page.states
        assert (child.operation_type, child.parent_id) == ("data_load", parent.operation_id)
        assert parent.status == "failed"


@pytest.mark.slow
def test_killed_after_the_third_indicator_it_computes_the_others_only(settings, tmp_path):
    names = ",".join(library.known()[:60])
    environment = {
        **os.environ,
        "KTRDR_OPS_JOURNAL": str(settings.journal),
        "KTRDR_OPS_DATA_DIR": str(settings.data_dir),
        "HOME": str(tmp_path),
    }
    ktrdr_ops = [sys.executable, "-m", "ktrdr_ops"]
    load = [*ktrdr_ops, "data", "load", "TEST", "1d", "--mode", "local"]
    subprocess.run(load, env=environment, check=True, capture_output=True, timeout=60)
    compute = [*ktrdr_ops, "indicators", "compute", "TEST", "1d", "--indicators", names]
    running = subprocess.Popen(compute, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while len(kept(settings.journal)) < 3:
        assert time.monotonic() < deadline
        assert running.poll() is None, "it ended before it could be killed"
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = kept(settings.journal)
    assert 3 <= len(before) < 60
    subprocess.run(compute, env=environment, check=True, capture_output=True, timeout=60)
    after = kept(settings.journal)
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == 60


def kept(journal: Path) -> list[str]:
    """The indicators that the journal holds, in their order, read with nothing but sqlite3."""
    connection = sqlite3.connect(f"file:{journal}?mode=ro", uri=True)
    try:
        rows = connection.execute(
            "SELECT json_extract(CAST(payload AS TEXT), '$.name') FROM events WHERE type = 'step_completed'"
            " AND operation_id LIKE 'indicators%' ORDER BY position"
        ).fetchall()
    finally:
        connection.close()
    return [row[0] for row in rows if row[0].startswith("indicator ")]


async def test_a_later_attempt_computes_over_the_series_that_the_first_one_meant(app, monkeypatch):
    real = library.computed
    seen = []

    def failing(indicator, table):
        seen.append(len(table))
        if len(seen) == 2:
            raise OSError("no room")
        return real(indicator, table)

    monkeypatch.setattr(library, "computed", failing)
    with pytest.raises(Exception, match="no room"):
        await app.run("indicators_compute", symbol="TEST", timeframe="1d")
    monkeypatch.setattr(library, "computed", real)
    source = app.settings.data_dir / "TEST_1d.csv"
    source.write_text("\n".join([*source.read_text().splitlines(), "2025-06-01T00:00:00Z,1,2,0.5,1,10"]) + "\n")
    await app.run("data_load", symbol="TEST", timeframe="1d", mode="local")
    table = await app.run("indicators_compute", symbol="TEST", timeframe="1d")
    assert (await last(app)).attempt == 2
    assert len(table) == BARS


# The doors


async def test_the_typed_call_gives_the_table(app):
    framework = AsyncOrchestrationFramework(
        GenericProgressManager(), CancellationSystem(), journal=app.journal, objects=app.objects
    )
    domain = IndicatorsDomainInterface(framework, IndicatorsManager(app.settings.data_dir))
    table = await domain.execute_compute("TEST", "1d", ["RSI(5)"])
    assert list(table.columns) == ["RSI(5)"]
    assert table.attrs["indicators"]["rows"] == BARS
    await framework.aclose()


async def test_show_gives_the_last_rows_and_says_who_published_them(app):
    context = CommandContext(app, {"symbol": "TEST", "timeframe": "1d"})
    with pytest.raises(OperationNotFound, match="have been computed"):
        await show(context)
    await app.run("indicators_compute", symbol="TEST", timeframe="1d", indicators="RSI")
    said = await show(context)
    assert said.document["last"][-1]["RSI(14)"] == pytest.approx(library.computed("RSI(14)", bars()).iloc[-1, 0])
    assert said.document["operation_id"] in said.text


def test_words_are_rendered_once():
    state = GenericProgressState(
        "x", 2, 3, 50.0, "Processing indicators", pd.Timestamp("2024-01-01", tz="UTC").to_pydatetime(),
        context={"symbol": "AAPL", "timeframe": "1d", "indicators": ["RSI", "MACD", "BBANDS"], "indicator": "RSI(14)"},
    )  # fmt: skip
    renderer = IndicatorsProgressRenderer()
    state.message = once = renderer.render_progress_message(state)
    assert once == "Processing indicators RSI, MACD, Bollinger [2/3]"
    assert renderer.render_progress_message(state) == once
    assert renderer.render_step_detail(state) == "RSI(14)"
