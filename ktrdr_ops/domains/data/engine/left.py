"""What earlier attempts left of a load, and what is still to be asked for.

The steps of a load belong to one reading of "now", the range and the plan. A later attempt goes on with it, unless no
segment of it was answered, or it ended because the host revised what it gave: then it is read anew, and its steps
have names of their own (``range#3`` from the third attempt on).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ktrdr_ops.domains.data.engine.asked import Asked, spans_of
from ktrdr_ops.domains.data.engine.calendar import Times, micros
from ktrdr_ops.domains.data.engine.gaps import Span, reaching, without
from ktrdr_ops.domains.data.engine.segments import Segment, segments

SEGMENT = "segment"
REVISED = "revised"


def reading(steps: Mapping[str, Any], attempt: int) -> str:
    """What the names of this attempt's steps end with."""
    begun = [int(number or 1) for name, _, number in (step.partition("#") for step in steps) if name == "range"]
    if not begun:
        return _suffix(attempt)
    suffix = _suffix(max(begun))
    goes_on = bool(answered(steps, suffix)) and f"{REVISED}{suffix}" not in steps
    return suffix if goes_on else _suffix(attempt)


def _suffix(attempt: int) -> str:
    return "" if attempt == 1 else f"#{attempt}"


def answered(steps: Mapping[str, Any], suffix: str) -> dict[str, Any]:
    """The segments of that reading, by the names of their steps, the oldest first."""
    beginning = f"{SEGMENT}:"
    return {
        name: steps[name]
        for name in sorted(steps)
        if name.startswith(beginning) and name.partition("#")[2] == suffix[1:]
    }


def remaining(
    asked: Asked, gaps: Iterable[Span], names: Iterable[str], held: Times, floor: Any = None
) -> list[Segment]:
    """The requests for what no segment of these names covers, in order: the newest first for ``tail``, else the oldest.

    ``held`` are the times of the bars that came with those segments. The first request beside them reaches over up to
    five of them: the host may have revised its prices between two attempts.
    """
    newest_first = asked.mode == "tail"
    done = spans_of([name.partition(":")[2].partition("#")[0].split("/") for name in names])
    pieces: list[Span] = []
    compared = False
    for gap in sorted(gaps, reverse=newest_first):
        left = without(gap, done)
        inside = held[(held >= micros(gap.start)) & (held < micros(gap.end))]
        if left and len(inside) and not compared:
            left = _reaching(left, inside, asked, newest_first)
            compared = True
        pieces += sorted(left, reverse=newest_first)
    return [
        segment
        for piece in pieces
        for segment in segments(piece.start, piece.end, asked.timeframe, newest_first=newest_first, floor=floor)
    ]


def _reaching(left: Sequence[Span], held: Times, asked: Asked, newest_first: bool) -> list[Span]:
    """The piece that is asked for first, over the held bars on the side from which it is asked for."""
    position = -1 if newest_first else 0
    first = left[position]
    before = bool(np.searchsorted(held, micros(first.start)))
    after = bool(np.searchsorted(held, micros(first.end)) < len(held))
    to_right = after and (newest_first or not before)
    wider = reaching(first, held, asked.timeframe, left=not to_right, right=to_right)
    others = [span for span in left if span is not first]
    return sorted([*others, *wider])
