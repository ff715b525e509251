"""What the embedded training host computes: it learns, repeats itself bit for bit, goes on where it was, looks at
nothing that was still to come."""

from __future__ import annotations

import json
from dataclasses import replace
from threading import Event

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load, save

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.domains.training.engine.models import canonical_sha256
from ktrdr_ops.hosts.training.features import features
from ktrdr_ops.hosts.training.plan import Plan, from_configurations, from_yaml
from ktrdr_ops.hosts.training.samples import samples
from ktrdr_ops.hosts.training.state import load_checkpoint, model_sha256, save_model
from ktrdr_ops.hosts.training.trainer import Diverged, Stopped, Trainer, Watch
from tests.hosts.fixtures import sample_series

EPOCHS = 6


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return sample_series(tmp_path_factory.mktemp("data"), "AAPL", "GOOG", since="2008")


def plan(**changes) -> Plan:
    usual: dict = {"symbols": ("AAPL", "GOOG"), "timeframes": ("1d",), "epochs": EPOCHS, "learning_rate": 0.01}
    return Plan(**{**usual, "checkpoint_every": 2, **changes})


def watching(stop: Event | None = None, on_batch=lambda epoch, batch, batches: None) -> Watch:
    return Watch(stop=stop or Event(), on_epoch=lambda record: None, on_batch=on_batch)


def trained(plan: Plan, data_dir, tmp_path, earlier=None, name="own"):
    trainer = Trainer(plan, samples(plan, data_dir), tmp_path / name, earlier)
    trainer.run(watching())
    return trainer


def stopped_in(plan: Plan, data_dir, path, epoch: int, batch: int = 3) -> list[tuple[int, int]]:
    """Train, and say stop at a batch; gives the batches that were begun. Leaves a checkpoint at the path."""
    stop, begun = Event(), []

    def on_batch(at: int, which: int, batches: int) -> None:
        begun.append((at, which))
        if (at, which) == (epoch, batch):
            stop.set()

    with pytest.raises(Stopped):
        Trainer(plan, samples(plan, data_dir), path).run(watching(stop, on_batch))
    return begun


def series(data_dir, symbol: str) -> pd.DataFrame:
    return pd.read_csv(data_dir / f"{symbol}_1d.csv", index_col=0)


def with_changed(data_dir, tmp_path, chosen):
    """A copy of the data in which the bars that a function chooses of their times have other values."""
    folder = tmp_path / "changed"
    folder.mkdir()
    for symbol in ("AAPL", "GOOG"):
        bars = series(data_dir, symbol)
        rows = chosen(pd.to_datetime(bars.index, utc=True))
        random = np.random.default_rng(7)
        for column in bars.columns:
            bars[column] = bars[column].astype(float)
            bars.loc[rows, column] *= random.uniform(0.5, 1.5, int(rows.sum()))
        bars.to_csv(folder / f"{symbol}_1d.csv")
    return folder


# Learning


def test_the_training_loss_falls_and_the_best_validation_epoch_is_kept(data_dir, tmp_path):
    trainer = trained(plan(epochs=15), data_dir, tmp_path)
    losses = [record["train_loss"] for record in trainer.state.records]
    judged = [record["val_loss"] for record in trainer.state.records]
    assert losses[-1] < losses[0] - 0.01
    assert trainer.state.best_epoch == judged.index(min(judged)) + 1 < 15
    kept = replace(trainer.state, best=trainer.state.params)
    assert model_sha256(kept.best) != model_sha256(trainer.state.best)


def test_it_ends_when_the_validation_loss_has_not_been_better_for_long_enough(data_dir, tmp_path):
    trainer = trained(plan(epochs=200, patience=3), data_dir, tmp_path)
    assert trainer.state.epoch == trainer.state.best_epoch + 3 < 200


def test_its_test_metrics_are_those_of_all_symbols_together(data_dir, tmp_path):
    test, symbols = trained(plan(), data_dir, tmp_path).test_metrics()
    assert set(test) == {"test_accuracy", "test_loss", "precision", "recall", "f1_score"}
    count = sum(one["samples"] for one in symbols.values())
    for name in ("accuracy", "loss"):
        together = sum(one[name] * one["samples"] for one in symbols.values()) / count
        assert together == pytest.approx(test[f"test_{name}"])


