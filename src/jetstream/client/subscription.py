"""Keep one subscription connected: connect, read, reconnect where it was."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

import aiohttp
import orjson
from aiohttp import ClientWSTimeout, WSMsgType

from jetstream import __version__
from jetstream.client.errors import NotJetstream, Refused
from jetstream.client.request import DEFAULT_URL, Request, shown
from jetstream.clock import unix_us
from jetstream.retry import backoff_s, parse_retry_after

REFUSAL_CHARS_MAX: Final = 500  # of a refusal's body, that are shown
# 4xx statuses after which the request is repeated: Request Timeout, Too Early, Too Many Requests.
_TRANSIENT: Final = frozenset({408, 425, 429})

Sleep = Callable[[float], Awaitable[None]]

logger = logging.getLogger("jetstream.client")


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """The timeouts and limits of a subscription. Times are in seconds."""

    connect_timeout_s: float = 20.0  # for the TCP connection, TLS and the WebSocket handshake together
    ping_after_s: float = 30.0  # a server that has been silent for so long is pinged
    pong_timeout_s: float = 20.0  # for its answer; then the connection is closed
    close_timeout_s: float = 1.0  # for the server to answer a close frame
    message_bytes_max: int = 16 << 20  # this server sends under 1 MB; others may send 6 MiB of JSON


class Message(dict[str, Any]):
    """One event: the decoded JSON as a dict."""

    __slots__ = ("raw",)

    raw: bytes
    """The bytes of the message, as they were received."""

    @classmethod
    def parse(cls, raw: bytes) -> Message:
        """Parse a message. Raises ValueError or TypeError if it is not a JSON object with a `time_us`."""
        message = cls(orjson.loads(raw))
        if type(message.get("time_us")) is not int:
            raise ValueError("no time_us")
        message.raw = raw
        return message

    @property
    def time_us(self) -> int:
        """The time of the event in unix microseconds: its position on this server."""
        time_us: int = self["time_us"]
        return time_us


def subscribe(
    url: str = DEFAULT_URL,
    *,
    collections: Sequence[str] = (),
    dids: Sequence[str] = (),
    cursor: int | None = None,
    limits: ClientLimits = ClientLimits(),
    sleep: Sleep = asyncio.sleep,
    backoff: Callable[[int], float] = backoff_s,
    clock: Callable[[], int] = unix_us,
) -> AsyncGenerator[Message, None]:
    """Yield the events of a Jetstream in order, without end.

    `url` is a host, a base URL, or a full URL of either wire. `collections` are NSIDs, or prefixes such as
    `app.bsky.graph.*` (at most 100); `dids` are accounts (at most 10,000); empty means all. `cursor` is the
    time at which playback starts, in unix microseconds; without it, only new events are yielded.

    After a lost connection it reconnects, with exponential backoff and full jitter up to 30 s, or after the
    time in Retry-After if that is longer. It resumes at the last `time_us` + 1, so no event is lost or
    repeated. If no event had been received, it resumes at the time at which it connected. To resume in
    another process, store `event.time_us + 1` and pass it as `cursor`.

    A slow loop applies backpressure: what it has not taken stays on the server. Changes of the connection are
    logged to the logger `jetstream.client`.

    `sleep`, `backoff` (seconds to wait after a number of failures in a row) and `clock` (unix microseconds)
    are for tests.

    Raises InvalidParameter at once for invalid arguments. While iterating, raises Refused if the server
    answers the request with anything but a WebSocket, a 5xx, 408, 425 or 429, and NotJetstream if it sends a
    message that is not an event.
    """
    request = Request.parse(url, collections, dids, cursor)
    return _events(request, _Outages(request), limits, sleep, backoff, clock)


async def _events(
    request: Request,
    outages: _Outages,
    limits: ClientLimits,
    sleep: Sleep,
    backoff: Callable[[int], float],
    clock: Callable[[], int],
) -> AsyncGenerator[Message, None]:
    cursor = request.cursor
    headers = {"User-Agent": f"jetstream-python/{__version__}"}
    async with aiohttp.ClientSession(headers=headers, raise_for_status=_require_upgrade) as session:
        while True:
            began = clock()
            try:
                async with _connection(session, request, cursor, limits) as connection:
                    outages.connected()
                    cursor = began if cursor is None else cursor
                    while True:
                        message = _parse(request, await connection.receive())
                        outages.failures = 0
                        cursor = message.time_us + 1
                        yield message
            except (_ConnectionLost, aiohttp.ClientError, OSError, TimeoutError) as error:
                delay = max(backoff(outages.failures), getattr(error, "retry_after", 0.0))
                outages.failed(_reason(error, limits), cursor)
            await sleep(delay)


class _ConnectionLost(Exception):
    """The connection has ended, or was refused temporarily."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        self.retry_after = retry_after or 0.0  # seconds
        super().__init__(reason)


