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
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, field
from struct import pack
from typing import Final
from urllib.parse import urlencode

import orjson
from benches.ring import accounts

from jetstream.bench import stream
from jetstream.dictionary.own import OWN

BYTES_MAX: Final = 8 << 30  # of one flood
RECONNECT_AFTER_S: Final = 0.1
_TICK_S: Final = 0.02
_READ_BYTES: Final = 1 << 18
_HEAD: Final = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
_LEAVE: Final = pack("ii", 1, 0)  # SO_LINGER: reset on close
_SLOW_EVERY_S: Final = 0.5  # between two reads of a slow client
_SLOW_BUFFER: Final = 16 << 10  # SO_RCVBUF of one
_LIST: Final = 100_000  # DIDs of an uploaded list: the most that there may be
# What is replaced in a body, by something of the same length.
SERIAL: Final = b"serial0000000000"
LIST_ID: Final = b"f" * 32


@dataclass(frozen=True)
class Flood:
    """What each of the connections sends: `opening` once, then `body` again and again.

    `body` is sent at most `times` times, once in `every_s` seconds, with another number each time where it
    has `SERIAL`. `subscribes`: a handshake comes first. `leaves`: the connection is reset when everything is
    sent, and opened again at once. `slow`: the client reads so many bytes a second. `dids` is uploaded once
    before; the ID of the list replaces `LIST_ID`.
    """

    connections: int
    opening: bytes = b""
    body: bytes = b""
    times: int = 1 << 30
    every_s: float = 0.0
    subscribes: bool = True
    query: tuple[tuple[str, str], ...] = ()
    leaves: bool = False
    slow: int = 0
    dids: tuple[str, ...] = ()


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


def _update(**payload: object) -> bytes:
    return _frame(0x81, orjson.dumps({"type": "options_update", "payload": payload}))


def _get(path: str, **query: object) -> bytes:
    return f"GET {path}?{urlencode(query, doseq=True)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def _post(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def floods() -> dict[str, Flood]:
    """Return every flood by its name."""
    part = _frame(0x00, b"a") * 10_000
    backlog = (("cursor", "1"),)
    most, one = accounts(_LIST), f"did:plc:{SERIAL.decode()}"
    many = most[:10_000]
    update = _update(wantedDids=many)
    upload = _post("/filters", "\n".join([one, *most[1:]]).encode())
    phrases = [f"{SERIAL.decode()} {letter}" for letter in "abcdefgh"]
    explain = _get("/explain", wantedDids=[one, *many[1:]]) + _get("/explain", text=phrases, lang="en")
    compressed = (("zstdDictionary", str(OWN.dictionary_id)),)
    another = _update(wantedCollections=["app.bsky.feed.*"], excludeDids=[one])
    return {
        "headers": Flood(50, _HEAD, b"X-A: " + b"a" * 1_000_000 + b"\r\n", times=120, subscribes=False),
        "silent": Flood(300, subscribes=False),
        "fragments": Flood(1, _frame(0x01, b"a"), part),
        "fragments10": Flood(10, _frame(0x01, b"a"), part),
        "pings": Flood(10, body=_frame(0x89, b"") * 10_000),
        "texts": Flood(10, body=_frame(0x81, b"{}") * 10_000),
        "updates": Flood(50, body=update, every_s=1.0),
        "updates-fast": Flood(10, body=update),
        "updates-backlog": Flood(20, body=update, query=backlog),
        "unfinished": Flood(50, _frame(0x01, b"a"), _frame(0x00, b"a" * 1_000_000), times=20),
        "junk": Flood(20, body=b"\x16\x03\x01 " + b"j" * 60_000 + b"\r\n\r\n", subscribes=False),
        "leavers": Flood(20, _frame(0x89, b""), leaves=True),
        "uploads": Flood(20, body=upload, subscribes=False),
        "uploads-slow": Flood(100, upload[:-100_000], b"d" * 100, every_s=0.5, subscribes=False),
        "explain": Flood(20, body=explain, subscribes=False),
        "compressed": Flood(200, body=another, every_s=0.1, query=compressed),
        "compressed-slow": Flood(200, body=another, every_s=1.0, query=compressed + backlog, slow=16 << 10),
        "list-options": Flood(
            50, body=_update(filter=LIST_ID.decode(), wantedDids=[one]), every_s=0.5, dids=tuple(most)
        ),
    }


