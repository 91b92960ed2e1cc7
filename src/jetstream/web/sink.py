"""The socket of one WebSocket: `Outbound`, and the client's messages in.

A client may send anything, as fast as it likes, on thousands of connections. So work is done in turns:

    data_received ──▶ up to `frames_per_read` frames, if only few bytes came
                  ──▶ else `Inbound.frames`: `frames_per_step` at a time, after other clients' turns
    a message     ──▶ `Inbound.messages`: one at a time for all clients, with pauses

While something of a client waits for its turn (`busy`), reading is paused. What the client goes on sending
fills its own socket buffers, then it is blocked. `Inbound` also has the deadlines of incomplete messages, and
limits the memory that all of them take.

How it ends: after a `Breach` or a timeout the socket has failed (`fail`). A close frame is written, and
the input is discarded. When the client closes, its close frame is answered, and what comes behind it is
discarded (RFC 6455, sections 5.5.1 and 7.1).
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from jetstream.delivery.framing.websocket import WEBSOCKET
from jetstream.delivery.subscriber import Close
from jetstream.limits import WebLimits
from jetstream.scheduling import Worker
from jetstream.steps import Steps
from jetstream.web.outbound import Outbound, Sockets, discard
from jetstream.web.pending import Pending
from jetstream.web.websocket import CLOSE, CONTINUATION, PING, PONG, Breach, Frame, FrameReader, pong_frame

# For the client that has held bytes for the longest, when all together hold more than `pending_bytes_max`.
_OVERLOADED: Final = Close(
    1008, "flood", "flood: the server holds too much that clients have begun to send: connect again later"
)


class Inbound(Sockets):
    """What all WebSockets of a server share for reading: the turns, the deadlines and the memory limit.

    One object for all endpoints to subscribe. It is also the `Sockets` of the way out.
    """

    def __init__(self, buffer_bytes: int, limits: WebLimits = WebLimits()) -> None:
        super().__init__(buffer_bytes, limits)
        # Reads frames of the clients that sent more than a few.
        self.frames = Worker()
        # Handles messages, one at a time. It pauses after each turn, as live events go first.
        self.messages = Worker(pause_ratio=limits.message_pause_ratio)
        # Sinks that hold bytes of a frame or message that is not complete, or that are busy.
        self.pending = Pending(
            limits.message_timeout_s, SocketSink.time_out, lambda sink: sink.fail(_OVERLOADED), limits
        )


class SocketSink(Outbound):
    """The socket of one WebSocket, both ways.

    As an `asyncio.Protocol` it gets the bytes of the client; as delivery's `Sink` it takes frames. Of each
    client at most one message is handled at a time.
    """

    def __init__(self, transport: asyncio.Transport, inbound: Inbound, peer: str) -> None:
        super().__init__(transport, inbound, peer)
        # What is shared with all other sockets.
        self._inbound = inbound
        # What was read and not handled. Its memory is released as soon as nothing more is read.
        self._reader = FrameReader(inbound.limits)
        # Whether the client has sent a close frame.
        self._close_received = False
        # Whether the server closes and reads nothing more: the input is discarded.
        self._failed = False
        # Payload of the newest ping that came while the buffer was full or writes were gathered, until the
        # transport has sent what it had.
        self._pong: bytes | None = None
        # Whether a job of this connection is in one of the workers; reading is paused.
        self.busy = False

    # Out

    @property
    def closing(self) -> bool:
        """Whether a close frame was written or received, or the connection has gone."""
        return super().closing or self._close_received

    @property
    def held(self) -> int:
        """How many bytes are held of what the client has sent.

        It counts for the memory limit of all clients together.
        """
        return len(self._reader)

    @property
    def _left(self) -> bool:
        """Tell whether the client has sent a close frame."""
        return self._close_received

    def resume_writing(self) -> None:
        """Note that the write buffer has drained. Called by the event loop.

        A ping that came while the client was slow is answered now, with the newest payload.
        """
        super().resume_writing()
        pong, self._pong = self._pong, None
        if pong is not None:
            self._write_pong(pong)

    def _end(self, close: Close) -> None:
        """Write a close frame, which the client answers.

        It has a code, a reason and the cursor to resume at (RFC 6455, section 5.5.1).
        """
        self._write_control(WEBSOCKET.end(close.code, close.text, self.owner.resume_at()))

    def fail(self, close: Close) -> None:
        """Close, and discard what the client sends from now on.

        This side of the connection ends behind the close frame. The client has `close_timeout_s` seconds.
        """
        self.close(close)
        self._failed = True
        self._reader.clear()
        self._inbound.pending.remove(self)
        self._write_eof()
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def time_out(self) -> None:
        """Fail a client whose message is late, unless it waits for the server.

        Called by `Pending` when something has been incomplete for `message_timeout_s` seconds. A client
        whose message waits for a worker gets as much time again.
        """
        if self.busy:
            self._inbound.pending.start(self, self.held)
        else:
            timeout_s = self._inbound.limits.message_timeout_s
            text = f"a message was not whole within {timeout_s:g} s: send it faster"
            self.fail(Close(1008, "slow_message", text))

    # In

    def data_received(self, data: bytes) -> None:
        """Handle a few frames. More than that waits for its turn. Called by the event loop.

        Up to `frames_per_read` frames are handled at once, if up to `bytes_per_read` bytes are held:
        pongs, pings and short updates. Nearly all input of all clients is like that.
        """
        if self._failed or self._close_received:
            self._discard_input(data)
            return
        self._reader.feed(data)
        limits = self._inbound.limits
        if self.busy:
            self._inbound.pending.update(self, self.held)
        elif len(self._reader) > limits.bytes_per_read or self._read(limits.frames_per_read):
            self._queue(self._inbound.frames, self._read_on())

    def connection_lost(self, error: Exception | None) -> None:
        """Stop everything. Called by the event loop."""
        self._inbound.pending.remove(self)
        self._reader.clear()
        super().connection_lost(error)

    @property
    def _over(self) -> bool:
        """Whether nothing more is read, and no message is handled any more.

        Jobs that are still in a worker end at their next step.
        """
        return self._lost or self._failed

    def _queue(self, worker: Worker, job: Steps[None]) -> None:
        """Give a job to a worker, and read nothing more until it is done.

        At most one job of a connection is in a worker, so its messages keep their order.
        """
        self.busy = True
        if not self._transport.is_closing():
            self._transport.pause_reading()
        self._inbound.pending.update(self, self.held)
        worker.put(job)

    def _read_on(self) -> Steps[None]:
        """Read the frames that are held. The last step resumes reading, or queues a message.

        It runs in `Inbound.frames`, `frames_per_step` frames in each step.
        """
        self.busy = False
        while not self._over and self._read(self._inbound.limits.frames_per_step):
            yield

    def _read(self, count: int) -> bool:
        """Read up to `count` frames. Returns whether there may be more that can be read at once.

        It stops at a message, at a close frame and at a breach. The frames behind a message are read after
        it was handled.
        """
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
        """Have a message handled, in steps until the connection has ended. Then read the frames behind it.

        It runs in `Inbound.messages`. A message of thousands of DIDs takes many steps, with pauses for
        live events.
        """
        if self._over:  # since the message was queued
            return
        for _ in self.owner.on_message(message):
            yield
            if self._over:
                break
        self._queue(self._inbound.frames, self._read_on())

    def _send_pong(self, data: bytes) -> None:
        """Answer a ping. For a client that is slow only the newest is kept (RFC 6455, section 5.5.3)."""
        if self.full or self._gathering:
            self._pong = data
        else:
            self._write_pong(data)

    def _write_pong(self, data: bytes) -> None:
        """Write a pong, unless a close frame was sent or received: nothing follows that."""
        if not self.closing:
            self._write_control(pong_frame(data))

    def _handle_close(self, data: bytes) -> None:
        """End the connection; answer the close frame first, unless it is the answer to the server's own.

        While something is gathered, the server's own is the last of it. The client wants none of that now.

        The answer has the client's code and no reason (RFC 6455, section 5.5.1). The transport is closed
        when it is sent.
        """
        unanswered = self._close is None or bool(self._gathered)
        self._drop_gathered()
        if unanswered:
            self._write_control(WEBSOCKET.end(int.from_bytes(data[:2], "big"), "") if data else b"\x88\x00")
        self._close_received = True
        self.write = discard
        self._abort_later()
        self._transport.close()
