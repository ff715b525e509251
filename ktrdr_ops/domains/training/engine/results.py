"""What comes of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ktrdr_ops.core.redaction import is_secret
from ktrdr_ops.domains.training.engine.config import MOST_SERIES

_MOST_ENTRIES, _MOST_INSIDE = 40, 20
_LONGEST_TEXT, _LONGEST_PATH = 200, 1024


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

    model_config = ConfigDict(frozen=True)

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
    """Of a host's result what the journal keeps, an event being no place for a table: no curves (they are the epochs),
    no long lists, nothing under a name that secrets have."""
    summary = _object(result.get("data_summary"))
    files = summary.pop("files", None)
    per_symbol = _object(result.get("per_symbol_metrics"))
    path = result.get("model_path")
    return {
        "training_metrics": _flat(result.get("training_metrics")),
        "test_metrics": _flat(result.get("test_metrics")),
        "model_info": _flat(result.get("model_info")),
        "per_symbol_metrics": _flat(per_symbol) if len(per_symbol) <= _MOST_ENTRIES else {},
        "data_summary": _flat(summary),
        "files": [_named(each) for each in files[:MOST_SERIES]] if isinstance(files, list) else [],
        "model_path": path[:_LONGEST_PATH] if isinstance(path, str) and path else None,
    }


def _object(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _named(file: object) -> dict[str, Any]:
    told = _object(file)
    kept = {name: told.get(name) for name in ("symbol", "timeframe", "path", "sha256", "rows")}
    return {
        name: value[:_LONGEST_PATH] if isinstance(value, str) else value
        for name, value in kept.items()
        if _is_plain(value)
    }


def _flat(value: object, *, inside: bool = True) -> dict[str, Any]:
    """Plain values, and (``inside``) short lists and mappings of plain values."""
    found: dict[str, Any] = {}
    for name, each in _object(value).items():
        if len(found) == _MOST_ENTRIES or is_secret(str(name)):
            continue
        if _is_plain(each):
            found[str(name)] = _cut(each, _LONGEST_TEXT)
        elif inside and isinstance(each, dict) and len(each) <= _MOST_INSIDE:
            found[str(name)] = _flat(each, inside=False)
        elif inside and isinstance(each, list) and len(each) <= _MOST_INSIDE and all(map(_is_plain, each)):
            found[str(name)] = [_cut(one, _LONGEST_TEXT) for one in each]
    return found


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, float | str) or (isinstance(value, int) and -(2**63) <= value < 2**63)


def _cut(value: Any, length: int) -> Any:
    return value[:length] if isinstance(value, str) else value
