"""Curves on a line of text: ``▇▅▃▁``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ktrdr_ops.core.events import Json

_LEVELS = "▁▂▃▄▅▆▇█"
_SHORTEST, _LONGEST = 2, 64
"""A list of so many numbers in a context is a curve."""


def sparkline(values: Sequence[float], *, low: float | None = None, high: float | None = None, width: int = 32) -> str:
    """One sign a value, between ``low`` and ``high`` (default: their own). More values than ``width``: each sign is the
    mean of some."""
    if not values:
        return ""
    low = min(values) if low is None else low
    span = (max(values) if high is None else high) - low
    shown = values if len(values) <= width else [_mean(values, i, width) for i in range(width)]
    top = len(_LEVELS) - 1
    return "".join(_LEVELS[round(min(max((one - low) / span, 0.0), 1.0) * top) if span > 0 else 0] for one in shown)


def _mean(values: Sequence[float], index: int, width: int) -> float:
    begin, end = index * len(values) // width, (index + 1) * len(values) // width
    return sum(values[begin:end]) / (end - begin)


def curves(context: Mapping[str, Json]) -> str:
    """``losses ▇▅▃▁ 0.684``: the lists of 2 to 64 numbers in a context, each with its last. The names must be made
    safe."""
    return "  ".join(f"{name} {sparkline(value)} {value[-1]:.4g}" for name, value in context.items() if is_curve(value))


def is_curve(value: Json) -> bool:
    """Whether it is a list of 2 to 64 numbers."""
    return (
        isinstance(value, list)
        and _SHORTEST <= len(value) <= _LONGEST
        and all(isinstance(one, int | float) and not isinstance(one, bool) for one in value)
    )
