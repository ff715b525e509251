"""An operation type made of one function: ``def build(op, symbol)``, plain or async.

Its parameters are the function's own, and ``op`` is the attempt as the function sees it: ``Op`` waits (a plain function
runs in a thread), ``AsyncOp`` is awaited. What both keep for later attempts is one checkpoint: the marks of the tracks,
and the value that the function gave.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import string
import sys
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar, cast

import orjson

from ktrdr_ops.core.artifacts import Artifact, Publication
from ktrdr_ops.core.calling import called, is_async
from ktrdr_ops.core.cancellation import CancellationToken
from ktrdr_ops.core.domain import OperationProvider
from ktrdr_ops.core.ending import summary
from ktrdr_ops.core.errors import InvalidValue, OperationCancelledException
from ktrdr_ops.core.events import Checkpointed, Json
from ktrdr_ops.core.journal.decisions import Say, draft
from ktrdr_ops.core.operation import AsyncOperation, digest
from ktrdr_ops.core.progress import PlainRenderer
from ktrdr_ops.core.recognising import site_of
from ktrdr_ops.core.redaction import strict
from ktrdr_ops.core.tracking import NOTHING, Track, Tracks, marks_of, task_or_thread

if TYPE_CHECKING:
    from ktrdr_ops.core.attempt import Attempt
    from ktrdr_ops.core.progress import GenericProgressManager, ProgressRenderer

T = TypeVar("T")

_INLINE_BYTES = 4 * 1024
"""A larger value is kept as an object, since each checkpoint of a track repeats it."""
_SHOWN = 200
"""A parameter that is longer is kept, and not shown beside the progress."""
_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,59}")
_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9_.-]+")
_TAKEN = frozenset({"self", "operation_type", "progress_callback", "how"})


class _Seen:
    """What is the same for both kinds of function."""

    def __init__(self, attempt: Attempt) -> None:
        self.operation_id = attempt.operation.operation_id
        self.attempt = attempt.number
        self.token: CancellationToken = attempt.token
        self._attempt = attempt
        self._loop = asyncio.get_running_loop()
        self._loops_thread = threading.get_ident()
        fact = attempt.last_checkpoint or Checkpointed(value={})
        kept = fact.value if isinstance(fact.value, dict) else {}
        self._kept: Json = orjson.loads(attempt.objects.read(fact.object)) if fact.object else kept.get("value")
        self._object = fact.object
        self.tracks = Tracks(
            marks_of(kept),
            save=lambda marks: attempt.checkpoint_soon(self._checkpoint(marks)),
            tell=self._tell,
            check=lambda: self.token.check_cancellation_point(self.operation_id),
            later=lambda late: self._loop.call_soon_threadsafe(_unless_cancelled, late),
        )

    def track(self, items: Iterable[T], name: str | None = None) -> Track[T]:
        """The items, for one ``for`` or ``async for``: progress, a cancel point at each, and a checkpoint, so that a
        later attempt passes over those that were completed.

        An item is completed when the loop asks for the next one: what its body hands to a pool or a task must be
        awaited in the body. Only the items go on where they were, not what stands beside them: instead of ``zip(a, b)``
        track ``list(zip(a, b))``. They are recognised by their repr and what they hold, the track by its name or the
        line that calls this. Raises InvalidValue for a generator, a set or a text, and where the items that an earlier
        attempt completed are not the first ones any more.
        """
        return Track(self.tracks, items, name, site_of(sys._getframe(1)))

    def progress(
        self,
        message: str,
        items_processed: int | None = None,
        total_items: int | None = None,
        *,
        step: int | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        """Say how far it is, in the current step unless another is named; a cancel point too."""
        manager, steps = self._attempt.progress, self._attempt.operation.total_steps
        state = manager.state
        current = state.current_step if state is not None else 0
        step = max(current, 1) if step is None else step
        if items_processed is None:
            items_processed = state.items_processed if state is not None and step == current else 0
        span = (100 * (step - 1) / steps, 100 * step / steps)
        manager.update_progress(step, message, items_processed, context, total_items=total_items, step_range=span)

    def restore(self) -> Json:
        """The value of the last ``checkpoint``, of this or an earlier attempt; None where there is none."""
        return self._kept

    def close(self) -> None:
        """The function has ended: what it completed is queued, and its last state told."""
        untold = self.tracks.close()
        if untold is not None:
            _unless_cancelled(lambda: self._tell(untold))

    def _checkpoint(self, marks: dict[str, Json]) -> Checkpointed:
        value: dict[str, Json] = {"tracks": marks}
        if self._object is None and self._kept is not None:
            value["value"] = self._kept
        return Checkpointed(value=value, object=self._object)

    def _keep(self, value: Json) -> Future[Any]:
        """Submitted under the lock: a checkpoint of a track must not overtake it with the former value."""
        stored = strict(value, "checkpoint", limit=1 << 40, secrets=False)
        content = orjson.dumps(stored)
        kept_as = self._attempt.objects.put(content) if len(content) > _INLINE_BYTES else None
        with self.tracks.lock:
            self._kept, self._object = stored, kept_as
            fact = self._checkpoint(self.tracks.marks())
            return self._attempt.journal.submit(Say((draft(self.operation_id, self.attempt, fact),)))

    def _new_here(self, name: str) -> set[str]:
        """What this very task, or the function's thread, has done; the name belongs into it when the step is done.

        Raises InvalidValue where it is there already, as in a loop that gives all of its items one name. Others that
        come to the same step are given its value: tasks, and the threads of a pool, which do one job after another.
        """
        whose, me = _STEPPED.get(), task_or_thread()
        if whose is None or whose[0] is not self or whose[1] is not me:
            whose = (self, me, set())
            if self.tracks.are_here:
                _STEPPED.set(whose)
        if name in whose[2]:
            raise InvalidValue(
                f"the step {name.partition(' [')[0][:80]!r} was done already in this attempt",
                hint="Each needs a name of its own, as in op.step(f'download {month}', …).",
            )
        return whose[2]

    async def _publish(self, kind: str, key: str, content: bytes, metadata: Mapping[str, Json]) -> Artifact:
        sha = await asyncio.to_thread(self._attempt.objects.put, content)
        published = Publication(kind=kind, key=key, object=sha, sha256=sha, size=len(content), metadata=dict(metadata))
        return (await self._attempt.publish(published))[0]

    def _tell(self, track: Track[Any]) -> None:
        """The percentage is the outermost track's, with what the inner ones have of its current item."""
        share, words = track.share, []
        outermost: Track[Any] = track
        around: Track[Any] | None = track
        while around is not None:
            if around.item is not NOTHING:
                words.append(_label(around))
            if around is not track:
                share = (around.tally.count + share) / max(around.total, 1)
            outermost, around = around, around.outer
        steps = self._attempt.operation.total_steps
        step = min(outermost.number, steps)
        at = 100 * (step - 1 + share) / steps
        done, total = outermost.tally.count, outermost.total
        message = " · ".join(reversed(words)) or f"{done:,} of {total:,} done"
        self._attempt.progress.update_progress(step, message, done, total_items=total, step_range=(at, at))


