"""Comparing: operations beside one another, only what differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.core.journal import history
from ktrdr_ops.interfaces.cli import words
from ktrdr_ops.interfaces.cli.documents import reading, timed_document
from ktrdr_ops.interfaces.cli.frame import LOOK, Context, command
from ktrdr_ops.interfaces.cli.journal import counted
from ktrdr_ops.interfaces.cli.screen import paint, safe
from ktrdr_ops.interfaces.cli.sparkline import sparkline

if TYPE_CHECKING:
    from ktrdr_ops.app import AsyncApp
    from ktrdr_ops.core.events import Json
    from ktrdr_ops.core.journal.compare import Compared, Comparison

_SIDE_BY_SIDE = 4
"""So many operations are columns; more are lines."""
_WIDTH = 32
_LONGEST = 30
_MISSING = "–"


def register(cli: typer.Typer) -> None:
    """Add ``compare``."""
    command(cli, "compare", help="Operations beside one another: only what differs", panel=LOOK)(compare_)


def compare_(
    context: Context,
    operations: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Two or more.")] = None,
    parent: Annotated[str | None, typer.Option("--parent", metavar="ID", help="The children of this one.")] = None,
    sort: Annotated[
        str | None,
        typer.Option("--sort", metavar="METRIC", help="The lowest of this number first; -METRIC: the highest."),
    ] = None,
) -> None:
    """Print what differs between operations: parameters, results, and the curves of the numbers they told."""
    if bool(operations) == bool(parent):
        raise InvalidValue("name the operations in one way", hint="Two or more ids, or --parent ID.")

    async def read(app: AsyncApp) -> tuple[Comparison, list[dict[str, Json]]]:
        from ktrdr_ops.core.journal.compare import compare

        found = await compare(app.journal, await _meant(app, operations or (), parent))
        if sort is not None:
            found = found.sorted_by(sort)
        told = [await timed_document(app, one.state) for one in found.operations]
        return found, [{**said, "took_seconds": worked} for said, worked in told]

    first = operations[0] if operations else str(parent)
    found, documents = reading(context, first, read)
    context.emit(_document(found, documents), _text(found, documents, context.out.width))


async def _meant(app: AsyncApp, operations: Sequence[str], parent: str | None) -> list[str]:
    if parent is not None:
        parent_id = await history.find(app.journal, parent)
        ids = [state.operation_id for state in await history.children(app.journal, parent_id)]
    else:
        ids = list(dict.fromkeys([await history.find(app.journal, one) for one in operations]))
    if len(ids) < 2:
        raise InvalidValue("it takes two operations to compare", hint="Name more of them: ktrdr-ops list")
    return ids


def _document(found: Comparison, documents: Sequence[dict[str, Json]]) -> dict[str, Json]:
    operations = [
        {
            **{name: said[name] for name in ("operation_id", "operation_type", "key", "status", "attempt")},
            "took_seconds": said["took_seconds"],
            "parameters": dict(one.parameters),
            "result": dict(one.result),
            "metrics": {name: curve.document() for name, curve in one.curves.items()},
        }
        for one, said in zip(found.operations, documents, strict=True)
    ]
    equal = {"metrics" if part == "curves" else part: count for part, count in found.equal.items()}
    return {"operations": operations, "equal": equal}


def _text(found: Comparison, documents: Sequence[dict[str, Json]], width: int) -> str:
    headings = ["", *(safe(words.suffix(one.state.operation_id)) for one in found.operations)]
    rows = [["operation", *(safe(said["operation_id"]) for said in documents)]]
    rows += [["status", *(words.status_words(said) for said in documents)]]
    rows += [["took", *(words.seconds(said["took_seconds"] or 0.0) for said in documents)]]
    for part, above in (("parameters", ""), ("result", "result.")):
        for name in found.names(part):
            rows.append([above + safe(name, 60), *(_cell(getattr(one, part), name) for one in found.operations)])
    if len(found.operations) > _SIDE_BY_SIDE:
        headings, *rows = map(list, zip(*rows, strict=True))
    else:
        headings, rows = ["", *rows[0][1:]], rows[1:]
    blocks = [words.table(headings, rows, None), *(_curves(found, name, width) for name in found.names("curves"))]
    return "\n\n".join([*blocks, _left_out(found)])


def _cell(values: object, name: str) -> str:
    assert isinstance(values, dict)
    told = words.number(values[name]) if name in values else _MISSING
    return told if len(told) <= _LONGEST else f"{told[: _LONGEST // 2]}…{told[1 - _LONGEST // 2 :]}"


def _curves(found: Comparison, name: str, width: int) -> str:
    """One metric: a line for each operation, on one common scale; the longest curve is as wide as there is room."""
    having = [one for one in found.operations if name in one.curves]
    low = min(min(one.curves[name].values) for one in having)
    high = max(max(one.curves[name].values) for one in having)
    longest = max(len(one.curves[name].values) for one in having)
    room = min(max(width - 60, 8), _WIDTH, longest)
    rows = [_line(one, name, low, high, max(room * len(one.curves[name].values) // longest, 1)) for one in having]
    return words.table([safe(name, 60), "", "FINAL", "LOWEST", "HIGHEST", "VALUES"], rows, None)


def _line(one: Compared, name: str, low: float, high: float, width: int) -> list[str]:
    values = one.curves[name].values
    told = [words.number(value) for value in (values[-1], min(values), max(values), len(values))]
    return [safe(words.suffix(one.state.operation_id)), sparkline(values, low=low, high=high, width=width), *told]


def _left_out(found: Comparison) -> str:
    counts = {"parameters": "parameter", "result": "result value", "curves": "curve"}
    said = [counted(found.equal[part], what) for part, what in counts.items() if found.equal[part]]
    differs = any(found.names(part) for part in counts)
    left = paint(f"equal, and left out: {', '.join(said)}" if said else "nothing else", "dim")
    return left if differs else f"nothing differs; {left}"
