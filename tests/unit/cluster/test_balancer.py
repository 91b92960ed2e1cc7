"""The balancer with small servers in the place of edges."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from jetstream.cluster.answers import accepts, get
from jetstream.cluster.balancer import Balancer, choose


class TestChoose:
    def test_of_those_that_are_ready_it_is_the_one_with_the_fewest(self) -> None:
        assert choose({"a": 3, "b": 1, "c": 0}, {"a", "b"}) == "b"

    def test_when_none_is_ready_it_is_any(self) -> None:
        assert choose({"a": 3, "b": 1}, ()) == "b"

    def test_one_that_has_refused_is_left_out(self) -> None:
        assert choose({"a": 3, "b": 1, "c": 9}, {"a", "b"}, {"b"}) == "a"
        assert choose({"a": 3, "b": 1, "c": 9}, {"a", "b"}, {"a", "b"}) == "c"
        assert choose({"a": 3}, {"a"}, {"a"}) is None


class Edge:
    """Answers `/ready`, says its name to what begins with `hello`, and then repeats what it gets."""

    def __init__(self, name: str, *, ready: bool = True) -> None:
        self.name = name
        self.ready = ready
        self.server: asyncio.Server | None = None
        self.writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> int:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        port: int = self.server.sockets[0].getsockname()[1]
        return port

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        if line.startswith(b"GET /ready "):
            writer.write(b"HTTP/1.1 %s X\r\n\r\nbody" % (b"200" if self.ready else b"503"))
        else:
            self.writers.add(writer)
            writer.write(f"{self.name}\n".encode())
            while data := await reader.read(100):
                writer.write(data)
            writer.write(b"bye\n")
        writer.close()

    def end(self) -> None:
        """End as a process does that is killed."""
        assert self.server is not None
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()


Balanced = Callable[..., Any]


@pytest.fixture
async def balanced() -> AsyncIterator[Balanced]:
    """Start a balancer in front of edges."""
    async with AsyncExitStack() as stack:

        async def start(*edges: Edge) -> Balancer:
            balancer = Balancer({edge.name: await edge.start() for edge in edges})
            for edge in edges:
                stack.callback(edge.end)
            await balancer.start(0)
            stack.push_async_callback(balancer.close)
            return balancer

        yield start


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def line(self) -> str:
        return (await self.reader.readline()).decode().strip()


@asynccontextmanager
async def connected(balancer: Balancer) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_connection("127.0.0.1", balancer.port))
    client.writer.write(b"hello\n")
    try:
        yield client
    finally:
        client.writer.transport.abort()


async def test_connections_are_spread_over_those_that_are_ready(balanced: Balanced) -> None:
    balancer = await balanced(Edge("a"), Edge("b"), Edge("c", ready=False))
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(balancer)) for _ in range(4)]
        assert sorted([await each.line() for each in clients]) == ["a", "a", "b", "b"]
        assert balancer.loads == {"a": 2, "b": 2, "c": 0}


async def test_bytes_pass_in_both_directions_also_after_the_end_of_one(balanced: Balanced) -> None:
    balancer = await balanced(Edge("a"))
    async with connected(balancer) as client:
        assert await client.line() == "a"
        client.writer.write(b"1\n")
        assert await client.line() == "1"
        client.writer.write_eof()
        assert await client.reader.read() == b"bye\n"


async def test_a_client_of_an_edge_that_is_killed_is_told_and_the_next_one_goes_elsewhere(
    balanced: Balanced,
) -> None:
    first, second = Edge("a"), Edge("b")
    balancer = await balanced(first, second)
    async with connected(balancer) as client:
        assert await client.line() == "a"
        first.end()
        assert await client.reader.read() == b""
    for _ in range(2):
        async with connected(balancer) as client:
            assert await client.line() == "b"


async def test_without_any_edge_it_answers_503(balanced: Balanced) -> None:
    edge = Edge("a")
    balancer = await balanced(edge)
    edge.end()
    answer = await get(balancer.port, "/ready")
    assert answer is not None
    assert answer.status == 503
    assert b"no edge takes connections" in answer.body


async def test_what_it_ends_with_are_its_connections(balanced: Balanced) -> None:
    balancer = await balanced(Edge("a"))
    port = balancer.port
    async with connected(balancer) as client:
        assert await client.line() == "a"
        await balancer.close()
        assert await client.reader.read() == b""
    assert not await accepts(port)


async def test_what_does_not_answer_with_http_has_no_answer() -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"nonsense\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert await accepts(port)
    assert await get(port, "/") is None
    server.close()
    await server.wait_closed()
    assert await get(port, "/") is None
