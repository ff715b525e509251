"""What a domain must bring, so that core, application and doors can serve it without knowing its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from ktrdr_ops.core.attempt import Attempt
    from ktrdr_ops.core.cancellation import CancellationToken
    from ktrdr_ops.core.clock import Clock
    from ktrdr_ops.core.events import Json
    from ktrdr_ops.core.host_service import HttpPool
    from ktrdr_ops.core.orchestration import AsyncOperation
    from ktrdr_ops.core.progress import GenericProgressManager, ProgressRenderer


class OperationProvider(ABC):
    """One operation type: what it takes, how it is done, in what words it is told.

    ``resumable``: a later attempt goes on from the steps and checkpoints of the earlier ones.
    """

    operation_type: ClassVar[str]
    resumable: ClassVar[bool] = True

    @abstractmethod
    def validate(self, raw: Mapping[str, Any]) -> dict[str, Json]:
        """The parameters with defaults, normalised, as JSON. Raises InvalidValue: what, why, what to do."""

    @abstractmethod
    def operation(self, parameters: Mapping[str, Json]) -> AsyncOperation:
        """The operation for validated parameters: readable id, key, steps, context."""

    @abstractmethod
    async def perform(
        self,
        operation: AsyncOperation,
        progress: GenericProgressManager,
        token: CancellationToken,
        attempt: Attempt,
    ) -> Any:
        """Do it. What it returns is given to the caller; ``summarise`` makes the journaled result of it."""

    @abstractmethod
    def renderer(self) -> ProgressRenderer:
        """In what words progress is told."""

    def summarise(self, value: Any) -> dict[str, Json]:
        """The result that the journal keeps, from what ``perform`` returned."""
        return {"value": value}


@dataclass(frozen=True, slots=True)
class Option:
    """One value that a command takes: an argument (``positional``) or a ``--flag``. A ``time`` is text; where it has a
    time of the day and no zone it is this machine's, and is said in UTC."""

    name: str
    help: str
    type: Literal["str", "int", "float", "bool", "path", "time"] = "str"
    default: Any = None
    required: bool = False
    many: bool = False
    choices: tuple[str, ...] | None = None
    positional: bool = False


@dataclass(frozen=True, slots=True)
class CommandContext:
    """What a command that starts no operation is given: the open application, and the values of its options."""

    app: Any
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command says: ``document`` for scripts, ``text`` for people, and its exit code."""

    document: Json
    text: str
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the domain's group. It starts an ``operation_type``, or runs ``run``.

    ``each`` names the option whose several values become one group of operations, a child for each value.
    """

    name: str
    help: str
    options: tuple[Option, ...] = ()
    operation_type: str | None = None
    each: str | None = None
    run: Callable[[CommandContext], Awaitable[CommandResult]] | None = None


@dataclass(frozen=True, slots=True)
class DomainContext:
    """What a domain is given when its providers are made. ``settings`` is the application's Settings; ``address`` says
    where the host service of a setting is now: in a sandbox it can move while an operation runs."""

    settings: Any
    pool: HttpPool
    clock: Clock
    sandbox: bool
    address: Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain as its entry point (group ``ktrdr_ops.domains``) exposes it. Importing it must load nothing heavy.

    ``fields`` are the context fields that lists can be filtered by; ``providers`` makes the providers by operation
    type when the first operation of the domain is about to run; ``renderer`` is what listing and replay need.
    ``hosts`` are the settings that name the host services which it talks to: the sandbox has its own in their places.
    """

    name: str
    help: str
    operation_types: tuple[str, ...]
    providers: Callable[[DomainContext], Mapping[str, OperationProvider]]
    renderer: Callable[[str], ProgressRenderer]
    commands: tuple[Command, ...] = ()
    fields: tuple[str, ...] = field(default=())
    hosts: tuple[str, ...] = field(default=())
