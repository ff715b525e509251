"""Moments as people type them: ISO-8601, ``8h`` (ago), ``yesterday``.

A time without a zone is local. Where the clocks were put back it happens twice, where they were put forward not at all:
both are refused, with what could be meant.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from ktrdr_ops.core.errors import InvalidValue

FOREGROUND_SECONDS, UNATTENDED_SECONDS = 600.0, 43_200.0
"""How long a host is waited for: where somebody is looking, and where nobody is."""

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGO = re.compile(r"(?:[0-9]+[smhdw])+")
_DAY_ONLY = re.compile(r"[0-9]{4}-?[0-9]{2}-?[0-9]{2}")
_DAYS = {"today": 0, "yesterday": 1}
_HINT = "ISO-8601 (2026-11-24, 2026-11-24T09:30, 2026-11-24T09:30-05:00), 8h, 2d, now, today or yesterday."


def duration(text: str) -> timedelta | None:
    """``8h``, ``1d12h``; None where it is no duration."""
    if not _AGO.fullmatch(text):
        return None
    parts = {_UNITS[unit]: 0 for _, unit in re.findall(r"([0-9]+)([smhdw])", text)}
    for number, unit in re.findall(r"([0-9]+)([smhdw])", text):
        parts[_UNITS[unit]] += int(number)
    try:
        return timedelta(**parts)
    except OverflowError:
        return None


def patience(text: str | None, otherwise: float) -> float:
    """The seconds of a ``--wait``, or ``otherwise`` where none was given. Raises InvalidValue."""
    if text is None:
        return otherwise
    said = duration(text.strip())
    if said is None:
        raise InvalidValue(f"--wait {text[:40]!r} is no duration", hint="For example: --wait 30s, 10m or 12h")
    return said.total_seconds()


def moment(text: str, now: datetime) -> tuple[datetime, bool]:
    """The moment that is meant, aware UTC, and whether a local time had to be taken for it.

    ``now`` is aware. Raises InvalidValue.
    """
    text = text.strip()
    ago = duration(text)
    try:
        if ago is not None:
            return now.astimezone(UTC) - ago, False
        if text == "now":
            return now.astimezone(UTC), False
        if text in _DAYS:
            day = now.astimezone() - timedelta(days=_DAYS[text])
            return local(datetime(day.year, day.month, day.day)), True
        parsed = datetime.fromisoformat(text)
        return (local(parsed), True) if parsed.tzinfo is None else (parsed.astimezone(UTC), False)
    except (ValueError, OverflowError):
        raise InvalidValue(f"{text[:80]!r} is no time", hint=_HINT) from None


def local_moment(text: str) -> datetime | None:
    """The moment in UTC of a day and time without a zone; None for anything else. Raises InvalidValue."""
    try:
        parsed = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return None if parsed.tzinfo is not None or _DAY_ONLY.fullmatch(text.strip()) else local(parsed)


def local(naive: datetime) -> datetime:
    """A local time in UTC. Raises InvalidValue where the clocks make it ambiguous or leave it out."""
    first, second = (naive.replace(fold=fold).astimezone() for fold in (0, 1))
    if first.utcoffset() == second.utcoffset():
        return first.astimezone(UTC)
    said = naive.isoformat(timespec="minutes" if naive.second == 0 else "seconds")
    there = first.astimezone(UTC).astimezone().replace(tzinfo=None) == naive
    if there:
        raise InvalidValue(
            f"{said} happens twice here: the clocks were put back",
            hint=f"Say which: {said}{_offset(first)} or {said}{_offset(second)}",
        )
    raise InvalidValue(
        f"{said} does not exist here: the clocks were put forward",
        hint=f"Give an offset: {said}{_offset(first)} or {said}{_offset(second)}",
    )


def _offset(aware: datetime) -> str:
    text = aware.strftime("%z")
    return f"{text[:3]}:{text[3:5]}"
