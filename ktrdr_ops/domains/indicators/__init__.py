"""Technical indicators over stored series. Importing this loads nothing heavy."""

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

_TIMEFRAME = Option("timeframe", "1m 5m 15m 30m 1h 2h 4h 1d 1w 1M", positional=True, required=True)


def _providers(context: DomainContext) -> Mapping[str, OperationProvider]:
    from ktrdr_ops.domains.indicators.connector import IndicatorsSystemConnector
    from ktrdr_ops.domains.indicators.operations import IndicatorsOperationProvider

    provider = IndicatorsOperationProvider(IndicatorsSystemConnector.from_settings(context.settings))
    return {provider.operation_type: provider}


def _renderer(operation_type: str) -> ProgressRenderer:
    from ktrdr_ops.domains.indicators.renderer import IndicatorsProgressRenderer

    return IndicatorsProgressRenderer()


async def _show(context: CommandContext) -> CommandResult:
    from ktrdr_ops.domains.indicators.engine.commands import show

    return await show(context)


domain = Domain(
    name="indicators",
    help="Compute technical indicators over stored series.",
    operation_types=("indicators_compute",),
    providers=_providers,
    renderer=_renderer,
    fields=("symbol", "timeframe"),
    commands=(
        Command(
            name="compute",
            help="Compute indicators of one or more symbols; a series that is missing is loaded first.",
            operation_type="indicators_compute",
            each="symbol",
            options=(
                Option("symbol", "symbols, such as AAPL, BRK.B or EUR.USD", positional=True, required=True, many=True),
                _TIMEFRAME,
                Option(
                    "indicators", "with commas, parameters in brackets: RSI,MACD(12,26,9) (default: RSI,MACD,BBANDS)"
                ),
            ),
        ),
        Command(
            name="show",
            help="Show the indicators that were computed last, and from what.",
            options=(Option("symbol", "a symbol, such as AAPL", positional=True, required=True), _TIMEFRAME),
            run=_show,
        ),
    ),
)
