from __future__ import annotations

import asyncio
from typing import Any, cast

from tests.serving import until

from jetstream.limits import WebLimits
from jetstream.metrics import Metrics
from jetstream.steps import Steps
from jetstream.web.connection import Answer, Connection, Handler
from jetstream.web.connections import Connections
from jetstream.web.http import Request, Response


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""

    def get_extra_info(self, _name: str) -> tuple[str, int]:
        return "192.0.2.1", 1

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.written += data

    def pause_reading(self) -> None: ...

    resume_reading = write_eof = pause_reading


def ok(_request: Request, _connection: Connection) -> Steps[Answer]:
    yield
    return Response.sentence(200, "it is read")


def posted(size: int) -> bytes:
    head = b"POST /filters HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
    return head + size * b"x"


def upload(connections: Connections, size: int, handler: Handler = ok) -> tuple[Transport, Connection]:
    """Send a request with a body at once."""
    transport = Transport()
    connection = Connection(connections, handler, bodies={"/filters": 1_000})
    connection.connection_made(cast(Any, transport))
    connection.data_received(posted(size))
    return transport, connection


async def test_bodies_that_wait_for_their_turn_are_bounded_together() -> None:
    limits = WebLimits(pending_bytes_max=250)
    connections = Connections(Metrics(), limits)
    first = [upload(connections, 100)[0] for _ in range(3)]
    assert first[2].written.startswith(b"HTTP/1.1 503 ")
    await until(lambda: not connections.worker)
    second = [upload(connections, 100)[0] for _ in range(2)]
    await until(lambda: not connections.worker)
    assert all(each.written.startswith(b"HTTP/1.1 200 ") for each in (*first[:2], *second))


async def test_a_request_whose_client_has_gone_is_not_answered() -> None:
    asked: list[str] = []

    def note(request: Request, _connection: Connection) -> Steps[Answer]:
        asked.append(request.path)
        yield
        return Response.sentence(200, "it is read")

    connections = Connections(Metrics())
    for size in (100, 20_000):  # the second one is read in a turn of its own
        connection = Connection(connections, note, bodies={"/filters": 100_000})
        connection.connection_made(cast(Any, Transport()))
        connection.data_received(posted(size))
        connection.connection_lost(None)
    await until(lambda: not connections.worker and not connections.reading)
    assert asked == []
    assert connections._body_bytes == 0
    assert not connections


class Slow:
    """Answers once it may: the answer takes other processes."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.begun = 0

    def __call__(self, request: Request, _connection: Connection) -> Steps[Answer]:
        yield
        return self._answer(request)

    async def _answer(self, request: Request) -> Response:
        self.begun += 1
        await self.may.wait()
        return Response.sentence(200, f"{len(request.body)} bytes are read")


async def test_bodies_are_counted_until_the_answer_is_made() -> None:
    connections, slow = Connections(Metrics(), WebLimits(pending_bytes_max=250)), Slow()
    first = [upload(connections, 100, slow)[0] for _ in range(2)]
    await until(lambda: slow.begun == 2)
    assert upload(connections, 100, slow)[0].written.startswith(b"HTTP/1.1 503 ")
    slow.may.set()
    await until(lambda: all(each.written.startswith(b"HTTP/1.1 200 ") for each in first))
    await until(lambda: connections._body_bytes == 0)


async def test_bodies_are_counted_no_more_when_their_client_has_gone() -> None:
    connections, slow = Connections(Metrics(), WebLimits(pending_bytes_max=250)), Slow()
    _, waiting = upload(connections, 100, slow)
    await until(lambda: slow.begun == 1)
    _, early = upload(connections, 100, slow)
    while early._task is None:  # noqa: ASYNC110 - its answer begins in the next turn
        await asyncio.sleep(0)
    for connection in (early, waiting):  # one before its answer has begun
        connection.connection_lost(None)
    await until(lambda: connections._body_bytes == 0)
    assert slow.begun == 1
