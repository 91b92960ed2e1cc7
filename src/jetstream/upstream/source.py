"""One upstream: connect, read, resume, for as long as the server runs.

    connection ──frames──▶ Pipeline ──DecodedBatch──▶ store
                            │    ▲
               keys in doubt▼    │which of them are known
                            the log

One batch is decoded, then stored, then the next one is read. Frames that arrive meanwhile wait undecoded in
the connection's inbox, which is bounded, and become the next batch. So what the log is asked about frames in
doubt takes in all that was accepted, and a batch grows with what the server is busy with
(docs/decisions/2026-11-27-one-batch-at-a-time.md). A source waits for its own batch only, and knows of no
other source.

The cursor to resume after is the tracker's, which `store` has on disk with the events. An idle upstream is
healthy. Whatever goes wrong ends in the same place, the loop in `run`, which waits and connects again from
the cursor. The delay grows as long as no frame is accepted.

Everything that is logged here can be caused by upstream, or by whatever is in its place, as often as it
likes. So all of it is throttled, and counted in a metric. Two conditions tell an operator what a metric would
hide: frames come and none is accepted (`frames_not_taken`), and upstream is no firehose (`not_a_firehose`).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import datetime

from jetstream.conditions import UpstreamConditions
from jetstream.limits import UpstreamLimits
from jetstream.metrics import UpstreamMetrics
from jetstream.upstream.connection import ConnectError, connect, with_cursor
from jetstream.upstream.history import History, KeyLookup
from jetstream.upstream.inbox import Inbox
from jetstream.upstream.pipeline import DecodedBatch, Pipeline
from jetstream.upstream.reconnecting import Link, Reconnecting
from jetstream.upstreams import Upstream

# Takes a batch, and when the oldest of its frames was received, in monotonic seconds. Returns once it is
# stored, and more may come. It must give the event loop a turn: with frames waiting, nothing here does.
Store = Callable[[DecodedBatch, float], Awaitable[None]]


class Source(Reconnecting):
    """A relay or PDS whose firehose is read.

    `pipeline` decodes its frames and has its cursor. `log` is asked about frames in doubt. `store` takes
    each batch, and is awaited before the next one is read.
    """

    def __init__(
        self,
        upstream: Upstream,
        link: Link,
        pipeline: Pipeline,
        store: Store,
        metrics: UpstreamMetrics,
        conditions: UpstreamConditions,
        log: KeyLookup,
        limits: UpstreamLimits = UpstreamLimits(),
    ) -> None:
        super().__init__(upstream, link, metrics, conditions, limits)
        # The stages; also what numbers were accepted, over all connections. Only `_read` gives it
        # frames.
        self._pipeline = pipeline
        self._store = store
        self._log = log
        # Sets the keys of history that may be sent again, before each batch.
        self._history = History(log, pipeline, limits)
        # When the first frame came after the last one that was accepted; None: none has come since.
        self._none_accepted_since: float | None = None
        # Frames without a number that came in a row.
        self._unreadable = 0
        # Commits and #syncs in a row, on this connection, that were known: other sources are ahead.
        self._known = 0
        # The cursor after which a message came that is too large to be received, and how many frames beyond
        # it to resume.
        self._too_big_after: int | None = None
        self._skipped = 0

    @property
    def seq(self) -> int | None:
        """The last `seq` that was accepted and confirmed: the cursor."""
        return self._pipeline.tracker.cursor

    @property
    def _resume_after(self) -> int | None:
        """What to resume after: the cursor, or beyond it where a message cannot be received."""
        return self.seq if self.seq is None or self.seq != self._too_big_after else self.seq + self._skipped

    @property
    def taken_seq(self) -> int | None:
        """The last `seq` that was taken; it may be provisional."""
        tracker = self._pipeline.tracker
        return tracker.last if tracker.provisional is None else tracker.provisional

    async def _connect_and_read(self) -> float | None:
        """Hold one connection to its end; return how many seconds upstream asks to wait, if it does."""
        self._pipeline.tracker.connected()
        cursor = self._resume_after
        try:
            inbox = await connect(
                with_cursor(self._url, cursor), self._on_text, self._on_flood, self._limits, Inbox
            )
        except ConnectError as error:
            self._log_refusal(error)
            return error.retry_after_s
        self._logger.info("upstream: connected", url=self.url, cursor=cursor)
        self._known = 0
        self._note_begin()
        try:
            await self._read(inbox)
        finally:
            self._note_end()
            inbox.close()
        await self._end(inbox)
        return None

    async def _read(self, inbox: Inbox) -> None:
        """Read a connection until it is over, or must be made again. Raises what `store` and the log raise.

        Frames stay in the inbox until they were decoded, so what a batch leaves is the beginning of the
        next one. A batch is counted before it is stored: metrics are ahead of the log by one batch at
        most.
        """
        limits, pipeline = self._limits, self._pipeline
        while frames := await inbox.wait(limits.batch_frames_max):
            # All that was accepted is stored by now, so the log may be asked.
            await self._history.update()
            self._heard_at = self._frame_at = time.monotonic()
            self._frames += len(frames)
            batch = pipeline.read(frames, self._heard_at + limits.turn_s)
            if batch.lookups:
                known = await self._log.holds(batch.lookups)
                pipeline.resolve(batch, known, time.monotonic() + limits.turn_s)
            inbox.drop(batch.frames)
            self._count(batch)
            must_reconnect = self._must_reconnect(batch)
            await self._store(batch, inbox.received_at)
            if must_reconnect:
                return
            if rest_s := self._rest_s(batch):
                await inbox.rest(rest_s)

    def _rest_s(self, batch: DecodedBatch) -> float:
        """Return for how many seconds to leave the socket alone: messages can come some at a time.

        That is so where no subscriber waits for them, and where other sources are ahead of this one. One that
        is far behind must not rest.
        """
        limits = self._limits
        if batch.frames > limits.rest_frames_max:
            return 0.0
        if not self._link.is_awaited() and (self.lag_s or 0.0) < limits.unawaited_lag_s:
            return limits.unawaited_rest_s
        return limits.rest_s if self._known >= limits.rest_after else 0.0

    def _count(self, batch: DecodedBatch) -> None:
        """Count a batch, and note whether upstream sends anything of use."""
        self._metrics.count_frames(batch.types, batch.drops, batch.too_big)
        tracker = self._pipeline.tracker
        if tracker.gaps or tracker.jumps or tracker.restarts:
            self._metrics.count_sequence(tracker.gaps, tracker.jumps, tracker.restarts)
            tracker.gaps = tracker.jumps = tracker.restarts = 0
        lag_s = _age_s(batch.time, self._link.now_us())
        self.lag_s = self.lag_s if lag_s is None else lag_s
        self._known = 0 if batch.has_new else self._known + batch.known
        # Where others are ahead of it, all that a source brings is known. The first one may be just the frame
        # at the cursor, which some relays send again.
        if batch.accepted or self._known > 1:
            self._attempts = 0
            self._none_accepted_since = None
            self._conditions.end("frames_not_taken")
            self._conditions.end("not_a_firehose")
        else:
            self._note_none_accepted(batch)
        self._unreadable = self._unreadable + batch.frames if batch.without_seq == batch.frames else 0

    def _note_none_accepted(self, batch: DecodedBatch) -> None:
        """Begin `frames_not_taken` once that has gone on for `none_accepted_s`."""
        if self._none_accepted_since is None:
            self._none_accepted_since = self._heard_at
        limit_s = self._limits.none_accepted_s
        if self._heard_at - self._none_accepted_since < limit_s:
            return
        reasons = ", ".join(sorted(batch.drops)) or ", ".join(sorted(batch.types))
        self._conditions.begin(
            "frames_not_taken",
            f"frames come from {self.name}; none was taken for {limit_s:g} s; dropped for: {reasons}",
        )

    def _must_reconnect(self, batch: DecodedBatch) -> bool:
        """Log what upstream says of itself; return whether this connection must be ended."""
        for notice in batch.notices:
            if notice.type == "error":
                self._logger.warning("upstream: error", name=notice.name, message=notice.text)
                if notice.name == "FutureCursor":
                    event = "upstream: cursor is in its future; starting at the live end"
                    self._logger.warning(event, cursor=self.seq)
                    if self.seq is not None:  # without a cursor, it is taken back at once
                        self._attempts = 0
                    self._pipeline.tracker.restart()
                return True
            self._logger.warning("upstream: notice", type=notice.type, name=notice.name, message=notice.text)
        if self._unreadable > self._limits.unreadable_frames_max:
            self._on_flood("unreadable")
            return True
        return False

    def _on_text(self) -> None:
        """Count a text message, and begin the condition `not_a_firehose`: a Jetstream sends text.

        The condition ends with the first frame that is accepted.
        """
        self._metrics.drops["frame_text"].inc()
        self._logger.warning(
            "upstream: sends text, which no firehose does",
            url=self.url,
            hint="is it a Jetstream? for that, put jetstream+ before the URL; `jetstream doctor` tells",
        )
        self._conditions.begin(
            "not_a_firehose",
            f"{self.url} sends text messages, as a Jetstream does: then put jetstream+ before its URL",
        )

    async def _end(self, inbox: Inbox) -> None:
        """Log the end of a connection."""
        self._log_end(await inbox.ended(), inbox, "no frame came: is this the URL of a firehose?")
        if inbox.too_big:
            self._skip_too_big()

    def _skip_too_big(self) -> None:
        """Resume one frame further each time, from the second time that the same cursor has failed.

        The cursor itself stays. A relay that sends the cursor's own frame again would else have it taken for
        a repeat.
        """
        self._metrics.drops["frame_size"].inc()
        if self.seq is None or self.seq != self._too_big_after:
            self._too_big_after, self._skipped = self.seq, 0
        else:
            self._skipped += 1
            self._logger.warning("upstream: skipping a frame that is too large", cursor=self._resume_after)


def _age_s(stamp: str, now_us: int) -> float | None:
    """Return how many seconds ago a message's time was; None for what is no time, or has no time zone."""
    try:
        sent = datetime.fromisoformat(stamp)
    except ValueError:
        return None
    return None if sent.tzinfo is None else now_us / 1e6 - sent.timestamp()
