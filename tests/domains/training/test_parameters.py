"""What a training can be asked, and what its strategy becomes."""

from __future__ import annotations

import pytest
import yaml

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.domains.training.engine import strategy as strategies
from ktrdr_ops.domains.training.engine.config import MOST_SERIES, TrainingConfig
from ktrdr_ops.domains.training.operations import model_train

USERS_OWN = """
name: trend following
version: "2.1"
training_data:
  symbols: {mode: multi_symbol, list: [AAPL, GOOGL, MSFT]}
  timeframes: {mode: multi_timeframe, list: [1h, 4h], base_timeframe: 1h}
  history_required: 200
indicators:
  - {name: rsi, period: 14, source: close}
fuzzy_sets:
  rsi: {oversold: {type: triangular, parameters: [0, 20, 40]}}
model:
  type: mlp
  architecture: {hidden_layers: [50, 25], activation: relu, dropout: 0.2}
  training: {learning_rate: 0.01, batch_size: 32, epochs: 7, optimizer: adam}
training:
  labels: {source: zigzag, zigzag_threshold: 0.03}
  data_split: {train: 0.7, validation: 0.15, test: 0.15}
since: 2020-01-31
"""


def asked(**given):
    return TrainingConfig.asked(given)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "strategy.yaml"
    path.write_text(USERS_OWN)
    return str(path)


def test_without_a_file_there_is_a_strategy_of_daily_bars():
    config = asked()
    assert (config.model_type, config.symbols, config.timeframes) == ("MLP", ["AAPL"], ["1d"])
    assert (config.epochs, config.seed) == (50, 42)


def test_a_users_strategy_says_symbols_timeframes_and_epochs(file):
    config = asked(strategy=file)
    assert config.symbols == ["AAPL", "GOOGL", "MSFT"]
    assert config.timeframes == ["1h", "4h"]
    assert config.epochs == 7
    assert config.name == "trend_following"
    assert config.strategy["fuzzy_sets"]["rsi"]["oversold"]["parameters"] == [0, 20, 40]
    assert config.strategy["since"] == "2020-01-31"


def test_what_is_given_beside_the_strategy_changes_it(file):
    config = asked(strategy=file, symbols="aapl,IBM", timeframe="1d", epochs=3, seed=9)
    training = config.strategy["model"]["training"]
    assert (training["epochs"], training["seed"], training["batch_size"]) == (3, 9, 32)
    assert config.strategy["training_data"]["symbols"] == {"mode": "multi_symbol", "list": ["AAPL", "IBM"]}
    assert config.strategy["training_data"]["timeframes"] == {"mode": "single_timeframe", "timeframe": "1d"}


def test_the_strategys_content_and_not_its_path_is_in_the_parameters(file):
    parameters = asked(strategy=file).model_dump()
    assert file not in str(parameters)
    assert parameters["strategy"]["name"] == "trend following"


@pytest.mark.parametrize("given", [{}, {"symbols": "A,B", "timeframe": "1h,4h", "start": "2020-01-01", "seed": 3}])
def test_its_own_output_is_valid_again_and_the_same(given):
    parameters = asked(**given).model_dump()
    assert asked(**parameters).model_dump() == parameters


def test_the_spec_attributes_alone_make_a_training():
    config = TrainingConfig(model_type="MLP", symbols=["AAPL", "GOOGL"], timeframes=["1h", "4h"])
    operation = model_train(config)
    assert operation.operation_id == "train_MLP_2"
    assert (operation.operation_type, operation.total_steps) == ("model_train", 4)
    assert {"model_type": "MLP", "symbols": ["AAPL", "GOOGL"], "timeframes": ["1h", "4h"]}.items() <= (
        operation.context.items()
    )


def test_trainings_that_differ_in_anything_have_different_keys():
    assert asked(seed=1).key != asked(seed=2).key
    assert asked(seed=1).key == asked(seed=1).key
    assert asked(symbols="A,B,C,D,E,F").key.startswith("mlp:A,B,C,D+2:1d:")


