"""A process killed at any call that changes a file leaves a journal that opens, is sound, and has what it acknowledged.

Each life cycle's mutating system calls are counted once; then the process is killed before each of them in turn (or in
the middle of it, where it is a write), and the folder is looked at by another process.
"""

from __future__ import annotations

import errno

import pytest

from tests.faults.fork_server import seed
from tests.faults.injector.figures import Figures, at_every_call
from tests.faults.injector.fork_server import Fault, ForkServer
from tests.faults.life_cycles import CYCLES


@pytest.fixture(scope="module")
def server():
    with ForkServer() as made:
        yield made


def killed(server: ForkServer, every: int, *, torn: bool) -> Figures:
    """Kill each life cycle at every ``every``-th call; where it begins is the seed's."""
    seeded = seed()
    figures = Figures()
    for number, cycle in enumerate(CYCLES):
        first = 1 + (seeded + number) % every
        figures.add(at_every_call(server, cycle, Fault(), every=every, first=first))
        if torn:
            figures.add(at_every_call(server, cycle, Fault(torn=True), every=every, first=first))
    print("\n" + figures.line(f"crash at every {every} of the mutating calls, {len(CYCLES)} cycles", seeded))
    assert figures.bad == [], figures.summary()
    assert figures.fired == figures.runs == figures.ends["SIGKILL"]
    return figures


def test_a_kill_at_some_calls_of_each_life_cycle_loses_nothing(server):
    killed(server, 70, torn=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_kill_at_each_call_of_each_life_cycle_loses_nothing(server):
    assert killed(server, 1, torn=False).runs > 1000


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_a_kill_before_and_within_each_call_of_each_life_cycle_loses_nothing(server):
    assert killed(server, 1, torn=True).runs > 2000


@pytest.mark.parametrize("cycle", ["create", "migrate"])
def test_a_migration_outside_our_transaction_is_caught_with_half_a_schema(server, cycle):
    figures = at_every_call(server, cycle, Fault(), every=23, first=20, mutant="without_our_transaction")
    print(f"\nFAULTS control: {len(figures.bad)} of {figures.runs} kills leave half a migration")
    assert any("half a schema" in wrong or "does not open" in wrong for wrong in figures.bad)


def test_a_fault_hits_the_call_that_was_asked_for(server):
    calls = [server.run("create", server.prepared("create"), Fault(at=at)).fired[0] for at in (1, 2, 3)]
    assert [line.partition(" ")[0] for line in calls] == ["1", "2", "3"]
    thrice = server.run("appends", server.prepared("appends"), Fault(at=60, error=errno.EIO, times=3))
    assert [line.split(" ")[0] for line in thrice.fired] == ["60", "61", "62"]
