"""The messages of one connection to upstream: whole, bounded, and within budgets.

`Inbox` collects what picows parses until it is taken; `Slices` bounds what picows is given at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Final, cast

from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

from jetstream.scheduling import TURN_S
from jetstream.token_bucket import TokenBucket

MESSAGE_BYTES_MAX: Final = 32 << 20  # well above the protocol's 5 MB, which is judged frame by frame
BUFFER_BYTES_MAX: Final = 8 << 20  # undecoded frames, before the socket is left to the kernel
FRAME_COST: Final = 200  # bytes that a frame costs beside its own: the objects around it
# Of the socket at once. While frames are behind, a read wakes the sender and makes it send, in this process's
# time on the same machine: reads of 64 KiB cost 5 % of the CPU of a catch-up.
READ_BYTES_MAX: Final = 4 << 20
# What is parsed without a pause: 64 KiB are at most 32,768 frames, ms in a flood.
SLICE_BYTES_MAX: Final = 64 << 10

# What a connection may send of what is no frame of a firehose. Control frames: relays ping twice a minute.
CONTROL_PER_S: Final = 100.0
# Tiny messages and parts of messages: the smallest frame of a firehose has 18 bytes, and servers that send
# messages in parts do it by the kilobyte.
TINY_BYTES: Final = 16
TINY_PER_S: Final = 1_000.0
# Text, which no firehose sends. A Jetstream that is taken for one sends some hundred messages a second.
TEXT_PER_S: Final = 100.0
BURST_S: Final = 2.0  # each of these may come at once for so many seconds


class Inbox(WSListener):
    """Collects the binary messages of one connection, whole, until they are taken.

    Calls `on_text` for each text message, and `on_flood` with what there was too much of before it cuts the
    connection.
    """

    def __init__(
        self,
        on_text: Callable[[], None],
        on_flood: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_text = on_text
        self._on_flood = on_flood
        self._clock = clock  # in monotonic seconds
        self.too_big = False  # a message was over MESSAGE_BYTES_MAX
        self.any_came = False  # a message of any kind
        self.reason = ""  # of the close frame
        self.read_at = 0.0  # monotonic seconds, of the oldest frame of those dropped last
        self._frames: list[bytes] = []
        self._read_at: list[float] = []  # of each frame
        self._cost = 0  # of all frames, in bytes
        self._parts: bytearray | None = None  # of a binary message that is not whole yet
        self._more = asyncio.Event()
        self._over = False
        self._cut = False  # given up: what is still parsed is passed over
        self._transport: WSTransport | None = None
        self._slices: Slices | None = None  # between the transport and its socket
        self._full = False  # more than BUFFER_BYTES_MAX wait
        self._budgets = {
            kind: TokenBucket(per_s, per_s * BURST_S, clock())
            for kind, per_s in (("control", CONTROL_PER_S), ("tiny", TINY_PER_S), ("text", TEXT_PER_S))
        }

    async def wait(self, count_max: int) -> list[bytes]:
        """Wait for frames and return at most `count_max`, which stay; none when the connection is over."""
        if not self._frames and not self._over:
            self._more.clear()
            await self._more.wait()
        return self._frames[:count_max]

    def drop(self, count: int) -> None:
        """Let go of the oldest frames, which have been read."""
        if not count:
            return
        self.read_at = self._read_at[0]
        self._cost -= sum(map(len, self._frames[:count])) + count * FRAME_COST
        del self._frames[:count], self._read_at[:count]
        if self._full and self._cost < BUFFER_BYTES_MAX // 2:
            self._hold(False)

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Come between the socket and picows."""
        self._transport = transport
        socket = transport.underlying_transport
        self._slices = Slices(cast(asyncio.BufferedProtocol, socket.get_protocol()), socket)
        socket.set_protocol(self._slices)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Take a frame of the WebSocket: a message, a part of one, or a control frame."""
        if self._cut:
            return
        kind = frame.msg_type
        if kind == WSMsgType.BINARY and frame.fin:
            payload = frame.get_payload_as_bytes()
            if len(payload) >= TINY_BYTES or self._may("tiny"):
                self._append(payload)
        elif kind in (WSMsgType.BINARY, WSMsgType.CONTINUATION):
            self._assemble(transport, frame)
        elif kind == WSMsgType.TEXT:
            self._parts = None
            self.any_came = True
            self._on_text()
            self._may("text")
        elif kind == WSMsgType.CLOSE:
            self.reason = f"{frame.get_close_code()} {frame.get_close_reason() or ''}".strip()
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()
        elif self._may("control") and kind == WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())

    def on_ws_disconnected(self, _transport: WSTransport) -> None:
        """Let `wait` return nothing once all has been taken."""
        self._over = True
        self._more.set()

    def close(self) -> None:
        """Cut the connection, if it is there, and take no more of it."""
        self._cut_off()
        if self._transport is not None:
            self._transport.disconnect(graceful=False)

    def _may(self, kind: str) -> bool:
        """Tell whether one more of a kind is within its budget; else cut the connection."""
        if self._budgets[kind].spend(self._clock()):
            return True
        self._cut_off()
        assert self._transport is not None
        self._transport.send_close(WSCloseCode.POLICY_VIOLATION, b"flood")
        self._transport.disconnect(graceful=False)
        self._on_flood(kind)
        return False

    def _assemble(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.BINARY:
            self._parts = bytearray()
        payload = frame.get_payload_as_bytes()
        if len(payload) < TINY_BYTES and not frame.fin and not self._may("tiny"):
            return
        if self._parts is None:
            return  # the rest of a text message
        self._parts += payload
        if len(self._parts) > MESSAGE_BYTES_MAX:
            self.too_big = True
            self._cut_off()
            transport.send_close(WSCloseCode.MESSAGE_TOO_BIG)
            transport.disconnect()
        elif frame.fin:
            self._append(bytes(self._parts))
            self._parts = None

    def _append(self, payload: bytes) -> None:
        self._frames.append(payload)
        self._read_at.append(self._clock())
        self._cost += len(payload) + FRAME_COST
        self.any_came = True
        self._more.set()
        if self._cost > BUFFER_BYTES_MAX and not self._full:
            self._hold(True)

    def _hold(self, held: bool) -> None:
        self._full = held
        if self._slices is not None:
            self._slices.hold(held)

    def _cut_off(self) -> None:
        """Pass over all that comes, and may have come already."""
        self._cut = True
        if self._slices is not None:
            self._slices.discard()


class Slices(asyncio.BufferedProtocol):
    """Stands between the socket and picows, which parses all that it is given in one go.

    Reads much at once, and hands it on in slices: for `TURN_S` in a turn of the loop, and not while held. The
    socket is read again once all is parsed, and its end is passed on then.
    """

    def __init__(self, parser: asyncio.BufferedProtocol, socket: asyncio.Transport) -> None:
        self._parser = parser
        self._socket = socket
        self._read = memoryview(bytearray(READ_BYTES_MAX))
        self._start = 0  # in `_read`, of what picows was not given yet
        self._stop = 0  # in `_read`, of what came from the socket
        self._until = 0.0  # monotonic, when this turn is over; 0 while nothing was parsed in it
        self._held = False  # whether nothing may be parsed: see `hold`
        self._paused = False  # whether the socket is not read
        self._end: Callable[[], None] | None = None  # tells picows of the end; set while it waits
        self.eof_received = parser.eof_received  # type: ignore[method-assign]
        self.pause_writing = parser.pause_writing  # type: ignore[method-assign]
        self.resume_writing = parser.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Return where the next read goes: `READ_BYTES_MAX` at most."""
        return self._read

    def buffer_updated(self, nbytes: int) -> None:
        """Have picows parse what was read."""
        self._start, self._stop = 0, nbytes
        self._parse()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell picows, once it has parsed what came before."""
        self._end = partial(self._parser.connection_lost, exc)
        if self._start == self._stop:
            self._finish()

    def hold(self, held: bool) -> None:
        """Stop parsing after this slice, or go on in the next turn."""
        self._held = held
        if not held:
            self._begin_turn()

    def discard(self) -> None:
        """Drop what was read and not parsed: nobody waits for it any more."""
        self._start = self._stop
        self.hold(False)

    def _begin_turn(self) -> None:
        if not self._until:
            self._until = time.monotonic() + TURN_S
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._until = 0.0
        if self._start < self._stop:
            self._parse()
        elif self._end is not None:
            self._finish()
        else:
            self._pause(self._held)

    def _parse(self) -> None:
        if not self._held:
            self._begin_turn()
        is_over = False
        while self._start < self._stop and not self._held and not is_over:
            free = memoryview(self._parser.get_buffer(-1))
            start, size = self._start, min(SLICE_BYTES_MAX, len(free), self._stop - self._start)
            free[:size] = self._read[start : start + size]
            self._start += size
            self._parser.buffer_updated(size)
            is_over = time.monotonic() > self._until
        self._pause(is_over or self._held)

    def _pause(self, paused: bool) -> None:
        if self._paused != paused and not self._socket.is_closing():
            self._paused = paused
            (self._socket.pause_reading if paused else self._socket.resume_reading)()

    def _finish(self) -> None:
        end, self._end = self._end, None
        if end is not None:
            end()
