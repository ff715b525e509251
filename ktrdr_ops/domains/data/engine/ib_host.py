"""The IB host service's calls, and what its failures become.

An outage of the gateway looks like an invalid symbol, or like a timeout in a cheerful 200: wherever that could be, the
gateway is asked about first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from ktrdr_ops.core.cancellation import CancellationToken
from ktrdr_ops.core.errors import HostAnswerWrong, HostRefused, HostUnavailable
from ktrdr_ops.core.host_service import AsyncHostService, HttpPool, Retry
from ktrdr_ops.domains.data.engine.answers import (
    PACING_WAIT_SECONDS,
    Fetched,
    Meaning,
    fetched,
    head_in,
    meaning_of,
)
from ktrdr_ops.domains.data.engine.bars import empty_bars, parse_moment
from ktrdr_ops.domains.data.engine.errors import UnknownSymbol
from ktrdr_ops.domains.data.engine.pacing import Pacer
from ktrdr_ops.domains.data.engine.segments import stamp
from ktrdr_ops.domains.data.engine.symbols import instrument_type

SERVICE = "IB host service"
HISTORICAL = "/data/historical"
_ABSENT_TRIES = 3
_PACING_TRIES = 3
_HEALTH_SECONDS = 10.0
_GATEWAY_HINT = "Start (or log in to) the Interactive Brokers gateway.  ktrdr-ops doctor"


@dataclass(slots=True)
class Caller:
    """Who asks: the token that can stop a request, where retries and waits are told, and how many requests went out."""

    token: CancellationToken
    retried: Callable[[Retry], None]
    waiting: Callable[[str, float | None], AbstractAsyncContextManager[object]]
    requests: int = field(default=0)


@dataclass(frozen=True, slots=True)
class Contract:
    """What the host knows of a symbol: whether it exists, since when it has bars (UTC), and what it says if not."""

    valid: bool
    error: str | None
    head: datetime | None


class IbHostService(AsyncHostService):
    """The client of the IB host service at ``url``. ``pacer`` keeps to IB's limits for this process.

    ``gateway_wait`` (seconds, longer each time) lies between tries when the host says that its gateway timed out.
    """

    def __init__(
        self, url: str, pacer: Pacer, *, pool: HttpPool | None = None, gateway_wait: float = 2.0, **options: Any
    ) -> None:
        super().__init__(pool=pool, **options)
        self._url_of_host = url
        self._pacer = pacer
        self._gateway_wait = gateway_wait

    def get_service_name(self) -> str:
        """As people call it."""
        return SERVICE

    def get_base_url(self) -> str:
        """As it was given."""
        return self._url_of_host

    def get_health_path(self) -> str:
        """With the slash it is another route, the one that knows of the gateway."""
        return "/health/"

    async def require_gateway(self, caller: Caller) -> None:
        """Raises HostUnavailable when the host answers and its gateway does not."""
        deadline = min(_HEALTH_SECONDS, self._deadline)
        body = _object(
            await self.get("/health/", token=caller.token, observer=caller.retried, deadline=deadline), "/health/"
        )
        status = body.get("ib_status")
        if isinstance(status, dict) and status.get("connected") is True:
            return
        said = body.get("error") or "gateway disconnected"
        raise HostUnavailable(
            f"the {SERVICE} answers, but its gateway is disconnected ({said}, {self._url_of_host})",
            hint=_GATEWAY_HINT,
            service=SERVICE,
            url=self._url_of_host,
            status=200,
        )

    async def contract(self, symbol: str, timeframe: str, caller: Caller) -> Contract:
        """What the host knows of the symbol. Raises HostUnavailable rather than calling it invalid in an outage."""
        await self.require_gateway(caller)
        asked = {"symbol": symbol, "timeframes": [timeframe]}
        post = partial(self.post, "/data/validate", asked)
        body, error = await self._settled(post, "POST", "/data/validate", caller)
        if not body.get("success") or not body.get("is_valid"):
            await self.require_gateway(caller)
            if body.get("success") is not True and meaning_of(error) is not Meaning.INVALID_SYMBOL:
                raise HostAnswerWrong(f"the {SERVICE} could not say whether it knows {symbol}: {error}")
            return Contract(False, error, None)
        heads = body.get("head_timestamps")
        head = _moment(heads.get(timeframe)) if isinstance(heads, dict) else None
        return Contract(True, None, head) if head else await self.head_timestamp(symbol, timeframe, caller)

    async def head_timestamp(self, symbol: str, timeframe: str, caller: Caller) -> Contract:
        """Since when the host has bars of a valid symbol; its error if it does not say. Raises HostUnavailable."""
        params = {"symbol": symbol, "timeframe": timeframe, "instrument_type": instrument_type(symbol)}
        path = "/data/head-timestamp"
        body, error = await self._settled(partial(self.get, path, params=params), "GET", path, caller)
        head = _moment(body.get("timestamp")) if body.get("success") else None
        if head is None:
            await self.require_gateway(caller)
        return Contract(True, None if head else error, head)

    async def _settled(
        self, ask: Callable[..., Awaitable[Any]], method: str, path: str, caller: Caller
    ) -> tuple[dict[str, Any], str]:
        """An answer that is not a gateway's timeout, and its error text. Raises HostUnavailable when none comes."""
        absent = 0
        while True:
            body = _object(await ask(token=caller.token, observer=caller.retried), path)
            error = " ".join(str(body[name]) for name in ("error_message", "error") if body.get(name))
            if meaning_of(error) is not Meaning.ABSENT:
                return body, error or "no reason given"
            absent += 1
            await self._again_if_connected(error, absent, caller, method, path)

    async def historical(self, symbol: str, timeframe: str, start: datetime, end: datetime, caller: Caller) -> Fetched:
        """The bars that open from ``start`` to ``end``; without bars is an answer, too.

        Raises HostUnavailable (also for a gateway that is gone), HostAnswerWrong, HostRefused, UnknownSymbol.
        """
        absent = paced = 0
        while True:
            answer = await self._historical(symbol, timeframe, start, end, caller)
            if answer.get("success") is True:
                return await self._bars(answer, start, end, caller)
            error = str(answer.get("error") or "no reason given")
            match meaning_of(error):
                case Meaning.NO_DATA:
                    return await self._no_data(error, caller)
                case Meaning.BEFORE_HEAD:
                    head = head_in(error)
                    if head is None or head <= start:
                        raise HostAnswerWrong(f"the {SERVICE} refused what it says it has: {error}")
                    if head > end:
                        await self.require_gateway(caller)
                        return Fetched(empty_bars())
                    start = head
                case Meaning.ABSENT:
                    absent += 1
                    await self._again_if_connected(error, absent, caller)
                case Meaning.PACING if paced < _PACING_TRIES:
                    paced += 1
                    self._pacer.hold(PACING_WAIT_SECONDS)
                    caller.retried(Retry(SERVICE, "POST", HISTORICAL, paced, error, PACING_WAIT_SECONDS))
                case Meaning.INVALID_SYMBOL:
                    await self.require_gateway(caller)
                    raise UnknownSymbol(f"the {SERVICE} does not know {symbol}: {error}", hint=unknown_hint(symbol))
                case Meaning.FINAL:
                    raise HostRefused(f"the {SERVICE} refused {symbol} {timeframe}: {error}", hint=_FINAL_HINT)
                case _:
                    raise HostAnswerWrong(f"the {SERVICE} failed: {error}")

    async def _historical(
        self, symbol: str, timeframe: str, start: datetime, end: datetime, caller: Caller
    ) -> dict[str, Any]:
        asked = {
            "symbol": symbol,
            "timeframe": timeframe,
            "start": stamp(start),
            "end": stamp(end),
            "instrument_type": instrument_type(symbol),
        }
        request = tuple(asked.values())
        await self._pacer.turn(symbol, request, waiting=caller.waiting, sleep=caller.token.sleep)
        caller.requests += 1

        def retried(retry: Retry) -> None:
            caller.requests += 1
            self._pacer.admitted(symbol, request)
            caller.retried(retry)

        return _object(await self.post(HISTORICAL, asked, token=caller.token, observer=retried), HISTORICAL)

    async def _bars(self, answer: dict[str, Any], start: datetime, end: datetime, caller: Caller) -> Fetched:
        """What a success brought; one without bars is believed only while the gateway is connected."""
        if answer.get("data") is None:
            await self.require_gateway(caller)
        found = await asyncio.to_thread(fetched, answer, start, end)
        if not len(found.bars):
            await self.require_gateway(caller)
        return found

    async def _no_data(self, error: str, caller: Caller) -> Fetched:
        """Believed only while the gateway is connected."""
        await self.require_gateway(caller)
        return Fetched(empty_bars(), notes=[] if error.lower().startswith("no data returned") else [error])

    async def _again_if_connected(
        self, error: str, tries: int, caller: Caller, method: str = "POST", path: str = HISTORICAL
    ) -> None:
        await self.require_gateway(caller)
        if tries >= _ABSENT_TRIES:
            raise HostUnavailable(
                f"the gateway of the {SERVICE} does not answer: {error}", hint=_GATEWAY_HINT, service=SERVICE
            )
        seconds = self._gateway_wait * tries
        caller.retried(Retry(SERVICE, method, path, tries, error, seconds))
        await caller.token.sleep(seconds, path)


_FINAL_HINT = "Interactive Brokers does not give this to your account, or not at all; asking again will not help."


def unknown_hint(symbol: str) -> str:
    """What to try when a symbol is not known."""
    return f"Is {symbol} spelt as Interactive Brokers spells it? Classes of shares: BRK.B. Forex: EUR.USD."


def _object(body: Any, path: str) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise HostAnswerWrong(f"the {SERVICE} answered {path} with {type(body).__name__}, not an object")
    return body


def _moment(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        return parse_moment(value)
    except ValueError:
        raise HostAnswerWrong(f"the {SERVICE} says {value[:60]!r} where a time belongs") from None
