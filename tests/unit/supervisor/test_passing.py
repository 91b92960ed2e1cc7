"""Real sockets between an acceptor and what takes connections, in one process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from jetstream.limits import SupervisorLimits, WebLimits
from jetstream.supervisor.acceptor import Acceptor
from jetstream.supervisor.taking import Taking

# Returns both ends of a connection, the client's first.
Client = Callable[[], tuple[socket.socket, socket.socket]]


@pytest.fixture
def files() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


class Edge:
    """An edge that keeps the sockets that it gets."""

    def __init__(self, acceptor: Acceptor, number: int, files: ExitStack) -> None:
        ours, self.theirs = socket.socketpair()
        self.load = acceptor.begin(number, ours)
        acceptor.ready(number)
        self.got: asyncio.Queue[tuple[int, socket.socket]] = asyncio.Queue()
        self._files = files
        self.taking: Taking | None = None

    def take(self, limits: WebLimits = WebLimits()) -> None:
        """Begin to take connections."""

        def of(listener: int) -> object:
            async def hand_over(sock: socket.socket, peer: str) -> None:
                assert peer == "127.0.0.1"
                self._files.enter_context(sock)
                self.got.put_nowait((listener, sock))

            return hand_over

        self.taking = Taking(self.theirs, [of(0), of(1)], lambda: False, limits)  # type: ignore[list-item]

    def end(self) -> None:
        if self.taking is None:
            self.theirs.close()
        else:
            self.taking.close()


@pytest.fixture
def listening(files: ExitStack) -> socket.socket:
    return files.enter_context(socket.create_server(("127.0.0.1", 0)))


@pytest.fixture
def client(files: ExitStack, listening: socket.socket) -> Client:
    def connect() -> tuple[socket.socket, socket.socket]:
        theirs = files.enter_context(socket.create_connection(listening.getsockname()))
        accepted, _ = listening.accept()
        return theirs, accepted

    return connect


async def test_a_connection_is_that_of_the_edge_alone_once_it_has_taken_it(
    files: ExitStack, client: Client
) -> None:
    acceptor = Acceptor(1, SupervisorLimits())
    edge = Edge(acceptor, 1, files)
    edge.take()
    theirs, accepted = client()
    acceptor.accept(1, accepted)
    listener, sock = await edge.got.get()
    assert listener == 1
    while edge.load.untaken:  # noqa: ASYNC110 - the confirmation is on its way
        await asyncio.sleep(0)
    assert accepted.fileno() == -1  # the supervisor has closed its own
    sock.sendall(b"hello")
    assert theirs.recv(5) == b"hello"
    acceptor.end(1)
    edge.end()


async def test_what_an_edge_has_not_taken_when_it_ends_goes_to_another(
    files: ExitStack, client: Client
) -> None:
    acceptor = Acceptor(2, SupervisorLimits(hold_s=0.0))
    first, second = Edge(acceptor, 1, files), Edge(acceptor, 2, files)
    acceptor.leave(2)
    clients = [client() for _ in range(3)]
    for theirs, accepted in clients:
        theirs.sendall(b"request")
        acceptor.accept(0, accepted)
    assert first.load.untaken == 3
    second.take()
    acceptor.ready(2)
    first.end()  # the acceptor notices by itself
    for theirs, _ in clients:
        _, sock = await second.got.get()
        sock.setblocking(True)
        assert sock.recv(7) == b"request"
        sock.sendall(b"response")
        assert theirs.recv(8) == b"response"
    assert acceptor.passed_again == 3
    acceptor.end(2)
    second.end()


async def test_connections_wait_while_there_is_no_edge(files: ExitStack, client: Client) -> None:
    acceptor = Acceptor(1, SupervisorLimits(waiting_max=2))
    for count in range(2):
        assert acceptor.waiting == count
        assert not acceptor.full
        acceptor.accept(0, client()[1])
    assert acceptor.full
    edge = Edge(acceptor, 1, files)
    edge.take()
    acceptor.pump()
    for _ in range(2):
        await edge.got.get()
    assert not acceptor.waiting
    acceptor.end(1)
    edge.end()


async def test_what_still_waits_at_the_end_is_closed(client: Client) -> None:
    acceptor = Acceptor(1, SupervisorLimits())
    theirs, accepted = client()
    acceptor.accept(0, accepted)
    acceptor.close()
    assert theirs.recv(1) == b""


async def test_more_than_one_turn_takes_all_come(files: ExitStack, client: Client) -> None:
    acceptor = Acceptor(1, SupervisorLimits(untaken_max=3))
    edge = Edge(acceptor, 1, files)
    edge.take(WebLimits(accepts_per_turn=2))
    for _ in range(20):
        acceptor.accept(0, client()[1])
    assert edge.load.untaken == 3
    for _ in range(20):
        await edge.got.get()
    assert acceptor.passed == {1: 20}
    acceptor.end(1)
    edge.end()


async def test_until_an_edge_is_replaced_the_others_get_their_share_only(
    files: ExitStack, client: Client
) -> None:
    acceptor = Acceptor(2, SupervisorLimits(hold_s=1_000.0))
    first, second = Edge(acceptor, 1, files), Edge(acceptor, 2, files)
    for edge in (first, second):
        edge.take()
    for _ in range(10):
        acceptor.accept(0, client()[1])
    for edge in (first, second):
        for _ in range(5):
            await edge.got.get()
        edge.load.open, edge.load.taken = 5, 5
    first.end()
    while acceptor.loads[1].ready:  # noqa: ASYNC110 - until it is noticed
        await asyncio.sleep(0)
    for _ in range(5):
        acceptor.accept(0, client()[1])
    assert acceptor.waiting == 5
    acceptor.end(1)
    assert acceptor.waiting == 5
    replaced = Edge(acceptor, 1, files)
    replaced.take()
    for _ in range(5):
        await replaced.got.get()
    for edge in (replaced, second):
        edge.end()


async def test_an_edge_that_is_ready_after_it_was_told_to_stop_gets_nothing(client: Client) -> None:
    """Its process has closed the socket for connections already."""
    acceptor = Acceptor(1, SupervisorLimits())
    acceptor.ready(1)
    acceptor.accept(0, client()[1])
    assert acceptor.waiting == 1
    assert not acceptor.loads[1].ready
    acceptor.close()
