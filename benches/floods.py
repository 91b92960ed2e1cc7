"""What hostile clients may send: a process that opens sockets and writes prepared bytes to them.

    python -m benches.floods NAME PORT SECONDS

It connects to the loopback only, and is bounded in time and in bytes. A connection that the server ends is
opened again after a while. At the end it prints how much it sent, and how often it was cut off, as a line of
JSON.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from dataclasses import dataclass, field
from struct import pack
from typing import Final

import orjson
from benches.ring import accounts

from jetstream.bench import stream

BYTES_MAX: Final = 8 << 30  # of one flood
RECONNECT_AFTER_S: Final = 0.1
_TICK_S: Final = 0.02
_READ_BYTES: Final = 1 << 18
_HEAD: Final = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
_LEAVE: Final = pack("ii", 1, 0)  # SO_LINGER: reset on close


@dataclass(frozen=True)
class Flood:
    """What each of the connections sends: `opening` once, then `body` again and again.

    `body` is sent at most `times` times, once in `every_s` seconds. `subscribes`: a handshake comes first.
    `leaves`: the connection is reset when everything is sent, and opened again at once.
    """

    connections: int
    opening: bytes = b""
    body: bytes = b""
    times: int = 1 << 30
    every_s: float = 0.0
    subscribes: bool = True
    query: tuple[tuple[str, str], ...] = ()
    leaves: bool = False


def _frame(head: int, payload: bytes) -> bytes:
    """Write a client's frame, masked with zeros."""
    size = len(payload)
    if size < 126:
        length = bytes((0x80 | size,))
    elif size < 1 << 16:
        length = bytes((0x80 | 126,)) + size.to_bytes(2, "big")
    else:
        length = bytes((0x80 | 127,)) + size.to_bytes(8, "big")
    return bytes((head,)) + length + bytes(4) + payload


def _update() -> bytes:
    payload = {"wantedDids": accounts(10_000)}
    return _frame(0x81, orjson.dumps({"type": "options_update", "payload": payload}))


def floods() -> dict[str, Flood]:
    """Return every flood by its name."""
    part = _frame(0x00, b"a") * 10_000
    backlog = (("cursor", "1"),)
    return {
        "headers": Flood(50, _HEAD, b"X-A: " + b"a" * 1_000_000 + b"\r\n", times=120, subscribes=False),
        "silent": Flood(300, subscribes=False),
        "fragments": Flood(1, _frame(0x01, b"a"), part),
        "fragments10": Flood(10, _frame(0x01, b"a"), part),
        "pings": Flood(10, body=_frame(0x89, b"") * 10_000),
        "texts": Flood(10, body=_frame(0x81, b"{}") * 10_000),
        "updates": Flood(50, body=_update(), every_s=1.0),
        "updates-fast": Flood(10, body=_update()),
        "updates-backlog": Flood(20, body=_update(), query=backlog),
        "unfinished": Flood(50, _frame(0x01, b"a"), _frame(0x00, b"a" * 1_000_000), times=20),
        "junk": Flood(20, body=b"\x16\x03\x01 " + b"j" * 60_000 + b"\r\n\r\n", subscribes=False),
        "leavers": Flood(20, _frame(0x89, b""), leaves=True),
    }


@dataclass(eq=False)
class _Client:
    """One socket. `ready` is set when the handshake, if any, is over."""

    socket: socket.socket | None = None
    ready: bool = False
    waiting: memoryview = field(default_factory=lambda: memoryview(b""))
    times: int = 0
    next_at: float = 0.0  # to send the body, or to connect again
    writable: bool = False  # whether epoll watches for it


class Flooding:
    """All connections of one flood."""

    def __init__(self, flood: Flood, port: int) -> None:
        self._flood = flood
        self._port = port
        self._epoll = select.epoll()
        self._clients = [_Client() for _ in range(flood.connections)]
        self._by_file: dict[int, _Client] = {}
        self._body = memoryview(flood.body)
        self.sent = self.cut = self.opened = 0

    def run(self, seconds: float) -> None:
        """Flood for `seconds`, then close all connections."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            for client in self._clients:
                if now >= client.next_at:
                    self._due(client, now)
            for file, happened in self._epoll.poll(_TICK_S):
                client = self._by_file[file]
                if happened & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                    self._read(client)
                if happened & select.EPOLLOUT and client.socket is not None:
                    self._write(client)
        for client in self._clients:
            self._close(client)

    def _due(self, client: _Client, now: float) -> None:
        if client.socket is None:
            self._open(client)
        elif client.ready and not client.waiting and client.times < self._flood.times and self._body:
            client.waiting = self._body
            client.times += 1
            client.next_at = now + self._flood.every_s
            self._write(client)

    def _open(self, client: _Client) -> None:
        client.socket = connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex(("127.0.0.1", self._port))
        flood = self._flood
        client.ready, client.times = not flood.subscribes, 0
        first = flood.opening
        if flood.subscribes:
            first = stream.request(f"127.0.0.1:{self._port}", "/subscribe", flood.query)
        client.waiting = memoryview(first)
        self._by_file[connection.fileno()] = client
        client.writable = True
        self._epoll.register(connection.fileno(), select.EPOLLIN | select.EPOLLOUT)
        self.opened += 1

    def _write(self, client: _Client) -> None:
        assert client.socket is not None
        try:
            while client.waiting:
                count = client.socket.send(client.waiting)
                client.waiting = client.waiting[count:]
                self.sent += count
        except (BlockingIOError, InterruptedError):
            self._watch(client, True)
            return
        except OSError:
            self._ended(client)
            return
        if self.sent > BYTES_MAX:
            return
        again = self._body and client.ready and not self._flood.every_s and client.times < self._flood.times
        if again:
            client.waiting = self._body
            client.times += 1
        elif client.ready and self._flood.leaves:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LEAVE)
            self._close(client)
            return
        self._watch(client, bool(again))

    def _watch(self, client: _Client, writable: bool) -> None:
        if client.writable != writable and client.socket is not None:
            client.writable = writable
            self._epoll.modify(client.socket.fileno(), select.EPOLLIN | (select.EPOLLOUT if writable else 0))

    def _read(self, client: _Client) -> None:
        assert client.socket is not None
        try:
            data = client.socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._ended(client)
        elif not client.ready and b"\r\n\r\n" in data:
            client.ready = True
            client.waiting = memoryview(self._flood.opening)
            self._write(client)

    def _ended(self, client: _Client) -> None:
        self.cut += 1
        self._close(client)
        client.next_at = time.monotonic() + RECONNECT_AFTER_S

    def _close(self, client: _Client) -> None:
        if client.socket is not None:
            del self._by_file[client.socket.fileno()]
            client.socket.close()
            client.socket, client.waiting = None, memoryview(b"")


def main(name: str, port: int, seconds: float) -> None:
    """Run one flood, and print what it came to."""
    flooding = Flooding(floods()[name], port)
    flooding.run(seconds)
    print(json.dumps({"sent": flooding.sent, "cut": flooding.cut, "opened": flooding.opened}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
