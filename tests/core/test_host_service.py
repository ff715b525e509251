"""AsyncHostService against a host that misbehaves, over real sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from ktrdr_ops.core.cancellation import CancellationToken
from ktrdr_ops.core.errors import (
    HostAnswerWrong,
    HostRefused,
    HostServiceError,
    HostUnavailable,
    InvalidValue,
    OperationCancelledException,
)
from ktrdr_ops.core.host_service import AsyncHostService, HttpPool, Retry
from tests import faulty_host as faulty
from tests.faulty_host import FaultyHost

pytestmark = pytest.mark.asyncio

GOOD = faulty.answers(b'{"a": 1}')
SERVICE_NAME = "test host service"


class Service(AsyncHostService):
    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(**{"deadline": 5.0, "first_wait": 0.01, "max_body": 1024 * 1024, **options})
        self.url = url

    def get_service_name(self) -> str:
        return SERVICE_NAME

    def get_base_url(self) -> str:
        return self.url


@contextlib.asynccontextmanager
async def service(url: str, **options: Any) -> AsyncIterator[Service]:
    one = Service(url, **options)
    try:
        yield one
    finally:
        await one.aclose()


async def failure(one: Service, **options: Any) -> HostServiceError:
    with pytest.raises(HostServiceError) as caught:
        await one.get("/x", **options)
    return caught.value


async def eventually(condition: Callable[[], bool], within: float = 2.0) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.005)


# what fails, and as what


ABSENT = {
    "reset at once": (faulty.reset_at_once, "reset"),
    "closed at once": (faulty.closed_at_once, "reset"),
    "reset in the body": (faulty.reset_in_the_body, "reset"),
    "hang": (faulty.hang, "deadline"),
    "hang in the body": (faulty.hang_in_the_body, "deadline"),
    "drip": (faulty.drip, "deadline"),
    "503": (faulty.unavailable(), "503"),
    "503 with Retry-After": (faulty.unavailable("0"), "503"),
}
WRONG = {
    "500": (faulty.server_error, "500"),
    "502": (faulty.bad_gateway, "502"),
    "redirect": (faulty.redirect, "307"),
    "short body": (faulty.short_body, "truncated"),
    "truncated gzip": (faulty.truncated_gzip, "truncated"),
    "broken gzip": (faulty.broken_gzip, "garbled"),
    "truncated JSON": (faulty.truncated_json, "not_json"),
    "gzip bomb": (faulty.gzip_bomb(50), "oversize"),
    "too large": (faulty.answers(b" " * 2_000_000), "oversize"),
    "HTML": (faulty.html, "content_type"),
    "wrong content type": (faulty.wrong_content_type, "content_type"),
    "not HTTP": (faulty.not_http, "garbled"),
    "unknown encoding": (faulty.answers(b"x", more="Content-Encoding: br\r\n"), "garbled"),
}


@pytest.mark.parametrize("name", ABSENT)
@pytest.mark.parametrize("answered_before", [True, False])
async def test_an_absent_host_is_unavailable_after_the_tries_and_sooner_if_it_never_answered(
    name: str, answered_before: bool
) -> None:
    behaviour, reason = ABSENT[name]
    before = [GOOD] if answered_before else []
    async with FaultyHost(*before, behaviour) as host, service(host.url, tries=3, deadline=0.2) as one:
        if answered_before:
            assert await one.get("/x") == {"a": 1}
        error = await failure(one)
        tries = 3 if answered_before or reason == "503" or name == "reset in the body" else 2
        assert type(error) is HostUnavailable
        assert (error.details["reason"], error.details["tries"]) == (reason, tries)
        assert len(host.requests) == len(before) + tries
        assert error.details["url"] == f"{host.url}/x"
        assert error.details["service"] == SERVICE_NAME
        assert SERVICE_NAME in error.message
        assert host.url in error.message
        assert error.hint is not None
        assert "ktrdr-ops doctor" in error.hint


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_answer_is_wrong_after_the_tries(name: str) -> None:
    behaviour, reason = WRONG[name]
    async with FaultyHost(behaviour) as host, service(host.url, tries=3) as one:
        error = await failure(one)
        assert type(error) is HostAnswerWrong
        assert (error.details["reason"], error.details["tries"]) == (reason, 3)
        assert len(host.requests) == 3
        assert error.hint is not None


@pytest.mark.parametrize("name", [*ABSENT, *WRONG])
async def test_what_fails_once_succeeds_at_the_next_try_and_the_observer_is_told(name: str) -> None:
    behaviour, _ = {**ABSENT, **WRONG}[name]
    told: list[Retry] = []
    async with FaultyHost(behaviour, GOOD) as host, service(host.url, deadline=0.3) as one:
        assert await one.post("/x", {"q": 1}, observer=told.append) == {"a": 1}
        assert host.requests == ["POST /x HTTP/1.1"] * 2
        assert host.bodies == [b'{"q":1}'] * 2
    assert [(retry.service, retry.method, retry.path, retry.attempt) for retry in told] == [
        (SERVICE_NAME, "POST", "/x", 1)
    ]
    assert told[0].wait_seconds >= 0
    assert told[0].reason


async def test_a_bomb_is_left_alone_at_the_cap() -> None:
    async with FaultyHost(faulty.gzip_bomb(300)) as host, service(host.url, tries=1) as one:
        began = time.monotonic()
        assert (await failure(one)).details["reason"] == "oversize"
        assert time.monotonic() - began < 0.5
        await host.until(lambda h: h.gone == 1)


async def test_422_is_final_and_carries_the_frameworks_detail() -> None:
    async with FaultyHost(faulty.unprocessable) as host, service(host.url) as one:
        error = await failure(one)
        assert type(error) is HostRefused
        assert len(host.requests) == 1
        assert error.details["status"] == 422
        assert "name: Field required" in error.message


@pytest.mark.parametrize("status", ["400 Bad Request", "404 Not Found", "409 Conflict"])
async def test_another_4xx_is_final_with_its_text(status: str) -> None:
    body = b'{"detail": "Session conflict: s1 already exists"}'
    async with FaultyHost(faulty.answers(body, status)) as host, service(host.url) as one:
        error = await failure(one)
        assert type(error) is HostRefused
        assert "Session conflict: s1 already exists" in error.message
        assert len(host.requests) == 1


@pytest.mark.parametrize("detail", [b"[[[]]]", b"7", b'[{"loc": 5}]', b'{"x": 1}', b"[" * 900 + b"]" * 900, b"<html>"])
async def test_a_strange_detail_does_not_hide_the_refusal(detail: bytes) -> None:
    answer = faulty.answers(b'{"detail": ' + detail + b"}", "400 Bad Request")
    async with FaultyHost(answer) as host, service(host.url) as one:
        assert type(await failure(one)) is HostRefused


async def test_an_empty_answer_is_none() -> None:
    async with FaultyHost(faulty.answers(b"", "204 No Content")) as host, service(host.url) as one:
        assert await one.delete("/x") is None


async def test_an_address_that_is_none_is_an_invalid_value() -> None:
    for url in ("localhost:5001", "", "http://", "ftp://host", "http://[", "http://host:99999999"):
        async with service(url) as one:
            with pytest.raises(InvalidValue):
                await one.get("/x")


# tries


async def test_a_refused_connection_fails_fast_before_the_first_answer() -> None:
    told: list[Retry] = []
    async with service(faulty.refusing_url(), first_wait=30.0) as one:
        began = time.monotonic()
        error = await failure(one, observer=told.append)
        assert time.monotonic() - began < 1.0
    assert type(error) is HostUnavailable
    assert error.details["tries"] == 2
    assert error.details["status"] is None
    assert [retry.attempt for retry in told] == [1]


async def test_a_refused_connection_has_all_its_tries_once_the_host_has_answered() -> None:
    async with service("", tries=4) as one:
        async with FaultyHost(GOOD) as host:
            one.url = host.url
            await one.get("/x")
        one.url = faulty.refusing_url()
        assert (await failure(one)).details["tries"] == 4


async def test_retry_after_is_waited_for() -> None:
    told: list[Retry] = []
    async with FaultyHost(faulty.unavailable("1"), GOOD) as host, service(host.url) as one:
        began = time.monotonic()
        await one.get("/x", observer=told.append)
        assert 1.0 <= time.monotonic() - began < 2.0
    assert told[0].wait_seconds == 1.0


async def test_retry_after_may_be_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    async with FaultyHost(faulty.unavailable(soon)) as host, service(host.url) as one:
        assert 55 < (await failure(one)).details["retry_after"] <= 60


@pytest.mark.parametrize("value", ["3600", "9" * 400])
async def test_a_host_that_asks_for_more_patience_than_the_deadline_is_not_asked_again(value: str) -> None:
    async with FaultyHost(faulty.unavailable(value)) as host, service(host.url) as one:
        began = time.monotonic()
        error = await failure(one)
        assert time.monotonic() - began < 1.0
        assert len(host.requests) == 1
        assert error.details["retry_after"] >= 3600


@pytest.mark.parametrize("value", ["soon", "-1", "²", "Mon, 99 Foo"])
async def test_a_retry_after_that_says_nothing_is_ignored(value: str) -> None:
    async with FaultyHost(faulty.unavailable(value), GOOD) as host, service(host.url) as one:
        assert await one.get("/x") == {"a": 1}


async def test_the_waits_grow_and_are_bounded() -> None:
    told: list[Retry] = []
    options = {"tries": 6, "first_wait": 0.02, "longest_wait": 0.1}
    async with FaultyHost(faulty.server_error) as host, service(host.url, **options) as one:
        await failure(one, observer=told.append)
    waits = [retry.wait_seconds for retry in told]
    assert [retry.attempt for retry in told] == [1, 2, 3, 4, 5]
    assert all(low <= wait <= 0.1 for low, wait in zip([0.02, 0.04, 0.08, 0.1, 0.1], waits, strict=True))


@pytest.mark.parametrize("behaviour", [faulty.server_error, faulty.reset_at_once, faulty.hang])
async def test_what_must_not_run_twice_is_not_sent_again(behaviour: faulty.Behaviour) -> None:
    async with FaultyHost(behaviour) as host, service(host.url, deadline=0.2) as one:
        await failure(one, idempotent=False)
        assert len(host.requests) == 1


async def test_what_was_not_acted_on_is_sent_again_even_then() -> None:
    async with FaultyHost(faulty.unavailable(), GOOD) as host, service(host.url) as one:
        assert await one.get("/x", idempotent=False) == {"a": 1}


# deadlines


async def test_a_deadline_given_with_the_call_counts() -> None:
    async with FaultyHost(faulty.drip) as host, service(host.url, deadline=60.0, tries=1) as one:
        began = time.monotonic()
        await failure(one, deadline=0.2)
        assert time.monotonic() - began < 1.0
        await host.until(lambda h: h.gone == 1, within=1.0)


async def test_without_a_deadline_the_drip_goes_on() -> None:
    """The control: nothing but the deadline ends a drip."""
    async with FaultyHost(faulty.drip) as host, service(host.url, deadline=1e9) as one:
        asking = asyncio.ensure_future(one.get("/x"))
        done, _ = await asyncio.wait([asking], timeout=1.5)
        assert not done
        asking.cancel()
        await asyncio.wait([asking])
        await host.until(lambda h: h.gone == 1, within=1.0)


async def test_waiting_for_our_own_connections_is_outside_the_deadline() -> None:
    async with FaultyHost(faulty.after(0.2, GOOD)) as host, service(host.url, deadline=0.6, tries=1) as one:
        answers = await asyncio.gather(*(one.get("/x") for _ in range(100)))
        assert answers == [{"a": 1}] * 100


# cancellation


async def cancelled(one: Service, token: CancellationToken, when: Callable[[], bool]) -> float:
    """Ask, cancel from another thread as soon as `when`, and say how many seconds later the call had ended."""
    asking = asyncio.ensure_future(one.get("/x", token=token, deadline=60.0))
    await eventually(when)
    began = time.monotonic()
    threading.Thread(target=token.cancel, args=("enough",)).start()
    with pytest.raises(OperationCancelledException, match="enough"):
        await asking
    return time.monotonic() - began


async def only_this_task_is_left() -> None:
    await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()}, within=1.0)


IN_FLIGHT = {
    "hang": faulty.hang,
    "hang in the body": faulty.hang_in_the_body,
    "drip": faulty.drip,
    "slow 422": faulty.after(1.5, faulty.unprocessable),
    "slow HTML": faulty.after(1.5, faulty.html),
    "slow reset": faulty.after(1.5, faulty.reset_at_once),
}


@pytest.mark.parametrize("name", IN_FLIGHT)
@pytest.mark.slow
async def test_a_cancel_closes_the_connection_in_flight_at_once(name: str) -> None:
    async with FaultyHost(IN_FLIGHT[name]) as host, service(host.url) as one:
        took = await cancelled(one, CancellationToken(), lambda: len(host.requests) == 1)
        assert took < 1.0
        if not name.startswith("slow"):
            await host.until(lambda h: h.gone == 1, within=1.0)
        assert len(host.requests) == 1
    await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()}, within=2.0)


@pytest.mark.parametrize("name", [n for n in [*ABSENT, *WRONG] if n not in ("hang", "hang in the body", "drip")])
async def test_a_cancel_ends_the_wait_between_tries(name: str) -> None:
    behaviour, _ = {**ABSENT, **WRONG}[name]
    if name == "503 with Retry-After":
        behaviour = faulty.unavailable("30")
    async with FaultyHost(behaviour) as host, service(host.url, first_wait=30.0, longest_wait=60.0) as one:
        token = CancellationToken()
        took = await cancelled(one, token, lambda: one.health.consecutive_failures == 1)
        assert took < 1.0
        assert len(host.requests) == 1
    await only_this_task_is_left()


async def test_a_cancel_ends_the_wait_after_a_refusal() -> None:
    async with service("", first_wait=30.0, longest_wait=60.0) as one:
        async with FaultyHost(GOOD) as host:
            one.url = host.url
            await one.get("/x")
        one.url = faulty.refusing_url()
        took = await cancelled(one, CancellationToken(), lambda: one.health.consecutive_failures == 1)
        assert took < 1.0


async def test_a_cancel_reaches_those_that_wait_for_a_connection() -> None:
    async with FaultyHost(faulty.hang) as host, service(host.url) as one:
        token = CancellationToken()
        asking = [asyncio.ensure_future(one.get("/x", token=token)) for _ in range(50)]
        await host.until(lambda h: h.in_flight == 20)
        token.cancel("enough")
        ended = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 1.0)
        assert all(isinstance(end, OperationCancelledException) for end in ended)
        await host.until(lambda h: h.gone == 20, within=1.0)
        assert len(host.requests) == 20


async def test_a_token_that_is_cancelled_already_sends_nothing() -> None:
    token = CancellationToken()
    token.cancel("enough")
    async with FaultyHost(GOOD) as host, service(host.url) as one:
        with pytest.raises(OperationCancelledException, match="enough"):
            await one.get("/x", token=token)
        assert host.connections == 0


async def test_cancelling_the_task_closes_the_connection_too() -> None:
    async with FaultyHost(faulty.hang) as host, service(host.url) as one:
        asking = asyncio.ensure_future(one.get("/x", token=CancellationToken()))
        await host.until(lambda h: h.in_flight == 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await host.until(lambda h: h.gone == 1, within=1.0)
    await only_this_task_is_left()


# the pool


async def test_at_most_20_connections_a_host_and_they_are_used_again() -> None:
    async with FaultyHost(faulty.after(0.01, GOOD)) as host, service(host.url) as one:
        await asyncio.gather(*(one.get("/x") for _ in range(200)))
        assert host.most_in_flight == 20
        assert host.connections == 20


async def test_requests_in_turn_use_one_connection_also_through_two_services() -> None:
    async with FaultyHost(GOOD) as host, HttpPool() as pool:
        for one in (Service(host.url, pool=pool), Service(host.url, pool=pool)):
            for _ in range(10):
                await one.get("/x")
            await one.aclose()
        assert (host.connections, len(host.requests)) == (1, 20)


async def test_another_host_has_connections_of_its_own() -> None:
    async with HttpPool() as pool, FaultyHost(faulty.hang) as busy, FaultyHost(GOOD) as free:
        token = CancellationToken()
        stuck = [asyncio.ensure_future(Service(busy.url, pool=pool).get("/x", token=token)) for _ in range(20)]
        await busy.until(lambda h: h.in_flight == 20)
        assert await Service(free.url, pool=pool).get("/x") == {"a": 1}
        token.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)


async def test_a_connection_that_the_host_closed_while_idle_costs_no_request() -> None:
    async def once(connection: faulty.Connection) -> None:
        await GOOD(connection)
        connection.finish()

    async with FaultyHost(once) as host, service(host.url, tries=1) as one:
        for _ in range(3):
            assert await one.post("/x", {}) == {"a": 1}
            await host.until(lambda h: h.gone == h.connections)


@pytest.mark.parametrize("fault", [faulty.reset_at_once, faulty.closed_at_once])
async def test_no_request_is_sent_twice_unasked_also_over_a_kept_connection(fault: faulty.Behaviour) -> None:
    async with FaultyHost(GOOD, fault) as host, service(host.url, tries=1) as one:
        await one.get("/x")
        await failure(one)
        assert len(host.requests) == 2


async def test_a_pool_belongs_to_one_loop() -> None:
    async with FaultyHost(GOOD) as host, HttpPool() as pool:
        one = Service(host.url, pool=pool)
        await one.get("/x")
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(one.get("/x")))


async def test_a_closed_pool_says_so() -> None:
    pool = HttpPool()
    await pool.aclose()
    await pool.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await Service("http://127.0.0.1:1", pool=pool).get("/x")


# health


async def test_health_is_what_the_calls_have_shown() -> None:
    at = datetime(2026, 11, 24, tzinfo=UTC)
    behaviours = [GOOD, faulty.server_error, faulty.reset_at_once, GOOD]
    async with FaultyHost(*behaviours) as host, service(host.url, tries=1, clock=lambda: at) as one:
        assert one.health.last_answer_at is None
        await one.get("/x")
        assert (one.health.last_answer_at, one.health.consecutive_failures) == (at, 0)
        await failure(one)
        await failure(one)
        assert one.health.consecutive_failures == 2
        assert one.health.last_problem is not None
        await one.get("/x")
        assert (one.health.consecutive_failures, one.health.last_problem) == (0, None)


async def test_check_health_asks_once() -> None:
    async with FaultyHost(faulty.answers(b'{"healthy": true}')) as host, service(host.url) as one:
        assert await one.check_health() == {"healthy": True}
        assert host.requests == ["GET /health HTTP/1.1"]
    async with FaultyHost(faulty.server_error) as host, service(host.url) as one:
        with pytest.raises(HostAnswerWrong):
            await one.check_health()
        assert len(host.requests) == 1


async def test_a_health_that_is_no_object_is_wrong() -> None:
    async with FaultyHost(faulty.answers(b"[1]")) as host, service(host.url) as one:
        with pytest.raises(HostAnswerWrong):
            await one.check_health()
