"""The multi-layer perceptron: pure functions of parameters, optimiser state and samples, compiled for a processor.

An array's name says where it belongs: ``layers.0.weight`` (inputs, outputs), ``layers.0.bias`` ... Its output is the
logit of "the close will be higher". Nothing is random here but by a number that is passed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

# An accelerator that is there would add its own rounding, and its start-up.
jax.config.update("jax_platforms", "cpu")  # type: ignore[no-untyped-call]  # jax has no types for it

Params = dict[str, Any]
_COMPILED = {"xla_cpu_multi_thread_eigen": False}  # sums in one order, and a core for the answers over HTTP
_ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "gelu": jax.nn.gelu, "sigmoid": jax.nn.sigmoid}
_OPTIMIZERS = {"adam": optax.adam, "adamw": optax.adamw, "sgd": optax.sgd, "rmsprop": optax.rmsprop}


class Sums(NamedTuple):
    """Over the samples so far: the loss added up, how many were right, how many there were."""

    loss: Any
    right: Any
    count: Any

    def means(self) -> tuple[float, float]:
        """Loss and accuracy. Waits until they are computed."""
        count = float(self.count)
        return float(self.loss) / count, float(self.right) / count


def no_sums() -> Sums:
    """Of no samples."""
    return Sums(np.float32(0), np.float32(0), np.float32(0))


def initial(sizes: tuple[int, ...], random: np.random.Generator) -> Params:
    """Weights by He's rule for layers of these widths, biases 0; float32."""
    params: Params = {}
    for at, (inputs, outputs) in enumerate(pairwise(sizes)):
        weight = random.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs)
        params[f"layers.{at}.weight"] = weight.astype(np.float32)
        params[f"layers.{at}.bias"] = np.zeros(outputs, np.float32)
    return params


class Network:
    """How samples go through the layers, and what is learned from them. Compiled once for each form of its input."""

    def __init__(self, activation: str, dropout: float, optimizer: str, learning_rate: float) -> None:
        self.activation = _ACTIVATIONS[activation]
        self.dropout = dropout
        self.optimizer: optax.GradientTransformation = _OPTIMIZERS[optimizer](learning_rate)
        self.step = jax.jit(self._step, static_argnames="size", compiler_options=_COMPILED)
        self.logits = jax.jit(self._logits, compiler_options=_COMPILED)
        self.begin = jax.jit(self.optimizer.init, compiler_options=_COMPILED)

    def _step(
        self,
        params: Params,
        state: Any,
        sums: Sums,
        inputs: Any,
        labels: Any,
        order: Any,
        at: Any,
        seed: Any,
        *,
        size: int,
    ) -> tuple[Params, Any, Sums]:
        """Learn from the samples ``order[at * size : (at + 1) * size]``."""
        chosen = jax.lax.dynamic_slice(order, (at * size,), (size,))
        key = jax.random.key(seed) if self.dropout else None

        def loss(params: Params) -> tuple[Any, Sums]:
            logits, truth = self._logits(params, inputs[chosen], key), labels[chosen]
            losses = optax.sigmoid_binary_cross_entropy(logits, truth)
            right = (logits > 0) == (truth > 0.5)
            return losses.mean(), Sums(losses.sum(), right.sum(dtype=jnp.float32), jnp.float32(size))

        gradients, found = jax.grad(loss, has_aux=True)(params)
        updates, state = self.optimizer.update(gradients, state, params)
        added = Sums(*(before + new for before, new in zip(sums, found, strict=True)))
        return optax.apply_updates(params, updates), state, added

    def _logits(self, params: Params, inputs: Any, key: Any = None) -> Any:
        layers = len(params) // 2
        for at in range(layers):
            inputs = inputs @ params[f"layers.{at}.weight"] + params[f"layers.{at}.bias"]
            if at < layers - 1:
                inputs = self.activation(inputs)
                inputs = inputs if key is None else self._dropped(inputs, jax.random.fold_in(key, at))
        return inputs[:, 0]

    def _dropped(self, values: Any, key: Any) -> Any:
        kept = jax.random.bernoulli(key, 1 - self.dropout, values.shape)
        return jnp.where(kept, values / (1 - self.dropout), 0)


@lru_cache(maxsize=16)
def network(activation: str, dropout: float, optimizer: str, learning_rate: float) -> Network:
    """The one for these choices: sessions that choose alike share what is compiled."""
    return Network(activation, dropout, optimizer, learning_rate)


def placed(array: Any) -> Any:
    """An array where it is computed with: put there once, not for each batch."""
    return jnp.asarray(array)


def leaves(state: Any) -> dict[str, Any]:
    """An optimiser's state as named arrays."""
    return {f"{at:04d}": np.asarray(leaf) for at, leaf in enumerate(jax.tree.leaves(state))}


def with_leaves(state: Any, arrays: Mapping[str, Any]) -> Any:
    """A state of the same form with these arrays. Raises ValueError where they do not fit."""
    before, form = jax.tree.flatten(state)
    found = [arrays[name] for name in sorted(arrays)]
    if [np.shape(leaf) for leaf in before] != [np.shape(leaf) for leaf in found]:
        raise ValueError("the optimiser's state is of another form")
    return jax.tree.unflatten(form, found)


def versions() -> dict[str, str]:
    """Of what computes a model."""
    return {"jax": jax.__version__, "optax": optax.__version__, "numpy": np.__version__}
