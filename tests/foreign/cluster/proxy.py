"""TCP proxies between the processes and their databases, which break connections where it hurts.

They know the protocol: they can cut a connection in the middle of a commit, lose the answer of a commit, and
lose notifications. Behind them is PostgreSQL.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, Literal

from tests.foreign.cluster.wire import ASKS, NOTIFICATION, READY, Messages, Session

# Of the message that commits: half of it passes; it passes, and the connection is cut at about that moment;
# it is answered, and the answer is lost.
How = Literal["half", "after", "answer"]
_READ_BYTES: Final = 1 << 16
_CUT_S: Final = 0.003  # a commit takes about as long
_ANSWER_S: Final = 60.0


class Breaks:
    """What the proxies are to break."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        # How the next commit of an append is broken, and what is told when it was; None: it is not.
        self._next: tuple[How, asyncio.Future[None]] | None = None
        # Whether notifications pass, and how many did not.
        self.notifies = True
        self.dropped = 0

    def commit(self, how: How) -> asyncio.Future[None]:
        """Break the next commit of an append; the future is done when that has happened."""
        done = asyncio.get_running_loop().create_future()
        self._next = how, done
        return done

    def take(self) -> tuple[How, asyncio.Future[None]] | None:
        """Return what is to be broken, once."""
        found, self._next = self._next, None
        return found


class _Link:
    """One connection, on both sides."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client, self.server = client, server
        self.session = Session()
        self.of_client, self.of_server = Messages(of_client=True), Messages(of_client=False)
        # Whether nothing of the server passes any more; set when it was ready once after that.
        self.swallows = False
        self.answered = asyncio.Event()

    def cut(self) -> None:
        """End both sides at once."""
        for writer in (self.client, self.server):
            writer.transport.abort()


class Proxy:
    """Listens on `port`, and connects to that of a server."""

    def __init__(self, server_port: int, breaks: Breaks) -> None:
        self._server_port = server_port
        self._breaks = breaks
        self.port = 0
        self._links: set[_Link] = set()
        # What serves them.
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Cut all connections, and wait for their end."""
        for link in self._links:
            link.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a new connection."""
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            of_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, to_server)
        self._links.add(link)
        try:
            await asyncio.gather(self._to_server(reader, link), self._to_client(of_server, link))
        finally:
            link.cut()
            self._links.discard(link)

    async def _to_server(self, reader: asyncio.StreamReader, link: _Link) -> None:
        while data := await _read(reader):
            passing = bytearray()
            for kind, message in link.of_client.feed(data):
                if kind == ASKS:
                    link.of_server.expect_byte()
                if link.session.sent(kind, message) and (order := self._breaks.take()) is not None:
                    await self._break(link, bytes(passing), message, *order)
                    return
                passing += message
            if not await _write(link.server, passing):
                break
        link.cut()

    async def _break(
        self, link: _Link, before: bytes, commit: bytes, how: How, done: asyncio.Future[None]
    ) -> None:
        link.swallows = True
        await _write(link.server, before + (commit[: len(commit) // 2] if how == "half" else commit))
        if how == "answer":
            with suppress(TimeoutError):
                async with asyncio.timeout(_ANSWER_S):
                    await link.answered.wait()
        else:
            await asyncio.sleep(self._breaks.dice.uniform(0.0005, _CUT_S))
        link.cut()
        done.set_result(None)

    async def _to_client(self, reader: asyncio.StreamReader, link: _Link) -> None:
        while data := await _read(reader):
            passing = bytearray()
            for kind, message in link.of_server.feed(data):
                link.session.received(kind, message)
                if link.swallows:
                    if kind == READY:
                        link.answered.set()
                elif kind == NOTIFICATION and not self._breaks.notifies:
                    self._breaks.dropped += 1
                else:
                    passing += message
            if not await _write(link.client, passing):
                break
        link.answered.set()
        link.cut()


async def _read(reader: asyncio.StreamReader) -> bytes:
    """Return what has come; nothing after the end, also where the connection was cut."""
    try:
        return await reader.read(_READ_BYTES)
    except OSError:
        return b""


async def _write(writer: asyncio.StreamWriter, data: bytes | bytearray) -> bool:
    """Write; return whether the connection still works."""
    if writer.transport.is_closing():
        return False
    try:
        writer.write(data)
        await writer.drain()
    except OSError:
        return False
    return True


@asynccontextmanager
async def proxied(server_port: int, breaks: Breaks) -> AsyncIterator[Proxy]:
    """Run a proxy before a port, on a free one."""
    proxy = Proxy(server_port, breaks)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
