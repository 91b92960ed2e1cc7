"""The write buffer of a subscriber's socket, and how writes for a slow client are gathered."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest
from tests.unit.web.transport import Owner, Transport

from jetstream.delivery.framing.ndjson import NDJSON
from jetstream.delivery.subscriber import Close
from jetstream.limits import WebLimits
from jetstream.web.outbound import Sockets
from jetstream.web.stream_sink import EventStreamSink

LIMIT = 1_000
JOINED = WebLimits().joined_bytes


class Client:
    """A sink, its transport, and all that was written for it."""

    def __init__(self, connection: socket.socket | None = None) -> None:
        self.transport = Transport(connection)
        sink = EventStreamSink.__new__(EventStreamSink)
        self.transport.protocol = self.sink = sink
        sockets = Sockets(LIMIT)
        EventStreamSink.__init__(sink, cast(Any, self.transport), sockets, "", NDJSON, lambda: None)
        sink.owner = Owner()
        self.written = b""

    def write(self, count: int, size: int = 10) -> None:
        for _ in range(count):
            data = b"%0*d" % (size, len(self.written))
            self.sink.write(data)
            self.sink.written += size
            self.written += data


@pytest.fixture
async def client() -> Client:
    return Client()


@pytest.fixture
async def slow(client: Client) -> Client:
    """Return a client for which writes are gathered."""
    client.write(3)
    for _ in range(2):
        client.sink.gather()
    assert len(client.transport.waiting) == 3
    return client


async def test_many_writes_for_a_slow_client_are_one(slow: Client) -> None:
    slow.write(50)
    assert len(slow.transport.waiting) == 3
    assert slow.sink.buffered == 530
    assert not slow.sink.full
    await slow.transport.read(30)
    assert len(slow.transport.waiting) == 1
    slow.write(1)
    assert len(slow.transport.waiting) == 1
    await slow.transport.read(1_000)
    assert slow.transport.sent == slow.written


async def pieces_of_a_slow_client(slow: Client, *sizes: int) -> list[bytes]:
    """Return what the transport is given of writes of these sizes that were gathered."""
    slow.transport.given.clear()
    for size in sizes:
        slow.write(1, size)
    await slow.transport.read(30)
    await slow.transport.read(len(slow.written))
    assert slow.transport.sent == slow.written
    return slow.transport.given


@pytest.mark.parametrize("sizes", [[JOINED], [JOINED] * 3, [100, 2 * JOINED], [JOINED + 1, JOINED - 1]])
async def test_large_writes_for_a_slow_client_are_not_copied(slow: Client, sizes: list[int]) -> None:
    assert list(map(len, await pieces_of_a_slow_client(slow, *sizes))) == sizes


@pytest.mark.parametrize("sizes", [[10], [10] * 50, [JOINED, JOINED - 1], [10, 10, JOINED]])
async def test_small_writes_for_a_slow_client_are_joined(slow: Client, sizes: list[int]) -> None:
    assert list(map(len, await pieces_of_a_slow_client(slow, *sizes))) == [sum(sizes)]


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    with socket.socket() as made:
        yield made


async def test_the_kernel_buffers_less_for_a_slow_client(connection: socket.socket) -> None:
    limits = WebLimits()
    client = Client(connection)
    client.write(3)
    for _ in range(2):
        client.sink.gather()
    assert unsent_max(connection) == limits.unsent_slow_bytes_max
    await client.transport.read(1_000)
    assert unsent_max(connection) == limits.unsent_bytes_max
    connection.close()  # it may go before the sink knows
    client.transport.room = 0
    client.write(3)
    for _ in range(2):
        client.sink.gather()
    assert client.sink.buffered == 30


def unsent_max(connection: socket.socket) -> int:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)


async def test_a_client_that_has_read_all_is_written_to_at_once(slow: Client) -> None:
    slow.write(1)
    await slow.transport.read(1_000)
    slow.write(2)
    assert slow.transport.sent == slow.written
    slow.transport.room = 0
    slow.write(2)
    assert len(slow.transport.waiting) == 2
    assert slow.transport.high == LIMIT


async def test_what_was_written_since_the_last_call_is_no_sign_of_a_slow_client(client: Client) -> None:
    for _ in range(5):
        client.write(3)
        client.sink.gather()
        await client.transport.read(30)
    client.write(3)
    assert len(client.transport.waiting) == 3


async def test_the_limit_holds_for_what_is_gathered(slow: Client) -> None:
    slow.write(97)
    assert not slow.sink.full
    slow.write(1)
    assert slow.sink.full
    waiting = asyncio.create_task(slow.sink.writable())
    await slow.transport.read(30)
    assert not waiting.done()
    await slow.transport.read(10_000)
    await waiting
    assert not slow.sink.full
    assert slow.transport.sent == slow.written


async def test_the_limit_may_change_meanwhile(slow: Client) -> None:
    slow.sink.lower_limit(True)
    slow.write(10)
    assert slow.sink.full
    await slow.transport.read(10_000)
    assert slow.transport.high == LIMIT // 8


@pytest.mark.parametrize("gathering", [False, True])
async def test_drained_is_when_nothing_is_buffered(gathering: bool, client: Client) -> None:
    client.write(3)
    for _ in range(2 if gathering else 0):
        client.sink.gather()
    client.write(2)
    waiting = asyncio.create_task(client.sink.drained())
    await client.transport.read(30)
    await client.transport.read(19)
    assert not waiting.done()
    await client.transport.read(1)
    await waiting
    assert client.transport.sent == client.written
    await client.sink.drained()


async def test_nothing_is_drained_when_the_client_goes(slow: Client) -> None:
    waiting = asyncio.create_task(slow.sink.drained())
    await slow.transport.read(1)
    slow.sink.connection_lost(None)
    with pytest.raises(ConnectionError):
        await waiting


async def test_the_kernel_takes_the_end_behind_all_that_it_buffers(connection: socket.socket) -> None:
    client = Client(connection)
    await client.sink.drained()
    assert unsent_max(connection) == 0


async def test_what_was_gathered_goes_before_the_end(slow: Client) -> None:
    slow.write(5)
    slow.sink.close(Close(1000, "done", "done"))
    slow.sink.write(b"nothing more")
    await slow.transport.read(10_000)
    assert slow.transport.sent == slow.written + NDJSON.end(1000, "done", 7)
    assert slow.transport.eof


async def test_what_was_gathered_is_not_copied_for_a_client_that_reads_nothing(slow: Client) -> None:
    slow.write(50)
    slow.sink.close(Close(1008, "slow", "read faster"))
    assert len(slow.transport.waiting) == 3
    assert not slow.transport.eof
    await slow.transport.read(30)
    assert len(slow.transport.waiting) == 1
    assert slow.transport.eof


async def test_nothing_is_left_of_a_client_that_has_gone(slow: Client) -> None:
    slow.write(5)
    slow.sink.connection_lost(None)
    assert slow.sink._gathered_bytes == 0
