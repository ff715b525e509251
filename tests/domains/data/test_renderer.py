"""The words of a load."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_ops.core.progress import GenericProgressState
from ktrdr_ops.domains.data.renderer import DataProgressRenderer

renderer = DataProgressRenderer()


def state(message: str = "Fetching", context=None, **more) -> GenericProgressState:
    defaults = {"current_step": 0, "total_steps": 5, "percentage": 0.0, "start_time": datetime.now(UTC)}
    return GenericProgressState(operation_id="x", message=message, context=context or {}, **{**defaults, **more})


AAPL = {"symbol": "AAPL", "timeframe": "1h", "mode": "backfill"}


def test_all_parts_stand_in_their_order():
    full = state(context=AAPL, current_step=3, items_processed=2400, total_items=4000,
                 estimated_remaining=timedelta(seconds=45))  # fmt: skip
    assert renderer.render_progress_message(full) == (
        "Fetching (AAPL 1h, backfill mode) [3/5] (2400/4000 items) ETA: 45s"
    )


@pytest.mark.parametrize(
    ("context", "shown"),
    [
        ({}, "Fetching"),
        ({"symbol": "AAPL"}, "Fetching (AAPL)"),
        ({"symbol": "AAPL", "timeframe": "1h"}, "Fetching (AAPL 1h)"),
        ({"mode": "tail"}, "Fetching (tail mode)"),
        (AAPL, "Fetching (AAPL 1h, backfill mode)"),
    ],
)
def test_parts_that_are_missing_are_left_out(context, shown):
    assert renderer.render_progress_message(state(context=context)) == shown


@given(st.text(max_size=30), st.integers(0, 5), st.integers(0, 9))
def test_rendering_a_rendered_message_again_adds_nothing(message, step, items):
    first = state(message, AAPL, current_step=step, items_processed=items, total_items=9)
    once = renderer.render_progress_message(first)
    again = state(once, AAPL, current_step=step, items_processed=items, total_items=9)
    assert renderer.render_progress_message(again) == once


def test_the_detail_says_which_segment_and_how_many_bars():
    assert renderer.render_step_detail(state(context={**AAPL, "segment": 23, "segments": 34, "bars": 38870})) == (
        "Segment 23/34 · 38,870 bars"
    )
    assert renderer.render_step_detail(state(context=AAPL)) == ""
