"""What is asked for: an operation before it runs, and how to begin it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import orjson

from ktrdr_ops.core.attempt import PATIENCE_SECONDS
from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.core.events import Json
from ktrdr_ops.core.progress import GenericProgressState

ProgressCallback = Callable[[GenericProgressState], None]

_ID = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
_MAX_ID = 120


@dataclass
class AsyncOperation:
    """A generic operation, before and while it runs; it holds no live state.

    ``operation_id`` is the readable beginning; the function is given a copy with the whole id. ``key`` says what it
    works on (default: the readable id), ``parameters`` what it was asked (default: the context); a start with an
    equal key and equal parameters goes on with an attempt that ended without a result. ``outlives``: what it starts
    elsewhere may go on when its process is gone, so that a cancel without its word is not confirmed.
    """

    operation_id: str
    operation_type: str
    total_steps: int
    estimated_duration: timedelta | None = None
    context: dict[str, Any] = field(default_factory=dict)
    key: str | None = None
    parameters: dict[str, Any] | None = None
    parent_id: str | None = None
    outlives: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How to begin: ``fresh`` starts anew, ``resume`` names the operation to go on with, ``steal`` takes it over;
    ``after`` resumes only if this is still its last attempt. ``wait``: seconds that it waits for a host that is absent
    or busy, each time."""

    fresh: bool = False
    resume: str | None = None
    steal: bool = False
    reason: str = "resumed"
    after: int | None = None
    wait: float = PATIENCE_SECONDS


def digest(parameters: Mapping[str, Json]) -> str:
    """Equal parameters have equal digests: the SHA-256 of their JSON with sorted keys."""
    return hashlib.sha256(orjson.dumps(parameters, option=orjson.OPT_SORT_KEYS)).hexdigest()


def checked(operation: AsyncOperation) -> AsyncOperation:
    """A copy of its own. Raises InvalidValue for an id with other characters than ``A-Z a-z 0-9 _ . -``, or too
    long.
    """
    if not operation.operation_id or not set(operation.operation_id) <= _ID or len(operation.operation_id) > _MAX_ID:
        raise InvalidValue(
            f"{operation.operation_id[:60]!r} cannot be the beginning of an operation id",
            hint=f"At most {_MAX_ID} of the characters A-Z a-z 0-9 _ . -",
        )
    if operation.total_steps < 1:
        raise InvalidValue(f"an operation has at least one step, not {operation.total_steps}")
    return replace(operation, context=dict(operation.context))
