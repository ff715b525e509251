"""One training: epoch after epoch until the last, or until the validation loss has not been better for long enough.

It is told to stop between two batches; an epoch that was begun then counts for nothing, and the state after the last
whole one is saved. The best epoch's parameters are the model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ktrdr_ops.hosts.training import network
from ktrdr_ops.hosts.training.network import placed
from ktrdr_ops.hosts.training.plan import Plan
from ktrdr_ops.hosts.training.samples import Part, Samples
from ktrdr_ops.hosts.training.state import State, fresh, load_checkpoint, save_checkpoint


class Stopped(Exception):
    """It was told to stop."""


class Diverged(Exception):
    """A loss is no finite number any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Who follows a training. ``on_epoch`` gets each record, those before a checkpoint among them; ``on_batch`` which
    batch (from 1) of how many comes next in which epoch (from 0). ``pace``: the least seconds an epoch takes."""

    stop: Event
    on_epoch: Callable[[Mapping[str, Any]], None]
    on_batch: Callable[[int, int, int], None]
    pace: float = 0.0


class Trainer:
    """Trains one plan on its samples. ``checkpoint`` is the file of this training's own, ``earlier`` that of the one to
    go on from."""

    def __init__(self, plan: Plan, samples: Samples, checkpoint: Path, earlier: Path | None = None) -> None:
        self.plan = plan
        parts = (samples.training, samples.validation, samples.test)
        training, validation, test = (
            replace(part, inputs=placed(part.inputs), labels=placed(part.labels)) for part in parts
        )
        self.samples = replace(samples, training=training, validation=validation, test=test)
        self.network = network.network(plan.activation, plan.dropout, plan.optimizer, plan.learning_rate)
        self.size = min(plan.batch_size, len(samples.training.labels))
        self.batches = len(samples.training.labels) // self.size
        self._digest = plan.digest(each["sha256"] for each in samples.files)
        self._checkpoint = checkpoint
        begin = fresh(self.network, (len(samples.names), *plan.hidden_layers, 1), plan.seed)
        found = None if earlier is None else load_checkpoint(earlier, begin, self._digest)
        self.state = begin if found is None else found
        self._saved = 0

    def run(self, watch: Watch) -> State:
        """The state after the last epoch. Raises Stopped, Diverged, and OSError where a checkpoint cannot be
        written."""
        for record in self.state.records:
            watch.on_epoch(record)
        self._save()  # who goes on from this training, before its first checkpoint, goes on from the earlier one
        try:
            while not self.state.over(self.plan.epochs, self.plan.patience):
                self.state = self._epoch(watch)
                watch.on_epoch(self.state.records[-1])
                if self.state.epoch % self.plan.checkpoint_every == 0:
                    self._save()
        except Stopped:
            self._save()
            raise
        return self.state

    def _save(self) -> None:
        if self.state.epoch > self._saved:
            save_checkpoint(self._checkpoint, self.state, self._digest)
            self._saved = self.state.epoch

    def _epoch(self, watch: Watch) -> State:
        began, state = time.monotonic(), self.state
        random = np.random.Generator(np.random.PCG64())
        random.bit_generator.state = state.random
        params, optimiser, sums = self._learned(random, watch)
        train_loss, train_accuracy = sums.means()
        judged = self._judged(params, self.samples.validation)[0]
        val_loss, val_accuracy = judged.loss, judged.accuracy
        if not math.isfinite(train_loss + val_loss):
            raise Diverged(f"Training diverged in epoch {state.epoch}: train_loss {train_loss}, val_loss {val_loss}")
        better = val_loss < state.best_loss
        if watch.stop.wait(max(watch.pace - (time.monotonic() - began), 0.0)):
            raise Stopped
        record = {
            "epoch": state.epoch,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "learning_rate": self.plan.learning_rate,
            "duration": round(time.monotonic() - began, 6),
            "timestamp": datetime.now(UTC).isoformat(),
        }
        return replace(
            state,
            epoch=state.epoch + 1,
            params=params,
            optimiser=optimiser,
            random=random.bit_generator.state,
            best=params if better else state.best,
            best_epoch=state.epoch + 1 if better else state.best_epoch,
            best_loss=val_loss if better else state.best_loss,
            records=(*state.records, record),
        )

    def _learned(self, random: np.random.Generator, watch: Watch) -> tuple[network.Params, Any, network.Sums]:
        """Parameters, optimiser state and sums after one go over the training part, in a new order; what does not
        fill a batch is left out of this epoch."""
        part = self.samples.training
        order = placed(random.permutation(len(part.labels)).astype(np.int32))
        seed = int(random.integers(2**31))
        params, optimiser, sums = self.state.params, self.state.optimiser, network.no_sums()
        for at in range(self.batches):
            if watch.stop.is_set():
                raise Stopped
            watch.on_batch(self.state.epoch, at + 1, self.batches)
            params, optimiser, sums = self.network.step(
                params, optimiser, sums, part.inputs, part.labels, order, at, seed + at, size=self.size
            )
        watch.on_batch(self.state.epoch, self.batches + 1, self.batches)
        return params, optimiser, sums

    def _judged(self, params: network.Params, part: Part) -> list[_Judgement]:
        """Of all samples of a part, then of each symbol's."""
        logits = np.asarray(self.network.logits(params, part.inputs), np.float64)
        truth = np.asarray(part.labels) > 0.5
        symbols = [part.symbols == at for at in range(len(self.plan.symbols))]
        return [_Judgement(logits[own], truth[own]) for own in (slice(None), *symbols)]

    def test_metrics(self) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Of the best parameters over the test part: test_accuracy, test_loss, precision, recall, f1_score; and for
        each symbol accuracy, loss, precision, recall, f1_score, samples."""
        whole, *each = self._judged(self.state.best, self.samples.test)
        test = {"test_accuracy": whole.accuracy, "test_loss": whole.loss, **whole.metrics()}
        return test, {
            symbol: {"accuracy": one.accuracy, "loss": one.loss, **one.metrics(), "samples": len(one.truth)}
            for symbol, one in zip(self.plan.symbols, each, strict=True)
        }


@dataclass(frozen=True, slots=True)
class _Judgement:
    """Logits beside what was true."""

    logits: NDArray[np.float64]
    truth: NDArray[np.bool_]

    @property
    def loss(self) -> float:
        """The mean cross-entropy; NaN of logits that are none."""
        with np.errstate(invalid="ignore"):
            return _mean(np.logaddexp(0.0, np.where(self.truth, -self.logits, self.logits)))

    @property
    def accuracy(self) -> float:
        """The share that is right."""
        return _mean((self.logits > 0) == self.truth)

    def metrics(self) -> dict[str, float]:
        """Of "it will be higher": precision, recall, f1_score."""
        predicted = self.logits > 0
        hits = float((predicted & self.truth).sum())
        precision, recall = hits / max(float(predicted.sum()), 1.0), hits / max(float(self.truth.sum()), 1.0)
        f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
        return {"precision": precision, "recall": recall, "f1_score": f1}


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else 0.0
