"""Long operations on market data that survive: every step an event in one SQLite journal.

``open_app`` is the door; ``async with open_app_async()`` the awaited twin. Law: importing this package, or anything in
core, loads no domain and nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ktrdr_ops.app import open_app, open_app_async
    from ktrdr_ops.core.cancellation import CancellationSystem, CancellationToken
    from ktrdr_ops.core.errors import HostServiceError, OperationCancelledException
    from ktrdr_ops.core.host_service import AsyncHostService
    from ktrdr_ops.core.orchestration import AsyncOperation, AsyncOrchestrationFramework, How
    from ktrdr_ops.core.progress import GenericProgressManager, GenericProgressState, ProgressRenderer
    from ktrdr_ops.core.task_manager import AsyncTaskManager

__version__ = "0.1.0"
__all__ = [
    "AsyncHostService",
    "AsyncOperation",
    "AsyncOrchestrationFramework",
    "AsyncTaskManager",
    "CancellationSystem",
    "CancellationToken",
    "GenericProgressManager",
    "GenericProgressState",
    "HostServiceError",
    "How",
    "OperationCancelledException",
    "ProgressRenderer",
    "__version__",
    "open_app",
    "open_app_async",
]

_HOMES = {
    "app": ("open_app", "open_app_async"),
    "core.cancellation": ("CancellationSystem", "CancellationToken"),
    "core.errors": ("HostServiceError", "OperationCancelledException"),
    "core.host_service": ("AsyncHostService",),
    "core.orchestration": ("AsyncOperation", "AsyncOrchestrationFramework", "How"),
    "core.progress": ("GenericProgressManager", "GenericProgressState", "ProgressRenderer"),
    "core.task_manager": ("AsyncTaskManager",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"ktrdr_ops.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
