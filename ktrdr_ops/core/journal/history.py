"""Questions to the past: functions over a journal. All times are microseconds UTC.

``list`` and its kin must start fast, so they are plain SQL: SQLAlchemy alone would cost a quarter of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import orjson

from ktrdr_ops.core.artifacts import Artifact
from ktrdr_ops.core.clock import moment
from ktrdr_ops.core.errors import AmbiguousOperation, InvalidValue, OperationNotFound
from ktrdr_ops.core.events import ArtifactPublished, Checkpointed, Event, Json, StepCompleted, Submitted
from ktrdr_ops.core.journal.journal import EVENT_COLUMNS, Journal
from ktrdr_ops.core.state import LIVE, STATUSES, OperationState, fold_all

# Not what its parent began: the last start or end of the parent before it is then a start.
_LAST_BEGUN = (
    "SELECT e.operation_id FROM events e INDEXED BY events_one_start LEFT JOIN operations o USING (operation_id)"
    " WHERE e.type = 'attempt_started' AND (SELECT p.class FROM events p WHERE p.operation_id = o.parent_id"
    " AND p.position < e.position AND p.class IN ('start', 'terminal') AND p.type <> 'progressed'"
    " ORDER BY p.sequence DESC LIMIT 1) IS NOT 'start' ORDER BY e.position DESC LIMIT 1"
)
_LAST_ASKED = "SELECT operation_id FROM operations ORDER BY first_position DESC LIMIT 1"
# Each attempt's beginning and end. Where another process gave it its end, that is when somebody looked: the last event
# of the process that ran it counts then.
_SPANS = """
SELECT s.at, CASE WHEN t.type = 'interrupted' AND t.writer <> s.writer THEN (
    SELECT b.at FROM events b WHERE b.operation_id = t.operation_id AND b.sequence < t.sequence AND b.writer = s.writer
    ORDER BY b.sequence DESC LIMIT 1) ELSE t.at END
FROM events s LEFT JOIN events t ON t.operation_id = s.operation_id AND t.attempt = s.attempt
    AND t.class = 'terminal' AND t.position <= ?2