def test_a_loss_that_is_no_number_ends_the_training(data_dir, tmp_path):
    found = samples(plan(), data_dir)
    broken = replace(found, training=replace(found.training, inputs=found.training.inputs * np.float32("nan")))
    with pytest.raises(Diverged, match="epoch 0"):
        Trainer(plan(), broken, tmp_path / "own").run(watching())


# The same again


def test_the_same_seed_gives_the_same_model_and_another_seed_another(data_dir, tmp_path):
    first, again, other = (model_sha256(trained(plan(seed=seed), data_dir, tmp_path).state.best) for seed in (1, 1, 2))
    assert first == again != other


def test_a_models_hash_is_the_one_that_the_client_computes_from_the_file(data_dir, tmp_path):
    trainer = trained(plan(epochs=1), data_dir, tmp_path)
    said = save_model(tmp_path / "m.safetensors", {**trainer.state.best, "scalar": np.int64(3)}, {"a": "b"})
    assert canonical_sha256((tmp_path / "m.safetensors").read_bytes()) == said


# Going on


@pytest.mark.parametrize(
    "optimizer", ["adam", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adamw", "sgd", "rmsprop"))]
)
def test_going_on_from_a_checkpoint_is_bit_for_bit_an_undisturbed_run(data_dir, tmp_path, optimizer):
    asked = plan(optimizer=optimizer, dropout=0.2, hidden_layers=(8,))
    whole = trained(asked, data_dir, tmp_path).state
    stopped_in(asked, data_dir, tmp_path / "earlier", epoch=3)
    resumed = trained(asked, data_dir, tmp_path, tmp_path / "earlier").state
    assert [model_sha256(one.best) for one in (whole, resumed)] == [model_sha256(whole.best)] * 2
    assert model_sha256(resumed.params) == model_sha256(whole.params)
    ours, theirs = ([{**each, "timestamp": 0, "duration": 0} for each in one.records] for one in (whole, resumed))
    assert ours == theirs


def without_random_state(arrays, about):
    about["random"] = np.random.PCG64(0).state


def without_optimiser_state(arrays, about):
    for name in arrays:
        if name.startswith("optimiser."):
            arrays[name] = np.zeros_like(arrays[name])


def without_the_best_so_far(arrays, about):
    about["best_loss"] = 0.0


@pytest.mark.parametrize("loss", [without_random_state, without_optimiser_state, without_the_best_so_far])
def test_a_checkpoint_from_which_a_part_is_lost_gives_another_model(data_dir, tmp_path, loss):
    asked = plan(epochs=4, learning_rate=0.0005)
    undisturbed = trained(asked, data_dir, tmp_path).state
    whole = model_sha256(undisturbed.best)
    assert undisturbed.best_epoch > 2
    stopped_in(asked, data_dir, tmp_path / "earlier", epoch=2)
    content = (tmp_path / "earlier").read_bytes()
    length = int.from_bytes(content[:8], "little")
    about = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["state"])
    arrays = load(content)
    (tmp_path / "same").write_bytes(save(arrays, {"state": json.dumps(about)}))
    loss(arrays, about)
    (tmp_path / "less").write_bytes(save(arrays, {"state": json.dumps(about)}))
    assert model_sha256(trained(asked, data_dir, tmp_path, tmp_path / "same").state.best) == whole
    assert model_sha256(trained(asked, data_dir, tmp_path, tmp_path / "less").state.best) != whole


@pytest.mark.parametrize("changes", [{"seed": 9}, {"learning_rate": 0.02}, {"hidden_layers": (4,)}, {"horizon": 2}])
def test_another_plan_begins_anew(data_dir, tmp_path, changes):
    stopped_in(plan(), data_dir, tmp_path / "earlier", epoch=2)
    other = plan(**changes)
    assert Trainer(other, samples(other, data_dir), tmp_path / "own", tmp_path / "earlier").state.epoch == 0
    longer = plan(epochs=50, checkpoint_every=9)
    assert Trainer(longer, samples(longer, data_dir), tmp_path / "own", tmp_path / "earlier").state.epoch == 2


@pytest.mark.parametrize("content", [None, b"", b"nonsense", b"\x02\0\0\0\0\0\0\0{}", b"cut"])
def test_what_is_no_checkpoint_is_passed_over(data_dir, tmp_path, content):
    path = tmp_path / "earlier"
    stopped_in(plan(hidden_layers=(2,)), data_dir, path, epoch=1)
    whole = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(whole[:-20] if content == b"cut" else content)
    trainer = Trainer(plan(), samples(plan(), data_dir), tmp_path / "own")
    assert load_checkpoint(path, trainer.state, "digest") is None


