"""The words of a training."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_ops.core.progress import GenericProgressState
from ktrdr_ops.domains.training.renderer import TrainingProgressRenderer

renderer = TrainingProgressRenderer()
MLP = {"model_type": "MLP", "symbols": ["AAPL", "GOOGL"], "timeframes": ["1h", "4h"]}
MORE = {**MLP, "symbols": ["AAPL", "GOOGL", "MSFT"]}
AT_15 = {**MLP, "epoch": 15, "epochs": 50}


def state(message: str, context=None, step: int = 1) -> GenericProgressState:
    return GenericProgressState("x", step, 4, 0.0, message, datetime.now(UTC), context=context or {})


@pytest.mark.parametrize(
    ("message", "context", "shown"),
    [
        ("Preparing data", MLP, "Preparing data (MLP on AAPL, GOOGL)"),
        ("Preparing data", MORE, "Preparing data (MLP on AAPL, GOOGL...)"),
        ("Preparing data", {"model_type": "MLP"}, "Preparing data (MLP)"),
        ("Preparing data", {"symbols": ["AAPL"]}, "Preparing data (AAPL)"),
        ("Preparing data", {}, "Preparing data"),
        ("Starting model train", MLP, "Training MLP on AAPL, GOOGL [1h, 4h]"),
        ("Starting model train", {}, "Starting model train"),
        ("Starting session", MLP, "Starting session (MLP on AAPL, GOOGL)"),
        ("Training", AT_15, "Training MLP epoch 15/50 (AAPL, GOOGL)"),
        ("Training", {**MORE, "epoch": 1, "epochs": 2}, "Training MLP epoch 1/2 (AAPL, GOOGL...)"),
        ("Training", MLP, "Training (MLP on AAPL, GOOGL)"),
        ("Operation cancelled", AT_15, "Operation cancelled (MLP on AAPL, GOOGL)"),
    ],
)
def test_the_message_says_what_is_trained(message, context, shown):
    at = 0 if message == "Starting model train" else 1
    assert renderer.render_progress_message(state(message, context, at)) == shown


@given(st.text(max_size=30), st.sampled_from([MLP, MORE, AT_15, {}]))
def test_rendering_a_rendered_message_again_adds_nothing(message, context):
    once = renderer.render_progress_message(state(message, context))
    assert renderer.render_progress_message(state(once, context)) == once


@pytest.mark.parametrize(
    ("context", "shown"),
    [
        ({**MLP, "epoch": 5, "epochs": 10, "batch": "120/500"}, "Epoch 5/10 · Batch 120/500"),
        ({**MLP, "epoch": 5, "epochs": 10}, "Epoch 5/10"),
        ({**MLP, "epoch": 5, "epochs": 10, "accelerator": "cuda:0"}, "Epoch 5/10 · cuda:0"),
        (MLP, "Preparing data"),
    ],
)
def test_the_detail_says_epoch_batch_and_accelerator_where_they_are_known(context, shown):
    assert renderer.render_step_detail(state("Preparing data", context)) == shown
