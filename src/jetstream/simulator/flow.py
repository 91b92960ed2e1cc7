"""Write prepared bytes to a WebSocket's transport, no faster than its peer reads."""

from __future__ import annotations

import asyncio
from typing import Final, cast

from aiohttp import web

_BUFFER_BYTES_MAX: Final = 1 << 20  # unsent bytes above which a writer waits: one piece of a recording


class Flow(asyncio.Protocol):
    """Stands between a connection's transport and aiohttp's protocol, to see when writing must pause.

    aiohttp goes on reading the connection and answers pings and closes; what it writes are whole messages, as
    ours are, so they may mix.
    """

    def __init__(self, request: web.Request) -> None:
        if request.transport is None:  # the peer went while the upgrade was answered
            raise ConnectionResetError("the subscriber has gone")
        transport = request.transport
        inner = cast("asyncio.Protocol", transport.get_protocol())
        self._transport = transport
        self._inner = inner
        self._writable = asyncio.Event()
        self._writable.set()
        self._closed = asyncio.Event()
        self._deaf = False
        transport.set_write_buffer_limits(high=_BUFFER_BYTES_MAX)
        transport.set_protocol(self)

    async def write(self, data: bytes) -> None:
        """Write whole messages, then wait until the peer has room for more.

        Raises ConnectionResetError where the connection has ended.
        """
        if self._transport.is_closing():
            raise ConnectionResetError("the subscriber has gone")
        if data:
            self._transport.write(data)
        await self._writable.wait()

    def deafen(self) -> None:
        """Hear nothing more of the peer but its end: no ping is answered, as by a host that hangs."""
        self._deaf = True

    async def wait_closed(self) -> None:
        """Wait until the connection has ended."""
        await self._closed.wait()

    def abort(self) -> None:
        """End the connection without a word."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Pass on what the peer says."""
        if not self._deaf:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass on that the peer says no more."""
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on the end, and let nobody wait for it."""
        self._writable.set()
        self._closed.set()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Hold writers back."""
        self._writable.clear()
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Let writers go on."""
        self._writable.set()
        self._inner.resume_writing()
