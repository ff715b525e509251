"""Strategies: what is trained, as users have it in YAML; from a file, built in, or changed by ``a.b=v``.

A strategy is a mapping of plain JSON values. It says everything that a training depends on, seed included, so that
equal strategies over equal data are the same training.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.core.events import Json

Strategy = dict[str, Any]

MOST_BYTES = 32 * 1024
_MOST_NODES = 5_000
_DEEPEST = 16
_MOST_NAMED = 3
_ANYTHING_BELOW = ("indicators", "fuzzy_sets")

BUILT_IN = """
name: mlp
version: "1.0"
training_data:
  symbols: {mode: single_symbol, symbol: AAPL}
  timeframes: {mode: single_timeframe, timeframe: 1d}
  history_required: 200
indicators:
  - {name: rsi, period: 14, source: close}
  - {name: macd, fast_period: 12, slow_period: 26, signal_period: 9, source: close}
  - {name: bbands, period: 20, multiplier: 2.0, source: close}
  - {name: atr, period: 14}
fuzzy_sets: {}
model:
  type: mlp
  architecture: {hidden_layers: [32, 16], activation: relu, dropout: 0.0}
  training:
    learning_rate: 0.001
    batch_size: 64
    epochs: 50
    optimizer: adam
    early_stopping: {patience: 10}
    seed: 42
    checkpoint_every: 5
training:
  labels: {method: direction, horizon: 5}
  data_split: {train: 0.7, validation: 0.15, test: 0.15}
"""


def built_in() -> Strategy:
    """A multi-layer perceptron over a few indicators of daily bars."""
    strategy: Strategy = yaml.safe_load(BUILT_IN)
    return strategy


def read(path: str) -> Strategy:
    """The strategy in a YAML file. Raises InvalidValue: what, why, what to do."""
    file = Path(path).expanduser()
    try:
        with file.open("rb") as opened:
            content = opened.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidValue(f"the strategy {path[:200]!r} cannot be read: {why}", hint=_HINT) from None
    if len(content) > MOST_BYTES:
        raise InvalidValue(f"the strategy {path[:200]} is larger than {MOST_BYTES:,} bytes", hint=_HINT)
    return parsed(content, path)


def parsed(content: str | bytes, name: str) -> Strategy:
    """The strategy in a YAML text. Raises InvalidValue that says where it is wrong."""
    try:
        value = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidValue(f"{name[:200]} is no YAML: {' '.join(str(error).split())[:300]}", hint=_HINT) from None
    return checked(value, name)


def checked(value: object, name: str = "the strategy") -> Strategy:
    """A strategy of plain values with a model's type, completed from the built-in one. Raises InvalidValue."""
    plain = _Plain(name).of(value)
    if not isinstance(plain, dict) or not isinstance(plain.get("model"), dict):
        raise InvalidValue(f"{name[:200]} is no strategy: it says nothing of a model", hint=_HINT)
    strategy: Strategy = plain
    default = built_in()
    strategy.setdefault("name", "strategy")
    for section in ("model", "training_data"):
        strategy[section] = _completed(strategy.get(section) or {}, default[section], name, section)
    return strategy


