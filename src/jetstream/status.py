"""The state of a server as one frozen value.

`app` builds a `Status` from its parts on request. `/health` and the gauges of `/metrics` are made of
nothing else: they agree with each other, and neither has to know the parts. Each part returns its own
share (`LogStatistics`, `UpstreamStatus`), so this module is below all of them and imports none of them.

    log, upstreams, subscribers ─▶ `Service.status` in app ─▶ Status ─┬─▶ `/health`, `/ready`, `/status.json`
                                                                     └─▶ gauges of `/metrics`

With several processes, each makes its own, and `supervisor/view` puts the pages together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, get_args

from jetstream.roles import Role

UpstreamState = Literal["connected", "idle", "reconnecting"]
UPSTREAM_STATES: Final[tuple[UpstreamState, ...]] = get_args(UpstreamState)
# Bounds of the histogram of how far subscribers are behind, in seconds.
LAGS_S: Final = (1.0, 10.0, 60.0, 600.0, 3_600.0, 21_600.0, 86_400.0)
# Seconds without a frame after which the lag does not count: the last message of a PDS may have been late.
LAG_FRESH_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class LogStatistics:
    """What the event log holds."""

    # Events that can be read, and bytes of all files or tables of the log.
    events: int
    bytes_on_disk: int
    # `time_us` of the oldest and of the newest event that can be read, in unix microseconds; None: the
    # log is empty.
    oldest_us: int | None
    newest_us: int | None
    # Whether it can be written: False from a write that failed until one that succeeded.
    writable: bool
    # Bytes of the write-ahead log, a part of `bytes_on_disk`. Only a log in SQLite has one here.
    wal_bytes: int = 0
    # Distinct damaged parts that were met since the log was opened. Reading passes over them.
    damaged: int = 0
    # Free bytes of the file system, for this user; None: it does not say.
    disk_free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class UpstreamStatus:
    """Where the server stands with one upstream."""

    name: str  # in metrics and in the log's cursors; `host:port` if it was given none
    url: str  # without user, password and query
    state: UpstreamState
    # The last `seq` taken and confirmed: the server resumes after it. Of a Jetstream, a position.
    seq: int | None
    # The last `seq` taken; it may be provisional, and then the server does not resume after it.
    taken_seq: int | None
    # Age of the last message when it arrived, in seconds, by its own time; None: none had a time yet.
    lag_s: float | None
    # Seconds since a frame came; None: none has come since the start.
    last_frame_age_s: float | None = None
    frames: int = 0  # received since the start


@dataclass(frozen=True, slots=True)
class PdsStatus:
    """Where the server stands with the PDSes of `--upstream-file`: there may be thousands."""

    states: Counter[UpstreamState]  # how many are in each state
    # The names of the first few that have no connection: at most `SourceLimits.named_max`.
    gone: tuple[str, ...]
    last_frame_age_s: float | None = None  # seconds since one of them sent a frame


@dataclass(frozen=True, slots=True)
class ReaderStatus:
    """How far the subscribers are behind the newest event."""

    # Subscribers that began at an older position, and have not reached the newest event yet.
    catching_up: int = 0
    # Subscribers that had reached it and have fallen behind, because they read too slowly.
    lagging: int = 0
    # How many have a lag up to each of `LAGS_S` and above the one before, and how many have a longer one.
    lags: tuple[int, ...] = (0,) * (len(LAGS_S) + 1)


@dataclass(frozen=True, slots=True)
class EdgeStatus:
    """Where an edge stands with the log that another process writes."""

    # Seconds for which there has been an event that was not published to the subscribers at the tip; 0:
    # there is none.
    lag_s: float
    # Seconds since the writer wrote something, if only its heartbeat; None: it has not since this
    # process began.
    writer_silent_s: float | None
    # Whether it has, and lately. If not, `/ready` says `writer_gone`.
    writer_alive: bool
    # Seconds since the log could be looked at, and whether that is lately. If not, no events are
    # served.
    unread_s: float
    # False is the condition `log_unreadable`.
    readable: bool


class Check(NamedTuple):
    """A reason for which the server is not ready: which check fails, why, and what to do.

    `check` is a fixed word for programs, `text` and `hint` are sentences for people. `/ready` and
    `/status.json` have them in `not_ready`.
    """

    check: str
    text: str
    hint: str


@dataclass(frozen=True, slots=True)
class Status:
    """The state of the whole server at one moment.

    It is made for each question, from what the parts know at that moment, and never changes.
    """

    version: str
    now_us: int  # when this was made, by the server's clock
    # The highest position that was given out. It may be ahead of the clock, if that was wrong.
    tip: int
    log: LogStatistics
    upstreams: tuple[UpstreamStatus, ...]  # in the order in which they were given; without the PDSes
    # A sentence for each condition that holds, by its key (see `conditions`).
    reasons: Mapping[str, str]
    # Subscribers that are connected to this process.
    subscribers: int
    pds: PdsStatus | None = None  # None: there are none
    waiting: int | None = (
        None  # messages that wait, for a key or for those before them; None: nothing may wait
    )
    readers: ReaderStatus = field(default_factory=ReaderStatus)
    # The limit of subscribers, of all processes of the server together.
    subscribers_max: int = 0
    # Events stored since the start, of the most frequent collections; the others together are `other`.
    collections: Mapping[str, int] = field(default_factory=dict)
    # Bytes that this process has caused to be written to disk; None: the system does not say.
    written_bytes: int | None = None
    # When the certificate expires, in unix seconds; None: there is no TLS.
    certificate_expires_s: float | None = None
    role: Role = "all"
    edge: EdgeStatus | None = None  # None: the server is no edge
    # From the first signal to stop.
    stopping: bool = False
    # The settings `--ready-idle` and `--ready-lag`, in seconds; None: not checked.
    ready_idle_s: float | None = None
    ready_lag_s: float | None = None

    @property
    def summary(self) -> str:
        """The one word, or sentence, that `/health` begins with.

        A log that cannot be written comes before all conditions: only then `/health` has status 503.
        """
        if not self.log.writable:
            return "the log cannot be written: is the disk full?"
        return "degraded" if self.reasons else "ok"

    @property
    def last_event_age_s(self) -> float | None:
        """Seconds since the newest event; None while the log is empty.

        It is below 0 for an event that is ahead of the clock.
        """
        newest = self.log.newest_us
        return None if newest is None else (self.now_us - newest) / 1e6

    @property
    def ahead_s(self) -> float:
        """Seconds by which the tip is ahead of the clock; 0 unless the clock was wrong.

        While it is ahead, events are one microsecond apart.
        """
        return max(0, self.tip - self.now_us) / 1e6

    @property
    def last_frame_age_s(self) -> float | None:
        """Seconds since a frame came from any upstream; None: none has come yet.

        Not for an edge, which reads no upstream.
        """
        ages = [each.last_frame_age_s for each in self.upstreams]
        if self.pds is not None:
            ages.append(self.pds.last_frame_age_s)
        return min((age for age in ages if age is not None), default=None)

    @property
    def lag_s(self) -> float | None:
        """The lag of the upstream that is ahead of the others; None: it is not known. PDSes do not count.

        Of an edge, it is how long it is behind the log.

        One upstream that is current is enough: what it delivers is current, whatever the others do.
        """
        if self.edge is not None:
            return self.edge.lag_s
        return min((each.lag_s for each in self.upstreams if each.lag_s is not None), default=None)

    @property
    def connected(self) -> bool:
        """Whether there is a connection to any upstream.

        A connection that is idle counts.
        """
        pds = self.pds is not None and self.pds.states.total() > self.pds.states["reconnecting"]
        return pds or any(each.state != "reconnecting" for each in self.upstreams)

    @property
    def not_ready(self) -> list[Check]:
        """Why no client should be sent here; empty if one can be.

        An edge has other checks than a server that reads upstream. The order is that in which an
        operator should look.
        """
        if self.edge is not None:
            checks = [self._stopping(), *self._edge_checks(self.edge)]
        else:
            checks = [self._stopping(), self._unwritable(), self._idle(), self._lagging()]
        return [check for check in checks if check is not None]

    def _edge_checks(self, edge: EdgeStatus) -> list[Check | None]:
        """Return what an edge checks: how old events are when they are stored is not its concern.

        None stands for a check that passes.
        """
        gone = unreadable = lagging = None
        if not edge.writer_alive:
            silent_s = edge.writer_silent_s
            since = "since the start" if silent_s is None else f"for {silent_s:.0f} s"
            hint = "start a server with --role ingest (or all) on the same log, or look at what its log says"
            gone = Check("writer_gone", f"the process that writes the log has written nothing {since}", hint)
        if not edge.readable:
            text = f"the log was last read {edge.unread_s:.0f} s ago: no events are served until it can be"
            unreadable = Check("log_unreadable", text, "/health has the error")
        if self.ready_lag_s is not None and edge.lag_s >= self.ready_lag_s:
            text = (
                f"this edge is {edge.lag_s:.0f} s behind the log, and --ready-lag is {self.ready_lag_s:g} s"
            )
            lagging = Check("lag", text, "wait until it has caught up; if it stays behind, run more edges")
        return [gone, unreadable, lagging]

    def _stopping(self) -> Check | None:
        """Return the check that fails from the signal to stop: load balancers then send no more clients."""
        if not self.stopping:
            return None
        return Check("stopping", "the server is stopping", "connect to another server, or try again later")

    def _unwritable(self) -> Check | None:
        """Return the check that fails while the log cannot be written."""
        if self.log.writable:
            return None
        hint = "free space on the disk of --data-dir, or lower --retention-bytes; /health has the error"
        return Check("log_unwritable", "the log cannot be written", hint)

    def _idle(self) -> Check | None:
        """Return the check that fails while upstream sends nothing.

        Without `--ready-idle` a connection to any upstream is enough: a PDS may be quiet for hours.
        With it, a frame must have come within that time.
        """
        idle_s, age_s = self.ready_idle_s, self.last_frame_age_s
        if idle_s is None:
            text = None if self.connected else "no upstream is connected"
        elif age_s is None:
            text = "no frame has come from upstream since the start"
        else:
            late = f"the last frame came {age_s:.0f} s ago, and --ready-idle is {idle_s:g} s"
            text = late if age_s > idle_s else None
        hint = (
            "check --upstream and the network: `jetstream doctor` does; if upstream is a quiet PDS, set"
            " --ready-idle to the longest pause to expect, or to none"
        )
        return None if text is None else Check("upstream_idle", text, hint)

    def _lagging(self) -> Check | None:
        """Return the check that fails while events are too old when they arrive, by `--ready-lag`.

        The lag of the last message says nothing once that is older than `LAG_FRESH_S`: then `_idle` is
        the check.
        """
        most_s, lag_s, age_s = self.ready_lag_s, self.lag_s, self.last_frame_age_s
        if most_s is None or lag_s is None or lag_s < most_s or (age_s or 0) > LAG_FRESH_S:
            return None
        text = f"events are {lag_s:.0f} s old when they arrive, and --ready-lag is {most_s:g} s"
        hint = "wait until the server has caught up, which the log reports; else upstream itself is late"
        return Check("lag", text, hint)