def test_a_stop_is_obeyed_before_the_next_batch_and_leaves_the_last_whole_epoch(data_dir, tmp_path):
    begun = stopped_in(plan(checkpoint_every=100), data_dir, tmp_path / "own", epoch=3, batch=4)
    assert begun[-1] == (3, 4)
    going_on = Trainer(plan(), samples(plan(), data_dir), tmp_path / "next", tmp_path / "own")
    assert going_on.state.epoch == 3


def test_one_that_is_stopped_before_it_has_gone_further_can_be_gone_on_from_all_the_same(data_dir, tmp_path):
    stopped_in(plan(), data_dir, tmp_path / "first", epoch=3)
    stop = Event()
    stop.set()
    with pytest.raises(Stopped):
        Trainer(plan(), samples(plan(), data_dir), tmp_path / "second", tmp_path / "first").run(watching(stop))
    third = Trainer(plan(), samples(plan(), data_dir), tmp_path / "third", tmp_path / "second")
    assert third.state.epoch == 3


# Nothing that was still to come


def test_a_feature_knows_no_later_bar(data_dir):
    bars = series(data_dir, "AAPL")
    known = [{"name": name} for name in ("rsi", "macd", "bollinger", "atr", "sma", "ema", "roc", "stochastic")]
    whole = features(bars, known)
    assert len(whole.columns) == 14
    for cut in (60, 200, 500):
        pd.testing.assert_frame_equal(features(bars.iloc[:cut], known), whole.iloc[:cut])


def test_bars_of_the_test_part_change_nothing_of_what_is_learned(data_dir, tmp_path):
    before = samples(plan(), data_dir)
    folder = with_changed(data_dir, tmp_path, lambda times: times >= before.cuts[1])
    ours, theirs = (trained(plan(), each, tmp_path) for each in (data_dir, folder))
    assert model_sha256(ours.state.params) == model_sha256(theirs.state.params)
    assert model_sha256(ours.state.best) == model_sha256(theirs.state.best)
    np.testing.assert_array_equal(ours.samples.mean, theirs.samples.mean)
    assert ours.test_metrics() != theirs.test_metrics()


@pytest.mark.parametrize("horizon", [1, 5])
def test_bars_after_the_training_part_change_no_parameter_though_they_may_choose_the_epoch(data_dir, tmp_path, horizon):
    asked = plan(horizon=horizon, epochs=3)
    cut = samples(asked, data_dir).cuts[0]
    later = trained(asked, with_changed(data_dir, tmp_path, lambda times: times >= cut), tmp_path)
    ours = trained(asked, data_dir, tmp_path)
    assert model_sha256(ours.state.params) == model_sha256(later.state.params)
    assert [each["val_loss"] for each in ours.state.records] != [each["val_loss"] for each in later.state.records]


def test_a_bar_of_the_training_part_does_change_what_is_learned(data_dir, tmp_path):
    cut = samples(plan(), data_dir).cuts[0]
    last_days = (cut - pd.Timedelta(days=12), cut)
    folder = with_changed(data_dir, tmp_path, lambda times: (times >= last_days[0]) & (times < last_days[1]))
    ours, theirs = (trained(plan(), each, tmp_path).state.params for each in (data_dir, folder))
    assert model_sha256(ours) != model_sha256(theirs)


def test_missing_values_behind_a_cut_do_not_move_it(data_dir, tmp_path):
    before = samples(plan(), data_dir)
    folder = tmp_path / "holes"
    folder.mkdir()
    for symbol in ("AAPL", "GOOG"):
        bars = series(data_dir, symbol)
        bars["close"] = bars["close"].astype(float)
        bars.loc[pd.to_datetime(bars.index, utc=True) >= before.cuts[1] + pd.Timedelta(days=30), "volume"] = 0.0
        bars.to_csv(folder / f"{symbol}_1d.csv")
    after = samples(plan(), folder)
    assert after.cuts == before.cuts
    np.testing.assert_array_equal(after.training.inputs, before.training.inputs)


# What is read and asked


def test_parquet_and_csv_of_the_same_bars_are_the_same_samples(data_dir, tmp_path):
    for symbol in ("AAPL", "GOOG"):
        bars = series(data_dir, symbol)
        bars.index = pd.to_datetime(bars.index, utc=True).rename("timestamp")
        (tmp_path / symbol).mkdir()
        bars.to_parquet(tmp_path / symbol / "1d.parquet")
    ours, theirs = samples(plan(), data_dir), samples(plan(), tmp_path)
    np.testing.assert_array_equal(ours.training.inputs, theirs.training.inputs)
    assert [each["path"] for each in theirs.files] == [str(tmp_path / s / "1d.parquet") for s in ("AAPL", "GOOG")]


