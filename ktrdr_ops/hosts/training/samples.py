"""Samples: the files of a data folder as features and labels, split by time into training, validation and test.

The cuts are two moments, the same for all series. A sample is made of the bars up to its own; its label is over when
the bar after the ``horizon`` bars opens. It belongs to a part if both lie in it: what straddles a cut is in none (the
embargo), so that no label of a part says anything of the next. The cuts are places in the series of open times alone:
no price or volume moves them. Features are scaled by the mean and deviation of the training part.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.hosts.training.features import features
from ktrdr_ops.hosts.training.plan import Plan

Floats = NDArray[np.float32]
PARTS = ("training", "validation", "test")
LEAST = 8
"""Samples that each part must have."""
_NEVER = np.iinfo(np.int64).max
COLUMNS = ["open", "high", "low", "close", "volume"]


@dataclass(frozen=True, slots=True)
class Part:
    """``inputs`` (samples, features), scaled; ``labels`` 1.0 where the close was higher after the horizon, else 0.0;
    ``symbols`` each sample's symbol, as an index into the plan's."""

    inputs: Floats
    labels: Floats
    symbols: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The three parts, the cuts between them, the scaling, and the files that all came from."""

    training: Part
    validation: Part
    test: Part
    cuts: tuple[pd.Timestamp, pd.Timestamp]
    names: list[str]
    mean: Floats
    scale: Floats
    files: list[dict[str, Any]]
    first: pd.Timestamp
    last: pd.Timestamp

    @property
    def total(self) -> int:
        """How many there are in all parts."""
        return sum(len(part.labels) for part in (self.training, self.validation, self.test))


@dataclass(frozen=True, slots=True)
class _Series:
    symbol: int
    inputs: pd.DataFrame
    labels: Floats
    opened: NDArray[np.int64]
    closed: NDArray[np.int64]
    """When the sample's label is over; opened and closed are in ns of UTC, ``_NEVER`` where no later bar says so."""
    bars: NDArray[np.int64]
    """When each bar opened, those among them that no sample could be made of."""


def samples(plan: Plan, data_dir: Path) -> Samples:
    """Read, compute, split and scale. Raises InvalidValue that names the file, or what there is too little of."""
    series, files = [], []
    for at, symbol in enumerate(plan.symbols):
        for timeframe in plan.timeframes:
            path, content = _file(data_dir, symbol, timeframe)
            bars = _bars(path, content)
            digest = hashlib.sha256(content).hexdigest()
            told = {"symbol": symbol, "timeframe": timeframe, "path": str(path), "sha256": digest, "rows": len(bars)}
            files.append(told)
            series.append(_series(at, _within(bars, plan), plan))
    opened = np.unique(np.concatenate([one.bars for one in series]))
    cuts = _cuts(opened, plan.split)
    bounds = (-_NEVER, *cuts, _NEVER)
    parts = [_part(series, *bounds[at : at + 2]) for at in range(len(PARTS))]
    for name, part in zip(PARTS, parts, strict=True):
        if len(part.labels) < LEAST:
            raise InvalidValue(f"Not enough data: {len(part.labels)} {name} samples, at least {LEAST} are needed")
    mean = parts[0].inputs.mean(axis=0, dtype=np.float64).astype(np.float32)
    deviation = parts[0].inputs.std(axis=0, dtype=np.float64).astype(np.float32)
    scale = np.where(deviation > 0, deviation, np.float32(1))
    training, validation, test = (Part((part.inputs - mean) / scale, part.labels, part.symbols) for part in parts)
    return Samples(
        training=training,
        validation=validation,
        test=test,
        cuts=(_shown(cuts[0]), _shown(cuts[1])),
        names=list(series[0].inputs.columns),
        mean=mean,
        scale=scale,
        files=files,
        first=_shown(opened[0]),
        last=_shown(opened[-1]),
    )


def _file(data_dir: Path, symbol: str, timeframe: str) -> tuple[Path, bytes]:
    name = timeframe.replace("M", "mo")
    paths = (data_dir / symbol / f"{name}.parquet", data_dir / f"{symbol}_{name}.csv")
    for path in paths:
        try:
            return path.absolute(), path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InvalidValue(f"{path} cannot be read: {error.strerror}") from error
    raise InvalidValue(f"No data for {symbol} {timeframe}: there is neither {paths[0]} nor {paths[1]}")


