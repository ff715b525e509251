"""Calls to a host service: JSON over HTTP, each try within a deadline, tried again where that may help, cancellable.

What comes back is sorted by what the caller can do about it:

    absent   refused, reset, no complete answer within the deadline, 503              HostUnavailable, after the tries
    wrong    500 and other 5xx, a redirect, HTML, truncated, not JSON, too large      HostAnswerWrong, after the tries
    final    4xx: asking again would be refused again                                 HostRefused, at once

Each error's details: service, url, status (None if no answer came), reason (a word), retry_after, tries.

Between tries it waits as stamina and tenacity do, ``min(longest, first * 2 ** (n - 1) + jitter)``, or as long as
Retry-After asks. Their loop is not used: it tells its hooks, one list for the whole process, how long it waits, so a
caller could not be told; and with no hook installed it prints a line to stderr at each retry.
"""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import count
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from ktrdr_ops.core.clock import Clock, utc_now
from ktrdr_ops.core.errors import HostAnswerWrong, HostRefused, HostServiceError, HostUnavailable, InvalidValue
from ktrdr_ops.core.http_pool import Answer, HttpPool, Trouble

if TYPE_CHECKING:
    from ktrdr_ops.core.cancellation import CancellationToken

__all__ = ["AsyncHostService", "HttpPool", "Retry", "ServiceHealth"]

MEBIBYTE = 1024 * 1024
_ABSENT = ("refused", "reset", "deadline")
_QUICK_RETRY_SECONDS = 0.2
_HEALTH_DEADLINE = 10.0
_LONGEST_DETAIL = 500


@dataclass(frozen=True)
class Retry:
    """Try number `attempt` (from 1) of a request failed for `reason`; the next follows in `wait_seconds`."""

    service: str
    method: str
    path: str
    attempt: int
    reason: str
    wait_seconds: float


@dataclass(frozen=True)
class ServiceHealth:
    """What this process saw of a service: when it last answered anything (UTC), and how many tries failed since it
    last answered usefully."""

    last_answer_at: datetime | None = None
    consecutive_failures: int = 0
    last_problem: str | None = None


@dataclass(frozen=True)
class _Call:
    method: str
    path: str
    json: Any
    params: Mapping[str, Any] | None
    deadline: float
    idempotent: bool
    tries: int


