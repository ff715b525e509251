"""Which generation of the training host service answers: told apart by what only one of them has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktrdr_ops.core.errors import HostAnswerWrong, HostRefused
from ktrdr_ops.domains.training.engine.first_generation import FirstGenerationSession
from ktrdr_ops.domains.training.engine.host import SERVICE, Session, TrainingHostService, object_in, says_unknown
from ktrdr_ops.domains.training.engine.second_generation import SecondGenerationSession

if TYPE_CHECKING:
    from ktrdr_ops.core.cancellation import CancellationToken


_OPERATIONS = "/api/v1/operations"
_GENERATIONS: dict[int, type[FirstGenerationSession | SecondGenerationSession]] = {
    1: FirstGenerationSession,
    2: SecondGenerationSession,
}


def session_of(generation: int, host: TrainingHostService, session_id: str) -> Session:
    """The session on a host of this generation."""
    return _GENERATIONS[generation](host, session_id)


async def session_on(host: TrainingHostService, session_id: str, token: CancellationToken | None) -> Session:
    """The session, on whichever generation the host turns out to be."""
    health = await host.check_health(token)
    if "worker_status" in health:
        return SecondGenerationSession(host, session_id)
    try:
        await host.get(f"/training/status/{session_id}", token=token)
    except HostRefused as error:
        if error.details["status"] != 404:
            raise
        await _answers_operations(host, token)
        return SecondGenerationSession(host, session_id)
    except HostAnswerWrong as error:
        if not says_unknown(error, session_id):
            raise
    return FirstGenerationSession(host, session_id)


async def _answers_operations(host: TrainingHostService, token: CancellationToken | None) -> None:
    """A 404 may be another service's, or a proxy's: raises HostAnswerWrong where nothing speaks for the second one."""
    try:
        object_in(await host.get(_OPERATIONS, params={"limit": 1}, token=token), _OPERATIONS)
    except HostRefused as error:
        raise HostAnswerWrong(f"what answers is no {SERVICE}: {error.message}", hint=error.hint) from error
