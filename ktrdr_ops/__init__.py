"""Long operations on market data that survive: every step an event in one SQLite journal.

``open_app`` is the door; ``async with open_app_async()`` the awaited twin. Law: importing this package, or anything in
core, loads no domain and nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ktrdr_ops.app import open_app, open_app_async

__version__ = "0.1.0"
__all__ = ["__version__", "open_app", "open_app_async"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from ktrdr_ops import app

        return getattr(app, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