def _completed(own: object, default: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """What a mapping leaves open in the model's training; symbols and timeframes come as they are."""
    if not isinstance(own, dict):
        raise InvalidValue(f"{name[:200]}: {where} is no mapping", hint=_HINT)
    completed: dict[str, Any] = {**default, **own}
    if where == "model":
        training = own.get("training") or {}
        if not isinstance(training, dict):
            raise InvalidValue(f"{name[:200]}: model.training is no mapping", hint=_HINT)
        completed["training"] = {**default["training"], **training}
    return completed


class _Plain:
    """Makes plain JSON of what YAML may hold. A small text can name a tree of any size by references: it is counted."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._left = _MOST_NODES

    def of(self, value: object, depth: int = 0) -> Json:
        self._left -= 1
        if self._left < 0 or depth > _DEEPEST:
            raise InvalidValue(f"{self._name[:200]} is too large or too deep for a strategy", hint=_HINT)
        match value:
            case dict():
                return {str(key): self.of(inner, depth + 1) for key, inner in value.items()}
            case list() | tuple():
                return [self.of(inner, depth + 1) for inner in value]
            case date():
                return value.isoformat()
            case float() if not math.isfinite(value):
                raise InvalidValue(f"{self._name[:200]}: {value} is no number for a strategy", hint=_HINT)
            case None | bool() | int() | float() | str():
                return value
        raise InvalidValue(f"{self._name[:200]}: a {type(value).__name__} has no place in a strategy", hint=_HINT)


def changed(strategy: Mapping[str, Any], changes: Sequence[str]) -> Strategy:
    """The strategy with each ``a.b=v`` set, ``v`` read as YAML. Raises InvalidValue; a path that neither it nor the
    built-in strategy has is refused with the nearest ones."""
    result = copy.deepcopy(dict(strategy))
    for change in changes:
        path, equals, text = change.partition("=")
        path = path.strip()
        if not equals or not path:
            raise InvalidValue(f"{change[:80]!r} is not PATH=VALUE", hint="--set model.training.learning_rate=0.01")
        _put(result, path, _value(text, path))
    return result


def _value(text: str, path: str) -> Json:
    try:
        return _Plain(path).of(yaml.safe_load(text))
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InvalidValue(f"{path}: {text[:80]!r} is no YAML value", hint="Text in quotes, lists as [1, 2].") from None


def _put(strategy: Strategy, path: str, value: Json) -> None:
    names = path.split(".")
    known = {*_paths(strategy), *_paths(built_in())}
    if path not in known and names[0] not in _ANYTHING_BELOW:
        raise _unknown(path, known)
    inside: Any = strategy
    for name in names[:-1]:
        key = _key(inside, name)
        if key is None:
            raise _unknown(path, known)
        inside = inside[key] if isinstance(inside, list) else inside.setdefault(key, {})
    key = _key(inside, names[-1])
    if key is None:
        raise _unknown(path, known)
    inside[key] = value


def _key(inside: object, name: str) -> Any:
    """By what a name is found in a mapping or list; None where it cannot be."""
    if isinstance(inside, list):
        return int(name) if name.isdecimal() and int(name) < len(inside) else None
    return name if isinstance(inside, dict) else None


def _unknown(path: str, known: set[str]) -> InvalidValue:
    near = difflib.get_close_matches(path, sorted(known), _MOST_NAMED, 0.5) or _with_the_last_name(path, known)
    said = f"Near: {', '.join(near)}" if near else f"It has {', '.join(sorted({one.split('.')[0] for one in known}))}."
    return InvalidValue(f"the strategy has no {path[:120]!r}", hint=said)


def _with_the_last_name(path: str, known: set[str]) -> list[str]:
    last = path.rpartition(".")[2]
    names = {one.rpartition(".")[2]: one for one in sorted(known)}
    return [names[near] for near in difflib.get_close_matches(last, sorted(names), _MOST_NAMED, 0.5)]


def _paths(value: object, prefix: str = "") -> Iterator[str]:
    items: Iterator[tuple[str, Any]] = iter(())
    if isinstance(value, dict):
        items = ((str(name), inner) for name, inner in value.items())
    elif isinstance(value, list):
        items = ((str(index), inner) for index, inner in enumerate(value))
    for name, inner in items:
        yield prefix + name
        yield from _paths(inner, f"{prefix}{name}.")


def named_list(strategy: Mapping[str, Any], section: str, one: str) -> list[str]:
    """The symbols or timeframes that the strategy's training data names: a ``list``, or ``one`` alone."""
    found = strategy.get("training_data", {}).get(section)
    if isinstance(found, dict):
        found = found.get("list", found.get(section, found.get(one)))
    if isinstance(found, str):
        return [found]
    return [str(each) for each in found] if isinstance(found, list) else []


def with_list(strategy: Strategy, section: str, one: str, values: Sequence[str]) -> None:
    """Let the training data name these; what names them already stays as it is written."""
    if named_list(strategy, section, one) == list(values):
        return
    several = len(values) > 1
    kind = {"symbols": ("single_symbol", "multi_symbol"), "timeframes": ("single_timeframe", "multi_timeframe")}
    found: dict[str, Json] = {"mode": kind[section][several]}
    found["list" if several else one] = list(values) if several else values[0]
    strategy["training_data"][section] = found


def text(strategy: Mapping[str, Any]) -> str:
    """The strategy as YAML."""
    written: str = yaml.safe_dump(dict(strategy), sort_keys=False, allow_unicode=True)
    return written


_HINT = "A strategy is YAML with model, training_data, indicators and training; without a file a built-in one is used."
