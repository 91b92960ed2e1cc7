"""A client of `/events` that shares no code with the server: chunks, content codings, Server-Sent Events."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import urlencode

import zstandard
from tests.serving import connected

PATIENCE_S = 20.0


class SseEvent(NamedTuple):
    """What an `EventSource` dispatches."""

    type: str
    data: str
    id: str  # the last ID so far


class SseReader:
    """Server-Sent Events, as the HTML standard says in section 9.2.6."""

    def __init__(self) -> None:
        self.retry_ms: int | None = None
        self.comments = 0
        self._rest = ""
        self._fields: dict[str, list[str]] = {}
        self._id = ""

    def feed(self, text: str) -> list[SseEvent]:
        """Return the events that are complete."""
        *lines, self._rest = (self._rest + text).split("\n")
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: str) -> SseEvent | None:
        if line:
            self._take(line)
            return None
        fields, self._fields = self._fields, {}
        data = "\n".join(fields.get("data", []))
        return SseEvent(fields.get("event", ["message"])[-1], data, self._id) if data else None

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name:
            self.comments += 1
        elif name == "id":
            self._id = value
        elif name == "retry":
            self.retry_ms = int(value)
        else:
            self._fields.setdefault(name, []).append(value)


def decoder(coding: str) -> Callable[[bytes], bytes]:
    """Return what decodes a body piece by piece, each as far as it goes."""
    if coding == "gzip":
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress
    if coding == "zstd":
        return zstandard.ZstdDecompressor().decompressobj().decompress
    return lambda data: data


class EventStream:
    """One response of `/events`."""

    def __init__(self, reader: asyncio.StreamReader, head: bytes) -> None:
        self._reader = reader
        status, *fields = head.decode().rstrip().split("\r\n")
        self.status = int(status.split(" ")[1])
        self.headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in fields)}
        self.complete = False  # whether the last chunk has come
        self.sse = SseReader()
        self._chunked = self.headers.get("transfer-encoding") == "chunked"
        self._decode = decoder(self.headers.get("content-encoding", ""))
        self._rest = b""  # of a line that is not complete
        self._events: list[SseEvent] = []

    async def piece(self) -> bytes | None:
        """Return the next piece of the body, decoded; None at its end."""
        async with asyncio.timeout(PATIENCE_S):
            data = await (self._chunk() if self._chunked else self._reader.read(1 << 16))
        return self._decode(data) if data else None

    async def _chunk(self) -> bytes:
        try:
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            data = await self._reader.readexactly(size + 2)
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        assert data.endswith(b"\r\n")
        self.complete = size == 0
        return data[:-2]

    async def line(self) -> str | None:
        """Return the next line of NDJSON as it is; None at the end."""
        while b"\n" not in self._rest:
            piece = await self.piece()
            if piece is None:
                return None
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    async def event(self) -> SseEvent | None:
        """Return the next Server-Sent Event; None at the end."""
        while not self._events:
            piece = await self.piece()
            if piece is None:
                return None
            self._events += self.sse.feed(piece.decode())
        return self._events.pop(0)

    async def message(self) -> str | None:
        """Return the next message of ours, in either form; None at the end."""
        if self.headers["content-type"] == "application/x-ndjson":
            return await self.line()
        event = await self.event()
        return event.data if event is not None and event.type == "message" else None

    async def messages(self, count: int) -> list[str]:
        """Return the next messages."""
        messages = [await self.message() for _ in range(count)]
        assert None not in messages
        return [message for message in messages if message is not None]

    async def rest(self) -> list[str]:
        """Return all messages until the end."""
        messages = []
        while (message := await self.message()) is not None:
            messages.append(message)
        return messages


def times(messages: list[str]) -> list[int]:
    """Return the `time_us` of each message."""
    return [json.loads(message)["time_us"] for message in messages]


@asynccontextmanager
async def event_stream(
    port: int,
    *,
    sse: bool = False,
    coding: str = "",
    headers: dict[str, str] | None = None,
    version: str = "1.1",
    method: str = "GET",
    receive_buffer: int | None = None,
    **query: Any,
) -> AsyncIterator[EventStream]:
    """Request `/events`. `receive_buffer` limits the unread bytes of the socket."""
    sock = await connected(port, receive_buffer)
    reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 21)
    fields = {"Host": "x"} | ({"Accept": "text/event-stream"} if sse else {})
    fields |= {"Accept-Encoding": coding} if coding else {}
    fields |= headers or {}
    target = "/events" + (f"?{urlencode(query, doseq=True)}" if query else "")
    lines = [f"{method} {target} HTTP/{version}", *(f"{name}: {value}" for name, value in fields.items())]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    try:
        async with asyncio.timeout(PATIENCE_S):
            head = await reader.readuntil(b"\r\n\r\n")
        yield EventStream(reader, head)
    finally:
        writer.close()
