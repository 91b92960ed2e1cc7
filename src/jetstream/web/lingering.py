"""Lingering close: after the last answer, read and discard what the client still sends.

A kernel that has unread data when a socket is closed sends a reset (RST), and a reset makes the client's
kernel throw away what it has received. The client would never see the answer or close frame that says why it
was cut off. So after the last byte is written the connection stays open for a while, and its input is
discarded (RFC 9112, section 9.6).

Discarding must not cost more than serving does. The first bytes of a connection are read at once. After
that, reading is paused and the connections take turns, one read in each `lingering_pause_s`. A connection
that sends more than `lingering_bytes_max` is not read again; its deadline ends it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from jetstream.limits import WebLimits


class LingeringClose:
    """The connections of one server whose input is discarded.

    `call_later` is the event loop's, unless a test passes another.
    """

    def __init__(
        self,
        limits: WebLimits = WebLimits(),
        call_later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        self._limits = limits
        self._call_later = call_later or asyncio.get_running_loop().call_later
        # Connections whose reading is paused, in the order in which they are read again.
        self._waiting: deque[asyncio.Transport] = deque()
        # Whether `_resume_next` is going to be called; so while one is waiting.
        self._scheduled = False

    def discard(self, transport: asyncio.Transport, discarded: int) -> None:
        """Pause a connection until it is its turn; `discarded` is how many bytes of it were read in all."""
        if transport.is_closing() or discarded <= self._limits.lingering_bytes_at_once:
            return
        transport.pause_reading()
        if discarded < self._limits.lingering_bytes_max:
            self._waiting.append(transport)
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._call_later(self._limits.lingering_pause_s, self._resume_next)

    def _resume_next(self) -> None:
        self._scheduled = False
        transport = self._waiting.popleft()
        if not transport.is_closing():
            transport.resume_reading()
        if self._waiting:
            self._schedule()
