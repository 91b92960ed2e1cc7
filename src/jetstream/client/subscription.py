"""One subscription, held for as long as somebody reads it: connect, read, resume."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Literal

import aiohttp
import orjson
from aiohttp import ClientWSTimeout, WSMsgType

from jetstream import __version__
from jetstream.client.errors import NotJetstream, Refused
from jetstream.client.request import DEFAULT_URL, Request, shown
from jetstream.clock import unix_us
from jetstream.retry import backoff_s, parse_retry_after

CONNECT_TIMEOUT_S: Final = 20.0
PING_AFTER_S: Final = 30.0
PONG_TIMEOUT_S: Final = 20.0
CLOSE_TIMEOUT_S: Final = 1.0  # for the server to answer our close frame
MESSAGE_BYTES_MAX: Final = 16 << 20  # ours are under a megabyte; other servers' may have 6 MiB of JSON
SENTENCE_CHARS_MAX: Final = 500
# Refusals that may be otherwise in a moment: Request Timeout, Too Early, Too Many Requests.
_TRANSIENT: Final = frozenset({408, 425, 429})

Sleep = Callable[[float], Awaitable[None]]

log = logging.getLogger("jetstream.client")


class Message(dict[str, Any]):
    """One event as a dict, with the message's bytes as they were received in `raw`."""

    __slots__ = ("raw",)

    raw: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Message:
        """Read a message. Raises ValueError for one that is not a JSON object with a `time_us`."""
        message = cls(orjson.loads(raw))
        if type(message.get("time_us")) is not int:
            raise ValueError("without a time_us")
        message.raw = raw
        return message

    @property
    def time_us(self) -> int:
        """When the server took the event in, in unix microseconds: the position to resume after."""
        time_us: int = self["time_us"]
        return time_us


def subscribe(
    url: str = DEFAULT_URL,
    *,
    collections: Sequence[str] = (),
    dids: Sequence[str] = (),
    cursor: int | None = None,
    sleep: Sleep = asyncio.sleep,
    clock: Callable[[], int] = unix_us,
) -> AsyncGenerator[Message, None]:
    """Yield the events of a Jetstream in order, for ever.

    `url` is a host, a base URL, or the whole URL of either wire. `collections` are NSIDs or prefixes such as
    `app.bsky.graph.*` (at most 100), `dids` repos (at most 10,000); none means all. `cursor`, in unix
    microseconds, is where playback begins; without it, events from now on are yielded.

    A lost connection is made again after a back-off of up to 30 s with full jitter, or after what
    Retry-After says if that is longer, and resumed from the last `time_us` + 1, so that nothing is lost or
    repeated. Where nothing had come yet, it is resumed from when it was made, by `clock` in microseconds.
    To resume in another process, store `event.time_us + 1` and give it as `cursor`. A loop that is slower
    than the stream is waited for.

    Changes of the connection are logged to `jetstream.client`.

    Raises InvalidParameter at once for arguments that cannot be used; Refused when the server answers with
    anything but a WebSocket, a 5xx, 408, 425 or 429; NotJetstream when what it sends is no event.
    """
    return _events(Request.parse(url, collections, dids, cursor), _Outage(), sleep, clock)


async def _events(
    request: Request, outage: _Outage, sleep: Sleep, clock: Callable[[], int]
) -> AsyncGenerator[Message, None]:
    cursor = request.cursor
    headers = {"User-Agent": f"jetstream-python/{__version__}"}
    async with aiohttp.ClientSession(headers=headers, raise_for_status=_require_upgrade) as session:
        while True:
            began = clock()
            try:
                async with _connection(session, request, cursor) as connection:
                    outage.over(request)
                    cursor = began if cursor is None else cursor
                    while True:
                        message = _parse(request, await connection.receive())
                        outage.failures = 0
                        cursor = message.time_us + 1
                        yield message
            except (_Lost, aiohttp.ClientError, OSError, TimeoutError) as error:
                delay = max(backoff_s(outage.failures), getattr(error, "retry_after", 0.0))
                outage.failed(request, _reason(error), cursor)
            await sleep(delay)