WHERE s.operation_id = ?1 AND s.type = 'attempt_started' AND s.position <= ?2 ORDER BY s.attempt
"""
_NAMES = ("@last", "@running", "@failed")
SORT_FIELDS = {
    "created": "first_position",
    "updated": "last_position",
    "started": "coalesce(started_at, 0)",
    "finished": "coalesce(finished_at, 0)",
    "percentage": "percentage",
    "type": "operation_type",
    "key": "key",
    "status": "status",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which operations. ``status`` is the settled one, or any of several; ``key`` is whole or ends in ``*``; ``grep``
    is any text in id, key, message or context; ``since`` compares with when it was submitted."""

    status: str | Sequence[str] | None = None
    operation_type: str | None = None
    key: str | None = None
    parent_id: str | None = None
    since: int | None = None
    grep: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Some operations of all that match; ``cursor`` asks for the next page, None on the last."""

    states: list[OperationState]
    total: int
    cursor: str | None


async def list_operations(
    journal: Journal, chosen: Filter = Filter(), *, sort: str = "created", limit: int = 50, cursor: str | None = None
) -> Page:
    """Operations by filter, the latest (or largest) first. Keyset paging: a page costs the same however far back it is.

    Raises InvalidValue for an unknown status, sort field or cursor.
    """
    if sort not in SORT_FIELDS:
        raise InvalidValue(f"cannot sort by {sort!r}", hint=f"One of: {', '.join(SORT_FIELDS)}")
    column = SORT_FIELDS[sort]
    where, parameters = await _where(journal, chosen)
    total = (await journal.rows(f"SELECT count(*) FROM operations WHERE {where}", tuple(parameters)))[0][0]
    if cursor is not None:
        value, position = _cursor(cursor)
        where += f" AND ({column}, first_position) < (?, ?)"
        parameters += [value, position]
    sql = (
        f"SELECT state, {column}, first_position FROM operations WHERE {where}"
        f" ORDER BY {column} DESC, first_position DESC LIMIT ?"
    )
    rows = await journal.rows(sql, (*parameters, limit + 1))
    shown = rows[:limit]
    more = orjson.dumps(list(shown[-1][1:])).hex() if len(rows) > limit else None
    return Page([OperationState.restored(row[0]) for row in shown], total, more)


def _cursor(cursor: str) -> list[Any]:
    try:
        value, position = orjson.loads(bytes.fromhex(cursor))
    except ValueError:
        raise InvalidValue(f"{cursor!r} is no cursor of a list") from None
    return [value, position]


async def _where(journal: Journal, chosen: Filter) -> tuple[str, list[Any]]:
    terms: list[str] = ["1"]
    parameters: list[Any] = []
    for column, value in (("operation_type", chosen.operation_type), ("parent_id", chosen.parent_id)):
        if value is not None:
            terms.append(f"{column} = ?")
            parameters.append(value)
    if chosen.key is not None:
        terms.append("key GLOB ?" if chosen.key.endswith("*") else "key = ?")
        parameters.append(chosen.key)
    if chosen.since is not None:
        terms.append("created_at >= ?")
        parameters.append(chosen.since)
    if chosen.grep is not None:
        text = "%" + chosen.grep.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        terms.append(
            "(operation_id LIKE ? ESCAPE '\\' OR key LIKE ? ESCAPE '\\' OR CAST(state AS TEXT) LIKE ? ESCAPE '\\')"
        )
        parameters += [text] * 3
    if chosen.status:
        term, values = await _status_term(journal, [chosen.status] if isinstance(chosen.status, str) else chosen.status)
        terms.append(term)
        parameters += values
    return " AND ".join(terms), parameters


async def _status_term(journal: Journal, statuses: Sequence[str]) -> tuple[str, list[Any]]:
    for status in statuses:
        if status not in STATUSES:
            raise InvalidValue(f"there is no status {status[:80]!r}", hint=f"One of: {', '.join(STATUSES)}")
    dead = [state.operation_id for state in await live(journal) if journal.status(state) == "interrupted"]
    wanted, marks = ", ".join("?" * len(statuses)), ", ".join("?" * len(dead))
    if "interrupted" in statuses:
        return f"(status IN ({wanted}) OR operation_id IN ({marks}))", [*statuses, *dead]
    return f"(status IN ({wanted}) AND operation_id NOT IN ({marks}))", [*statuses, *dead]


async def live(journal: Journal) -> list[OperationState]:
    """All that is recorded as pending, running or cancelling, whether its owner lives or not."""
    rows = await journal.rows("SELECT state FROM operations WHERE status IN ('pending', 'running', 'cancelling')")
    return [OperationState.restored(row[0]) for row in rows]


async def interrupted(journal: Journal) -> list[OperationState]:
    """What was interrupted and not superseded by a later operation of the same key, oldest first."""
    sql = (
        "SELECT state FROM operations o WHERE status IN ('interrupted', 'running', 'cancelling') AND NOT EXISTS"
        " (SELECT 1 FROM operations l WHERE l.key = o.key AND l.first_position > o.first_position)"
        " ORDER BY first_position"
    )
    states = [OperationState.restored(row[0]) for row in await journal.rows(sql)]
    return [state for state in states if journal.status(state) == "interrupted"]


async def children(journal: Journal, parent_id: str) -> list[OperationState]:
    """What an operation started, in the order of its starting them."""
    rows = await journal.rows("SELECT state FROM operations WHERE parent_id = ? ORDER BY first_position", (parent_id,))
    return [OperationState.restored(row[0]) for row in rows]


async def typical_seconds(journal: Journal, key: str) -> float | None:
    """How long a first attempt at this key takes: the median of the last five that completed; None without any."""
    rows = await journal.rows(
        "SELECT state FROM operations WHERE key = ? AND status = 'completed' ORDER BY first_position DESC LIMIT 5",
        (key,),
    )
    states = [OperationState.restored(row[0]) for row in rows]
    took = [(state.finished_at or 0) - (state.attempt_started_at or 0) for state in states if state.attempt == 1]
    return max(median(took), 0) / 1e6 if took else None


async def as_lived(
    journal: Journal, state: OperationState, status: str, now: int
) -> tuple[OperationState, float | None]:
    """How long its attempts worked, in seconds (None before the first), and the state that says as ``finished_at`` when
    the last of them ended. One whose process died ended with that process's last event, whenever somebody noticed."""
    if state.attempt_started_at is None:
        return state, None
    spans = [(state.attempt_started_at, state.finished_at)]
    if state.attempt > 1 or state.status == "interrupted":
        told = await journal.rows(_SPANS, (state.operation_id, state.last_position))
        spans = [(began, ended) for began, ended in told] or spans
    began, ended = spans[-1]
    if ended is None and status not in LIVE:
        ended = state.last_at
    spans[-1] = (began, now if ended is None else ended)
    worked = sum(max((until or since) - since, 0) for since, until in spans)
    return replace(state, finished_at=ended), worked / 1e6


