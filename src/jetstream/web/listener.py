"""The listening socket of an address: accept connections, also when file descriptors run out.

    kernel's queue (`backlog`) ──▶ `accept`, some in each turn ──▶ `hand_over` ──▶ a protocol
                                       │
                                       └── few files are left: `make_room`, else a pause

What happens on the connection from then on is the concern of `hand_over`: see `connection` and `arrival`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

from jetstream.limits import WebLimits
from jetstream.logging_setup import Throttled
from jetstream.web.proxies import is_loopback

LOOPBACK_CONGESTION: Final = b"reno"  # every Linux kernel has it, and it does not pace
_NAME_BYTES_MAX: Final = 16  # TCP_CA_NAME_MAX of Linux
# What `accept` raises when the process or the system has no file descriptor left, or the kernel no memory
# for a socket. Each of them may be over after a pause.
_OUT_OF_FILES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

# Makes an accepted socket a connection; the text is the IP address of its peer. It closes a socket with
# which it cannot do that, and raises nothing.
HandOver = Callable[[socket.socket, str], Coroutine[Any, Any, None]]


def as_accepted(factory: Callable[[], asyncio.BaseProtocol]) -> HandOver:
    """Return what gives an accepted socket a transport and a protocol, and does nothing else.

    `factory` is called once for each socket, on the event loop.
    """

    async def hand_over(connection: socket.socket, _peer: str) -> None:
        """Give the socket to the event loop, which calls the protocol from then on."""
        try:
            await asyncio.get_running_loop().connect_accepted_socket(factory, connection)
        except OSError:
            connection.close()  # the client has closed it already

    return hand_over


class Listener:
    """Accepts connections on one address until it is closed.

    uvloop's own server accepts one connection in each turn. With turns of 10 ms that is 100 connections a
    second, which is too few when thousands of clients reconnect. So this class watches the listening socket
    itself (`add_reader`), calls `accept` up to `accepts_per_turn` times, and hands each socket to a protocol.

    New connections may not take the last file descriptors of the process: without a free one, the server
    could neither reconnect to upstream nor read its log. When few are left, the listener asks its server to
    close connections that have sent no request. If there are none, it pauses, and clients wait in the
    kernel's queue.

    `hand_over` makes an accepted socket, of a peer's address, a connection; it raises nothing. `make_room` is
    called when file descriptors are short: it closes connections that can be spared, and returns whether
    there were any. `is_local` tells by its address whether a client is on this machine. `is_full` tells
    whether those that were handed over have no place yet; None: they always have.

    Raises OSError when the address cannot be bound.
    """

    def __init__(
        self,
        host: str,
        port: int,
        hand_over: HandOver,
        make_room: Callable[[], bool] = lambda: False,
        limits: WebLimits = WebLimits(),
        is_local: Callable[[str], bool] = is_loopback,
        is_full: Callable[[], bool] | None = None,
    ) -> None:
        # The loop that watches the socket. All methods are called on its thread.
        self._loop = asyncio.get_running_loop()
        # The arguments that the docstring describes; they do not change.
        self._hand_over = hand_over
        self._make_room = make_room
        self._limits = limits
        self._is_local = is_local
        self._is_full = is_full
        # For the log lines of pauses: clients can make the listener pause and resume again and again.
        self._throttled = Throttled(structlog.get_logger(__name__))
        # Listens, and does not block. Watched by the event loop, except in a pause.
        self._socket = _bind(host, port, limits.backlog)
        # The port that is bound. Port 0 asks for any free one.
        self.port: int = self._socket.getsockname()[1]
        # Accepted sockets inherit both options. They bound what the kernel buffers for each connection, in
        # both directions.
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
        """Accept no more connections. Those that were accepted go on.

        The kernel refuses new connections from now on, and resets those that wait in its queue. Called
        once.
        """
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _watch(self) -> None:
        """Have the event loop call `_accept` whenever a connection waits."""
        self._resume = None
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        """Accept some of the connections that wait. The event loop calls again while there are more.

        Called by the event loop while the socket is readable. Three limits are checked, in this
        order: room for those that were handed over, file descriptors, and how many one turn may accept.
        """
        most = self._limits.accepts_per_turn
        if self._is_full is not None and self._is_full():
            self._rest(self._limits.accept_rest_s)
            return
        # To look at the file descriptors takes some system calls. So it is done once for as many
        # connections as one turn accepts: at most so many are opened above the reserve.
        if self._unchecked >= most:
            if files_are_short(self._socket, self._limits.files_reserved):
                if not self._make_room():  # closed sockets release their files when this turn ends
                    self._pause()
                return
            self._unchecked = 0
        for _ in range(min(self._attempts, most - self._unchecked)):
            try:
                connection, address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                # None waits any more, or the first one has gone before it was accepted.
                self._attempts = 1
                return
            except OSError as error:
                # Any other error is a fault of the server: it goes to the event loop's exception handler.
                if error.errno not in _OUT_OF_FILES:
                    raise
                self._pause()
                return
            if self._paused:
                self._paused = False
                self._throttled.info("listener: accepting again")
            # The socket takes a descriptor from now on, whatever becomes of it.
            self._unchecked += 1
            self._configure(connection, address[0])
            task = self._loop.create_task(self._hand_over(connection, address[0]))
            self._handovers.add(task)
            task.add_done_callback(self._handovers.discard)
        self._attempts = min(2 * self._attempts, most)

    def _configure(self, connection: socket.socket, peer: str) -> None:
        """Set the options of an accepted socket that it does not inherit.

        `peer` is an IP address. Programs of this machine, such as a proxy, keep what disables pacing.
        """
        if self._congestion is not None and not self._is_local(peer):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, self._congestion)

    def _pause(self) -> None:
        """Leave new connections in the kernel's queue until files may be free again.

        A warning is logged at the beginning of a series of pauses, and not for each of them.
        """
        if not self._paused:
            self._paused = True
            self._throttled.warning(
                "listener: cannot accept, pausing: all files that may be opened are in use"
            )
        self._rest(self._limits.accept_pause_s)

    def _rest(self, seconds: float) -> None:
        """Stop watching the socket for some seconds. Clients wait in the kernel's queue, up to `backlog`."""
        self._loop.remove_reader(self._socket.fileno())
        self._resume = self._loop.call_later(seconds, self._watch)


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


def files_are_short(any_file: socket.socket, reserved: int) -> bool:
    """Tell whether the next file descriptor would be one of those that are reserved.

    The kernel gives out the lowest free number. So a duplicate of any file tells how many are open, without
    a look into `/proc`.

    Returns False where there is no limit, and True where no descriptor is left at all. `reserved`
    descriptors are kept, but an eighth of all at most. The limit is read each time: an operator may change
    it while the process runs (`prlimit`).
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
    """Listen on an address, and return the socket, which does not block. Raises OSError.

    An empty host means every address, IPv6 and IPv4; on a machine without IPv6, every IPv4 address. A host
    with a colon is an IPv6 address. Port 0 means any free port. A port whose old connections still linger
    in the kernel can be bound again.
    """
    both = not host and socket.has_dualstack_ipv6()
    host = host or ("::" if both else "0.0.0.0")  # noqa: S104 - what an empty host asks for
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, dualstack_ipv6=both, backlog=backlog)
    listening.setblocking(False)
    return listening
