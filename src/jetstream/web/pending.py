"""Clients that have not finished: their deadlines, the memory they take, and what they send after the end.

`Pending` has those that have started something: a request that is not complete, a message that is not
complete, or a response that the client has not read. `LingeringClose` has those that go on sending after the
last answer.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from jetstream.limits import WebLimits

Owner = TypeVar("Owner")


class Pending(Generic[Owner]):
    """The owners of what is pending, the oldest first, and the bytes that are held for each.

    A client that sends one byte now and then must not hold a connection or memory for ever, so the deadline
    counts from the start and is not moved by progress. All entries have the same timeout, and a `dict` keeps
    them in the order in which they were started. So the first entry is the oldest, and it is also the first
    to expire: no heap is needed, and each operation is O(1), except over the memory limit, where entries that
    hold no bytes are skipped. One timer checks all deadlines.

    `timeout_s` is how long each may take; `expire` is called with each owner that takes longer, and removes
    or restarts it. `drop` is called with the oldest owner that holds any bytes, whenever all together hold
    more than `pending_bytes_max`. `clock` gives monotonic seconds.
    """

    def __init__(
        self,
        timeout_s: float,
        expire: Callable[[Owner], None],
        drop: Callable[[Owner], None],
        limits: WebLimits = WebLimits(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # The arguments that the docstring describes. They do not change.
        self._timeout_s = timeout_s
        self._expire = expire
        self._drop = drop
        self._limits = limits
        self._clock = clock
        # By owner: when it started, and how many bytes are held for it. In the order of the start times.
        self._entries: dict[Owner, tuple[float, int]] = {}
        # Sum of the bytes of all entries.
        self._total = 0
        # Whether the event loop is going to call `_check`; so while anything is pending.
        self._scheduled = False

    def start(self, owner: Owner, size: int = 0) -> None:
        """Start the timeout of an owner; restart it for one that is pending already.

        `size` bytes are held for it. The memory limit is not looked at here.
        """
        self.remove(owner)
        self._hold(owner, size)

    def update(self, owner: Owner, size: int) -> None:
        """Set how many bytes are held for an owner. The timeout starts with the first call only.

        `drop` may be called with this owner or another one.
        """
        self._hold(owner, size)
        if self._total > self._limits.pending_bytes_max:
            self._drop(next(each for each, (_, held) in self._entries.items() if held))

    def remove(self, owner: Owner) -> None:
        """Stop the timeout of an owner, if it is pending: it has finished or has gone.

        Later calls do nothing.
        """
        _, size = self._entries.pop(owner, (0.0, 0))
        self._total -= size

    def oldest(self) -> Owner | None:
        """Return the owner that has been pending the longest."""
        return next(iter(self._entries), None)

    def _hold(self, owner: Owner, size: int) -> None:
        """Set the bytes of an owner. One that is new is pending from now on."""
        since, before = self._entries.get(owner) or (self._clock(), 0)
        self._entries[owner] = (since, size)
        self._total += size - before
        self._schedule()

    def _schedule(self) -> None:
        """Check all deadlines in a while, unless nothing is pending or that is going to happen anyway."""
        if self._entries and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_later(self._limits.deadline_check_s, self._check)

    def _check(self) -> None:
        """Expire what is late, and check again in a while if anything is pending.

        `expire` must remove or restart its owner, or this would not end. A deadline is found up to
        `deadline_check_s` late.
        """
        self._scheduled = False
        now = self._clock()
        while (owner := self.oldest()) is not None and now - self._entries[owner][0] >= self._timeout_s:
            self._expire(owner)
        self._schedule()


def end_output(transport: asyncio.Transport) -> None:
    """End a connection behind what is written: the client may still send, and gets no reset for it.

    TLS has no end of one direction only. So the connection is closed, and what the client still sends is
    discarded by the transport until it answers, for `close_timeout_s`.

    A write buffer that is not empty is sent first, in both cases.
    """
    if transport.can_write_eof():
        transport.write_eof()
    else:
        transport.close()


class LingeringClose:
    """The connections of one server whose input is discarded.

    A kernel that has unread data when a socket is closed sends a reset (RST), and a reset makes the client's
    kernel throw away what it has received. The client would never see the answer or close frame that says why
    it was cut off. So after the last byte is written the connection stays open for a while, and its input is
    discarded (RFC 9112, section 9.6).

    Discarding must not cost more than serving does. The first bytes of a connection are read at once. After
    that, reading is paused and the connections take turns, one read in each `lingering_pause_s`. A connection
    that sends more than `lingering_bytes_max` is not read again; its deadline ends it.

    `call_later` is the event loop's, unless a test passes another.
    """

    def __init__(
        self, limits: WebLimits, call_later: Callable[[float, Callable[[], None]], object] | None = None
    ) -> None:
        # Bytes and pauses, for each connection and for all.
        self._limits = limits
        self._call_later = call_later or asyncio.get_running_loop().call_later
        # Connections whose reading is paused, in the order in which they are read again. While there are any,
        # `_resume_next` is going to be called.
        self._waiting: deque[asyncio.Transport] = deque()

    def discard(self, transport: asyncio.Transport, discarded: int) -> None:
        """Pause a connection until it is its turn; `discarded` is how many bytes of it were read in all.

        Called with each piece that was read and thrown away.
        """
        if transport.is_closing() or discarded <= self._limits.lingering_bytes_at_once:
            return
        transport.pause_reading()
        if discarded < self._limits.lingering_bytes_max:
            self._waiting.append(transport)
            if len(self._waiting) == 1:
                self._call_later(self._limits.lingering_pause_s, self._resume_next)

    def _resume_next(self) -> None:
        """Read the connection that has waited the longest once more.

        One that has been closed meanwhile takes a turn, too, which costs nothing.
        """
        transport = self._waiting.popleft()
        if self._waiting:
            self._call_later(self._limits.lingering_pause_s, self._resume_next)
        if not transport.is_closing():
            transport.resume_reading()
