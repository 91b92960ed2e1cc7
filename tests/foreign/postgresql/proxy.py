"""A TCP proxy before a PostgreSQL server: it loses answers, stalls, and cuts connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Proxy:
    def __init__(self, port: int) -> None:
        self._server_port = port
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        # Set while bytes pass, in each direction.
        self.to_server, self.to_client = asyncio.Event(), asyncio.Event()
        self.to_server.set()
        self.to_client.set()
        # Set when bytes were held back.
        self.held = asyncio.Event()

    def cut(self) -> None:
        """Cut all connections. What was held back is lost."""
        for writer in self._writers:
            writer.transport.abort()
        self.held.clear()

    async def serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            to_client.transport.abort()
            return
        writers = {to_client, to_server}
        self._writers |= writers
        await asyncio.gather(
            self._pump(client, to_server, self.to_server), self._pump(server, to_client, self.to_client)
        )
        self._writers -= writers

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                if not gate.is_set():
                    self.held.set()
                    await gate.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


@asynccontextmanager
async def proxied(port: int) -> AsyncIterator[Proxy]:
    """Run a proxy before a port."""
    proxy = Proxy(port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        proxy.to_server.set()
        proxy.to_client.set()
        proxy.cut()
        server.close()