class _Outages:
    """Logs when the connection is lost and when it is back, once each."""

    def __init__(self, request: Request) -> None:
        self.failures = 0  # since the last event; reset by `_events`
        self._url = shown(request.url)
        self._connected_before = False  # whether there has ever been a connection
        self._logged = False  # whether the present outage has been logged

    def connected(self) -> None:
        logger.info("%s to %s", "reconnected" if self._connected_before else "connected", self._url)
        self._connected_before = True
        self._logged = False

    def failed(self, reason: str, cursor: int | None) -> None:
        self.failures += 1
        level = logging.DEBUG if self._logged else logging.WARNING
        self._logged = True
        if not self._connected_before:
            logger.log(level, "cannot connect to %s: %s; trying again", self._url, reason)
        else:
            logger.log(level, "connection lost: %s; reconnecting at cursor %s", reason, cursor)


@asynccontextmanager
async def _connection(
    session: aiohttp.ClientSession, request: Request, cursor: int | None, limits: ClientLimits
) -> AsyncGenerator[Connection, None]:
    async with asyncio.timeout(limits.connect_timeout_s):
        socket = await session.ws_connect(
            request.at(cursor),
            autoping=False,
            max_msg_size=limits.message_bytes_max,
            timeout=ClientWSTimeout(ws_close=limits.close_timeout_s),
            decode_text=False,
        )
    async with socket:
        if request.hello:
            await socket.send_str(request.hello)
        connection = Connection(socket, limits)
        watching = asyncio.create_task(connection.watch())
        try:
            yield connection
        finally:
            watching.cancel()


async def _require_upgrade(response: aiohttp.ClientResponse) -> None:
    """Raise the body of a refusal as an error. aiohttp would discard it."""
    status = response.status
    if status == 101:
        return
    body = await response.content.read(4 * REFUSAL_CHARS_MAX)
    message = " ".join(body.decode(errors="replace").split())[:REFUSAL_CHARS_MAX] or response.reason or ""
    if status < 500 and status not in _TRANSIENT:
        raise Refused(shown(response.url), status, message)
    raise _ConnectionLost(f"HTTP {status}: {message}", parse_retry_after(response.headers.get("Retry-After")))


class Connection:
    """One WebSocket. `watch` closes it when the server no longer answers pings.

    Only time in which `receive` waits counts as silence. While the reader pauses, a pong may be behind unread
    messages, so the connection must not be closed. (aiohttp's `heartbeat` would close it, and a timeout for
    each `receive` costs more than everything else.)
    """

    def __init__(
        self,
        socket: aiohttp.ClientWebSocketResponse[Literal[False]],
        limits: ClientLimits,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._socket = socket
        self._limits = limits
        self._sleep = sleep  # used by `watch`
        self._received = 0  # frames so far
        self._waiting = False  # whether `receive` waits for a frame at present
        self._unanswered = False  # whether the last ping was not answered in time

    async def receive(self) -> bytes:
        """Return the next data message. Raises _ConnectionLost when the connection has ended."""
        while True:
            self._waiting = True
            message = await self._socket.receive()
            self._waiting = False
            self._received += 1
            if message.type is WSMsgType.TEXT or message.type is WSMsgType.BINARY:
                data: bytes = message.data
                return data
            if message.type is WSMsgType.PING:
                await self._socket.pong(message.data)
            elif message.type is not WSMsgType.PONG:
                ending = _ending(message.type, message.data, message.extra)
                raise _ConnectionLost("no answer to a ping" if self._unanswered else ending)

    async def watch(self) -> None:
        """Ping a silent server. Close the connection if it does not answer."""
        with suppress(aiohttp.ClientError):  # the connection has ended; `receive` raises that
            while not self._unanswered:
                if await self._silent_for(self._limits.ping_after_s):
                    await self._socket.ping()
                    self._unanswered = await self._silent_for(self._limits.pong_timeout_s)
            await self._socket.close()

    async def _silent_for(self, seconds: float) -> bool:
        """Wait. Return whether nothing was received, although `receive` waits for it."""
        received = self._received
        await self._sleep(seconds)
        return self._waiting and self._received == received


def _parse(request: Request, raw: bytes) -> Message:
    try:
        return Message.parse(raw)
    except (ValueError, TypeError) as error:
        problem = f"sent a message that is not an event ({error}); is it a Jetstream? It begins {raw[:40]!r}"
        raise NotJetstream(shown(request.url), problem) from error


def _ending(kind: WSMsgType, data: object, extra: str | None) -> str:
    """Return why a connection has ended, from the last message that aiohttp reports."""
    if kind is WSMsgType.CLOSE:
        return f"closed by the server, {data} {extra or ''}".strip()
    return str(data) if kind is WSMsgType.ERROR else "closed without a close frame"


def _reason(error: BaseException, limits: ClientLimits) -> str:
    """Return an error in one line, for the log."""
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, socket.gaierror | ssl.SSLError) and error.strerror:
        return error.strerror
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)  # the text of asyncio is `Connect call failed (...)`
    if isinstance(error, TimeoutError):
        return f"no response within {limits.connect_timeout_s:g} s"
    text = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
    return " ".join(text.split()) or type(error).__name__
