"""One address: its listening socket, and the routes that are served on it.

A connection begins as a `Connection`, which speaks HTTP. It stays one until it ends, or until a request for
a WebSocket hands its transport over to a `SocketSink`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from ipaddress import IPv6Address, ip_address
from typing import Final, NamedTuple

import structlog

from jetstream.limits import WebLimits
from jetstream.logging_setup import Throttled
from jetstream.metrics import Metrics
from jetstream.settings import Network
from jetstream.steps import Steps
from jetstream.web.connection import Answer, Connection, Handler
from jetstream.web.connections import Connections
from jetstream.web.http import READ, Request, Response, other_method
from jetstream.web.pages import Page

LOOPBACK_CONGESTION: Final = b"reno"  # every Linux kernel has it, and it does not pace
PEERS_REMEMBERED: Final = 256  # addresses of clients: nearly all may be that of one proxy
_NAME_BYTES_MAX: Final = 16  # TCP_CA_NAME_MAX of Linux
_OUT_OF_FILES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


_WRITE: Final = ("POST",)


class Upload(NamedTuple):
    """A route that is only written to, with POST: its handler, and the most bytes of a body."""

    handler: Handler
    body_bytes_max: int


class Server:
    """One address with its routes.

    `pages` are answered at once, `upgrades` may become WebSockets, `uploads` take a body. `trees` answer all
    requests below a path, of any method; their names end in a slash.
    """

    def __init__(
        self,
        metrics: Metrics,
        pages: Mapping[str, Page],
        upgrades: Mapping[str, Handler] | None = None,
        trees: Mapping[str, Handler] | None = None,
        uploads: Mapping[str, Upload] | None = None,
        limits: WebLimits = WebLimits(),
        trusted_proxies: Sequence[Network] = (),
    ) -> None:
        # By path.
        self._pages = pages
        # By path.
        self._upgrades = upgrades or {}
        # By the start of a path.
        self._trees = trees or {}
        # By path.
        self._uploads = uploads or {}
        # Every path, with the methods that it is for.
        self._methods = dict.fromkeys((*pages, *self._upgrades), READ) | dict.fromkeys(self._uploads, _WRITE)
        bodies = {path: upload.body_bytes_max for path, upload in self._uploads.items()}
        self._connections = Connections(metrics, limits)
        # Makes the protocol of a new connection.
        self._new = partial(Connection, self._connections, self._answer, trusted_proxies, bodies)
        # From `start` to `stop_accepting`.
        self._listener: Listener | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port. Raises OSError when the address cannot be bound."""
        connections = self._connections
        self._listener = Listener(host, port, self._new, connections.make_room, connections.limits)
        return self._listener.port

    def _answer(self, request: Request, connection: Connection) -> Steps[Answer]:
        """Answer a request by its path. Returns None when its connection has become a WebSocket."""
        path = request.route
        for start, tree in self._trees.items():
            if path.startswith(start):
                return (yield from tree(request, connection))
        methods = self._methods.get(path)
        if methods is None:
            there = ", ".join(sorted({*self._methods, *self._trees}))
            # A body, which another method may have, is not read: it must not be taken for the next request.
            closing = request.method not in (*READ, "OPTIONS")
            return Response.sentence(404, f"there is nothing here: there are {there}", closing=closing)
        refused = other_method(request, methods)
        if refused is not None:
            return refused
        if path in self._pages:
            return self._pages[path](request)
        handler = self._uploads[path].handler if path in self._uploads else self._upgrades[path]
        return (yield from handler(request, connection))

    def stop_accepting(self) -> None:
        """Accept no more connections. Those that are open go on."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def close(self) -> None:
        """Accept no more connections, and close those that are open.

        Clients have `shutdown_timeout_s` to read their last response.
        """
        self.stop_accepting()
        await self._connections.close()


@lru_cache(PEERS_REMEMBERED)
def is_loopback(peer: str) -> bool:
    """Tell whether an IP address is of this machine; an IPv4 address mapped into IPv6 counts, too."""
    address = ip_address(peer)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


class Listener:
    """Accepts connections on one address until it is closed.

    uvloop's own server accepts one connection in each turn. With turns of 10 ms that is 100 connections a
    second, which is too few when thousands of clients reconnect. So this class watches the listening socket
    itself (`add_reader`), calls `accept` up to `accepts_per_turn` times, and hands each socket to a protocol.

    New connections may not take the last file descriptors of the process: without a free one, the server
    could neither reconnect to upstream nor read its log. When few are left, the listener asks its server to
    close connections that have sent no request. If there are none, it pauses, and clients wait in the
    kernel's queue.

    `factory` returns the protocol of a new connection. `make_room` is called when file descriptors are short:
    it closes connections that can be spared, and returns whether there were any. `is_local` tells by its
    address whether a client is on this machine.

    Raises OSError when the address cannot be bound.
    """

    def __init__(
        self,
        host: str,
        port: int,
        factory: Callable[[], asyncio.BaseProtocol],
        make_room: Callable[[], bool] = lambda: False,
        limits: WebLimits = WebLimits(),
        is_local: Callable[[str], bool] = is_loopback,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._factory = factory
        self._make_room = make_room
        self._limits = limits
        self._is_local = is_local
        # Clients can make the listener pause and resume again and again.
        self._throttled = Throttled(structlog.get_logger(__name__))
        self._socket = _bind(host, port, limits.backlog)
        # Also when port 0 was asked for.
        self.port: int = self._socket.getsockname()[1]
        # Accepted sockets inherit both.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, limits.unread_bytes_max)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, limits.unsent_bytes_max)
        # The congestion control that clients on other machines get; None: they keep what they inherit.
        self._congestion = _disable_pacing(self._socket)
        # Connections that were accepted and have no protocol yet: the event loop keeps no reference to tasks.
        self._handovers: set[asyncio.Task[object]] = set()
        # How often to accept in the next turn: once, and more often while each attempt finds a connection. An
        # attempt that finds none takes as long as one that does.
        self._attempts = 1
        # How many were accepted since there were enough file descriptors: no more than in one turn.
        self._unchecked = limits.accepts_per_turn
        # Whether it was out of files at the last attempt; cleared by the next accept.
        self._paused = False
        # The end of the pause, while the socket is not watched.
        self._resume: asyncio.TimerHandle | None = None
        self._watch()

    def close(self) -> None:
        """Accept no more connections. Those that were accepted go on."""
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _watch(self) -> None:
        """Have the event loop call `_accept` whenever a connection waits."""
        self._resume = None
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        """Accept some of the connections that wait. The event loop calls again while there are more."""
        most = self._limits.accepts_per_turn
        if self._unchecked >= most:
            if _files_are_short(self._socket, self._limits.files_reserved):
                if not self._make_room():  # closed sockets release their files when this turn ends
                    self._pause()
                return
            self._unchecked = 0
        for _ in range(min(self._attempts, most - self._unchecked)):
            try:
                connection, address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                self._attempts = 1
                return
            except OSError as error:
                if error.errno not in _OUT_OF_FILES:
                    raise
                self._pause()
                return
            if self._paused:
                self._paused = False
                self._throttled.info("listener: accepting again")
            self._unchecked += 1
            self._configure(connection, address[0])
            task = self._loop.create_task(self._hand_over(connection))
            self._handovers.add(task)
            task.add_done_callback(self._handovers.discard)
        self._attempts = min(2 * self._attempts, most)

    def _configure(self, connection: socket.socket, peer: str) -> None:
        """Set the options of an accepted socket that it does not inherit."""
        connection.setblocking(False)
        if self._congestion is not None and not self._is_local(peer):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, self._congestion)

    async def _hand_over(self, connection: socket.socket) -> None:
        """Give an accepted socket a transport and its protocol."""
        try:
            await self._loop.connect_accepted_socket(self._factory, connection)
        except OSError:
            connection.close()  # the client has closed it already

    def _pause(self) -> None:
        """Leave new connections in the kernel's queue until files may be free again."""
        if not self._paused:
            self._paused = True
            self._throttled.warning(
                "listener: cannot accept, pausing: all files that may be opened are in use"
            )
        self._loop.remove_reader(self._socket.fileno())
        self._resume = self._loop.call_later(self._limits.accept_pause_s, self._watch)


