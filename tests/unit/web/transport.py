"""A transport without a socket, for the sinks of subscribers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable

from jetstream.steps import Steps
from jetstream.web.outbound import Outbound


class Owner:
    """The owner of a socket, which takes no messages."""

    def __init__(self, cursor: int = 7) -> None:
        self.cursor = cursor

    def on_message(self, _message: bytes, /) -> Steps[None]:
        yield from ()

    def on_end(self) -> None:
        pass

    def resume_at(self) -> int:
        return self.cursor


class Transport:
    """A transport whose client reads when it is told to; it calls its protocol as uvloop does."""

    def __init__(self, connection: socket.socket | None = None) -> None:
        self.connection = connection
        self.protocol: Outbound
        self.waiting: list[bytes] = []
        self.given: list[bytes] = []  # each piece of each write
        self.sent = b""
        self.room = 0  # bytes that the kernel takes at once
        self.high = self.low = 0
        self.paused = False
        self.eof = False
        self.closed = False

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, name: str) -> socket.socket | None:
        assert name == "socket"
        return self.connection

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.waiting))

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        self.high, self.low = high, low
        self._check()

    def write(self, data: bytes) -> None:
        self.writelines([data])

    def writelines(self, data: Iterable[bytes]) -> None:
        pieces = list(data)
        self.given += pieces
        self.waiting.append(b"".join(pieces))
        self._send()
        self._check()

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None:
        self.closed = True

    def write_eof(self) -> None:
        self.eof = True

    def abort(self) -> None: ...

    async def read(self, count: int) -> None:
        """Let the client read, and the server have some turns."""
        self._read(count)
        for _ in range(5):
            await asyncio.sleep(0)

    def _read(self, count: int) -> None:
        self.room += count
        self._send()
        if self.paused and self.get_write_buffer_size() <= self.low:
            self.paused = False
            self.protocol.resume_writing()

    def _send(self) -> None:
        while self.waiting and self.room:
            taken = self.waiting[0][: self.room]
            self.sent += taken
            self.room -= len(taken)
            self.waiting[0] = self.waiting[0][len(taken) :]
            if not self.waiting[0]:
                del self.waiting[0]

    def _check(self) -> None:
        if not self.paused and self.get_write_buffer_size() > self.high:
            self.paused = True
            self.protocol.pause_writing()
