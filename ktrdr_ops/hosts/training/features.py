"""What a bar looked like when it had just closed: features of the bars up to it, and of no later one.

Always there are the returns over 1 and 5 bars, how wide the bar was, and how its volume changed. To these come the
strategy's indicators as far as they are known here (rsi, macd, bbands, atr, sma, ema, roc, stochastic); with none that
is known, RSI, MACD, Bollinger bands and two moving averages. All are ratios, so that symbols can be put together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

Builder = Callable[[pd.DataFrame, Callable[[str, float], Any]], Mapping[str, "pd.Series[float]"]]
_LONGEST = 1000


def features(bars: pd.DataFrame, indicators: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A row for each bar, NaN while there are not bars enough before it; the columns depend on the indicators only."""
    columns = dict(_always(bars))
    chosen = [one for one in indicators if _kind(one) in _BUILDERS] or _DEFAULTS
    for one in chosen:
        for name, values in _BUILDERS[_kind(one)](bars, _reader(one)).items():
            columns.setdefault(name, values)
    return pd.DataFrame(columns, index=bars.index).replace([np.inf, -np.inf], np.nan)


def _kind(indicator: Mapping[str, Any]) -> str:
    said = str(indicator.get("type", indicator.get("indicator", indicator.get("name", "")))).lower()
    return _SAME.get(said, said)


def _reader(indicator: Mapping[str, Any]) -> Callable[[str, float], Any]:
    def read(name: str, default: float) -> Any:
        value = indicator.get(name, default)
        sound = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _LONGEST
        return type(default)(value) if sound else default

    return read


def _always(bars: pd.DataFrame) -> Iterator[tuple[str, pd.Series[float]]]:
    close, volume = bars["close"], bars["volume"]
    yield "return_1", close.pct_change(1, fill_method=None)
    yield "return_5", close.pct_change(5, fill_method=None)
    yield "range", (bars["high"] - bars["low"]) / close
    yield "volume_change", np.log1p(volume) - np.log1p(volume.rolling(20).mean())


def _rsi(bars: pd.DataFrame, read: Callable[[str, float], Any]) -> Mapping[str, pd.Series[float]]:
    period = read("period", 14)
    change = bars["close"].diff()
    up, down = (_wilder(change.clip(lower=0), period), _wilder(-change.clip(upper=0), period))
    return {f"rsi_{period}": up / (up + down) - 0.5}


def _macd(bars: pd.DataFrame, read: Callable[[str, float], Any]) -> Mapping[str, pd.Series[float]]:
    fast, slow, signal = read("fast_period", 12), read("slow_period", 26), read("signal_period", 9)
    close = bars["close"]
    line = (_exponential(close, fast) - _exponential(close, slow)) / close
    name = f"macd_{fast}_{slow}_{signal}"
    return {name: line, f"{name}_histogram": line - _exponential(line, signal)}


def _bbands(bars: pd.DataFrame, read: Callable[[str, float], Any]) -> Mapping[str, pd.Series[float]]:
    period, width = read("period", 20), read("multiplier", 2.0)
    close = bars["close"]
    middle, spread = close.rolling(period).mean(), close.rolling(period).std(ddof=0)
    name = f"bbands_{period}_{width:g}"
    return {f"{name}_position": (close - middle) / (width * spread), f"{name}_width": 2 * width * spread / middle}


def _atr(bars: pd.DataFrame, read: Callable[[str, float], Any]) -> Mapping[str, pd.Series[float]]:
    period = read("period", 14)
    before = bars["close"].shift()
    parts = [bars["high"] - bars["low"], (bars["high"] - before).abs(), (bars["low"] - before).abs()]
    return {f"atr_{period}": _wilder(pd.concat(parts, axis=1).max(axis=1, skipna=False), period) / bars["close"]}


def _sma(bars: pd.DataFrame, read: Callable[[str, float], Any]) -> Mapping[str, pd.Series[float]]:
    period = read("period", 20)
    return {f"sma_{period}": bars["close"] / bars["close"].rolling(period).mean() - 1}


def _ema(bars: pd.DataFrame, read: Callable[[str, float], Any]) -> Mapping[str, pd.Series[float]]:
    period = read("period", 20)
    return {f"ema_{period}": bars["close"] / _exponential(bars["close"], period) - 1}


def _roc(bars: pd.DataFrame, read: Callable[[str, float], Any]) -> Mapping[str, pd.Series[float]]:
    period = read("period", 10)
    return {f"roc_{period}": bars["close"].pct_change(period, fill_method=None)}


def _stochastic(bars: pd.DataFrame, read: Callable[[str, float], Any]) -> Mapping[str, pd.Series[float]]:
    period = read("period", 14)
    low, high = bars["low"].rolling(period).min(), bars["high"].rolling(period).max()
    return {f"stochastic_{period}": (bars["close"] - low) / (high - low) - 0.5}


def _wilder(values: pd.Series[float], period: int) -> pd.Series[float]:
    return values.ewm(alpha=1 / period, adjust=False, min_periods=period).mean()


def _exponential(values: pd.Series[float], period: int) -> pd.Series[float]:
    return values.ewm(span=period, adjust=False, min_periods=period).mean()


_BUILDERS: Mapping[str, Builder] = {
    "rsi": _rsi,
    "macd": _macd,
    "bbands": _bbands,
    "atr": _atr,
    "sma": _sma,
    "ema": _ema,
    "roc": _roc,
    "stochastic": _stochastic,
}
_SAME = {"bollinger": "bbands", "bollinger_bands": "bbands", "bollingerbands": "bbands", "momentum": "roc"}
_DEFAULTS: tuple[Mapping[str, Any], ...] = (
    {"name": "rsi"},
    {"name": "macd"},
    {"name": "bbands"},
    {"name": "sma", "period": 10},
    {"name": "sma", "period": 50},
)
