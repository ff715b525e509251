"""What one session is asked, in either generation's words, checked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml

from ktrdr_ops.core.errors import InvalidValue

RECENT_DAYS = 365
"""The first generation trains on so many last days of its files, whatever days it is asked for."""
ACTIVATIONS = ("relu", "tanh", "gelu", "sigmoid")
OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop")
SESSION_ID = r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,199}$"
"""Ids become file names."""
_SYMBOL = re.compile(r"[A-Z0-9][A-Z0-9.\-]{0,31}")
_TIMEFRAME = re.compile(r"\d{1,3}(?:m|h|d|w|M)")
_ONLY_WHEN_AND_WHERE = ("epochs", "checkpoint_every", "resume_from")
_WIDEST, _DEEPEST = 1024, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One training. ``recent_days``: only so many days before each file's last bar count, not ``start`` and ``end``
    (days or times, ISO-8601, both included). ``horizon``: the bars after which the direction of the close is the label.
    ``patience``: epochs without a better validation loss after which it ends. ``split``: the shares of the time for
    training, validation and test."""

    symbols: tuple[str, ...]
    timeframes: tuple[str, ...]
    start: str | None = None
    end: str | None = None
    recent_days: int | None = None
    indicators: tuple[Mapping[str, Any], ...] = ()
    horizon: int = 1
    split: tuple[float, float, float] = (0.7, 0.15, 0.15)
    hidden_layers: tuple[int, ...] = (32, 16)
    activation: str = "relu"
    dropout: float = 0.0
    optimizer: str = "adam"
    learning_rate: float = 0.001
    batch_size: int = 64
    epochs: int = 50
    patience: int | None = None
    seed: int = 42
    checkpoint_every: int = 5
    resume_from: str | None = None
    strategy: str = field(default="strategy", compare=False)

    def digest(self, files: Iterable[str]) -> str:
        """A hash of all that decides what an epoch does; ``files`` are the hashes of the data. Sessions with the same
        one can go on from each other's checkpoints."""
        asked = {name: value for name, value in asdict(self).items() if name not in (*_ONLY_WHEN_AND_WHERE, "strategy")}
        text = json.dumps({**asked, "files": list(files)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def from_yaml(text: str, symbols: Any, timeframes: Any, start: Any, end: Any) -> Plan:
    """The second generation's: a strategy, and beside it what of its data is wanted. Raises InvalidValue."""
    try:
        strategy = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidValue(f"Invalid strategy YAML: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(strategy, dict) or not isinstance(strategy.get("model"), dict):
        raise InvalidValue("Invalid strategy YAML: it says nothing of a model")
    data = _mapping(strategy, "training_data")
    return _plan(
        strategy,
        _mapping(_mapping(strategy, "model"), "training"),
        symbols=symbols or _listed(data, "symbols", "symbol"),
        timeframes=timeframes or _listed(data, "timeframes", "timeframe"),
        start=start,
        end=end,
    )


def from_configurations(model: Mapping[str, Any], training: Mapping[str, Any], data: Mapping[str, Any]) -> Plan:
    """The first generation's three mappings; its days are not read. Raises InvalidValue."""
    given = {**_mapping(_mapping(_mapping(model, "strategy_config"), "model"), "training"), **training}
    if "early_stopping_patience" in given:
        given["early_stopping"] = {"patience": given["early_stopping_patience"]}
    return _plan(
        _mapping(model, "strategy_config"),
        given,
        symbols=data.get("symbols", model.get("symbols")),
        timeframes=data.get("timeframes", model.get("timeframes")),
        recent_days=RECENT_DAYS,
    )


def _plan(
    strategy: Mapping[str, Any], training: Mapping[str, Any], *, symbols: Any, timeframes: Any, **more: Any
) -> Plan:
    model = _mapping(strategy, "model")
    kind = str(model.get("type", "mlp")).lower()
    if kind != "mlp":
        raise InvalidValue(f"Model type {kind[:40]!r} is not supported: mlp is")
    shape, labels = _mapping(model, "architecture"), _mapping(_mapping(strategy, "training"), "labels")
    early, resume_from = _mapping(training, "early_stopping"), training.get("resume_from")
    return Plan(
        symbols=_names("symbol", symbols, _SYMBOL),
        timeframes=_names("timeframe", timeframes, _TIMEFRAME),
        start=_text(more.get("start")),
        end=_text(more.get("end")),
        recent_days=more.get("recent_days"),
        indicators=_indicators(strategy.get("indicators")),
        horizon=_whole("labels.horizon", labels.get("horizon", 1), 1, 1000),
        split=_split(_mapping(_mapping(strategy, "training"), "data_split")),
        hidden_layers=_layers(shape.get("hidden_layers", [32, 16])),
        activation=_one_of("activation", shape.get("activation", "relu"), ACTIVATIONS),
        dropout=_number("dropout", shape.get("dropout", 0.0), 0.0, 0.95),
        optimizer=_one_of("optimizer", training.get("optimizer", "adam"), OPTIMIZERS),
        learning_rate=_number("learning_rate", training.get("learning_rate", 0.001), 1e-12, 10.0),
        batch_size=_whole("batch_size", training.get("batch_size", 64), 1, 1_000_000),
        epochs=_whole("epochs", training.get("epochs", 50), 1, 1_000_000),
        patience=_whole("patience", early["patience"], 1, 1_000_000) if early.get("patience") is not None else None,
        seed=_whole("seed", training.get("seed", 42), 0, 2**63 - 1),
        checkpoint_every=_whole("checkpoint_every", training.get("checkpoint_every", 5), 1, 1_000_000),
        resume_from=None if resume_from is None else _names("session id", str(resume_from), re.compile(SESSION_ID))[0],
        strategy=str(strategy.get("name", "strategy"))[:80],
    )


def _mapping(of: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = of.get(name)
    return found if isinstance(found, Mapping) else {}


def _listed(data: Mapping[str, Any], many: str, one: str) -> Any:
    found = data.get(many)
    return found.get("list", found.get(many, found.get(one))) if isinstance(found, Mapping) else found


def _names(what: str, value: Any, valid: re.Pattern[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(map(str, [value] if isinstance(value, str) else value or ())))
    for name in names:
        if not valid.fullmatch(name) or ".." in name:
            raise InvalidValue(f"{name[:40]!r} is not a {what}")
    if not names:
        raise InvalidValue(f"At least one {what} is required")
    return names


def _indicators(value: Any) -> tuple[Mapping[str, Any], ...]:
    """A list of mappings, each with a name; or a mapping of them by name."""
    if isinstance(value, Mapping):
        value = [{"name": name, **(one if isinstance(one, Mapping) else {})} for name, one in value.items()]
    return tuple(one for one in value if isinstance(one, Mapping)) if isinstance(value, list) else ()


def _split(value: Mapping[str, Any]) -> tuple[float, float, float]:
    if not value:
        return (0.7, 0.15, 0.15)
    validation = value.get("validation", value.get("val", 0.15))
    parts = [value.get("train", 0.7), validation, value.get("test", 0.15)]
    train, middle, test = (_number("data_split", part, 0.01, 1.0) for part in parts)
    if abs(train + middle + test - 1.0) > 0.001:
        raise InvalidValue(f"data_split adds up to {train + middle + test:g}, not to 1")
    return (train, middle, test)


def _layers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _DEEPEST:
        raise InvalidValue(f"hidden_layers is a list of up to {_DEEPEST} widths")
    return tuple(_whole("hidden_layers", width, 1, _WIDEST) for width in value)


def _one_of(what: str, value: Any, valid: tuple[str, ...]) -> str:
    if str(value).lower() not in valid:
        raise InvalidValue(f"{what} {str(value)[:40]!r} is not supported: {', '.join(valid)} are")
    return str(value).lower()


def _whole(what: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidValue(f"{what} is {str(value)[:40]!r}; it is a whole number from {least} to {most}")
    return value


def _number(what: str, value: Any, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise InvalidValue(f"{what} is {str(value)[:40]!r}; it is a number from {least:g} to {most:g}")
    return float(value)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
