"""One attempt at an operation: what it states, and what earlier attempts left for it.

Every statement carries the attempt's number. When another process has taken the operation over, the journal refuses it
and the attempt is told to stop.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import orjson

from ktrdr_ops.core.artifacts import Artifact, ObjectStore, Publication
from ktrdr_ops.core.cancellation import CancellationToken
from ktrdr_ops.core.clock import micros
from ktrdr_ops.core.errors import JournalStopped, KtrdrOpsError, OwnershipLost
from ktrdr_ops.core.events import (
    ArtifactPublished,
    Checkpointed,
    Fact,
    Json,
    Progressed,
    RequestRetried,
    StepCompleted,
    WaitEnded,
    WaitStarted,
)
from ktrdr_ops.core.journal import history
from ktrdr_ops.core.journal.decisions import Claim, Draft, Say, draft
from ktrdr_ops.core.journal.history import Catalogue
from ktrdr_ops.core.journal.journal import Journal
from ktrdr_ops.core.progress import GenericProgressManager, GenericProgressState
from ktrdr_ops.core.redaction import CHECKPOINT_BYTES, EVENT_BYTES, strict

if TYPE_CHECKING:
    from ktrdr_ops.core.host_service import Retry
    from ktrdr_ops.core.orchestration import AsyncOperation

T = TypeVar("T")

RunChild = Callable[..., Awaitable[Json]]

GRACE_SECONDS = 0.25
PATIENCE_SECONDS = 600.0
INPUTS = "inputs"
"""The step that says what the operation was made from."""


class Attempt:
    """One process's try at an operation. Operation functions get it as their fourth argument.

    ``grace_seconds``: how long the function may take to stop by itself after a cancel before its task is cancelled.
    ``patience``: seconds that it waits for a host that is absent or busy, each time. ``goes_on_elsewhere``: whether
    what it, or an earlier attempt, started on a host may go on when this one ends: a cancel is then not confirmed. The
    function of an operation that ``outlives`` says so as it learns it.
    """

    def __init__(
        self,
        operation: AsyncOperation,
        claim: Claim,
        journal: Journal,
        token: CancellationToken,
        objects: ObjectStore,
        run_child: RunChild,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self.operation = operation
        self.number = claim.attempt
        self.journal = journal
        self.token = token
        self.objects = objects
        self.catalogue = Catalogue(journal)
        self.progress: GenericProgressManager
        self._steps: dict[str, Json] = {}
        self._checkpoint: Checkpointed | None = None
        self._run_child = run_child
        self.grace_seconds = GRACE_SECONDS
        self.patience = patience
        self.goes_on_elsewhere = operation.outlives and claim.attempt > 1

    async def take_over(self, claim: Claim) -> None:
        """Learn what earlier attempts left: the values of completed steps, and the last checkpoint."""
        if claim.resumed:
            self._steps = await history.steps(self.journal, claim.operation_id)
            self._checkpoint = await history.last_checkpoint(self.journal, claim.operation_id)

    @property
    def steps(self) -> Mapping[str, Json]:
        """The values of the steps completed by this or an earlier attempt, by name."""
        return MappingProxyType(self._steps)

    def now(self) -> datetime:
        """The journal's clock, UTC."""
        return self.journal.clock()

    async def step(self, name: str, func: Callable[[], T | Awaitable[T]]) -> T:
        """Do a named piece of work once, ever: a later attempt is given the value that the journal holds.

        The value must be JSON. Raises InvalidValue when it is not, or is larger than an event (64 KiB).
        """
        if name not in self._steps:
            self.token.check_cancellation_point(self.operation.operation_id)
            value = func()
            if inspect.isawaitable(value):
                value = await cast("Awaitable[T]", value)
            await self.complete_step(name, value)
        return cast("T", self._steps[name])

    async def complete_step(self, name: str, value: Json = None, *, publish: Sequence[Publication] = ()) -> None:
        """Record a step that was done, together with what it published, in one transaction. Durable on return."""
        stored = strict(value, f"step {name}", secrets=False)
        facts = [_published(publication) for publication in publish]
        await self._state(*facts, StepCompleted(name=name, value=stored))
        self._steps[name] = stored

    async def uses(self, *inputs: Mapping[str, Json]) -> None:
        """Record what the operation was made from, once: the step ``inputs``, which lineage walks.

        Each says ``kind`` and ``key``; ``sha256`` (canonical), ``object`` and ``operation_id`` of what published it,
        None where that is not known; and ``evidence``: how it is known that just this was read.
        """
        if INPUTS not in self._steps:
            await self.complete_step(INPUTS, [dict(one) for one in inputs])

    async def publish(self, *publications: Publication) -> list[Artifact]:
        """Record what is in the object store already. Durable on return; raises JournalCorrupt when it is not there."""
        for publication in publications:
            await asyncio.to_thread(self.objects.read, publication.object)
        last = await self._state(*(_published(publication) for publication in publications))
        events = await self.journal.read(self.operation.operation_id, after=last - len(publications), until=last)
        return [history.artifact(event) for event in events]

    async def checkpoint(self, value: Json) -> None:
        """Keep state that a later attempt goes on from. Past 1 MiB it goes to the object store."""
        stored = strict(value, "checkpoint", limit=1 << 40, secrets=False)
        content = orjson.dumps(stored)
        large = len(content) > CHECKPOINT_BYTES - EVENT_BYTES
        fact = Checkpointed(object=self.objects.put(content)) if large else Checkpointed(value=stored)
        await self._state(fact)
        self._checkpoint = fact

    def checkpoint_soon(self, fact: Checkpointed) -> None:
        """Queue a checkpoint: for any thread, never blocks, on disk within 50 ms."""
        self._checkpoint = fact
        self._say(fact)

    @property
    def last_checkpoint(self) -> Checkpointed | None:
        """The last checkpoint as the journal has it; None where there is none."""
        return self._checkpoint

    def restore(self) -> Json:
        """The last checkpoint's value; None where there is none."""
        if self._checkpoint is None:
            return None
        if self._checkpoint.object is not None:
            return orjson.loads(self.objects.read(self._checkpoint.object))
        return self._checkpoint.value

    async def run_child(
        self,
        operation_type: str,
        *,
        progress_callback: Callable[[GenericProgressState], None] | None = None,
        **parameters: Any,
    ) -> Json:
        """Run another operation as a child of this one; gives its journaled result.

        A child that an earlier attempt completed is not run again. Cancelling this operation cancels the child.
        """
        return await self._run_child(self, operation_type, parameters, progress_callback)

    def retried(self, retry: Retry) -> None:
        """Record that a request failed and will be tried again. For any thread; never blocks."""
        self._say(
            RequestRetried(
                service=retry.service,
                method=retry.method,
                path=retry.path,
                attempt=retry.attempt,
                reason=retry.reason[:2000],
                wait_seconds=retry.wait_seconds,
            )
        )

    @asynccontextmanager
    async def waiting(self, reason: str, seconds: float | None = None) -> AsyncIterator[None]:
        """Say that the operation waits for something outside, for about so many seconds."""
        began = time.monotonic()  # the clock may be set while it waits
        until = None if seconds is None else micros(self.now() + timedelta(seconds=seconds))
        self._say(WaitStarted(reason=reason, until=until))
        self.progress.wait_started()
        try:
            yield
        finally:
            self.progress.wait_ended()
            self._say(WaitEnded(reason=reason, seconds=time.monotonic() - began))

    def progressed(self, state: GenericProgressState) -> None:
        """Record a progress update (the progress manager's sink)."""
        base = self.operation.context
        eta = state.estimated_remaining
        self._say(
            Progressed(
                step=state.current_step,
                percentage=state.percentage,
                message=state.message,
                items=state.items_processed,
                total_items=state.total_items,
                eta_seconds=None if eta is None else eta.total_seconds(),
                context={
                    key: value for key, value in state.context.items() if key not in base or base[key] is not value
                },
            )
        )

    async def fence(self) -> None:
        """Raises OwnershipLost where this attempt is over: before what cannot be taken back."""
        own = self.operation.operation_id
        state = await self.journal.state(own)
        if state.attempt != self.number or not state.live:
            raise OwnershipLost(f"attempt {self.number} of {own} is over", operation_id=own, attempt=self.number)

    def is_over(self, error: Exception) -> bool:
        """Whether an error says that this very attempt can state nothing more: it was taken over, or the writer is
        gone. That a child was taken over is the child's affair."""
        if isinstance(error, OwnershipLost):
            lost = (error.details.get("operation_id"), error.details.get("attempt"))
            return lost == (self.operation.operation_id, self.number)
        return isinstance(error, JournalStopped)

    async def end(self, fact: Fact) -> None:
        """State the terminal event."""
        await self._state(fact)

    async def _state(self, *facts: Fact) -> int:
        position: int = await self.journal.append(Say(tuple(self._draft(fact) for fact in facts)))
        return position

    def _draft(self, fact: Fact) -> Draft:
        return draft(self.operation.operation_id, self.number, fact)

    def _say(self, fact: Fact) -> None:
        self.journal.say(self.operation.operation_id, self.number, fact, self._refused)

    def _refused(self, error: KtrdrOpsError) -> None:
        self.token.cancel(str(error), "journal", interrupt=True)


def _published(publication: Publication) -> ArtifactPublished:
    return ArtifactPublished(
        kind=publication.kind,
        key=publication.key,
        object=publication.object,
        sha256=publication.sha256,
        size=publication.size,
        metadata=strict(publication.metadata, f"metadata of {publication.key}"),
        name=publication.name,
    )
