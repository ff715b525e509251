"""What may be asked for. A symbol becomes the name of a folder, so what is odd is refused, not cleaned."""

from __future__ import annotations

import re

from ktrdr_ops.core.errors import InvalidValue

TIMEFRAMES = ("1m", "5m", "15m", "30m", "1h", "2h", "4h", "1d", "1w", "1M")
_SYMBOL = re.compile(r"[A-Z0-9](?:[A-Z0-9.\-]{0,30}[A-Z0-9])?")


def symbol(value: object) -> str:
    """The symbol in upper case. Raises InvalidValue."""
    upper = value.upper() if isinstance(value, str) and value.isascii() else ""
    if not _SYMBOL.fullmatch(upper) or ".." in upper:
        several = "Several symbols have a space between them: AAPL MSFT"
        hint = several if "," in upper else "Stocks: AAPL, BRK.B. Forex: EUR.USD."
        raise InvalidValue(f"{str(value)[:40]!r} is not a symbol", hint=hint)
    return upper


def timeframe(value: object) -> str:
    """The timeframe. Raises InvalidValue that names the valid ones."""
    if value not in TIMEFRAMES:
        raise InvalidValue(f"unknown timeframe {str(value)[:20]!r}", hint=f"Valid are {', '.join(TIMEFRAMES)}.")
    return str(value)
