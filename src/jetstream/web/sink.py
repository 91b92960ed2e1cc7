"""The socket of one subscriber: events out, and the client's messages in.

Out: delivery writes complete WebSocket frames with the transport's own `write`, and this module says when the
buffer is full (`full`), when it has drained (`writable`), and how a connection ends (`close`).

In: a client may send anything, as fast as it likes, on thousands of connections. So work is done in turns:

    data_received ──▶ up to `frames_per_read` frames, if only few bytes came
                  ──▶ else `Inbound.frames`: `frames_per_step` at a time, after other clients' turns
    a message     ──▶ `Inbound.messages`: one at a time for all clients, with pauses

While something of a client waits for its turn (`busy`), reading is paused. What the client goes on sending
fills its own socket buffers, then it is blocked. `Inbound` also has the deadlines of incomplete messages, and
limits the memory that all of them take.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from jetstream.delivery.framing.websocket import WEBSOCKET
from jetstream.delivery.subscriber import Close
from jetstream.limits import WebLimits
from jetstream.scheduling import Worker
from jetstream.steps import Steps
from jetstream.web.pending import LingeringClose, Pending
from jetstream.web.websocket import CLOSE, CONTINUATION, PING, PONG, Breach, Frame, FrameReader, pong_frame

_OVERLOADED: Final = Close(1008, "flood", "flood: the server holds too much that clients have begun to send")


class Inbound:
    """What all subscribers of a server share for reading: the turns, the deadlines and the memory limit.

    And one thing for writing: a write buffer is full above `buffer_bytes`.
    """

    def __init__(self, buffer_bytes: int, limits: WebLimits = WebLimits()) -> None:
        self.buffer_bytes = buffer_bytes
        self.limits = limits
        self.lingering = LingeringClose(limits)
        # Reads frames of the clients that sent more than a few.
        self.frames = Worker()
        # Handles messages, one at a time. It pauses after each turn, as live events go first.
        self.messages = Worker(pause_ratio=limits.message_pause_ratio)
        # Sinks that hold bytes of a frame or message that is not complete, or that are busy.
        self.pending = Pending(
            limits.message_timeout_s, SocketSink.time_out, lambda sink: sink.fail(_OVERLOADED), limits
        )


class SocketSink(asyncio.Protocol):
    """The transport of one WebSocket, as delivery's `Sink`.

    `on_message` is called with each message, and handles it in steps. `on_end` is called when the connection
    has gone. Both are set by the owner before `start`, and removed by it in `on_end`.
    """

    def __init__(self, transport: asyncio.Transport, inbound: Inbound) -> None:
        self._transport = transport
        self._inbound = inbound
        self.opened_at = time.monotonic()
        # Address of the client, for the log.
        self.peer: str = (transport.get_extra_info("peername") or ("",))[0]
        # What was read and not handled. Its memory is released as soon as nothing more is read.
        self._reader = FrameReader(inbound.limits)
        # Why the server ends the connection. Set once, when its close frame is written.
        self._close: Close | None = None
        # Whether the client has sent a close frame.
        self._close_received = False
        # Whether the server closes and reads nothing more: the input is discarded.
        self._failed = False
        # Whether the connection has gone.
        self._lost = False
        # Bytes that were read after the end.
        self._discarded = 0
        # Aborts the connection when the client does not answer a close frame, or does not read.
        self._close_timeout: asyncio.TimerHandle | None = None
        # Payload of the newest ping, until the full buffer has drained.
        self._pong: bytes | None = None
        # What `writable` waits for. One task at a time may call it.
        self._drained: asyncio.Future[None] | None = None
        # Whether the buffer went above its limit and has not drained since.
        self.full = False
        # Whether a job of this connection is in one of the workers; reading is paused.
        self.busy = False
        # Bytes given to `write`, counted by its callers.
        self.written = 0
        # The transport's own method: no call through Python on the hot path. A no-op after a close frame.
        self.write: Callable[[bytes], None] = transport.write
        self.on_message: Callable[[bytes], Steps[None]]
        self.on_end: Callable[[], None]
        self.lower_limit(False)

    # Out

    @property
    def buffered(self) -> int:
        """How many bytes wait in the write buffer."""
        return 0 if self._transport.is_closing() else self._transport.get_write_buffer_size()

    @property
    def closing(self) -> bool:
        """Whether a close frame was written or received, or the connection has gone."""
        return self._close is not None or self._close_received or self._lost

    @property
    def held(self) -> int:
        """How many bytes are held of what the client has sent."""
        return len(self._reader)

    async def writable(self) -> None:
        """Return once the write buffer has drained. Raises ConnectionError when the connection has gone."""
        if self._lost:
            raise ConnectionResetError
        if self.full:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def pause_writing(self) -> None:
        """Note that the write buffer is full. Called by the event loop."""
        self.full = True

    def resume_writing(self) -> None:
        """Note that the write buffer has drained. Called by the event loop."""
        self.full = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None
        if self._pong is not None:
            self._send_pong(self._pong)

    def lower_limit(self, lowered: bool) -> None:
        """Lower the limit of the write buffer to an eighth, or set it back. It has drained at a quarter."""
        if not self._transport.is_closing():
            high = self._inbound.buffer_bytes // (8 if lowered else 1)
            self._transport.set_write_buffer_limits(high=high, low=high // 4)

    def close(self, close: Close) -> None:
        """Write a close frame behind what is buffered, and abort when the client does not answer in time."""
        if self.closing:
            return
        self._close = close
        self._write_control(WEBSOCKET.end(close.code, close.text))
        self.write = _discard
        self._abort_later()

    def fail(self, close: Close) -> None:
        """Close, and discard what the client sends from now on."""
        self.close(close)
        self._failed = True
        self._reader.clear()
        self._inbound.pending.remove(self)
        if not self._transport.is_closing():
            self._transport.write_eof()  # behind what is buffered
            self._transport.resume_reading()

    def time_out(self) -> None:
        """Fail a client whose message is late, unless it waits for the server."""
        if self.busy:
            self._inbound.pending.start(self, self.held)
        else:
            timeout_s = self._inbound.limits.message_timeout_s
            self.fail(Close(1008, "slow_message", f"a message was not whole within {timeout_s:g} s"))

    def _write_control(self, frame: bytes) -> None:
        """Write a control frame, unless the connection has gone."""
        with suppress(RuntimeError):  # uvloop raises it for a transport that was closed meanwhile
            if not self._transport.is_closing():
                self._transport.write(frame)
                self.written += len(frame)

    def _abort_later(self) -> None:
        """Abort the connection after `close_timeout_s`, unless it has ended by then."""
        if self._close_timeout is None:
            call_later = asyncio.get_running_loop().call_later
            self._close_timeout = call_later(self._inbound.limits.close_timeout_s, self._transport.abort)

    # In

    def start(self, data: bytes) -> None:
        """Start to read: first `data`, which came with the handshake. Reading is paused until then."""
        self._transport.resume_reading()
        if data:
            self.data_received(data)

    def data_received(self, data: bytes) -> None:
        """Handle a few frames. More than that waits for its turn. Called by the event loop."""
        if self._failed or self._close_received:
            self._discarded += len(data)
            self._inbound.lingering.discard(self._transport, self._discarded)
            return
        self._reader.feed(data)
        limits = self._inbound.limits
        if self.busy:
            self._inbound.pending.update(self, self.held)
        elif len(self._reader) > limits.bytes_per_read or self._read(limits.frames_per_read):
            self._queue(self._inbound.frames, self._read_on())

    def eof_received(self) -> None:
        """Let the transport close, but do not wait for ever until the client has read what is buffered."""
        self._abort_later()

    def connection_lost(self, _error: Exception | None) -> None:
        """Stop everything. Called by the event loop."""
        self._lost = True
        self.write = _discard
        self._inbound.pending.remove(self)
        self._reader.clear()
        if self._close_timeout is not None:
            self._close_timeout.cancel()
        if self._drained is not None and not self._drained.done():
            self._drained.set_exception(ConnectionResetError())
        self._drained = None
        self.on_end()

    @property
    def _over(self) -> bool:
        """Whether nothing more is read, and no message is handled any more."""
        return self._lost or self._failed

    def _queue(self, worker: Worker, job: Steps[None]) -> None:
        """Give a job to a worker, and read nothing more until it is done."""
        self.busy = True
        if not self._transport.is_closing():
            self._transport.pause_reading()
        self._inbound.pending.update(self, self.held)
        worker.put(job)

    def _read_on(self) -> Steps[None]:
        """Read the frames that are held. The last step resumes reading, or queues a message."""
        self.busy = False
        while not self._over and self._read(self._inbound.limits.frames_per_step):
            yield

    def _read(self, count: int) -> bool:
        """Read up to `count` frames. Returns whether there may be more that can be read at once."""
        now = time.monotonic()
        try:
            for _ in range(count):
                if (frame := self._reader.next(now)) is None:
                    self._resume_reading()
                    return False
                self._handle(frame)
                if self.busy or self._failed or self._close_received:
                    return False
        except Breach as error:
            self.fail(error.close)
        return not self._failed

    def _resume_reading(self) -> None:
        """Read more, as no complete frame is held. What is held of an incomplete one has a deadline."""
        if not self._transport.is_closing():
            self._transport.resume_reading()
        if len(self._reader) or self._reader.in_message:
            self._inbound.pending.update(self, self.held)
        else:
            self._inbound.pending.remove(self)

    def _handle(self, frame: Frame) -> None:
        """Handle one frame. A complete one ends the deadline, except in the middle of a message.

        So a client that sends pings between two fragments does not get more time for its message. After the
        server's close frame, messages are ignored, and pings are not answered.
        """
        if not self._reader.in_message:
            self._inbound.pending.remove(self)
        if frame.opcode == CLOSE:
            self._handle_close(frame.data)
        elif frame.opcode == PING:
            self._send_pong(frame.data)
        elif frame.opcode not in (CONTINUATION, PONG) and self._close is None:
            self._queue(self._inbound.messages, self._handle_message(frame.data))

    def _handle_message(self, message: bytes) -> Steps[None]:
        """Run `on_message` in steps until the connection has ended. Then go on with the frames behind it."""
        if self._over:  # since the message was queued
            return
        for _ in self.on_message(message):
            yield
            if self._over:
                break
        self._queue(self._inbound.frames, self._read_on())

    def _send_pong(self, data: bytes) -> None:
        """Answer a ping. While the buffer is full only the newest is kept (RFC 6455, section 5.5.3)."""
        self._pong = data if self.full else None
        if not self.full and not self.closing:
            self._write_control(pong_frame(data))

    def _handle_close(self, data: bytes) -> None:
        """End the connection; answer the close frame first, unless it is the answer to the server's own."""
        if self._close is None:
            self._write_control(WEBSOCKET.end(int.from_bytes(data[:2], "big"), "") if data else b"\x88\x00")
        self._close_received = True
        self.write = _discard
        self._abort_later()
        self._transport.close()

    # The end

    @property
    def ended(self) -> Close:
        """Why the connection ended, for the metrics."""
        if self._close is not None:
            return self._close
        return Close(1000, "client", "") if self._close_received else Close(1006, "lost", "")


def _discard(_data: bytes) -> None:
    """Replace `write` when nothing more may follow."""
