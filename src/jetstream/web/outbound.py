"""The way out of a subscriber's socket: what its buffer holds, and how the connection ends.

Delivery writes whole frames with the transport's own `write`, and this module says when the buffer is full
(`full`), when it has drained (`writable`), and ends the connection (`close`). What a client may send differs:
see `sink` for WebSockets and `stream_sink` for HTTP.

uvloop keeps 0.8 kB for each write that it cannot send at once, however few bytes it has. So what is written
for a slow client is gathered here, and given to the transport as one write whenever that has sent all it had.
Small pieces are joined, since it keeps 0.1 kB for each. Large ones are not: slow clients share their bytes.

    write ──▶ transport ──▶ kernel ──▶ client           nearly all clients
    write ──▶ gathered ──▶ transport, once it is empty  a slow client: from `gather` until all was sent

How a connection ends: `close` writes what tells the client why behind everything that waits, and nothing
may follow. Then the client ends the connection, or it is aborted after `close_timeout_s` seconds.
`connection_lost` is called in every case, once, and tells the owner.
"""

from __future__ import annotations

import asyncio
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from jetstream.delivery.subscriber import Close
from jetstream.limits import WebLimits
from jetstream.scheduling import Worker
from jetstream.steps import Steps
from jetstream.web.pending import LingeringClose, end_output


class Sockets:
    """What the sockets of all subscribers share. A write buffer is full above `buffer_bytes`."""

    def __init__(self, buffer_bytes: int, limits: WebLimits = WebLimits()) -> None:
        # The limit of each write buffer, in bytes: `--subscriber-buffer`.
        self.buffer_bytes = buffer_bytes
        # Of WebSockets, streams and their ends.
        self.limits = limits
        # The sockets whose input is discarded: after a failure, or as no input is expected.
        self.lingering = LingeringClose(limits)
        # Gives the transports of slow clients what was gathered for them. All may be ready in the same turn.
        self.passing = Worker()


class Owner(Protocol):
    """What a socket belongs to: a `Client`."""

    def on_message(self, message: bytes, /) -> Steps[None]:
        """Handle a message of the client, in steps. Called for sockets whose clients can send any.

        It must not raise: it closes the socket itself where a message is bad.
        """

    def on_end(self) -> None:
        """Clean up: the connection has gone.

        Called once. The socket drops its reference to the owner afterwards.
        """

    def resume_at(self) -> int:
        """Return the cursor that the client is told when the server ends the connection."""


