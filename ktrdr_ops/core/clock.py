"""Times: integer microseconds UTC inside, ISO-8601 with an offset outside. The clock is always a parameter."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Clock = Callable[[], datetime]

_ORIGIN = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def utc_now() -> datetime:
    """The system's time, aware, UTC."""
    return datetime.now(UTC)


def micros(moment: datetime) -> int:
    """Microseconds since 1970-01-01 UTC of an aware moment."""
    return (moment - _ORIGIN) // _MICROSECOND


def in_micros(clock: Clock) -> Callable[[], int]:
    """The clock in microseconds; the system's without the detour over a datetime, which each event would pay for."""
    return _system_micros if clock is utc_now else lambda: micros(clock())


def _system_micros() -> int:
    return time.time_ns() // 1000


def moment(at: int) -> datetime:
    """The aware UTC datetime of microseconds since 1970-01-01 UTC."""
    return _ORIGIN + timedelta(microseconds=at)


def iso(at: int | None) -> str | None:
    """``2026-11-24T12:00:00.000000+00:00``; None stays None."""
    return None if at is None else moment(at).isoformat(timespec="microseconds")
