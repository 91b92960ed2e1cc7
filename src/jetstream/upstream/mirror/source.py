"""A Jetstream as the upstream: connect, read, store, and connect again after what is stored.

    one of ours         the events keep their positions: this server is a mirror, cursors are valid on both
    any other, v1, v2   the events get positions here

Which it is, the header of the response says (`offer`). A log has positions of one origin only: one that has
taken over positions takes no events without, and one with positions of its own takes over none. Else a cursor
would mean one thing before such a change, and another after it.

A stream that begins above the newest event that is stored has a gap. What is missing, no later connection
can bring: so it is a condition until the log keeps nothing from before it any more.
"""

from __future__ import annotations

import time
from typing import Final

from jetstream.conditions import UpstreamConditions
from jetstream.limits import UpstreamLimits
from jetstream.metrics import UpstreamMetrics
from jetstream.model.timestamp import to_date
from jetstream.upstream.connection import ConnectError, connect, with_cursor
from jetstream.upstream.mirror.gap_watch import GapWatch
from jetstream.upstream.mirror.offer import Offer, offer_of
from jetstream.upstream.mirror.parts import (
    Beginning,
    MirrorLog,
    Origin,
    Stores,
    newest_of,
    origin_of,
    recent_of,
)
from jetstream.upstream.mirror.recent import Recent
from jetstream.upstream.mirror.stream import ForeignStream, OwnStream, Taken
from jetstream.upstream.mirror.text_inbox import TextInbox
from jetstream.upstream.pipeline import DecodedBatch
from jetstream.upstream.reconnecting import Link, Reconnecting
from jetstream.upstreams import SUBSCRIBE_EVENTS_PATH, SUBSCRIBE_PATH, Upstream

# A number from here on is a time in unix microseconds. Other servers of the same stream, behind one name, may
# have other times for the same events: so much is read again.
_TIMES_FROM: Final = 10**15
_REWIND_US: Final = 5_000_000
# What a v2 server of another kind answers if it does not keep a number any more. 0 is its oldest event.
_TOO_OLD: Final = b"CursorTooOld"
# Infos of our servers that tell nothing new.
_QUIET: Final = frozenset({"Heartbeat", "OutdatedCursor"})
# By the status of a response that refuses a connection.
_HINTS: Final = {
    200: "this is a web page: give the host of a Jetstream, without a path",
    400: "the server does not know this request: is it a Jetstream?",
    404: "there is no Jetstream at this path: give its host, without a path",
}
_NEW_LOG: Final = "A mirror needs a log of its own: give it another --data-dir or --log"


