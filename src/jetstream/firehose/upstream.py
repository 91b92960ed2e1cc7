"""The connection to the relay or PDS: connect, read, resume, for ever.

An idle upstream is healthy: it is pinged, and only a ping without an answer ends a connection. Whatever
else goes wrong ends in the same place, `run`'s loop, which waits and connects again from the cursor.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from typing import Final, Literal
from urllib.parse import urlsplit

import picows
import structlog
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

from jetstream.events import Event
from jetstream.firehose.decode import Message
from jetstream.firehose.intake import Intake, Taken
from jetstream.metrics import Metrics
from jetstream.retry import backoff_s, parse_retry_after
from jetstream.turns import Portion

State = Literal["connected", "idle", "reconnecting"]

MESSAGE_BYTES_MAX: Final = 32 << 20  # well above the protocol's 5 MB, which is judged frame by frame
BUFFER_BYTES_MAX: Final = 8 << 20  # undecoded frames, before the socket is left to the kernel
# Frames of one commit of the log: as many as can be decoded and stored in one turn of the loop. Too few are
# worse than too many, for those that are left wait for a whole flush.
BATCH_FRAMES: Final = 200
BATCH_FRAMES_MIN: Final = 16
BATCH_FRAMES_MAX: Final = 500
HANDSHAKE_TIMEOUT_S: Final = 20.0
PING_AFTER_S: Final = 30.0
PONG_TIMEOUT_S: Final = 20.0
IDLE_AFTER_S: Final = 60.0

Store = Callable[[list[Event], int | None, float], Awaitable[None]]

log = structlog.get_logger(__name__)


class Upstream:
    """One upstream, read for as long as `run` runs.

    `store` is given the events of each batch, the cursor after them, and when the oldest of its frames was
    read, in monotonic seconds. The next batch is not begun before it returns, and the socket is paused when
    more than `BUFFER_BYTES_MAX` wait. `store` always gives the loop a turn: with frames waiting, nothing else
    here does.
    """

    def __init__(self, url: str, intake: Intake, store: Store, metrics: Metrics) -> None:
        self.url = url
        self._intake = intake
        self._store = store
        self._metrics = metrics
        self.lag_s: float | None = None  # how old the last message was when it came
        self._attempts = 0  # since `seq` last moved
        self._connected = False
        self._heard_at = time.monotonic()
        self._too_big_at: int | None = None  # the cursor that met a message which cannot be received
        self._steps = 0  # how many frames beyond that cursor to ask

    @property
    def seq(self) -> int | None:
        """The last `seq` taken."""
        return self._intake.sequence.last

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
            log.info("upstream: connecting again", url=self.url, in_s=round(delay, 1), cursor=self.seq)
            await asyncio.sleep(delay)

    async def _connection(self) -> float | None:
        """Hold one connection to its end; return how long upstream asks to wait, if it does."""
        self._intake.sequence.connected()
        cursor = self._cursor
        url = self.url if cursor is None else _with_cursor(self.url, cursor)
        try:
            transport, listener = await picows.ws_connect(
                partial(_Frames, self._metrics.drops.labels("frame_text").inc),
                url,
                websocket_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                enable_auto_ping=True,
                auto_ping_idle_timeout=PING_AFTER_S,
                auto_ping_reply_timeout=PONG_TIMEOUT_S,
                max_frame_size=MESSAGE_BYTES_MAX,
                logger_name="upstream",
                read_buffer_init_size=256 << 10,
            )
        except picows.WSHandshakeError as error:
            status = error.response.status if error.response else None
            log.warning("upstream: refused", url=url, status=status, error=str(error))
            return parse_retry_after(error.response.headers.get("Retry-After") if error.response else None)
        except Exception as error:  # noqa: BLE001 - whatever the network and picows make of an answer
            log.warning("upstream: cannot connect", url=url, error=str(error) or type(error).__name__)
            return None
        if not isinstance(listener, _Frames):  # picows has none when the other side hung up at once
            log.warning("upstream: cannot connect", url=url, error="closed before it answered")
            return None
        log.info("upstream: connected", url=url)
        self._connected = True
        self._heard_at = time.monotonic()
        try:
            await self._read(listener)
        finally:
            self._connected = False
            transport.disconnect(graceful=False)
        await self._ended(transport, listener)
        return None

    async def _read(self, listener: _Frames) -> None:
        portion = Portion(BATCH_FRAMES, BATCH_FRAMES_MIN, BATCH_FRAMES_MAX)
        while frames := await listener.take(portion.size):
            self._heard_at = time.monotonic()
            seq = self.seq
            taken = self._intake.take(frames)
            if len(frames) == portion.size:
                portion.fit(time.monotonic() - self._heard_at)
            if self.seq != seq:
                self._attempts = 0
            self._count(taken)
            over = self._must_reconnect(taken.notices)
            await self._store(taken.events, taken.seq, listener.read_at)
            if over:
                return

    def _count(self, taken: Taken) -> None:
        self._metrics.count_frames(taken, self._intake.sequence)
        lag_s = _age_s(taken.time)
        self.lag_s = self.lag_s if lag_s is None else lag_s

    def _must_reconnect(self, notices: list[Message]) -> bool:
        """Log what upstream says of itself; tell whether this connection is over."""
        over = False
        for notice in notices:
            log.warning("upstream: says", type=notice.type, name=notice.name, message=notice.text)
            over = over or notice.type == "error"
            if over and notice.name == "FutureCursor":
                log.warning("upstream: cursor is in its future, beginning at the live end", cursor=self.seq)
                self._intake.sequence.begin_anew()
        if self._intake.sequence.lost:
            log.warning("upstream: sends only old numbers, connecting again", cursor=self.seq)
            return True
        return over

    async def _ended(self, transport: WSTransport, listener: _Frames) -> None:
        try:
            await transport.wait_disconnected()
        except Exception as error:  # noqa: BLE001 - picows hands over whatever ended the connection
            listener.too_big = listener.too_big or error.args[:1] == (WSCloseCode.MESSAGE_TOO_BIG,)
            log.warning("upstream: connection failed", error=str(error))
        else:
            log.info("upstream: connection closed", reason=listener.reason)
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
            log.warning("upstream: stepping over a frame of more than 32 MiB", cursor=self._cursor)


class _Frames(WSListener):
    """Collects the binary messages of one connection, whole, until they are taken."""

    def __init__(self, count_text: Callable[[], None]) -> None:
        self._count_text = count_text
        self.too_big = False
        self.reason = ""
        self.read_at = 0.0  # monotonic seconds, of the first frame that was taken last
        self._frames: list[bytes] = []
        self._read_at: list[float] = []  # of each frame
        self._bytes = 0
        self._parts: list[bytes] | None = None  # of a binary message that is not whole yet
        self._parts_bytes = 0
        self._more = asyncio.Event()
        self._over = False
        self._transport: WSTransport | None = None
        self._paused = False

    async def take(self, count_max: int) -> list[bytes]:
        """Wait for frames and return at most `count_max`; none when the connection is over."""
        if not self._frames and not self._over:
            self._more.clear()
            await self._more.wait()
        if not self._frames:
            return []
        frames = self._frames[:count_max]
        self.read_at = self._read_at[0]
        del self._frames[:count_max], self._read_at[:count_max]
        self._bytes -= sum(map(len, frames))
        if self._paused and self._bytes < BUFFER_BYTES_MAX // 2:
            self._pause(False)
        return frames

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        if kind == WSMsgType.BINARY and frame.fin:
            self._append(frame.get_payload_as_bytes())
        elif kind in (WSMsgType.BINARY, WSMsgType.CONTINUATION):
            self._assemble(transport, frame)
        elif kind == WSMsgType.TEXT:
            self._parts = None
            self._count_text()
        elif kind == WSMsgType.CLOSE:
            self.reason = f"{frame.get_close_code()} {frame.get_close_reason() or ''}".strip()
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()

    def on_ws_disconnected(self, _transport: WSTransport) -> None:
        self._over = True
        self._more.set()

    def _assemble(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.BINARY:
            self._parts, self._parts_bytes = [], 0
        if self._parts is None:
            return  # the rest of a text message
        payload = frame.get_payload_as_bytes()
        self._parts.append(payload)
        self._parts_bytes += len(payload)
        if self._parts_bytes > MESSAGE_BYTES_MAX:
            self.too_big = True
            transport.send_close(WSCloseCode.MESSAGE_TOO_BIG)
            transport.disconnect()
        elif frame.fin:
            self._append(b"".join(self._parts))
            self._parts = None

    def _append(self, payload: bytes) -> None:
        self._frames.append(payload)
        self._read_at.append(time.monotonic())
        self._bytes += len(payload)
        self._more.set()
        if self._bytes > BUFFER_BYTES_MAX and not self._paused:
            self._pause(True)

    def _pause(self, paused: bool) -> None:
        self._paused = paused
        if self._transport is None or self._over:
            return
        socket = self._transport.underlying_transport
        if paused:
            socket.pause_reading()
        else:
            socket.resume_reading()


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
