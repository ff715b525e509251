"""The epochs of a training: each is told once and kept once, whoever of the attempts hears of it first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ktrdr_ops.domains.training.engine.host import Batch, Epoch

if TYPE_CHECKING:
    from ktrdr_ops.core.attempt import Attempt
    from ktrdr_ops.core.progress import GenericProgressManager

MOST_POINTS = 40
STEP = 3
FROM, TO = 12.0, 96.0
MESSAGE = "Training"
_NOT_OF_THE_MODEL = ("duration",)


class Epochs:
    """The curve so far, and its journal. Epochs are counted from 1; ``last`` is 0 before there is one.

    A later session that begins anew has epochs of its own: where one is another than the journal holds under its
    number, it is kept beside it, with the session's number.
    """

    def __init__(self, attempt: Attempt, progress: GenericProgressManager, epochs: int) -> None:
        self._attempt = attempt
        self._progress = progress
        self.epochs = epochs
        self.session = 1
        self.last = 0
        self._curve: dict[int, dict[str, Any]] = {}
        self._accelerator: str | None = None
        number = 1
        while isinstance(value := attempt.steps.get(_name(number)), dict):
            self._seen(number, value)
            number += 1

    @property
    def metrics(self) -> dict[str, Any]:
        """Those of the last epoch."""
        return {name: value for name, value in self._curve.get(self.last, {}).items() if name != "epoch"}

    @property
    def best(self) -> int | None:
        """The epoch with the least validation loss (training loss where there is none)."""
        losses = {
            number: loss
            for number, value in self._curve.items()
            if number <= self.last and (loss := _loss(value)) is not None
        }
        return min(losses, key=lambda number: (losses[number], number)) if losses else None

    def last_seen(self) -> str:
        """``last seen epoch 92/100``."""
        return f"last seen epoch {self.last}/{self.epochs}" if self.last else f"no epoch of {self.epochs} seen"

    def begin(self, session: int) -> None:
        """Listen to this session from now on. A later one says itself from which epoch it goes on."""
        self.session = session
        if session > 1:
            self.last = 0
        self._tell(self.last, {"epoch": self.last} if self.last else {})

    async def ended(self, epoch: Epoch, accelerator: str | None) -> None:
        """An epoch has ended. Durable on return."""
        self._accelerator = accelerator
        value = {"epoch": epoch.number, **epoch.metrics}
        name = self._name_for(epoch.number, value)
        self._seen(epoch.number, value)
        if name is not None:
            self._tell(epoch.number, value)
            await self._attempt.complete_step(name, value)

    def within(self, batch: Batch) -> None:
        """Say where it is within an epoch that has not ended."""
        if batch.epoch > self.last:
            context = {"epoch": batch.epoch, "batch": batch.batch, "batches": batch.batches}
            self._tell(self.last, context, batch.batch / batch.batches)

    def _name_for(self, number: int, value: dict[str, Any]) -> str | None:
        """The step to keep it as; None where the journal has it."""
        kept = self._attempt.steps.get(_name(number))
        if kept is None:
            return _name(number)
        if self.session == 1 or _same(kept, value):
            return None
        name = f"{_name(number)} of session {self.session}"
        return None if name in self._attempt.steps else name

    def _seen(self, number: int, value: dict[str, Any]) -> None:
        self._curve[number] = value
        self.last = number if self.session > 1 else max(self.last, number)

    def _tell(self, done: int, context: dict[str, Any], share: float = 0.0) -> None:
        at = FROM + (TO - FROM) * min((done + share) / self.epochs, 1.0)
        self._progress.update_progress(
            STEP,
            MESSAGE,
            items_processed=done,
            context={
                **{name: each for name, each in context.items() if each is not None},
                "epochs": self.epochs,
                "losses": self._losses(),
                **({} if self.best is None else {"best_epoch": self.best}),
                **({} if self._accelerator is None else {"accelerator": self._accelerator}),
            },
            total_items=self.epochs,
            step_range=(at, at),
        )

    def _losses(self) -> list[float]:
        """The training losses up to the last epoch, at most ``MOST_POINTS`` of them, the last among them."""
        found = [value.get("train_loss") for number, value in sorted(self._curve.items()) if number <= self.last]
        losses = [round(loss, 6) for loss in found if isinstance(loss, float)]
        if len(losses) <= MOST_POINTS:
            return losses
        return [losses[at * (len(losses) - 1) // (MOST_POINTS - 1)] for at in range(MOST_POINTS)]


def _name(number: int) -> str:
    return f"epoch {number}"


def _loss(value: dict[str, Any]) -> float | None:
    loss = value.get("val_loss", value.get("train_loss"))
    return loss if isinstance(loss, float) else None


def _same(kept: Any, value: dict[str, Any]) -> bool:
    return isinstance(kept, dict) and all(
        kept.get(name) == value.get(name) for name in {*kept, *value} if name not in _NOT_OF_THE_MODEL
    )
