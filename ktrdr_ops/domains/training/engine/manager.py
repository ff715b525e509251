"""A training, from a strategy to a model, in four steps.

    1 Preparing data          series that are missing are loaded, side by side, as operations of their own
    2 Starting session        on the host, under an id of ours; or finding the one that an earlier attempt left
    3 Training                each epoch is told and kept once
    4 Evaluating and saving   the result, the model where it can be had, and what it was made from

What is journaled is not done again by a later attempt.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ktrdr_ops.domains.training.engine import models, provenance
from ktrdr_ops.domains.training.engine.epochs import FROM, Epochs
from ktrdr_ops.domains.training.engine.host import TrainingHostService
from ktrdr_ops.domains.training.engine.preparing import prepared
from ktrdr_ops.domains.training.engine.results import TrainingData, TrainingResult, trimmed
from ktrdr_ops.domains.training.engine.sessions import STOP_DEADLINE, Training

if TYPE_CHECKING:
    from ktrdr_ops.core.attempt import Attempt
    from ktrdr_ops.core.progress import GenericProgressManager
    from ktrdr_ops.domains.training.engine.config import TrainingConfig

PREPARED_AT = 10.0
_NO_METRICS = ("epoch", "epochs_trained", "best_epoch", "timestamp", "history")


class TrainingManager:
    """Trains on one host. ``own_host``: the host is the embedded one, and reads the series that are stored here.

    ``stop_deadline`` (seconds): how long a host may take to stop after a cancel.
    """

    def __init__(
        self,
        host: TrainingHostService,
        models_dir: Path,
        data_dir: Path,
        *,
        own_host: bool = False,
        stop_deadline: float = STOP_DEADLINE,
    ) -> None:
        self.host = host
        self.models_dir = models_dir
        self.data_dir = data_dir
        self.own_host = own_host
        self.stop_deadline = stop_deadline

    async def train_multi_symbol_strategy(
        self, config: TrainingConfig, progress: GenericProgressManager, attempt: Attempt
    ) -> TrainingResult:
        """What came of it. Raises TrainingServiceError (SessionFailed, SessionStopped, TrainingHostUnavailable among
        it), HostServiceError before the host's first answer, OperationInterrupted, OperationCancelledException, and
        what a load raises."""
        return await _Run(self, config, progress, attempt).run()


class _Run:
    """One attempt."""

    def __init__(
        self, manager: TrainingManager, config: TrainingConfig, progress: GenericProgressManager, attempt: Attempt
    ) -> None:
        self.manager = manager
        self.config = config
        self.progress = progress
        self.attempt = attempt
        self.epochs = Epochs(attempt, progress, config.epochs)

    async def run(self) -> TrainingResult:
        if "saved" not in self.attempt.steps:
            if "trained" not in self.attempt.steps:
                await self._trained()
            self.attempt.goes_on_elsewhere = False
            await self._saved()
        self.attempt.goes_on_elsewhere = False
        return await self._returned()

    def _tell(self, step: int, message: str, at: float) -> None:
        """The curve so far stays in sight whatever is done."""
        losses = self.epochs.curve.losses
        context = {"losses": losses} if losses else None
        self.progress.update_progress(step, message, context=context, step_range=(at, at))

    # 1

    async def _prepared(self) -> None:
        _: dict[str, Any] = await self.attempt.step("code", self._code)
        await prepared(self.config.series, self.attempt, self.progress, PREPARED_AT)
        self._tell(2, "Starting session", PREPARED_AT)

    async def _code(self) -> dict[str, Any]:
        return {"git_commit": await asyncio.to_thread(provenance.git_commit, Path.cwd())}

    # 2 and 3

    async def _trained(self) -> None:
        manager = self.manager
        training = Training(
            manager.host, self.config, self.attempt, self.epochs, manager.stop_deadline, own_host=manager.own_host
        )
        result = await training.completed(self._prepared, lambda: self._tell(2, "Session started", FROM))
        curve = self.epochs.curve
        last = {"epochs": curve.last, "best_epoch": curve.best, "metrics": curve.metrics}
        await self.attempt.complete_step("trained", {"session_id": training.session_id, **last, **trimmed(result)})

    # 4

    async def _saved(self) -> None:
        self._tell(4, "Evaluating and saving", 96.0)
        attempt, config, manager, trained = self.attempt, self.config, self.manager, self.attempt.steps["trained"]
        known = await provenance.evidence(
            config.series,
            trained["files"],
            attempt,
            manager.data_dir,
            own_host=manager.own_host,
            session_id=trained["session_id"],
        )
        await attempt.uses(*(each.used() for each in known))
        taken = await asyncio.to_thread(
            models.taken_over, trained["model_path"], trained["model_info"].get("sha256"), attempt.objects
        )
        path = manager.models_dir / f"{attempt.operation.operation_id}{models.SUFFIX}"
        result = self._result(trained, known, None if taken is None else taken.sha256, path)
        publish = []
        if taken is not None:
            about = {"symbols": config.symbols, "timeframes": config.timeframes, "seed": config.seed}
            publish = [models.publication(taken, config.key, path, {**about, "session_id": trained["session_id"]})]
        saved = {"object": None if taken is None else taken.object, "result": result.model_dump()}
        await attempt.complete_step("saved", saved, publish=publish)

    def _result(
        self, trained: dict[str, Any], known: list[provenance.Evidence], sha256: str | None, path: Path
    ) -> TrainingResult:
        told, info = trained["training_metrics"], trained["model_info"]
        epochs, best = told.get("epochs_trained"), told.get("best_epoch")
        return TrainingResult(
            model_path=trained["model_path"] if sha256 is None else str(path),
            sha256=sha256,
            epochs=epochs if isinstance(epochs, int) else trained["epochs"],
            best_epoch=trained["best_epoch"] or (best if isinstance(best, int) else None),
            metrics={name: value for name, value in told.items() if name not in _NO_METRICS} or trained["metrics"],
            test_metrics=trained["test_metrics"],
            per_symbol_metrics=trained["per_symbol_metrics"],
            model_info=info,
            data_summary=trained["data_summary"],
            data=[TrainingData(**asdict(each)) for each in known],
            session_id=trained["session_id"],
            seed=self.config.seed,
            versions=provenance.versions(info.get("versions")),
            git_commit=self.attempt.steps["code"]["git_commit"],
        )

    async def _returned(self) -> TrainingResult:
        """Put the model in its place (again, if an earlier attempt could not) and give the result."""
        saved = self.attempt.steps["saved"]
        result = TrainingResult(**saved["result"])
        if saved["object"] is not None and result.model_path is not None:
            content = await asyncio.to_thread(self.attempt.objects.read, saved["object"])
            await asyncio.to_thread(models.put_in_place, Path(result.model_path), content)
        return result
