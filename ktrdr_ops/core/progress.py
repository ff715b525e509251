"""How far an operation is, in a form that knows nothing of what it works on.

    update → check point → new state → sink (the journal: raw) → callback (a screen: a rendered copy)

The manager holds one state, the latest. The percentage never falls within an operation. What is left to go is estimated
from the pace of the current step once that shows one, else from the pace since the start: a resumed attempt passes over
what is done already, and must not take that for its speed. Replay shows recorded states through the same manager and
renderers.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from threading import RLock
from typing import Any, Protocol

from ktrdr_ops.core.cancellation import CancellationToken
from ktrdr_ops.core.clock import Clock, utc_now
from ktrdr_ops.core.errors import InvalidValue

ESTIMATE_AFTER_SECONDS = 3.0
ESTIMATE_AFTER_PERCENT = 2.0
"""No estimate before one of the two has gone."""
_ESTIMATE_EVERY = timedelta(milliseconds=50)
_ZERO = timedelta()
_LONGEST_ESTIMATE = 10 * 365 * 86_400.0
_PLAIN = frozenset({str, int, float, bool, type(None)})

_log = logging.getLogger(__name__)


class TrackedOperation(Protocol):
    """What the manager reads of an operation when it starts."""

    @property
    def operation_id(self) -> str: ...
    @property
    def operation_type(self) -> str: ...
    @property
    def total_steps(self) -> int: ...
    @property
    def estimated_duration(self) -> timedelta | None: ...
    @property
    def context(self) -> Mapping[str, Any]: ...


@dataclass
class GenericProgressState:
    """How far one operation is. ``percentage`` is 0 to 100, ``start_time`` aware UTC, ``current_step`` from 1 (0: none
    has begun). ``message`` is rendered in what a callback is given, and raw everywhere else."""

    operation_id: str
    current_step: int
    total_steps: int
    percentage: float
    message: str
    start_time: datetime
    estimated_remaining: timedelta | None = None
    items_processed: int = 0
    total_items: int | None = None
    context: dict[str, Any] = field(default_factory=dict)


ProgressCallback = Callable[[GenericProgressState], None]


def format_duration(duration: timedelta | float) -> str:
    """Seconds for people, at most two units: ``30s``, ``1m 30s``, ``2m``, ``1h``, ``1h 2m``. Negative is ``0s``."""
    seconds = int(duration.total_seconds() if isinstance(duration, timedelta) else duration)
    if seconds < 60:
        return f"{max(seconds, 0)}s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m {seconds}s" if seconds else f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes}m" if minutes else f"{hours}h"


def step_part(state: GenericProgressState) -> str:
    """``[3/5]``; empty before the first step."""
    return f"[{state.current_step}/{state.total_steps}]" if state.current_step > 0 and state.total_steps > 0 else ""


def items_part(state: GenericProgressState) -> str:
    """``(2400/4000 items)``; empty without items or without their number."""
    return f"({state.items_processed}/{state.total_items} items)" if state.items_processed and state.total_items else ""


def eta_part(state: GenericProgressState) -> str:
    """``ETA: 45s``; empty without an estimate, and with less than a second to go."""
    left = state.estimated_remaining
    return f"ETA: {format_duration(left)}" if left is not None and left.total_seconds() >= 1 else ""


def with_parts(message: str, *parts: str) -> str:
    """The message followed by each part that is not empty and that it does not hold already."""
    for part in parts:
        if part and part not in message:
            message = f"{message} {part}" if message else part
    return message


def with_progress(message: str, state: GenericProgressState) -> str:
    """``{message} [3/5] (2400/4000 items) ETA: 45s``, missing parts left out; on its own result it adds nothing."""
    return with_parts(message, step_part(state), items_part(state), eta_part(state))


class ProgressRenderer(ABC):
    """In what words a domain tells its progress. Pure: no I/O, no estimating, no state of its own."""

    @abstractmethod
    def render_progress_message(self, state: GenericProgressState) -> str:
        """The message that people are shown for a state, whose own message is raw."""

    def render_step_detail(self, state: GenericProgressState) -> str:
        """More about the current step; empty where there is nothing to add."""
        return ""


class PlainRenderer(ProgressRenderer):
    """The message as it is, for operation types whose words nobody here knows."""

    def render_progress_message(self, state: GenericProgressState) -> str:
        """The state's own message."""
        return state.message


