"""A load from end to end, over real HTTP, into real files and a real journal."""

from __future__ import annotations

import pandas as pd

from ktrdr_ops.domains.data.engine.bars import canonical_sha256


async def test_a_full_load_brings_every_bar_and_tells_what_it_did(app, host, bars):
    loaded = await app.run("data_load", symbol="TEST", timeframe="1d")
    pd.testing.assert_frame_equal(loaded, bars)
    assert loaded.attrs["load"] == (await app.show("data_load_TEST_1d"))["result"]
    print(loaded.attrs["load"])
    assert loaded.attrs["load"]["sha256"] == canonical_sha256(bars)
