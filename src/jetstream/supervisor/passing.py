"""Connections on their way to one edge: the sockets themselves are passed (`SCM_RIGHTS`).

    supervisor ── 1 byte: which listener, and a file descriptor ──▶ edge
               ◀── 1 byte for each that it has taken ────────────

The edge confirms a connection before it reads from it. Until then the supervisor keeps the socket: a
connection that an edge has not taken when it ends is whole, and another edge gets it.

Both ends are a socket pair of streams, so a byte and its file descriptor arrive in order. The byte is
the number of the listener. `taking` is the other end.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from jetstream.supervisor.spread import Load

# What the edge answers for each connection. Its value means nothing, only how many come.
TAKEN: Final = b"\x01"
# Confirmations that are read at once: more than `untaken_max` of them cannot wait.
_READ_BYTES: Final = 4096


class Accepted(NamedTuple):
    """A connection that was accepted by a listener."""

    # The number of the listener: 0 is `--listen`, 1 is `--metrics-listen`.
    listener: int
    sock: socket.socket
    # When it was accepted, in monotonic seconds: what waits for longer than `hold_s` is held back no
    # more.
    at: float


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
        # A send that would block is refused by `give`, so the event loop never waits for an edge.
        sock.setblocking(False)
        self._sock = sock
        # Counted here: `passed`, `untaken` and `untaken_since`. The rest of it is not touched.
        self._load = load
        # Both are called in the event loop. `closed` is expected to call `close`.
        self._taken = taken
        self._closed = closed
        self._clock = clock
        # Connections that are not confirmed, and when each was passed in monotonic seconds; the oldest first.
        self._untaken: deque[tuple[Accepted, float]] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._confirmed)

    def give(self, accepted: Accepted) -> bool:
        """Pass a connection to the edge. Returns whether that was possible.

        The socket stays open here until the edge confirms it: both processes have a descriptor of the
        same connection until then. After False, the connection is still the caller's.
        """
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

        They are the caller's again, the oldest first.
        """
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        left = [accepted for accepted, _ in self._untaken]
        self._untaken.clear()
        self._note()
        return left

    def _confirmed(self) -> None:
        """Close what the edge has taken: the connection is its own now.

        The end of the stream, or an error of the socket, is the end of the edge: then only `closed` is
        called.
        """
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
        """Update the load: how many are not confirmed, and since when the oldest of them waits."""
        self._load.untaken = len(self._untaken)
        self._load.untaken_since = self._untaken[0][1] if self._untaken else 0.0
