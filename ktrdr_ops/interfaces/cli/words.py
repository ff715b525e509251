"""Operations and events in words: pure, from documents and states to safe text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ktrdr_ops.core.progress import eta_part, format_duration, step_part, with_progress
from ktrdr_ops.core.replay import progress_state
from ktrdr_ops.interfaces.cli.screen import Style, paint, safe, unpainted
from ktrdr_ops.interfaces.cli.sparkline import curves, is_curve

if TYPE_CHECKING:
    from ktrdr_ops.core.events import Event, Json
    from ktrdr_ops.core.progress import GenericProgressState, ProgressRenderer
    from ktrdr_ops.core.state import OperationState

_SIGNS: dict[str, tuple[str, Style]] = {
    "completed": ("✓", "good"),
    "failed": ("✗", "bad"),
    "cancelled": ("✗", "warn"),
    "interrupted": ("!", "warn"),
    "cancelling": ("·", "warn"),
    "running": ("·", "bold"),
    "pending": ("·", "dim"),
}
_MANY = 8
_NAMES = frozenset({"pid", "position"})
"""Whole numbers that are names, and stay as they are."""


def suffix(operation_id: str) -> str:
    """The end of an id, which alone names the operation."""
    return operation_id.rpartition("_")[2]


UNCONFIRMED = "the host did not confirm that it stopped"


def unconfirmed(document: Mapping[str, Json]) -> bool:
    """Whether it was cancelled, and nobody confirmed that what it had begun has stopped."""
    return document["status"] == "cancelled" and (document.get("cancellation") or {}).get("confirmed") is False


def status_words(document: Mapping[str, Json]) -> str:
    """The sign and the word, and what is said beside it."""
    sign, style = ("!", _SIGNS["cancelled"][1]) if unconfirmed(document) else _sign(document)
    beside = ", stalled" if document["stalled"] else ""
    beside += ", not confirmed" if unconfirmed(document) else ""
    beside += ", waiting" if document["waiting"] else ""
    return paint(f"{sign} {document['status']}{beside}", style)


def _sign(document: Mapping[str, Json]) -> tuple[str, Style]:
    return _SIGNS.get(document["status"], ("·", "bold"))


def seconds(value: float) -> str:
    """``0.14 s`` below ten seconds, else as durations are written."""
    return f"{value:.2f} s" if value < 10 else format_duration(value)


def number(value: Json) -> str:
    """A value of a result: whole numbers with separators, nested ones in one line."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, Mapping):
        inner = [f"{safe(name).replace('_', ' ')} {number(below)}" for name, below in value.items() if _small(below)]
        return ", ".join(inner[:_MANY])
    if isinstance(value, list) and not all(map(_small, value)):
        return f"{len(value):,} values"
    if isinstance(value, list):
        return ", ".join(safe(one, 40) for one in value[:5]) + (f" and {len(value) - 5} more" if len(value) > 5 else "")
    return safe(value, 120)


def _value(name: str, value: Json) -> str:
    return str(value) if name in _NAMES and isinstance(value, int) else number(value)


def _small(value: Json) -> bool:
    return not isinstance(value, dict | list)


def pairs(values: Mapping[str, Json], *, many: int = _MANY) -> str:
    """``rows 3,270 · rows added 34``: the first values that fit on a line."""
    shown = [
        f"{safe(name).replace('_', ' ')} {_value(name, value)}"
        for name, value in values.items()
        if value not in ("", [], {}) and not (isinstance(value, Mapping) and not any(map(_small, value.values())))
    ]
    return " · ".join(shown[:many])


