"""A load from end to end: over real HTTP, into real files and a real journal."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from ktrdr_ops.core.cancellation import CancellationSystem
from ktrdr_ops.core.orchestration import AsyncOrchestrationFramework
from ktrdr_ops.core.progress import GenericProgressManager
from ktrdr_ops.domains.data.engine.bars import canonical_sha256, merged
from ktrdr_ops.domains.data.engine.commands import show
from ktrdr_ops.domains.data.engine.errors import (
    NothingStored,
    SeriesRevised,
)
from ktrdr_ops.domains.data.engine.ib_host import IbHostService
from ktrdr_ops.domains.data.engine.pacing import Pacer
from ktrdr_ops.domains.data.engine.store import csv_bytes, decoded
from ktrdr_ops.domains.data.interface import DataDomainInterface
from tests.domains.data.data_host import daily, failing, part_of
from tests.domains.data.loading import artifacts, command, failing_from, load
from tests.faulty_host import refusing_url


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
    told = [state.message.partition(" ETA: ")[0] for state in states]  # on a slow machine there is one
    assert [message for message in told if "segment" not in message] == [
        "Starting data load (TEST 1d, full mode)",
        "Validating symbol and range (TEST 1d, full mode) [1/5]",
        "Loading stored data (TEST 1d, full mode) [2/5]",
        "Analyzing gaps (TEST 1d, full mode) [3/5]",
        told[-2],
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


async def test_two_price_scales_are_not_glued_by_a_full_load_either(opened, host):
    longer = daily("2010-01-04", "2013-06-28")
    async with opened() as app:
        await load(app)
    host.bars["TEST", "1d"] = longer * [0.5, 0.5, 0.5, 0.5, 2.0]
    async with opened(as_of="2013-06-01") as app:
        with pytest.raises(SeriesRevised, match="5 stored bars"):
            await load(app)
        host.bars["TEST", "1d"] = longer
        assert len(await load(app, end="2013-05-31")) == len(part_of(longer, "2010-01-01", "2013-06-01"))


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


async def test_several_symbols_are_loaded_as_one_group(app, host, bars):
    host.bars["OTHER", "1d"] = daily("2011-01-03", "2013-03-01", seed=2)
    children = [{"type": "data_load", "parameters": {"symbol": name, "timeframe": "1d"}} for name in ("TEST", "OTHER")]
    await app.run("group", children=children)
    shown = await show(command(app, symbol="OTHER", timeframe="1d"))
    assert shown.document["rows"] == len(host.bars["OTHER", "1d"])


async def test_the_interface_of_the_specification_gives_a_frame(settings, bars, tmp_path):
    seen = []
    framework = AsyncOrchestrationFramework(GenericProgressManager(), CancellationSystem())
    data = DataDomainInterface(framework, settings=settings)
    loaded = await data.execute_data_load("test", "1d", "full", seen.append)
    await data.aclose()
    await framework.aclose()
    pd.testing.assert_frame_equal(loaded, bars, check_exact=True)
    assert seen[-1].percentage == 100.0


async def test_the_interface_asks_the_host_service_of_its_framework(settings, host, bars):
    service = IbHostService(host.url, Pacer(None))
    framework = AsyncOrchestrationFramework(GenericProgressManager(), CancellationSystem(), service)
    data = DataDomainInterface(framework, settings=replace(settings, ib_host_url=refusing_url()))
    loaded = await data.execute_data_load("TEST", "1d", "full")
    assert canonical_sha256(loaded) == canonical_sha256(bars)
    await data.aclose()
    assert (await service.check_health())["ib_status"]["connected"], "it is left open for its owner"
    await service.aclose()
    await framework.aclose()


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


async def test_what_merged_gives_is_what_a_load_stores(bars):
    halves = [part_of(bars, "2010-01-01", "2011-06-01"), part_of(bars, "2011-03-01", "2014-01-01")]
    assert canonical_sha256(merged(halves)) == canonical_sha256(bars)
