"""In what words a load's progress is told."""

from __future__ import annotations

from ktrdr_ops.core.progress import GenericProgressState, ProgressRenderer, with_parts, with_progress


class DataProgressRenderer(ProgressRenderer):
    """``{message} (AAPL 1h, backfill mode) [4/5] (23/34 items) ETA: 45s``; parts that are missing are left out."""

    def render_progress_message(self, state: GenericProgressState) -> str:
        """The message with what is loaded and how far it is; of its own result it makes nothing else."""
        return with_progress(with_parts(state.message, _what(state)), state)

    def render_step_detail(self, state: GenericProgressState) -> str:
        """``Segment 23/34 · 38,870 bars``; empty before there are segments."""
        context = state.context
        segment, segments, bars = context.get("segment"), context.get("segments"), context.get("bars")
        parts = []
        if segment and segments:
            parts.append(f"Segment {segment}/{segments}")
        if isinstance(bars, int) and bars > 0:
            parts.append(f"{bars:,} bars")
        return " · ".join(parts)


def _what(state: GenericProgressState) -> str:
    context = state.context
    series = " ".join(str(context[name]) for name in ("symbol", "timeframe") if context.get(name))
    mode = f"{context['mode']} mode" if context.get("mode") else ""
    inside = ", ".join(part for part in (series, mode) if part)
    return f"({inside})" if inside else ""
