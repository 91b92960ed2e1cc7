"""The edge's end of the socket on which it gets its connections.

    `Passing` of the supervisor ── 1 byte and a file descriptor ──▶ `Taking` ── hand over ──▶ `Server`
                                ◀── 1 byte: taken ─────────────────

It does for an edge what `Listener` does for a server of one process. An edge has no listening socket.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import structlog

from jetstream.limits import WebLimits
from jetstream.logging_setup import Throttled
from jetstream.supervisor.passing import TAKEN
from jetstream.web.listener import files_are_short

_FLAGS: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # programs that are started here do not get them

# Makes an accepted socket, of a peer's address, a connection. It raises nothing.
HandOver = Callable[[socket.socket, str], Coroutine[Any, Any, None]]


class Taking:
    """Takes connections from the supervisor until it is closed.

    `hand_overs` are those of the listeners, the main one first. As in a `Listener`, connections may not take
    the last file descriptors: `make_room` closes some that can be spared, and returns whether there were any.
    Meanwhile others get the new ones.
    """

    def __init__(
        self,
        sock: socket.socket,
        hand_overs: Sequence[HandOver],
        make_room: Callable[[], bool],
        limits: WebLimits = WebLimits(),
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        # By the number of the listener, which comes with each connection.
        self._hand_overs = hand_overs
        # Called while files are short; else connections that are idle stay open.
        self._make_room = make_room
        # `files_reserved`, `accepts_per_turn` and `accept_pause_s`.
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._throttled = Throttled(structlog.get_logger(__name__))
        # Connections that have no protocol yet: the event loop keeps no reference to tasks.
        self._tasks: set[asyncio.Task[None]] = set()
        # The end of a pause, while files are short; None: connections are taken.
        self._resume: asyncio.TimerHandle | None = None
        # How many were taken so far; the supervisor compares it with what it has passed. It only rises.
        self.taken = 0
        self._watch()

    @property
    def beginning(self) -> int:
        """How many were taken that have no protocol yet."""
        return len(self._tasks)

    def close(self) -> None:
        """Take no more. Those that were taken go on.

        Those that the supervisor has passed meanwhile and that were not confirmed are passed to another
        edge.
        """
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _watch(self) -> None:
        """Take connections whenever some wait, from now on: at first, and after each pause."""
        self._resume = None
        self._loop.add_reader(self._sock.fileno(), self._take)

    def _take(self) -> None:
        """Take some of the connections that wait. The event loop calls again while there are more.

        At most `accepts_per_turn` in one call, so that subscribers get their events between two of
        them.
        """
        if files_are_short(self._sock, self._limits.files_reserved):
            if not self._make_room():
                self._pause()
            return
        for _ in range(self._limits.accepts_per_turn):
            try:
                listener, fds, _, _ = socket.recv_fds(self._sock, 1, 1, _FLAGS)
            except BlockingIOError:
                return
            except OSError:
                listener, fds = b"", []
            if not listener:  # the supervisor has ended: what was taken goes on until the channel ends, too
                self._loop.remove_reader(self._sock.fileno())
                return
            self._confirm()
            for fd in fds:
                self._begin(listener[0], socket.socket(fileno=fd))

    def _confirm(self) -> None:
        """Tell the supervisor that a connection is ours, before anything is read from it.

        After this the supervisor closes its own descriptor, and nobody else can have the connection.
        """
        self.taken += 1
        try:
            self._sock.send(TAKEN)
        except OSError:  # it has ended, and so do we
            return

    def _begin(self, listener: int, sock: socket.socket) -> None:
        """Hand a connection over to the server of its listener, in a task: TLS takes a while.

        Without a peer there is no client any more, and the socket is closed. `listener` is a valid
        number.
        """
        try:
            peer = sock.getpeername()[0]
        except OSError:  # the client has gone
            sock.close()
            return
        task = self._loop.create_task(self._hand_overs[listener](sock, peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _pause(self) -> None:
        """Take nothing for `accept_pause_s` seconds: files are short, and none can be spared.

        Connections stay in the socket. The supervisor sees that the edge takes none, and gives new ones
        to others.
        """
        self._throttled.warning("listener: cannot accept, pausing: all files that may be opened are in use")
        self._loop.remove_reader(self._sock.fileno())
        self._resume = self._loop.call_later(self._limits.accept_pause_s, self._watch)
