"""What peers send after their last answer: read and dropped, so that a reset does not overtake the answer."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

BYTES_MAX: Final = 4 << 20  # of one connection; then nothing more of it is read
BYTES_AT_ONCE: Final = 16 << 10  # of one connection, without a rest: a close frame, the rest of a request
# Between two reads, of whatever connections: fifty peers that went on sending held the loop for 25 ms.
REST_S: Final = 0.002


class Discards:
    """The connections of a server of which the rest is dropped: they are read one after another."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Transport] = deque()
        self._timer: asyncio.TimerHandle | None = None  # set while one waits

    def drop(self, transport: asyncio.Transport, dropped: int) -> None:
        """Note that `dropped` bytes of a connection were read in all, and let it wait for its next turn."""
        if transport.is_closing() or dropped <= BYTES_AT_ONCE:
            return
        transport.pause_reading()
        if dropped < BYTES_MAX:
            self._waiting.append(transport)
            if self._timer is None:
                self._wait()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(REST_S, self._next)

    def _next(self) -> None:
        self._timer = None
        transport = self._waiting.popleft()
        if not transport.is_closing():
            transport.resume_reading()
        if self._waiting:
            self._wait()
