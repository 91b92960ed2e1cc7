"""One connection to one server. This is the only module that uses aiohttp.

It is imported when the first connection is made, not with `jetstream.client`: aiohttp takes 80 ms, and loads
the certificates of this system.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Final, Literal, Self

import aiohttp
from aiohttp import ClientWSTimeout, WSMsgType

from jetstream import __version__
from jetstream.client.compression import DICTIONARY_BYTES_MAX, Dictionary
from jetstream.client.errors import NotJetstream, Refused
from jetstream.client.limits import ClientLimits
from jetstream.client.message import Mark, Message, parse
from jetstream.client.request import Request, shown
from jetstream.retry import parse_retry_after

REFUSAL_CHARS_MAX: Final = 500  # of a refusal's body, that are shown
# 4xx statuses after which the request is repeated: Request Timeout, Too Early, Too Many Requests.
_TRANSIENT: Final = frozenset({408, 425, 429})

_POSITION: Final = re.compile(r"[0-9]{1,20}", re.ASCII).fullmatch
_ID: Final = re.compile(r"\b[0-9]{1,10}\b", re.ASCII).findall

Sleep = Callable[[float], Awaitable[None]]
Socket = aiohttp.ClientWebSocketResponse[Literal[False]]

logger = logging.getLogger("jetstream.client")


class ConnectionLost(Exception):
    """The connection has ended, or was refused temporarily."""

    def __init__(self, reason: str, *, retry_after: float | None = None, code: int | None = None) -> None:
        self.retry_after = retry_after or 0.0  # seconds
        self.code = code  # of the server's close frame, if it sent one
        super().__init__(reason)


# What is raised when a connection is lost or cannot be made.
LOST: Final = (ConnectionLost, aiohttp.ClientError, OSError, TimeoutError)


class Server:
    """One of the servers of a subscription, and what is known of it. Closed by `async with`."""

    def __init__(
        self,
        request: Request,
        limits: ClientLimits,
        compress: bool,
        heartbeat_s: float | None,
    ) -> None:
        self.request = request
        self.limits = limits
        self.heartbeat_s = heartbeat_s
        # Where the last connection began, as the server says; None: it has not said.
        self.begins: int | None = None
        # Whether it has ever sent a heartbeat; set by its connections. From then on silence means something.
        self.beats = False
        # Whether to ask for its dictionary. False once it has said that it has none.
        self._compress = compress
        # Its dictionary, once it has been fetched.
        self._dictionary: Dictionary | None = None
        headers = {"User-Agent": f"jetstream-python/{__version__}"}
        self._session = aiohttp.ClientSession(headers=headers, raise_for_status=self._check_handshake)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    @asynccontextmanager
    async def connected(self, cursor: int | None, limit: int | None) -> AsyncGenerator[Connection, None]:
        """Connect, and close the connection at the end. Raises Refused, and what is in `LOST`."""
        async with asyncio.timeout(self.limits.connect_timeout_s):
            socket = await self._open(cursor, limit)
        connection = Connection(socket, self, self._dictionary)
        watching = [asyncio.create_task(watch) for watch in connection.watches]
        try:
            if self.request.hello:
                await socket.send_str(self.request.hello)
            yield connection
        finally:
            for task in watching:
                task.cancel()
            await connection.close()

    async def _open(self, cursor: int | None, limit: int | None) -> Socket:
        """Connect. The server may have another dictionary than before: then it is fetched again, once."""
        if self._compress and self._dictionary is None:
            await self._fetch()
        try:
            return await self._upgrade(cursor, limit)
        except Refused as refused:
            old = self._dictionary
            if old is None or refused.status != 400 or "zstdDictionary" not in refused.message:
                raise
            self._dictionary = None
            await self._fetch(_other_id(refused.message, old.id))
            if self._dictionary is not None and self._dictionary.id == old.id:
                raise
        return await self._upgrade(cursor, limit)

    async def _upgrade(self, cursor: int | None, limit: int | None) -> Socket:
        dictionary = None if self._dictionary is None else self._dictionary.id
        return await self._session.ws_connect(
            self.request.at(cursor, limit=limit, dictionary=dictionary),
            autoping=False,
            max_msg_size=self.limits.message_bytes_max,
            timeout=ClientWSTimeout(ws_close=self.limits.close_timeout_s),
            decode_text=False,
        )

    async def _check_handshake(self, response: aiohttp.ClientResponse) -> None:
        """Raise the body of a refusal as an error. aiohttp would discard it."""
        if response.status == 101:
            text = response.headers.get("Jetstream-Cursor", "")
            self.begins = int(text) if _POSITION(text) else None
            return
        body = await response.content.read(4 * REFUSAL_CHARS_MAX)
        message = " ".join(body.decode(errors="replace").split())[:REFUSAL_CHARS_MAX] or response.reason or ""
        if _is_permanent(response.status):
            raise Refused(shown(response.url), response.status, message)
        raise _temporary(response, message)

    async def _fetch(self, wanted: int | None = None) -> None:
        """Fetch the dictionary, or the one with an ID. A server that has none is read without compression."""
        url = self.request.dictionary_url
        if wanted is not None:  # else a cache might return the old one
            url = url.with_query(id=str(wanted))
        async with self._session.get(url, raise_for_status=False) as response:
            if response.status != 200:
                if not _is_permanent(response.status):
                    raise _temporary(response, f"no dictionary at {shown(url)}")
                return self._read_plain(f"HTTP {response.status} for {shown(url)}")
            data = bytearray()
            async for chunk in response.content.iter_any():
                data += chunk
                if len(data) > DICTIONARY_BYTES_MAX:
                    break
        try:
            self._dictionary = Dictionary.parse(bytes(data), self.limits.message_bytes_max)
        except ValueError as error:
            self._read_plain(f"{shown(url)} {error}")

    def _read_plain(self, reason: str) -> None:
        logger.warning("reading without compression: the server has no dictionary of its own (%s)", reason)
        self._compress = False


class Connection:
    """One WebSocket. Its `watches` close it when the server is dead.

    Only time in which `receive` waits counts as silence. While the reader pauses, a pong may be behind unread
    messages, so the connection must not be closed. (aiohttp's `heartbeat` would close it, and a timeout for
    each `receive` costs more than everything else.)
    """

    def __init__(
        self,
        socket: Socket,
        server: Server,
        dictionary: Dictionary | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._socket = socket
        self._server = server
        self._limits = server.limits
        self._decompress = None if dictionary is None else dictionary.decompress
        self._sleep = sleep  # used by the watches
        self._frames = 0  # received so far
        self._messages = 0  # of them, events and heartbeats
        self._waiting = False  # whether `receive` waits for a frame at present
        self._problem = ""  # why a watch has closed the connection

    async def receive(self) -> Message | Mark:
        """Return the next event or heartbeat.

        Raises ConnectionLost when the connection has ended, NotJetstream for any other message.
        """
        while True:
            self._waiting = True
            message = await self._socket.receive()
            self._waiting = False
            self._frames += 1
            if message.type is WSMsgType.TEXT or message.type is WSMsgType.BINARY:
                self._messages += 1
                return self._parse(message.data, message.type is WSMsgType.BINARY)
            if message.type is WSMsgType.PING:
                await self._socket.pong(message.data)
            elif message.type is not WSMsgType.PONG:
                raise self._ended(message.type, message.data, message.extra)

    def _parse(self, data: bytes, binary: bool) -> Message | Mark:
        try:
            item = parse(self._decompress(data) if binary and self._decompress is not None else data)
        except (ValueError, TypeError) as error:
            raise self._not_jetstream(data, error) from error
        if isinstance(item, Mark):
            self._server.beats = True
        return item

    def _not_jetstream(self, data: bytes, error: Exception) -> NotJetstream:
        problem = f"sent a message that is not an event ({error}); is it a Jetstream? It begins {data[:40]!r}"
        return NotJetstream(shown(self._server.request.url), problem)

    def _ended(self, kind: WSMsgType, data: object, extra: str | None) -> ConnectionLost:
        """Return why the connection has ended, from the last message that aiohttp reports."""
        if self._problem:
            return ConnectionLost(self._problem)
        if kind is WSMsgType.CLOSE:
            code = data if isinstance(data, int) else None
            return ConnectionLost(f"closed by the server, {data} {extra or ''}".strip(), code=code)
        return ConnectionLost(str(data) if kind is WSMsgType.ERROR else "closed without a close frame")

    @property
    def watches(self) -> list[Coroutine[None, None, None]]:
        """What must run beside `receive`."""
        watches = [self.watch_pings()]
        if self._server.heartbeat_s is not None:
            watches.append(self.watch_heartbeats(self._server.heartbeat_s))
        return watches

    async def watch_pings(self) -> None:
        """Ping a silent server. Close the connection if it does not answer."""
        with suppress(aiohttp.ClientError):  # the connection has ended; `receive` raises that
            while True:
                if await self._silent_for(self._limits.ping_after_s):
                    await self._socket.ping()
                    if await self._silent_for(self._limits.pong_timeout_s):
                        self._problem = "no answer to a ping"
                        return await self.close()

    async def watch_heartbeats(self, interval_s: float) -> None:
        """Close the connection when neither events nor heartbeats come, though the server has heartbeats."""
        missed = 0
        while missed < self._limits.heartbeats_missed_max:
            messages = self._messages
            await self._sleep(interval_s)
            silent = self._waiting and self._messages == messages and self._server.beats
            missed = missed + 1 if silent else 0
        self._problem = f"no heartbeat for {missed} intervals of {interval_s:g} s"
        await self.close()

    async def _silent_for(self, seconds: float) -> bool:
        """Wait. Return whether nothing was received, although `receive` waits for it."""
        frames = self._frames
        await self._sleep(seconds)
        return self._waiting and self._frames == frames

    async def close(self) -> None:
        """Close the connection, whether or not the server answers.

        (aiohttp alone waits for that as long as messages come.)
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.close_timeout_s):
                await self._socket.close()


def _other_id(refusal: str, dictionary_id: int) -> int | None:
    """Return the ID of a dictionary that a refusal names beside the one that was asked for."""
    return next((named for named in map(int, _ID(refusal)) if named != dictionary_id), None)


def _is_permanent(status: int) -> bool:
    return status < 500 and status not in _TRANSIENT


def _temporary(response: aiohttp.ClientResponse, message: str) -> ConnectionLost:
    retry_after = parse_retry_after(response.headers.get("Retry-After"))
    return ConnectionLost(f"HTTP {response.status}: {message}", retry_after=retry_after)


def reason_of(error: BaseException, limits: ClientLimits) -> str:
    """Return why a connection was lost or could not be made, in one line for the log."""
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
