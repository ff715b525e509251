"""A session on the first generation of the training host service.

It tells nothing of results, cannot go on from a checkpoint, and its metrics are lists that grow, without numbers; it
trains on its own files whatever days are asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ktrdr_ops.core.errors import HostAnswerWrong, HostRefused
from ktrdr_ops.domains.training.engine.host import (
    MOST_CONCURRENT,
    START,
    Batch,
    Epoch,
    Look,
    Status,
    TrainingHostService,
    batch_of,
    busy,
    number,
    object_in,
    says_unknown,
    status_of,
    whole,
)

if TYPE_CHECKING:
    from ktrdr_ops.core.cancellation import CancellationToken
    from ktrdr_ops.domains.training.engine.config import TrainingConfig

_STOP_DEADLINE = 30.0
"""Seconds that the service takes at most to stop: the call answers when it has."""
_STATUS = "/training/status/"


class FirstGenerationSession:
    """See ``host.Session``."""

    generation = 1

    def __init__(self, host: TrainingHostService, session_id: str) -> None:
        self.host = host
        self.session_id = session_id
        self._told = 0

    async def start(self, config: TrainingConfig, resume_from: str | None) -> None:
        """500 is what it says to everything: that it is busy, and that it has this session already. ``resume_from`` is
        not sent: an epoch has no number in its lists but its place, which is right only from the beginning on."""
        try:
            await self.host.post(START, self._asked(config))
        except HostAnswerWrong as error:
            if MOST_CONCURRENT in error.message:
                raise busy(error) from error
            if "already exists" not in error.message:
                raise

    def _asked(self, config: TrainingConfig) -> dict[str, Any]:
        training: dict[str, Any] = dict(config.strategy["model"]["training"])
        early = training.get("early_stopping")
        if isinstance(early, dict) and "patience" in early:
            training["early_stopping_patience"] = early["patience"]
        data: dict[str, Any] = {"symbols": config.symbols, "timeframes": config.timeframes}
        return {
            "session_id": self.session_id,
            "model_configuration": {
                **data,
                "strategy_config": config.strategy,
                "model_type": config.strategy["model"]["type"],
                "multi_symbol": len(config.symbols) > 1,
            },
            "training_configuration": training,
            "data_configuration": {
                **data,
                **({} if config.start is None else {"start_date": config.start}),
                **({} if config.end is None else {"end_date": config.end}),
            },
        }

    async def look(self, token: CancellationToken) -> Look:
        """The status; of the lists only what is new."""
        path = _STATUS + self.session_id
        try:
            body = object_in(await self.host.get(path, token=token), path)
        except (HostAnswerWrong, HostRefused) as error:
            if error.details.get("status") == 404 or says_unknown(error, self.session_id):
                raise await self.host.lost(self.session_id, error) from error
            raise
        status, said = status_of(body.get("status")), str(body.get("status"))
        progress, metrics = (
            found if isinstance(found := body.get(name), dict) else {} for name in ("progress", "metrics")
        )
        epochs = self._new(metrics, status)
        why = body.get("error")
        return Look(
            status,
            said,
            epochs,
            self._batch(progress) if status == "running" else None,
            None if why is None else str(why),
            _accelerator(metrics),
        )

    def _new(self, metrics: dict[str, Any], status: Status) -> list[Epoch]:
        """The epochs of which both lists hold a value; at the end, all of which there is a loss."""
        losses, accuracies = (
            found if isinstance(found := metrics.get(name), list) else [] for name in ("epoch_loss", "epoch_accuracy")
        )
        there = len(losses) if status != "running" or not accuracies else min(len(losses), len(accuracies))
        new = [
            Epoch(at + 1, _epoch_metrics(losses[at], accuracies[at] if at < len(accuracies) else None))
            for at in range(self._told, there)
        ]
        self._told = max(self._told, there)
        return new

    def _batch(self, progress: dict[str, Any]) -> Batch | None:
        """Its ``epoch`` counts from 0 until the end of the epoch, where it has gone on to 1: the later one is meant."""
        epochs = whole(progress.get("total_epochs"))
        return batch_of(max(self._told, min(whole(progress.get("epoch")), epochs)) + 1, epochs, progress)

    async def stop(self) -> None:
        """It answers when it has stopped. That it is not found, or not running, is what was wanted."""
        try:
            await self.host.post(
                "/training/stop", {"session_id": self.session_id, "save_checkpoint": True}, deadline=_STOP_DEADLINE
            )
        except HostAnswerWrong as error:
            if not says_unknown(error, self.session_id) and "is not running" not in error.message:
                raise

    async def result(self, token: CancellationToken) -> dict[str, Any] | None:
        """None: there is no such call."""
        return None


def _epoch_metrics(loss: object, accuracy: object) -> dict[str, float | None]:
    metrics = {"train_loss": number(loss)}
    return metrics if accuracy is None else {**metrics, "train_accuracy": number(accuracy)}


def _accelerator(metrics: dict[str, Any]) -> str | None:
    devices = metrics.get("device")
    device = devices[-1] if isinstance(devices, list) and devices else devices
    return str(device)[:40] if device and device != "cpu" and not isinstance(device, list) else None
