"""What a load does when something is wrong: the host, its gateway, its answers, the disk, or what was asked."""

from __future__ import annotations

import asyncio

import pandas as pd
import pytest

from ktrdr_ops.core.cancellation import CancellationSystem
from ktrdr_ops.core.errors import HostUnavailable, InvalidValue, OperationCancelledException
from ktrdr_ops.core.journal.history import steps
from ktrdr_ops.core.orchestration import AsyncOrchestrationFramework
from ktrdr_ops.core.progress import GenericProgressManager
from ktrdr_ops.domains.data.engine.bars import canonical_sha256, parse_moment
from ktrdr_ops.domains.data.engine.commands import verify
from ktrdr_ops.domains.data.engine.errors import (
    DataServiceError,
    SeriesRevised,
    SeriesUnreadable,
    UnknownSymbol,
)
from ktrdr_ops.domains.data.engine.ib_host import IbHostService
from ktrdr_ops.domains.data.engine.manager import DataManager
from ktrdr_ops.domains.data.engine.pacing import Pacer, Rules
from ktrdr_ops.domains.data.engine.store import SeriesFiles, csv_bytes, parquet_bytes
from ktrdr_ops.domains.data.engine.stored import StoredSeries
from ktrdr_ops.domains.data.interface import DataDomainInterface
from tests.domains.data.data_host import failing, found, part_of, says
from tests.domains.data.loading import artifacts, command, failing_from, load, once
from tests.faulty_host import answers, hang, html, refusing_url, server_error


async def test_a_failed_load_names_its_segments_and_the_same_command_asks_for_these_only(app, host, bars):
    host.fault = failing_from("2011-01-03", failing("a strange thing"))
    with pytest.raises(DataServiceError, match="Data load failed for TEST: 1 of 4 segments: 2011-01-03") as failed:
        await load(app)
    assert failed.value.code == "data_load_failed"
    assert "final" not in failed.value.details
    shown = await app.show("data_load_TEST_1d")
    assert shown["status"] == "failed"
    assert shown["result"]["segments"] == {"total": 4, "fetched": 3, "failed": 1}
    asked = len(host.asked)
    host.fault = lambda asked: None
    loaded = await load(app)
    beside = [each["start"] for each in host.asked[asked:]]  # the segment, and five bars of the one before
    assert beside == ["2010-12-27T00:00:00Z", "2011-12-26T00:00:00Z"]
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
    assert [asked["start"][:4] for asked in host.asked] == ["2010", "2011", "2010", "2011", "2012"]


async def test_a_host_that_refuses_the_connection_fails_fast_with_a_hint(opened):
    async with opened(ib_host_url=refusing_url()) as app:
        with pytest.raises(HostUnavailable, match="Data load failed for TEST") as refused:
            await load(app)
    assert "doctor" in (refused.value.hint or "")


async def test_an_unknown_symbol_is_final_and_named(app):
    with pytest.raises(UnknownSymbol, match="does not know NOPE: Symbol NOPE not found") as unknown:
        await load(app, symbol="NOPE")
    assert unknown.value.details["final"] is True


async def test_a_timeframe_that_the_host_does_not_have_is_an_error_and_no_data_is_made_up(app):
    with pytest.raises(DataServiceError, match="does not say since when"):
        await load(app, timeframe="1h")


async def test_a_file_that_is_no_series_is_refused_and_left_alone(app, settings):
    path = settings.data_dir / "TEST" / "1d.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a series")
    with pytest.raises(SeriesUnreadable, match="is not a readable series"):
        await load(app)
    assert path.read_bytes() == b"not a series"


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


def cut(bars, asked, rows=None):
    """The first hundred bars of what was asked for."""
    whole = part_of(bars, asked["start"], asked["end"])
    answer = found(whole.iloc[:100], asked)
    return says(**{**answer, "rows": rows or answer["rows"]})


