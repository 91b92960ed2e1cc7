"""A scripted relay on a real socket. It serves the frames that a test publishes, or does what the test says.

Each connection performs the next *act* of `Relay.script`, or `serve` if there is none. An act is a coroutine
that drives one connection. When it returns, the connection is aborted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Self
from urllib.parse import parse_qs, urlsplit

import cbor2
from websockets.http11 import Request
from websockets.server import ServerProtocol

PATH = "/xrpc/com.atproto.sync.subscribeRepos"
PING = 0x89

Act = Callable[["Connection"], Awaitable[None]]


@dataclass(frozen=True)
class Asked:
    """The path and cursor of one request."""

    path: str
    cursor: int | None


class Relay:
    """Serves numbered frames. With `inclusive`, the frame at the cursor is sent again, as some relays do."""

    def __init__(self, *, inclusive: bool = False) -> None:
        self.inclusive = inclusive
        self.history: list[tuple[int, bytes]] = []  # the published frames, each with its seq
        self.script: deque[Act] = deque()  # the acts of the next connections
        self.asked: list[Asked] = []  # every request so far
        self.accepted = 0  # upgraded connections so far
        self.pings = 0  # received from clients
        self.port = 0  # once entered
        self._changed = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}{PATH}"

    def publish(self, frames: Iterable[tuple[int, bytes]]) -> None:
        """Append frames, each with its seq, to the history."""
        self.history += frames
        self._notify()

    async def cut(self) -> None:
        """Abort every connection, like a relay that restarts."""
        connections = set(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.wait(connections)

    async def wait_accepted(self, count: int) -> None:
        """Return once `count` connections have been accepted."""
        async with asyncio.timeout(30):
            while self.accepted < count:
                await self.changed()

    async def wait_asked(self, count: int) -> None:
        """Return once `count` requests have been received."""
        async with asyncio.timeout(30):
            while len(self.asked) < count:
                await self.changed()

    async def changed(self) -> None:
        """Return when something has happened since the call."""
        await self._changed.wait()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait_pings(self, count: int) -> None:
        """Return once `count` pings have been received."""
        async with asyncio.timeout(30):
            while self.pings < count:
                await self.changed()

    def note_accepted(self) -> None:
        self.accepted += 1
        self._notify()

    def note_ping(self) -> None:
        self.pings += 1
        self._notify()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        connection = Connection(self, reader, writer)
        try:
            with suppress(ConnectionError):
                self.asked.append(await connection.request())
                self._notify()
                act = self.script.popleft() if self.script else serve
                await connection.perform(act)
        finally:
            writer.transport.abort()
            self._connections.discard(task)


class Connection:
    """One connection of the relay, driven by an act."""

    def __init__(self, relay: Relay, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.relay = relay
        self.answers = True  # whether pings and close frames are answered
        self.over = asyncio.Event()
        self.cursor: int | None = None
        self._reader = reader
        self._writer = writer
        self._protocol = ServerProtocol(max_size=None)
        self._request: Request

    async def request(self) -> Asked:
        """Read the request. Raises ConnectionError if the client disconnects."""
        while not (events := self._protocol.events_received()):
            data = await self._reader.read(65536)
            if not data:
                raise ConnectionResetError("disconnected before its request")
            self._protocol.receive_data(data)
        request = events[0]
        assert isinstance(request, Request)
        self._request = request
        query = parse_qs(urlsplit(request.path).query)
        self.cursor = int(query["cursor"][0]) if "cursor" in query else None
        return Asked(urlsplit(request.path).path, self.cursor)

    async def perform(self, act: Act) -> None:
        """Perform an act until it returns or the client disconnects."""
        acting = asyncio.ensure_future(act(self))
        listening = asyncio.create_task(self._listen())
        try:
            await asyncio.wait({acting, listening}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            acting.cancel()
            listening.cancel()
            results = await asyncio.gather(acting, listening, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, ConnectionError):
                raise result

    async def accept(self) -> None:
        self._protocol.send_response(self._protocol.accept(self._request))
        await self._flush()
        self.relay.note_accepted()

    async def refuse(self, status: int, headers: dict[str, str]) -> None:
        response = self._protocol.reject(status, "not now\n")
        for name, value in headers.items():
            response.headers[name] = value
        self._protocol.send_response(response)
        await self._flush()

    async def send(self, frame: bytes) -> None:
        self._protocol.send_binary(frame)
        await self._flush()

    async def send_text(self, text: str) -> None:
        self._protocol.send_text(text.encode())
        await self._flush()

    async def send_parts(self, *parts: bytes, text: bool = False) -> None:
        """Send one message as several WebSocket frames."""
        begin = self._protocol.send_text if text else self._protocol.send_binary
        begin(parts[0], fin=False)
        for part in parts[1:-1]:
            self._protocol.send_continuation(part, fin=False)
        self._protocol.send_continuation(parts[-1], fin=True)
        await self._flush()

    async def send_raw(self, data: bytes) -> None:
        """Send bytes as they are, valid or not."""
        self._writer.write(data)
        await self._writer.drain()

    async def close(self, code: int, reason: str) -> None:
        """Send a close frame, and wait for the answer."""
        self._protocol.send_close(code, reason)
        await self._flush()
        await self.over.wait()

    async def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            self._writer.write(data)
        await self._writer.drain()

    async def _listen(self) -> None:
        while data := await self._reader.read(65536):
            if data[0] == PING:
                self.relay.note_ping()
            if self.answers:
                self._protocol.receive_data(data)
                self._protocol.events_received()
                if self._protocol.close_expected():
                    self.over.set()
                await self._flush()
        self.over.set()


async def serve(connection: Connection) -> None:
    """Serve the history after the cursor, then new frames; without a cursor, only new frames."""
    await connection.accept()
    await follow(connection)


async def follow(connection: Connection, stop: int | None = None) -> None:
    """Send the frames that were requested, up to `stop` of them."""
    relay, cursor = connection.relay, connection.cursor
    first = len(relay.history)
    if cursor is not None:
        lowest = cursor if relay.inclusive else cursor + 1
        first = next((i for i, (seq, _) in enumerate(relay.history) if seq >= lowest), first)
    sent = 0
    while sent != stop:
        while first + sent == len(relay.history):
            await relay.changed()
        await connection.send(relay.history[first + sent][1])
        sent += 1


def refuse(status: int, **headers: str) -> Act:
    """Respond with a status. `Retry_After` becomes the header `Retry-After`."""

    async def act(connection: Connection) -> None:
        await connection.refuse(status, {name.replace("_", "-"): value for name, value in headers.items()})

    return act


def drop_after(count: int) -> Act:
    """Serve `count` frames, then abort the connection."""

    async def act(connection: Connection) -> None:
        await connection.accept()
        await follow(connection, count)

    return act


def send(*frames: bytes, wait: bool = True) -> Act:
    """Send these frames, whatever was requested. Then `wait` for the client to disconnect, or abort."""

    async def act(connection: Connection) -> None:
        await connection.accept()
        for frame in frames:
            await connection.send(frame)
        if wait:
            await connection.over.wait()

    return act


async def stay_silent(connection: Connection) -> None:
    """Accept, answer pings, and send nothing."""
    await connection.accept()
    await connection.over.wait()


async def go_deaf(connection: Connection) -> None:
    """Accept, and answer nothing, not even pings."""
    connection.answers = False
    await connection.accept()
    await connection.over.wait()


def numbered(frames: Iterable[bytes]) -> list[tuple[int, bytes]]:
    """Return each frame with the seq that its body has."""
    pairs = []
    for frame in frames:
        stream = BytesIO(frame)
        cbor2.load(stream)
        pairs.append((cbor2.load(stream)["seq"], frame))
    return pairs
