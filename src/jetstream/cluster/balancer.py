"""One address for all edges: TCP connections, passed to the edge that is ready and has the fewest.

It is for this machine, and not for a network: it passes bytes through, and knows nothing of TLS or of
the addresses of clients. HAProxy, nginx and Caddy do.

    client ─▶ accept ─▶ `choose` ─▶ connect ─▶ two pumps, one for each direction ─▶ both ends are closed
                            ▲
    every 0.5 s: GET /ready of each edge

A client stays with its edge. When the edge ends, the connection does, and the client connects again, as
clients do, with a cursor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Final

from jetstream.cluster.answers import get
from jetstream.cluster.members import HOST
from jetstream.runtime import cancelled

# Seconds between two looks at `/ready` of all edges.
LOOK_S: Final = 0.5
# Connections at a time; more are refused. Each of them has two sockets here.
CONNECTIONS_MAX: Final = 1_000
# Bytes that are read at once. What an end does not take is held in the buffers of asyncio and the
# kernel.
_CHUNK_BYTES: Final = 64 << 10
# The response to a client that no edge can have.
_UNAVAILABLE: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nRetry-After: 1\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%s"
)


def choose(loads: Mapping[str, int], ready: Collection[str], refused: Collection[str] = ()) -> str | None:
    """Return the edge for the next connection, of those that have not refused it; None: all have.

    It is the one with the fewest, of those that are ready. When none is, any will do: each has the
    history, and goes on when there is a writer again.

    `loads` has the connections of all edges by name. The first of several with as few is chosen.
    """
    left = [name for name in loads if name not in refused]
    wanted = [name for name in left if name in ready] or left
    return min(wanted, key=lambda name: loads[name], default=None)


class Balancer:
    """Passes connections to edges, which are given by name with their ports."""

    def __init__(self, ports: Mapping[str, int]) -> None:
        # Ports of the edges on this machine, by name. They never change: an edge that is started again
        # has the same.
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
        """Find out which edges are ready, and accept connections on a port. Raises OSError.

        To be called once. Port 0 is any that is free: see `port`.
        """
        await self._look()
        self._server = await asyncio.start_server(self._accept, HOST, port)
        self._looking = asyncio.create_task(self._watch())

    @property
    def port(self) -> int:
        """The port on which it listens; not before `start`."""
        assert self._server is not None, "it was not started"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        """Accept no more connections, and close those that there are.

        It returns when all of them are closed. Nothing happens before `start`.
        """
        if self._server is None or self._looking is None:
            return
        self._server.close()
        tasks = [self._looking, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        """Look every `LOOK_S` seconds which edges are ready, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self._look()

    async def _look(self) -> None:
        """Ask every edge whether it is ready.

        All are asked at the same time. One that does not answer within `ANSWER_S` seconds is not ready.
        """

        async def look(name: str, port: int) -> None:
            """Ask one edge, and note what it has answered. Another status than 200 is not ready."""
            answer = await get(port, "/ready")
            change = self.ready.add if answer is not None and answer.status == 200 else self.ready.discard
            change(name)

        await asyncio.gather(*(look(name, port) for name, port in self._ports.items()))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection from its beginning to its end. asyncio calls it in a task for each connection.

        An error of either end is its normal end here, and is not logged.
        """
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
        """Connect a client with an edge until both are done.

        A client that is refused gets a response of HTTP, whatever it speaks. The end of what the edge
        sends is the end of the connection; the end of what the client sends is passed on.
        """
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
        """Connect to an edge, and count it; None: none accepts a connection.

        Returns the name of the edge, and both ends of the connection. An edge that refuses counts as
        not ready until the next look.
        """
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
    """Pass bytes on as they come, and then the end. Where that was no end in order, cut the connection.

    `drain` is the backpressure: nothing is read while the other end takes nothing.
    """
    try:
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()


async def _refuse(writer: asyncio.StreamWriter, why: str) -> None:
    """Send a response of status 503 with a sentence, and close the connection. Raises OSError."""
    text = f"{why}\n".encode()
    writer.write(_UNAVAILABLE % (len(text), text))
    await _close(writer)


async def _close(writer: asyncio.StreamWriter) -> None:
    """Close a connection once everything is sent. Raises OSError if it is lost before."""
    writer.close()
    await writer.wait_closed()