def outcome(
    document: Mapping[str, Json], command: str, took: float | None = None, *, goes_on_elsewhere: bool = False
) -> str:
    """How an attempt ended: a line, then hints. ``command`` resumes it; ``took``: how many seconds it was worked on.
    ``goes_on_elsewhere``: what it began on a host goes on without it."""
    status = document["status"]
    sign, style = _sign(document)
    name = safe(document["operation_id"])
    kept = (document["checkpoint"] or {}).get("steps", 0)
    steps = f" · {kept:,} {'step' if kept == 1 else 'steps'} kept" if kept else ""
    if status == "completed":
        result = document["result"]
        told = pairs(result) if isinstance(result, dict) else ""
        within = "" if took is None else f" in {seconds(took)}"
        return f"{paint(sign, style)} {name} completed{within}" + (f" · {told}" if told else "")
    if status == "cancelled":
        told = f"Operation cancelled successfully{_latency(document)}{steps} · nothing half-written"
        if unconfirmed(document):
            sign, told = "!", f"{name} was cancelled{_latency(document)}{steps}, but {UNCONFIRMED}"
        return f"{paint(sign, style)} {told}\n  resume: {command}"
    if status == "interrupted":
        error = document["error"] or {}
        line = f"{paint(sign, style)} {name} was interrupted: {safe(error.get('message') or '', 4000)}{steps}"
        afresh = f"  It cannot go on from there. Do all of it afresh: {command} --restart"
        goes_on = "  What it has begun on its host goes on there; the next attempt takes it up again.\n"
        more = goes_on * goes_on_elsewhere + f"  resume: {command}"
        return f"{line}\n" + (afresh if error.get("final") else more)
    if status == "failed":
        return _failure(document, command, kept)
    return f"{status_words(document)}  {name}"


def stopped(document: Mapping[str, Json]) -> str:
    """What a cancel came to, for the one who asked for it."""
    name = safe(document["operation_id"])
    if document["status"] == "cancelling":
        return f"{status_words(document)}  {name}: the request is recorded; it has not stopped yet"
    if unconfirmed(document):
        return f"{status_words(document)}  {name}{_latency(document)}: {UNCONFIRMED}"
    if document["status"] == "cancelled":
        return f"{paint('✓ cancelled', 'good')}  {name}{_latency(document)}"
    return f"{status_words(document)}  {name}"


def _latency(document: Mapping[str, Json]) -> str:
    latency = (document["cancellation"] or {}).get("latency_ms")
    return "" if latency is None else f" in {seconds(latency / 1000)}"


def _failure(document: Mapping[str, Json], command: str, kept: int) -> str:
    error = document["error"] or {}
    hint = str(error.get("hint") or "").replace("ktrdr-ops ", command.rpartition("resume")[0])
    lines = [f"{paint('✗', 'bad')} {safe(document['operation_id'])} failed: {safe(error.get('message') or '', 4000)}"]
    if kept:
        lines.append(f"  The journal has {kept:,} of its steps; nothing is lost.")
    lines += [f"  {safe(line)}" for line in hint.splitlines()]
    if not error.get("final"):
        lines.append(f"  Then: {command}")
    return "\n".join(lines)


def headline(document: Mapping[str, Json], fields: Sequence[str]) -> str:
    """The id, and what it works on: the context's named fields, else its few plain values."""
    context = document["context"]
    named = [number(context[name]) for name in fields if context.get(name) is not None]
    plain = {name: value for name, value in context.items() if isinstance(value, str | int | float)}
    return "  ".join([safe(document["operation_id"]), " ".join(named) or pairs(plain, many=4)]).rstrip()


def rendered(state: GenericProgressState, renderer: ProgressRenderer) -> str:
    """The message of a raw state in its domain's words; the raw one where they cannot be found."""
    try:
        return safe(renderer.render_progress_message(state), 400)
    except Exception:  # a stranger's words may fail; what is recorded is shown all the same
        return safe(state.message, 400)


def progress_words(state: GenericProgressState, message: str, detail: str = "") -> str:
    """The rendered message, and each of step, items, what is left to go and the detail that it does not say itself."""
    step, eta = step_part(state), eta_part(state)
    items = f"{state.items_processed:,} items" if state.items_processed else ""
    if items and state.total_items:
        so_far = f"{state.items_processed}/{state.total_items}"
        items = "" if so_far in message else f"{so_far} items"
    said = message.casefold()
    more = " · ".join(part for part in safe(detail, 120).split(" · ") if part.casefold() not in said)
    parts = [part for part in (items, eta, more) if part and part not in message]
    if step and step not in message:
        message = f"{message} {step}"
    return " │ ".join([message, *parts])