async def test_an_answer_with_fewer_bars_than_it_says_fails_its_segment(app, host, bars):
    host.fault = lambda asked: cut(bars, asked, 252) if asked["start"].startswith("2011") else None
    with pytest.raises(DataServiceError, match="the host says 252 rows and sent 100"):
        await load(app)
    host.fault = lambda asked: None
    assert canonical_sha256(await load(app)) == canonical_sha256(bars)


async def test_an_answer_cut_short_at_its_end_is_said_and_asked_for_by_the_next_load(app, host, bars):
    host.fault = lambda asked: cut(bars, asked)
    loaded = await load(app)
    assert "the answer ends at 2010-05-26" in loaded.attrs["load"]["quality"]["notes"][0]
    host.fault = lambda asked: None
    assert canonical_sha256(await load(app)) == canonical_sha256(bars)


@pytest.mark.parametrize("data", [None, "{}"])
async def test_a_success_without_bars_while_the_gateway_is_gone_is_not_believed(app, host, bars, data):
    def falls_away(asked):
        host.connected = False
        return says(success=True, data=data, rows=None, error=None)

    host.fault = lambda asked: falls_away(asked) if asked["start"].startswith("2012") else None
    with pytest.raises(HostUnavailable, match="gateway is disconnected"):
        await load(app)
    host.connected, host.fault = True, lambda asked: None
    assert canonical_sha256(await load(app)) == canonical_sha256(bars)


async def test_a_success_without_data_fails_its_segment_and_an_empty_one_is_an_answer(app, host):
    host.fault = failing_from("2012-01-02", says(success=True, data=None, rows=None, error=None))
    with pytest.raises(DataServiceError, match="1 of 4 segments"):
        await load(app)
    host.fault = failing_from("2012", says(success=True, data="{}", rows=0, error=None))
    await load(app)


@pytest.mark.parametrize(
    "answer",
    [
        {"success": False, "is_valid": False, "error": "Timeout while acquiring connection", "error_message": None},
        {"success": True, "is_valid": False, "error": None, "error_message": "Timeout while creating connection"},
    ],
)
async def test_a_timeout_of_the_gateway_while_it_validates_is_an_outage_and_no_unknown_symbol(settings, host, answer):
    data, framework = by_hand(settings, host, None)
    host._validate = lambda asked: answer
    with pytest.raises(HostUnavailable, match="does not answer: Timeout while"):
        await data.execute_data_load("TEST", "1d", "full")
    await data.aclose()
    await framework.aclose()


async def test_a_timeout_of_the_gateway_while_it_says_the_head_is_asked_again(settings, host, bars):
    data, framework = by_hand(settings, host, None)
    host._validate = lambda asked: {"success": True, "is_valid": True, "head_timestamps": {}}
    right, left = host._head, [{"success": False, "timestamp": None, "error": "Timeout while creating connection"}]
    host._head = lambda query: left.pop() if left else right(query)
    assert canonical_sha256(await data.execute_data_load("TEST", "1d", "full")) == canonical_sha256(bars)
    host._head = lambda query: {"success": False, "timestamp": None, "error": "Timeout while creating connection"}
    with pytest.raises(HostUnavailable):
        await data.execute_data_load("TEST", "1d", "full", refresh=True)
    await data.aclose()
    await framework.aclose()


async def test_a_validation_that_failed_is_no_unknown_symbol(app, host):
    host._validate = lambda asked: {"success": False, "is_valid": False, "error": "the disk is on fire"}
    with pytest.raises(DataServiceError, match="could not say whether it knows TEST: the disk is on fire") as failed:
        await load(app)
    assert failed.value.code == "data_load_failed"


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
    with pytest.raises(DataServiceError, match="end: bad date") as refused:
        await load(app)
    assert refused.value.details["final"] is True
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


async def test_an_attempt_that_goes_on_with_segments_uses_the_now_of_the_first(opened, host):
    host.fault = failing_from("2012-01-01", failing("strange"))
    async with opened(as_of="2012-06-30") as app:
        with pytest.raises(DataServiceError):
            await load(app)
    host.fault = lambda asked: None
    async with opened() as app:
        assert (await load(app)).index[-1] == pd.Timestamp("2012-06-29", tz="UTC")


