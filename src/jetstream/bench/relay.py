"""An upstream of our own: a process that writes frames from memory to whoever subscribes to it.

    python -m jetstream.bench.relay [--frames FILE] --repos N

It is spoken to over its standard input and output, a line of JSON each. It says `{"port": …}` once it
listens, `{"connected": true}` when a server has come and `{"connected": false}` when that has left. Told
`{"rate": r, "events": n, "seconds": s}`, it sends n events at r a second (0: as fast as the socket takes
them), for s seconds at most, and says what it sent. It serves one connection at a time, and goes on with the
next number whatever cursor is asked for.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

from cyclopts import App, Parameter

from jetstream.bench import stream
from jetstream.bench.ring import Ring, simulated
from jetstream.simulator import recording

RUN_FRAMES_MAX: Final = 64  # written with one system call where nothing limits the rate: 300 kB
STDIN: Final = 0
_READ_BYTES: Final = 65536

app = App(name="relay", help="An upstream that writes frames from memory.")


class Relay:
    """A listening socket, at most one server on it, and the number of the next frame."""

    def __init__(self, ring: Ring, host: str, port: int) -> None:
        self._ring = ring
        self._listening = socket.create_server((host, port))
        self._server: socket.socket | None = None
        self._next = 0
        self._orders = b""

    def run(self) -> None:
        """Serve, and do what standard input says, until it ends."""
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
        """Yield what is to be written, when it is due: bytes, and how many events and frames end with them.

        A frame says when it was due, not when the socket took it: waiting for the server counts.
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
        server.sendall(stream.response(parts[0]))
        self._server = server
        say(connected=True)

    def _answer(self, server: socket.socket) -> None:
        """Answer a ping or a close; the server says nothing else."""
        try:
            received = server.recv(_READ_BYTES)
        except OSError:
            received = b""
        frame = stream.unmask(received)
        if frame is None or frame[0] == stream.CLOSE:
            self._leave()
        elif frame[0] == stream.PING:
            server.sendall(stream.control(stream.PONG, frame[1], masked=False))

    def _leave(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            say(connected=False)


def say(**facts: object) -> None:
    """Write a line of JSON to whoever started this process."""
    print(json.dumps(facts), flush=True)  # noqa: T201 - the protocol of this process


@app.default
def main(
    *,
    frames: Annotated[Path | None, Parameter(help="Recording to send; else frames are simulated.")] = None,
    repos: Annotated[int, Parameter(help="Accounts that the frames are said to come from.")] = 50_000,
    host: Annotated[str, Parameter(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port to listen on; 0: any.")] = 0,
) -> None:
    """Load the frames, and serve them until standard input ends."""
    Relay(Ring(recording.read(frames) if frames else simulated(), repos), host, port).run()


if __name__ == "__main__":
    sys.exit(app())
