"""What comes before HTTP on a connection: the head of a proxy, and the handshake of TLS.

    accepted ──▶ PROXY head, from a trusted proxy ──▶ handshake, with TLS ──▶ `Connection`
                        └── 10 s for both, else closed ──┘

Until then the connection is one of `Connections` like any other with an unfinished request: it has the same
deadline, counts among the same number, and is closed when others need its room. A server with neither TLS nor
the PROXY protocol has no arrivals.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from jetstream.web.address_limits import Visit
from jetstream.web.connections import Connections
from jetstream.web.http import BadRequest
from jetstream.web.peers import Peers
from jetstream.web.proxies import is_trusted
from jetstream.web.proxy_head import V2_BYTES_MAX, BadHead, ProxyHead

if TYPE_CHECKING:
    from ssl import SSLContext

# What is counted and logged. The client cannot be told: there is no connection that it could read.
_NO_TLS = BadRequest(400, "tls", "the handshake has failed: TLS 1.2 or newer is needed")
_LATE = BadRequest(408, "timeout", "the connection was not ready for a request in time")


class Arrived(NamedTuple):
    """What is known of a connection before its first request."""

    peer: str  # the address of its client, as far as the connection itself tells it
    visit: Visit | None = None  # what it has of the limits of its address
    secure: bool = False  # whether it has TLS
    made: Callable[[], None] = lambda: None  # to be called once it is a connection


class Arrivals:
    """Makes connections of accepted sockets.

    `factory` returns the protocol of a connection. `context` returns what handshakes are made with now; None:
    connections have no TLS.

    Used by the listener's tasks on the event loop, one task for each socket. Nothing is kept here between
    two sockets.
    """

    def __init__(
        self,
        connections: Connections,
        peers: Peers,
        factory: Callable[[Arrived], asyncio.BaseProtocol],
        context: Callable[[], SSLContext] | None,
    ) -> None:
        # Each arrival is one of these, until it is a connection.
        self._connections = connections
        # Which proxies are trusted, and the limits of client addresses.
        self._peers = peers
        # Called with what is known, once the handshake is complete.
        self._factory = factory
        # Called for each handshake, so that a new certificate counts for the next connection.
        self._context = context

    async def hand_over(self, sock: socket.socket, peer: str) -> None:
        """Make an accepted socket a connection, or close it. It raises nothing.

        The visit of the client's address begins here, as soon as its address is known: before the
        handshake, which costs the most. It ends here where there is no connection in the end.
        """
        # It counts as a connection from here on. The task is cancelled when its time is over.
        arrival = _Arrival(self._connections, peer)
        self._connections.add(arrival)
        visit: Visit | None = None
        try:
            if self._peers.proxy_protocol and is_trusted(peer, self._peers.trusted):
                arrival.peer = await _client(sock) or peer
            visit = self._peers.arrive(arrival.peer)
            made = partial(self._connections.remove, arrival)
            await self._connect(sock, Arrived(arrival.peer, visit, self._context is not None, made))
        except BadHead as error:
            refused = BadRequest(400, "malformed", f"{error}: see --proxy-protocol")
            self._connections.count_refusal(refused, arrival.peer)
            sock.close()
        except OSError as error:
            # Clients that go away in the middle of a handshake are no refusals: port scans and health
            # checks do that.
            if self._context is not None and not isinstance(error, ConnectionError):
                self._connections.count_refusal(_NO_TLS, arrival.peer)
            sock.close()
        except asyncio.CancelledError:  # it takes too long, or others need its room
            sock.close()
        else:
            visit = None  # it is the connection's now
        finally:
            if visit is not None:
                visit.leave()
            self._connections.remove(arrival)

    async def _connect(self, sock: socket.socket, arrived: Arrived) -> None:
        """Make the handshake, if there is one, and give the socket its protocol. Raises OSError.

        Once it returns, the socket belongs to the transport. At the end of TLS, the client has
        `close_timeout_s` seconds to answer.
        """
        loop = asyncio.get_running_loop()
        if self._context is None:
            await loop.connect_accepted_socket(lambda: self._factory(arrived), sock)
        else:
            await loop.connect_accepted_socket(
                lambda: self._factory(arrived),
                sock,
                ssl=self._context(),
                ssl_shutdown_timeout=self._connections.limits.close_timeout_s,
            )


class _Arrival:
    """A connection that has no request yet, as `Connections` sees it. It must be made by its own task."""

    def __init__(self, connections: Connections, peer: str) -> None:
        # Told when it is over, one way or another.
        self._connections = connections
        # The task of `hand_over`: to cancel it closes the socket.
        self._task = asyncio.current_task()
        # The address of the client: that of the peer, until the head of a proxy names another.
        self.peer = peer

    def time_out(self) -> None:
        """Close it: its deadline has passed."""
        self._connections.count_refusal(_LATE, self.peer)
        self.abort()

    def refuse(self, _error: BadRequest) -> None:
        """Close it. There is nothing to respond to."""
        self.abort()

    def close(self) -> None:
        """Close it: the server stops."""
        self.abort()

    def abort(self) -> None:
        """Close it."""
        self._connections.remove(self)
        if self._task is not None:
            self._task.cancel()


async def _client(sock: socket.socket) -> str | None:
    """Take the head of the PROXY protocol from a socket, and nothing behind it.

    Returns the address of the client; None if the head names none. Raises BadHead or OSError.
    """
    sock.setblocking(False)
    head = ProxyHead()
    while not head.complete:
        await _readable(sock)
        # The data is looked at, and only the head is taken. What follows is HTTP or TLS, which the
        # transport must read from the socket.
        data = sock.recv(V2_BYTES_MAX, socket.MSG_PEEK)
        if not data:
            raise ConnectionResetError
        sock.recv(head.take(data))
    return head.address


async def _readable(sock: socket.socket) -> None:
    """Return once something has come.

    The loop's own `sock_recv` would take bytes that are not of the head.
    """
    loop, came = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sock.fileno(), came.set)
    try:
        await came.wait()
    finally:
        loop.remove_reader(sock.fileno())
