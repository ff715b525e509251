"""Where a training is between two epochs, as a file and back; and models, as files with a hash.

Both are safetensors: arrays and a little text, nothing that runs when it is read. A checkpoint holds all of what the
next epoch depends on (parameters, optimiser state, random state) and of what is kept (the best parameters, which epoch
they are of, the records so far), so that going on from it is the same training bit for bit.

A model's hash is over its arrays in the order of their names: name, dtype (as safetensors calls it), shape as decimal
numbers with commas, each followed by a zero byte, then the values, little-endian, in row-major order.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ktrdr_ops.hosts.training import network
from ktrdr_ops.hosts.training.network import Network, Params

_DTYPES = {"float32": "F32", "int64": "I64"}


@dataclass(frozen=True, slots=True)
class State:
    """After ``epoch`` epochs. ``random`` is the generator's state; ``best_epoch`` (from 1; 0: none yet) has the lowest
    validation loss so far and ``best`` its parameters; ``records`` has one for each epoch."""

    epoch: int
    params: Params
    optimiser: Any
    random: Mapping[str, Any]
    best: Params
    best_epoch: int
    best_loss: float
    records: tuple[Mapping[str, Any], ...]

    def over(self, epochs: int, patience: int | None) -> bool:
        """Whether there is no further epoch."""
        return self.epoch >= epochs or (patience is not None and self.epoch - self.best_epoch >= patience)


def fresh(net: Network, sizes: tuple[int, ...], seed: int) -> State:
    """Before the first epoch."""
    random = np.random.Generator(np.random.PCG64(seed))
    params = network.initial(sizes, random)
    return State(0, params, net.begin(params), random.bit_generator.state, params, 0, float("inf"), ())


def save_checkpoint(path: Path, state: State, digest: str) -> None:
    """Durably, in place of an earlier one. ``digest`` is the plan's. Raises OSError."""
    arrays = {
        **{f"params.{name}": value for name, value in state.params.items()},
        **{f"best.{name}": value for name, value in state.best.items()},
        **{f"optimiser.{name}": value for name, value in network.leaves(state.optimiser).items()},
    }
    about = {
        "digest": digest,
        "epoch": state.epoch,
        "random": state.random,
        "best_epoch": state.best_epoch,
        "best_loss": state.best_loss,
        "records": state.records,
    }
    _write(path, save(_plain(arrays), {"state": json.dumps(about)}))


def load_checkpoint(path: Path, begin: State, digest: str) -> State | None:
    """The state in a file; None where there is none, or one of another plan or form than ``begin``'s."""
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {})["state"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        if about["digest"] != digest:
            return None
        return replace(
            begin,
            epoch=about["epoch"],
            params=_under("params.", arrays, begin.params),
            optimiser=network.with_leaves(begin.optimiser, _below("optimiser.", arrays)),
            random=about["random"],
            best=_under("best.", arrays, begin.params),
            best_epoch=about["best_epoch"],
            best_loss=about["best_loss"],
            records=tuple(about["records"]),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def save_model(path: Path, arrays: Mapping[str, Any], about: Mapping[str, str]) -> str:
    """Write a model; gives its hash. Raises OSError."""
    plain = _plain(arrays)
    _write(path, save(plain, dict(about)))
    return model_sha256(plain)


def model_sha256(arrays: Mapping[str, Any]) -> str:
    """The hash of a model's arrays."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = np.asarray(arrays[name])
        shape = ",".join(map(str, value.shape))
        digest.update(b"\0".join((name.encode(), _DTYPES[value.dtype.name].encode(), shape.encode(), b"")))
        digest.update(np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _plain(arrays: Mapping[str, Any]) -> dict[str, Any]:
    # safetensors writes an array's memory as it lies there, whatever its strides say.
    return {name: np.array(value, order="C") for name, value in arrays.items()}


def _below(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _under(prefix: str, arrays: Mapping[str, Any], like: Params) -> Params:
    found = _below(prefix, arrays)
    if {name: value.shape for name, value in found.items()} != {name: value.shape for name, value in like.items()}:
        raise ValueError("the parameters are of another form")
    return found


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
