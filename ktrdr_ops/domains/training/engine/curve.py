"""The curve of a training: its epochs in order, the best of them, and a few points for a screen. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_POINTS = 40


class Curve:
    """Epochs by number, from 1, ascending."""

    def __init__(self, values: Mapping[int, Mapping[str, Any]] | None = None) -> None:
        self._values: dict[int, Mapping[str, Any]] = {}
        self._losses: list[float] = []
        self._best: tuple[float, int] | None = None
        for number, value in (values or {}).items():
            self.add(number, value)

    def before(self, number: int) -> Curve:
        """The curve up to the epoch before this one."""
        return Curve({each: value for each, value in self._values.items() if each < number})

    @property
    def last(self) -> int:
        """The number of the last epoch; 0 before there is one."""
        return next(reversed(self._values), 0)

    @property
    def best(self) -> int | None:
        """The epoch with the least validation loss (training loss where there is none); of equal ones the first."""
        return None if self._best is None else self._best[1]

    @property
    def metrics(self) -> dict[str, Any]:
        """Those of the last epoch."""
        return {name: value for name, value in self._values.get(self.last, {}).items() if name != "epoch"}

    @property
    def losses(self) -> list[float]:
        """The training losses, at most ``MOST_POINTS`` of them, the first and the last among them."""
        count = len(self._losses)
        if count <= MOST_POINTS:
            return list(self._losses)
        return [self._losses[at * (count - 1) // (MOST_POINTS - 1)] for at in range(MOST_POINTS)]

    def add(self, number: int, value: Mapping[str, Any]) -> None:
        """The next epoch has ended."""
        self._values[number] = value
        loss, judged = value.get("train_loss"), value.get("val_loss", value.get("train_loss"))
        if isinstance(loss, float):
            self._losses.append(round(loss, 6))
        if isinstance(judged, float) and (self._best is None or judged < self._best[0]):
            self._best = (judged, number)