_STEPPED: ContextVar[tuple[_Seen, object, set[str]] | None] = ContextVar("ktrdr_ops_steps", default=None)


def _unless_cancelled(tell: Callable[[], None]) -> None:
    """The function itself is told so at its next item."""
    with suppress(OperationCancelledException):
        tell()


def _label(track: Track[Any]) -> str:
    text = str(track.item)[:60]
    return f"{track.name} {text}" if track.name else text


class Op(_Seen):
    """The attempt as a plain function sees it. May be used from any thread but the event loop's."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt)
        self._steps: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def step(self, name: str, func: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Do a named piece of work once, ever: a later attempt is given the value that the journal holds.

        In an item of a track it is that item's own. The value must be JSON. Raises InvalidValue when it is not, or is
        larger than an event (64 KiB), and when this thread did a step of that name, in the same item, in this attempt.
        """
        name = self.tracks.of_item(name)
        done = self._new_here(name)
        with self.tracks.lock:
            alone = self._steps[name]
        with alone:
            if name not in self._attempt.steps:
                self.token.check_cancellation_point(self.operation_id)
                self._wait(self._attempt.complete_step(name, cast("Json", func(*arguments, **named))))
            done.add(name)
            return cast("T", self._attempt.steps[name])

    def checkpoint(self, value: Json) -> None:
        """Keep a value that a later attempt goes on from. Durable on return."""
        self._wait(self._attempt.journal.acknowledged(self._keep(value)))

    def publish(self, kind: str, key: str, content: bytes, **metadata: Json) -> Artifact:
        """Keep content in the object store, and say so. Durable on return."""
        return self._wait(self._publish(kind, key, content, metadata))

    def _wait(self, statement: Coroutine[Any, Any, T]) -> T:
        if threading.get_ident() == self._loops_thread:  # it would wait for itself
            statement.close()
            raise InvalidValue("a plain function waits in a thread of its own", hint="Make it async def, and await op.")
        return asyncio.run_coroutine_threadsafe(statement, self._loop).result()


