"""Connections from the listeners to the edges: they wait here while no edge can have them."""

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
    """Gives accepted connections to edges. `clock` gives monotonic seconds."""

    def __init__(
        self, edges: int, limits: SupervisorLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        # What each edge has, by its number; replaced with its process.
        self.loads: dict[int, Load] = {number: Load() for number in range(1, edges + 1)}
        self._limits = limits
        self._clock = clock
        # The sockets to those that run.
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
        """Give a connection to an edge, now or as soon as one can have it."""
        self._waiting.append(Accepted(listener, sock, self._clock()))
        self.pump()

    def begin(self, number: int, sock: socket.socket) -> Load:
        """Begin to pass connections to a process of an edge, once its load is ready."""
        load = self.loads[number] = Load(expected_until=self.loads[number].expected_until)
        self._passings[number] = Passing(sock, load, self.pump, partial(self._left, number), self._clock)
        return load

    def ready(self, number: int) -> None:
        """Note that a process of an edge is ready."""
        if number not in self._passings:  # it was told to stop meanwhile
            return
        self.loads[number].ready, self.loads[number].expected_until = True, 0.0
        self.pump()

    def leave(self, number: int) -> None:
        """Give an edge that stops no more connections."""
        self.loads[number].ready = False

    def end(self, number: int) -> None:
        """Note that the process of an edge has ended. Others get what it has not taken."""
        self._left(number)
        self.loads[number] = Load(expected_until=self._clock() + self._limits.hold_s)

    def _left(self, number: int) -> None:
        """Note that an edge takes no more connections. Others get what it has not taken."""
        self.leave(number)
        passing = self._passings.pop(number, None)
        if passing is not None:
            self.loads[number].expected_until = self._clock() + self._limits.hold_s
            left = passing.close()
            self.passed_again += len(left)
            self._waiting.extendleft(reversed(left))
            self.pump()

    def pump(self) -> None:
        """Pass what waits, as far as edges can have it. To be called now and then, too."""
        while self._waiting:
            now, first = self._clock(), self._waiting[0]
            load = choose(self.loads.values(), len(self._waiting), now - first.at, now, self._limits)
            number = _number_of(self.loads, load)
            if number is None or not self._passings[number].give(first):
                return
            self.passed[number] += 1
            self._waiting.popleft()

    def close(self) -> None:
        """Close what waits."""
        for accepted in self._waiting:
            accepted.sock.close()
        self._waiting.clear()


def _number_of(loads: Mapping[int, Load], load: Load | None) -> int | None:
    return next((number for number, each in loads.items() if each is load), None)