class Outbound(asyncio.Protocol, ABC):
    """The socket of one subscriber, as delivery's `Sink`.

    Its methods are called on the event loop's thread, by delivery, by its owner and by the loop itself.
    """

    def __init__(self, transport: asyncio.Transport, sockets: Sockets, peer: str) -> None:
        # The connection. It was made before, and is taken over with its reading paused.
        self._transport = transport
        # Limits and workers that all sockets share.
        self._sockets = sockets
        # In monotonic seconds, for operators and the log.
        self.opened_at = time.monotonic()
        # Address of the client, for the log.
        self.peer = peer
        # Why the server ends the connection. Set once, when the client is told.
        self._close: Close | None = None
        # Whether the connection has gone.
        self._lost = False
        # Bytes that were read and discarded, in all: `LingeringClose` limits them.
        self._discarded = 0
        # Aborts the connection when the client does not end it, or does not read.
        self._close_timeout: asyncio.TimerHandle | None = None
        # What `writable` waits for. One task at a time may call it.
        self._drained: asyncio.Future[None] | None = None
        # Whether the buffer went above its limit and has not drained since.
        self.full = False
        # With TLS, a limit of 0 would be reached by an empty buffer.
        self._high_min = 0 if transport.can_write_eof() else 1
        # The limit, in bytes; by `lower_limit`.
        self._limit = 0
        # Whether writes are gathered: from a `gather` until the transport has sent everything.
        self._gathering = False
        # What was gathered and not given to the transport, and how many bytes that are.
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        # Whether nothing follows what was gathered; by `_write_eof`.
        self._ends_gathered = False
        # How many bytes were written, events and all else, before the last `gather`.
        self._seen = 0
        # Bytes of events, and of everything else: counted by who writes them.
        self.written = 0
        self.controls = 0
        # The transport's own method: no call through Python on the hot path. A no-op after `close`.
        self.write: Callable[[bytes], None] = transport.write
        # Set by the owner before `start`, and removed at the end.
        self.owner: Owner
        self.lower_limit(False)

    def start(self, data: bytes) -> None:
        """Start to read: first `data`, which came with the request. Reading is paused until then.

        Called once, by the owner, after the connection was handed over.
        """
        self._transport.resume_reading()
        if data:
            self.data_received(data)

    @property
    def buffered(self) -> int:
        """How many bytes wait in the write buffer.

        What the kernel holds does not count.
        """
        return 0 if self._lost else self._transport.get_write_buffer_size() + self._gathered_bytes

    @property
    def closing(self) -> bool:
        """Whether nothing more is sent: the connection is about to end, or has gone."""
        return self._close is not None or self._lost

    @property
    def ended(self) -> Close:
        """Why the connection ended, for the metrics.

        Asked after the connection has gone. It is 1006 (`lost`) where the connection ended without a close
        frame or the like, and 1000 (`client`) where the client has ended it.
        """
        if self._close is not None:
            return self._close
        return Close(1000, "client", "") if self._left else Close(1006, "lost", "")

    @property
    @abstractmethod
    def _left(self) -> bool:
        """Whether the client has ended the connection in good order."""

    async def writable(self) -> None:
        """Return once the write buffer has drained. Raises ConnectionError when the connection has gone.

        Returns at once where the buffer is not full. A buffer is full above its limit, and has drained at
        a quarter of it: see `_set_limits`.
        """
        if self._lost:
            raise ConnectionResetError
        if self.full:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    async def drained(self) -> None:
        """Return once nothing is buffered; raises as `writable` does. To be called before `close`.

        The kernel may then take the end as well, whatever it has not sent.
        """
        self._limit = 0
        self._set_limits()
        self.full = self.buffered > 0
        await self.writable()
        # The limit of the kernel's buffer is lifted at the end: what it has taken it sends by itself, also
        # after the connection is closed.
        self._limit_unsent(0)

    def pause_writing(self) -> None:
        """Note that the write buffer is full. Called by the event loop.

        While writes are gathered, it only means that the transport has something to send.
        """
        if not self._gathering:
            self.full = True

    def resume_writing(self) -> None:
        """Note that the write buffer has drained. Called by the event loop.

        A slow client that has read everything gets what was gathered for it meanwhile, in a turn of
        `Sockets.passing`.
        """
        if self._gathering:
            self._sockets.passing.put(self._pass_on_later())
            return
        self.full = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    def lower_limit(self, lowered: bool) -> None:
        """Lower the limit of the write buffer to an eighth, or set it back. It has drained at a quarter.

        Delivery lowers it while a subscriber catches up. At the tip a group shares the bytes that wait in the
        buffers; what is read of the log is often for one subscriber alone.
        """
        self._limit = self._sockets.buffer_bytes // (8 if lowered else 1)
        self._set_limits()

    def _set_limits(self) -> None:
        """Have the transport call `pause_writing` over the limit; when gathering, as long as it has any."""
        if not self._transport.is_closing():
            high = max(0 if self._gathering else self._limit, self._high_min)
            self._transport.set_write_buffer_limits(high=high, low=high // 4)

    def gather(self) -> None:
        """Gather what is written from now on, if something waits since the last call. Called now and then.

        Delivery calls it where something waits, each time it checks all subscribers. A client is slow if
        something that was written before the last call has not left the buffer.
        """
        sent = self.written + self.controls - self.buffered
        slow, self._seen = self._seen > sent, self.written + self.controls
        if slow and not self._gathering and not self.closing and self.buffered:
            self._start_gathering()

    def _start_gathering(self) -> None:
        """Have `write` gather from now on, and the kernel hold less for this connection."""
        self._gathering = True
        self.write = self._gather
        self._set_limits()
        self._limit_unsent(self._sockets.limits.unsent_slow_bytes_max)

    def _stop_gathering(self) -> None:
        """Write to the transport again, with its usual limits. Called when all was sent."""
        self._gathering = False
        if not self.closing:
            self.write = self._transport.write
        self._set_limits()
        self._limit_unsent(self._sockets.limits.unsent_bytes_max)

    def _limit_unsent(self, bytes_max: int) -> None:
        """Limit what the kernel buffers of this connection beyond what is in flight; 0 is no limit.

        The socket option `TCP_NOTSENT_LOWAT`, in bytes.
        """
        connection = self._transport.get_extra_info("socket")
        with suppress(OSError):  # the connection has gone
            if connection is not None:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, bytes_max)

    def _gather(self, data: bytes) -> None:
        """Take the place of `write` for a slow client. The buffer is full above the same limit."""
        self._gathered.append(data)
        self._gathered_bytes += len(data)
        if self.buffered > self._limit:
            self.full = True

    def _pass_on_later(self) -> Steps[None]:
        """Give the transport what was gathered. Stop to gather if it could send all of that.

        It is one step. If the transport cannot send all of it at once, the next `resume_writing` comes
        here again.
        """
        yield from ()
        self._pass_on()
        if not self.buffered:
            self._stop_gathering()
            self.resume_writing()

    def _pass_on(self) -> None:
        """Give the transport what was gathered, and the end of the connection if that was written.

        Small pieces become one; large ones stay as they are, since other clients have the same objects.
        """
        pieces, size = self._gathered, self._gathered_bytes
        self._drop_gathered()
        if size < len(pieces) * self._sockets.limits.joined_bytes:
            pieces = [b"".join(pieces)]
        with suppress(RuntimeError):
            if pieces and not self._transport.is_closing():
                self._transport.writelines(pieces)
        if self._ends_gathered:
            self._write_eof()

    def _drop_gathered(self) -> None:
        """Forget what was gathered: it was passed on, or nobody reads it."""
        self._gathered = []
        self._gathered_bytes = 0

    def close(self, close: Close) -> None:
        """Tell the client why behind what is buffered, and abort when it does not end the connection in time.

        Later calls do nothing. What was gathered stays gathered until the client reads: many may be closed at
        once, and most of those that are slow read nothing any more.
        """
        if self.closing:
            return
        self._close = close
        self.write = discard
        self._end(close)
        self._abort_later()

    @abstractmethod
    def _end(self, close: Close) -> None:
        """Write what tells the client why the connection ends: a close frame, or the end of a body.

        Called once, by `close`, when nothing more may be written by others.
        """

    def _write_control(self, data: bytes) -> None:
        """Write what is no event behind what was gathered, unless the connection has gone.

        The bytes are counted in `controls`, so that the progress of the socket can be computed.
        """
        with suppress(RuntimeError):  # uvloop raises it for a transport that was closed meanwhile
            if not self._transport.is_closing():
                (self._gather if self._gathered else self._transport.write)(data)
                self.controls += len(data)

    def _write_eof(self) -> None:
        """Close this side of the connection behind what is buffered.

        What was gathered goes first: then the end follows in `_pass_on`. With TLS the connection is
        closed: see `end_output`.
        """
        self._ends_gathered = bool(self._gathered)
        if not self._gathered and not self._transport.is_closing():
            end_output(self._transport)

    def _abort_later(self) -> None:
        """Abort the connection after `close_timeout_s`, unless it has ended by then.

        Later calls do not move the time.
        """
        if self._close_timeout is None:
            call_later = asyncio.get_running_loop().call_later
            self._close_timeout = call_later(self._sockets.limits.close_timeout_s, self._transport.abort)

    def _discard_input(self, data: bytes) -> None:
        """Discard what the client sends although nothing more is read, within limits.

        Each call may pause the reading of this connection until its turn comes.
        """
        self._discarded += len(data)
        self._sockets.lingering.discard(self._transport, self._discarded)

    def eof_received(self) -> None:
        """Let the transport close, but do not wait for ever until the client has read what is buffered.

        The event loop calls it when the client has closed its side, and closes the transport once the
        buffer is sent.
        """
        self._abort_later()

    def connection_lost(self, _error: Exception | None) -> None:
        """Stop everything. Called by the event loop."""
        self._lost = True
        self.write = discard
        self._drop_gathered()
        if self._close_timeout is not None:
            self._close_timeout.cancel()
        # The feeder of this subscriber waits for it, and ends with the error.
        if self._drained is not None and not self._drained.done():
            self._drained.set_exception(ConnectionResetError())
        self._drained = None
        self.owner.on_end()
        # The owner refers to this object. Without the cycle, both are freed at once: the garbage collector
        # would stop the event loop for half a second after thousands of connections.
        del self.owner


def discard(_data: bytes) -> None:
    """Replace `write` when nothing more may follow."""
