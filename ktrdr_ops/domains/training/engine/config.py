"""What one training is asked: the strategy as a whole, and the parts of it that people name on the way."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from datetime import date
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.core.parameters import what_is_wrong
from ktrdr_ops.domains.training.engine import strategy as strategies

TIMEFRAMES = ("1m", "5m", "15m", "30m", "1h", "2h", "4h", "1d", "1w", "1M")
MOST_SERIES = 120
MOST_EPOCHS = 100_000
MOST_SEED = 2**31 - 1
_MODEL_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_\-]{0,31}")
_SYMBOL = re.compile(r"[A-Z0-9](?:[A-Z0-9.\-]{0,30}[A-Z0-9])?")


class TrainingConfig(BaseModel):
    """One training. ``start`` and ``end`` are days in UTC, both included; None is as far as the data goes.

    ``symbols``, ``timeframes``, ``epochs``, ``seed`` and ``model_type`` left out are the strategy's; given, they change
    it: both always say the same. ``strategy`` left out is the built-in one. Raises InvalidValue.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model_type: str
    symbols: list[str]
    timeframes: list[str]
    epochs: int = Field(ge=1, le=MOST_EPOCHS)
    seed: int = Field(ge=0, le=MOST_SEED)
    start: str | None = None
    end: str | None = None
    strategy: dict[str, Any]

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise _refused(error) from None

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, given: Any) -> dict[str, Any]:
        """The strategy and what is said beside it as one."""
        said = {name: value for name, value in dict(given).items() if value is not None}
        strategy = strategies.checked(said.pop("strategy", None) or strategies.built_in())
        if "symbols" in said:
            strategies.with_list(strategy, "symbols", "symbol", _symbols(said.pop("symbols")))
        if "timeframes" in said:
            strategies.with_list(strategy, "timeframes", "timeframe", _timeframes(said.pop("timeframes")))
        model, training = strategy["model"], strategy["model"]["training"]
        model["type"] = _model_type(said.pop("model_type", model["type"]))
        _refuse_learning(training)
        for name in ("epochs", "seed"):
            training[name] = said.pop(name, training[name])
        return {
            **said,
            "model_type": model["type"].upper(),
            "symbols": _symbols(strategies.named_list(strategy, "symbols", "symbol")),
            "timeframes": _timeframes(strategies.named_list(strategy, "timeframes", "timeframe")),
            "epochs": training["epochs"],
            "seed": training["seed"],
            "strategy": strategy,
        }

    @field_validator("start", "end", mode="before")
    @classmethod
    def _day(cls, value: object) -> object:
        return None if value is None else _day(value)

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.start and self.end and self.start > self.end:
            raise InvalidValue(f"the start {self.start} is after the end {self.end}", hint="Change the two days.")
        if len(self.series) > MOST_SERIES:
            raise InvalidValue(
                f"{len(self.series)} series are more than the {MOST_SERIES} that one training takes",
                hint="Fewer symbols or timeframes.",
            )
        return self

    @property
    def name(self) -> str:
        """The strategy's name, as it may stand in a key."""
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", str(self.strategy["name"]))[:40].strip("_.-") or "strategy"

    @property
    def series(self) -> list[tuple[str, str]]:
        """Each symbol with each timeframe."""
        return [(symbol, timeframe) for symbol in self.symbols for timeframe in self.timeframes]

    @property
    def key(self) -> str:
        """The key of the model that comes of it, which names it for people and tells it from every other."""
        digest = hashlib.sha256(orjson.dumps(self.model_dump(), option=orjson.OPT_SORT_KEYS)).hexdigest()
        more = f"+{len(self.symbols) - 4}" if len(self.symbols) > 4 else ""
        return f"{self.name}:{','.join(self.symbols[:4])}{more}:{','.join(self.timeframes)}:{digest[:8]}"

    @classmethod
    def asked(cls, raw: Mapping[str, Any]) -> TrainingConfig:
        """From what a command line or a script says: the fields, and besides a path as ``strategy``, lists as
        ``A,B``, ``timeframe`` for ``timeframes``, ``set`` with changes ``a.b=v``. Raises InvalidValue."""
        given = dict(raw)
        strategy = given.pop("strategy", None)
        if isinstance(strategy, str):
            strategy = strategies.read(strategy)
        changes = given.pop("set", None) or ()
        changes = [changes] if isinstance(changes, str) else changes
        strategy = strategies.changed(strategies.checked(strategy or strategies.built_in()), _texts(changes, "set"))
        if given.get("timeframe") is not None:
            given.setdefault("timeframes", given["timeframe"])
        given.pop("timeframe", None)
        return cls(**given, strategy=strategy)


def _refuse_learning(training: Mapping[str, Any]) -> None:
    """Of what the host learns by, what no host can: it is found out here, before anything is journaled."""
    rate, size = training.get("learning_rate"), training.get("batch_size")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf):
        raise InvalidValue(f"learning_rate is {str(rate)[:40]!r}; it is a number above 0", hint=_RATE)
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise InvalidValue(
            f"batch_size is {str(size)[:40]!r}; it is a whole number from 1", hint=_SET + "batch_size=32"
        )


def _refused(error: ValidationError) -> InvalidValue:
    return InvalidValue(
        f"a training cannot be asked so: {what_is_wrong(error)}",
        hint=f"It takes {', '.join(TrainingConfig.model_fields)}, and set with changes to the strategy.",
    )


def _texts(value: object, name: str) -> list[str]:
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise InvalidValue(f"{name} is a list of texts, or one text with commas", hint=f"{name}: A,B")
    return [each.strip() for each in value if each.strip()]


def _symbols(value: object) -> list[str]:
    symbols = list(dict.fromkeys(each.upper() for each in _texts(value, "symbols")))
    for each in symbols:
        if not _SYMBOL.fullmatch(each) or ".." in each:
            raise InvalidValue(f"{each[:40]!r} is not a symbol", hint="Stocks: AAPL, BRK.B. Forex: EUR.USD.")
    if not symbols:
        raise InvalidValue("a training needs at least one symbol", hint="--symbols AAPL,MSFT")
    return symbols


def _model_type(value: object) -> str:
    if not isinstance(value, str) or not _MODEL_TYPE.fullmatch(value):
        raise InvalidValue(f"{str(value)[:40]!r} is no type of a model", hint="Such as mlp.")
    return value.lower()


def _timeframes(value: object) -> list[str]:
    timeframes = list(dict.fromkeys(_texts(value, "timeframes")))
    for each in timeframes:
        if each not in TIMEFRAMES:
            raise InvalidValue(f"unknown timeframe {each[:40]!r}: valid are {', '.join(TIMEFRAMES)}", hint=_MINUTE)
    if not timeframes:
        raise InvalidValue("a training needs at least one timeframe", hint="--timeframe 1d")
    return timeframes


def _day(value: object) -> str:
    try:
        if isinstance(value, str) and len(value) == 10:
            return date.fromisoformat(value).isoformat()
    except ValueError:
        pass
    raise InvalidValue(f"{str(value)[:40]!r} is no day", hint="A day in UTC, like 2024-01-31.")


_SET = "--set model.training."
_RATE = f"{_SET}learning_rate=0.001 (1e-3 is text in YAML)"
_MINUTE = "1m is a minute, 1M a month."
