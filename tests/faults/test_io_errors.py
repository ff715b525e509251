"""A call that fails is loud: each append is there and acknowledged, or it is raised and not there; nothing is corrupt.

Every system call of every life cycle that changes a file fails with EIO or ENOSPC (and every one that reads, with EIO):
once, three times in a row, or for ever; a write may have done its first half before. The process must end by itself,
with an error that people can read.
"""

from __future__ import annotations

import errno
from itertools import product

import pytest

from tests.faults.fork_server import seed
from tests.faults.injector.figures import Figures, at_every_call
from tests.faults.injector.fork_server import FOR_EVER, Fault, ForkServer
from tests.faults.life_cycles import CYCLES

FAULTS = tuple(Fault(error=error, times=times) for error, times in product((errno.EIO, errno.ENOSPC), (1, 3, FOR_EVER)))
TORN = tuple(Fault(error=errno.ENOSPC, times=times, torn=True) for times in (1, FOR_EVER))
READS = tuple(Fault(error=errno.EIO, times=times, reads=True) for times in (1, 3, FOR_EVER))


@pytest.fixture(scope="module")
def server():
    with ForkServer() as made:
        yield made


def failing(server: ForkServer, faults: tuple[Fault, ...], every: int) -> Figures:
    """Let every ``every``-th call of each life cycle fail in each of these ways; where it begins is the seed's."""
    seeded = seed()
    figures = Figures()
    for number, (cycle, fault) in enumerate(product(CYCLES, faults)):
        first = 1 + (seeded + number * 7) % every
        figures.add(at_every_call(server, cycle, fault, every=every, first=first))
    kinds = faults[0] if len(faults) == 1 else f"{len(faults)} kinds"
    print("\n" + figures.line(f"I/O error at every {every} of the calls, {kinds}", seeded))
    assert figures.bad == [], figures.summary()
    assert figures.fired == figures.runs
    return figures


def test_an_error_at_some_calls_of_each_life_cycle_is_loud_and_loses_nothing(server):
    failing(server, (FAULTS[0], FAULTS[3], READS[0]), 170)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_error_at_many_calls_of_each_life_cycle_is_loud_and_loses_nothing(server):
    assert failing(server, (*FAULTS, *TORN, *READS), 40).runs > 300


@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("fault", [*FAULTS, *TORN, *READS], ids=str)
def test_an_error_at_each_call_of_each_life_cycle_is_loud_and_loses_nothing(server, fault):
    assert failing(server, (fault,), 1).runs > 600


def test_a_writer_that_swallows_the_error_is_caught(server):
    figures = at_every_call(
        server, "appends", Fault(error=errno.ENOSPC), every=31, first=5, mutant="swallowing_the_error"
    )
    print(f"\nFAULTS control: {len(figures.bad)} findings in {figures.runs} runs of a writer that swallows the error")
    assert any("acknowledged, but not there" in wrong for wrong in figures.bad)
