"""A load from end to end: over real HTTP, into real files and a real journal."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from ktrdr_ops.core.cancellation import CancellationSystem
from ktrdr_ops.core.domain import CommandContext
from ktrdr_ops.core.errors import HostUnavailable, InvalidValue, OperationCancelledException
from ktrdr_ops.core.orchestration import AsyncOrchestrationFramework
from ktrdr_ops.core.progress import GenericProgressManager
from ktrdr_ops.domains.data.engine.bars import canonical_sha256, merged, parse_moment
from ktrdr_ops.domains.data.engine.commands import show, verify
from ktrdr_ops.domains.data.engine.errors import (
    DataServiceError,
    NothingStored,
    SeriesRevised,
    SeriesUnreadable,
    UnknownSymbol,
)
from ktrdr_ops.domains.data.engine.ib_host import IbHostService
from ktrdr_ops.domains.data.engine.manager import DataManager
from ktrdr_ops.domains.data.engine.pacing import Pacer, Rules
from ktrdr_ops.domains.data.engine.store import SeriesFiles, csv_bytes, decoded
from ktrdr_ops.domains.data.engine.stored import StoredSeries
from ktrdr_ops.domains.data.interface import DataDomainInterface
from tests.domains.data.data_host import daily, failing, found, part_of, says
from tests.faulty_host import answers, hang, html, refusing_url, server_error


def load(app, symbol="TEST", timeframe="1d", **more):
    return app.run("data_load", symbol=symbol, timeframe=timeframe, **more)


def once(*behaviours):
    """These for the first requests, then the right answers."""
    left = list(behaviours)
    return lambda asked: left.pop(0) if left else None


def failing_from(start, behaviour):
    return lambda asked: behaviour if asked["start"].startswith(start) else None


async def artifacts(app, kind, key="TEST:1d"):
    return [each for each in await app.catalogue.every(kind, key) if each.key == key]


def command(app, **values):
    return CommandContext(app, values)


async def test_a_full_load_brings_every_bar_and_tells_what_it_did(app, bars, host, settings):
    loaded = await load(app)
    pd.testing.assert_frame_equal(loaded, bars, check_exact=True)
    result = (await app.show("data_load_TEST_1d"))["result"]
    assert loaded.attrs["load"] == result
    path = settings.data_dir / "TEST" / "1d.parquet"
    assert result == {
        "symbol": "TEST",
        "timeframe": "1d",
        "mode": "full",
        "source": f"IB host service {host.url}",
        "rows": len(bars),
        "first": "2010-01-04T00:00:00Z",
        "last": "2013-03-01T00:00:00Z",
        "rows_added": len(bars),
        "path": str(path),
        "sha256": canonical_sha256(bars),
        "segments": {"total": 4, "fetched": 4, "failed": 0},
        "requests": 4,
        "gaps": {"periods": 0, "runs": 0, "listed": []},
        "quality": result["quality"],
    }
    assert result["quality"]["duplicates"] == 0
    pd.testing.assert_frame_equal(pd.read_parquet(path), bars, check_freq=False, check_exact=True)


async def test_no_request_is_longer_than_what_the_host_leaves_whole(app, host):
    await load(app)
    spans = [pd.Timestamp(asked["end"]) - pd.Timestamp(asked["start"]) for asked in host.asked]
    assert spans == [timedelta(days=364)] * 3 + [timedelta(days=63)]
    assert {asked["instrument_type"] for asked in host.asked} == {"STK"}


async def test_progress_names_the_five_steps_and_never_falls(app):
    states = []
    await load(app, progress_callback=states.append)
    assert [state.message for state in states if "segment" not in state.message] == [
        "Starting data load (TEST 1d, full mode)",
        "Validating symbol and range (TEST 1d, full mode) [1/5]",
        "Loading stored data (TEST 1d, full mode) [2/5]",
        "Analyzing gaps (TEST 1d, full mode) [3/5]",
        states[-2].message,
        "Operation completed (TEST 1d, full mode) [5/5]",
    ]
    assert states[-2].message.startswith("Merging and saving (TEST 1d, full mode) [5/5]")
    fetching = [state for state in states if state.message.startswith("Fetching segment")]
    assert [state.percentage for state in fetching] == [10.0, 31.5, 53.0, 74.5]
    assert fetching[2].message.startswith("Fetching segment 3/4 (TEST 1d, full mode) [4/5] (2/4 items)")
    percentages = [state.percentage for state in states]
    assert percentages == sorted(percentages)


async def test_each_segment_is_in_the_journal_before_the_next_is_asked_for(app, host):
    published = []

    def looking(asked):
        steps = [event for event in app.journal_seen if event.type == "step_completed"]
        published.append(len([event for event in steps if event.fact.name.startswith("segment:")]))

    host.fault = lambda asked: looking(asked)
    app.journal_seen = []
    task = asyncio.create_task(load(app))
    async for event in app.journal.tail():
        app.journal_seen.append(event)
        if event.type == "completed":
            break
    await task
    assert published[0] == 0
    assert published == sorted(published)
    positions = [event.position for event in app.journal_seen if event.type == "artifact_published"]
    assert len(positions) == 5


async def test_a_failed_load_names_its_segments_and_the_same_command_asks_for_these_only(app, host, bars):
    host.fault = failing_from("2011-01-03", failing("a strange thing"))
    with pytest.raises(DataServiceError, match="Data load failed for TEST: 1 of 4 segments: 2011-01-03") as failed:
        await load(app)
    assert failed.value.code == "data_load_failed"
    shown = await app.show("data_load_TEST_1d")
    assert shown["status"] == "failed"
    assert shown["result"]["segments"] == {"total": 4, "fetched": 3, "failed": 1}
    asked = len(host.asked)
    host.fault = lambda asked: None
    loaded = await load(app)
    assert [each["start"] for each in host.asked[asked:]] == ["2011-01-03T00:00:00Z"]
    assert host.validated == 1
    assert loaded.attrs["load"]["sha256"] == canonical_sha256(bars)
    assert (await app.show("data_load_TEST_1d"))["attempt"] == 2


@pytest.mark.parametrize(
    "fault", [html, server_error, says(success=True, data="{", rows=1)], ids=["html", "500", "half"]
)
async def test_an_answer_that_cannot_be_used_fails_its_segment_and_never_counts_as_no_data(opened, host, fault):
    host.fault = failing_from("2012-01-02", fault)
    async with opened() as app:
        app.provider("data_load").connector.manager.host._first_wait = 0.01
        with pytest.raises(DataServiceError, match="1 of 4 segments"):
            await load(app)
        assert len(await artifacts(app, "segment")) == 3
        assert not await artifacts(app, "series")


async def test_a_gateway_that_is_gone_is_unavailable_and_not_an_invalid_symbol(app, host):
    host.connected = False
    with pytest.raises(HostUnavailable, match="gateway is disconnected") as gone:
        await load(app)
    assert gone.value.code == "host_unavailable"
    assert gone.value.exit_code == 5
    assert host.validated == 0


@pytest.mark.parametrize(
    "error",
    ["Symbol validation failed: TEST not found", "Timeout while creating connection", "No data returned for TEST 1d"],
)
async def test_what_the_host_says_while_its_gateway_is_gone_is_not_believed(app, host, bars, error):
    def falls_away(asked):
        host.connected = False
        return failing(error)

    host.fault = lambda asked: falls_away(asked) if asked["start"].startswith("2011") else None
    with pytest.raises(HostUnavailable, match="gateway is disconnected"):
        await load(app)
    assert len(await artifacts(app, "segment")) == 1
    host.connected, host.fault = True, lambda asked: None
    assert canonical_sha256(await load(app)) == canonical_sha256(bars)
    assert [asked["start"][:4] for asked in host.asked] == ["2010", "2011", "2011", "2012", "2012"]


async def test_a_host_that_refuses_the_connection_fails_fast_with_a_hint(opened):
    async with opened(ib_host_url=refusing_url()) as app:
        with pytest.raises(HostUnavailable, match="Data load failed for TEST") as refused:
            await load(app)
    assert "doctor" in (refused.value.hint or "")


async def test_an_unknown_symbol_is_final_and_named(app):
    with pytest.raises(UnknownSymbol, match="does not know NOPE: Symbol NOPE not found"):
        await load(app, symbol="NOPE")


async def test_a_timeframe_that_the_host_does_not_have_is_an_error_and_no_data_is_made_up(app):
    with pytest.raises(DataServiceError, match="does not say since when"):
        await load(app, timeframe="1h")


async def test_no_data_is_remembered_and_not_asked_for_again(app, host, bars):
    host.fault = failing_from("2011-01-03", failing("No data returned for TEST 1d"))
    loaded = await load(app)
    assert loaded.attrs["load"]["gaps"]["listed"] == [{"first": "2011-01-03", "last": "2011-12-30", "periods": 252}]
    asked = len(host.asked)
    await load(app)
    assert len(host.asked) == asked
    host.fault = lambda asked: None
    refreshed = await load(app, refresh=True)
    assert canonical_sha256(refreshed) == canonical_sha256(bars)


async def test_a_second_full_load_asks_for_nothing(app, host):
    first = await load(app)
    asked = len(host.asked)
    again = await load(app)
    assert len(host.asked) == asked
    assert again.attrs["load"]["sha256"] == first.attrs["load"]["sha256"]
    assert again.attrs["load"]["rows_added"] == 0
    assert len(await artifacts(app, "series")) == 1


async def test_tail_asks_again_for_the_last_five_bars_and_adds_what_came_since(opened, host, bars):
    async with opened(as_of="2013-02-01") as app:
        await load(app)
    host.asked.clear()
    async with opened() as app:
        loaded = await load(app, mode="tail")
    assert canonical_sha256(loaded) == canonical_sha256(bars)
    assert loaded.attrs["load"]["rows_added"] == 20 - 1
    assert len(host.asked) == 1


async def test_tail_with_other_prices_fails_as_revised_and_keeps_both_versions(opened, host, bars):
    async with opened(as_of="2013-02-01") as app:
        before = await load(app)
    host.bars["TEST", "1d"] = bars * [0.5, 0.5, 0.5, 0.5, 2.0]
    async with opened() as app:
        with pytest.raises(SeriesRevised, match="5 stored bars") as revised:
            await load(app, mode="tail")
        assert revised.value.code == "revised"
        assert "--mode full --refresh" in (revised.value.hint or "")
        assert (await app.show("@failed"))["error"]["code"] == "revised"
        [series] = await artifacts(app, "series")
        assert series.sha256 == canonical_sha256(before)
        assert len(await artifacts(app, "segment")) == 5
        anew = await load(app, mode="full", refresh=True)
        assert canonical_sha256(anew) == canonical_sha256(host.bars["TEST", "1d"])
        assert len(await artifacts(app, "series")) == 2


async def test_backfill_brings_what_lies_before_and_joins_it_to_what_is_stored(app, host, bars):
    await load(app, start="2012-01-01")
    assert (await load(app, mode="local")).index[0] == pd.Timestamp("2012-01-03", tz="UTC")
    loaded = await load(app, mode="backfill")
    assert canonical_sha256(loaded) == canonical_sha256(bars)


async def test_two_price_scales_are_not_glued_by_a_backfill_either(app, host, bars):
    await load(app, start="2012-01-01")
    host.bars["TEST", "1d"] = bars * 2
    with pytest.raises(SeriesRevised):
        await load(app, mode="backfill")


async def test_local_asks_nobody(app, host):
    with pytest.raises(NothingStored, match="nothing is stored of TEST 1d"):
        await load(app, mode="local")
    await load(app)
    host.asked.clear()
    seen = len(host.server.requests)
    assert len(await load(app, mode="local", start="2013-01-01", end="2013-01-31")) == 21
    assert len(host.server.requests) == seen


async def test_the_users_own_csv_is_kept_as_an_object_and_loaded_on_from(app, host, bars, settings):
    own = part_of(bars, "2011-06-01", "2013-02-01")
    settings.data_dir.mkdir()
    path = settings.data_dir / "TEST_1d.csv"
    path.write_bytes(csv_bytes(own))
    loaded = await load(app)
    assert canonical_sha256(loaded) == canonical_sha256(bars)
    assert path.read_bytes() == csv_bytes(own)
    series = await artifacts(app, "series")
    assert app.objects.read(series[-1].object) == csv_bytes(own)
    assert series[-1].metadata["source"] == "import"
    assert len(host.asked) == 3


async def test_with_format_csv_the_users_own_file_becomes_the_whole_series(opened, bars, settings):
    settings.data_dir.mkdir()
    path = settings.data_dir / "TEST_1d.csv"
    path.write_bytes(csv_bytes(part_of(bars, "2011-06-01", "2013-02-01")))
    async with opened(data_format="csv") as app:
        await load(app)
        await load(app, mode="tail")
    assert not (settings.data_dir / "TEST").exists()
    assert canonical_sha256(decoded(path.read_bytes(), "csv", "it")[0]) == canonical_sha256(bars)
    assert path.read_text().startswith(",open,high,low,close,volume\n2010-01-04T00:00:00Z,")


async def test_a_file_that_is_no_series_is_refused_and_left_alone(app, settings):
    path = settings.data_dir / "TEST" / "1d.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a series")
    with pytest.raises(SeriesUnreadable, match="is not a readable series"):
        await load(app)
    assert path.read_bytes() == b"not a series"


async def test_a_missing_name_is_moved_to_what_was_published(app, settings, host):
    await load(app)
    path = settings.data_dir / "TEST" / "1d.parquet"
    content = path.read_bytes()
    path.unlink()
    await load(app, mode="local")
    assert path.read_bytes() == content


async def test_nan_in_bars_is_stored_and_counted(app, host, bars):
    bars.iloc[100, 3] = np.nan
    loaded = await load(app)
    assert np.isnan(loaded.iloc[100, 3])
    assert loaded.attrs["load"]["quality"]["nan_bars"] == 1
    assert loaded.attrs["load"]["sha256"] == canonical_sha256(bars)


async def test_bars_outside_of_what_was_asked_are_left_out_and_said(app, host, bars):
    host.fault = lambda asked: says(**found(bars, asked))
    loaded = await load(app)
    assert canonical_sha256(loaded) == canonical_sha256(bars)
    assert "bars outside of what was asked were left out" in loaded.attrs["load"]["quality"]["notes"][0]


async def test_an_answer_with_none_of_the_bars_that_were_asked_for_fails_its_segment(app, host, bars):
    wrong = says(**found(part_of(bars, "2010-01-01", "2010-02-01"), {}))
    host.fault = failing_from("2012-01-02", wrong)
    with pytest.raises(DataServiceError, match=r"1 of 4 segments: 2012-01-02 .* the host sent 19 bars from 2010-01-04"):
        await load(app)


async def test_an_answer_cut_short_at_its_beginning_is_said_and_asked_for_by_the_next_load(app, host, bars):
    host.fault = failing_from("2011-01-03", says(**found(part_of(bars, "2011-07-01", "2012-01-02"), {})))
    loaded = await load(app)
    assert "the answer begins at 2011-07-01" in loaded.attrs["load"]["quality"]["notes"][0]
    host.fault = lambda asked: None
    assert canonical_sha256(await load(app)) == canonical_sha256(bars)


async def test_a_start_before_the_head_is_moved_up(app, host, bars):
    assert canonical_sha256(await load(app, start="1999-01-01")) == canonical_sha256(bars)
    assert host.asked[0]["start"] == "2010-01-04T00:00:00Z"


async def test_a_segment_before_the_head_is_asked_for_from_the_head_on(app, host, bars):
    first = failing("Data not available before 2010-03-01T00:00:00+00:00. Requested start: x Head timestamp: y")
    host.fault = once(first)
    loaded = await load(app)
    assert [asked["start"] for asked in host.asked[:2]] == ["2010-01-04T00:00:00Z", "2010-03-01T00:00:00Z"]
    assert len(loaded) < len(bars)


async def test_an_answer_without_data_but_with_a_422_is_final(app, host):
    body = b'{"detail": [{"type": "x", "loc": ["body", "end"], "msg": "bad date", "input": ""}]}'
    host.fault = once(answers(body, "422 Unprocessable Entity"))
    with pytest.raises(DataServiceError, match="end: bad date"):
        await load(app)
    assert len(host.asked) == 1


async def test_a_cancel_with_a_request_in_flight_stops_at_once_and_keeps_what_came(app, host, bars):
    host.fault = failing_from("2012-01-02", hang)
    task = asyncio.create_task(load(app))
    await host.server.until(lambda server: len(host.asked) == 3)
    began = asyncio.get_running_loop().time()
    await app.cancel("data_load_TEST_1d")
    with pytest.raises(OperationCancelledException):
        await task
    assert asyncio.get_running_loop().time() - began < 1.0
    await host.server.until(lambda server: server.in_flight == 0)
    host.fault = lambda asked: None
    assert canonical_sha256(await load(app)) == canonical_sha256(bars)
    assert len(host.asked) == 5


async def test_every_attempt_uses_the_now_of_the_first(opened, host):
    host.fault = failing_from("2012-01-01", failing("strange"))
    async with opened(as_of="2012-06-30") as app:
        with pytest.raises(DataServiceError):
            await load(app)
    host.fault = lambda asked: None
    async with opened() as app:
        assert (await load(app)).index[-1] == pd.Timestamp("2012-06-29", tz="UTC")


async def test_several_symbols_are_loaded_as_one_group(app, host, bars):
    host.bars["OTHER", "1d"] = daily("2011-01-03", "2013-03-01", seed=2)
    children = [{"type": "data_load", "parameters": {"symbol": name, "timeframe": "1d"}} for name in ("TEST", "OTHER")]
    await app.run("group", children=children)
    shown = await show(command(app, symbol="OTHER", timeframe="1d"))
    assert shown.document["rows"] == len(host.bars["OTHER", "1d"])


async def test_a_start_after_now_is_refused(app):
    with pytest.raises(InvalidValue, match="is not before the last complete bar"):
        await load(app, start="2013-06-01")


async def test_the_interface_of_the_specification_gives_a_frame(settings, bars, tmp_path):
    seen = []
    framework = AsyncOrchestrationFramework(GenericProgressManager(), CancellationSystem())
    data = DataDomainInterface(framework, settings=settings)
    loaded = await data.execute_data_load("test", "1d", "full", seen.append)
    await data.aclose()
    await framework.aclose()
    pd.testing.assert_frame_equal(loaded, bars, check_exact=True)
    assert seen[-1].percentage == 100.0


async def test_show_prints_the_ends_and_where_they_came_from(app, bars):
    await load(app)
    shown = await show(command(app, symbol="test", timeframe="1d", as_of=None))
    assert shown.document["sha256"] == canonical_sha256(bars)
    assert len(shown.document["bars"]) == 10
    assert f"TEST 1d   {len(bars)} bars" in shown.text
    operation_id = (await app.show("data_load_TEST_1d"))["operation_id"]
    assert f"published by {operation_id}" in shown.text
    for as_of in (operation_id, operation_id[-4:], str(shown.document["position"])):
        then = await show(command(app, symbol="TEST", timeframe="1d", as_of=as_of))
        assert then.document == shown.document
    with pytest.raises(NothingStored):
        await show(command(app, symbol="TEST", timeframe="1d", as_of="1"))
    json.dumps(shown.document, allow_nan=False)
    with pytest.raises(NothingStored):
        await show(command(app, symbol="NOPE", timeframe="1d"))


async def test_verify_finds_a_changed_file_and_a_changed_object(app, bars, settings):
    await load(app)
    good = await verify(command(app))
    assert (good.exit_code, good.document["ok"]) == (0, True)
    path = settings.data_dir / "TEST" / "1d.parquet"
    path.write_bytes(csv_bytes(bars))
    bad = await verify(command(app, symbol="TEST", timeframe="1d"))
    assert bad.exit_code == 4
    [series] = await artifacts(app, "series")
    app.objects.path(series.object).write_bytes(b"x")
    path.unlink()
    worse = await verify(command(app))
    assert len(worse.document["series"][0]["problems"]) == 2


async def test_an_object_that_was_damaged_is_mended_from_its_file_and_else_loaded_anew(app, bars, settings):
    await load(app)
    [series] = await artifacts(app, "series")
    damaged = app.objects.path(series.object)
    damaged.write_bytes(b"x")
    assert canonical_sha256(await load(app, mode="local")) == canonical_sha256(bars)
    damaged.write_bytes(b"x")
    (settings.data_dir / "TEST" / "1d.parquet").unlink()
    with pytest.raises(DataServiceError, match="is not what was stored"):
        await load(app, mode="local")
    assert (await app.show("@last"))["status"] == "failed"
    assert canonical_sha256(await load(app, refresh=True)) == canonical_sha256(bars)


def by_hand(settings, host, rules):
    """An interface over a manager with this pacing, and its framework."""
    framework = AsyncOrchestrationFramework(GenericProgressManager(), CancellationSystem())
    service = IbHostService(host.url, Pacer(rules), gateway_wait=0.01)
    stored = StoredSeries(SeriesFiles(settings.data_dir), "parquet")
    manager = DataManager(service, stored, as_of=parse_moment("2013-03-02"))
    return DataDomainInterface(framework, manager), framework


async def wait_and_cancel(data, framework):
    """Cancel the load once it waits; gives its events."""
    task = asyncio.create_task(data.execute_data_load("TEST", "1d", "full"))
    events = []
    async for event in framework.journal.tail():
        events.append(event)
        if event.type == "wait_started":
            await framework.cancel_operation(event.operation_id)
        if event.event_class == "terminal":
            break
    with pytest.raises(OperationCancelledException):
        await task
    await data.aclose()
    await framework.aclose()
    return events


async def test_a_wait_for_pacing_is_journaled_and_ends_with_a_cancel(settings, host):
    events = await wait_and_cancel(*by_hand(settings, host, Rules(total=2, total_seconds=600)))
    [started] = [event for event in events if event.type == "wait_started"]
    assert started.fact.reason == "IB pacing"
    assert 590e6 < started.fact.until - started.at < 601e6
    assert events[-1].type == "cancelled"
    assert events[-1].at - started.at < 1e6
    assert [event.type for event in events].count("wait_ended") == 1
    assert len(host.asked) == 2


async def test_a_host_that_says_pacing_violation_is_left_alone_for_a_minute(settings, host):
    host.fault = once(failing("Error 162: Historical data request pacing violation"))
    events = await wait_and_cancel(*by_hand(settings, host, None))
    [started] = [event for event in events if event.type == "wait_started"]
    assert 59e6 < started.fact.until - started.at < 61e6
    assert [event.fact.reason for event in events if event.type == "request_retried"] == [
        "Error 162: Historical data request pacing violation"
    ]


async def test_a_gateway_that_times_out_while_it_is_connected_is_asked_again_and_then_absent(settings, host, bars):
    data, framework = by_hand(settings, host, None)
    timeout = failing("Timeout while acquiring connection")
    host.fault = once(timeout, timeout)
    loaded = await data.execute_data_load("TEST", "1d", "full")
    assert canonical_sha256(loaded) == canonical_sha256(bars)
    assert loaded.attrs["load"]["requests"] == 6
    host.fault = lambda asked: timeout
    with pytest.raises(HostUnavailable, match="does not answer: Timeout while acquiring connection"):
        await data.execute_data_load("TEST", "1d", "full", refresh=True)
    await data.aclose()
    await framework.aclose()


async def test_a_data_folder_that_cannot_be_made_is_a_clear_error(opened, tmp_path):
    (tmp_path / "file").write_text("")
    async with opened(data_dir=tmp_path / "file" / "data") as app:
        with pytest.raises(DataServiceError, match=r"Data load failed for TEST: .*file"):
            await load(app)


async def test_what_merged_gives_is_what_a_load_stores(bars):
    halves = [part_of(bars, "2010-01-01", "2011-06-01"), part_of(bars, "2011-03-01", "2014-01-01")]
    assert canonical_sha256(merged(halves)) == canonical_sha256(bars)
