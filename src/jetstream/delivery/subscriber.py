"""A subscriber: a sink, an encoding, options, and a position in the log. A group: subscribers that are alike.

These are values that other modules change; each attribute says who may. Nothing here waits or reads a clock.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import NamedTuple, Protocol

from jetstream.delivery.framing import Framing
from jetstream.delivery.heartbeat import Heartbeat
from jetstream.delivery.renderers import Renderer
from jetstream.model.content import Content
from jetstream.model.filter import EVERYTHING, Filter


class Encoding(NamedTuple):
    """How events become bytes on one kind of connection.

        event ──▶ renderer ──▶ JSON ──▶ framing ──▶ bytes on the transport

    The two know nothing of each other: each wire works on each transport. What a subscriber may choose is
    decided where its request is read (`web.dialect`). Subscribers with equal encodings share what is
    rendered. So there is one object of each renderer and framing.
    """

    renderer: Renderer
    framing: Framing


class Close(NamedTuple):
    """Why a connection ends: the code and text that the client is sent, and the label for the metrics."""

    code: int  # a close code of WebSocket (RFC 6455, section 7.4), on every transport
    label: str  # one of few, as `slow` or `done`
    text: str  # what was wrong, and what the client should do; the cursor is added to it


class Sink(Protocol):
    """Where a subscriber's bytes go: a socket with a bounded buffer.

    `web.sink` and `web.stream_sink` have the implementations. Used by the event loop's thread only.
    """

    written: int
    """How many bytes of events have been passed to `write`. The caller of `write` adds them."""

    controls: int
    """The same of everything else, such as pings."""

    @property
    def full(self) -> bool:
        """Whether the buffer has exceeded its limit and has not drained since."""

    @property
    def buffered(self) -> int:
        """How many bytes wait in the buffer."""

    @property
    def closing(self) -> bool:
        """Whether the connection is about to end: nothing more is sent."""

    def write(self, data: bytes, /) -> None:
        """Append whole frames to the buffer, unless the connection is closing.

        Raises RuntimeError when the connection is gone.
        """

    async def writable(self) -> None:
        """Return once the sink is not full. Raises ConnectionError when the connection is gone."""

    async def drained(self) -> None:
        """Return once nothing waits in the buffer; it is called before `close`. Raises as `writable` does."""

    def lower_limit(self, lowered: bool) -> None:
        """Lower the buffer's limit for a while, or set it back."""

    def gather(self) -> None:
        """Note that bytes wait. If they wait since the last call, the writes that follow are kept as one."""

    def close(self, close: Close) -> None:
        """Close the connection and tell the client why; later calls do nothing."""


class SubscriberOptions(NamedTuple):
    """What a subscriber asked for, and may change while it is connected."""

    wanted: Filter = EVERYTHING  # kinds, collections, repos
    message_bytes_max: int = 0  # longer messages, as JSON, are left out; 0 is no limit
    content: Content | None = None  # what the record of a commit must have; None: anything


class Bounds:
    """Where a subscription ends by itself. Its events are those below `until`, and at most `limit`.

    None is without a bound. One that asks for neither has no `Bounds`.
    """

    __slots__ = ("left", "until")

    def __init__(self, until: int | None, limit: int | None) -> None:
        # A position, in unix microseconds; lowered by `Delivery` when no event is to come before it.
        self.until = sys.maxsize if until is None else until
        # How many more events may be sent; counted by the feeder.
        self.left = sys.maxsize if limit is None else limit


class Replay(Protocol):
    """What a subscriber may be sent on its way to the tip. It is shared with others of the same address."""

    def charge(self, size: int) -> float:
        """Count bytes of events that were sent. Return for how many seconds to send nothing."""

    def end(self) -> None:
        """End it: the subscriber is at the tip, or has gone."""


class Group:
    """Subscribers at the tip of one lane that receive the same bytes: equal encoding, equal options."""

    __slots__ = (
        "costly",
        "dids_only",
        "encoding",
        "flushing",
        "members",
        "message_bytes_max",
        "messages",
        "options",
        "wire",
        "writing",
    )

    def __init__(self, encoding: Encoding, options: SubscriberOptions) -> None:
        self.encoding = encoding
        self.options = options
        # Parts of these, here because they are read for each message: what is behind several references is
        # rarely in the processor's cache.
        self.wire = encoding.renderer.name
        self.costly = encoding.framing.costly
        self.message_bytes_max = options.message_bytes_max
        self.dids_only = options.wanted.dids_only
        # A set, in the order in which they joined; changed by `Groups`.
        self.members: dict[Subscriber, None] = {}
        # Whether the flush in progress has bytes for this group and has not written them to all members. Set
        # by the publisher.
        self.flushing = False
        # Messages of all flushes, and of the one that is written to the members now. By the publisher.
        self.messages = 0
        self.writing = 0


