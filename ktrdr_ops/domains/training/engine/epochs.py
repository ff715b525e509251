"""The epochs of a training: each is told once and kept once, whoever of the attempts hears of it first."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ktrdr_ops.domains.training.engine.curve import Curve
from ktrdr_ops.domains.training.engine.host import Batch, Epoch

if TYPE_CHECKING:
    from ktrdr_ops.core.attempt import Attempt
    from ktrdr_ops.core.progress import GenericProgressManager

STEP = 3
FROM, TO = 12.0, 96.0
MESSAGE = "Training"
SAY_SECONDS = 20.0
"""How long it may be silent while the host says that it trains: an epoch may take longer than a minute."""
BATCH_SECONDS = 0.5
_NOT_OF_THE_MODEL = ("duration",)


class Epochs:
    """The epochs that were seen, counted from 1, and their journal: steps ``epoch 1``, ``epoch 2`` ...

    A later session that begins anew has epochs of its own: where one is another than the journal holds under its
    number, it is kept beside it, with the session's number.
    """

    def __init__(self, attempt: Attempt, progress: GenericProgressManager, epochs: int) -> None:
        self._attempt = attempt
        self._progress = progress
        self._epochs = epochs
        self._session = 1
        self._accelerator: str | None = None
        self._batch: Batch | None = None
        self._told_at = 0.0
        self.curve = Curve()
        while isinstance(value := attempt.steps.get(_name(self.curve.last + 1)), dict):
            self.curve.add(self.curve.last + 1, value)

    def last_seen(self) -> str:
        """``last seen epoch 92/100``."""
        last = self.curve.last
        return f"last seen epoch {last}/{self._epochs}" if last else f"no epoch of {self._epochs} seen"

    def begin(self, session: int) -> None:
        """Listen to this session from now on. A later one says itself from which epoch it goes on."""
        self._session = session
        done = self.curve.last if session == 1 else 0
        self._tell(done, {"epoch": done} if done else {})

    async def ended(self, epoch: Epoch, accelerator: str | None) -> None:
        """An epoch has ended. Durable on return."""
        self._accelerator = accelerator
        number, value = epoch.number, {"epoch": epoch.number, **epoch.metrics}
        name = self._name_for(number, value)
        if name is None and self._session == 1:
            return
        if number <= self.curve.last:
            self.curve = self.curve.before(number)
        self.curve.add(number, value)
        if name is not None:
            self._tell(number, value)
            await self._attempt.complete_step(name, value)

    def trains(self, batch: Batch | None) -> None:
        """The host says that it trains, and perhaps where it is within an epoch that has not ended."""
        last = self.curve.last
        silent = time.monotonic() - self._told_at
        if batch is not None and last < batch.epoch <= self._epochs and batch != self._batch and silent > BATCH_SECONDS:
            self._batch = batch
            context = {"epoch": batch.epoch, "batch": f"{batch.batch}/{batch.batches}"}  # a place, not a metric
            self._tell(batch.epoch - 1, context, batch.batch / batch.batches)
        elif silent > SAY_SECONDS:
            self._tell(last, {"epoch": last} if last else {})

    def _name_for(self, number: int, value: dict[str, Any]) -> str | None:
        """The step to keep it as; None where the journal has it."""
        kept = self._attempt.steps.get(_name(number))
        if kept is None:
            return _name(number)
        if self._session == 1 or _same(kept, value):
            return None
        name = f"{_name(number)} of session {self._session}"
        return None if name in self._attempt.steps else name

    def _tell(self, done: int, context: dict[str, Any], share: float = 0.0) -> None:
        at = FROM + (TO - FROM) * min((done + share) / self._epochs, 1.0)
        self._told_at = time.monotonic()
        known = {**context, "best_epoch": self.curve.best, "accelerator": self._accelerator}
        self._progress.update_progress(
            STEP,
            MESSAGE,
            items_processed=done,
            context={
                **{name: value for name, value in known.items() if value is not None},
                "epochs": self._epochs,
                "losses": self.curve.losses,
            },
            total_items=self._epochs,
            step_range=(at, at),
        )


def _name(number: int) -> str:
    return f"epoch {number}"


def _same(kept: Any, value: dict[str, Any]) -> bool:
    return isinstance(kept, dict) and all(
        kept.get(name) == value.get(name) for name in {*kept, *value} if name not in _NOT_OF_THE_MODEL
    )