class GenericProgressManager:
    """Tracks one operation at a time and tells its callback, once for each call, in the calling thread.

    ``callback`` gets independent copies with the rendered message; ``sink`` gets the live state with the raw message,
    under a lock, in the order of the changes, and must take what it needs before it returns. A callback or renderer
    that raises is logged once and breaks nothing; what the sink raises goes to the caller. ``update_progress`` may be
    called from any thread.
    """

    def __init__(
        self,
        callback: ProgressCallback | None = None,
        renderer: ProgressRenderer | None = None,
        *,
        sink: ProgressCallback | None = None,
        token: CancellationToken | None = None,
        clock: Clock = utc_now,
    ) -> None:
        self.callback = callback
        self.renderer = renderer
        self._sink = sink
        self._token = token
        self._clock = clock
        self._lock = RLock()
        self._live: GenericProgressState | None = None
        self._base: dict[str, Any] = {}
        self._step_since: datetime | None = None
        self._estimated_at: datetime | None = None
        self._step_from = 0.0
        self._expected: timedelta | None = None
        self._waits = 0
        self._waiting_since: datetime | None = None
        self._waited = _ZERO
        self._complained: set[str] = set()

    @property
    def state(self) -> GenericProgressState | None:
        """A copy of the latest state, its message raw; None before the first operation."""
        with self._lock:
            return None if self._live is None else _copy(self._live)

    def bound(
        self,
        *,
        renderer: ProgressRenderer | None = None,
        sink: ProgressCallback | None = None,
        token: CancellationToken | None = None,
        clock: Clock | None = None,
        callback: ProgressCallback | None = None,
    ) -> GenericProgressManager:
        """A fresh manager for one operation, with this one's parts where none are given and none of its state."""
        return GenericProgressManager(
            callback or self.callback,
            renderer or self.renderer,
            sink=sink or self._sink,
            token=token or self._token,
            clock=clock or self._clock,
        )

    def start_operation(self, operation: TrackedOperation) -> None:
        """Begin to track: 0 %, ``Starting {type}``. The callback is told, the sink is not."""
        with self._lock:
            self._base = dict(operation.context)
            self._step_since, self._step_from, self._estimated_at = None, 0.0, None
            self._expected, self._waited = operation.estimated_duration, _ZERO
            self._live = GenericProgressState(
                operation_id=operation.operation_id,
                current_step=0,
                total_steps=self._whole(operation.total_steps, 0),
                percentage=0.0,
                message="Starting " + operation.operation_type.replace("_", " "),
                start_time=self._clock(),
                context=self._base,
            )
        self._tell()

    def update_progress(
        self,
        current_step: int,
        message: str,
        items_processed: int = 0,
        context: Mapping[str, Any] | None = None,
        *,
        total_items: int | None = None,
        step_range: tuple[float, float] | None = None,
    ) -> None:
        """Say how far it is; raises OperationCancelledException when it was told to stop.

        The percentage is ``current_step`` of the total; with ``step_range`` (the percentages where this step begins and
        ends) and ``total_items`` it goes on within the step. It never falls, and stays within 0 to 100. ``total_items``
        holds until it is changed or another step begins. ``context`` is laid over the operation's own, for this update
        only. No value makes it raise: what has no meaning leaves the former value. Raises InvalidValue before
        ``start_operation``.
        """
        token = self._token
        if token is not None:
            token.check_cancellation_point(token.operation_id or "operation")
        told: GenericProgressState | None = None
        with self._lock:
            state = self._started()
            before = state.current_step
            step = self._whole(current_step, before)
            if total_items is not None:
                state.total_items = self._whole(total_items, state.total_items)
            elif step != before:
                state.total_items = None
            state.current_step = step
            state.items_processed = self._whole(items_processed, state.items_processed)
            state.message = message if type(message) is str else self._text(message)
            state.context = self._base if context is None else self._merged(context)
            percentage = self._percentage(state, step_range)
            if percentage > state.percentage:
                state.percentage = percentage
            self._estimate(state, step != before)
            if self._sink is not None:
                self._sink(state)
            if self.callback is not None:
                told = _copy(state)
        if told is not None:
            self._show(told)

    def wait_started(self) -> None:
        """It waits for something outside from now on: that is no time in which it works. Waits may overlap."""
        with self._lock:
            self._waits += 1
            if self._waits == 1:
                self._waiting_since = self._clock()

    def wait_ended(self) -> None:
        """One of the waits is over."""
        with self._lock:
            self._waits -= 1
            if self._waits == 0 and self._waiting_since is not None:
                self._waited += max(self._clock() - self._waiting_since, _ZERO)

    def complete_operation(self) -> None:
        """100 %, all steps, ``Operation completed``. The callback is told, the sink is not."""
        with self._lock:
            state = self._started()
            state.percentage, state.current_step = 100.0, state.total_steps
            self._end(state, "Operation completed")
        self._tell()

    def end_operation(self, message: str) -> None:
        """It ended otherwise: the percentage stays, nothing is left to go. The callback is told, the sink is not."""
        with self._lock:
            self._end(self._started(), message)
        self._tell()

    def show(self, state: GenericProgressState) -> None:
        """Replay: take a recorded state, its message raw, as it is, and tell the callback. No sink, no clock."""
        with self._lock:
            self._live = _copy(state)
            self._base = self._live.context
        self._tell()

    def _started(self) -> GenericProgressState:
        if self._live is None:
            raise InvalidValue("no operation has been started", hint="Call start_operation first.")
        return self._live

    @staticmethod
    def _end(state: GenericProgressState, message: str) -> None:
        state.message = message
        state.estimated_remaining = None

    def _percentage(self, state: GenericProgressState, step_range: tuple[float, float] | None) -> float:
        """Between 0 and 100. What cannot be computed is 0, which moves nothing."""
        try:
            if step_range is not None:
                begin, end = step_range
                share = state.items_processed / state.total_items if state.total_items else 0.0
                percentage = float(begin + (end - begin) * min(share, 1.0))
            elif state.total_steps:
                percentage = 100 * state.current_step / state.total_steps
            else:
                return 0.0
        except Exception as error:  # a number of any kind may be given, and none may break the operation
            self._complain("step_range", "a percentage could not be computed: %r", error)
            return 0.0
        return min(percentage, 100.0) if percentage > 0 else 0.0

    def _estimate(self, state: GenericProgressState, new_step: bool) -> None:
        now = self._clock() - self._waited
        if new_step or self._step_since is None:
            self._step_since, self._step_from = now, state.percentage
        elif self._estimated_at is not None and _ZERO <= now - self._estimated_at < _ESTIMATE_EVERY:
            return  # a tight loop is not told anything new by another estimate
        self._estimated_at = now
        state.estimated_remaining = (
            _at_the_pace_since(self._step_since, self._step_from, now, state.percentage)
            or _at_the_pace_since(state.start_time, 0.0, now, state.percentage)
            or self._as_expected(state, now)
        )

    def _as_expected(self, state: GenericProgressState, now: datetime) -> timedelta | None:
        """What past runs leave to go, until there is a pace of its own."""
        return None if self._expected is None else max(self._expected - (now - state.start_time), _ZERO)

    def _merged(self, context: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return {**self._base, **context}
        except Exception as error:  # no value of a context may break the operation
            self._complain("context", "a progress context is not a mapping: %r", error)
            return self._base

    def _whole(self, value: Any, former: Any) -> Any:
        if type(value) is int:
            return value if value > 0 else 0
        try:
            return max(int(value), 0)
        except Exception as error:  # whatever int() of a stranger's value raises: it has no meaning as a number
            self._complain("number", "a progress number has no meaning: %r", error)
            return former

    def _text(self, message: object) -> str:
        try:
            return str(message)
        except Exception as error:  # whatever str() of a stranger's value raises
            self._complain("message", "a progress message is no text: %r", error)
            return f"<{type(message).__name__}>"

    def _tell(self) -> None:
        if self.callback is not None and (state := self.state) is not None:
            self._show(state)

    def _show(self, state: GenericProgressState) -> None:
        """Render the copy and give it to the callback. Outside the lock: a callback may wait for other threads."""
        callback = self.callback
        if callback is None:
            return
        if self.renderer is not None:
            try:
                state.message = self.renderer.render_progress_message(state)
            except Exception as error:  # what is shown must not break what is done
                self._complain("renderer", "the progress renderer of %s failed: %r", state.operation_id, error)
        try:
            callback(state)
        except Exception as error:  # a screen that is gone must not break it either
            self._complain("callback", "the progress callback of %s failed: %r", state.operation_id, error)

    def _complain(self, what: str, text: str, *arguments: object) -> None:
        if what not in self._complained:
            self._complained.add(what)
            _log.warning(text, *arguments, exc_info=True)


def _at_the_pace_since(since: datetime, begin: float, now: datetime, percentage: float) -> timedelta | None:
    gained = percentage - begin
    gone = (now - since).total_seconds()
    if gained <= 0 or gone <= 0 or (gone < ESTIMATE_AFTER_SECONDS and gained < ESTIMATE_AFTER_PERCENT):
        return None
    left = gone * (100.0 - percentage) / gained
    return timedelta(seconds=left) if left < _LONGEST_ESTIMATE else None


def _copy(state: GenericProgressState) -> GenericProgressState:
    """A copy that later updates do not change."""
    return GenericProgressState(
        state.operation_id,
        state.current_step,
        state.total_steps,
        state.percentage,
        state.message,
        state.start_time,
        state.estimated_remaining,
        state.items_processed,
        state.total_items,
        {key: value if type(value) in _PLAIN else _detached(value) for key, value in state.context.items()},
    )


def _detached(value: Any) -> Any:
    try:
        return deepcopy(value)
    except Exception:  # a lock, a generator, a handle: it cannot change into another state's value either
        return value
