"""Connections from the listeners to the edges: they wait here while no edge can have them.

    Listener ──accept──▶ waiting ──pump──▶ Passing of an edge ──▶ edge
                            ▲                   │
                            └── its edge ended before it took them

`spread` chooses the edge, and `passing` carries the socket. This module has the order: the oldest
connection goes first, and none overtakes it. Everything runs in the event loop of the supervisor. What
waits is bounded by `SupervisorLimits.waiting_max`: from then on the listeners accept nothing, and
clients wait in the queue of the kernel.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial

from jetstream.limits import SupervisorLimits
from jetstream.supervisor.passing import Accepted, Passing
from jetstream.supervisor.spread import Load, choose


class Acceptor:
    """Gives accepted connections to edges. `clock` gives monotonic seconds.

    An edge goes through `begin`, `ready` and `end` with each of its processes, and through `leave` if
    it is told to stop. Numbers of edges begin at 1.
    """

    def __init__(
        self, edges: int, limits: SupervisorLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        # What each edge has, by its number; replaced with its process.
        self.loads: dict[int, Load] = {number: Load() for number in range(1, edges + 1)}
        # Of these: `waiting_max`, `hold_s`, `stalled_s` and `untaken_max`.
        self._limits = limits
        # The clock of `Accepted.at`, and of all times in a `Load`.
        self._clock = clock
        # The sockets to the edges that run, by number: from `begin` until the edge ends or closes its end.
        # A load that is ready has one.
        self._passings: dict[int, Passing] = {}
        # Connections that no edge has got yet, the oldest first.
        self._waiting: deque[Accepted] = deque()
        # How many connections were passed, by edge; also to its earlier processes.
        self.passed: dict[int, int] = dict.fromkeys(self.loads, 0)
        # How many had been passed to an edge that ended before it took them, and were passed again.
        self.passed_again = 0

    @property
    def full(self) -> bool:
        """Whether so many wait that the listeners must not accept more."""
        return len(self._waiting) >= self._limits.waiting_max

    @property
    def waiting(self) -> int:
        """How many connections wait."""
        return len(self._waiting)

    def accept(self, listener: int, sock: socket.socket) -> None:
        """Give a connection to an edge, now or as soon as one can have it.

        `listener` is the number of the listener, which the edge is told: 0 is the main one. The socket
        belongs to the acceptor from now on, until an edge has confirmed that it has taken it.
        """
        self._waiting.append(Accepted(listener, sock, self._clock()))
        self.pump()

    def begin(self, number: int, sock: socket.socket) -> Load:
        """Begin to pass connections to a process of an edge, once its load is ready.

        Returns the load, which starts empty. It keeps until when the edge was expected, so that
        connections wait for the new process as they did for its start. `sock` is the supervisor's end
        of the socket for connections, and is closed with the edge.
        """
        load = self.loads[number] = Load(expected_until=self.loads[number].expected_until)
        self._passings[number] = Passing(sock, load, self.pump, partial(self._left, number), self._clock)
        return load

    def ready(self, number: int) -> None:
        """Record that a process of an edge is ready.

        From now on it is expected no more: it gets what waited for it at once.
        """
        if number not in self._passings:  # it was told to stop meanwhile
            return
        self.loads[number].ready, self.loads[number].expected_until = True, 0.0
        self.pump()

    def leave(self, number: int) -> None:
        """Give an edge that stops no more connections.

        What it was given and has not confirmed stays its own: it may take that as long as it runs.
        """
        self.loads[number].ready = False

    def end(self, number: int) -> None:
        """Record that the process of an edge has ended. Others get what it has not taken.

        Its load begins at 0 again. For `hold_s` connections wait for its successor, if the other edges
        have their share.
        """
        self._left(number)
        self.loads[number] = Load(expected_until=self._clock() + self._limits.hold_s)

    def _left(self, number: int) -> None:
        """Take back what an edge has not confirmed, and give it to others.

        Called when the edge closes its end of the socket or its process ends, whichever is noticed
        first. The second call finds nothing. What is taken back is older than all that waits, so it
        goes to the front, in its order.
        """
        self.leave(number)
        passing = self._passings.pop(number, None)
        if passing is not None:
            self.loads[number].expected_until = self._clock() + self._limits.hold_s
            left = passing.close()
            self.passed_again += len(left)
            self._waiting.extendleft(reversed(left))
            self.pump()

    def pump(self) -> None:
        """Pass what waits, as far as edges can have it.

        It stops at the first connection that must wait. It is called when a connection comes, when an
        edge confirms, begins or ends, and every `look_s` seconds: a wait may also end because time has
        passed.
        """
        while self._waiting:
            now, first = self._clock(), self._waiting[0]
            load = choose(self.loads.values(), len(self._waiting), now - first.at, now, self._limits)
            number = _number_of(self.loads, load)
            # The socket to the edge may be full: then the connection waits until the edge has read from
            # it.
            if number is None or not self._passings[number].give(first):
                return
            self.passed[number] += 1
            self._waiting.popleft()

    def close(self) -> None:
        """Close what waits.

        For the end of the server: clients that wait see their connection closed, without a response.
        """
        for accepted in self._waiting:
            accepted.sock.close()
        self._waiting.clear()


def _number_of(loads: Mapping[int, Load], load: Load | None) -> int | None:
    """Return the number of a load, by identity: two loads may be equal. None: it is none of them."""
    return next((number for number, each in loads.items() if each is load), None)
