"""The socket of one subscriber: events out, and the client's messages in, metered.

The hub writes whole frames with the transport's own `write`. What a client sends is read a few frames at a
time; while a message of its is worked on, nothing more of it is read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from jetstream.delivery.subscriber import Close
from jetstream.delivery.wires import close_frame
from jetstream.scheduling import Steps, Worker
from jetstream.web.budget import Budget, Flood
from jetstream.web.discard import Discards
from jetstream.web.unfinished import Unfinished
from jetstream.web.websocket import CLOSE, CONTINUATION, PING, PONG, Breach, Frame, FrameReader, pong_frame

CLOSE_TIMEOUT_S: Final = 3.0  # for the other side to answer a close frame
MESSAGE_S: Final = 10.0  # for a whole message
SWEEP_S: Final = 0.5  # between two looks at who is late
FRAMES_PER_READ: Final = 4  # read at once; what more has come is read when it is its turn: 2 µs each
FRAMES_PER_STEP: Final = 32
# More than this is read in turns, too: 0.4 MB takes 0.7 ms to unmask, and all sockets are ready at once.
BYTES_PER_READ: Final = 8 << 10

SLOW_MESSAGE: Final = Close(1008, "slow_message", f"a message was not whole within {MESSAGE_S:.0f} s")
_TOO_MUCH: Final = Close(1008, "flood", "flood: the server holds too much that clients have begun to send")


class Inbound:
    """What all subscribers of a server share for reading: whose turn it is, and how much is held."""

    def __init__(self) -> None:
        self.frames = Worker()
        # Messages are worked on one at a time, in a third of the loop's time at most: live events go first.
        self.messages = Worker(rest_ratio=2.0)
        self.discards = Discards()
        self.unfinished: Unfinished[SocketSink] = Unfinished(MESSAGE_S)
        self._sweep: asyncio.TimerHandle | None = None  # set while something is unfinished

    def hold(self, sink: SocketSink, size: int) -> None:
        """Note that a client has begun to send something, of which `size` bytes are held."""
        self.unfinished.hold(sink, time.monotonic(), size)
        if (victim := self.unfinished.excess()) is not None:
            victim.fail(_TOO_MUCH)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(SWEEP_S, self._close_late)

    def _close_late(self) -> None:
        now = time.monotonic()
        while (sink := self.unfinished.expired(now)) is not None:
            if sink.busy:  # it waits for us
                self.unfinished.begin(sink, now, sink.held)
            else:
                sink.fail(SLOW_MESSAGE)
        again = asyncio.get_running_loop().call_later
        self._sweep = again(SWEEP_S, self._close_late) if len(self.unfinished) else None


class SocketSink(asyncio.Protocol):
    """The transport of one WebSocket, as the hub wants it.

    `write` is the transport's own, for nothing is called as often; a close frame puts an end to it.
    `on_message` is given each message, and works on it in steps; `on_end` is told when the connection is
    gone.
    """

    __slots__ = (
        "_budget",
        "_buffer_bytes",
        "_close",
        "_closed_by_client",
        "_discarded",
        "_drained",
        "_failed",
        "_inbound",
        "_lost",
        "_pong",
        "_reader",
        "_timeout",
        "_transport",
        "began",
        "busy",
        "full",
        "on_end",
        "on_message",
        "peer",
        "write",
        "written",
    )

    def __init__(self, transport: asyncio.Transport, buffer_bytes: int, inbound: Inbound) -> None:
        self._transport = transport
        self._buffer_bytes = buffer_bytes
        self._inbound = inbound
        self.began = time.monotonic()
        self.peer: str = (transport.get_extra_info("peername") or ("",))[0]
        self._reader = FrameReader(Budget(self.began))
        self._close: Close | None = None  # why the server ends the connection, once its close frame is out
        self._closed_by_client = False  # whether a close frame has come
        self._failed = False  # whether what comes is not read any more
        self._lost = False  # whether the connection is gone
        self._discarded = 0  # bytes that came after the end
        self._timeout: asyncio.TimerHandle | None = None  # of a close frame
        self._pong: bytes | None = None  # the newest one that waits for the buffer to drain
        self._drained: asyncio.Future[None] | None = None  # what waits for that
        self.full = False  # whether the buffer is over its limit and has not drained yet
        self.busy = False  # whether what has come waits for its turn, or is worked on
        self.written = 0
        self.write: Callable[[bytes], None] = transport.write
        self.on_message: Callable[[bytes], Steps[None]]
        self.on_end: Callable[[], None]
        self.lower_limit(False)

    # Out

    @property
    def buffered(self) -> int:
        """How many bytes wait in the buffer."""
        return 0 if self._transport.is_closing() else self._transport.get_write_buffer_size()

    @property
    def closing(self) -> bool:
        """Whether a close frame is out, or the connection is gone."""
        return self._close is not None or self._closed_by_client or self._lost

    @property
    def held(self) -> int:
        """How many bytes are held of what the client has sent."""
        return len(self._reader)

    async def writable(self) -> None:
        """Return once the buffer has drained. Raises ConnectionError when the connection is gone."""
        if self._lost:
            raise ConnectionResetError
        if self.full:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def pause_writing(self) -> None:
        """Note that the buffer is full."""
        self.full = True

    def resume_writing(self) -> None:
        """Note that the buffer has drained."""
        self.full = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None
        if self._pong is not None:
            self._send_pong(self._pong)

    def lower_limit(self, lowered: bool) -> None:
        """Lower the buffer's limit to an eighth, or set it back."""
        if not self._transport.is_closing():
            high = self._buffer_bytes // 8 if lowered else self._buffer_bytes
            self._transport.set_write_buffer_limits(high=high, low=high // 4)

    def close(self, close: Close) -> None:
        """Send a close frame behind what waits, give the client a little time to answer, then cut."""
        if self.closing:
            return
        self._close = close
        self._say(close_frame(close.code, close.text))
        self.write = _nothing
        self._abort_later()

    def fail(self, close: Close) -> None:
        """Close, and read nothing more of the client."""
        self.close(close)
        self._failed = True
        self._reader.clear()
        self._inbound.unfinished.end(self)
        if not self._transport.is_closing():
            self._transport.write_eof()  # behind what waits
            self._transport.resume_reading()

    def _say(self, frame: bytes) -> None:
        """Send a control frame, unless the connection is gone."""
        with suppress(RuntimeError):  # uvloop's word for a transport that has closed meanwhile
            if not self._transport.is_closing():
                self._transport.write(frame)
                self.written += len(frame)

    def _abort_later(self) -> None:
        if self._timeout is None:
            self._timeout = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._transport.abort)

    # In

    def begin(self, data: bytes) -> None:
        """Begin to read: first what came with the handshake, with reading paused."""
        self._transport.resume_reading()
        if data:
            self.data_received(data)

    def data_received(self, data: bytes) -> None:
        """Read a few frames; leave more to the line."""
        if self._failed or self._closed_by_client:
            self._discarded += len(data)
            self._inbound.discards.drop(self._transport, self._discarded)
            return
        self._reader.feed(data)
        if self.busy:
            self._inbound.hold(self, len(self._reader))
        elif len(self._reader) > BYTES_PER_READ or self._read(FRAMES_PER_READ):
            self._wait(self._inbound.frames, self._go_on())

    def eof_received(self) -> None:
        """Let the transport close, and do not wait for ever until what waits is sent."""
        self._abort_later()

    def connection_lost(self, _error: Exception | None) -> None:
        """Stop everything."""
        self._lost = True
        self.write = _nothing
        self._inbound.unfinished.end(self)
        self._reader.clear()
        if self._timeout is not None:
            self._timeout.cancel()
        if self._drained is not None and not self._drained.done():
            self._drained.set_exception(ConnectionResetError())
        self._drained = None
        self.on_end()

    def _wait(self, worker: Worker, job: Steps[None]) -> None:
        """Read nothing more until a job is done."""
        self.busy = True
        if not self._transport.is_closing():
            self._transport.pause_reading()
        self._inbound.hold(self, len(self._reader))
        worker.put(job)

    @property
    def _over(self) -> bool:
        """Whether nothing more is read, and nothing that was read is worked on."""
        return self._lost or self._failed

    def _go_on(self) -> Steps[None]:
        self.busy = False
        while not self._over and self._read(FRAMES_PER_STEP):
            yield

    def _read(self, frames: int) -> bool:
        """Read up to so many frames; return whether there may be more that can be read at once."""
        now = time.monotonic()
        try:
            for _ in range(frames):
                frame = self._reader.next(now)
                if frame is None:
                    self._wait_for_more()
                    return False
                self._take(frame)
                if self.busy or self._failed or self._closed_by_client:
                    return False
        except (Breach, Flood) as breach:
            self.fail(breach.close)
            return False
        return True

    def _wait_for_more(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()
        if len(self._reader) or self._reader.in_message:
            self._inbound.hold(self, len(self._reader))
        else:
            self._inbound.unfinished.end(self)

    def _take(self, frame: Frame) -> None:
        if not self._reader.in_message:
            self._inbound.unfinished.end(self)
        if frame.opcode == CLOSE:
            self._closed(frame.data)
        elif frame.opcode == PING:
            self._send_pong(frame.data)
        elif frame.opcode not in (CONTINUATION, PONG) and self._close is None:
            self._wait(self._inbound.messages, self._work_on(frame.data))

    def _work_on(self, message: bytes) -> Steps[None]:
        if self._over:  # since the message came
            return
        steps = self.on_message(message)
        while not self._over:
            try:
                next(steps)
            except StopIteration:
                break
            yield
        self._wait(self._inbound.frames, self._go_on())

    def _send_pong(self, data: bytes) -> None:
        """Answer a ping; while the client does not read, only the newest one."""
        self._pong = data if self.full else None
        if not self.full and not self.closing:
            self._say(pong_frame(data))

    def _closed(self, data: bytes) -> None:
        """Answer a close frame, unless it is the answer to ours, and end the connection."""
        if self._close is None:
            self._say(close_frame(int.from_bytes(data[:2], "big"), "") if data else b"\x88\x00")
        self._closed_by_client = True
        self.write = _nothing
        self._abort_later()
        self._transport.close()

    # The end

    @property
    def ended(self) -> Close:
        """Why the connection ended, for the metrics."""
        if self._close is not None:
            return self._close
        return Close(1000, "client", "") if self._closed_by_client else Close(1006, "lost", "")


def _nothing(_data: bytes) -> None:
    """Stand in for a write that is over."""
