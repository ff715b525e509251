"""In what words the computing of indicators is told."""

from __future__ import annotations

from ktrdr_ops.core.progress import GenericProgressState, ProgressRenderer, with_parts, with_progress

PROCESSING = "Processing indicators"
_NAMES = {"BBANDS": "Bollinger", "STOCH": "Stochastic"}


class IndicatorsProgressRenderer(ProgressRenderer):
    """``Processing indicators RSI, MACD, Bollinger``; other messages with the series behind them."""

    def render_progress_message(self, state: GenericProgressState) -> str:
        """The message with what is computed; of its own result it makes nothing else."""
        context = state.context
        if state.message.startswith(PROCESSING):
            names = ", ".join(_NAMES.get(str(name), str(name)) for name in context.get("indicators") or ())
            return with_progress(with_parts(state.message, names), state)
        series = " ".join(str(context[name]) for name in ("symbol", "timeframe") if context.get(name))
        return with_progress(with_parts(state.message, f"({series})" if series else ""), state)

    def render_step_detail(self, state: GenericProgressState) -> str:
        """``MACD(12,26,9) · 3,270 bars``; empty before there is an indicator."""
        indicator, rows = state.context.get("indicator"), state.context.get("rows")
        if not indicator:
            return ""
        return f"{indicator} · {rows:,} bars" if isinstance(rows, int) else str(indicator)
