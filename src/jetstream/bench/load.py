"""All sockets of the load: thousands of subscribers on one thread, at a fraction of the server's cost.

There are two epoll objects. `_prompt` has the connections that are connecting or checked: each is read as
soon as it has data, because delays are measured on them. `_bulk` has the counted ones: they are read in
sweeps, a few at a time between two polls of `_prompt`, and the kernel discards their data (MSG_TRUNC), so
their bytes are never copied. Slow readers are in neither; they are read at their own rate.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from jetstream.bench import stream
from jetstream.bench.check import Truth
from jetstream.bench.mix import EVERYTHING, Wanted, choose_checked
from jetstream.bench.subscription import (
    Position,
    Readings,
    Subscription,
    check_all,
    check_bytes,
    check_start,
    find_position,
)
from jetstream.clock import unix_us
from jetstream.errors import JetstreamError

# Sweeps are timed so that a socket has about this much: far below the 64 kB of its first window, since a full
# window would slow the server down.
SWEEP_BYTES: Final = 24_000
SWEEP_EVERY_MAX_S: Final = 0.05
SWEEP_SLICE: Final = 32  # counted connections read between two polls of the others: half a millisecond
SLOW_EVERY_S: Final = 0.1
SLOW_BUFFER_BYTES: Final = 16_384  # so that the kernel of a slow reader does not read ahead
PONG_EVERY_S: Final = 25.0  # a counted connection does not see pings, so it sends pongs unasked
HANDSHAKES_MAX: Final = 1_000  # at the same time
SOURCES_EACH: Final = 20_000  # connections from one loopback address, which has 28,000 ports
CHECKED_FILTERS_MAX: Final = 64  # of one kind, so that each different filter is checked
LAST_READ_S: Final = 2.0  # how long the last event of counted connections is waited for
_BUFFER_BYTES: Final = 1 << 20
_DISCARD: Final = socket.MSG_TRUNC if sys.platform == "linux" else 0
_BIND_ADDRESS_NO_PORT: Final = 24  # IP_BIND_ADDRESS_NO_PORT of Linux: choose the port when connecting
_TICK_S: Final = 0.005


class RefusedError(JetstreamError):
    """The server under test does not accept a subscription."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to subscribe."""

    host: str
    port: int
    path: str = "/subscribe"
    query: tuple[tuple[str, str], ...] = ()  # of every subscription, beside its filter

    def __str__(self) -> str:
        return f"ws://{self.host}:{self.port}{self.path}"


@dataclass(slots=True, eq=False)
class Connection:
    """A socket and its subscription. Times are monotonic seconds, 0 if it has not happened."""

    subscription: Subscription
    slow: bool = False  # reads only a share of the stream
    socket: socket.socket | None = None  # None before it is opened and after its end
    head: bytes | None = b""  # of the response, so far; None once it is complete
    accepted: float = 0  # when the response came
    end: str = ""  # why the connection ended
    position: Position | None = None  # of a counted connection, when last checked
    lag_us: int = 0  # how far behind it was then


@dataclass(slots=True)
class Totals:
    """Totals of all connections so far."""

    open: int = 0
    size: int = 0  # bytes received
    ends: Counter[str] = field(default_factory=Counter)  # connections by why they ended


