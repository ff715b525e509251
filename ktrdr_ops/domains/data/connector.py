"""How a load is done: through a DataManager over the IB host service, with errors that name the load."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from ktrdr_ops.core.attempt import Attempt
from ktrdr_ops.core.cancellation import CancellationToken
from ktrdr_ops.core.errors import HostRefused, HostServiceError, HostUnavailable, JournalCorrupt
from ktrdr_ops.core.orchestration import AsyncOperation
from ktrdr_ops.core.progress import GenericProgressManager
from ktrdr_ops.domains.data.engine.asked import Asked
from ktrdr_ops.domains.data.engine.dates import ending
from ktrdr_ops.domains.data.engine.errors import DataHostUnavailable, DataServiceError
from ktrdr_ops.domains.data.engine.ib_host import IbHostService
from ktrdr_ops.domains.data.engine.manager import DataManager
from ktrdr_ops.domains.data.engine.pacing import IB_RULES, Pacer
from ktrdr_ops.domains.data.engine.store import Format, SeriesFiles
from ktrdr_ops.domains.data.engine.stored import StoredSeries

if TYPE_CHECKING:
    from ktrdr_ops.core.host_service import HttpPool
    from ktrdr_ops.settings import Settings

_PACED_FIRST_WAIT, _PACED_LONGEST_WAIT = 15.0, 60.0


class DataSystemConnector:
    """Performs loads with one manager, and so with one host and one pacing budget."""

    def __init__(self, manager: DataManager) -> None:
        self.manager = manager

    @classmethod
    def from_settings(
        cls, settings: Settings, pool: HttpPool | None = None, *, host: IbHostService | None = None
    ) -> DataSystemConnector:
        """Over the host, the folder, the format, the pacing and the "now" of the settings. Raises InvalidValue.

        A given ``host`` is used with its own address and pacing.
        """
        format: Format = "csv" if settings.data_format == "csv" else "parquet"
        as_of = None if settings.as_of is None else ending(settings.as_of, "as_of")
        stored = StoredSeries(SeriesFiles(settings.data_dir), format)
        return cls(DataManager(host or _host(settings, pool), stored, format=format, as_of=as_of))

    async def perform(
        self,
        operation: AsyncOperation,
        progress: GenericProgressManager,
        token: CancellationToken,
        attempt: Attempt,
    ) -> pd.DataFrame:
        """One attempt at a load. Raises DataServiceError, InvalidValue, OperationCancelledException."""
        asked = Asked.of(operation.parameters or {})
        try:
            return await self.manager.load_data(asked, progress, attempt)
        except HostUnavailable as error:
            if isinstance(error, DataServiceError):
                raise
            raise DataHostUnavailable(_failed(asked, error.message), hint=error.hint, **error.details) from error
        except HostServiceError as error:
            final = {"final": True} if isinstance(error, HostRefused) else {}
            raise DataServiceError(_failed(asked, error.message), hint=error.hint, **final, **error.details) from error
        except JournalCorrupt as error:  # an object is gone or changed; the journal itself is written as before
            raise DataServiceError(
                _failed(asked, error.message), hint="Load it anew: --mode full --refresh --new", **error.details
            ) from error
        except OSError as error:
            raise DataServiceError(
                _failed(asked, f"{error.strerror or error} ({error.filename or self.manager.stored.files.folder})"),
                hint="Is there room, and may it be written? The same command again goes on; what is journaled is kept.",
            ) from error


def _failed(asked: Asked, why: str) -> str:
    return f"Data load failed for {asked.symbol}: {why}"


def _host(settings: Settings, pool: HttpPool | None) -> IbHostService:
    """With pacing, a retry waits as long as the same request must not be repeated."""
    pacer = Pacer(IB_RULES if settings.pacing else None)
    if not settings.pacing:
        return IbHostService(settings.ib_host_url, pacer, pool=pool)
    return IbHostService(
        settings.ib_host_url, pacer, pool=pool, first_wait=_PACED_FIRST_WAIT, longest_wait=_PACED_LONGEST_WAIT
    )
