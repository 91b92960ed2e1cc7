"""A listening socket of our own: many accepts a turn, and none when files run out.

uvloop accepts one connection per turn of the loop; with turns of 10 ms only a hundred newcomers a second
would get in. So the socket is watched here, and accepted ones are handed to a protocol. Newcomers
may not take the last files: without one, upstream could not be connected again, nor the log be read.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Final

import structlog

from jetstream.logging_setup import Throttled

ACCEPTS_PER_TURN: Final = 4  # a handshake takes a quarter of a millisecond; the others wait in the kernel
BACKLOG: Final = 4096
PAUSE_S: Final = 1.0
FILES_KEPT: Final = 32  # for upstream, the log's readers and a scrape; less where there are few at all
# What the kernel takes of a connection beyond what is on its way: 4 MB by itself, for each that reads slowly.
UNSENT_BYTES_MAX: Final = 256 << 10
# What the kernel takes in of a connection before we read it; it doubles this. All sockets that are ready are
# read in one turn of the loop: of 50 clients, each with an update of 10,000 DIDs, that took 22 ms.
UNREAD_BYTES_MAX: Final = 32 << 10
LOOPBACK_CONGESTION: Final = b"reno"  # there on every Linux, and does not pace
_NAME_BYTES_MAX: Final = 16  # of a way to control congestion
_OUT_OF_FILES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

logger = structlog.get_logger(__name__)


class Listener:
    """Accepts connections on one address for as long as it is open.

    When files are short, `make_room` is asked to close connections that have sent no request, and says
    whether it has; else accepting pauses.

    Raises OSError when the address cannot be bound.
    """

    def __init__(
        self,
        host: str,
        port: int,
        factory: Callable[[], asyncio.BaseProtocol],
        make_room: Callable[[], bool] = lambda: False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._factory = factory
        self._make_room = make_room
        self._log = Throttled(logger)  # clients may cause it to pause and go on again and again
        self._socket = _bind(host, port)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UNREAD_BYTES_MAX)
        # A machine may be set to BBR, which paces: on the way to a proxy beside us, that is for nothing. A
        # connection that has begun with it paces for ever: so all begin without, and others get it back.
        self._congestion = _unpace(self._socket)
        self._handshakes: set[asyncio.Task[object]] = set()
        self._paused = False
        self._resume: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._socket.fileno(), self._accept)

    @property
    def port(self) -> int:
        """The port that is listened on, also when 0 was asked for."""
        return int(self._socket.getsockname()[1])

    def close(self) -> None:
        """Accept no more; connections that were accepted go on."""
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _accept(self) -> None:
        if _files_are_short(self._socket):
            if not self._make_room():  # what it closes is closed when this turn of the loop ends
                self._pause()
            return
        for _ in range(ACCEPTS_PER_TURN):
            try:
                connection, address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_FILES:
                    raise
                self._pause()
                return
            if self._paused:
                self._paused = False
                self._log.info("listener: accepting again")
            self._set_up(connection, address[0])
            task = self._loop.create_task(self._hand_over(connection))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    def _set_up(self, connection: socket.socket, peer: str) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX)
        if self._congestion is not None and not is_loopback(peer):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, self._congestion)

    async def _hand_over(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._factory, connection)
        except OSError:
            connection.close()  # the client has closed it already

    def _pause(self) -> None:
        """Leave newcomers in the kernel's queue until files may be there again."""
        if not self._paused:
            self._paused = True
            self._log.warning("listener: cannot accept, pausing: all files that may be opened are in use")
        self._loop.remove_reader(self._socket.fileno())
        self._resume = self._loop.call_later(PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        self._resume = None
        self._loop.add_reader(self._socket.fileno(), self._accept)


def _unpace(listening: socket.socket) -> bytes | None:
    """Let connections begin without pacing; return what they would have begun with, None if they still do."""
    usual = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _NAME_BYTES_MAX).rstrip(b"\0")
    try:
        with socket.socket(listening.family) as probe:  # either may be forbidden
            for name in (LOOPBACK_CONGESTION, usual):
                probe.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, LOOPBACK_CONGESTION)
    except OSError:
        return None
    return usual


def is_loopback(peer: str) -> bool:
    """Tell whether an IP address is of this machine, in IPv6's spelling of IPv4, too."""
    address = ip_address(peer)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _files_are_short(any_file: socket.socket) -> bool:
    """Tell whether the next file would be one of those that are kept from newcomers."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return False
    try:
        lowest_free = os.dup(any_file.fileno())
    except OSError:
        return True
    os.close(lowest_free)
    return lowest_free >= limit - min(FILES_KEPT, limit // 8)


def _bind(host: str, port: int) -> socket.socket:
    """Listen on an address; an empty host means every address, IPv6 and IPv4."""
    if not host and socket.has_dualstack_ipv6():
        listening = socket.create_server(
            ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG
        )
    else:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host or "0.0.0.0", port), family=family, backlog=BACKLOG)  # noqa: S104 - what an empty host asks for
    listening.setblocking(False)
    return listening
