"""All the sockets: thousands of subscribers on one thread, for a fraction of what they cost the server.

Two pollers. `_prompt` holds those that are connecting and those that are checked: each is read as soon as it
has something, since delays are taken from them. `_bulk` holds the counted ones: they are swept now and then,
a few at a time between two looks at `_prompt`, and the kernel discards what they have (MSG_TRUNC), so that
their bytes are never copied. Slow readers are in neither, and read what they may.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from jetstream.bench import stream
from jetstream.bench.check import Truth
from jetstream.bench.mix import EVERYTHING, Wanted, choose_checked
from jetstream.bench.subscription import (
    Readings,
    Sight,
    Subscription,
    judge_begin,
    judge_checked,
    judge_counted,
    sight,
)
from jetstream.clock import unix_us
from jetstream.errors import JetstreamError

# Sweeps follow each other so that a socket has so many bytes: far from the 64 kB of its first window, since a
# full one would hold the server up.
SWEEP_BYTES: Final = 24_000
SWEEP_EVERY_MAX_S: Final = 0.05
CUTS_PER_LOOK: Final = 32
SWEEP_SLICE: Final = 32  # counted connections read between two looks at the others: half a millisecond
SLOW_EVERY_S: Final = 0.1
SLOW_BUFFER_BYTES: Final = 16_384  # so that a slow reader's kernel does not read for it
PONG_EVERY_S: Final = 25.0  # a counted connection never sees a ping: it tells on its own that it lives
HANDSHAKES_MAX: Final = 1_000  # under way at once
SOURCES_EACH: Final = 20_000  # connections from one address of the loopback, which has 28,000 ports
CHECKED_FILTERS_MAX: Final = 64  # of one kind, beyond what was asked for, so that each filter has its share
LAST_LOOK_S: Final = 2.0
_BUFFER_BYTES: Final = 1 << 20
_DISCARD: Final = socket.MSG_TRUNC if sys.platform == "linux" else 0
_BIND_ADDRESS_NO_PORT: Final = 24  # Linux, IP_BIND_ADDRESS_NO_PORT: choose the port on connecting
_TICK_S: Final = 0.005


class RefusedError(JetstreamError):
    """The server under test does not let anyone in."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to subscribe."""

    host: str
    port: int
    path: str = "/subscribe"

    def __str__(self) -> str:
        return f"ws://{self.host}:{self.port}{self.path}"


@dataclass(slots=True, eq=False)
class Connection:
    """A socket and its subscription. Times are monotonic seconds, 0 for what has not happened."""

    subscription: Subscription
    slow: bool = False
    socket: socket.socket | None = None
    head: bytes | None = b""  # of the answer; None once it is whole
    began: float = 0
    accepted: float = 0
    goal: int = 0  # bytes to have got to be served, of one that came back
    served: float = 0
    end: str = ""
    seen: Sight | None = None
    lag_us: int = 0


@dataclass(slots=True)
class Totals:
    """What all connections got so far, and how they fared."""

    open: int = 0
    size: int = 0
    ends: Counter[str] = field(default_factory=Counter)


