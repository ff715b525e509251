"""Appends, reads and cancels of several processes at once, checked for linearizability (Wing and Gong, 1993).

A history is linearizable when its calls can be put into one order that keeps each call within its own time and that a
sequential object would have answered the same. The search walks over how far each process has come, and remembers where
it has been.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from tests.faults.clients import Client

PROCESSES = 4

State = tuple[str, int]
"""(status, completed steps) of the one operation."""
Call = tuple[int, int, str, tuple[Any, ...], Any]


def sequential(state: State, call: Call) -> State | None:
    """The state after a call that answered so, or None where the object would have answered otherwise."""
    status, steps = state
    _, _, name, arguments, answer = call
    if name == "read":
        return state if answer == (status, 1, steps) else None
    if name == "step":
        if status in ("running", "cancelling"):
            return (status, steps + 1) if isinstance(answer, int) else None
        return state if answer == "ownership_lost" else None
    if name == "cancel":
        if status in ("running", "cancelling"):
            return ("cancelling", steps) if answer == "asked" else None
        return state if answer == "finished" else None
    if status in ("running", "cancelling"):
        return (arguments[2], steps) if isinstance(answer, int) else None
    return state if answer == "ownership_lost" else None


def linearizable(histories: list[list[Call]]) -> bool:
    """Whether the calls (each process's in its own order) have a linearization."""
    begin: tuple[int, ...] = (0,) * len(histories)
    todo: list[tuple[tuple[int, ...], State]] = [(begin, ("running", 0))]
    seen = set(todo)
    while todo:
        places, state = todo.pop()
        waiting = [
            (process, histories[process][at]) for process, at in enumerate(places) if at < len(histories[process])
        ]
        if not waiting:
            return True
        first_end = min(call[1] for _, call in waiting)
        for process, call in waiting:
            after = sequential(state, call) if call[0] <= first_end else None
            if after is not None:
                next_ = (tuple(at + (index == process) for index, at in enumerate(places)), after)
                if next_ not in seen:
                    seen.add(next_)
                    todo.append(next_)
    return False


def calls_of(random_: random.Random, operation_id: str, count: int, end: bool) -> list[tuple[str, tuple[Any, ...]]]:
    calls: list[tuple[str, tuple[Any, ...]]] = []
    for number in range(count):
        name = random_.choices(["step", "read", "cancel"], [5, 5, 0.05])[0]
        arguments = (operation_id, 1, str(number)) if name == "step" else (operation_id,)
        calls.append((name, arguments))
    if end:
        calls.insert(random_.randrange(count // 2, count), ("end", (operation_id, 1, "completed")))
    return calls


def histories_of(path, seed: int, calls: int) -> list[list[Call]]:
    """What several processes saw that worked on one operation at once."""
    random_ = random.Random(seed)
    clients = [Client(path) for _ in range(PROCESSES)]
    try:
        operation_id, _ = clients[0].call("start", f"key {seed}", "d")
        for index, client in enumerate(clients):
            client.begin(calls_of(random_, operation_id, calls // PROCESSES, end=index == 0))
        return [client.ended() for client in clients]
    finally:
        for client in clients:
            client.close()


def check(tmp_path, histories: int, calls: int) -> None:
    seed = int(os.environ.get("FAULT_SEED", "20261124"))
    made = 0
    for number in range(histories):
        found = histories_of(tmp_path / f"{number}.db", seed + number, calls)
        made += sum(len(history) for history in found)
        assert linearizable(found), f"seed {seed + number}"
    print(
        f"\nFAULTS linearizability: {histories} histories, {made} calls, {PROCESSES} processes, seed {seed}: 0 refused"
    )


def test_concurrent_calls_are_linearizable(tmp_path):
    check(tmp_path, 2, 400)


@pytest.mark.slow
def test_twenty_histories_are_linearizable(tmp_path):
    check(tmp_path, 20, 1000)


@pytest.mark.full
def test_a_hundred_histories_are_linearizable(tmp_path):
    check(tmp_path, 100, 1000)


def test_control_a_stale_read_is_found(tmp_path):
    """Each process remembers its last read for a while, as a cache that nobody tells would."""
    histories = histories_of(tmp_path / "journal.db", 1, 400)
    assert linearizable(histories)
    stale: list[list[Call]] = []
    for history in histories:
        remembered: Any = None
        changed: list[Call] = []
        for index, (began, ended, name, arguments, answer) in enumerate(history):
            if name == "read":
                remembered = answer if remembered is None or index % 5 == 0 else remembered
                answer = remembered
            changed.append((began, ended, name, arguments, answer))
        stale.append(changed)
    assert not linearizable(stale)


def test_control_a_lost_append_is_found(tmp_path):
    histories = histories_of(tmp_path / "journal.db", 2, 200)
    for history in histories:
        place = next(index for index, call in enumerate(history) if call[2] == "step" and isinstance(call[4], int))
        del history[place]
    assert not linearizable(histories)
