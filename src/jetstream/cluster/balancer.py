"""One address for all edges: TCP connections, passed to the edge that is ready and has the fewest.

It is for this machine, and not for a network: it passes bytes through, and knows nothing of TLS or of the
addresses of clients. HAProxy, nginx and Caddy do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Final

from jetstream.cluster.answers import get
from jetstream.cluster.members import HOST
from jetstream.runtime import cancelled

LOOK_S: Final = 0.5  # between two looks at `/ready` of an edge
CONNECTIONS_MAX: Final = 1_000
_CHUNK_BYTES: Final = 64 << 10
_UNAVAILABLE: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nRetry-After: 1\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%s"
)


def choose(loads: Mapping[str, int], ready: Collection[str], refused: Collection[str] = ()) -> str | None:
    """Return the edge for the next connection, of those that have not refused it; None: all have.

    It is the one with the fewest, of those that are ready. When none is, any will do: each has the history,
    and goes on when there is a writer again.
    """
    left = [name for name in loads if name not in refused]
    wanted = [name for name in left if name in ready] or left
    return min(wanted, key=lambda name: loads[name], default=None)


class Balancer:
    """Passes connections to edges, which are given by name with their ports."""

    def __init__(self, ports: Mapping[str, int]) -> None:
        self._ports = ports
        # How many connections each edge has.
        self.loads = dict.fromkeys(ports, 0)
        # Edges with an answer of 200 at the last look at their `/ready`.
        self.ready: set[str] = set()
        # All connections, with the edge and with the client.
        self._tasks: set[asyncio.Task[None]] = set()
        # From `start` to `close`.
        self._server: asyncio.Server | None = None
        self._looking: asyncio.Task[None] | None = None

    async def start(self, port: int) -> None:
        """Find out which edges are ready, and accept connections on a port. Raises OSError."""
        await self._look()
        self._server = await asyncio.start_server(self._accept, HOST, port)
        self._looking = asyncio.create_task(self._watch())

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None, "it was not started"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        """Accept no more connections, and close those that there are."""
        if self._server is None or self._looking is None:
            return
        self._server.close()
        tasks = [self._looking, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self._look()

    async def _look(self) -> None:
        """Ask every edge whether it is ready."""

        async def look(name: str, port: int) -> None:
            answer = await get(port, "/ready")
            change = self.ready.add if answer is not None and answer.status == 200 else self.ready.discard
            change(name)

        await asyncio.gather(*(look(name, port) for name, port in self._ports.items()))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # either end is gone, or this is the end of all: `close` waits for that
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect a client with an edge until both are done."""
        if len(self._tasks) > CONNECTIONS_MAX:
            await _refuse(writer, f"there are {CONNECTIONS_MAX} connections already")
            return
        found = await self._connect()
        if found is None:
            await _refuse(writer, "no edge takes connections: try again in a second")
            return
        name, edge_reader, edge_writer = found
        sending = asyncio.create_task(_pump(reader, edge_writer))
        try:
            await _pump(edge_reader, writer)
            await _close(writer)
        finally:
            self.loads[name] -= 1
            edge_writer.transport.abort()
            await cancelled(sending)

    async def _connect(self) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Connect to an edge, and count it; None: none accepts a connection."""
        refused: set[str] = set()
        while (name := choose(self.loads, self.ready, refused)) is not None:
            self.loads[name] += 1  # at once: others are accepted meanwhile
            try:
                return name, *await asyncio.open_connection(HOST, self._ports[name])
            except OSError:
                self.loads[name] -= 1
                self.ready.discard(name)
                refused.add(name)
        return None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on as they come, and then the end. Where that was no end in order, cut the connection."""
    try:
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()


async def _refuse(writer: asyncio.StreamWriter, why: str) -> None:
    text = f"{why}\n".encode()
    writer.write(_UNAVAILABLE % (len(text), text))
    await _close(writer)


async def _close(writer: asyncio.StreamWriter) -> None:
    """Close a connection once everything is sent. Raises OSError if it is lost before."""
    writer.close()
    await writer.wait_closed()
