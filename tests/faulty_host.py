"""A host service on loopback that misbehaves as told: raw sockets, so that it can break what a framework would not.

async with FaultyHost(answers(b'{"ok": true}')) as host:          # one behaviour for every request, or several:
async with FaultyHost(reset_at_once, answers(b"{}")) as host:     # one a request in turn, the last one for the rest
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
from collections.abc import Awaitable, Callable
from types import TracebackType

Behaviour = Callable[["Connection"], Awaitable[None]]


class Connection:
    """One client connection, as a behaviour sees it after a request has come."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, content: bytes) -> None:
        self.writer.write(content)
        await self.writer.drain()

    async def until_client_is_gone(self) -> None:
        while await self.reader.read(65536):
            pass

    def finish(self) -> None:
        """FIN."""
        self.writer.close()

    def reset(self) -> None:
        """RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class FaultyHost:
    """Counts what it sees: `connections`, `requests` (their first lines), `gone` connections whose client has closed.

    `most_open` is the largest number of requests that were being answered at the same time.
    """

    def __init__(self, *behaviours: Behaviour) -> None:
        self._behaviours = list(behaviours)
        self._server: asyncio.Server | None = None
        self.connections = 0
        self.gone = 0
        self.requests: list[str] = []
        self.bodies: list[bytes] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.url = ""
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> FaultyHost:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()

    async def until(self, condition: Callable[[FaultyHost], bool], within: float = 5.0) -> None:
        """Wait until what was counted fulfils the condition; TimeoutError."""
        async with asyncio.timeout(within), self._changed:
            await self._changed.wait_for(lambda: condition(self))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._one_request(Connection(reader, writer)):
                pass
        except ConnectionError:
            pass
        finally:
            self.gone += 1
            writer.close()
            await self._tell()

    async def _one_request(self, connection: Connection) -> bool:
        try:
            head = await connection.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        self.bodies.append(await connection.reader.readexactly(_length(head)))
        self.requests.append(head.split(b"\r\n")[0].decode())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await self._tell()
        behaviour = self._behaviours[min(len(self.requests), len(self._behaviours)) - 1]
        try:
            await behaviour(connection)
        finally:
            self.in_flight -= 1
        return not connection.writer.is_closing()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def response(
    body: bytes, status: str = "200 OK", kind: str = "application/json", length: int | None = None, more: str = ""
) -> bytes:
    """A whole HTTP response; `length` is what it claims, `more` are further header lines, each ended by CRLF."""
    claimed = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}Content-Length: {claimed}\r\n\r\n".encode() + body


def answers(body: bytes, status: str = "200 OK", kind: str = "application/json", more: str = "") -> Behaviour:
    async def behaviour(connection: Connection) -> None:
        await connection.send(response(body, status, kind, more=more))

    return behaviour


def after(seconds: float, then: Behaviour) -> Behaviour:
    async def behaviour(connection: Connection) -> None:
        await asyncio.sleep(seconds)
        await then(connection)

    return behaviour


async def reset_at_once(connection: Connection) -> None:
    connection.reset()


async def closed_at_once(connection: Connection) -> None:
    connection.finish()


async def reset_in_the_body(connection: Connection) -> None:
    await connection.send(response(b'{"a": 1', length=100_000))
    await asyncio.sleep(0.05)  # a reset overtakes what the client has not read yet
    connection.reset()


async def short_body(connection: Connection) -> None:
    await connection.send(response(b'{"a": 1}', length=100_000))
    connection.finish()


async def truncated_gzip(connection: Connection) -> None:
    await connection.send(response(gzip.compress(b'{"a": 1}' * 100)[:-20], more="Content-Encoding: gzip\r\n"))


async def broken_gzip(connection: Connection) -> None:
    await connection.send(response(b"this is not gzip", more="Content-Encoding: gzip\r\n"))


async def drip(connection: Connection) -> None:
    """A byte now and then: no single read ever takes long."""
    await connection.send(response(b"[", length=1_000_000))
    while not connection.writer.is_closing():
        await connection.send(b" ")
        await asyncio.sleep(0.01)


async def hang(connection: Connection) -> None:
    await connection.until_client_is_gone()
    connection.finish()


async def hang_in_the_body(connection: Connection) -> None:
    await connection.send(response(b'{"a": 1', length=100_000))
    await hang(connection)


async def not_http(connection: Connection) -> None:
    await connection.send(b"220 ftp.example.org ready\r\n\r\n")
    connection.finish()


def gzip_bomb(mebibytes: int) -> Behaviour:
    packed = gzip.compress(b" " * (mebibytes * 1024 * 1024), 1)
    return answers(packed, more="Content-Encoding: gzip\r\n")


truncated_json = answers(b'{"data": "abc')
server_error = answers(b'{"detail": "Failed to start: no room"}', "500 Internal Server Error")
bad_gateway = answers(b"<h1>Bad gateway</h1>", "502 Bad Gateway", "text/html")
html = answers(b"<!doctype html><title>Router</title>", kind="text/html")
wrong_content_type = answers(b'{"a": 1}', kind="text/plain")
redirect = answers(b"", "307 Temporary Redirect", more="Location: /elsewhere\r\n")
unprocessable = answers(
    b'{"detail": [{"type": "missing", "loc": ["body", "name"], "msg": "Field required", "input": {}}]}',
    "422 Unprocessable Entity",
)


def unavailable(retry_after: str | None = None) -> Behaviour:
    more = "" if retry_after is None else f"Retry-After: {retry_after}\r\n"
    return answers(b'{"detail": "Maximum reached"}', "503 Service Unavailable", more=more)


def refusing_url() -> str:
    """An address on loopback at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return f"http://127.0.0.1:{sock.getsockname()[1]}"
