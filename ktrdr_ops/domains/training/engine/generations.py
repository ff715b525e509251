"""Which generation of the training host service answers: told apart by what only one of them has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktrdr_ops.core.errors import HostAnswerWrong, HostRefused
from ktrdr_ops.domains.training.engine.first_generation import FirstGenerationSession
from ktrdr_ops.domains.training.engine.host import Session, TrainingHostService, says_unknown
from ktrdr_ops.domains.training.engine.second_generation import SecondGenerationSession

if TYPE_CHECKING:
    from ktrdr_ops.core.cancellation import CancellationToken


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
        await host.listed(session_id)  # only a training host lists sessions: another service has no generation
        return SecondGenerationSession(host, session_id)
    except HostAnswerWrong as error:
        if not says_unknown(error, session_id):
            raise
    return FirstGenerationSession(host, session_id)
