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
from typing import Final
from urllib.parse import urlsplit

import picows
import structlog
from picows import WSCloseCode, WSTransport

from jetstream.conditions import Conditions
from jetstream.logging_setup import Throttled
from jetstream.metrics import UpstreamMetrics
from jetstream.retry import backoff_s, parse_retry_after
from jetstream.scheduling import TURN_S
from jetstream.status import UpstreamState, UpstreamStatus
from jetstream.upstream.decode import Message
from jetstream.upstream.history import History, Kept
from jetstream.upstream.inbox import MESSAGE_BYTES_MAX, SLICE_BYTES_MAX, Inbox
from jetstream.upstream.intake import Intake, Taken
from jetstream.urls import shown, without_secrets

# Frames of one commit of the log: as many as are decoded in one turn of the loop. Too few are worse than too
# many, for those that are left wait for a whole flush.
BATCH_FRAMES_MAX: Final = 500
HANDSHAKE_TIMEOUT_S: Final = 20.0
PING_AFTER_S: Final = 30.0
PONG_TIMEOUT_S: Final = 20.0
IDLE_AFTER_S: Final = 60.0
NOT_TAKEN_S: Final = 10.0  # frames that come for so long, and none is taken, are told of
UNREADABLE_FRAMES_MAX: Final = 10_000  # in a row: 0.1 s of work, and no firehose

Store = Callable[[Taken, float], Awaitable[None]]

logger = structlog.get_logger(__name__)


class Upstream:
    """One upstream, read for as long as `run` runs.

    `store` is given what each batch came to, and when the oldest of its frames was read (in monotonic
    seconds). The next batch is not begun before it returns. It always gives the loop a turn: with frames
    waiting, nothing else here does. `kept` is the log, which is asked about frames in doubt.
    """

    def __init__(
        self,
        url: str,
        intake: Intake,
        store: Store,
        metrics: UpstreamMetrics,
        conditions: Conditions,
        kept: Kept,
    ) -> None:
        self.url = shown(url)  # as people may see it
        self._url = url
        self._intake = intake
        self._store = store
        self._metrics = metrics
        self._conditions = conditions
        self._kept = kept
        self._history = History(kept, intake)
        self._log = Throttled(logger)  # upstream, or who is in its place, causes all that is logged here
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
    def state(self) -> UpstreamState:
        """Whether frames come, none came for a minute, or there is no connection."""
        if not self._connected:
            return "reconnecting"
        return "idle" if time.monotonic() - self._heard_at > IDLE_AFTER_S else "connected"

    def status(self) -> UpstreamStatus:
        """Return where the server stands with this upstream."""
        return UpstreamStatus(origin(self._url), self.url, self.state, self.seq, self.taken_seq, self.lag_s)

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
            transport, inbox = await picows.ws_connect(
                partial(Inbox, self._text_came, self._flooded),
                self._url if cursor is None else _with_cursor(self._url, cursor),
                websocket_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                enable_auto_ping=True,
                auto_ping_idle_timeout=PING_AFTER_S,
                auto_ping_reply_timeout=PONG_TIMEOUT_S,
                enable_auto_pong=False,  # pings have a budget
                max_frame_size=MESSAGE_BYTES_MAX,
                logger_name="upstream",
                read_buffer_init_size=SLICE_BYTES_MAX,
            )
        except picows.WSHandshakeError as error:
            return self._refused(error)
        except Exception as error:  # noqa: BLE001 - whatever the network and picows make of an answer
            self._cannot_connect(without_secrets(str(error)) or type(error).__name__)
            return None
        if not isinstance(inbox, Inbox):  # picows has none when the other side hung up at once
            self._cannot_connect("closed before it answered")
            return None
        self._log.info("upstream: connected", url=self.url, cursor=cursor)
        self._connected = True
        self._heard_at = time.monotonic()
        try:
            await self._read(inbox)
        finally:
            self._connected = False
            inbox.close()
        await self._ended(transport, inbox)
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

    async def _read(self, inbox: Inbox) -> None:
        while frames := await inbox.wait(BATCH_FRAMES_MAX):
            await self._history.look()
            self._heard_at = time.monotonic()
            taken = self._intake.take(frames, self._heard_at + TURN_S)
            if taken.asks:
                self._intake.settle(taken, await self._kept.holds(taken.asks))
            inbox.drop(taken.frames)
            self._count(taken)
            over = self._must_reconnect(taken)
            await self._store(taken, inbox.read_at)
            if over:
                return

    def _count(self, taken: Taken) -> None:
        self._metrics.count_frames(taken.types, taken.drops, taken.too_big)
        sequence = self._intake.sequence
        if sequence.gaps or sequence.jumps or sequence.restarts:
            self._metrics.count_sequence(sequence.gaps, sequence.jumps, sequence.restarts)
            sequence.gaps = sequence.jumps = sequence.restarts = 0
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
        self._metrics.drops["frame_text"].inc()
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
        self._metrics.floods[kind].inc()
        self._log.warning("upstream: floods, connection given up", url=self.url, kind=kind)

    async def _ended(self, transport: WSTransport, inbox: Inbox) -> None:
        try:
            await transport.wait_disconnected()
        except Exception as error:  # noqa: BLE001 - picows hands over whatever ended the connection
            inbox.too_big = inbox.too_big or error.args[:1] == (WSCloseCode.MESSAGE_TOO_BIG,)
            self._log.warning("upstream: connection failed", error=without_secrets(str(error)))
        else:
            hint = {} if inbox.any_came else {"hint": "no frame came: is this the URL of a firehose?"}
            self._log.info("upstream: connection closed", reason=inbox.reason, **hint)
        if inbox.too_big:
            self._step_over_too_big()

    def _step_over_too_big(self) -> None:
        """Ask for one frame further each time from the second that the same cursor has failed.

        The last `seq` stays: a relay that sends a cursor's own frame again would have it taken for a repeat.
        """
        self._metrics.drops["frame_size"].inc()
        if self.seq is None or self.seq != self._too_big_at:
            self._too_big_at, self._steps = self.seq, 0
        else:
            self._steps += 1
            self._log.warning("upstream: stepping over a frame of more than 32 MiB", cursor=self._cursor)


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
