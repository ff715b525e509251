"""Which symbols are taken. A symbol becomes the name of a folder, so what is odd is refused, not cleaned."""

from __future__ import annotations

import re
from typing import Literal

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.domains.data.engine.timeframes import shown

MAX_LENGTH = 32
_SEVERAL = "Several symbols have a space between them: AAPL MSFT"
_SYMBOL = re.compile(r"[A-Z0-9](?:[A-Z0-9.\-]*[A-Z0-9])?")
_FOREX = re.compile(r"[A-Z]{3}\.[A-Z]{3}")
_DEVICES = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    "CONIN",
    "CONOUT",
    *(f"{port}{n}" for port in ("COM", "LPT") for n in range(10)),
}

InstrumentType = Literal["STK", "CASH"]


def symbol(value: object) -> str:
    """The symbol in upper case. Raises InvalidValue: what, why, what to do."""
    if not isinstance(value, str):
        raise InvalidValue(f"a symbol is text, not {type(value).__name__}", hint="Example: AAPL")
    if len(value) > MAX_LENGTH:
        raise InvalidValue(
            f"the symbol {shown(value)} is too long: at most {MAX_LENGTH} characters",
            hint=_SEVERAL,
        )
    upper = value.upper() if value.isascii() else value
    if not _SYMBOL.fullmatch(upper) or ".." in upper:
        raise InvalidValue(
            f"{shown(value)} is not a symbol: letters, digits, and between them . and - are taken",
            hint=_SEVERAL if "," in value else "Stocks: AAPL, BRK.B. Forex: EUR.USD (not EUR/USD).",
        )
    if upper.split(".")[0] in _DEVICES:
        raise InvalidValue(
            f"{shown(value)} cannot be stored: on Windows a file of this name is a device",
            hint="There is no way round this yet; the name of a series is the name of its folder.",
        )
    return upper


def instrument_type(symbol: str) -> InstrumentType:
    """``CASH`` for forex such as ``EUR.USD``, else ``STK``."""
    return "CASH" if _FOREX.fullmatch(symbol) else "STK"
