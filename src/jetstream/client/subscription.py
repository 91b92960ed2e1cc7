"""One subscription, held for as long as somebody reads it: connect, read, resume."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Final

import aiohttp
import orjson
from aiohttp import ClientWSTimeout, WSMsgType

from jetstream import __version__
from jetstream.client.errors import NotJetstream, Refused
from jetstream.client.request import DEFAULT_URL, Request
from jetstream.retry import backoff_s, parse_retry_after

CONNECT_TIMEOUT_S: Final = 20.0
PING_AFTER_S: Final = 30.0
PONG_TIMEOUT_S: Final = 20.0
CLOSE_TIMEOUT_S: Final = 1.0  # for the server to answer our close frame
MESSAGE_BYTES_MAX: Final = 16 << 20  # a record of 1 MiB is at most 6 MiB of JSON, each byte escaped
SENTENCE_CHARS_MAX: Final = 500
# Refusals that may be otherwise in a moment: Request Timeout, Too Early, Too Many Requests.
_TRANSIENT: Final = frozenset({408, 425, 429})

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
    backoff: Callable[[int], float] = backoff_s,
    clock: Callable[[], int] = lambda: time.time_ns() // 1000,
) -> AsyncGenerator[Message, None]:
    """Yield the events of a Jetstream in order, for ever.

    `url` is a host, a base URL, or the whole URL of either wire. `collections` are NSIDs or prefixes such as
    `app.bsky.graph.*` (at most 100), `dids` repos (at most 10,000); none means all. `cursor`, in unix
    microseconds, is where playback begins; without it, events from now on are yielded.

    A lost connection is made again after `backoff(failures)` seconds, or what Retry-After says if that is
    longer, and resumed from the last `time_us` + 1, so that nothing is lost or repeated. Where nothing came
    before it was lost, it is resumed from the time by `clock`, in unix microseconds, at which it began. To
    resume in another process, store `event.time_us + 1` and give it as `cursor`. A loop that is slower than
    the stream is waited for.

    Changes of the connection are logged to `jetstream.client`.

    Raises InvalidParameter at once for arguments that cannot be used; Refused when the server says that it
    will not serve this (any 4xx but 408, 425 and 429); NotJetstream when what it sends is no event.
    """
    return _events(Request.parse(url, collections, dids, cursor), _Outage(), backoff, clock)


async def _events(
    request: Request, outage: _Outage, backoff: Callable[[int], float], clock: Callable[[], int]
) -> AsyncGenerator[Message, None]:
    cursor = request.cursor
    async with aiohttp.ClientSession(
        headers={"User-Agent": f"jetstream-python/{__version__}"}, raise_for_status=_require_upgrade
    ) as session:
        while True:
            began = clock()
            try:
                async with await _connect(session, request, cursor) as socket:
                    outage.over(request)
                    cursor = began if cursor is None else cursor
                    while True:
                        raw = await _receive(socket, outage)
                        message = _parse(request, raw)
                        cursor = message.time_us + 1
                        yield message
            except (_Lost, aiohttp.ClientError, OSError, TimeoutError) as error:
                delay = max(backoff(outage.failures), getattr(error, "retry_after", 0.0))
                outage.failed(request, _reason(error), cursor)
            await asyncio.sleep(delay)


class _Lost(Exception):
    """The connection ended, or was refused for now."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        self.retry_after = retry_after or 0.0
        super().__init__(reason)


class _Outage:
    """What is said of a time without connection: once when it begins, and once when it is over."""

    def __init__(self) -> None:
        self.failures = 0  # in a row: connections that brought nothing
        self._connected_before = False
        self._said = False

    def over(self, request: Request) -> None:
        log.info("connected%s to %s", " again" if self._connected_before else "", request.url)
        self._connected_before = True
        self._said = False

    def failed(self, request: Request, reason: str, cursor: int | None) -> None:
        self.failures += 1
        level = logging.DEBUG if self._said else logging.WARNING
        self._said = True
        if not self._connected_before:
            log.log(level, "cannot connect to %s: %s; trying again", request.url, reason)
        else:
            log.log(level, "connection lost: %s; connecting again from cursor %s", reason, cursor)


async def _connect(
    session: aiohttp.ClientSession, request: Request, cursor: int | None
) -> aiohttp.ClientWebSocketResponse[Any]:
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        socket = await session.ws_connect(
            request.at(cursor),
            autoping=False,
            max_msg_size=MESSAGE_BYTES_MAX,
            timeout=ClientWSTimeout(ws_close=CLOSE_TIMEOUT_S),
            decode_text=False,
        )
        if request.hello:
            await socket.send_str(request.hello)
    return socket


async def _require_upgrade(response: aiohttp.ClientResponse) -> None:
    """Turn a refusal into an error with the server's own sentence, which aiohttp would throw away."""
    status = response.status
    if status == 101:
        return
    body = await response.content.read(4 * SENTENCE_CHARS_MAX)
    sentence = " ".join(body.decode(errors="replace").split())[:SENTENCE_CHARS_MAX] or response.reason or ""
    if 400 <= status < 500 and status not in _TRANSIENT:
        raise Refused(str(response.url), status, sentence)
    raise _Lost(f"HTTP {status}: {sentence}", parse_retry_after(response.headers.get("Retry-After")))


async def _receive(socket: aiohttp.ClientWebSocketResponse[Any], outage: _Outage) -> bytes:
    """Return the next data message. Raises _Lost when the connection is over."""
    while True:
        message = await _receive_any(socket)
        if message.type in {WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR}:
            raise _Lost(_ending(message))
        outage.failures = 0
        if message.type == WSMsgType.PING:
            await socket.pong(message.data)
        elif message.type in {WSMsgType.TEXT, WSMsgType.BINARY}:
            data: bytes = message.data
            return data


async def _receive_any(socket: aiohttp.ClientWebSocketResponse[Any]) -> Any:
    """Return the next message of any type; a server that is silent for long must answer a ping.

    Only what is waited for is timed: a reader that pauses, whose pongs lie behind unread data, is not cut
    (aiohttp's `heartbeat` would).
    """
    try:
        return await socket.receive(PING_AFTER_S)
    except TimeoutError:
        await socket.ping()
    try:
        return await socket.receive(PONG_TIMEOUT_S)
    except TimeoutError:
        raise _Lost("no answer to a ping") from None


def _parse(request: Request, raw: bytes) -> Message:
    try:
        return Message.parse(raw)
    except (ValueError, TypeError) as error:
        problem = f"sent a message that is no event ({error}): is it a Jetstream? It begins {raw[:40]!r}"
        raise NotJetstream(str(request.url), problem) from error


def _ending(message: aiohttp.WSMessage) -> str:
    if message.type == WSMsgType.CLOSE:
        return f"closed by the server, {message.data} {message.extra or ''}".strip()
    if message.type == WSMsgType.ERROR:
        return str(message.data)
    return "cut off"


def _reason(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_TIMEOUT_S:.0f} s"
    return str(error) or type(error).__name__
