"""What every source has: a connection that is made again and again, and how long there has been none."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from jetstream.clock import unix_us
from jetstream.conditions import UpstreamConditions
from jetstream.limits import UpstreamLimits
from jetstream.logging_setup import Throttled
from jetstream.metrics import UpstreamMetrics
from jetstream.retry import backoff_s
from jetstream.status import UpstreamState, UpstreamStatus
from jetstream.upstream.connection import NO_CONNECTION, ConnectError, response_fields
from jetstream.upstream.inbox import Inbox
from jetstream.upstreams import Upstream
from jetstream.urls import shown


class Link(NamedTuple):
    """What a source has of what all sources share (`sources`)."""

    logger: Throttled
    turn: Callable[[], Awaitable[None]]  # returns when the source may connect
    changed: Callable[[], None]  # called when a connection has begun, and when it has ended
    is_awaited: Callable[[], bool] = lambda: True  # whether a subscriber waits for what comes
    now_us: Callable[[], int] = unix_us  # unix microseconds; should not follow short steps of the clock


class Reconnecting(ABC):
    """An upstream that is read: whether it is there, and when to connect to it again."""

    def __init__(
        self,
        upstream: Upstream,
        link: Link,
        metrics: UpstreamMetrics,
        conditions: UpstreamConditions,
        limits: UpstreamLimits,
    ) -> None:
        # Names this source in the log's cursors.
        self.name = upstream.name
        self.kind = upstream.kind
        # The URL without user, password and query, for people to see.
        self.url = shown(upstream.url)
        # How old the last message with a time was when it arrived, in seconds; None before the first.
        self.lag_s: float | None = None
        # Why the last attempt to connect failed; empty before the first, and from a connection on.
        self.problem = ""
        self._url = upstream.url
        self._link = link
        self._metrics = metrics
        self._conditions = conditions
        self._limits = limits
        self._logger = link.logger
        # Connections, and attempts at one, since something of use came.
        self._attempts = 0
        # When the connection was opened, in monotonic seconds; None while there is none.
        self._connected_at: float | None = None
        # When the connection was opened or frames came last, in monotonic seconds.
        self._heard_at = time.monotonic()
        # When frames came last, in monotonic seconds, None before the first; how many have come.
        self._frame_at: float | None = None
        self._frames = 0
        # When a connection that was of use ended last (see `gone_s`), or when this was made.
        self._useful_at = time.monotonic()

    @property
    @abstractmethod
    def seq(self) -> int | None:
        """The cursor: what is stored of this upstream is up to here."""

    @property
    def taken_seq(self) -> int | None:
        """The last number that was taken; it may be provisional."""
        return self.seq

    @abstractmethod
    async def _connect_and_read(self) -> float | None:
        """Hold one connection to its end; return how many seconds upstream asks to wait, if it does."""

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection."""
        return self._connected_at is not None

    @property
    def gone_s(self) -> float:
        """For how many seconds there has been no connection that is of use; 0 while there is one.

        It is of use once a frame has come, or after `settle_s`: a proxy may accept connections, and close
        them at once, for a relay that is gone.
        """
        now, at = time.monotonic(), self._connected_at
        if at is not None and (self._heard_at > at or now - at >= self._limits.settle_s):
            return 0.0
        return now - self._useful_at

    @property
    def state(self) -> UpstreamState:
        """Whether frames come, none has come for `idle_after_s`, or there is no connection."""
        if not self.is_connected:
            return "reconnecting"
        is_idle = time.monotonic() - self._heard_at > self._limits.idle_after_s
        return "idle" if is_idle else "connected"

    def status(self) -> UpstreamStatus:
        """Return where the server stands with this upstream."""
        return UpstreamStatus(
            self.name,
            self.url,
            self.state,
            self.seq,
            self.taken_seq,
            self.lag_s,
            self.last_frame_age_s,
            self._frames,
        )

    @property
    def last_frame_age_s(self) -> float | None:
        """Seconds since frames came; None: none has come yet."""
        return None if self._frame_at is None else time.monotonic() - self._frame_at

    def take_over(self, before: Reconnecting) -> None:
        """Go on counting where another source of the same upstream has ended. To be called before `run`."""
        self.lag_s, self._frames, self._frame_at = before.lag_s, before._frames, before._frame_at
        self._useful_at = before._useful_at

    def count_fault(self) -> None:
        """Count an error of the server itself, which has ended `run`."""
        self._metrics.faults.inc()

    async def run(self) -> None:
        """Read upstream until cancelled."""
        limits = self._limits
        while True:
            await self._link.turn()
            retry_after_s = await self._connect_and_read() or 0.0
            pause_s = max(
                retry_after_s, backoff_s(self._attempts, limits.backoff_first_s, limits.backoff_max_s)
            )
            self._attempts += 1
            self._metrics.reconnects.inc()
            in_s = round(pause_s, 1)
            self._logger.info("upstream: connecting again", url=self.url, in_s=in_s, cursor=self.seq)
            await asyncio.sleep(pause_s)

    def _log_refusal(self, error: ConnectError, hints: Mapping[int, str] = MappingProxyType({})) -> None:
        """Log why there is no connection. `hints` are by the status of the response, before those of all."""
        self.problem = str(error)
        event = "upstream: cannot connect" if error.status is None else "upstream: refused"
        fields = response_fields(error.status)
        if error.status is not None and error.status in hints:
            fields |= {"hint": hints[error.status]}
        if not self._attempts:
            fields = {"hint": NO_CONNECTION, **fields}
        self._logger.warning(event, url=self.url, error=str(error), **fields)

    def _note_begin(self) -> None:
        self.problem = ""
        self._connected_at = self._heard_at = time.monotonic()
        self._link.changed()

    def _note_end(self) -> None:
        if not self.gone_s:
            self._useful_at = time.monotonic()
        self._connected_at = None
        self._link.changed()

    def _log_end(self, error: str | None, inbox: Inbox, hint: str) -> None:
        """Log the end of a connection. `hint` is for one on which nothing came."""
        if error:
            self._logger.warning("upstream: connection failed", error=error)
        else:
            more = {} if inbox.any_came else {"hint": hint}
            reason = inbox.reason or "no close frame came"
            self._logger.info("upstream: connection closed", reason=reason, **more)

    def _on_flood(self, kind: str) -> None:
        self._metrics.floods[kind].inc()
        self._logger.warning("upstream: flood, connection closed", url=self.url, kind=kind)