async def find(journal: Journal, reference: str) -> str:
    """The id that a reference means: whole, its suffix, any unique beginning of either, ``@last`` (whose latest attempt
    began last, and not by a parent), ``@running``, ``@failed`` (asked for last; not the child of one that runs, or
    failed, too).

    Raises OperationNotFound, or AmbiguousOperation that lists the candidates."""
    if reference.startswith("@"):
        return await _named(journal, reference)
    exact = await journal.rows(
        "SELECT operation_id FROM operations WHERE operation_id = ? OR suffix = ?", (reference, reference)
    )
    if len(exact) == 1:
        return str(exact[0][0])
    escaped = reference.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
    sql = (
        "SELECT operation_id FROM operations WHERE operation_id LIKE ? ESCAPE '\\' OR suffix LIKE ? ESCAPE '\\'"
        " ORDER BY first_position DESC LIMIT 11"
    )
    found = [row[0] for row in await journal.rows(sql, (escaped, escaped))] if reference else []
    if not found:
        raise OperationNotFound(f"there is no operation {reference[:80]!r}", hint="See what there is: ktrdr-ops list")
    if len(found) > 1:
        more = ", …" if len(found) > 10 else ""
        raise AmbiguousOperation(
            f"{reference!r} is more than one operation: {', '.join(found[:10])}{more}", hint="Give more of the id."
        )
    return str(found[0])


async def _named(journal: Journal, reference: str) -> str:
    if reference not in _NAMES:
        raise InvalidValue(f"{reference!r} names no operation", hint=f"One of: {', '.join(_NAMES)}, or an id.")
    if reference == "@last":
        rows = await journal.rows(_LAST_BEGUN) or await journal.rows(_LAST_ASKED)
    else:
        rows = await _without_parent_alike(journal, reference.removeprefix("@"))
    if not rows:
        raise OperationNotFound(
            f"there is no operation that {reference} could mean", hint="See what there is: ktrdr-ops list"
        )
    return str(rows[0][0])


async def _without_parent_alike(journal: Journal, status: str) -> list[tuple[Any, ...]]:
    """The operation of this status that was asked for last, passing over those whose parent has it too."""
    term, values = await _status_term(journal, [status])
    sql = (
        f"SELECT operation_id FROM operations o WHERE {term} AND NOT EXISTS (SELECT 1 FROM operations"
        f" WHERE operation_id = o.parent_id AND {term}) ORDER BY first_position DESC LIMIT 1"
    )
    return await journal.rows(sql, (*values, *values))


async def submitted(journal: Journal, operation_id: str) -> Submitted:
    """How it was asked for, with its parameters."""
    events = await journal.read(operation_id, limit=1)
    fact = events[0].fact if events else None
    if not isinstance(fact, Submitted):
        raise OperationNotFound(f"the journal does not say how {operation_id} was started")
    return fact


async def marks(journal: Journal, operation_id: str) -> list[Event]:
    """All its events but plain progress."""
    sql = f"SELECT {EVENT_COLUMNS} FROM events WHERE operation_id = ? AND type <> 'progressed' ORDER BY sequence"
    return [Event(*row) for row in await journal.rows(sql, (operation_id,))]


