"""What a person would want to know about a series before trusting it. Nothing is repaired."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from ktrdr_ops.domains.data.engine.bars import moment_at, times, values

LISTED = 20
_SPLITS = (2, 3, 4, 5, 7, 8, 10, 20)
_NEAR = 0.06
_DAY_US = 86_400_000_000

Runs = list[tuple[datetime, datetime, int]]


def gap_report(missing: Runs) -> dict[str, Any]:
    """``{"periods": how many, "runs": how many, "listed": [{"first", "last", "periods"}]}``, the longest runs first."""
    longest = sorted(missing, key=lambda run: (-run[2], run[0]))[:LISTED]
    return {
        "periods": sum(count for _, _, count in missing),
        "runs": len(missing),
        "listed": [{"first": f"{a:%Y-%m-%d}", "last": f"{b:%Y-%m-%d}", "periods": n} for a, b, n in longest],
    }


def quality_report(bars: pd.DataFrame, *, duplicates: int, missing: int, notes: list[str]) -> dict[str, Any]:
    """Counts of what looks wrong, and the days that look like splits. ``duplicates``, ``notes``: met while reading."""
    at, content = times(bars), values(bars)
    prices = content[:, :4]
    low, high = content[:, 2], content[:, 1]
    with np.errstate(invalid="ignore"):
        report: dict[str, Any] = {
            "duplicates": duplicates,
            "missing_periods": missing,
            "nan_bars": int(np.isnan(content).any(axis=1).sum()),
            "non_positive_prices": int((prices <= 0).any(axis=1).sum()),
            "high_below_low": int((high < low).sum()),
            "outside_high_low": int(_outside(content).sum()),
            "negative_volume": int((content[:, 4] < 0).sum()),
        }
    report["split_like"] = _split_like(at, content)
    if notes:
        report["notes"] = notes[:LISTED]
    return report


def _outside(content: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    opened, high, low, closed = content[:, 0], content[:, 1], content[:, 2], content[:, 3]
    return np.asarray((opened > high) | (opened < low) | (closed > high) | (closed < low))


def _split_like(at: np.ndarray[Any, Any], content: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    """Days whose first price is about 1/n or n times the last price of the day before."""
    if len(at) < 2:
        return []
    days = at // _DAY_US
    first = np.flatnonzero(np.diff(days, prepend=days[0] - 1))[1:]
    with np.errstate(all="ignore"):
        ratio = content[first, 0] / content[first - 1, 3]
    found = []
    for position, change in zip(first, ratio, strict=True):
        factor = _factor(float(change))
        if factor:
            day = moment_at(int(at[position]))
            found.append({"date": f"{day:%Y-%m-%d}", "ratio": round(float(change), 4), "looks_like": factor})
    return found[:LISTED]


def _factor(ratio: float) -> str | None:
    if not np.isfinite(ratio) or ratio <= 0:
        return None
    for n in _SPLITS:
        if abs(ratio * n - 1) < _NEAR:
            return f"{n}:1"
        if abs(ratio / n - 1) < _NEAR:
            return f"1:{n}"
    return None