class Load:
    """The subscribers of one server, and the reference connection, which receives everything."""

    def __init__(self, target: Target, readings: Readings, *, slow_share: float = 0.1) -> None:
        """`slow_share` is the share of the stream that slow readers read.

        The garbage collector is off until `close`: its pauses, 0.2 s with ten thousand connections, would be
        measured as delays of the server.
        """
        gc.disable()
        self.target = target
        self.readings = readings
        self.truth = Truth()  # written by the reference connection
        self.totals = Totals()
        self.connections: list[Connection] = []  # all but the reference, ended ones too
        self.on_tick: Callable[[], None] = lambda: None  # called after every `turn`
        self.interrupted = False  # set by `interrupt`: from then on, nothing is waited for
        self.reference = Connection(Subscription("reference", EVERYTHING, readings, truth=self.truth))
        self._prompt = select.epoll()  # connecting and checked connections
        self._bulk = select.epoll()  # counted connections
        self._slow: list[Connection] = []  # slow readers that have their first event
        self._by_file: dict[int, Connection] = {}  # open connections by file descriptor
        self._slow_share = slow_share
        self._slow_from = 0  # bytes of the reference up to which slow readers have had their share
        self._handshakes = 0  # connections that are connecting
        self._buffer = bytearray(_BUFFER_BYTES)  # for every read
        self._view = memoryview(self._buffer)
        self._swept = self._next_sweep = self._next_slow = self._next_pong = 0.0  # monotonic seconds

    # Connecting

    def begin(self) -> None:
        """Connect the reference, before all others. Raises RefusedError if the server does not accept it."""
        self._open(self.reference)
        self.run_until(lambda: bool(self.reference.accepted or self.reference.end), 10.0)
        if not self.reference.accepted:
            raise RefusedError(f"{self.target}: {self.reference.end or 'no response'}")

    def connect(self, connections: list[Connection], rate: float, timeout_s: float) -> float:
        """Connect all, `rate` a second (0: at once). Return the seconds until the last was accepted."""
        began = time.monotonic()
        self.connections += connections
        waiting = iter(connections)
        opened = 0
        while time.monotonic() < began + timeout_s and not self.interrupted:
            due = len(connections) if not rate else int((time.monotonic() - began) * rate) + 1
            while opened < min(due, len(connections)) and self._handshakes < HANDSHAKES_MAX:
                self._open(next(waiting))
                opened += 1
            if opened == len(connections) and not self._handshakes:
                break
            self.turn()
        return max((one.accepted for one in connections), default=began) - began

    def _open(self, one: Connection) -> None:
        one.socket = connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        connection.setblocking(False)
        if one.slow:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
        source = len(self._by_file) // SOURCES_EACH
        if source and self.target.host.startswith("127."):
            connection.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            connection.bind((f"127.0.0.{1 + source}", 0))
        self._handshakes += 1
        self._by_file[connection.fileno()] = one
        self._prompt.register(connection.fileno(), select.EPOLLOUT)
        connection.connect_ex((self.target.host, self.target.port))

    def _send_request(self, one: Connection) -> None:
        assert one.socket is not None
        error = one.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._close(one, f"cannot connect: {os.strerror(error)}")
            return
        wanted = one.subscription
        query = [*self.target.query, *wanted.wanted.query()]
        if wanted.cursor is not None:
            query.append(("cursor", str(wanted.cursor)))
        host = f"{self.target.host}:{self.target.port}"
        one.socket.send(self.readings.transport.request(host, self.target.path, query))
        self._prompt.modify(one.socket.fileno(), select.EPOLLIN)

    def _read_response(self, one: Connection, data: bytes) -> bytes:
        """Read the head of the server's response. Return what follows it."""
        assert one.head is not None
        one.head += data
        parts = stream.split_head(one.head)
        if parts is None:
            return b""
        if (status := stream.status(parts[0])) != self.readings.transport.accepted:
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
        """Read for a number of seconds."""
        self.run_until(lambda: False, seconds)

    def run_until(self, done: Callable[[], bool], timeout_s: float) -> None:
        """Read until `done()` is true, the timeout has passed, or `interrupt` was called."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and not done() and not self.interrupted:
            self.turn()

    def interrupt(self) -> None:
        """End every wait, from now on."""
        self.interrupted = True

    def lag_ms(self) -> float:
        """Return how far behind the slowest counted connection was when last checked; not of slow readers."""
        return max((one.lag_us for one in self.connections if not one.slow), default=0) / 1000

    def turn(self) -> None:
        """Read what there is to read; wait for it for at most a few milliseconds."""
        now = time.monotonic()
        self._poll(min(max(self._next_sweep - now, 0.0), _TICK_S))
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

    def _poll(self, timeout: float) -> None:
        """Read every connecting and checked connection that has data."""
        for file, happened in self._prompt.poll(timeout):
            one = self._by_file.get(file)
            if one is None:
                continue
            if happened & select.EPOLLOUT and not one.accepted:
                self._send_request(one)
            else:
                self._read(one)

    def _read(self, one: Connection) -> None:
        size = self._receive(one, len(self._buffer), 0)
        if not size:
            return
        data = bytes(self._view[:size])
        if one.head is not None:
            data = self._read_response(one, data)
            if not data:
                return
        now_us = unix_us()
        before = one.subscription.size
        answer = one.subscription.receive(data, now_us)
        self._received(one, one.subscription.size - before)
        if answer and one.socket is not None:
            self._send(one, answer)
        if one.subscription.close:
            self._close(one, one.subscription.close)
        elif one.subscription.first_us and not one.subscription.checked:
            self._move_to_bulk(one)

    def _move_to_bulk(self, one: Connection) -> None:
        """Only count the bytes of a connection from now on."""
        assert one.socket is not None
        self._prompt.unregister(one.socket.fileno())
        if one.slow:
            self._slow.append(one)
        else:
            self._bulk.register(one.socket.fileno(), select.EPOLLIN)

    def _sweep(self, now: float) -> None:
        """Read every counted connection that has data once, and decide when the next sweep is due."""
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
            self._poll(0)
        passed = now - self._swept
        self._swept = now
        self._next_sweep = now + min(passed * SWEEP_BYTES / most, SWEEP_EVERY_MAX_S)

    def _read_slowly(self) -> None:
        """Let each slow reader read its share of what the reference has received since the last time."""
        total = self.reference.subscription.size
        allowed = int((total - self._slow_from) * self._slow_share)
        self._slow_from = total
        if allowed:
            for one in self._slow:
                if one.socket is not None:
                    self._count(one, self._receive(one, min(allowed, len(self._buffer)), _DISCARD))

    def _count(self, one: Connection, size: int) -> None:
        one.subscription.size += size
        self._received(one, size)

    def _received(self, one: Connection, size: int) -> None:  # noqa: ARG002 - a subclass may look at it
        """Count bytes that a connection has received."""
        self.totals.size += size

    def _receive(self, one: Connection, most: int, flags: int) -> int:
        """Receive into the buffer. Return the number of bytes, 0 for none and at the end."""
        assert one.socket is not None
        try:
            size = one.socket.recv_into(self._buffer, most, flags)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self._close(one, f"lost: {error.strerror}")
            return 0
        if not size:
            self._close(one, "closed" if one.accepted else "closed before the response")
        return size

    def _send(self, one: Connection, data: bytes) -> None:
        assert one.socket is not None
        try:
            one.socket.send(data)
        except BlockingIOError:
            return  # the server does not read, so it does not miss a pong either
        except OSError as error:
            self._close(one, f"lost: {error.strerror}")

    def _send_pongs(self) -> None:
        pong = self.readings.transport.pong
        for one in self.connections if pong else ():
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
        one.socket.close()  # epoll forgets it
        one.socket = None
        one.end = why
        self.totals.ends[why] += 1
        if one in self._slow:
            self._slow.remove(one)

    # Ending

    def check(self, pings_max: int) -> None:
        """Compare what every connection has received with the truth; add findings to `readings`."""
        present = [one for one in self.connections if one.socket is not None and one.accepted]
        counted = [one for one in present if one.subscription.first_us and not one.subscription.checked]
        end = time.monotonic() + LAST_READ_S
        while counted and time.monotonic() < end:
            counted = [one for one in counted if not self._find_position(one)]
            self._poll(0.01)
        newest_us = max(
            (one.position.time_us if one.position else one.subscription.last_us for one in present), default=0
        )
        # From here on only the reference is read, until it has received what the others have.
        end = time.monotonic() + LAST_READ_S
        while self.truth.everything.last_us < newest_us and self.reference.socket and time.monotonic() < end:
            self._read(self.reference)
            time.sleep(_TICK_S)
        for one in present:
            check_start(one.subscription, self.truth)
            if one.subscription.checked:
                check_all(one.subscription, self.truth)
            elif one.subscription.first_us:
                check_bytes(one.subscription, one.position, self.truth, pings_max)

    def _find_position(self, one: Connection) -> bool:
        """Read the next bytes of a counted connection. Return whether its position is known now."""
        if one.socket is None:
            return True
        size = self._receive(one, len(self._buffer), 0)
        if not size:
            return False
        one.position = find_position(one.subscription, bytes(self._view[:size]))
        self._count(one, size)
        if one.position is not None:
            one.lag_us = unix_us() - one.position.time_us
        return one.position is not None

    def close(self) -> None:
        """Close every socket."""
        gc.enable()
        for one in [self.reference, *self.connections]:
            self._close(one, "done")
        self._prompt.close()
        self._bulk.close()


def subscribers(
    wanted: Sequence[Wanted],
    readings: Readings,
    rng: Random,
    *,
    check: int,
    slow: int = 0,
    name: str = "subscriber",
) -> list[Connection]:
    """Return a connection for each filter, not opened yet.

    At least `check` of each kind of filter are checked. `slow` of them read slowly and are never checked.
    """
    slow_ones = set(rng.sample(range(len(wanted)), slow))
    checked = choose_checked(wanted, check, CHECKED_FILTERS_MAX, rng) - slow_ones
    return [
        Connection(
            Subscription(f"{name} {index}", one, readings, checked=index in checked),
            slow=index in slow_ones,
        )
        for index, one in enumerate(wanted)
    ]
