"""A server that does what a test tells it: it loses connections, refuses, and sends odd messages."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing, suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

import zstandard
from tests.builders import DID as ALICE
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import Event

from jetstream.client import Message

PATIENCE_S = 20.0
SHUTDOWN = "the server is shutting down: connect again"
EVENTS = [
    f'{{"did":"{ALICE}","time_us":{n * 10},"type":"com","commit":{{"rev":"r{n}"}}}}' for n in range(1, 31)
]


class Connection(ServerConnection):
    """A connection that counts the client's pings."""

    pings = 0

    def process_event(self, event: Event) -> None:
        super().process_event(event)
        if isinstance(event, Frame) and event.opcode is Opcode.PING:
            self.pings += 1


Act = Callable[[ServerConnection, "Jetstream"], Awaitable[None]]


class Jetstream:
    """A server that does one act of its script for each connection, then serves `events` from a cursor."""

    def __init__(self) -> None:
        self.events = list(EVENTS)
        self.script: deque[Act | Response] = deque()
        self.queries: list[dict[str, list[str]]] = []
        self.closed: list[int | None] = []
        # What is at `/zstd-dictionary`: a dictionary, or another response.
        self.dictionary: bytes | Response | None = None
        self.dictionary_requests: list[str] = []  # the query of each
        # Of each handshake.
        self.headers = Headers()
        self.port = 0
        self._server: Server | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/subscribe"

    @property
    def cursors(self) -> list[int | None]:
        return [int(query["cursor"][0]) if "cursor" in query else None for query in self.queries]

    async def start(self) -> None:
        self._server = await serve(
            self._serve,
            "127.0.0.1",
            self.port,
            process_request=self._check,
            process_response=self._head,
            create_connection=Connection,
            compression=None,
            ping_interval=None,
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def _check(self, _connection: ServerConnection, request: Request) -> Response | None:
        if request.path.startswith("/zstd-dictionary"):
            self.dictionary_requests.append(request.path.removeprefix("/zstd-dictionary"))
            return self._dictionary()
        self.queries.append(parse_qs(urlsplit(request.path).query))
        if self.script and isinstance(self.script[0], Response):
            refusal = self.script.popleft()
            assert isinstance(refusal, Response)
            return refusal
        return None

    def _head(self, _connection: ServerConnection, _request: Request, response: Response) -> None:
        response.headers.update(self.headers)

    def _dictionary(self) -> Response:
        if isinstance(self.dictionary, bytes):
            fields = Headers({"Content-Length": str(len(self.dictionary)), "Connection": "close"})
            return Response(200, "OK", fields, self.dictionary)
        return self.dictionary or refusal(404, "there is no such page")

    def compress(self, event: str) -> bytes:
        """Compress an event with the dictionary."""
        assert isinstance(self.dictionary, bytes)
        dictionary = zstandard.ZstdCompressionDict(self.dictionary)
        return zstandard.ZstdCompressor(1, dict_data=dictionary).compress(event.encode())

    async def _serve(self, connection: ServerConnection) -> None:
        act = self.script.popleft() if self.script else follow
        assert not isinstance(act, Response)
        with suppress(ConnectionClosed):  # the client closes while events are sent
            await act(connection, self)
        self.closed.append(connection.close_code)


def refusal(status: int, text: str, **headers: str) -> Response:
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    body = text.encode()
    fields = Headers({"Content-Length": str(len(body)), "Connection": "close"} | more)
    return Response(status, HTTPStatus(status).phrase, fields, body)


async def send(connection: ServerConnection, jetstream: Jetstream, count: int | None) -> None:
    cursor = jetstream.cursors[-1] or 0
    waiting = [event for event in jetstream.events if json.loads(event)["time_us"] >= cursor]
    compressed = "zstdDictionary" in jetstream.queries[-1]
    for event in waiting[:count]:
        await connection.send(jetstream.compress(event) if compressed else event)


async def follow(connection: ServerConnection, jetstream: Jetstream) -> None:
    await send(connection, jetstream, None)
    await connection.wait_closed()


def cut_after(count: int) -> Act:
    async def act(connection: ServerConnection, jetstream: Jetstream) -> None:
        await send(connection, jetstream, count)
        connection.transport.abort()

    return act


def cut_within(count: int) -> Act:
    """Cut the connection inside the frame after `count` events."""

    async def act(connection: ServerConnection, jetstream: Jetstream) -> None:
        await send(connection, jetstream, count)
        connection.transport.write(b"\x81\x7e\x01\x00" + EVENTS[count].encode()[:20])
        connection.transport.close()

    return act


def close_after(count: int, code: int = 1001) -> Act:
    async def act(connection: ServerConnection, jetstream: Jetstream) -> None:
        await send(connection, jetstream, count)
        await connection.close(code, SHUTDOWN)

    return act


def send_just(*messages: str | bytes) -> Act:
    async def act(connection: ServerConnection, _jetstream: Jetstream) -> None:
        for message in messages:
            await connection.send(message)
        await connection.wait_closed()

    return act


class Sleeps(list[float]):
    """A `sleep` that returns at once, and the seconds it was called with."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


async def take(events: Any, count: int) -> list[Message]:
    """Return the first events, and close the subscription."""
    taken: list[Message] = []
    async with asyncio.timeout(PATIENCE_S), aclosing(events):
        async for event in events:
            taken.append(event)
            if len(taken) == count:
                break
    return taken


def raws(events: Iterable[Message]) -> list[str]:
    return [event.raw.decode() for event in events]
