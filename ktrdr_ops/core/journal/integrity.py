"""The chain: each event's hash covers the one before it, its own header and the digest of its payload.

    hash = SHA-256(previous hash ‖ header ‖ SHA-256(payload))

The header is length-prefixed field by field, so no two events have the same bytes. The first event's previous hash is
made of the journal's random id. The incarnation is part of each header: after a restore the same facts hash
differently.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from ktrdr_ops.core.events import Event

_NUMBERS = struct.Struct(">QQqqI")


def genesis(journal_id: str) -> bytes:
    """What stands before the first event."""
    return hashlib.sha256(b"ktrdr_ops journal\0" + journal_id.encode()).digest()


def chained(
    previous: bytes,
    incarnation: bytes,
    position: int,
    operation_id: str,
    sequence: int,
    attempt: int | None,
    type_: str,
    event_class: str,
    version: int,
    at: int,
    writer: bytes,
    payload: bytes,
) -> bytes:
    """The hash of an event, 32 bytes."""
    texts = (incarnation, operation_id.encode(), type_.encode(), event_class.encode(), writer)
    numbers = _NUMBERS.pack(position, sequence, -1 if attempt is None else attempt, at, version)
    header = b"".join([len(text).to_bytes(4, "big") + text for text in texts])
    return hashlib.sha256(previous + header + numbers + hashlib.sha256(payload).digest()).digest()


@dataclass(frozen=True, slots=True)
class Problem:
    """What verification found. ``kind`` is one word or two joined by an underscore."""

    kind: str
    position: int | None
    operation_id: str | None
    detail: str

    def document(self) -> dict[str, object]:
        """As ``journal verify --json`` prints it."""
        return {
            "kind": self.kind,
            "position": self.position,
            "operation_id": self.operation_id,
            "detail": self.detail,
        }


class ChainCheck:
    """Walks over a journal's events in their order and collects what is wrong with them.

    ``incarnations``: where each begins and its name, in their order; of two that begin at one place the later counts.
    """

    def __init__(self, position: int, previous: bytes, incarnations: list[tuple[int, bytes]]) -> None:
        self.position = position
        self.previous = previous
        self.problems: list[Problem] = []
        self._incarnations = incarnations
        self._sequences: dict[str, int] = {}

    def walk(self, events: Iterable[Event]) -> None:
        """Take the next events. A broken event is reported once: the walk goes on from its recorded hash."""
        for event in events:
            self._order(event)
            incarnation = self._incarnation(event.position)
            expected = chained(
                self.previous,
                incarnation,
                event.position,
                event.operation_id,
                event.sequence,
                event.attempt,
                event.type,
                event.event_class,
                event.version,
                event.at,
                event.writer,
                event.payload,
            )
            if expected != event.hash:
                self._report("hash", event, "its content or its place is not what was appended")
            self.position = event.position
            self.previous = event.hash

    def _order(self, event: Event) -> None:
        if event.position != self.position + 1:
            self._report("missing", event, f"positions {self.position + 1} to {event.position - 1} are missing")
        expected = self._sequences.get(event.operation_id, event.sequence - 1) + 1
        if event.sequence != expected:
            self._report("sequence", event, f"sequence {event.sequence} follows {expected - 1}")
        self._sequences[event.operation_id] = event.sequence

    def _incarnation(self, position: int) -> bytes:
        return [name for start, name in self._incarnations if start <= position][-1]

    def _report(self, kind: str, event: Event, detail: str) -> None:
        self.problems.append(Problem(kind, event.position, event.operation_id or None, detail))