async def steps(journal: Journal, operation_id: str) -> dict[str, Json]:
    """The values of its completed steps, by name."""
    facts = [event.fact for event in await marks(journal, operation_id)]
    return {fact.name: fact.value for fact in facts if isinstance(fact, StepCompleted)}


async def last_checkpoint(journal: Journal, operation_id: str) -> Checkpointed | None:
    """Its last checkpoint."""
    sql = (
        f"SELECT {EVENT_COLUMNS} FROM events WHERE operation_id = ? AND type = 'checkpointed'"
        " ORDER BY sequence DESC LIMIT 1"
    )
    rows = await journal.rows(sql, (operation_id,))
    fact = Event(*rows[0]).fact if rows else None
    return fact if isinstance(fact, Checkpointed) else None


async def state_at(
    journal: Journal, operation_id: str, *, position: int | None = None, at: int | None = None
) -> OperationState | None:
    """The state as it was at a position or time; None where it had not begun. Of the progress between two other events
    only the last is folded: it is absolute."""
    bound, value = ("position", position) if position is not None else ("at", at)
    if value is None:
        raise InvalidValue("state_at needs a position or a time")
    limit = await journal.rows(
        f"SELECT max(sequence) FROM events WHERE operation_id = ? AND {bound} <= ?", (operation_id, value)
    )
    last = limit[0][0]
    if last is None:
        return None
    sql = (
        f"SELECT {EVENT_COLUMNS} FROM events WHERE operation_id = ?1 AND sequence <= ?2 AND type <> 'progressed'"
        f" UNION ALL SELECT * FROM (SELECT {EVENT_COLUMNS} FROM events WHERE operation_id = ?1 AND sequence <= ?2"
        " AND type = 'progressed' ORDER BY sequence DESC LIMIT 1) ORDER BY sequence"
    )
    return fold_all(Event(*row) for row in await journal.rows(sql, (operation_id, last)))


class Catalogue:
    """What operations published, as the journal holds it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def latest(self, kind: str, key: str, *, as_of: str | int | None = None) -> Artifact | None:
        """The last artifact of this kind and key; ``as_of`` is a position, or the id of the operation that published
        it.
        """
        terms: list[str] = []
        parameters: list[Any] = []
        if isinstance(as_of, int):
            terms, parameters = ["position <= ?"], [as_of]
        elif as_of is not None:
            terms, parameters = ["operation_id = ?"], [as_of]
        found = await self._select(kind, "= ?", key, terms, parameters, 1)
        return found[0] if found else None

    async def every(
        self, kind: str, key_prefix: str = "", *, operation_id: str | None = None, limit: int = 10_000
    ) -> list[Artifact]:
        """Artifacts of a kind whose key begins so, the latest first."""
        terms, parameters = (["operation_id = ?"], [operation_id]) if operation_id else ([], [])
        escaped = "".join(f"[{char}]" if char in "*?[" else char for char in key_prefix)
        return await self._select(kind, "GLOB ?", escaped + "*", terms, parameters, limit)

    async def _select(
        self, kind: str, comparison: str, key: str, terms: Sequence[str], parameters: Sequence[Any], limit: int
    ) -> list[Artifact]:
        where = " AND ".join(
            (
                "type = 'artifact_published'",
                "json_extract(CAST(payload AS TEXT), '$.kind') = ?",
                f"json_extract(CAST(payload AS TEXT), '$.key') {comparison}",
                *terms,
            )
        )
        sql = f"SELECT {EVENT_COLUMNS} FROM events WHERE {where} ORDER BY position DESC LIMIT ?"
        rows = await self._journal.rows(sql, (kind, key, *parameters, limit))
        return [artifact(Event(*row)) for row in rows]


def artifact(event: Event) -> Artifact:
    """The artifact that an event published."""
    fact = event.fact
    if not isinstance(fact, ArtifactPublished) or event.attempt is None:
        raise InvalidValue(f"the event at position {event.position} published nothing")
    return Artifact(
        kind=fact.kind,
        key=fact.key,
        object=fact.object,
        sha256=fact.sha256,
        size=fact.size,
        metadata=fact.metadata,
        name=fact.name,
        operation_id=event.operation_id,
        attempt=event.attempt,
        position=event.position,
        at=moment(event.at),
    )
