"""A relay that writes frames from memory as fast as a server can read: a process for benchmarks.

    python -m benches.relay FILE REPOS

It serves the frames of a recording, from REPOS accounts or, with 0, from their own, on a free port, to one
connection at a time. It continues with the next number, whatever cursor is requested.

It takes orders on standard input and reports on standard output, one JSON object a line. It reports `{"port":
…}` when it listens, `{"connected": true}` when a server has connected and `{"connected": false}` when that is
gone. On the order `{"rate": r, "events": n, "seconds": s}` it sends n events at r a second (0: as fast as the
socket takes them), for at most s seconds, and reports what it sent.
"""

from __future__ import annotations

import base64
import json
import os
import select
import socket
import sys
import time
from collections.abc import Iterator
from hashlib import sha1
from pathlib import Path
from typing import Final

from benches.ring import Ring

from jetstream.bench import stream
from jetstream.simulator import recording

RUN_FRAMES_MAX: Final = 64  # in one system call if the rate is not limited: 300 kB
STDIN: Final = 0
_READ_BYTES: Final = 65536
_MAGIC: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


class Relay:
    """A listening socket with at most one connection."""

    def __init__(self, ring: Ring, host: str, port: int) -> None:
        self._ring = ring
        self._listening = socket.create_server((host, port))
        self._server: socket.socket | None = None  # the connected server
        self._next = 0  # the number of the next frame
        self._orders = b""  # the incomplete last line of standard input

    def run(self) -> None:
        """Serve and follow orders until standard input ends."""
        say(port=self._listening.getsockname()[1])
        while True:
            watched: list[int | socket.socket] = [STDIN, self._server or self._listening]
            ready, _, _ = select.select(watched, [], [])
            if STDIN in ready:
                received = os.read(STDIN, _READ_BYTES)
                if not received:
                    return
                *lines, self._orders = (self._orders + received).split(b"\n")
                for line in lines:
                    self._send(**json.loads(line))
            elif self._server is None:
                self._welcome()
            else:
                self._answer(self._server)

    def _send(self, rate: float, events: int, seconds: float) -> None:
        began, cpu_began = time.perf_counter(), time.process_time()
        sent = frames = 0
        if self._server is not None:
            try:
                for data, gives, count in self._due(began, rate, events, seconds):
                    self._server.sendall(data)
                    sent += gives
                    frames += count
            except OSError:
                self._leave()
        took_s = time.perf_counter() - began
        say(events=sent, frames=frames, seconds=took_s, cpu_s=time.process_time() - cpu_began)

    def _due(
        self, began: float, rate: float, events: int, seconds: float
    ) -> Iterator[tuple[memoryview, int, int]]:
        """Yield bytes to write when they are due, with the number of events and frames that end with them.

        A frame contains the time at which it was due, so the delay includes waiting for the server to read.
        """
        offset_us = time.time_ns() / 1000 - began * 1e6
        whole = memoryview(self._ring.data)
        sent = 0
        while sent < events and (now := time.perf_counter()) < began + seconds:
            due_at = began + sent / rate if rate else now
            if due_at > now:
                time.sleep(due_at - now)
            stop = self._next + (1 if rate else min(RUN_FRAMES_MAX, len(self._ring)))
            spans, gives = self._ring.write(self._next, stop, int(due_at * 1e6 + offset_us))
            count, self._next = stop - self._next, stop
            sent += gives
            for start, end in spans[:-1]:
                yield whole[start:end], 0, 0
            yield whole[slice(*spans[-1])], gives, count

    def _welcome(self) -> None:
        server, _ = self._listening.accept()
        head = b""
        while (parts := stream.split_head(head)) is None:
            received = server.recv(_READ_BYTES)
            if not received:
                server.close()
                return
            head += received
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.sendall(upgrade_response(parts[0]))
        self._server = server
        say(connected=True)

    def _answer(self, server: socket.socket) -> None:
        """Answer a ping or a close frame; the server sends nothing else."""
        try:
            received = server.recv(_READ_BYTES)
        except OSError:
            received = b""
        frame = unmask(received)
        if frame is None or frame[0] == stream.CLOSE:
            self._leave()
        elif frame[0] == stream.PING:
            server.sendall(bytes((0x80 | stream.PONG, len(frame[1]))) + frame[1])

    def _leave(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            say(connected=False)


def say(**facts: object) -> None:
    """Report facts as a line of JSON."""
    print(json.dumps(facts), flush=True)


def upgrade_response(head: bytes) -> bytes:
    """Return the response to a request to upgrade. Raises ValueError if it has no key."""
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == "sec-websocket-key":
            accept = base64.b64encode(sha1((value.strip() + _MAGIC).encode()).digest()).decode()
            return (
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Accept: {accept}\r\n\r\n"
            ).encode()
    raise ValueError("no Sec-WebSocket-Key in the request")


def unmask(data: bytes) -> tuple[int, bytes] | None:
    """Return opcode and payload of a client's short frame at the start of `data`; None if incomplete."""
    if len(data) < 6 or len(data) < 6 + (data[1] & 127):
        return None
    mask, payload = data[2:6], data[6 : 6 + (data[1] & 127)]
    return data[0] & 15, bytes(byte ^ mask[i & 3] for i, byte in enumerate(payload))


def main(frames: Path, repos: int) -> None:
    """Load the frames, and serve them until standard input ends."""
    Relay(Ring(recording.read(frames), repos), "127.0.0.1", 0).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