def shown(state: OperationState, renderer: ProgressRenderer, room: int | None = None) -> str:
    """How a terminal shows a state's progress: in its domain's words; without them where they need more than ``room``
    columns."""
    from rich.cells import cell_len

    progress = progress_state(state)
    more = detail(progress, renderer)
    told = progress_words(progress, rendered(progress, renderer), more)
    if room is not None and cell_len(told) > room:
        return progress_words(progress, with_progress(safe(progress.message, 400), progress), more)
    return told


def event_words(event: Event) -> str:
    """One event on a line: where and when it stands, its type, what it says."""
    import orjson

    from ktrdr_ops.core.clock import moment

    at = moment(event.at).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    attempt = "" if event.attempt is None else f"#{event.attempt}"
    said = orjson.loads(event.payload)
    if event.type == "progressed":
        told = f"{said['percentage']:5.1f}%  {safe(said['message'], 200)}"
    else:
        told = pairs({name: value for name, value in said.items() if value is not None and _shown(name)}, many=6)
    return f"{event.position:>8}  {at}Z  {attempt:>3}  {event.type:<18} {told}".rstrip()


def _shown(name: str) -> bool:
    return name not in ("digest", "slot", "parameters", "object")


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], width: int | None) -> str:
    """Columns side by side; only the last is cut, to ``width`` (None: nothing is)."""
    from rich.cells import cell_len, set_cell_size

    lines = [[paint(heading, "bold") for heading in headings], *map(list, rows)]
    sizes = [max(cell_len(unpainted(line[i])) for line in lines) for i in range(len(headings))]
    room = None if width is None else max(width - sum(sizes[:-1]) - 2 * (len(sizes) - 1), 10)
    shown = []
    for line in lines:
        cells = [cell + " " * (size - cell_len(unpainted(cell))) for cell, size in zip(line[:-1], sizes, strict=False)]
        last = line[-1]
        if room is not None and cell_len(unpainted(last)) > room:
            last = set_cell_size(unpainted(last), room - 1).rstrip() + "…"
        shown.append("  ".join([*cells, last]).rstrip())
    return "\n".join(shown)


def field_words(document: Mapping[str, Any], took: float | None) -> str:
    """A document as a short list: what it is, how far, how it ended. ``took``: how many seconds it was worked on."""
    lines = [f"{paint(safe(document['operation_id']), 'bold')}  {status_words(document)}"]
    rows: list[tuple[str, str]] = [
        ("type", safe(document["operation_type"])),
        ("key", safe(document["key"])),
        ("parent", safe(document["parent_id"] or "")),
        ("attempt", str(document["attempt"])),
        ("progress", f"{document['percentage']:.1f} %  step {document['current_step']} of {document['total_steps']}"),
        ("message", safe(document["message"], 400)),
        ("waiting", pairs(document["waiting"]) if document["waiting"] else ""),
        ("context", pairs({k: v for k, v in document["context"].items() if not is_curve(v)}, many=20)),
        ("curves", safe(curves(document["context"]))),
        ("created", local_and_utc(document["created_at"])),
        ("started", local_and_utc(document["started_at"])),
        ("finished", local_and_utc(document["finished_at"])),
        ("took", seconds(took) if took is not None else ""),
        ("events", f"{document['events']:,}, the last at position {document['last_position']:,}"),
        ("owner", pairs(document["owner"]) if document["owner"] else ""),
        ("checkpoint", pairs(document["checkpoint"]) if document["checkpoint"] else ""),
        ("result", pairs(document["result"], many=40) if isinstance(document["result"], dict) else ""),
        ("error", pairs({k: v for k, v in (document["error"] or {}).items() if v is not None})),
        ("cancel", pairs(document["cancellation"]) if document["cancellation"] else ""),
        ("", paint(f"! {UNCONFIRMED}", "warn") if unconfirmed(document) else ""),
    ]
    return "\n".join(lines + [f"  {name:<10} {value}" for name, value in rows if value])


def local_and_utc(iso: str | None) -> str:
    """A moment with the local offset; empty without one."""
    if iso is None:
        return ""
    return datetime.fromisoformat(iso).astimezone().isoformat(sep=" ", timespec="seconds")


def detail(state: GenericProgressState, renderer: ProgressRenderer) -> str:
    """The renderer's words about the step; none where it fails."""
    try:
        return safe(renderer.render_step_detail(state), 120)
    except Exception:  # a stranger's words may fail; the message is shown all the same
        return ""
