"""Connections on their way to one edge: the sockets themselves are passed (`SCM_RIGHTS`).

    supervisor ── 1 byte: which listener, and a file descriptor ──▶ edge
               ◀── 1 byte for each that it has taken ────────────

The edge confirms a connection before it reads from it. Until then the supervisor keeps the socket: a
connection that an edge has not taken when it ends is whole, and another edge gets it.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from jetstream.supervisor.spread import Load

TAKEN: Final = b"\x01"
_READ_BYTES: Final = 4096


class Accepted(NamedTuple):
    """A connection that was accepted by a listener."""

    listener: int  # 0 is the main one
    sock: socket.socket
    at: float  # when, in monotonic seconds


class Passing:
    """The supervisor's end of the socket to one edge. `load` is kept up to date.

    `taken` is called when the edge has confirmed connections, `closed` when it takes no more, by its end or
    otherwise. `clock` gives monotonic seconds.
    """

    def __init__(
        self,
        sock: socket.socket,
        load: Load,
        taken: Callable[[], None],
        closed: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._load = load
        self._taken = taken
        self._closed = closed
        self._clock = clock
        # Those that are not confirmed, and when each was passed; the oldest first.
        self._untaken: deque[tuple[Accepted, float]] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._confirmed)

    def give(self, accepted: Accepted) -> bool:
        """Pass a connection to the edge. Returns whether that was possible."""
        try:
            socket.send_fds(self._sock, [bytes([accepted.listener])], [accepted.sock.fileno()])
        except OSError:  # the socket is full, or the edge has ended
            return False
        self._untaken.append((accepted, self._clock()))
        self._load.passed += 1
        self._note()
        return True

    def close(self) -> list[Accepted]:
        """Pass no more. Return the connections that the edge has not taken.

        Only once the other end is closed: until then, the edge could take them.
        """
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        left = [accepted for accepted, _ in self._untaken]
        self._untaken.clear()
        self._note()
        return left

    def _confirmed(self) -> None:
        """Close what the edge has taken: the connection is its own now."""
        try:
            confirmed = len(self._sock.recv(_READ_BYTES))
        except BlockingIOError:
            return
        except OSError:
            confirmed = 0
        if not confirmed:
            self._closed()
            return
        for _ in range(min(confirmed, len(self._untaken))):
            self._untaken.popleft()[0].sock.close()
        self._note()
        self._taken()

    def _note(self) -> None:
        self._load.untaken = len(self._untaken)
        self._load.untaken_since = self._untaken[0][1] if self._untaken else 0.0
