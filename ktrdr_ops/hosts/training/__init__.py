"""The embedded training host: both generations of the training host service, really training on a processor.

It shows the plumbing, not an edge in the market. Law: nothing here knows a bar that was not over when it would have
been asked; what is learned from lies before what it is judged by; and the same plan over the same files with the same
seed is the same model, byte for byte, however often it was stopped on the way.
"""

from __future__ import annotations

from importlib.util import find_spec

from ktrdr_ops.core.errors import HostUnavailable

NEEDS = ("jax", "optax", "safetensors")


def require_installed() -> None:
    """Raises HostUnavailable where the extra that this host computes with is not installed; loads nothing of it."""
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise HostUnavailable(
            f"the embedded training host needs {', '.join(missing)}, which this installation does not have",
            hint="pip install 'ktrdr-ops[training]'",
        )