def test_only_the_days_that_were_asked_for_count(data_dir):
    found = samples(plan(start="2009-01-01", end="2010-12-31"), data_dir)
    assert (found.first.isoformat()[:10], found.last.isoformat()[:10]) == ("2009-01-02", "2010-12-31")
    recent = samples(plan(recent_days=365), data_dir)
    assert recent.first.isoformat()[:10] == "2012-03-02"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"symbols": ("NONE",)}, "No data for NONE 1d"),
        ({"start": "2012-12-01"}, "Not enough data"),
        ({"start": "2050-01-01"}, "Not enough data: 0 bars"),
        ({"start": "yesterday-ish"}, "Invalid date"),
    ],
)
def test_data_that_is_not_there_is_named(data_dir, changes, said):
    with pytest.raises(InvalidValue, match=said):
        samples(plan(**changes), data_dir)


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", ",open,high,low,close,volume\nx,1,2,3,4,5\n"])
def test_a_file_that_is_no_series_is_named(tmp_path, content):
    (tmp_path / "TEST_1d.csv").write_text(content)
    with pytest.raises(InvalidValue, match=r"TEST_1d\.csv is no series"):
        samples(plan(symbols=("TEST",)), tmp_path)


STRATEGY = {
    "name": "mine",
    "training_data": {"symbols": {"mode": "multi_symbol", "list": ["AAPL", "MSFT"]}, "timeframes": {"timeframe": "1h"}},
    "indicators": [{"name": "rsi", "period": 7}],
    "model": {
        "type": "mlp",
        "architecture": {"hidden_layers": [16], "activation": "tanh", "dropout": 0.1},
        "training": {"epochs": 9, "batch_size": 32, "optimizer": "sgd", "early_stopping": {"patience": 4}, "seed": 3},
    },
    "training": {"labels": {"horizon": 5}, "data_split": {"train": 0.6, "validation": 0.2, "test": 0.2}},
}


def test_both_generations_ask_for_the_same_in_their_own_words():
    second = from_yaml(yaml.safe_dump(STRATEGY), None, None, None, None)
    training = {**STRATEGY["model"]["training"], "early_stopping_patience": 4}  # type: ignore[index]
    first = from_configurations(
        {"strategy_config": STRATEGY}, training, {"symbols": ["AAPL", "MSFT"], "timeframes": ["1h"]}
    )
    assert replace(first, recent_days=None) == second
    assert first.recent_days == 365
    assert (second.hidden_layers, second.horizon, second.patience, second.epochs) == ((16,), 5, 4, 9)
    assert second.split == (0.6, 0.2, 0.2)


def changed(path: str, value: object) -> str:
    strategy = yaml.safe_load(yaml.safe_dump(STRATEGY))
    *above, last = path.split(".")
    inside = strategy
    for name in above:
        inside = inside[name]
    inside[last] = value
    return yaml.safe_dump(strategy)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "Invalid strategy YAML"),
        ("just words", "says nothing of a model"),
        (changed("model.type", "lstm"), "Model type 'lstm'"),
        (changed("model.training.epochs", 0), "epochs is '0'"),
        (changed("model.training.epochs", True), "epochs is 'True'"),
        (changed("model.training.optimizer", "lion"), "optimizer 'lion'"),
        (changed("model.training.learning_rate", float("nan")), "learning_rate is 'nan'"),
        (changed("model.architecture.hidden_layers", [0]), "hidden_layers is '0'"),
        (changed("model.architecture.hidden_layers", "16"), "hidden_layers is a list"),
        (changed("training.data_split", {"train": 0.9, "validation": 0.2, "test": 0.2}), "adds up to 1.3"),
        (changed("training_data.symbols", ["../../etc"]), "is not a symbol"),
        (changed("training_data.symbols", {}), "At least one symbol"),
        (changed("training_data.timeframes", ["1x"]), "is not a timeframe"),
        (changed("model.training.resume_from", "../../etc/passwd"), "is not a session id"),
    ],
)
def test_a_strategy_that_cannot_be_trained_is_refused_with_the_reason(text, said):
    with pytest.raises(InvalidValue, match=said):
        from_yaml(text, None, None, None, None)
