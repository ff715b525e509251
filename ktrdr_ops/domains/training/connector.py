"""How a training is done: through a TrainingManager over the training host service, with errors that name it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktrdr_ops.core.attempt import Attempt
from ktrdr_ops.core.cancellation import CancellationToken
from ktrdr_ops.core.errors import HostRefused, HostServiceError, HostUnavailable, JournalCorrupt
from ktrdr_ops.core.orchestration import AsyncOperation
from ktrdr_ops.core.progress import GenericProgressManager
from ktrdr_ops.domains.training.engine.config import TrainingConfig
from ktrdr_ops.domains.training.engine.errors import TrainingHostUnavailable, TrainingServiceError
from ktrdr_ops.domains.training.engine.host import TrainingHostService
from ktrdr_ops.domains.training.engine.manager import TrainingManager
from ktrdr_ops.domains.training.engine.results import TrainingResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from ktrdr_ops.core.host_service import HttpPool
    from ktrdr_ops.settings import Settings


class TrainingSystemConnector:
    """Performs trainings with one manager, and so on one host."""

    def __init__(self, manager: TrainingManager) -> None:
        self.manager = manager

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        pool: HttpPool | None = None,
        *,
        host: TrainingHostService | None = None,
        address: Callable[[], str] | None = None,
    ) -> TrainingSystemConnector:
        """Over the host and the folders of the settings. A given ``host`` is used with its own address; ``address``
        says where the settings' host is now."""
        own = settings.sandbox and host is None
        host = host or TrainingHostService(address or settings.training_host_url, pool=pool)
        return cls(TrainingManager(host, settings.models_dir, settings.data_dir, own_host=own))

    async def perform(
        self,
        operation: AsyncOperation,
        progress: GenericProgressManager,
        token: CancellationToken,
        attempt: Attempt,
    ) -> TrainingResult:
        """One attempt at a training. Raises TrainingServiceError, OperationInterrupted, OperationCancelledException,
        and what a load of a missing series raises."""
        config = TrainingConfig(**operation.parameters or {})
        try:
            return await self.manager.train_multi_symbol_strategy(config, progress, attempt)
        except HostUnavailable as error:
            if isinstance(error, TrainingServiceError) or error.details.get("operation_id"):
                raise  # ours, or a child's own
            raise TrainingHostUnavailable(_failed(config, error.message), hint=error.hint, **error.details) from error
        except HostServiceError as error:
            if isinstance(error, TrainingServiceError):
                raise
            final = {"final": True} if isinstance(error, HostRefused) else {}
            raise TrainingServiceError(
                _failed(config, error.message), hint=error.hint, **final, **error.details
            ) from error
        except JournalCorrupt as error:  # an object is gone or changed; the journal itself is written as before
            raise TrainingServiceError(_failed(config, error.message), hint=error.hint, **error.details) from error
        except OSError as error:
            where = error.filename or self.manager.models_dir
            raise TrainingServiceError(
                _failed(config, f"{error.strerror or error} ({where})"),
                hint="Is there room, and may it be written? The same command again goes on; what is journaled is kept.",
            ) from error


def _failed(config: TrainingConfig, why: str) -> str:
    return f"Training of {config.name} on {', '.join(config.symbols[:4])} failed: {why}"
