"""The one place where the parts are put together.

with open_app() as app:                    # its loop runs in a thread of its own, so it works in notebooks
async with open_app_async() as app:        # the awaited twin
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ktrdr_ops.core.artifacts import ObjectStore
from ktrdr_ops.core.clock import Clock, micros, utc_now
from ktrdr_ops.core.domain import Domain, DomainContext, OperationProvider
from ktrdr_ops.core.errors import InvalidValue, JournalRefused
from ktrdr_ops.core.events import Event, Json, Noted
from ktrdr_ops.core.journal import history
from ktrdr_ops.core.journal.decisions import Note
from ktrdr_ops.core.journal.history import Catalogue
from ktrdr_ops.core.journal.journal import Journal, open_journal
from ktrdr_ops.core.journal.tail import until_over
from ktrdr_ops.core.progress import PlainRenderer
from ktrdr_ops.core.redaction import redact_text
from ktrdr_ops.core.state import document
from ktrdr_ops.sandbox import address, moved, prepared
from ktrdr_ops.settings import Settings, load_settings
from ktrdr_ops.waited import App, Loop

if TYPE_CHECKING:
    from ktrdr_ops.core.host_service import HttpPool
    from ktrdr_ops.core.orchestration import AsyncOrchestrationFramework, How, ProgressCallback
    from ktrdr_ops.core.progress import ProgressRenderer
    from ktrdr_ops.core.recovery import Outcome, Plan

F = TypeVar("F", bound=Callable[..., Any])

_log = logging.getLogger(__name__)
ENTRY_POINTS = "ktrdr_ops.domains"


class Domains:
    """The domains that are installed or registered, by name and by operation type."""

    def __init__(self, domains: Mapping[str, Domain], broken: Mapping[str, str]) -> None:
        self._domains = dict(domains)
        self.broken = dict(broken)

    def __iter__(self) -> Iterator[Domain]:
        return iter(self._domains.values())

    def add(self, domain: Domain) -> None:
        """One more. Raises InvalidValue when another has one of its operation types."""
        for operation_type in domain.operation_types:
            other = self.of_type(operation_type)
            if other is not None and other.name != domain.name:
                raise InvalidValue(f"the operation type {operation_type!r} is already the domain {other.name!r}'s")
        self._domains[domain.name] = domain

    def of_type(self, operation_type: str) -> Domain | None:
        """The domain of an operation type."""
        return next((domain for domain in self if operation_type in domain.operation_types), None)

    def renderer(self, operation_type: str) -> ProgressRenderer:
        """The words of an operation type; plain ones where nobody knows it."""
        domain = self.of_type(operation_type)
        return PlainRenderer() if domain is None else domain.renderer(operation_type)


def installed_domains() -> Domains:
    """The domains of the entry point group. One that cannot be loaded is left out and remembered as broken."""
    found: dict[str, Domain] = {}
    broken: dict[str, str] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            domain = entry.load()
        except Exception as error:  # a stranger's package may raise anything, and must not break `list`
            broken[entry.name] = f"{type(error).__name__}: {error}"
            _log.warning("the domain %s cannot be loaded: %s", entry.name, error)
            continue
        if isinstance(domain, Domain):
            found[domain.name] = domain
        else:
            broken[entry.name] = f"{entry.value} is no Domain"
    return Domains(found, broken)


class AsyncApp:
    """An open application: a journal, the framework over it, and the domains. Made by ``open_app_async``."""

    def __init__(self, settings: Settings, journal: Journal, domains: Domains) -> None:
        self.settings = settings
        self.journal = journal
        self.domains = domains
        self.objects = ObjectStore(journal.path.parent / "objects")
        self.catalogue = Catalogue(journal)
        self._framework: AsyncOrchestrationFramework | None = None
        self._pool: HttpPool | None = None
        self._providers: dict[str, OperationProvider] = {}
        self._making = threading.Lock()

    @property
    def framework(self) -> AsyncOrchestrationFramework:
        """What runs operations. Raises JournalRefused when the journal was opened for reading only."""
        if self._framework is None:
            from ktrdr_ops.core.cancellation import CancellationSystem
            from ktrdr_ops.core.orchestration import AsyncOrchestrationFramework
            from ktrdr_ops.core.progress import GenericProgressManager

            if self.journal.readonly:
                raise JournalRefused(f"{self.journal.path} was opened for reading only")
            self._framework = AsyncOrchestrationFramework(
                GenericProgressManager(),
                CancellationSystem(),
                journal=self.journal,
                objects=self.objects,
                resolve=self.provider,
            )
        return self._framework

    def register(self, domain: Domain) -> None:
        """Serve one more domain in this application."""
        self.domains.add(domain)

    def operation(self, operation_type: str, *, key: str | None = None, steps: int = 1) -> Callable[[F], F]:
        """Serve a function as an operation type: ``def build(op, symbol)``, plain or async, whose own parameters are
        the operation's; ``key`` is a format string over them, default all of them.

        Serving the type again replaces the function. Raises InvalidValue where a domain has the type already, and for
        a function that cannot be served.
        """

        def serve(func: F) -> F:
            from ktrdr_ops.core.functions import FunctionProvider

            provider = FunctionProvider(operation_type, func, key=key, steps=steps)
            if operation_type == "group":
                raise InvalidValue("the operation type 'group' is core's own")
            self.domains.add(
                Domain(
                    name=f"function {operation_type}",
                    help=(func.__doc__ or "").partition("\n")[0],
                    operation_types=(operation_type,),
                    providers=lambda context: {operation_type: provider},
                    renderer=lambda operation_type: provider.renderer(),
                )
            )
            self._providers[operation_type] = provider
            return func

        return serve

    def provider(self, operation_type: str) -> OperationProvider:
        """The provider of an operation type, for any thread. In a sandbox it waits a second or two for a host that has
        to be started. Raises InvalidValue that names what is missing, and in a sandbox HostUnavailable."""
        with self._making:
            if operation_type not in self._providers or self._moved(operation_type):
                self._providers.update(self._made(operation_type))
            return self._providers[operation_type]

    def _moved(self, operation_type: str) -> bool:
        """Whether the sandbox's host that it talks to has ended since."""
        domain = self.domains.of_type(operation_type)
        return domain is not None and moved(self.settings, domain.hosts)

    def _made(self, operation_type: str) -> Mapping[str, OperationProvider]:
        if operation_type == "group":
            from ktrdr_ops.core.group import GroupProvider

            return {"group": GroupProvider(self.provider)}
        domain = self.domains.of_type(operation_type)
        if domain is None:
            known = sorted(known for domain in self.domains for known in domain.operation_types)
            broken = "".join(f" The domain {name} is broken: {why}." for name, why in self.domains.broken.items())
            raise InvalidValue(
                f"no installed domain has the operation type {operation_type[:80]!r}",
                hint=f"Known: {', '.join(known) or 'none'}.{broken} Install the package that brings it; what a script"
                " serves with app.operation goes on there.",
            )
        from ktrdr_ops.core.host_service import HttpPool

        if self._pool is None:
            self._pool = HttpPool()
        self.settings = prepared(self.settings, domain.hosts)
        settings = self.settings
        return domain.providers(
            DomainContext(settings, self._pool, self.journal.clock, settings.sandbox, partial(address, settings))
        )

    async def run(
        self,
        operation_type: str,
        *,
        progress_callback: ProgressCallback | None = None,
        how: How | None = None,
        **parameters: Any,
    ) -> Any:
        """Run an operation of an installed type and give what it returns. The same start again goes on with an attempt
        that ended without a result."""
        return await self.framework.run(operation_type, parameters, progress_callback=progress_callback, how=how)

    async def resume(
        self, reference: str, *, steal: bool = False, progress_callback: ProgressCallback | None = None
    ) -> Any:
        """Another attempt at an operation."""
        operation_id = await history.find(self.journal, reference)
        return await self.framework.resume(operation_id, steal=steal, progress_callback=progress_callback)

    async def recover(
        self, *, side_by_side: int = 4, progress_callback: ProgressCallback | None = None
    ) -> tuple[list[Outcome], list[Plan]]:
        """Resume what was interrupted and can go on; gives what became of it and what was left alone."""
        from ktrdr_ops.core.recovery import recover

        return await recover(self.framework, side_by_side=side_by_side, progress_callback=progress_callback)

    async def cancel(self, reference: str, reason: str = "cancelled", requested_by: str = "user") -> str:
        """Ask an operation to stop, wherever it runs; gives its id once the request is recorded."""
        operation_id = await history.find(self.journal, reference)
        await self.framework.cancel_operation(operation_id, reason, requested_by)
        return operation_id

    async def note(self, reference: str, text: str, author: str = "") -> int:
        """Write something down about an operation (``""``: about the journal); gives the note's position."""
        operation_id = await history.find(self.journal, reference) if reference else ""
        if not text.strip() or len(text.encode("utf-8", "replace")) > 16 * 1024:
            raise InvalidValue("a note is a text of 1 to 16,384 bytes")
        fact = Noted(text=redact_text(text.encode("utf-8", "backslashreplace").decode()), author=author)
        position: int = await self.journal.append(Note(operation_id, fact))
        return position

    async def show(self, reference: str) -> dict[str, Json]:
        """An operation's document, its status settled."""
        state = await self.journal.state(await history.find(self.journal, reference))
        status, now = self.journal.status(state), micros(self.journal.clock())
        lived, _ = await history.as_lived(self.journal, state, status, now)
        return document(lived, status, stalled=self.journal.stalled(state))

    async def events(self, reference: str) -> list[Event]:
        """All events of an operation, in order."""
        operation_id = await history.find(self.journal, reference)
        return [event async for event in self.journal.read_all(operation_id)]

    async def tail(self, reference: str | None = None, *, after: int = 0) -> AsyncGenerator[Event, None]:
        """Events as they come; of an operation until it has ended, else for ever. ``after=0``: from the beginning."""
        operation_id = None if reference is None else await history.find(self.journal, reference)
        coming = (
            self.journal.tail(after=after)
            if operation_id is None
            else until_over(self.journal, operation_id, after=after)
        )
        async with aclosing(coming) as events:
            async for event in events:
                yield event

    async def sql(self, query: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query over ``v_operations``, ``v_events`` and ``v_metrics``: the door for notebooks, since a second
        SQLite connection in this process would drop the journal's locks. It cannot write."""
        return await self.journal.rows(query, parameters)

    async def aclose(self) -> None:
        """End what runs here as interrupted, write what is queued, close everything."""
        if self._framework is not None:
            await self._framework.aclose()
        if self._pool is not None:
            await self._pool.aclose()
        await self.journal.aclose()


@asynccontextmanager
async def open_app_async(
    journal: Path | str | None = None,
    *,
    sandbox: bool | None = None,
    settings: Settings | None = None,
    readonly: bool = False,
    clock: Clock = utc_now,
) -> AsyncIterator[AsyncApp]:
    """An application over a journal (default: the settings'). Raises what ``open_journal`` raises."""
    app = await _opened(journal, sandbox, settings, readonly, clock)
    try:
        yield app
    finally:
        await app.aclose()


async def _opened(
    journal: Path | str | None, sandbox: bool | None, settings: Settings | None, readonly: bool, clock: Clock
) -> AsyncApp:
    if settings is None:
        settings = load_settings({"journal": journal, "sandbox": sandbox})
    opened = await asyncio.to_thread(open_journal, settings.journal, readonly=readonly, clock=clock)
    return AsyncApp(settings, opened, installed_domains())


def open_app(
    journal: Path | str | None = None,
    *,
    sandbox: bool | None = None,
    settings: Settings | None = None,
    readonly: bool = False,
    clock: Clock = utc_now,
) -> App:
    """The same for code that does not await; its loop has a thread of its own, so it works inside a running loop.

    ``with open_app() as app`` closes it at the end of the block; a notebook keeps ``app = open_app()`` and may call
    ``app.close()``.
    """
    loop = Loop()
    try:
        return App(loop, loop.wait(_opened(journal, sandbox, settings, readonly, clock)))
    except BaseException:
        loop.close()
        raise