@pytest.mark.parametrize(
    ("change", "path", "value"),
    [
        ("model.training.learning_rate=0.5", ("model", "training", "learning_rate"), 0.5),
        ("model.architecture.hidden_layers=[8, 4]", ("model", "architecture", "hidden_layers"), [8, 4]),
        ("model.training.early_stopping.patience=3", ("model", "training", "early_stopping", "patience"), 3),
        ("indicators.0.period=21", ("indicators", 0, "period"), 21),
        ("fuzzy_sets.rsi.low=[0, 30]", ("fuzzy_sets", "rsi", "low"), [0, 30]),
        ("name=fast", ("name",), "fast"),
    ],
)
def test_set_changes_the_strategy_and_reads_values_as_yaml(change, path, value):
    found = asked(set=[change]).strategy
    for name in path:
        found = found[name]
    assert found == value


def test_set_reaches_epochs_too_and_a_flag_comes_after_it():
    assert asked(set=["model.training.epochs=9"]).epochs == 9
    assert asked(set=["model.training.epochs=9"], epochs=4).epochs == 4


@pytest.mark.parametrize(
    ("change", "near"),
    [
        ("model.training.learning_rat=1", "model.training.learning_rate"),
        ("learning_rate=1", "model.training.learning_rate"),
        ("model.training.epochs.more=1", "model.training.epochs"),
        ("indicators.9.period=1", "indicators.0.period"),
    ],
)
def test_an_unknown_path_is_an_error_that_names_near_ones(change, near):
    with pytest.raises(InvalidValue, match="the strategy has no") as refused:
        asked(set=[change])
    assert near in (refused.value.hint or "")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"symbols": "AAPL/.."}, "is not a symbol"),
        ({"symbols": ""}, "at least one symbol"),
        ({"symbols": 3}, "symbols is a list of texts"),
        ({"timeframe": "7h"}, "unknown timeframe '7h'"),
        ({"epochs": 0}, "epochs is 0; it is at least 1"),
        ({"epochs": "many"}, "epochs is 'many'; it is a whole number"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed is True; it is a whole number"),
        ({"start": "yesterday"}, "'yesterday' is no day"),
        ({"start": "2020-02-30"}, "'2020-02-30' is no day"),
        ({"start": "2021-01-01", "end": "2020-01-01"}, "is after the end"),
        ({"symbols": ",".join(f"S{n}" for n in range(MOST_SERIES + 1))}, "series are more than"),
        ({"what": 1}, "there is no parameter 'what'"),
        ({"set": ["model.training.epochs"]}, "is not PATH=VALUE"),
        ({"set": ["model.training.learning_rate=fast"]}, "learning_rate is 'fast'; it is a number above 0"),
        ({"set": ["model.training.learning_rate=-1"]}, "learning_rate is '-1'; it is a number above 0"),
        ({"set": ["model.training.batch_size=0"]}, "batch_size is '0'; it is a whole number from 1"),
        ({"set": ["model.training.epochs=[1"]}, "is no YAML value"),
        ({"set": ["model.training.learning_rate=.nan"]}, "nan is no number for a strategy"),
        ({"strategy": "/nowhere/x.yaml"}, "cannot be read: No such file"),
        ({"strategy": "a\0b"}, "cannot be read"),
        ({"strategy": {"name": "x"}}, "says nothing of a model"),
        ({"set": ["model.type=a b"]}, "'a b' is no type of a model"),
        ({"model_type": 3}, "is no type of a model"),
        ({"strategy": {"model": {"training": 3}}}, "model.training is no mapping"),
        ({"strategy": {"model": {}, "training_data": 3}}, "training_data is no mapping"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(given, said):
    with pytest.raises(InvalidValue) as refused:
        asked(**given)
    assert said in refused.value.message


@pytest.mark.parametrize("text", ["a: [", "- 1", "x: !!python/object:os.system {}", "\x00", "a: &a [*a]"])
def test_a_file_that_is_no_strategy_is_refused(text):
    with pytest.raises(InvalidValue):
        strategies.checked(strategies.parsed(text, "file"))


def test_a_strategy_that_names_a_huge_tree_by_references_is_refused_at_once():
    rows = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(InvalidValue, match="too large or too deep"):
        strategies.parsed("\n".join(rows), "file")


def test_a_large_file_is_refused(tmp_path):
    path = tmp_path / "large.yaml"
    path.write_text("#" * 40_000)
    with pytest.raises(InvalidValue, match="is larger than 32,768 bytes"):
        asked(strategy=str(path))


def test_the_strategy_as_text_is_the_same_strategy(file):
    strategy = asked(strategy=file).strategy
    assert yaml.safe_load(strategies.text(strategy)) == strategy