class _Lost(Exception):
    """The connection ended, or was refused for now."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        self.retry_after = retry_after or 0.0
        super().__init__(reason)


class _Outage:
    """What is said of a time without connection: once when it begins, and once when it is over."""

    def __init__(self) -> None:
        self.failures = 0  # in a row: since the last event
        self._connected_before = False
        self._said = False

    def over(self, request: Request) -> None:
        log.info("connected%s to %s", " again" if self._connected_before else "", shown(request.url))
        self._connected_before = True
        self._said = False

    def failed(self, request: Request, reason: str, cursor: int | None) -> None:
        self.failures += 1
        level = logging.DEBUG if self._said else logging.WARNING
        self._said = True
        if not self._connected_before:
            log.log(level, "cannot connect to %s: %s; trying again", shown(request.url), reason)
        else:
            log.log(level, "connection lost: %s; connecting again from cursor %s", reason, cursor)


@asynccontextmanager
async def _connection(
    session: aiohttp.ClientSession, request: Request, cursor: int | None
) -> AsyncGenerator[_Connection, None]:
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        socket = await session.ws_connect(
            request.at(cursor),
            autoping=False,
            max_msg_size=MESSAGE_BYTES_MAX,
            timeout=ClientWSTimeout(ws_close=CLOSE_TIMEOUT_S),
            decode_text=False,
        )
    async with socket:
        if request.hello:
            await socket.send_str(request.hello)
        connection = _Connection(socket)
        watching = asyncio.create_task(connection.watch())
        try:
            yield connection
        finally:
            watching.cancel()


async def _require_upgrade(response: aiohttp.ClientResponse) -> None:
    """Turn a refusal into an error with the server's own sentence, which aiohttp would throw away."""
    status = response.status
    if status == 101:
        return
    body = await response.content.read(4 * SENTENCE_CHARS_MAX)
    sentence = " ".join(body.decode(errors="replace").split())[:SENTENCE_CHARS_MAX] or response.reason or ""
    if status < 500 and status not in _TRANSIENT:
        raise Refused(shown(response.url), status, sentence)
    raise _Lost(f"HTTP {status}: {sentence}", parse_retry_after(response.headers.get("Retry-After")))


class _Connection:
    """One WebSocket, whose server must answer a ping when it has been silent for long.

    Only what is waited for is timed: a reader that pauses, whose pong lies behind unread data, is not cut.
    (aiohttp's `heartbeat` cuts it; a timeout at each `receive` costs more than all the rest.)
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse[Literal[False]]) -> None:
        self._socket = socket
        self._heard = 0
        self._waiting = False
        self._deaf = False

    async def receive(self) -> bytes:
        """Return the next data message. Raises _Lost when the connection is over."""
        while True:
            self._waiting = True
            message = await self._socket.receive()
            self._waiting = False
            self._heard += 1
            if message.type is WSMsgType.TEXT or message.type is WSMsgType.BINARY:
                data: bytes = message.data
                return data
            if message.type is WSMsgType.PING:
                await self._socket.pong(message.data)
            elif message.type is not WSMsgType.PONG:
                ending = _ending(message.type, message.data, message.extra)
                raise _Lost("no answer to a ping" if self._deaf else ending)

    async def watch(self) -> None:
        """Ping a silent server, and close the connection when it does not answer."""
        with suppress(aiohttp.ClientError):  # the connection is over, as `receive` will find
            while not self._deaf:
                if await self._silent_for(PING_AFTER_S):
                    await self._socket.ping()
                    self._deaf = await self._silent_for(PONG_TIMEOUT_S)
            await self._socket.close()

    async def _silent_for(self, seconds: float) -> bool:
        heard = self._heard
        await asyncio.sleep(seconds)
        return self._waiting and self._heard == heard


def _parse(request: Request, raw: bytes) -> Message:
    try:
        return Message.parse(raw)
    except (ValueError, TypeError) as error:
        problem = f"sent a message that is no event ({error}): is it a Jetstream? It begins {raw[:40]!r}"
        raise NotJetstream(shown(request.url), problem) from error


def _ending(kind: WSMsgType, data: object, extra: str | None) -> str:
    if kind is WSMsgType.CLOSE:
        return f"closed by the server, {data} {extra or ''}".strip()
    return str(data) if kind is WSMsgType.ERROR else "cut off"


def _reason(error: BaseException) -> str:
    """Return in one line what a person is told of an error."""
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, socket.gaierror | ssl.SSLError) and error.strerror:
        return error.strerror
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)  # asyncio's own text is `Connect call failed (...)`
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_TIMEOUT_S:.0f} s"
    text = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
    return " ".join(text.split()) or type(error).__name__
