"""What comes of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

MOST_SYMBOLS = 40
"""Metrics of more symbols than this are left to the host: an event is no place for a table."""
_LISTED = 20


class TrainingData(BaseModel):
    """One series that a training used. ``sha256`` (canonical), ``rows`` and ``operation_id`` (who published it) are
    None where ``evidence`` is ``unknown``: what the host read cannot be proven from here."""

    model_config = ConfigDict(frozen=True)

    symbol: str
    timeframe: str
    sha256: str | None = None
    rows: int | None = None
    operation_id: str | None = None
    evidence: str = "unknown"


class TrainingResult(BaseModel):
    """What came of a training. ``model_path`` is the host's, or ours where the model could be taken over; then
    ``sha256`` is its canonical hash, else None. ``epochs`` were trained, the one of ``best_epoch`` (from 1) is kept."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model_path: str | None
    sha256: str | None
    epochs: int
    best_epoch: int | None
    metrics: dict[str, Any]
    test_metrics: dict[str, Any] = Field(default_factory=dict)
    per_symbol_metrics: dict[str, Any] = Field(default_factory=dict)
    model_info: dict[str, Any] = Field(default_factory=dict)
    data_summary: dict[str, Any] = Field(default_factory=dict)
    data: list[TrainingData]
    session_id: str
    seed: int
    versions: dict[str, str]
    git_commit: str | None

    @property
    def training_metrics(self) -> dict[str, Any]:
        """``metrics``, as the host service calls them."""
        return self.metrics


def trimmed(result: Mapping[str, Any]) -> dict[str, Any]:
    """Of a host's result what the journal keeps: no curves (they are the epochs), no long lists."""
    kept = {name: _object(result.get(name)) for name in ("training_metrics", "test_metrics", "model_info")}
    per_symbol = _object(result.get("per_symbol_metrics"))
    summary = _object(result.get("data_summary"))
    files = summary.pop("files", None)
    return {
        **{name: _flat(value) for name, value in kept.items()},
        "per_symbol_metrics": per_symbol if len(per_symbol) <= MOST_SYMBOLS else {},
        "data_summary": _flat(summary),
        "files": files if isinstance(files, list) else [],
        "model_path": _text(result.get("model_path")),
    }


def _object(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value[:4096] if isinstance(value, str) and value else None


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        str(name): value
        for name, value in values.items()
        if not isinstance(value, list | dict) or len(value) <= _LISTED
    }
