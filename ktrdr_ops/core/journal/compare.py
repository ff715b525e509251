"""Several operations beside one another: what differs between them, and the curves of the numbers that they told.

Parameters and results are flattened (``a.b``), so that two operations which differ in one value differ in one line. A
curve is what a number in the contexts of an operation's progress events was, in the order of the journal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import orjson

from ktrdr_ops.core.errors import InvalidValue
from ktrdr_ops.core.events import Json
from ktrdr_ops.core.journal import history
from ktrdr_ops.core.journal.journal import Journal
from ktrdr_ops.core.state import OperationState

PARTS = ("parameters", "result")


@dataclass(frozen=True, slots=True)
class Curve:
    """What one number was: ``positions``, ``attempts`` and ``values`` beside one another; there is at least one."""

    positions: tuple[int, ...]
    attempts: tuple[int, ...]
    values: tuple[float, ...]

    def document(self) -> dict[str, Json]:
        """As JSON, with the last, the lowest and the highest value."""
        return {
            "final": self.values[-1],
            "lowest": min(self.values),
            "highest": max(self.values),
            "positions": list(self.positions),
            "attempts": list(self.attempts),
            "values": list(self.values),
        }


@dataclass(frozen=True, slots=True)
class Compared:
    """One of several operations: only what is not the same in all of them. Values by their flattened names."""

    state: OperationState
    parameters: Mapping[str, Json]
    result: Mapping[str, Json]
    curves: Mapping[str, Curve]

    def value(self, name: str) -> Json:
        """By what it can be sorted: a curve's last value, else a value of the result or a parameter; None without."""
        if name in self.curves:
            return self.curves[name].values[-1]
        return self.result.get(name, self.parameters.get(name))


@dataclass(frozen=True, slots=True)
class Comparison:
    """``equal``: how many parameters, results and curves were left out because all operations have the same."""

    operations: tuple[Compared, ...]
    equal: Mapping[str, int] = field(default_factory=dict)

    def names(self, part: str) -> list[str]:
        """The names that some of the operations have, in the order of their first mention."""
        return list(dict.fromkeys(name for one in self.operations for name in getattr(one, part)))

    def sorted_by(self, name: str) -> Comparison:
        """The lowest first; with ``-`` before the name the highest. What has no such number comes last.

        Raises InvalidValue where none of them has it.
        """
        wanted, sign = name.removeprefix("-"), -1 if name.startswith("-") else 1
        numbers = {one.state.operation_id: _number(one.value(wanted)) for one in self.operations}
        if all(number is None for number in numbers.values()):
            known = dict.fromkeys(n for part in ("curves", *PARTS) for n in self.names(part))
            said = ", ".join(list(known)[:12]) or "nothing differs"
            raise InvalidValue(f"nothing that differs is a number called {wanted[:80]!r}", hint=f"One of: {said}")

        def order(one: Compared) -> tuple[bool, float]:
            number = numbers[one.state.operation_id]
            return number is None, 0.0 if number is None else sign * number

        return Comparison(tuple(sorted(self.operations, key=order)), self.equal)


def _number(value: Json) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


async def compare(journal: Journal, ids: Sequence[str]) -> Comparison:
    """What differs between these operations. Raises OperationNotFound."""
    states = [await journal.state(operation_id) for operation_id in ids]
    parameters = [flattened((await history.submitted(journal, operation_id)).parameters) for operation_id in ids]
    results = [flattened(state.result) for state in states]
    told = [await curves(journal, operation_id) for operation_id in ids]
    values = [{name: _moved(curve.values) for name, curve in one.items()} for one in told]
    differing = {"parameters": _differing(parameters), "result": _differing(results), "curves": _differing(values)}
    have = {"parameters": parameters, "result": results, "curves": values}
    equal = {part: len({name for one in have[part] for name in one}) - len(differing[part]) for part in have}
    operations = tuple(
        Compared(
            state,
            _only(parameters[i], differing["parameters"]),
            _only(results[i], differing["result"]),
            _only(told[i], differing["curves"]),
        )
        for i, state in enumerate(states)
    )
    return Comparison(operations, equal)


def flattened(value: Json, above: str = "") -> dict[str, Json]:
    """Nested values by their path: ``{"a": {"b": 1}}`` is ``{"a.b": 1}``; a list of plain values is one value."""
    below: Iterable[tuple[Any, Json]]
    if isinstance(value, Mapping) and value:
        below = value.items()
    elif isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
        below = enumerate(value)
    else:
        return {above: value} if above else {}
    flat: dict[str, Json] = {}
    for name, inner in below:
        flat |= flattened(inner, f"{above}.{name}" if above else str(name))
    return flat


async def curves(journal: Journal, operation_id: str) -> dict[str, Curve]:
    """The numbers that its progress told, by name."""
    rows = await journal.rows(
        "SELECT name, position, attempt, value FROM v_metrics WHERE operation_id = ? ORDER BY position", (operation_id,)
    )
    found: dict[str, list[tuple[int, int, float]]] = {}
    for name, *point in rows:
        found.setdefault(name, []).append((point[0], point[1], point[2]))
    return {name: Curve(*map(tuple, zip(*points, strict=True))) for name, points in found.items()}


def _moved(values: Sequence[float]) -> list[float]:
    """The curve without what was only told again: how often it was is chance."""
    return [value for value, _ in groupby(values)]


def _differing(each: Sequence[Mapping[str, Json]]) -> set[str]:
    names = {name for one in each for name in one}
    return {name for name in names if len({_stored(one, name) for one in each}) > 1}


def _stored(one: Mapping[str, Json], name: str) -> bytes:
    return orjson.dumps(one[name], option=orjson.OPT_SORT_KEYS) if name in one else b""


def _only(values: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}
