"""Which indicators there are, and how one is written: ``RSI``, ``RSI(21)``, ``MACD(12,26,9)``.

They are TA-Lib's functions of open, high, low, close and volume, with TA-Lib's names, parameters and defaults. Written
out, an indicator names all of its parameters, so that equal texts are equal computations.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import talib
from talib import abstract

from ktrdr_ops.core.errors import InvalidValue

DEFAULT = ("RSI", "MACD", "BBANDS")
MOST = 64
_PRICES = frozenset({"open", "high", "low", "close", "volume"})
_WRITTEN = re.compile(r"\s*([A-Za-z][A-Za-z0-9_]*)\s*(?:\(([^()]*)\))?\s*")
_ALSO = {"BOLLINGER": "BBANDS", "STOCHASTIC": "STOCH"}
_LONGEST = 100_000


@cache
def known() -> tuple[str, ...]:
    """The names, sorted: every function that needs nothing but the columns of a series."""
    names: list[str] = talib.get_functions()  # type: ignore[no-untyped-call]  # it has no types
    return tuple(sorted(name for name in names if _inputs(name) <= _PRICES))


def _function(name: str) -> Any:
    return abstract.Function(name)  # type: ignore[attr-defined]  # its stubs do not name it


def _inputs(name: str) -> set[str]:
    needed: set[str] = set()
    for value in _function(name).input_names.values():
        needed.update([value] if isinstance(value, str) else value)
    return needed


def listed(value: object) -> list[str]:
    """The indicators that are asked for, each written out, none twice. Raises InvalidValue that names near ones."""
    if value is None:
        value = DEFAULT
    texts = _split(value) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not texts or len(texts) > MOST:
        raise InvalidValue(f"indicators are a list of 1 to {MOST}", hint="For example: RSI,MACD(12,26,9)")
    return list(dict.fromkeys(written_out(text) for text in texts))


def _split(text: str) -> list[str]:
    """At the commas that are not in brackets."""
    return [part for part in re.split(r",(?![^(]*\))", text) if part.strip()]


def written_out(text: object) -> str:
    """``RSI`` as ``RSI(14)``. Raises InvalidValue."""
    match = _WRITTEN.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise InvalidValue(f"{str(text)[:60]!r} is no indicator", hint="Written as RSI, or with parameters: RSI(21)")
    name = match[1].upper()
    name = _ALSO.get(name, name)
    if name not in known():
        near = difflib.get_close_matches(name, known(), 3) or list(DEFAULT)
        raise InvalidValue(
            f"there is no indicator {name[:40]!r}",
            hint=f"Did you mean {', '.join(near)}? All: RSI MACD BBANDS SMA EMA ATR ADX STOCH OBV CCI … (TA-Lib's)",
        )
    parameters: dict[str, Any] = dict(_function(name).parameters)
    given = [part.strip() for part in (match[2] or "").split(",") if part.strip()]
    if len(given) > len(parameters):
        takes = ", ".join(parameters) or "no parameters"
        raise InvalidValue(f"{name} takes {takes}: {len(given)} were given")
    for (parameter, default), value in zip(parameters.items(), given, strict=False):
        parameters[parameter] = _number(name, parameter, value, default)
        _refuse_outside(name, parameter, parameters[parameter], default)
    inside = ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in parameters.values())
    return f"{name}({inside})" if inside else name


def _number(name: str, parameter: str, text: str, default: Any) -> float | int:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) <= _LONGEST or (isinstance(default, int) and value != int(value)):
        raise InvalidValue(f"{name}: {parameter} is {text[:20]!r}; it is a number such as {default}")
    return int(value) if isinstance(default, int) else value


def _refuse_outside(name: str, parameter: str, value: float | int, default: Any) -> None:
    """Raise InvalidValue where the function does not take this value: it says so before it looks at the bars."""
    function = _function(name)
    function.parameters = {parameter: value}
    try:
        function(dict.fromkeys(_PRICES, np.ones(1)))
    except Exception as error:  # TA-Lib raises plain Exception
        raise InvalidValue(
            f"{name}: {parameter} is {value:g}, which is out of its range", hint=f"A number such as {default}."
        ) from error


def computed(indicator: str, bars: pd.DataFrame) -> pd.DataFrame:
    """An indicator that is written out, over a series: a float64 column for each of its outputs, NaN where there are
    not bars enough behind. Raises InvalidValue for parameters that it cannot be computed with."""
    name, _, rest = indicator.partition("(")
    function = _function(name)
    function.parameters = {
        parameter: type(default)(float(value))
        for (parameter, default), value in zip(
            function.parameters.items(), filter(None, rest.rstrip(")").split(",")), strict=False
        )
    }
    columns = {column: np.ascontiguousarray(bars[column], np.float64) for column in sorted(_PRICES)}
    try:
        outputs = function(columns)
    except Exception as error:  # TA-Lib raises plain Exception, with its own number for what was wrong
        raise InvalidValue(f"{indicator} cannot be computed: {error}") from error
    names = [indicator] if len(function.output_names) == 1 else [f"{indicator}.{one}" for one in function.output_names]
    arrays = [outputs] if len(names) == 1 else outputs
    values = {column: np.asarray(array, np.float64) for column, array in zip(names, arrays, strict=True)}
    return pd.DataFrame(values, index=bars.index)