class MirrorSource(Reconnecting):
    """A Jetstream whose events are taken."""

    def __init__(
        self,
        upstream: Upstream,
        link: Link,
        stores: Stores,
        metrics: UpstreamMetrics,
        conditions: UpstreamConditions,
        log: MirrorLog,
        limits: UpstreamLimits,
        beginning: Beginning,
    ) -> None:
        super().__init__(upstream, link, metrics, conditions, limits)
        self._stores = stores
        self._log = log
        # What this server erases, whatever its upstream does.
        self._erases = log.erases
        self._kept_from_us = beginning.kept_from_us
        # What to start after instead of what the log says; None once events have come.
        self._resume_after = beginning.after
        # How the log was told that events are taken; None: it was not yet.
        self._told: Origin | None = None
        self._gaps = GapWatch(log, stores.gap, metrics.gaps, conditions, link.logger, self.url)
        # The newest events, where they get positions here; None: they do not, or the log was not read yet.
        self._recent: Recent | None = None
        # Whether to begin at the live end: what is not one of ours, and was never read, begins there.
        self._is_live = False
        # Whether the upstream has no v2 wire, and whether it does not keep the number any more.
        self._is_v1 = False
        self._is_too_old = False
        # When the first message came after the last event that was taken; None: none has come since.
        self._none_taken_since: float | None = None

    @property
    def seq(self) -> int | None:
        """The position, or number of the upstream, of the newest event that is stored."""
        if origin_of(self._log) == "upstream":
            return self._log.tip
        stored = self._log.cursors.get(self.name)
        return None if stored is None else stored.seq

    def _cursor(self) -> int | None:
        """Return what to ask for; None: what is new.

        It is the newest event that is stored, which then comes again, and shows that none is missing.
        """
        after, seq = self._resume_after, self.seq
        if self._is_too_old:
            return 0
        if after is not None and after >= (seq or 0):
            return after + 1 if after else 0
        if seq is None:
            kept_from_us = self._kept_from_us()
            return None if self._is_live else kept_from_us if kept_from_us >= _TIMES_FROM else 0
        return seq if origin_of(self._log) == "upstream" else _rewound(seq)

    async def _connect_and_read(self) -> float | None:
        """Hold one connection to its end; return how many seconds upstream asks to wait, if it does."""
        cursor, url = self._cursor(), self._url
        if self._is_v1:
            url = url.replace(SUBSCRIBE_EVENTS_PATH, SUBSCRIBE_PATH, 1)
        try:
            inbox = await connect(
                with_cursor(url, cursor), self._on_binary, self._on_flood, self._limits, TextInbox
            )
        except ConnectError as error:
            return self._refused(error)
        self._logger.info("upstream: connected", url=self.url, cursor=cursor)
        self._note_begin()
        try:
            await self._read(inbox, cursor or 0, offer_of(inbox.answer, self._link.now_us()))
        finally:
            self._note_end()
            inbox.close()
        self._log_end(await inbox.ended(), inbox, "no event came: is this the URL of a Jetstream?")
        if inbox.too_big:
            self._metrics.drops["frame_size"].inc()
        return None

    def _refused(self, error: ConnectError) -> float | None:
        """Note why there is no connection: a v1 server has no v2 wire, a number may be too old."""
        if error.status == 404 and SUBSCRIBE_EVENTS_PATH in self._url and not self._is_v1:
            self._is_v1 = True
            return None
        self._is_v1 = False  # at the next attempt, it may be another version
        if error.status == 400 and _TOO_OLD in error.body and not self._is_too_old:
            self._is_too_old = True
            return None
        self._log_refusal(error, _HINTS)
        return error.retry_after_s

    async def _read(self, inbox: TextInbox, cursor: int, offer: Offer | None) -> None:
        """Read a connection until it is over, or must be."""
        origin = origin_of(self._log)
        if offer is not None and origin != "here":
            await self._mirror(inbox, cursor, offer)
        elif offer is None and origin == "upstream":
            self._refuse("is no Jetstream whose positions can be taken over", "positions of such a one")
        elif offer is not None and self.name not in self._log.cursors:
            self._refuse("has positions of its own", "positions of this server")
        elif self.seq is None and self._resume_after is None and not self._is_live:
            self._is_live = True
        else:
            await self._take_foreign(inbox, offer)

    def _refuse(self, upstream: str, log: str) -> None:
        """Begin the condition that nothing is read."""
        reason = f"{self.url} {upstream}, and the events in the log have {log}: nothing is read. {_NEW_LOG}"
        self._conditions.begin("not_mirrored", reason)

    # One of ours

    async def _mirror(self, inbox: TextInbox, cursor: int, offer: Offer) -> None:
        """Take events with their positions."""
        tip = self._log.tip
        self._tell("upstream", "upstream: mirrored, events keep their positions", erases=sorted(offer.erases))
        self._log.erases = self._erases | offer.erases
        await self._gaps.recall()
        ends_below = offer.begins < min(cursor, tip)
        if tip and offer.begins > tip + 1:
            await self._gaps.note(tip, offer.begins)
        elif ends_below:
            self._conditions.begin(
                "not_mirrored",
                f"{self.url} ends before {to_date(offer.begins)}, and the newest event here is of"
                f" {to_date(tip)}: is it another stream? Nothing is taken up to there. {_NEW_LOG}",
            )
        newest, bytes_max = await newest_of(self._log), self._limits.jetstream_message_bytes_max
        stream = OwnStream(tip, newest, time.monotonic, bytes_max)
        while messages := await inbox.wait(self._limits.batch_frames_max):
            self._note_messages(len(messages))
            taken = stream.read(messages, self._link.now_us(), self._heard_at + self._limits.turn_s)
            inbox.drop(taken.frames)
            if taken.is_other:
                self._refuse(f"has another event at {tip} ({to_date(tip)})", "those of another stream")
                return
            self._count(taken)
            if taken.times:
                if ends_below:  # nobody knows what was between
                    ends_below = False
                    await self._gaps.note(tip, taken.times[0])
                self.lag_s = (self._link.now_us() - taken.times[-1]) / 1e6
            await self._stores.stamped(taken.batch(), inbox.received_at)
            if await self._is_done(inbox, taken):
                return

    # Any other

    async def _take_foreign(self, inbox: TextInbox, offer: Offer | None) -> None:
        """Take events, and give them positions."""
        why = "it is no server of this kind" if offer is None else "the log has positions of this server"
        event = "upstream: events get positions of this server, so cursors of the upstream mean nothing here"
        self._tell("here", event, reason=why)
        before = self.seq
        if self._recent is None:
            self._recent = await recent_of(self._log)
        bytes_max = self._limits.jetstream_message_bytes_max
        stream = ForeignStream(before, self._recent, time.monotonic, bytes_max)
        while messages := await inbox.wait(self._limits.batch_frames_max):
            self._note_messages(len(messages))
            taken = stream.read(messages, self._heard_at + self._limits.turn_s)
            if taken.lookups:
                stream.resolve(taken, await self._log.holds(taken.lookups))
            inbox.drop(taken.frames)
            self._count(taken)
            if before is not None and stream.began is not None:
                if stream.began > before or self._is_too_old:
                    await self._gaps.note(self._log.tip, self._link.now_us())
                before = None
            if taken.newest is not None:
                self._is_too_old = False
                if taken.newest >= _TIMES_FROM:
                    self.lag_s = (self._link.now_us() - taken.newest) / 1e6
            await self._stores.unstamped(DecodedBatch(taken.events, stream.cursor), inbox.received_at)
            if await self._is_done(inbox, taken):
                return

    # Both

    def _tell(self, origin: Origin, event: str, **fields: object) -> None:
        """Log once how events are taken, and again when that has changed."""
        if self._told != origin:
            self._told = origin
            self._logger.info(event, url=self.url, **fields)

    def _note_messages(self, count: int) -> None:
        self._heard_at = self._frame_at = time.monotonic()
        self._frames += count

    def _count(self, taken: Taken) -> None:
        """Count what has come, and note whether any of it is of use."""
        self._metrics.count_frames(taken.types, taken.drops, 0)
        if taken.problem:
            event = (
                "upstream: a message could not be read because of an error in this server: please report it"
            )
            self._logger.warning(event, url=self.url, problem=taken.problem)
        if taken.events or "repeat" in taken.drops:
            self._attempts = 0
            self._none_taken_since = None
            self._conditions.end("frames_not_taken")
        elif taken.drops:  # infos and errors alone are neither of use nor wrong
            self._note_none_taken(", ".join(sorted(taken.drops)))
        if taken.events:
            self._resume_after = None
            self._conditions.end("not_mirrored")

    def _note_none_taken(self, reasons: str) -> None:
        """Begin `frames_not_taken` once that has gone on for `none_accepted_s`."""
        if self._none_taken_since is None:
            self._none_taken_since = self._heard_at
        limit_s = self._limits.none_accepted_s
        if self._heard_at - self._none_taken_since >= limit_s:
            text = f"messages come from {self.name}; no event was taken for {limit_s:g} s"
            self._conditions.begin("frames_not_taken", f"{text}; dropped for: {reasons}")

    async def _is_done(self, inbox: TextInbox, taken: Taken) -> bool:
        """Rest, if nobody waits; return whether this connection must be ended by what upstream says."""
        self._gaps.check()
        for notice in taken.notices:
            if notice.type == "error":
                self._logger.warning("upstream: error", name=notice.name, message=notice.text)
                return True
            if notice.name not in _QUIET:
                self._logger.info("upstream: notice", type=notice.type, name=notice.name, message=notice.text)
        limits = self._limits
        is_behind = taken.frames > limits.rest_frames_max or (self.lag_s or 0.0) >= limits.unawaited_lag_s
        if not is_behind and not self._link.is_awaited():
            await inbox.rest(limits.unawaited_rest_s)
        return False

    def _on_binary(self) -> None:
        self._metrics.drops["frame_text"].inc()
        self._logger.warning(
            "upstream: sends binary messages, which no Jetstream does unasked",
            url=self.url,
            hint="is it a relay? for that, leave jetstream+ out",
        )


def _rewound(number: int) -> int:
    """Return where to resume after a number of another server, so that nothing is missed."""
    return number - _REWIND_US if number >= _TIMES_FROM + _REWIND_US else number
