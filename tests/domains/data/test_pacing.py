"""IB's limits, with a clock that is a parameter."""

from __future__ import annotations

from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_ops.domains.data.engine.pacing import IB_RULES, Pacer


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    @asynccontextmanager
    async def waiting(self, reason, seconds):
        self.waits.append((reason, seconds))
        yield


async def turn(pacer: Pacer, time: Time, contract: str = "AAPL", request: object = None) -> None:
    await pacer.turn(contract, object() if request is None else request, waiting=time.waiting, sleep=time.sleep)


steps = st.tuples(st.floats(0, 20), st.sampled_from("ABC"), st.integers(0, 5))


@given(st.lists(steps, max_size=200))
async def test_no_window_is_ever_exceeded(plan):
    time = Time()
    pacer = Pacer(IB_RULES, clock=time)
    sent = []
    for pause, contract, request in plan:
        time.now += pause
        await turn(pacer, time, contract, (contract, request))
        sent.append((time.now, contract, (contract, request)))
    for now, contract, request in sent:
        before = [each for each in sent if each[0] <= now]
        assert len([at for at, *_ in before if at > now - 600]) <= 60
        assert len([at for at, other, _ in before if other == contract and at > now - 2]) <= 6
        same = [at for at, _, other in before if other == request]
        assert all(b - a >= 15 - 1e-6 for a, b in pairwise(same))


async def test_the_sixty_first_request_waits_for_the_first_to_be_ten_minutes_old():
    time = Time()
    pacer = Pacer(IB_RULES, clock=time)
    for number in range(60):
        time.now = float(number)
        await turn(pacer, time)
    assert time.waits == []
    await turn(pacer, time)
    assert time.now == 600.0
    assert time.waits == [("IB pacing", 541.0)]


async def test_a_host_that_is_not_paced_is_not_waited_for():
    time = Time()
    pacer = Pacer(None, clock=time)
    for _ in range(200):
        await turn(pacer, time, request="same")
    assert time.now == 0.0


async def test_a_host_that_said_too_often_is_left_alone_even_without_rules():
    time = Time()
    pacer = Pacer(None, clock=time)
    pacer.hold(60)
    await turn(pacer, time)
    assert time.waits == [("IB pacing", 60.0)]


async def test_a_wait_that_is_cancelled_uses_nothing_up():
    time = Time()
    pacer = Pacer(IB_RULES, clock=time)

    async def cancelled(seconds: float) -> None:
        raise InterruptedError

    await turn(pacer, time, request="same")
    with pytest.raises(InterruptedError):
        await pacer.turn("AAPL", "same", waiting=time.waiting, sleep=cancelled)
    time.now = 15.0
    assert pacer.wait_needed("AAPL", "same") == 0.0
