"""The connection to the relay or PDS: connect, read, resume, for ever.

An idle upstream is healthy: it is pinged, and only a ping without an answer ends a connection. Whatever
else goes wrong ends in the same place, `run`'s loop, which waits and connects again from the cursor.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from collections.abc import Set as AbstractSet
from datetime import datetime
from functools import partial
from typing import Final, Literal, cast
from urllib.parse import urlsplit

import picows
import structlog
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

from jetstream.budget import TokenBucket
from jetstream.conditions import Conditions
from jetstream.events import Event, Key
from jetstream.firehose.decode import Message
from jetstream.firehose.intake import Intake, Taken
from jetstream.logs import Throttled
from jetstream.metrics import Metrics
from jetstream.retry import backoff_s, parse_retry_after
from jetstream.turns import TURN_S
from jetstream.urls import shown, without_secrets

State = Literal["connected", "idle", "reconnecting"]

MESSAGE_BYTES_MAX: Final = 32 << 20  # well above the protocol's 5 MB, which is judged frame by frame
BUFFER_BYTES_MAX: Final = 8 << 20  # undecoded frames, before the socket is left to the kernel
FRAME_COST: Final = 200  # bytes that a frame costs beside its own: the objects around it
# Frames of one commit of the log: as many as are decoded in one turn of the loop. Too few are worse than too
# many, for those that are left wait for a whole flush.
BATCH_FRAMES_MAX: Final = 500
# What is read from the socket is parsed without a pause: 64 KiB are at most 32,768 frames, ms in a flood.
READ_BYTES_MAX: Final = 64 << 10
HANDSHAKE_TIMEOUT_S: Final = 20.0
PING_AFTER_S: Final = 30.0
PONG_TIMEOUT_S: Final = 20.0
IDLE_AFTER_S: Final = 60.0
NOT_TAKEN_S: Final = 10.0  # frames that come for so long, and none is taken, are told of
UNREADABLE_FRAMES_MAX: Final = 10_000  # in a row: 0.1 s of work, and no firehose

# What a connection may send of what is no frame of a firehose. Control frames: relays ping twice a minute.
CONTROL_PER_S: Final = 100.0
# Tiny messages and parts of messages: the smallest frame of a firehose has 18 bytes, and servers that send
# messages in parts do it by the kilobyte.
TINY_BYTES: Final = 16
TINY_PER_S: Final = 1_000.0
# Text, which no firehose sends. A Jetstream that is taken for one sends some hundred messages a second.
TEXT_PER_S: Final = 100.0
BURST_S: Final = 2.0  # each of these may come at once for so many seconds

# `store(events, seq, read_at, provisional)`
Store = Callable[[list[Event], int | None, float, int | None], Awaitable[None]]
# Which of these keys the log holds.
Holds = Callable[[Collection[Key]], Awaitable[AbstractSet[Key]]]

log = structlog.get_logger(__name__)


class Upstream:
    """One upstream, read for as long as `run` runs.

    `store` is given the events of each batch, the cursor after them, when the oldest of its frames was read
    (in monotonic seconds), and the number above the cursor that is provisional. The next batch is not begun
    before it returns, and the socket is paused when more than `BUFFER_BYTES_MAX` wait. `store` always gives
    the loop a turn: with frames waiting, nothing else here does. `holds` is asked about frames in doubt.
    """

    def __init__(
        self,
        url: str,
        intake: Intake,
        store: Store,
        metrics: Metrics,
        conditions: Conditions,
        holds: Holds,
    ) -> None:
        self.url = shown(url)  # as people may see it
        self._url = url
        self._intake = intake
        self._store = store
        self._metrics = metrics
        self._conditions = conditions
        self._holds = holds
        self._log = Throttled(log)  # upstream, or who is in its place, causes all that is logged here
        self.lag_s: float | None = None  # how old the last message was when it came
        self._attempts = 0  # connections since a frame was taken
        self._connected = False
        self._heard_at = time.monotonic()
        self._untaken_since: float | None = (
            None  # monotonic, of the first frame after the last that was taken
        )
        self._unreadable = 0  # frames without a number that came in a row
        self._too_big_at: int | None = None  # the cursor that met a message which cannot be received
        self._steps = 0  # how many frames beyond that cursor to ask

    @property
    def seq(self) -> int | None:
        """The last `seq` taken and confirmed: the cursor."""
        return self._intake.sequence.last

    @property
    def taken_seq(self) -> int | None:
        """The last `seq` taken, confirmed or not."""
        sequence = self._intake.sequence
        return sequence.last if sequence.provisional is None else sequence.provisional

    @property
    def _cursor(self) -> int | None:
        """What to resume after: the last `seq`, or further on where that has met what cannot be received."""
        return self.seq if self.seq is None or self.seq != self._too_big_at else self.seq + self._steps

    @property
    def state(self) -> State:
        """Whether frames come, none came for a minute, or there is no connection."""
        if not self._connected:
            return "reconnecting"
        return "idle" if time.monotonic() - self._heard_at > IDLE_AFTER_S else "connected"

    async def run(self) -> None:
        """Read upstream until cancelled."""
        while True:
            retry_after = await self._connection()
            delay = max(backoff_s(self._attempts), retry_after or 0.0)
            self._attempts += 1
            self._metrics.reconnects.inc()
            self._log.info("upstream: connecting again", url=self.url, in_s=round(delay, 1), cursor=self.seq)
            await asyncio.sleep(delay)

    async def _connection(self) -> float | None:
        """Hold one connection to its end; return how long upstream asks to wait, if it does."""
        self._intake.sequence.connected()
        cursor = self._cursor
        try:
            transport, listener = await picows.ws_connect(
                partial(_Frames, self._text_came, self._flooded),
                self._url if cursor is None else _with_cursor(self._url, cursor),
                websocket_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                enable_auto_ping=True,
                auto_ping_idle_timeout=PING_AFTER_S,
                auto_ping_reply_timeout=PONG_TIMEOUT_S,
                enable_auto_pong=False,  # pings have a budget
                max_frame_size=MESSAGE_BYTES_MAX,
                logger_name="upstream",
                read_buffer_init_size=256 << 10,
            )
        except picows.WSHandshakeError as error:
            return self._refused(error)
        except Exception as error:  # noqa: BLE001 - whatever the network and picows make of an answer
            self._cannot_connect(without_secrets(str(error)) or type(error).__name__)
            return None
        if not isinstance(listener, _Frames):  # picows has none when the other side hung up at once
            self._cannot_connect("closed before it answered")
            return None
        self._log.info("upstream: connected", url=self.url, cursor=cursor)
        self._connected = True
        self._heard_at = time.monotonic()
        try:
            await self._read(listener)
        finally:
            self._connected = False
            transport.disconnect(graceful=False)
        await self._ended(transport, listener)
        return None

    def _refused(self, error: picows.WSHandshakeError) -> float | None:
        status = error.response.status if error.response else None
        self._log.warning(
            "upstream: refused",
            url=self.url,
            status=status,
            error=without_secrets(str(error)),
            **_hint(status),
        )
        return parse_retry_after(error.response.headers.get("Retry-After") if error.response else None)

    def _cannot_connect(self, problem: str) -> None:
        self._log.warning("upstream: cannot connect", url=self.url, error=problem)

    async def _read(self, listener: _Frames) -> None:
        while frames := await listener.wait(BATCH_FRAMES_MAX):
            self._heard_at = time.monotonic()
            taken = self._intake.take(frames, self._heard_at + TURN_S)
            if taken.asks:
                self._intake.settle(taken, await self._holds(taken.asks))
            listener.drop(taken.frames)
            self._count(taken)
            over = self._must_reconnect(taken)
            await self._store(taken.events, taken.seq, listener.read_at, taken.provisional)
            if over:
                return

    def _count(self, taken: Taken) -> None:
        self._metrics.count_frames(taken, self._intake.sequence)
        lag_s = _age_s(taken.time)
        self.lag_s = self.lag_s if lag_s is None else lag_s
        if taken.admitted:
            self._attempts = 0
            self._untaken_since = None
            self._conditions.end("frames_not_taken")
            self._conditions.end("not_a_firehose")
        else:
            self._none_taken(taken)
        self._unreadable = self._unreadable + taken.frames if taken.without_seq == taken.frames else 0

    def _none_taken(self, taken: Taken) -> None:
        if self._untaken_since is None:
            self._untaken_since = self._heard_at
        if self._heard_at - self._untaken_since < NOT_TAKEN_S:
            return
        why = ", ".join(sorted(taken.drops)) or ", ".join(sorted(taken.types))
        self._conditions.begin(
            "frames_not_taken",
            f"frames come from upstream; none was taken for {NOT_TAKEN_S:g} s; dropped for: {why}",
        )

    def _must_reconnect(self, taken: Taken) -> bool:
        """Log what upstream says of itself; tell whether this connection is over."""
        for notice in taken.notices:
            if notice.type == "error":
                self._error(notice)
                return True
            self._log.warning("upstream: says", type=notice.type, name=notice.name, message=notice.text)
        if self._unreadable > UNREADABLE_FRAMES_MAX:
            self._flooded("unreadable")
            return True
        return False

    def _error(self, notice: Message) -> None:
        self._log.warning("upstream: ends with an error", name=notice.name, message=notice.text)
        if notice.name == "FutureCursor":
            self._log.warning("upstream: cursor is in its future, beginning at the live end", cursor=self.seq)
            self._intake.sequence.restart()

    def _text_came(self) -> None:
        self._metrics.drops.labels("frame_text").inc()
        self._log.warning(
            "upstream: sends text, which no firehose does",
            url=self.url,
            hint="is it a Jetstream? --upstream takes a relay or a PDS",
        )
        self._conditions.begin(
            "not_a_firehose",
            f"{self.url} sends text messages, as a Jetstream does: --upstream takes a relay or a PDS",
        )

    def _flooded(self, kind: str) -> None:
        self._metrics.floods.labels(kind).inc()
        self._log.warning("upstream: floods, connection given up", url=self.url, kind=kind)

    async def _ended(self, transport: WSTransport, listener: _Frames) -> None:
        try:
            await transport.wait_disconnected()
        except Exception as error:  # noqa: BLE001 - picows hands over whatever ended the connection
            listener.too_big = listener.too_big or error.args[:1] == (WSCloseCode.MESSAGE_TOO_BIG,)
            self._log.warning("upstream: connection failed", error=without_secrets(str(error)))
        else:
            hint = {} if listener.any_came else {"hint": "no frame came: is this the URL of a firehose?"}
            self._log.info("upstream: connection closed", reason=listener.reason, **hint)
        if listener.too_big:
            self._step_over_too_big()

    def _step_over_too_big(self) -> None:
        """Ask for one frame further each time from the second that the same cursor has failed.

        The last `seq` stays: a relay that sends a cursor's own frame again would have it taken for a repeat.
        """
        self._metrics.drops.labels("frame_size").inc()
        if self.seq is None or self.seq != self._too_big_at:
            self._too_big_at, self._steps = self.seq, 0
        else:
            self._steps += 1
            self._log.warning("upstream: stepping over a frame of more than 32 MiB", cursor=self._cursor)


class _Frames(WSListener):
    """Collects the binary messages of one connection, whole, until they are taken.

    Calls `on_text` for each text message, and `on_flood` with what there was too much of before it cuts the
    connection.
    """

    def __init__(self, on_text: Callable[[], None], on_flood: Callable[[str], None]) -> None:
        self._on_text = on_text
        self._on_flood = on_flood
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
        self._full = False  # more than BUFFER_BYTES_MAX wait
        self._turn_over = False  # enough was parsed in this turn of the loop
        self._paused = False  # the socket is not read, for one of these reasons
        self._budgets = {
            kind: TokenBucket(per_s, per_s * BURST_S, time.monotonic())
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
            self._full = False
            self._pause()

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        socket = transport.underlying_transport
        socket.set_protocol(_Slices(cast(asyncio.BufferedProtocol, socket.get_protocol()), self.on_turn_over))

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
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
        self._over = True
        self._more.set()

    def on_turn_over(self, is_over: bool) -> None:
        """Leave the socket alone for the rest of a turn of the loop, and read on in the next."""
        self._turn_over = is_over
        self._pause()

    def _may(self, kind: str) -> bool:
        """Tell whether one more of a kind is within its budget; else cut the connection."""
        if self._budgets[kind].spend(time.monotonic()):
            return True
        self._cut = True
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
            self.too_big = self._cut = True
            transport.send_close(WSCloseCode.MESSAGE_TOO_BIG)
            transport.disconnect()
        elif frame.fin:
            self._append(bytes(self._parts))
            self._parts = None

    def _append(self, payload: bytes) -> None:
        self._frames.append(payload)
        self._read_at.append(time.monotonic())
        self._cost += len(payload) + FRAME_COST
        self.any_came = True
        self._more.set()
        if self._cost > BUFFER_BYTES_MAX and not self._full:
            self._full = True
            self._pause()

    def _pause(self) -> None:
        paused = self._full or self._turn_over
        if self._transport is None or self._over or self._paused == paused:
            return
        socket = self._transport.underlying_transport
        if not socket.is_closing():
            self._paused = paused
            (socket.pause_reading if paused else socket.resume_reading)()


class _Slices(asyncio.BufferedProtocol):
    """Stands between the socket and picows, which parses all it is given in one go.

    Bounds what it is given at once, and calls `on_turn_over` when a turn of the loop has parsed for `TURN_S`,
    and again when the next has begun: libuv reads a socket up to 32 times in one turn.
    """

    def __init__(self, parser: asyncio.BufferedProtocol, on_turn_over: Callable[[bool], None]) -> None:
        self._parser = parser
        self._on_turn_over = on_turn_over
        self._until = 0.0  # monotonic: when this turn is over; 0 while nothing was read in it
        self.connection_lost = parser.connection_lost  # type: ignore[method-assign]
        self.eof_received = parser.eof_received  # type: ignore[method-assign]
        self.pause_writing = parser.pause_writing  # type: ignore[method-assign]
        self.resume_writing = parser.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._parser.get_buffer(sizehint))[:READ_BYTES_MAX]

    def buffer_updated(self, nbytes: int) -> None:
        if not self._until:
            self._until = time.monotonic() + TURN_S
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._parser.buffer_updated(nbytes)
        if time.monotonic() > self._until:
            self._on_turn_over(True)

    def _next_turn(self) -> None:
        if time.monotonic() > self._until:
            self._on_turn_over(False)
        self._until = 0.0


_HINTS: Final = {
    200: "this is a web page: the path of a firehose is /xrpc/com.atproto.sync.subscribeRepos",
    400: "the server does not know this request: is the URL that of a firehose?",
    401: "the server asks for credentials",
    403: "the server does not let this address in",
    404: "there is no firehose at this path, which usually is /xrpc/com.atproto.sync.subscribeRepos",
    426: "the server wants another protocol than WebSocket 13",
    429: "too many connections: the server asks to wait",
    502: "the server behind a proxy is away",
    503: "the server is away, or full",
}


def _hint(status: int | None) -> dict[str, str]:
    """Return what an answer other than a WebSocket means, for the operator."""
    if status is not None and 300 <= status < 400:
        return {"hint": "the server has moved to where it cannot be followed: give the new URL"}
    return {"hint": _HINTS[status]} if status in _HINTS else {}


def origin(url: str) -> str:
    """Return host:port of an upstream: whose numbers a stored cursor is made of."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    return f"{parts.hostname}:{port}"


def _with_cursor(url: str, cursor: int) -> str:
    return f"{url}{'&' if urlsplit(url).query else '?'}cursor={cursor}"


def _age_s(stamp: str) -> float | None:
    """Return how many seconds a message's time lies back; None for one without a zone, or no time."""
    try:
        sent = datetime.fromisoformat(stamp)
    except ValueError:
        return None
    return None if sent.tzinfo is None else time.time() - sent.timestamp()