async def test_two_price_scales_are_not_glued_by_two_attempts_and_the_third_begins_anew(app, host, bars):
    host.fault = failing_from("2012", failing("strange"))
    with pytest.raises(DataServiceError):
        await load(app)
    host.fault, host.bars["TEST", "1d"] = lambda asked: None, bars * [0.5, 0.5, 0.5, 0.5, 2.0]
    asked = len(host.asked)
    with pytest.raises(SeriesRevised, match="5 bars that came before are not what the host gives now"):
        await load(app)
    assert len(host.asked) == asked + 1
    assert not await artifacts(app, "series")
    assert canonical_sha256(await load(app)) == canonical_sha256(host.bars["TEST", "1d"])


async def test_a_tail_of_several_segments_compares_with_the_newer_one_of_the_attempt_before(opened, host, bars):
    async with opened(as_of="2010-06-01") as app:
        await load(app)
    host.fault = lambda asked: failing("strange") if asked["end"] < "2012-06-01" else None
    async with opened() as app:
        with pytest.raises(DataServiceError, match="2 of 3 segments"):
            await load(app, mode="tail")
        host.fault, host.bars["TEST", "1d"] = lambda asked: None, bars * 2
        with pytest.raises(SeriesRevised, match="5 bars that came before"):
            await load(app, mode="tail")
        host.bars["TEST", "1d"] = bars
        assert canonical_sha256(await load(app, mode="tail")) == canonical_sha256(bars)


async def test_the_same_tail_again_after_a_revision_asks_again(opened, host, bars):
    async with opened(as_of="2013-02-02") as app:
        await load(app)
    host.bars["TEST", "1d"] = bars * 0.5
    async with opened(as_of="2013-02-20") as app:
        with pytest.raises(SeriesRevised):
            await load(app, mode="tail")
    host.bars["TEST", "1d"] = bars
    async with opened() as app:
        assert canonical_sha256(await load(app, mode="tail")) == canonical_sha256(bars)


async def test_the_tail_after_a_day_without_an_answer_goes_up_to_the_new_now(opened, host, bars):
    async with opened(as_of="2013-02-02") as app:
        await load(app)
    host.connected, host.fault = False, lambda asked: failing("Timeout while creating connection")
    async with opened(as_of="2013-02-05") as app:
        with pytest.raises(HostUnavailable):
            await load(app, mode="tail")
    host.connected, host.fault = True, lambda asked: None
    async with opened() as app:
        assert canonical_sha256(await load(app, mode="tail")) == canonical_sha256(bars)


async def test_a_start_after_now_is_refused(app):
    with pytest.raises(InvalidValue, match="is not before now"):
        await load(app, start="2013-06-01")
    assert await app.sql("SELECT count(*) FROM v_events") == [(0,)]


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


async def test_a_file_put_in_place_before_the_name_could_move_is_kept_as_an_object(app, bars, settings):
    path = settings.data_dir / "TEST" / "1d.parquet"
    settings.data_dir.mkdir()
    path.parent.write_text("in the way of the folder")
    with pytest.raises(DataServiceError):
        await load(app)
    assert "saved" in await steps(app.journal, (await app.show("@last"))["operation_id"])
    path.parent.unlink()
    path.parent.mkdir()
    own = parquet_bytes(part_of(bars, "2010-01-01", "2011-01-01") * 3)
    path.write_bytes(own)
    loaded = await load(app)
    assert (await app.show("@last"))["attempt"] == 2
    assert canonical_sha256(loaded) == canonical_sha256(bars) == canonical_sha256(pd.read_parquet(path))
    series = await artifacts(app, "series")
    assert [each.metadata["source"] for each in series].count("import") == 1
    assert own in [app.objects.read(each.object) for each in series]
    assert (await verify(command(app))).exit_code == 0


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
