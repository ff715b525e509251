"""Having the series that a training needs: what no operation has published yet is loaded by a child of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ktrdr_ops.core.errors import KeyIsLive
from ktrdr_ops.domains.training.engine.provenance import SERIES

if TYPE_CHECKING:
    from ktrdr_ops.core.attempt import Attempt
    from ktrdr_ops.core.progress import GenericProgressManager, GenericProgressState

STEP = 1
LOAD = "data_load"
_SIDE_BY_SIDE = 8
_LOOK_SECONDS = 0.2
_LIVE = ("pending", "running", "cancelling")


async def prepared(
    series: Sequence[tuple[str, str]], attempt: Attempt, progress: GenericProgressManager, until: float
) -> None:
    """Return when all are there; the percentage goes from 0 to ``until``. Raises what the first load that failed
    raised, after the others have ended."""
    missing = [
        (symbol, timeframe)
        for symbol, timeframe in series
        if await attempt.catalogue.latest(SERIES, f"{symbol}:{timeframe}") is None
    ]
    board = _Board(progress, len(missing), until)
    room = asyncio.Semaphore(_SIDE_BY_SIDE)

    async def load(index: int) -> None:
        symbol, timeframe = missing[index]
        async with room:
            await _loaded(symbol, timeframe, attempt, board.follower(index))
        board.ended(index)

    outcomes = await asyncio.gather(*(load(index) for index in range(len(missing))), return_exceptions=True)
    attempt.token.check_cancellation_point(attempt.operation.operation_id)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


async def _loaded(
    symbol: str, timeframe: str, attempt: Attempt, follow: Callable[[GenericProgressState], None]
) -> None:
    """Load one. Where another operation is loading it, that one is waited for."""
    while await attempt.catalogue.latest(SERIES, f"{symbol}:{timeframe}") is None:
        try:
            await attempt.run_child(LOAD, progress_callback=follow, symbol=symbol, timeframe=timeframe)
            return
        except KeyIsLive as error:
            other = str(error.details["operation_id"])
        async with attempt.waiting(f"{symbol} {timeframe} is being loaded by {other}"):
            while attempt.journal.status(await attempt.journal.state(other)) in _LIVE:
                await attempt.token.sleep(_LOOK_SECONDS)


class _Board:
    """Makes one progress of the loads': told when one has ended, or all together have moved by five percent."""

    def __init__(self, progress: GenericProgressManager, total: int, until: float) -> None:
        self._progress = progress
        self._until = until
        self._percentages = [0.0] * total
        self._done = 0
        self._told = 0.0
        self._tell()

    def follower(self, index: int) -> Callable[[GenericProgressState], None]:
        """What a load's progress is told to."""

        def follow(state: GenericProgressState) -> None:
            self._percentages[index] = max(self._percentages[index], state.percentage)
            if self._mean() >= self._told + 5.0:
                self._tell()

        return follow

    def ended(self, index: int) -> None:
        """A load is done."""
        self._percentages[index] = 100.0
        self._done += 1
        self._tell()

    def _mean(self) -> float:
        return sum(self._percentages) / len(self._percentages) if self._percentages else 100.0

    def _tell(self) -> None:
        self._told = self._mean()
        total, at = len(self._percentages), self._told * self._until / 100
        message = f"Preparing data: {self._done} of {total} series loaded" if total else "Preparing data"
        self._progress.update_progress(STEP, message, self._done, total_items=total, step_range=(at, at))
