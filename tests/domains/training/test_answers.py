"""What a host answers is looked at before it is believed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_ops.core.cancellation import CancellationToken
from ktrdr_ops.core.errors import HostServiceError
from ktrdr_ops.core.redaction import EVENT_BYTES, strict
from ktrdr_ops.domains.training.engine.curve import MOST_POINTS, Curve
from ktrdr_ops.domains.training.engine.first_generation import FirstGenerationSession
from ktrdr_ops.domains.training.engine.host import TrainingHostService, batch_of
from ktrdr_ops.domains.training.engine.results import trimmed
from ktrdr_ops.domains.training.engine.second_generation import SecondGenerationSession
from tests.faulty_host import FaultyHost, answers

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
JUNK = [None, 3, "x", [], [3], {}, {"data": 3}]
FIRST = [
    {"status": "running"},
    {"status": "running", "progress": None, "metrics": None},
    {"status": "running", "progress": {"epoch": "a", "batch": -1, "total_batches": 1e400}, "metrics": {"device": [[]]}},
    {"status": "running", "metrics": {"epoch_loss": 3, "epoch_accuracy": {}}},
    {"status": "completed", "metrics": {"epoch_loss": [None, "a", 1.0, True], "epoch_accuracy": [1.0]}},
    {"status": 3},
    {"status": ["running"]},
]
SECOND = [
    {"data": {"status": "running", "progress": 3, "metrics": [[{"epoch": -5}, {"epoch": "a"}, 3, {}], "x"]}},
    {"data": {"status": "running", "progress": {"context": []}, "metrics": [3]}},
    {"data": {"status": "running", "error_message": {}, "metrics": [[{"epoch": 0.0, "train_loss": None}]]}},
    {"data": {"status": "gone", "metrics": []}},
]


@pytest.mark.parametrize("kind", [FirstGenerationSession, SecondGenerationSession])
async def test_an_answer_in_another_form_is_an_error_or_says_less_and_nothing_breaks(kind):
    for body in [*JUNK, *(FIRST if kind is FirstGenerationSession else SECOND)]:
        async with FaultyHost(answers(json.dumps(body).encode())) as host:
            service = TrainingHostService(host.url)
            try:
                look = await kind(service, "x").look(CancellationToken())
            except HostServiceError:
                continue
            finally:
                await service.aclose()
            assert all(epoch.number >= 1 for epoch in look.epochs)
            assert look.batch is None


def test_lists_that_grow_unevenly_wait_for_one_another_until_the_end():
    session = FirstGenerationSession(TrainingHostService("http://127.0.0.1:1"), "x")
    metrics = {"epoch_loss": [3.0, 2.0], "epoch_accuracy": [0.1]}
    assert [epoch.number for epoch in session._new(metrics, "running")] == [1]
    assert session._new(metrics, "running") == []
    [second] = session._new(metrics, "completed")
    assert (second.number, second.metrics) == (2, {"train_loss": 2.0})


@pytest.mark.parametrize(
    ("epoch", "progress", "found"),
    [
        (1, {"batch": 32, "total_batches": 31}, (1, 31, 31)),
        (1, {"batch": 0, "total_batches": 31}, (1, 0, 31)),
        (6, {"batch": 1, "total_batches": 31}, None),
        (1, {"batch": 3}, None),
    ],
)
def test_a_batch_is_clamped_to_what_there_is(epoch, progress, found):
    batch = batch_of(epoch, 5, progress)
    assert (None if batch is None else (batch.epoch, batch.batch, batch.batches)) == found


@given(st.dictionaries(st.sampled_from(["training_metrics", "model_info", "data_summary", "files"]), JSON))
def test_whatever_a_result_holds_the_journal_takes_what_is_kept_of_it(result):
    strict(trimmed(result), secrets=False)


def test_a_result_of_any_size_fits_into_an_event():
    names = [f"name{n}" for n in range(500)]
    large = dict.fromkeys(names, "x" * 10_000)
    nested = dict.fromkeys(names, dict.fromkeys(names[:20], 0.123456789))
    files = [{"symbol": name, "timeframe": "1d", "path": "/" + name * 20, "sha256": "f" * 64} for name in names]
    kept = trimmed({"training_metrics": large, "per_symbol_metrics": nested, "data_summary": {"files": files}})
    assert len(json.dumps(kept)) < EVENT_BYTES
    assert trimmed({"model_info": {"api_key": "x", "type": "mlp"}})["model_info"] == {"type": "mlp"}


def test_the_curve_is_told_in_forty_points_with_its_first_and_last():
    curve = Curve()
    for number in range(1, 1001):
        curve.add(number, {"train_loss": 1 / number, "val_loss": abs(number - 700) / 1000})
    assert len(curve.losses) == MOST_POINTS
    assert (curve.losses[0], curve.losses[-1]) == (1.0, 0.001)
    assert (curve.last, curve.best) == (1000, 700)
    assert curve.before(11).best == 10