@dataclass(eq=False)
class _Client:
    """One socket. `ready` is set when the handshake, if any, is over."""

    socket: socket.socket | None = None
    ready: bool = False
    waiting: memoryview = field(default_factory=lambda: memoryview(b""))
    times: int = 0
    next_at: float = 0.0  # to send the body, or to connect again
    read_at: float = 0.0  # of a slow client, to read again
    watched: int = 0  # what epoll watches for


class Flooding:
    """All connections of one flood."""

    def __init__(self, flood: Flood, port: int) -> None:
        self._flood = flood
        self._port = port
        self._epoll = select.epoll()
        self._clients = [_Client() for _ in range(flood.connections)]
        self._by_file: dict[int, _Client] = {}
        self._body = flood.body.replace(LIST_ID, _uploaded(flood.dids, port)) if flood.dids else flood.body
        self._numbered = SERIAL in flood.body
        self._serial = 0
        self.sent = self.cut = self.opened = 0

    def run(self, seconds: float) -> None:
        """Flood for `seconds`, then close all connections."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            for client in self._clients:
                if now >= client.next_at:
                    self._due(client, now)
                if self._flood.slow and client.ready and now >= client.read_at:
                    client.read_at = now + _SLOW_EVERY_S
                    self._read(client)
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
            self._repeat(client)
            client.next_at = now + self._flood.every_s
            self._write(client)

    def _repeat(self, client: _Client) -> None:
        """Have the body sent once more."""
        body = self._body
        if self._numbered:
            self._serial += 1
            body = body.replace(SERIAL, b"serial%010d" % self._serial)
        client.waiting = memoryview(body)
        client.times += 1

    def _open(self, client: _Client) -> None:
        client.socket = connection = socket.socket()
        connection.setblocking(False)
        if self._flood.slow:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BUFFER)
        connection.connect_ex(("127.0.0.1", self._port))
        flood = self._flood
        client.ready, client.times = not flood.subscribes, 0
        first = flood.opening
        if flood.subscribes:
            first = stream.request(f"127.0.0.1:{self._port}", "/subscribe", flood.query)
        client.waiting = memoryview(first)
        self._by_file[connection.fileno()] = client
        client.watched = select.EPOLLIN | select.EPOLLOUT
        self._epoll.register(connection.fileno(), client.watched)
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
            self._repeat(client)
        elif client.ready and self._flood.leaves:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LEAVE)
            self._close(client)
            return
        self._watch(client, bool(again))

    def _watch(self, client: _Client, writable: bool) -> None:
        readable = not (self._flood.slow and client.ready)
        watched = (select.EPOLLIN if readable else 0) | (select.EPOLLOUT if writable else 0)
        if client.watched != watched and client.socket is not None:
            client.watched = watched
            self._epoll.modify(client.socket.fileno(), watched)

    def _read(self, client: _Client) -> None:
        assert client.socket is not None
        try:
            data = client.socket.recv(int(self._flood.slow * _SLOW_EVERY_S) or _READ_BYTES)
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
            client.socket, client.ready, client.waiting = None, False, memoryview(b"")


def _uploaded(dids: Iterable[str], port: int) -> bytes:
    """Upload a list of DIDs; return its ID."""
    body = "\n".join(dids).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/filters", body) as response:
        return str(orjson.loads(response.read())["id"]).encode()


def main(name: str, port: int, seconds: float) -> None:
    """Run one flood, and print what it came to."""
    flooding = Flooding(floods()[name], port)
    flooding.run(seconds)
    print(json.dumps({"sent": flooding.sent, "cut": flooding.cut, "opened": flooding.opened}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
