"""Interactive Brokers' pacing of historical requests, as one process keeps it.

At most 60 requests in 10 minutes, 6 for one contract in 2 seconds, and the same request not again within 15 seconds.
``Pacer.wait_needed`` decides, ``Pacer.admitted`` remembers, ``Pacer.turn`` does both and waits in between. Times are
seconds of any clock that does not run backwards. Used from one event loop: between decision and memory nothing awaits.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Rules:
    """How many requests fit in how many seconds."""

    total: int = 60
    total_seconds: float = 600.0
    contract: int = 6
    contract_seconds: float = 2.0
    identical_seconds: float = 15.0


IB_RULES = Rules()

Waiting = Callable[[str, float | None], AbstractAsyncContextManager[object]]
Sleep = Callable[[float], Awaitable[object]]


@dataclass(slots=True)
class Pacer:
    """The budget of one host in this process. ``rules=None``: it does not pace."""

    rules: Rules | None
    clock: Callable[[], float] = time.monotonic
    _all: deque[float] = field(default_factory=deque)
    _contracts: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(deque))
    _same: dict[Hashable, float] = field(default_factory=dict)
    _held_until: float = float("-inf")

    def wait_needed(self, contract: str, request: Hashable) -> float:
        """Seconds until this request may be sent; 0.0 is now."""
        now = self.clock()
        waits = [0.0, self._held_until - now]
        if self.rules is not None:
            rules = self.rules
            waits.append(_until_free(self._all, rules.total, rules.total_seconds, now))
            waits.append(_until_free(self._contracts.get(contract, ()), rules.contract, rules.contract_seconds, now))
            if request in self._same:
                waits.append(self._same[request] + rules.identical_seconds - now)
        return max(waits)

    def admitted(self, contract: str, request: Hashable) -> None:
        """This request is being sent now."""
        if self.rules is None:
            return
        now = self.clock()
        self._forget(now)
        self._all.append(now)
        self._contracts[contract].append(now)
        self._same[request] = now

    def hold(self, seconds: float) -> None:
        """The host said that it was asked too often: nothing is sent for so long."""
        self._held_until = max(self._held_until, self.clock() + seconds)

    async def turn(self, contract: str, request: Hashable, *, waiting: Waiting, sleep: Sleep) -> float:
        """Wait until this request may be sent, and count it. Gives the seconds waited."""
        waited = 0.0
        while (seconds := self.wait_needed(contract, request)) > 0:
            async with waiting("IB pacing", seconds):
                await sleep(seconds)
            waited += seconds
        self.admitted(contract, request)
        return waited

    def _forget(self, now: float) -> None:
        assert self.rules is not None
        rules = self.rules
        _drop(self._all, now - rules.total_seconds)
        for contract, sent in list(self._contracts.items()):
            _drop(sent, now - rules.contract_seconds)
            if not sent:
                del self._contracts[contract]
        for request, at in list(self._same.items()):
            if at <= now - rules.identical_seconds:
                del self._same[request]


def _until_free(sent: deque[float] | tuple[()], most: int, seconds: float, now: float) -> float:
    """When the request that is ``most`` back has left the window."""
    return sent[-most] + seconds - now if len(sent) >= most else 0.0


def _drop(sent: deque[float], until: float) -> None:
    while sent and sent[0] <= until:
        sent.popleft()