class AsyncOp(_Seen):
    """The attempt as an async function sees it."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt)
        self._steps: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def step(self, name: str, func: Callable[..., T | Awaitable[T]], *arguments: Any, **named: Any) -> T:
        """As ``Op.step``, for each task; the function may be async."""
        name = self.tracks.of_item(name)
        done = self._new_here(name)
        async with self._steps[name]:
            value = await self._attempt.step(name, lambda: func(*arguments, **named))
            done.add(name)
            return value

    async def checkpoint(self, value: Json) -> None:
        """As ``Op.checkpoint``."""
        await self._attempt.journal.acknowledged(self._keep(value))

    async def publish(self, kind: str, key: str, content: bytes, **metadata: Json) -> Artifact:
        """As ``Op.publish``."""
        return await self._publish(kind, key, content, metadata)


class FunctionProvider(OperationProvider):
    """Serves one function as an operation type. ``key`` is a format string over its parameters, default all of them.

    Raises InvalidValue for a function that cannot be served: its parameters have names, their defaults are JSON, and
    it is no generator.
    """

    def __init__(self, operation_type: str, func: Callable[..., Any], *, key: str | None, steps: int) -> None:
        self.operation_type = operation_type  # type: ignore[misc]  # one provider for each function, not a class
        self._func = func
        self._is_async = is_async(func)
        self._key = key
        self._steps = steps
        if not _TYPE.fullmatch(operation_type):
            raise InvalidValue(f"{operation_type[:80]!r} is no operation type", hint="Letters, digits and _, as in a_b")
        if steps < 1:
            raise InvalidValue(f"an operation has at least one step, not {steps}")
        self._parameters = _parameters(func)
        unknown = _fields(key or "") - set(self._parameters)
        if unknown:
            raise InvalidValue(f"the key {key!r} names what {_name(func)} does not take: {', '.join(sorted(unknown))}")

    def validate(self, raw: Mapping[str, Any]) -> dict[str, Json]:
        """Exactly the function's parameters, as JSON."""
        takes = ", ".join(str(parameter) for parameter in self._parameters.values()) or "nothing"
        unknown = [name for name in raw if name not in self._parameters]
        if unknown:
            raise InvalidValue(f"{self.operation_type} does not take {', '.join(unknown)}", hint=f"It takes {takes}.")
        values = {name: raw.get(name, parameter.default) for name, parameter in self._parameters.items()}
        missing = [name for name, value in values.items() if value is inspect.Parameter.empty]
        if missing:
            raise InvalidValue(f"{self.operation_type} needs {', '.join(missing)}", hint=f"It takes {takes}.")
        return {name: _as_json(name, value) for name, value in values.items()}

    def operation(self, parameters: Mapping[str, Json]) -> AsyncOperation:
        """Known by its type and what it works on."""
        of = self._of(parameters)
        readable = _NOT_IN_IDS.sub("-", f"{self.operation_type}_{of}").strip("-_")[:100]
        return AsyncOperation(
            operation_id=readable,
            operation_type=self.operation_type,
            total_steps=self._steps,
            context={name: value for name, value in parameters.items() if len(str(value)) <= _SHOWN},
            key=f"{self.operation_type}:{of}" if of else self.operation_type,
            parameters=dict(parameters),
        )

    def _of(self, parameters: Mapping[str, Json]) -> str:
        if self._key is None:
            of = ",".join(f"{name}={value}" for name, value in parameters.items())
            return of if len(of) <= 60 else digest(parameters)[:16]
        try:
            return self._key.format_map(parameters)
        except (LookupError, ValueError, AttributeError, TypeError) as error:
            raise InvalidValue(f"the key {self._key!r} cannot be made of {dict(parameters)!r}: {error}") from None

    async def perform(
        self,
        operation: AsyncOperation,
        progress: GenericProgressManager,
        token: CancellationToken,
        attempt: Attempt,
    ) -> Any:
        """Call the function: a plain one in a thread, an async one in the loop."""
        op = AsyncOp(attempt) if self._is_async else Op(attempt)
        given = operation.parameters or {}
        op.tracks.enter()
        try:
            if self._is_async:
                return await self._func(op, **given)
            return await called(lambda operation, progress: self._func(op, **given), attempt)
        finally:
            op.close()

    def renderer(self) -> ProgressRenderer:
        """Its messages as they are."""
        return PlainRenderer()

    def summarise(self, value: Any) -> dict[str, Json]:
        """A mapping as it is, another value as ``value``; of what is not JSON only the type."""
        kept = summary(value, None)
        return kept if isinstance(kept, dict) else {"value": kept}


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", type(func).__name__)


def _parameters(func: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What it takes behind ``op``."""
    if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
        raise InvalidValue(f"{_name(func)} is a generator", hint="Loop over op.track(…) in it instead of yielding.")
    takes = list(inspect.signature(func).parameters.values())
    if not takes or takes[0].kind not in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
        raise InvalidValue(f"{_name(func)} does not take op", hint="def build(op, …): …")
    for parameter in takes[1:]:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise InvalidValue(f"{_name(func)} takes {parameter}, but each parameter needs a name of its own")
        if parameter.name in _TAKEN:
            raise InvalidValue(f"{parameter.name} is app.run's own: give that parameter another name")
        if parameter.default is not parameter.empty:
            _as_json(parameter.name, parameter.default)
    return {parameter.name: parameter for parameter in takes[1:]}


def _fields(key: str) -> set[str]:
    """The parameters that a format string names."""
    try:
        named = [field for _, field, _, _ in string.Formatter().parse(key) if field is not None]
    except ValueError as error:
        raise InvalidValue(f"the key {key!r} is no format string: {error}") from None
    return {re.split(r"[.\[]", field)[0] for field in named}


def _as_json(name: str, value: Any) -> Json:
    """The value as every later attempt gets it."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidValue(
            f"{name}: {error}", hint="Parameters are JSON: text, numbers, true and false, lists and mappings."
        ) from None
