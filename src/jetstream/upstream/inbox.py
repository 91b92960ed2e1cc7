"""The messages that one upstream connection receives: complete, bounded, and within budgets.

    socket ──read──▶ ReadThrottle ──slices──▶ picows ──WebSocket frames──▶ Inbox ──messages──▶ the reader

picows parses all that it is given in one call, whatever its listener does meanwhile. So `ReadThrottle` stands
between the socket and picows. It gives picows a slice at a time, and stops when a turn of the event loop is
used up or the inbox is full. Then the socket is not read either, and TCP slows the sender down.

A peer can send much that is no frame of a firehose, and costs more than its bytes: pings, empty messages,
messages in tiny fragments, text. Each kind has a budget, a token bucket. A peer that exceeds one is cut off.
So is one that does not read its pongs, and one whose fragments are in no order.

So there are four bounds. What waits is bounded by `buffer_bytes_max`, and one message by
`message_bytes_max`. What is parsed without a pause is bounded by `slice_bytes_max` and `turn_s`. What costs
more than its bytes is bounded by the budgets. What waits to be sent is bounded by `unsent_bytes_max`. All are
in `limits.UpstreamLimits`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Final, NoReturn, cast

from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSProtocolError, WSTransport

from jetstream.limits import UpstreamLimits
from jetstream.token_bucket import TokenBucket
from jetstream.urls import without_secrets

# Nearly all frames. Python 3.11 takes 80 ns to look up a member of an enumeration.
_BINARY: Final = WSMsgType.BINARY


class Inbox(WSListener):
    """Collects the binary messages of one connection until they are read and dropped.

    Calls `on_text` for each text message, and `on_flood` with the kind of what there was too much of,
    after it has cut the connection. `clock` gives monotonic seconds. picows calls the methods that begin
    with `on_ws`; all run on the event loop's thread. A message stays here until `drop`, so a batch that
    ends early loses nothing.
    """

    def __init__(
        self,
        on_text: Callable[[], None],
        on_flood: Callable[[str], None],
        limits: UpstreamLimits = UpstreamLimits(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_text = on_text
        self._on_flood = on_flood
        self._limits = limits
        self._clock = clock
        # Whether a message was over `message_bytes_max`. Set once, and the connection is cut.
        self.too_big = False
        # Whether a message of any kind has come.
        self.any_came = False
        # Code and reason of the close frame; empty until one comes.
        self.reason = ""
        # When the oldest of the messages dropped last was received, in monotonic seconds.
        self.received_at = 0.0
        # Complete messages that were not dropped yet, oldest first; when each was received; what all cost, in
        # bytes.
        self._messages: list[bytes] = []
        self._times: list[float] = []
        self._cost = 0
        # What has come of a fragmented message; None between two of them.
        self._parts: bytearray | None = None
        # Whether that message is of the wrong type: then nothing of it is kept. Set when it begins.
        self._is_passed_over = False
        # Set when a message comes, and when the connection is over. Cleared by `wait`, which waits for
        # it.
        self._changed = asyncio.Event()
        # Whether the connection has ended. What came before is read still.
        self._over = False
        # Whether the connection was cut: what is still parsed is ignored.
        self._cut = False
        # Both are set when the handshake is complete, which is before anything else is called.
        self._transport: WSTransport
        self._throttle: ReadThrottle
        # Whether the messages cost more than `buffer_bytes_max`. Cleared when half of that is left.
        self._full = False
        # One token bucket for each kind of what costs more than its bytes. They are those of this
        # connection.
        rates = {"control": limits.control, "tiny": limits.tiny, "text": limits.text}
        self._budgets = {kind: TokenBucket(*rate, clock()) for kind, rate in rates.items()}

    async def wait(self, count_max: int) -> list[bytes]:
        """Wait for messages; return the oldest `count_max`, which stay. Empty: the connection is over.

        One task at a time may wait. It returns at once while messages are left, also after the end.
        """
        if not self._messages and not self._over:
            self._changed.clear()
            await self._changed.wait()
        return self._messages[:count_max]

    def drop(self, count: int) -> None:
        """Drop the oldest messages, which have been read. Once half of the room is free, read the socket."""
        if not count:
            return
        self.received_at = self._times[0]
        self._cost -= sum(map(len, self._messages[:count])) + count * self._limits.frame_overhead_bytes
        del self._messages[:count], self._times[:count]
        if self._full and self._cost < self._limits.buffer_bytes_max // 2:
            self._pause(False)  # not at the limit itself: the socket would be paused for each message

    async def rest(self, seconds: float) -> None:
        """Leave the socket alone for some time. What comes meanwhile is received at once afterwards."""
        self._throttle.pause(True)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._throttle.pause(self._full)

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Put the throttle between the socket and picows."""
        self._transport = transport
        socket = transport.underlying_transport
        parser = cast(asyncio.BufferedProtocol, socket.get_protocol())
        self._throttle = ReadThrottle(parser, socket, self._limits)
        socket.set_protocol(self._throttle)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Handle a WebSocket frame: a message, a fragment of one, or a control frame."""
        if self._cut:
            return
        kind = frame.msg_type
        if kind == _BINARY and frame.fin:
            payload = frame.get_payload_as_bytes()
            if len(payload) >= self._limits.tiny_bytes or self._spend("tiny"):
                self._append(payload)
        elif kind in (WSMsgType.BINARY, WSMsgType.CONTINUATION):
            self._assemble(transport, frame)
        elif kind == WSMsgType.TEXT:
            self._pass_over(frame)
        elif kind == WSMsgType.CLOSE:
            self.reason = f"{frame.get_close_code()} {frame.get_close_reason() or ''}".strip()
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()
        elif self._spend("control") and kind == WSMsgType.PING:
            self._send_pong(transport, frame.get_payload_as_bytes())

    def on_ws_disconnected(self, _transport: WSTransport) -> None:
        """Let `wait` return nothing once all messages are dropped."""
        self._over = True
        self._changed.set()

    async def ended(self) -> str | None:
        """Wait for the end of the connection; return the error that caused it. None: it was closed.

        The text is for people, and has no user or password of a URL.
        """
        try:
            await self._transport.wait_disconnected()
        except Exception as error:  # noqa: BLE001 - picows raises whatever ended the connection
            self.too_big = self.too_big or error.args[:1] == (WSCloseCode.MESSAGE_TOO_BIG,)
            return without_secrets(str(error)) or type(error).__name__
        return None

    def close(self) -> None:
        """Cut the connection, and ignore what is still parsed."""
        self._stop_parsing()
        self._transport.disconnect(graceful=False)

    def _send_pong(self, transport: WSTransport, payload: bytes) -> None:
        """Answer a ping, or cut the connection if the peer does not read the answers."""
        if transport.underlying_transport.get_write_buffer_size() > self._limits.unsent_bytes_max:
            self._cut_off("pongs")
        else:
            transport.send_pong(payload)

    def _pass_over(self, frame: WSFrame) -> None:
        """Tell of a message of the wrong type, and pass it over, with the fragments that follow."""
        self.any_came = True
        self._on_text()
        if self._spend("text") and not frame.fin:
            self._begin_parts(is_passed_over=True)

    def _spend(self, kind: str) -> bool:
        """Return whether one more of a kind is within its budget; cut the connection if it is not."""
        if self._budgets[kind].spend(self._clock()):
            return True
        self._cut_off(kind)
        return False

    def _cut_off(self, kind: str) -> None:
        """Cut the connection for a flood of a kind.

        It is closed with code 1008 (policy violation), at once: a peer that floods need not answer the
        close.
        """
        self._stop_parsing()
        self._transport.send_close(WSCloseCode.POLICY_VIOLATION, b"flood")
        self._transport.disconnect(graceful=False)
        self._on_flood(kind)

    def _begin_parts(self, *, is_passed_over: bool) -> None:
        """Begin a message in fragments. Raises WSProtocolError if the one before is not complete."""
        if self._parts is not None:
            self._refuse_order("a message in fragments began before the one before it was complete")
        self._parts, self._is_passed_over = bytearray(), is_passed_over

    def _refuse_order(self, problem: str) -> NoReturn:
        """End the connection with code 1002 (protocol error): picows does that with what is raised.

        picows checks all else that RFC 6455 forbids, but not the order of fragments. A whole message
        between two fragments is forbidden too. It is taken: to check that would cost each message time.
        """
        self._stop_parsing()
        raise WSProtocolError(WSCloseCode.PROTOCOL_ERROR, f"{problem}, RFC 6455 section 5.4 forbids this")

    def _assemble(self, transport: WSTransport, frame: WSFrame) -> None:
        """Add a fragment to a message; pass it over if that is of the wrong type.

        The last fragment completes the message. One that grows over `message_bytes_max` is closed with
        code 1009; `too_big` then says so to the source, which skips that frame. Nothing bounds a message
        that is passed over, so each of its fragments spends. Raises WSProtocolError if no message has begun.
        """
        if frame.msg_type != WSMsgType.CONTINUATION:
            self._begin_parts(is_passed_over=False)
        if self._parts is None:
            self._refuse_order("a fragment came, and no message had begun")
        if self._is_passed_over:
            if self._spend("tiny") and frame.fin:
                self._parts = None
            return
        payload = frame.get_payload_as_bytes()
        if len(payload) < self._limits.tiny_bytes and not frame.fin and not self._spend("tiny"):
            return
        self._parts += payload
        if len(self._parts) > self._limits.message_bytes_max:
            self.too_big = True
            self._stop_parsing()
            transport.send_close(WSCloseCode.MESSAGE_TOO_BIG)
            transport.disconnect()
        elif frame.fin:
            self._append(bytes(self._parts))
            self._parts = None

    def _append(self, payload: bytes) -> None:
        """Add a complete message, and stop reading if the inbox is full now."""
        if not self._messages:  # else nobody waits for one
            self._changed.set()
        self._messages.append(payload)
        self._times.append(self._clock())
        self._cost += len(payload) + self._limits.frame_overhead_bytes
        self.any_came = True
        if self._cost > self._limits.buffer_bytes_max and not self._full:
            self._pause(True)

    def _pause(self, paused: bool) -> None:
        """Stop reading because the inbox is full, or resume."""
        self._full = paused
        self._throttle.pause(paused)

    def _stop_parsing(self) -> None:
        """Ignore all that is received from now on, and what is received and not parsed."""
        self._cut = True
        self._throttle.discard()


class ReadThrottle(asyncio.BufferedProtocol):
    """The protocol of the socket: reads much at once, and gives it to picows in slices.

    Slices are given for `turn_s` in a turn of the event loop, and not while paused. The socket is read
    again once all is parsed. Its end is reported to picows after that, too. So nothing is lost, and
    picows sees the same calls as without it, only later.
    """

    def __init__(
        self, parser: asyncio.BufferedProtocol, socket: asyncio.Transport, limits: UpstreamLimits
    ) -> None:
        # The protocol of picows, and the transport that both have.
        self._parser = parser
        self._socket = socket
        self._limits = limits
        # What the last read brought, and the part of it that picows was not given yet. A map takes no memory
        # until it is written to, and reads are rarely as long as they may be.
        self._buffer = memoryview(mmap(-1, limits.read_bytes_max, MAP_PRIVATE | MAP_ANONYMOUS))
        self._start = 0
        self._stop = 0
        # When this turn is used up, in monotonic seconds. 0 while nothing was parsed in it.
        self._until = 0.0
        # Whether nothing may be parsed: see `pause`.
        self._paused = False
        # Whether the socket is not read. Follows from the rest; see `_pause_socket`.
        self._socket_paused = False
        # Reports the end of the connection to picows. Set while that waits for the rest to be parsed.
        self._end: Callable[[], None] | None = None
        # These calls go to picows directly.
        self.eof_received = parser.eof_received  # type: ignore[method-assign]
        self.pause_writing = parser.pause_writing  # type: ignore[method-assign]
        self.resume_writing = parser.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Return where the next read goes: `read_bytes_max` at most."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Give picows what was read: at once if it is short, else slice by slice while the turn lasts.

        A read takes as much as it may, or all that has come. So a short one is the last of its turn, and
        the clock need not be looked at. Called by the event loop after each read into `get_buffer`.
        """
        self._start, self._stop = 0, nbytes
        if nbytes > self._limits.slice_bytes_max or self._paused:
            self._parse()
            return
        while self._start < self._stop and not self._paused:  # once, if picows has room for all of it
            self._give_slice()
        if self._paused:
            self._pause_socket(True)

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end to picows, once it has parsed what came before."""
        self._end = partial(self._parser.connection_lost, exc)
        if self._start == self._stop:
            self._finish()

    def pause(self, paused: bool) -> None:
        """Stop parsing after this slice, or resume in the next turn."""
        self._paused = paused
        if not paused:
            self._begin_turn()
        elif self._start == self._stop:
            self._pause_socket(True)

    def discard(self) -> None:
        """Drop what was read and not parsed: the connection is given up."""
        self._start = self._stop
        self.pause(False)

    def _begin_turn(self) -> None:
        """Give this turn of the event loop `turn_s`, and go on in the next one."""
        if not self._until:
            self._until = time.monotonic() + self._limits.turn_s
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        """Go on where the turn before has ended: with what is left, with the end, or by reading again."""
        self._until = 0.0
        if self._start < self._stop:
            self._parse()
        elif self._end is not None:
            self._finish()
        else:
            self._pause_socket(self._paused)

    def _parse(self) -> None:
        """Give picows slices until all is parsed, the turn is used up, or the inbox is full."""
        if not self._paused:
            self._begin_turn()
        is_over = False
        while self._start < self._stop and not self._paused and not is_over:
            self._give_slice()
            is_over = time.monotonic() > self._until
        self._pause_socket(is_over or self._paused)

    def _give_slice(self) -> None:
        """Give picows the next slice: at most `slice_bytes_max`, and no more than it has room for."""
        free = memoryview(self._parser.get_buffer(-1))
        start = self._start
        size = min(self._limits.slice_bytes_max, len(free), self._stop - start)
        free[:size] = self._buffer[start : start + size]
        self._start += size
        self._parser.buffer_updated(size)

    def _pause_socket(self, paused: bool) -> None:
        """Have the socket not read, or read again. Does nothing if it is so already, or is closing."""
        if self._socket_paused != paused and not self._socket.is_closing():
            self._socket_paused = paused
            (self._socket.pause_reading if paused else self._socket.resume_reading)()

    def _finish(self) -> None:
        """Report the end to picows, once."""
        end, self._end = self._end, None
        if end is not None:
            end()