class Load:
    """Subscribers of one server, and the reference connection, which gets everything and tells the truth."""

    def __init__(self, target: Target, readings: Readings, *, slow_share: float = 0.1) -> None:
        """`slow_share` is the part of the stream that slow readers read.

        The garbage collector rests until `close`: its pauses, 0.2 s with ten thousand connections, would be
        taken for the server's.
        """
        gc.disable()
        self.target = target
        self.readings = readings
        self.truth = Truth()
        self.totals = Totals()
        self.connections: list[Connection] = []
        self._prompt = select.epoll()
        self._bulk = select.epoll()
        self._by_file: dict[int, Connection] = {}
        self._slow: list[Connection] = []
        self._slow_share = slow_share
        self._slow_from = 0
        self._handshakes = 0
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._swept = self._next_sweep = self._next_slow = self._next_pong = 0.0
        self.on_tick: Callable[[], None] = lambda: None
        reference = Subscription("reference", EVERYTHING, readings, truth=self.truth)
        self.reference = Connection(reference)

    # Connecting

    def begin(self) -> None:
        """Connect the reference, before anyone else. Raises RefusedError when it is not let in."""
        self._open(self.reference)
        self.run_until(lambda: bool(self.reference.accepted or self.reference.end), 10.0)
        if not self.reference.accepted:
            raise RefusedError(f"{self.target}: {self.reference.end or 'no answer'}")

    def connect(self, connections: list[Connection], rate: float, timeout_s: float) -> float:
        """Connect all, `rate` a second (0: at once); return how long it took until the last was in."""
        began = time.monotonic()
        self.connections += connections
        waiting = iter(connections)
        opened = 0
        while time.monotonic() < began + timeout_s:
            due = len(connections) if not rate else int((time.monotonic() - began) * rate) + 1
            while opened < min(due, len(connections)) and self._handshakes < HANDSHAKES_MAX:
                self._open(next(waiting))
                opened += 1
            if opened == len(connections) and not self._handshakes:
                break
            self.turn()
        return max((one.accepted for one in connections), default=began) - began

    def cut(self, connections: Iterable[Connection]) -> None:
        """Close connections as a lost network would, and forget them; those that stay are read meanwhile."""
        gone = set(map(id, connections))
        leaving = [one for one in self.connections if id(one) in gone]
        self.connections = [one for one in self.connections if id(one) not in gone]
        for start in range(0, len(leaving), CUTS_PER_LOOK):
            for one in leaving[start : start + CUTS_PER_LOOK]:
                self._close(one, "cut by the bench")
            self._look(0)

    def _open(self, one: Connection) -> None:
        one.socket = connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        connection.setblocking(False)
        if one.slow:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
        place = len(self._by_file) // SOURCES_EACH
        if place and self.target.host.startswith("127."):
            connection.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            connection.bind((f"127.0.0.{1 + place}", 0))
        one.began = time.monotonic()
        self._handshakes += 1
        self._by_file[connection.fileno()] = one
        self._prompt.register(connection.fileno(), select.EPOLLOUT)
        connection.connect_ex((self.target.host, self.target.port))

    def _ask(self, one: Connection) -> None:
        assert one.socket is not None
        error = one.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._close(one, f"cannot connect: {os.strerror(error)}")
            return
        wanted = one.subscription
        query = wanted.wanted.query()
        if wanted.cursor is not None:
            query.append(("cursor", str(wanted.cursor)))
        one.socket.send(stream.request(f"{self.target.host}:{self.target.port}", self.target.path, query))
        self._prompt.modify(one.socket.fileno(), select.EPOLLIN)

    def _greet(self, one: Connection, data: bytes) -> bytes:
        """Read the server's answer; return what follows it."""
        assert one.head is not None
        one.head += data
        parts = stream.split_head(one.head)
        if parts is None:
            return b""
        if (status := stream.status(parts[0])) != 101:
            self._close(one, f"refused: {status}")
            return b""
        one.head = None
        one.accepted = time.monotonic()
        one.subscription.since_us = unix_us()
        self._handshakes -= 1
        self.totals.open += 1
        return parts[1]

    # Reading

    def run(self, seconds: float) -> None:
        """Read for so long."""
        self.run_until(lambda: False, seconds)

    def run_until(self, done: Callable[[], bool], seconds: float) -> None:
        """Read until something is done, but for no longer than so many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not done():
            self.turn()

    def behind_s(self) -> float:
        """Return how old the newest event of the reference connection is, in seconds."""
        return time.time() - self.truth.everything.last_us / 1e6

    def lag_ms(self) -> float:
        """Return how far behind the last of the counted ones was when last judged, but for slow ones."""
        return max((one.lag_us for one in self.connections if not one.slow), default=0) / 1000

    def turn(self) -> None:
        """Wait a few milliseconds at most, and read what there is to read."""
        now = time.monotonic()
        self._look(min(max(self._next_sweep - now, 0.0), _TICK_S))
        now = time.monotonic()
        if now >= self._next_sweep:
            self._sweep(now)
        if now >= self._next_slow:
            self._read_slowly()
            self._next_slow = now + SLOW_EVERY_S
        if now >= self._next_pong:
            self._send_pongs()
            self._next_pong = now + PONG_EVERY_S
        self.on_tick()

    def _look(self, timeout: float) -> None:
        for file, happened in self._prompt.poll(timeout):
            one = self._by_file.get(file)
            if one is None:
                continue
            if happened & select.EPOLLOUT and not one.accepted:
                self._ask(one)
            else:
                self._read(one)

    def _read(self, one: Connection) -> None:
        size = self._receive(one, len(self._buffer), 0)
        if not size:
            return
        data = bytes(self._view[:size])
        if one.head is not None:
            data = self._greet(one, data)
            if not data:
                return
        now_us = unix_us()
        before = one.subscription.size
        answer = one.subscription.take(data, now_us)
        self._got(one, one.subscription.size - before)
        if answer and one.socket is not None:
            self._send(one, answer)
        if one.subscription.close:
            self._close(one, one.subscription.close)
        elif one.subscription.first_us and not one.subscription.checked:
            self._move_to_bulk(one)

    def _move_to_bulk(self, one: Connection) -> None:
        assert one.socket is not None
        self._prompt.unregister(one.socket.fileno())
        if one.slow:
            self._slow.append(one)
        else:
            self._bulk.register(one.socket.fileno(), select.EPOLLIN)

    def _sweep(self, now: float) -> None:
        """Read what all counted connections have, each once, and say when to do so again."""
        most = 1
        for _ in range(0, len(self._by_file), SWEEP_SLICE):
            ready = self._bulk.poll(0, SWEEP_SLICE)
            for file, _ in ready:
                one = self._by_file[file]
                size = self._receive(one, len(self._buffer), _DISCARD)
                self._count(one, size)
                most = max(most, size)
            if len(ready) < SWEEP_SLICE:
                break
            self._look(0)
        passed = now - self._swept
        self._swept = now
        self._next_sweep = now + min(passed * SWEEP_BYTES / most, SWEEP_EVERY_MAX_S)

    def _read_slowly(self) -> None:
        """Let each slow reader read its share of what has come since the last time."""
        total = self.reference.subscription.size
        allowed = int((total - self._slow_from) * self._slow_share)
        self._slow_from = total
        if allowed:
            for one in self._slow:
                if one.socket is not None:
                    self._count(one, self._receive(one, min(allowed, len(self._buffer)), _DISCARD))

    def _count(self, one: Connection, size: int) -> None:
        one.subscription.size += size
        self._got(one, size)

    def _got(self, one: Connection, size: int) -> None:
        self.totals.size += size
        if one.goal and one.subscription.size >= one.goal:
            one.served = time.monotonic()
            one.goal = 0

    def _receive(self, one: Connection, most: int, flags: int) -> int:
        """Receive into the buffer; return how much, 0 for nothing or the end."""
        assert one.socket is not None
        try:
            size = one.socket.recv_into(self._buffer, most, flags)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self._close(one, f"lost: {error.strerror}")
            return 0
        if not size:
            self._close(one, "closed" if one.accepted else "closed before the answer")
        return size

    def _send(self, one: Connection, data: bytes) -> None:
        assert one.socket is not None
        try:
            one.socket.send(data)
        except BlockingIOError:
            return  # the server reads nothing: then it misses no pong either
        except OSError as error:
            self._close(one, f"lost: {error.strerror}")

    def _send_pongs(self) -> None:
        pong = stream.control(stream.PONG, masked=True)
        for one in self.connections:
            if one.socket is not None and one.accepted and not one.subscription.checked:
                self._send(one, pong)

    def _close(self, one: Connection, why: str) -> None:
        if one.socket is None:
            return
        file = one.socket.fileno()
        if one.accepted:
            self.totals.open -= 1
        else:
            self._handshakes -= 1
        del self._by_file[file]
        one.socket.close()  # which takes it out of the pollers
        one.socket = None
        one.end = why
        self.totals.ends[why] += 1
        if one in self._slow:
            self._slow.remove(one)

    # Ending

    def judge(self, pings_max: int) -> None:
        """Look once more at every connection, and hold all they got against the truth."""
        present = [one for one in self.connections if one.socket is not None and one.accepted]
        counted = [one for one in present if one.subscription.first_us and not one.subscription.checked]
        end = time.monotonic() + LAST_LOOK_S
        while counted and time.monotonic() < end:
            counted = [one for one in counted if not self._look_at_last(one)]
            self._look(0.01)
        newest_us = max(
            (one.seen.time_us if one.seen else one.subscription.last_us for one in present), default=0
        )
        # From here on only the truth is read, so that nobody is ahead of it.
        end = time.monotonic() + LAST_LOOK_S
        while self.truth.everything.last_us < newest_us and self.reference.socket and time.monotonic() < end:
            self._read(self.reference)
            time.sleep(_TICK_S)
        for one in present:
            judge_begin(one.subscription, self.truth)
            if one.subscription.checked:
                judge_checked(one.subscription, self.truth)
            elif one.subscription.first_us:
                judge_counted(one.subscription, one.seen, self.truth, pings_max)

    def _look_at_last(self, one: Connection) -> bool:
        """Read a counted connection's next bytes; tell whether it is known now where it stands."""
        if one.socket is None:
            return True
        size = self._receive(one, len(self._buffer), 0)
        if not size:
            return False
        one.seen = sight(one.subscription, bytes(self._view[:size]))
        self._count(one, size)
        if one.seen is not None:
            one.lag_us = unix_us() - one.seen.time_us
        return one.seen is not None

    def close(self) -> None:
        """Close every socket."""
        gc.enable()
        for one in [self.reference, *self.connections]:
            self._close(one, "done")
        self._prompt.close()
        self._bulk.close()


def subscribers(
    wanted: Sequence[Wanted], readings: Readings, rng: Random, *, check: int, slow: int = 0, storm: int = 0
) -> list[Connection]:
    """Return a connection for each filter, not yet opened, the last `storm` of them to be cut off later.

    `check` is how many of each kind of filter are checked, of those that stay and of those that are cut;
    `slow` of those that stay read slowly, and are never checked.
    """
    steady = len(wanted) - storm
    slow_ones = set(rng.sample(range(steady), slow))
    checked = choose_checked(wanted[:steady], check, CHECKED_FILTERS_MAX, rng)
    checked |= {steady + place for place in choose_checked(wanted[steady:], check, CHECKED_FILTERS_MAX, rng)}
    checked -= slow_ones
    return [
        Connection(
            Subscription(f"subscriber {index}", one, readings, checked=index in checked),
            slow=index in slow_ones,
        )
        for index, one in enumerate(wanted)
    ]