class Subscriber:
    """One connection's place in the log."""

    __slots__ = (
        "bounds",
        "drained",
        "encoding",
        "fell_behind",
        "group",
        "heartbeat",
        "live",
        "messages",
        "options",
        "position",
        "progress_at",
        "replay",
        "sink",
    )

    def __init__(
        self, sink: Sink, encoding: Encoding, options: SubscriberOptions, position: int, now: float
    ) -> None:
        self.sink = sink
        # How its events become bytes. Never changed.
        self.encoding = encoding
        # By which events are judged from the position on; replaced by `Delivery.change`.
        self.options = options
        # All events below have been judged. While the subscriber is behind, its feeder moves it. While it is
        # in a group, its lane's position counts, and this is where the lane was at the last write to this
        # subscriber: see `Lane.detach`.
        self.position = position
        # Set while the subscriber is at the tip; by `Groups`.
        self.group: Group | None = None
        # Messages that it was sent. While it is in a group, those of the group come to it: see `sent`.
        self.messages = 0
        # None for a subscription without an end; set by `Delivery.subscribe`. A subscriber with bounds is in
        # no group: its feeder serves it also at the tip, so that flushes need not look for the end.
        self.bounds: Bounds | None = None
        # None for a subscriber without heartbeats; set by `Delivery`.
        self.heartbeat: Heartbeat | None = None
        # Until it first reaches the tip, if the way there is limited; set by `Delivery.subscribe`.
        self.replay: Replay | None = None
        # Whether it has reached the tip, and has not fallen behind since; by `Delivery` and its feeder.
        self.live = False
        # Whether it is behind after it was live: it reads too slowly. Set by its feeder.
        self.fell_behind = False
        # How many bytes had left the buffer when something waited in it and the socket was last seen to make
        # progress; by `stalled_s`.
        self.drained = 0
        # When that was, or when nothing waited, if that was later; by `Delivery.check`, too. In monotonic
        # seconds.
        self.progress_at = now

    @property
    def sent(self) -> int:
        """How many messages it was sent."""
        return self.messages + (0 if self.group is None else self.group.messages)

    def write(self, data: bytes) -> None:
        """Send the frames of events. Does nothing when the connection is gone."""
        sink = self.sink
        sink.written += len(data)
        with suppress(RuntimeError):  # the connection is gone, and the subscriber about to be removed
            sink.write(data)

    def write_control(self, data: bytes) -> None:
        """Send frames that are no events. Does nothing when the connection is gone."""
        sink = self.sink
        sink.controls += len(data)
        with suppress(RuntimeError):
            sink.write(data)

    def send_heartbeat(self, position: int) -> None:
        """Say that all below `position` has been judged, if the subscriber has heartbeats.

        Nothing is said to a full socket: what it says would be old when it is read.
        """
        heartbeat = self.heartbeat
        if heartbeat is None or self.sink.full:
            return
        heartbeat.live = self.live
        heartbeat.restart()
        message = self.encoding.renderer.heartbeat(position, self.live)
        if message:
            # A client that resumes after it as after an event loses nothing.
            self.write_control(self.encoding.framing.frames([message], [max(position - 1, 0)])[0])

    def reach_tip(self, position: int) -> None:
        """Mark the subscriber as live, and send a heartbeat that says so, unless one has said it.

        `position` is that of its lane. Called by `Delivery` and by feeders, also when it was there before.
        """
        self.live, self.fell_behind = True, False
        self.end_replay()
        if self.heartbeat is not None and not self.heartbeat.live:
            self.send_heartbeat(position)

    def end_replay(self) -> None:
        """Limit what it is sent no more. Does nothing when that has ended, or never was."""
        if self.replay is not None:
            self.replay.end()
            self.replay = None

    def stalled_s(self, buffered: int, now: float) -> float:
        """Return for how many seconds the socket has taken nothing although `buffered` bytes wait for it."""
        drained = self.sink.written + self.sink.controls - buffered
        if drained > self.drained:
            self.drained = drained
            self.progress_at = now
        return now - self.progress_at
