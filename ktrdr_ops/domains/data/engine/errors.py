"""What can go wrong with market data.

OperationFailed
└── DataServiceError          a load failed; says for which symbol, and what is kept
    ├── NothingStored         what was asked needs stored bars, and there are none
    ├── UnknownSymbol         the host has no such symbol, and its gateway is connected
    ├── SeriesRevised         bars asked for again are not what was stored
    ├── SeriesUnreadable      a file is not a series
    └── DataHostUnavailable   the host or its gateway is absent (also a HostUnavailable)

``details["final"]`` is True where going on with the same load is not what helps; the hint says what does.
"""

from __future__ import annotations

from typing import Any

from ktrdr_ops.core.errors import HostUnavailable, OperationFailed


class DataServiceError(OperationFailed):
    """The data could not be loaded."""

    code = "data_load_failed"


class _Final(DataServiceError):
    """The data could not be loaded, and going on would not help."""

    def __init__(self, message: str | None = None, *, hint: str | None = None, **details: Any) -> None:
        super().__init__(message, hint=hint, **{"final": True, **details})


class NothingStored(_Final):
    """Nothing is stored for this series."""

    code = "nothing_stored"


class UnknownSymbol(_Final):
    """The host service does not know this symbol."""

    code = "unknown_symbol"


class SeriesRevised(_Final):
    """Bars that were asked for again differ from the stored ones."""

    code = "revised"


class SeriesUnreadable(DataServiceError):
    """The file is not a readable series."""

    code = "series_unreadable"


class DataHostUnavailable(DataServiceError, HostUnavailable):
    """The data host service, or its gateway, does not answer."""

    code = "host_unavailable"
    exit_code = 5
