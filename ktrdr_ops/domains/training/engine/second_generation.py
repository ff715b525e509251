"""A session on the current generation of the training host service."""

from __future__ import annotations

import copy
from itertools import islice
from typing import TYPE_CHECKING, Any

from ktrdr_ops.core.errors import HostAnswerWrong, HostRefused, HostUnavailable
from ktrdr_ops.core.redaction import is_secret
from ktrdr_ops.domains.training.engine.config import MOST_EPOCHS
from ktrdr_ops.domains.training.engine.host import (
    MOST_CONCURRENT,
    SERVICE,
    START,
    Batch,
    Epoch,
    Look,
    TrainingHostService,
    batch_of,
    busy,
    number,
    object_in,
    status_of,
    whole,
)
from ktrdr_ops.domains.training.engine.strategy import text

if TYPE_CHECKING:
    from ktrdr_ops.core.cancellation import CancellationToken
    from ktrdr_ops.domains.training.engine.config import TrainingConfig

_MOST_METRICS, _LONGEST_NAME = 40, 100
_OPERATIONS = "/api/v1/operations/"


class SecondGenerationSession:
    """See ``host.Session``."""

    generation = 2

    def __init__(self, host: TrainingHostService, session_id: str) -> None:
        self.host = host
        self.session_id = session_id
        self._cursor = 0
        self._told = 0

    async def start(self, config: TrainingConfig, resume_from: str | None) -> None:
        """503 is that it is busy, 409 that it has this session already."""
        try:
            await self.host.post(START, self._asked(config, resume_from))
        except HostUnavailable as error:
            if MOST_CONCURRENT in error.message:
                raise busy(error) from error
            raise
        except HostRefused as error:
            if error.details["status"] != 409:
                raise

    def _asked(self, config: TrainingConfig, resume_from: str | None) -> dict[str, Any]:
        strategy = copy.deepcopy(config.strategy)
        if resume_from is not None:
            strategy["model"]["training"]["resume_from"] = resume_from
        return {
            "session_id": self.session_id,
            "task_id": self.session_id,
            "strategy_yaml": text(strategy),
            "symbols": config.symbols,
            "timeframes": config.timeframes,
            "start_date": config.start,
            "end_date": config.end,
        }

    async def look(self, token: CancellationToken) -> Look:
        """The status first: what it says of the end, the epochs asked for after it are complete up to."""
        found = await self._data(self.session_id, token)
        status, said = status_of(found.get("status")), str(found.get("status"))
        epochs = await self._new(token)
        progress = found.get("progress")
        context = progress.get("context") if isinstance(progress, dict) else None
        error = found.get("error_message")
        context = context if isinstance(context, dict) else {}
        return Look(
            status,
            said,
            epochs,
            self._batch(context) if status == "running" else None,
            None if error is None else str(error),
            str(context["accelerator"])[:40] if context.get("accelerator") else None,
        )

    async def _new(self, token: CancellationToken) -> list[Epoch]:
        found = (await self._data(f"{self.session_id}/metrics", token, cursor=self._cursor)).get("metrics")
        if not isinstance(found, list) or not found or not isinstance(found[0], list):
            return []
        epochs = [Epoch(whole(each["epoch"]) + 1, _metrics(each)) for each in found[0] if _is_record(each)]
        cursor = found[1] if len(found) > 1 else None
        self._cursor = cursor if isinstance(cursor, int) else self._cursor + len(found[0])
        self._told = max([self._told, *(each.number for each in epochs)])
        return sorted(epochs, key=lambda epoch: epoch.number)

    def _batch(self, context: dict[str, Any]) -> Batch | None:
        return batch_of(self._told + 1, max(whole(context.get("total_epochs")), self._told + 1), context)

    async def _data(self, path: str, token: CancellationToken, **params: Any) -> dict[str, Any]:
        path = _OPERATIONS + path
        body = object_in(await self._get(path, token, **params), path)
        return object_in(body.get("data"), path)

    async def _get(self, path: str, token: CancellationToken, **params: Any) -> Any:
        try:
            return await self.host.get(path, params=params or None, token=token)
        except HostRefused as error:
            if error.details["status"] == 404:
                raise await self.host.lost(self.session_id, error) from error
            raise

    async def stop(self) -> None:
        """Its answer says success whatever happens: only ``listed`` tells whether it has stopped."""
        await self.host.delete(f"{_OPERATIONS}{self.session_id}/cancel")

    async def result(self, token: CancellationToken) -> dict[str, Any] | None:
        """What came of it. A 400 is one that has not written its result yet."""
        path = f"/training/result/{self.session_id}"
        try:
            return object_in(await self._get(path, token), path)
        except HostRefused as error:
            if error.details["status"] == 400:
                raise HostAnswerWrong(f"the {SERVICE} has no result yet: {error.message}") from error
            raise


def _is_record(value: Any) -> bool:
    epoch = number(value.get("epoch")) if isinstance(value, dict) else None
    return epoch is not None and 0 <= epoch < MOST_EPOCHS


def _metrics(record: dict[str, Any]) -> dict[str, float | None]:
    """Its numbers, so many as an event holds; one under a name that secrets have could not be kept whole."""
    numbers = {
        name: number(value)
        for name, value in record.items()
        if name not in ("epoch", "timestamp") and not isinstance(value, str | list | dict)
        if len(name) <= _LONGEST_NAME and not is_secret(name)
    }
    return dict(islice(numbers.items(), _MOST_METRICS))