def _disable_pacing(listening: socket.socket) -> bytes | None:
    """Let accepted connections start without pacing. Return the system's own congestion control.

    A machine may be set to BBR, which paces what is sent. That only delays what goes to a proxy on the same
    machine. A connection that has started with pacing keeps it when its congestion control is changed. So all
    connections start without, and `Listener` gives those of other machines the system's choice. Returns None,
    and changes nothing, when the process may not set one of the two.
    """
    system = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _NAME_BYTES_MAX).rstrip(b"\0")
    try:
        with socket.socket(listening.family) as probe:
            for name in (LOOPBACK_CONGESTION, system):
                probe.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, LOOPBACK_CONGESTION)
    except OSError:
        return None
    return system


def _files_are_short(any_file: socket.socket, reserved: int) -> bool:
    """Tell whether the next file descriptor would be one of those that are reserved.

    The kernel gives out the lowest free number. So a duplicate of any file tells how many are open, without
    a look into `/proc`.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return False
    try:
        lowest_free = os.dup(any_file.fileno())
    except OSError:
        return True
    os.close(lowest_free)
    return lowest_free >= limit - min(reserved, limit // 8)


def _bind(host: str, port: int, backlog: int) -> socket.socket:
    """Listen on an address. An empty host means every address, IPv6 and IPv4. Raises OSError."""
    both = not host and socket.has_dualstack_ipv6()
    host = host or ("::" if both else "0.0.0.0")  # noqa: S104 - what an empty host asks for
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, dualstack_ipv6=both, backlog=backlog)
    listening.setblocking(False)
    return listening