class AsyncHostService(ABC):
    """The client of one host service. A subclass names it and says where it is; it adds the calls that people make.

    `deadline` (seconds) covers one try from connecting to the last byte; `max_body` (bytes) an answer, unpacked;
    `first_wait` and `longest_wait` (seconds) lie between tries. Without a `pool` it has one of its own, which
    `aclose()` closes; a shared pool is left to its owner.
    """

    def __init__(
        self,
        *,
        pool: HttpPool | None = None,
        deadline: float = 45.0,
        max_body: int = 64 * MEBIBYTE,
        tries: int = 4,
        first_wait: float = 0.5,
        longest_wait: float = 10.0,
        clock: Clock = utc_now,
    ) -> None:
        self._pool = pool or HttpPool()
        self._owns_pool = pool is None
        self._deadline = deadline
        self._max_body = max_body
        self._tries = tries
        self._first_wait = first_wait
        self._longest_wait = longest_wait
        self._clock = clock
        self._health = ServiceHealth()

    @abstractmethod
    def get_service_name(self) -> str:
        """What people call the service, as in "the IB host service refused the connection" without the article."""

    @abstractmethod
    def get_base_url(self) -> str:
        """``http://host:port``, perhaps with a path in front of all others."""

    def read_json(self, body: bytes) -> Any:
        """What an answer's body says. Raises ValueError where it is no JSON."""
        return orjson.loads(body)

    def get_health_path(self) -> str:
        """Where the service says how it is."""
        return "/health"

    @property
    def health(self) -> ServiceHealth:
        """What the calls so far have shown; asks nothing."""
        return self._health

    async def get(self, path: str, **options: Any) -> Any:
        """`request` with GET."""
        return await self.request("GET", path, **options)

    async def post(self, path: str, json: Any = None, **options: Any) -> Any:
        """`request` with POST."""
        return await self.request("POST", path, json=json, **options)

    async def delete(self, path: str, **options: Any) -> Any:
        """`request` with DELETE."""
        return await self.request("DELETE", path, **options)

    async def check_health(self, token: CancellationToken | None = None) -> dict[str, Any]:
        """What the service says of itself: one try, at most 10 s. Raises HostServiceError."""
        path, deadline = self.get_health_path(), min(_HEALTH_DEADLINE, self._deadline)
        call = _Call("GET", path, None, None, deadline, idempotent=True, tries=1)
        answer = await self._run(call, token, None)
        if not isinstance(answer, dict):
            raise self._error(HostAnswerWrong, call, "answered its health in another form than an object", "form", 200)
        return answer

    async def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        token: CancellationToken | None = None,
        observer: Callable[[Retry], None] | None = None,
        deadline: float | None = None,
        idempotent: bool = True,
    ) -> Any:
        """The answer's JSON value (None for an empty 2xx). Raises HostServiceError, or what the token raises.

        A cancelled token closes the connection at once, or ends the wait between tries. `observer` is told of each
        retry before its wait. With `idempotent=False` only what certainly was not acted on is sent again: a refused
        connection and a 503.
        """
        call = _Call(
            method, path, json, params, self._deadline if deadline is None else deadline, idempotent, self._tries
        )
        return await self._run(call, token, observer)

    async def aclose(self) -> None:
        """Close the connections, if they are this service's alone."""
        if self._owns_pool:
            await self._pool.aclose()

    async def _run(self, call: _Call, token: CancellationToken | None, observer: Callable[[Retry], None] | None) -> Any:
        if token is None:
            return await self._until_answered(call, observer)
        name = f"{call.method} {call.path}"
        token.check_cancellation_point(name)
        return await token.guard(self._until_answered(call, observer), name)

    async def _until_answered(self, call: _Call, observer: Callable[[Retry], None] | None) -> Any:
        for number in count(1):
            try:
                return await self._once(call)
            except (HostUnavailable, HostAnswerWrong) as problem:
                wait = self._wait_before_next(problem, call, number)
                self._failed(problem)
                if wait is None:
                    problem.details["tries"] = number
                    raise
                if observer is not None:
                    service = self.get_service_name()
                    observer(Retry(service, call.method, call.path, number, problem.message, wait))
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    def _wait_before_next(self, problem: HostServiceError, call: _Call, number: int) -> float | None:
        """Seconds until the next try, None if there is to be none. Decides only; nothing is done."""
        reason, asked = problem.details["reason"], problem.details["retry_after"]
        if number >= call.tries or not (call.idempotent or reason in ("refused", "503")):
            return None
        if reason in _ABSENT and self._health.last_answer_at is None:
            return _QUICK_RETRY_SECONDS if number == 1 else None
        if asked is not None:
            return float(asked) if asked <= call.deadline else None
        step: float = self._first_wait * 2 ** (number - 1)
        return min(self._longest_wait, step + random.uniform(0, self._first_wait))

    async def _once(self, call: _Call) -> Any:
        url = self._url(call.path)
        try:
            answer = await self._pool.exchange(
                call.method, url, json=call.json, params=call.params, deadline=call.deadline, max_body=self._max_body
            )
        except Trouble as trouble:
            if trouble.status is not None:
                self._answered()
            kind = HostUnavailable if trouble.kind in _ABSENT else HostAnswerWrong
            raise self._error(kind, call, trouble.reason, trouble.kind, trouble.status) from trouble
        self._answered()
        return self._value(call, answer)

    def _value(self, call: _Call, answer: Answer) -> Any:
        status = answer.status
        if 200 <= status < 300:
            value = self._json(call, answer)
            self._served()
            return value
        detail = _detail(answer)
        if 400 <= status < 500:
            self._served()
            raise self._error(HostRefused, call, f"refused {call.method} {call.path}: {detail}", "final", status)
        if status == 503:
            raise self._error(HostUnavailable, call, f"is unavailable: {detail}", "503", status, answer.retry_after)
        raise self._error(HostAnswerWrong, call, f"answered {detail}", str(status), status, answer.retry_after)

    def _json(self, call: _Call, answer: Answer) -> Any:
        if not answer.body:
            return None
        if not _is_json(answer.content_type):
            said = answer.content_type[:80] or "no content type"
            raise self._error(HostAnswerWrong, call, f"answered {said} instead of JSON", "content_type", answer.status)
        try:
            return self.read_json(answer.body)
        except (ValueError, RecursionError):
            raise self._error(HostAnswerWrong, call, "answered broken JSON", "not_json", answer.status) from None

    def _url(self, path: str) -> str:
        base = self.get_base_url()
        if not _is_address(base):
            name = self.get_service_name()
            raise InvalidValue(f"{base!r} is no address of the {name}", hint="It looks like http://127.0.0.1:5001")
        return base.rstrip("/") + path

    def _error(
        self,
        kind: type[HostServiceError],
        call: _Call,
        what: str,
        reason: str,
        status: int | None,
        retry_after: float | None = None,
    ) -> HostServiceError:
        base = self.get_base_url()
        return kind(
            f"the {self.get_service_name()} {what} ({base})",
            hint=_HINTS[kind],
            service=self.get_service_name(),
            url=self._url(call.path),
            status=status,
            reason=reason,
            retry_after=retry_after,
            tries=1,
        )

    def _answered(self) -> None:
        self._health = replace(self._health, last_answer_at=self._clock())

    def _served(self) -> None:
        self._health = replace(self._health, consecutive_failures=0, last_problem=None)

    def _failed(self, problem: HostServiceError) -> None:
        failures = self._health.consecutive_failures + 1
        self._health = replace(self._health, consecutive_failures=failures, last_problem=problem.message)


_HINTS: dict[type[HostServiceError], str] = {
    HostUnavailable: "Is it running?  ktrdr-ops doctor",
    HostAnswerWrong: "Is it the right service, and is it well?  ktrdr-ops doctor",
    HostRefused: "Asked again it would refuse again: what is asked must change.  ktrdr-ops doctor",
}


def _is_address(base: str) -> bool:
    try:
        parts = urlsplit(base)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_json(content_type: str) -> bool:
    return content_type == "application/json" or content_type.endswith("+json")


def _detail(answer: Answer) -> str:
    """An error's status and what FastAPI says about it: a text, or for 422 where which value is wrong."""
    said = ""
    if _is_json(answer.content_type):
        try:
            body = orjson.loads(answer.body)
        except orjson.JSONDecodeError:
            body = None
        if isinstance(body, dict):
            said = _said(body.get("detail"))
    return f"{answer.status} {said}".strip()[:_LONGEST_DETAIL]


def _said(detail: Any) -> str:
    if isinstance(detail, list):
        return "; ".join(_wrong_value(item) for item in detail if isinstance(item, dict))
    return "" if detail is None else str(detail)


def _wrong_value(item: dict[str, Any]) -> str:
    loc = item.get("loc")
    where = ".".join(str(part) for part in loc if part != "body") if isinstance(loc, list) else ""
    return f"{where}: {item.get('msg', '')}".strip(": ")
