"""Market data: loading it, showing it, and verifying what is stored. Importing this loads nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping

from ktrdr_ops.core.domain import (
    Command,
    CommandContext,
    CommandResult,
    Domain,
    DomainContext,
    OperationProvider,
    Option,
)
from ktrdr_ops.core.progress import ProgressRenderer

_SYMBOL = Option("symbol", "a symbol, such as AAPL, BRK.B or EUR.USD", positional=True, required=True)
_TIMEFRAME = Option("timeframe", "1m 5m 15m 30m 1h 2h 4h 1d 1w 1M", positional=True, required=True)


def _providers(context: DomainContext) -> Mapping[str, OperationProvider]:
    from ktrdr_ops.domains.data.connector import DataSystemConnector
    from ktrdr_ops.domains.data.operations import DataOperationProvider

    connector = DataSystemConnector.from_settings(context.settings, context.pool)
    provider = DataOperationProvider(connector, clock=context.clock)
    return {provider.operation_type: provider}


def _renderer(operation_type: str) -> ProgressRenderer:
    from ktrdr_ops.domains.data.renderer import DataProgressRenderer

    return DataProgressRenderer()


async def _show(context: CommandContext) -> CommandResult:
    from ktrdr_ops.domains.data.engine.commands import show

    return await show(context)


async def _verify(context: CommandContext) -> CommandResult:
    from ktrdr_ops.domains.data.engine.commands import verify

    return await verify(context)


domain = Domain(
    name="data",
    help="Load market data, show it, verify what is stored.",
    operation_types=("data_load",),
    providers=_providers,
    renderer=_renderer,
    fields=("symbol", "timeframe", "mode"),
    hosts=("ib_host_url",),
    commands=(
        Command(
            name="load",
            help="Load the bars of one or more symbols.",
            operation_type="data_load",
            each="symbol",
            options=(
                Option("symbol", "symbols, such as AAPL, BRK.B or EUR.USD", positional=True, required=True, many=True),
                _TIMEFRAME,
                Option(
                    "mode", "local: ask nobody; tail: what came since; backfill: before; full: both", default="full"
                ),
                Option("start", "from this day or time on (default: the first there is)", type="time"),
                Option("end", "up to this day, included, or this time (default: now)", type="time"),
                Option("refresh", "with full: load the whole series anew", type="bool", default=False),
            ),
        ),
        Command(
            name="show",
            help="Show a stored series, and where it came from.",
            options=(_SYMBOL, _TIMEFRAME, Option("as_of", "as the operation with this id published it")),
            run=_show,
        ),
        Command(
            name="verify",
            help="Compare the stored series with what the journal says of them.",
            options=(
                Option("symbol", "only this symbol", positional=True),
                Option("timeframe", "and this timeframe", positional=True),
            ),
            run=_verify,
        ),
    ),
)
