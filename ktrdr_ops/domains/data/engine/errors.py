"""What can go wrong with market data.

OperationFailed
└── DataServiceError          a load failed; says for which symbol, and what is kept
    ├── NothingStored         what was asked needs stored bars, and there are none
    ├── UnknownSymbol         the host has no such symbol, and its gateway is connected
    ├── SeriesRevised         bars asked for again are not what was stored
    ├── SeriesUnreadable      a file is not a series
    └── DataHostUnavailable   the host or its gateway is absent (also a HostUnavailable)
"""

from __future__ import annotations

from ktrdr_ops.core.errors import HostUnavailable, OperationFailed


class DataServiceError(OperationFailed):
    """The data could not be loaded."""

    code = "data_load_failed"


class NothingStored(DataServiceError):
    """Nothing is stored for this series."""

    code = "nothing_stored"


class UnknownSymbol(DataServiceError):
    """The host service does not know this symbol."""

    code = "unknown_symbol"


class SeriesRevised(DataServiceError):
    """Bars that were asked for again differ from the stored ones."""

    code = "revised"


class SeriesUnreadable(DataServiceError):
    """The file is not a readable series."""

    code = "series_unreadable"


class DataHostUnavailable(DataServiceError, HostUnavailable):
    """The data host service, or its gateway, does not answer."""

    code = "host_unavailable"
    exit_code = 5