def _bars(path: Path, content: bytes) -> pd.DataFrame:
    """By open time, UTC, rising; a bar with a value missing is none."""
    try:
        if path.suffix == ".parquet":
            read = pd.read_parquet(io.BytesIO(content))
        else:
            read = pd.read_csv(io.BytesIO(content), index_col=0)
        read.columns = read.columns.str.lower()
        bars = read[COLUMNS].astype("float64")
        bars.index = pd.to_datetime(read.index, utc=True)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InvalidValue(f"{path} is no series of bars: {str(error)[:200]}") from error
    bars = bars.dropna().sort_index()
    return bars[~bars.index.duplicated(keep="last")]


def _within(bars: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    if plan.recent_days is not None:
        return bars[bars.index > bars.index[-1] - pd.Timedelta(days=plan.recent_days)] if len(bars) else bars
    try:
        start, end = (None if day is None else _moment(day) for day in (plan.start, plan.end))
    except ValueError as error:
        raise InvalidValue(f"Invalid date: {str(error)[:200]}") from None
    if end is not None and end == end.normalize():  # a day: all of it
        end += pd.Timedelta(days=1) - pd.Timedelta(1, "ns")
    return bars[start:end]


def _moment(text: str) -> pd.Timestamp:
    moment = pd.Timestamp(text)
    return moment.tz_localize("UTC") if moment.tzinfo is None else moment.tz_convert("UTC")


def _series(symbol: int, bars: pd.DataFrame, plan: Plan) -> _Series:
    close, later, times = bars["close"], bars["close"].shift(-plan.horizon), _ns(bars.index)
    closed = np.full(len(times), _NEVER)
    closed[: max(len(times) - plan.horizon - 1, 0)] = times[plan.horizon + 1 :]
    inputs = features(bars, plan.indicators)
    whole = (inputs.notna().all(axis=1) & later.notna()).to_numpy()
    labels = (later > close).to_numpy().astype(np.float32)
    return _Series(symbol, inputs[whole], labels[whole], times[whole], closed[whole], times)


def _cuts(opened: NDArray[np.int64], split: tuple[float, float, float]) -> tuple[int, int]:
    if len(opened) < len(PARTS):
        raise InvalidValue(f"Not enough data: {len(opened)} bars")
    first, second = (min(round(len(opened) * share), len(opened) - 1) for share in (split[0], split[0] + split[1]))
    return int(opened[first]), int(opened[second])


def _part(series: list[_Series], start: int, end: int) -> Part:
    inputs, labels, symbols = [], [], []
    for one in series:
        inside = (one.opened >= start) & (one.closed <= end)
        inputs.append(one.inputs.to_numpy(dtype=np.float32)[inside])
        labels.append(one.labels[inside])
        symbols.append(np.full(int(inside.sum()), one.symbol, dtype=np.int64))
    return Part(np.concatenate(inputs), np.concatenate(labels), np.concatenate(symbols))


def _shown(moment: int | np.int64) -> pd.Timestamp:
    return pd.Timestamp(int(moment), tz="UTC")


def _ns(index: pd.Index[Any]) -> NDArray[np.int64]:
    moments: NDArray[np.int64] = pd.DatetimeIndex(index).as_unit("ns").asi8
    return moments


def summary(plan: Plan, found: Samples) -> Mapping[str, Any]:
    """What a result says of its data."""
    return {
        "symbols": list(plan.symbols),
        "timeframes": list(plan.timeframes),
        "start_date": found.first.isoformat(),
        "end_date": found.last.isoformat(),
        "total_samples": found.total,
        "feature_count": len(found.names),
        "train_samples": len(found.training.labels),
        "validation_samples": len(found.validation.labels),
        "test_samples": len(found.test.labels),
        "validation_from": found.cuts[0].isoformat(),
        "test_from": found.cuts[1].isoformat(),
        "files": found.files,
    }
