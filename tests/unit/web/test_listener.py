from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import cycle

import pytest
from structlog.testing import capture_logs

from jetstream.limits import WebLimits
from jetstream.web.listener import (
    LOOPBACK_CONGESTION,
    Listener,
    as_accepted,
)
from jetstream.web.proxies import is_loopback

LIMITS = WebLimits()


class Greeted(asyncio.Protocol):
    """A connection that was handed over."""

    def __init__(self, transport: asyncio.Future[asyncio.BaseTransport]) -> None:
        self._transport = transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport.set_result(transport)


@asynccontextmanager
async def accepted(
    host: str, to: str, is_local: Callable[[str], bool] = is_loopback
) -> AsyncIterator[socket.socket]:
    """Listen on `host`, connect to `to`, and give the server's socket."""
    made: asyncio.Future[asyncio.BaseTransport] = asyncio.get_running_loop().create_future()
    listening = Listener(host, 0, as_accepted(lambda: Greeted(made)), limits=LIMITS, is_local=is_local)
    _, writer = await asyncio.open_connection(to, listening.port)
    try:
        transport = await made
        yield transport.get_extra_info("socket")
        transport.abort()  # type: ignore[attr-defined]
    finally:
        writer.close()
        listening.close()


def congestion(connection: socket.socket) -> bytes:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


@pytest.mark.parametrize(("host", "to"), [("127.0.0.1", "127.0.0.1"), ("", "127.0.0.1"), ("", "::1")])
async def test_nothing_is_paced_on_the_way_to_a_program_beside_us(host: str, to: str) -> None:
    if to == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    async with accepted(host, to) as connection:
        assert congestion(connection) == LOOPBACK_CONGESTION


async def test_all_others_are_sent_to_as_the_machine_is_set_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as any_server:
        usual = congestion(any_server)
    async with accepted("127.0.0.1", "127.0.0.1", is_local=lambda _peer: False) as connection:
        assert congestion(connection) == usual


async def test_the_kernel_takes_only_so_much_for_one_that_reads_slowly() -> None:
    async with accepted("127.0.0.1", "127.0.0.1") as connection:
        unsent = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
        assert unsent == LIMITS.unsent_bytes_max


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
def test_an_address_of_this_machine(peer: str) -> None:
    assert is_loopback(peer)


@pytest.mark.parametrize(
    "peer", ["10.0.0.1", "128.0.0.1", "2001:db8::1", "::ffff:192.0.2.1", "fe80::1%eth0", "::"]
)
def test_an_address_elsewhere(peer: str) -> None:
    assert not is_loopback(peer)


async def test_the_kernel_takes_in_only_so_much_before_it_is_read() -> None:
    async with accepted("127.0.0.1", "127.0.0.1") as connection:
        # The kernel doubles what it is asked for, to have room for its own.
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * LIMITS.unread_bytes_max


async def test_connections_wait_in_the_kernel_while_those_before_them_have_no_place() -> None:
    loop = asyncio.get_running_loop()
    full, made = [True], loop.create_future()
    limits = WebLimits(accept_rest_s=0.001)
    listening = Listener(
        "127.0.0.1", 0, as_accepted(lambda: Greeted(made)), limits=limits, is_full=lambda: asked() and full[0]
    )
    looks: asyncio.Queue[None] = asyncio.Queue()

    def asked() -> bool:
        looks.put_nowait(None)
        return True

    _, writer = await asyncio.open_connection("127.0.0.1", listening.port)
    for _ in range(3):
        await looks.get()
    assert not made.done()
    full[0] = False
    (await made).abort()
    writer.close()
    listening.close()


async def test_pauses_for_want_of_files_are_told_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    short = cycle([True, False])  # before each connection a pause
    monkeypatch.setattr("jetstream.web.listener.files_are_short", lambda *_: next(short))
    accepted: asyncio.Queue[None] = asyncio.Queue()

    async def hand_over(connection: socket.socket, _peer: str) -> None:
        connection.close()
        accepted.put_nowait(None)

    with capture_logs() as lines:
        limits = WebLimits(accepts_per_turn=1, accept_pause_s=0.0)
        listening = Listener("127.0.0.1", 0, hand_over, limits=limits)
        for _ in range(5):
            _, writer = await asyncio.open_connection("127.0.0.1", listening.port)
            await accepted.get()
            writer.close()
        listening.close()
    assert [line["event"].partition(",")[0] for line in lines] == [
        "listener: cannot accept",
        "listener: accepting again",
    ]
