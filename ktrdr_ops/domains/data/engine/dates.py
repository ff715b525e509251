"""Times that people type. A day is a day in UTC; a time without a zone is this machine's."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.domains.data.engine.timeframes import shown

_DAY_ONLY = re.compile(r"\d{4}-\d\d-\d\d")


def beginning(value: object, name: str) -> datetime:
    """The moment (UTC) that is meant as a start: of a day, its midnight. Raises InvalidValue."""
    return _moment(value, name)[0]


def ending(value: object, name: str) -> datetime:
    """The moment (UTC) that is meant as an end, not included: of a day, the next midnight. Raises InvalidValue."""
    moment, day_only = _moment(value, name)
    return moment + timedelta(days=1) if day_only else moment


def _moment(value: object, name: str) -> tuple[datetime, bool]:
    if not isinstance(value, str):
        raise InvalidValue(f"{name} is text, not {type(value).__name__}", hint=_HINT)
    try:
        parsed = datetime.fromisoformat(value)
        if not 1900 <= parsed.year <= 2199:
            raise ValueError("outside of 1900 to 2199")
        if _DAY_ONLY.fullmatch(value):
            return parsed.replace(tzinfo=UTC), True
        return _utc(parsed, name), False
    except (ValueError, OverflowError):
        raise InvalidValue(f"{name}: {shown(value)} is no date between 1900 and 2199", hint=_HINT) from None


def _utc(parsed: datetime, name: str) -> datetime:
    if parsed.tzinfo is not None:
        return parsed.astimezone(UTC)
    first, second = parsed.replace(fold=0).astimezone(), parsed.replace(fold=1).astimezone()
    if first.utcoffset() != second.utcoffset():
        raise InvalidValue(
            f"{name}: {parsed.isoformat()} is not one moment here, where the clocks are changed",
            hint=f"Say which: {first.isoformat()} or {second.isoformat()}",
        )
    return first.astimezone(UTC)


_HINT = "Like 2024-01-31, or 2024-01-31T14:30+00:00"
