"""A subscriber: a filter, an encoding, and a position in the log."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from jetstream.delivery.encoding import Encoding
from jetstream.model.filter import EVERYTHING, Filter

if TYPE_CHECKING:
    import asyncio

    from jetstream.delivery.index import Group
    from jetstream.delivery.lanes import Lane


class Close(NamedTuple):
    """Why a connection ends: the code and text that go over the wire, and the label for the metrics."""

    code: int
    label: str
    text: str


class Sink(Protocol):
    """Where a subscriber's bytes go: a socket, with a bounded buffer before it."""

    written: int
    """How many bytes were given to `write`, ever; whoever calls it counts."""

    @property
    def full(self) -> bool:
        """Whether the buffer is over its limit and has not drained yet."""

    @property
    def buffered(self) -> int:
        """How many bytes wait in the buffer."""

    @property
    def closing(self) -> bool:
        """Whether the connection is to end: nothing more is sent."""

    def write(self, data: bytes, /) -> None:
        """Append whole frames to the buffer, unless it is closing.

        Raises RuntimeError when the connection is gone.
        """

    async def writable(self) -> None:
        """Return once the sink is not full. Raises ConnectionError when the connection is gone."""

    def lower_limit(self, lowered: bool) -> None:
        """Lower the buffer's limit for a while, or set it back."""

    def close(self, close: Close) -> None:
        """End the connection with a close frame, at once and only once."""


@dataclass(frozen=True, slots=True)
class SubscriberOptions:
    """What a subscriber asked for, and may change as it goes."""

    wanted: Filter = EVERYTHING
    message_bytes_max: int = 0  # 0: no limit


class Subscriber:
    """One connection's place in the log, kept by the hub.

    Every event below `position` has been judged by this subscriber's options; while it is a member of a
    group, the lane's position stands for its own (see `Hub`).
    """

    __slots__ = (
        "drained",
        "encoding",
        "feeder",
        "group",
        "lane",
        "options",
        "position",
        "progress_at",
        "sink",
    )

    def __init__(
        self,
        sink: Sink,
        encoding: Encoding,
        options: SubscriberOptions,
        lane: Lane,
        position: int,
        now: float,
    ) -> None:
        self.sink = sink
        self.encoding = encoding
        self.options = options
        self.lane = lane
        self.position = position
        self.group: Group | None = None
        self.feeder: asyncio.Task[None] | None = None
        self.drained = 0  # bytes that had left the buffer when it was last looked at
        self.progress_at = now

    @property
    def closed(self) -> bool:
        """Whether nothing more is sent."""
        return self.sink.closing

    def write(self, data: bytes) -> None:
        """Send whole frames; none to a connection that is gone."""
        sink = self.sink
        sink.written += len(data)
        with suppress(RuntimeError):  # gone, and about to be removed
            sink.write(data)

    def close(self, close: Close) -> None:
        """End the connection; nothing is sent after this."""
        self.sink.close(close)

    def stalled_s(self, buffered: int, now: float) -> float:
        """Return for how long the socket has taken nothing although `buffered` bytes wait for it."""
        drained = self.sink.written - buffered
        if buffered == 0 or drained > self.drained:
            self.drained = drained
            self.progress_at = now
        return now - self.progress_at
