"""The table of current states, folded in the append's own transaction, and the view that decisions are made against.

States are kept from one batch to the next only while the journal's head is still what this process wrote last: any
other head means that another process has appended, and everything is read again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from typing import Any

from ktrdr_ops.core.events import Event, Fact
from ktrdr_ops.core.state import OperationState, fold

_ALPHABET = "23456789abcdefghjkmnpqrstvwxyz"
_TRIES = 8
_KEPT = 4096

_UPSERT = """
INSERT INTO operations (operation_id, suffix, operation_type, key, parent_id, status, attempt, percentage, message,
                        created_at, started_at, finished_at, first_position, last_position, state)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (operation_id) DO UPDATE SET
  parent_id = excluded.parent_id, status = excluded.status, attempt = excluded.attempt,
  percentage = excluded.percentage, message = excluded.message,
  started_at = excluded.started_at, finished_at = excluded.finished_at, last_position = excluded.last_position,
  state = excluded.state
"""


def row(state: OperationState, first_position: int) -> tuple[Any, ...]:
    """The projection's row of a state. ``first_position`` counts only when the row is new."""
    return (
        state.operation_id,
        state.operation_id.rpartition("_")[2],
        state.operation_type,
        state.key,
        state.parent_id,
        state.status,
        state.attempt,
        state.percentage,
        state.message,
        state.created_at,
        state.started_at,
        state.finished_at,
        first_position,
        state.last_position,
        state.stored(),
    )


class Projection:
    """The states inside one write transaction after another (the ``View`` of decisions)."""

    def __init__(self, connection: Any, alive: Callable[[int], bool]) -> None:
        self._connection = connection
        self._states: dict[str, OperationState] = {}
        self._dirty: dict[str, OperationState] = {}
        self._sequences: dict[str, int] = {}
        self.alive = alive

    def forget(self) -> None:
        """What was read or folded is no longer to be trusted."""
        self._states.clear()
        self._dirty.clear()
        self._sequences.clear()

    def state(self, operation_id: str) -> OperationState | None:
        """One operation, as the transaction has it by now."""
        found = self._states.get(operation_id)
        if found is None:
            stored = self._connection.execute(
                "SELECT state FROM operations WHERE operation_id = ?", (operation_id,)
            ).fetchone()
            if stored is None:
                return None
            if len(self._states) >= _KEPT and not self._dirty:
                self._states.clear()
            found = self._states[operation_id] = OperationState.restored(stored[0])
        return found

    def latest_with_key(self, key: str) -> OperationState | None:
        """The operation that was last submitted with this key."""
        found = self._select("WHERE key = ? ORDER BY first_position DESC LIMIT 1", (key,))
        return found[0] if found else None

    def live_with_key(self, key: str) -> OperationState | None:
        """The one that is recorded as live with this key; an index sees to it that there is one at most."""
        found = self._select("WHERE key = ? AND status IN ('pending', 'running', 'cancelling')", (key,))
        return found[0] if found else None

    def live(self) -> Iterable[OperationState]:
        """All that is recorded as pending, running or cancelling."""
        return self._select("WHERE status IN ('pending', 'running', 'cancelling') ORDER BY first_position", ())

    def children(self, parent_id: str) -> Iterable[OperationState]:
        """The operations that this one started."""
        return self._select("WHERE parent_id = ? ORDER BY first_position", (parent_id,))

    def new_id(self, readable: str) -> str:
        """The readable beginning with a suffix that is unique in the journal."""
        self.flush()
        length = 4
        while True:
            for _ in range(_TRIES):
                suffix = "".join(secrets.choice(_ALPHABET) for _ in range(length))
                taken = self._connection.execute("SELECT 1 FROM operations WHERE suffix = ?", (suffix,)).fetchone()
                if taken is None and suffix not in self._drafted_suffixes():
                    return f"{readable}_{suffix}"
            length += 1

    def next_sequence(self, operation_id: str) -> int:
        """The next event's place within its operation."""
        state = self.state(operation_id) if operation_id else None
        if state is not None:
            return state.events + 1
        if operation_id:
            return 1
        if "" not in self._sequences:
            last = self._connection.execute("SELECT max(sequence) FROM events WHERE operation_id = ''").fetchone()[0]
            self._sequences[""] = last or 0
        return self._sequences[""] + 1

    def apply(self, event: Event, fact: Fact) -> None:
        """Fold one more event. It reaches the table with ``flush``."""
        if event.operation_id:
            state = fold(self.state(event.operation_id), event, fact)
            self._states[event.operation_id] = self._dirty[event.operation_id] = state
        else:
            self._sequences[""] = event.sequence

    def flush(self) -> None:
        """Write what was folded; ended operations first, so that the key they held is free."""
        if self._dirty:
            changed = sorted(self._dirty.values(), key=lambda state: state.live)
            self._connection.executemany(_UPSERT, [row(state, state.last_position) for state in changed])
            self._dirty.clear()

    def _drafted_suffixes(self) -> set[str]:
        return {operation_id.rpartition("_")[2] for operation_id in self._dirty}

    def _select(self, where: str, parameters: tuple[Any, ...]) -> list[OperationState]:
        self.flush()
        rows = self._connection.execute(f"SELECT state FROM operations {where}", parameters).fetchall()
        return [OperationState.restored(stored) for (stored,) in rows]
