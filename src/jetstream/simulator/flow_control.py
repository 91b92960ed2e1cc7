"""Write prepared bytes to the transport of a WebSocket, with backpressure."""

from __future__ import annotations

import asyncio
from typing import Final, cast

from aiohttp import web

_BUFFER_BYTES_MAX: Final = 1 << 20  # of unsent bytes, above which a writer waits: one piece of a recording


class FlowControl(asyncio.Protocol):
    """A protocol between a transport and aiohttp's protocol, which learns when writing must pause.

    aiohttp still reads the connection and answers pings and close frames. It writes complete WebSocket
    messages, as `write` does, so they do not interfere.
    """

    def __init__(self, request: web.Request) -> None:
        if request.transport is None:  # the subscriber disconnected during the upgrade
            raise ConnectionResetError("the subscriber has disconnected")
        transport = request.transport
        inner = cast("asyncio.Protocol", transport.get_protocol())
        self._transport = transport
        self._inner = inner  # aiohttp's protocol, to which every call is passed on
        self._writable = asyncio.Event()  # cleared while the transport's buffer is full
        self._writable.set()
        self._closed = asyncio.Event()  # set when the connection has ended
        self._ignores_input = False  # see `ignore_input`
        transport.set_write_buffer_limits(high=_BUFFER_BYTES_MAX)
        transport.set_protocol(self)

    async def write(self, data: bytes) -> None:
        """Write complete messages, then wait until there is room for more.

        Raises ConnectionResetError if the connection has ended.
        """
        if self._transport.is_closing():
            raise ConnectionResetError("the subscriber has disconnected")
        if data:
            self._transport.write(data)
        await self._writable.wait()

    def ignore_input(self) -> None:
        """Discard everything that is received from now on, also pings, like a host that hangs."""
        self._ignores_input = True

    async def wait_closed(self) -> None:
        """Wait until the connection has ended."""
        await self._closed.wait()

    def abort(self) -> None:
        """Close the connection at once, without a close frame."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Pass on received bytes."""
        if not self._ignores_input:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass on the end of the received bytes."""
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on the end of the connection, and wake writers."""
        self._writable.set()
        self._closed.set()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Let writers wait."""
        self._writable.clear()
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Let writers continue."""
        self._writable.set()
        self._inner.resume_writing()
