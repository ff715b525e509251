"""The framework: runs any operation from its first event to its last.

    claim → progress and token → the operation function → its terminal event → progress → cleanup

It knows no HTTP and no text beyond the generic words. Each operation has a manager, a token and an attempt of its own;
the manager given to the framework is their template.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from ktrdr_ops.core.artifacts import ObjectStore
from ktrdr_ops.core.attempt import GRACE_SECONDS, PATIENCE_SECONDS, Attempt
from ktrdr_ops.core.calling import called
from ktrdr_ops.core.cancellation import CancellationSystem, CancellationToken
from ktrdr_ops.core.children import run_child
from ktrdr_ops.core.clock import micros, moment
from ktrdr_ops.core.ending import ended, shielded, stop_error, summary
from ktrdr_ops.core.errors import (
    AmbiguousOperation,
    InvalidValue,
    JournalError,
    KeyIsLive,
    KtrdrOpsError,
    OperationCancelledException,
    OperationInterrupted,
    OperationNotFound,
)
from ktrdr_ops.core.events import Cancelled, CancelRequested, Completed, Failed, Interrupted, Json, Submitted
from ktrdr_ops.core.journal import history
from ktrdr_ops.core.journal.decisions import Cancel, Claim, Resume, Say, Start, draft
from ktrdr_ops.core.journal.journal import Journal, open_journal
from ktrdr_ops.core.journal.watch import CancelWatch
from ktrdr_ops.core.operation import AsyncOperation, How, ProgressCallback, checked, digest
from ktrdr_ops.core.progress import GenericProgressManager, ProgressRenderer
from ktrdr_ops.core.redaction import REDACTED, strict
from ktrdr_ops.core.task_manager import AsyncTaskManager

if TYPE_CHECKING:
    from ktrdr_ops.core.domain import OperationProvider
    from ktrdr_ops.core.host_service import AsyncHostService

__all__ = ["AsyncOperation", "AsyncOrchestrationFramework", "How", "ProgressCallback", "digest"]

_LAST_TRIES = 3


class AsyncOrchestrationFramework:
    """Runs operations with cancellation, progress, error handling and a journal.

    ``journal=None`` makes one in a temporary directory, gone at exit. ``resolve`` gives the provider of an operation
    type (for children and resumes by type).
    """

    def __init__(
        self,
        progress_manager: GenericProgressManager,
        cancellation_system: CancellationSystem,
        host_service: AsyncHostService | None = None,
        *,
        journal: Journal | None = None,
        objects: ObjectStore | None = None,
        resolve: Callable[[str], OperationProvider] | None = None,
    ) -> None:
        self.progress_manager = progress_manager
        self.cancellation_system = cancellation_system
        self.host_service = host_service
        self.tasks = AsyncTaskManager()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if journal is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="ktrdr-ops-")
            journal = open_journal(Path(self._temporary.name) / "journal.db")
        self.journal = journal
        self.objects = objects or ObjectStore(journal.path.parent / "objects")
        self._resolve = resolve
        self._watch = CancelWatch(journal)
        self._attempts: dict[str, Attempt] = {}
        self._resolving = ThreadPoolExecutor(1, thread_name_prefix="ktrdr-ops-resolve")

    async def execute_operation(
        self,
        operation: AsyncOperation,
        operation_func: Callable[..., Any],
        progress_renderer: ProgressRenderer | None = None,
        *,
        progress_callback: ProgressCallback | None = None,
        summarise: Callable[[Any], Json] | None = None,
        how: How | None = None,
    ) -> Any:
        """Run an operation and give what its function returns.

        ``operation_func`` takes (operation, progress_manager, cancellation_token, attempt), or the first two or three
        of them; a function that is not async runs in a thread. Raises what it raises, OperationCancelledException,
        OperationInterrupted, KeyIsLive, OwnershipLost, InvalidValue (parameters that cannot be stored), JournalError.
        """
        how = how or How()
        operation = checked(operation)
        readable = operation.operation_id
        # The token is made before the claim: a signal may come at any moment.
        token = self.cancellation_system.create_cancellation_token()
        expected = await self._estimated(operation)
        claim = await self._claim_whole(operation, how)
        operation = replace(expected, operation_id=claim.operation_id)
        self.cancellation_system.name_token(token, claim.operation_id, readable)
        self._watch.add(claim.operation_id, claim.position, self._canceller(token))
        try:
            attempt = Attempt(operation, claim, self.journal, token, self.objects, partial(run_child, self), how.wait)
            progress = self.progress_manager.bound(
                renderer=progress_renderer,
                sink=attempt.progressed,
                token=token,
                clock=self.journal.clock,
                callback=progress_callback,
            )
            attempt.progress = progress
            progress.start_operation(operation)
            self._attempts[claim.operation_id] = attempt
            return await self._run(attempt, claim, operation_func, summarise)
        finally:
            self._attempts.pop(claim.operation_id, None)
            self._watch.remove(claim.operation_id)
            self.cancellation_system.cleanup_token(claim.operation_id)

    async def run(
        self,
        operation_type: str,
        parameters: Mapping[str, Any],
        *,
        parent_id: str | None = None,
        progress_callback: ProgressCallback | None = None,
        how: How | None = None,
    ) -> Any:
        """Run an operation of a known type with its provider."""
        provider = await self.resolved(operation_type)
        operation = provider.operation(provider.validate(parameters))
        return await self.execute_operation(
            replace(operation, parent_id=parent_id),
            provider.perform,
            provider.renderer(),
            progress_callback=progress_callback,
            summarise=provider.summarise,
            how=how,
        )

    async def resume(
        self,
        operation_id: str,
        *,
        steal: bool = False,
        reason: str = "resumed",
        after: int | None = None,
        wait: float = PATIENCE_SECONDS,
        progress_callback: ProgressCallback | None = None,
    ) -> Any:
        """Another attempt at an operation, with the parameters that it was asked with. With ``after``, raises
        OwnershipLost where that is no longer its last attempt."""
        asked = await history.submitted(self.journal, operation_id)
        if REDACTED in orjson.dumps(asked.parameters).decode():
            raise InvalidValue(
                f"{operation_id} was started with a secret, which the journal does not keep",
                hint="Start it again with the same parameters: that goes on with it.",
            )
        provider = await self.resolved(asked.operation_type)
        if not provider.resumable:
            raise InvalidValue(
                f"{operation_id} cannot go on from where it was",
                hint=f"Do all of it afresh: ktrdr-ops resume {operation_id} --restart",
            )
        how = How(resume=operation_id, steal=steal, reason=reason, after=after, wait=wait)
        return await self.run(
            asked.operation_type,
            asked.parameters,
            parent_id=asked.parent_id,
            progress_callback=progress_callback,
            how=how,
        )

    async def cancel_operation(
        self, operation_id: str, reason: str = "cancelled", requested_by: str = "caller"
    ) -> bool:
        """Ask an operation to stop, wherever it runs; its id, or any unique beginning of it. Gives True when the
        request is recorded, False for an unknown id; raises OperationFinished when it is over."""
        token = self.cancellation_system.get_token(operation_id)
        try:
            whole = token.operation_id if token is not None else await history.find(self.journal, operation_id)
            asked = Cancel(whole or operation_id, requested_by, reason, self.journal.owner())
            await self.journal.append(asked)
        except OperationNotFound as error:
            if isinstance(error, AmbiguousOperation):
                raise
            return False
        return True

    def interrupt_all(self, reason: str) -> int:
        """This process was told to go: end what runs here as ``interrupted``, so that another attempt goes on."""
        return self.cancellation_system.cancel_all_operations(reason, "signal", interrupt=True)

    def resolve(self, operation_type: str) -> OperationProvider:
        """The provider of a type. Raises InvalidValue that names what is missing."""
        if self._resolve is None:
            raise InvalidValue(f"no provider for the operation type {operation_type!r} is known to this framework")
        return self._resolve(operation_type)

    async def resolved(self, operation_type: str) -> OperationProvider:
        """The same, in a thread, since it may have to start what it talks to. One of its own: in the loop's pool,
        operations that wait for others could leave none."""
        return await asyncio.get_running_loop().run_in_executor(self._resolving, self.resolve, operation_type)

    async def aclose(self) -> None:
        """End what runs here as interrupted, then close the temporary journal, if it has one."""
        self.interrupt_all("its framework was closed")
        await self.tasks.shutdown()
        self._resolving.shutdown(wait=False)
        if self._temporary is not None:
            await self.journal.aclose()
            self._temporary.cleanup()

    async def _estimated(self, operation: AsyncOperation) -> AsyncOperation:
        """With how long it takes as past runs of its key have shown, where it does not say that itself."""
        if operation.estimated_duration is None:
            seconds = await history.typical_seconds(self.journal, operation.key or operation.operation_id)
            operation = replace(operation, estimated_duration=None if seconds is None else timedelta(seconds=seconds))
        return operation

    async def _claim_whole(self, operation: AsyncOperation, how: How) -> Claim:
        """The claim; when the caller is cancelled meanwhile, what was claimed is ended: nobody would run it."""
        if how.steal and how.resume is not None and self.cancellation_system.get_token(how.resume) is not None:
            raise KeyIsLive(f"{how.resume} runs in this process", hint="Cancel it instead.", operation_id=how.resume)
        claiming = asyncio.ensure_future(self._claim(operation, how))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            await shielded(self._give_back(claiming, operation))
            raise

    async def _give_back(self, claiming: asyncio.Task[Claim], operation: AsyncOperation) -> None:
        with contextlib.suppress(KtrdrOpsError):
            claim = await claiming
            confirmed = not operation.outlives or claim.attempt == 1
            reason = "its task was cancelled while it began"
            fact = Cancelled(requested_by="task", reason=reason, confirmed=confirmed)
            await self.journal.append(Say((draft(claim.operation_id, claim.attempt, fact),)))

    async def _claim(self, operation: AsyncOperation, how: How) -> Claim:
        owner = self.journal.owner()
        if how.resume is not None:
            resumed: Claim = await self.journal.append(Resume(how.resume, owner, how.steal, how.reason, how.after))
            return resumed
        parameters = strict(operation.context if operation.parameters is None else operation.parameters)
        estimate = operation.estimated_duration
        submitted = Submitted(
            operation_type=operation.operation_type,
            key=operation.key or operation.operation_id,
            total_steps=operation.total_steps,
            parameters=parameters,
            digest=digest(parameters),
            context=strict(operation.context, "context"),
            parent_id=operation.parent_id,
            estimated_seconds=None if estimate is None else estimate.total_seconds(),
            outlives=operation.outlives,
        )
        started: Claim = await self.journal.append(Start(operation.operation_id, submitted, owner, how.fresh))
        return started

    def _canceller(self, token: CancellationToken) -> Callable[[CancelRequested, int], None]:
        def cancel(asked: CancelRequested, at: int) -> None:
            token.cancel(asked.reason, asked.requested_by)
            if token.requested_by == asked.requested_by:
                token.requested_at = moment(at)

        return cancel

    async def _run(
        self, attempt: Attempt, claim: Claim, func: Callable[..., Any], summarise: Callable[[Any], Json] | None
    ) -> Any:
        token = attempt.token
        try:
            await attempt.take_over(claim)
            value = await self._supervise(attempt, called(func, attempt))
            result = summary(value, summarise)
        except (OperationCancelledException, asyncio.CancelledError) as error:
            if not token.is_cancelled():
                token.cancel(str(error) or "its task was cancelled", "task")
            await shielded(self._stopped(attempt, error))
            if isinstance(error, asyncio.CancelledError):
                raise
            raise stop_error(attempt, error) from None
        except OperationInterrupted as error:
            own = attempt.operation.operation_id
            if token.is_cancelled() and error.details.get("operation_id", own) != own:  # a child ended first
                await shielded(self._stopped(attempt, error))
                raise stop_error(attempt, error) from None
            await shielded(self._lost(attempt, error))
            raise
        except Exception as error:  # whatever an operation function raises is recorded, then raised again
            if attempt.is_over(error):
                attempt.progress.end_operation("The journal refused this attempt")
                raise
            try:
                await shielded(self._failed(attempt, error))
            except JournalError as unwritten:
                error.add_note(f"that it failed could not be journaled: {unwritten}")
            raise
        await shielded(ended(attempt, Completed(result=result)))
        attempt.progress.complete_operation()
        return value

    async def _supervise(self, attempt: Attempt, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Await the function; after a cancel it may stop by itself for a moment, then its task is cancelled."""
        token = attempt.token
        task = self.tasks.start(attempt.operation.operation_id, coroutine)
        stop = asyncio.ensure_future(token.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            for number in range(_LAST_TRIES):
                if task.done():
                    break
                await asyncio.wait({task}, timeout=GRACE_SECONDS if number else self._grace(attempt))
                task.cancel()
            if not task.done():
                await asyncio.wait({task})
        except asyncio.CancelledError:
            token.cancel("its task was cancelled", "task")
            task.cancel()
            while not task.done():  # its cleanup is waited for, however often the caller is cancelled
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({task})
            raise asyncio.CancelledError from (None if task.cancelled() else task.exception())
        finally:
            stop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await stop
        try:
            return task.result()
        except asyncio.CancelledError:
            raise OperationCancelledException(
                f"{attempt.operation.operation_id} was cancelled: {token.reason}"
            ) from None

    def _grace(self, attempt: Attempt) -> float:
        """Its own, or more: its children have theirs first."""
        below = [
            self._grace(child) + GRACE_SECONDS
            for child in self._attempts.values()
            if child.operation.parent_id == attempt.operation.operation_id
        ]
        return max([attempt.grace_seconds, *below])

    async def _stopped(self, attempt: Attempt, error: BaseException) -> None:
        token = attempt.token
        if token.interrupting:
            await ended(attempt, Interrupted(reason=token.reason or "told to go"))
            attempt.progress.end_operation("Operation interrupted")
            return
        requested = token.requested_at
        # Never negative: the clock may have been set back since, and it may be another process's.
        latency = None if requested is None else max(micros(attempt.now()) - micros(requested), 0) / 1000
        by, reason = token.requested_by or "caller", token.reason or "cancelled"
        said = error if isinstance(error, OperationCancelledException) else error.__cause__
        denied = isinstance(said, OperationCancelledException) and said.details.get("confirmed") is False
        confirmed = not (denied or attempt.goes_on_elsewhere)
        fact = Cancelled(requested_by=by, reason=reason, latency_ms=latency, confirmed=confirmed)
        await ended(attempt, fact)
        attempt.progress.end_operation("Operation cancelled")

    async def _lost(self, attempt: Attempt, error: OperationInterrupted) -> None:
        """The function cannot say what became of its work. That a child's cannot makes this one fail."""
        own = attempt.operation.operation_id
        if error.details.setdefault("operation_id", own) == own:
            await ended(attempt, Interrupted(reason=error.message, final=bool(error.details.get("final"))))
            attempt.progress.end_operation("Operation interrupted")
        else:
            await self._failed(attempt, error)

    async def _failed(self, attempt: Attempt, error: Exception) -> None:
        known = isinstance(error, KtrdrOpsError)
        document = error.document() if isinstance(error, KtrdrOpsError) else {}
        message = document.get("message") or f"{type(error).__name__}: {error}"
        details = error.details if isinstance(error, KtrdrOpsError) else {}
        await ended(
            attempt,
            Failed(
                code=str(document.get("code", "exception")),
                message=str(strict(str(message)[:8000].encode("utf-8", "replace").decode(), "message")),
                hint=document.get("hint"),
                result=summary(details.get("result"), None) if known else None,
                final=details.get("final") is True,
            ),
        )
        if isinstance(error, KtrdrOpsError):
            error.details.setdefault("operation_id", attempt.operation.operation_id)
        else:
            error.add_note(f"operation {attempt.operation.operation_id}, attempt {attempt.number}")
        attempt.progress.end_operation(f"Operation failed: {message}")
