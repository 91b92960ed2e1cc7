"""The state of a server as one frozen value.

`app` builds a `Status` from its parts on request. `/health` and the gauges of `/metrics` are made of nothing
else: they agree with each other, and neither has to know the parts. Each part returns its own share
(`LogStatistics`, `UpstreamStatus`), so this module is below all of them and imports none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

UpstreamState = Literal["connected", "idle", "reconnecting"]
UPSTREAM_STATES: Final[tuple[UpstreamState, ...]] = get_args(UpstreamState)


@dataclass(frozen=True, slots=True)
class LogStatistics:
    """What the event log holds."""

    events: int
    bytes_on_disk: int
    oldest_us: int | None  # time_us of the oldest readable event; None: the log is empty
    newest_us: int | None
    writable: bool  # False from a write that failed until one that succeeded
    wal_bytes: int = 0  # part of `bytes_on_disk`: the write-ahead log
    damaged: int = 0  # distinct damaged parts that were met since the log was opened


@dataclass(frozen=True, slots=True)
class UpstreamStatus:
    """Where the server stands with one upstream."""

    name: str  # in metrics and in the log's cursors; `host:port` if it was given none
    url: str  # without user, password and query
    state: UpstreamState
    seq: int | None  # the last `seq` taken and confirmed: the server resumes after it
    taken_seq: int | None  # the last `seq` taken; it may be provisional
    lag_s: float | None  # age of the last message when it arrived; None: none had a time yet


@dataclass(frozen=True, slots=True)
class PdsStatus:
    """Where the server stands with the PDSes of `--upstream-file`: there may be thousands."""

    states: Counter[UpstreamState]  # how many are in each state
    gone: tuple[str, ...]  # the names of the first few that have no connection


@dataclass(frozen=True, slots=True)
class Status:
    """The state of the whole server at one moment."""

    version: str
    now_us: int  # when this was made, by the server's clock
    tip: int  # the highest position given out, which may be ahead of the clock
    log: LogStatistics
    upstreams: tuple[UpstreamStatus, ...]  # in the order in which they were given; without the PDSes
    reasons: Mapping[str, str]  # a sentence for each condition that holds, by its key (see `conditions`)
    subscribers: int
    pds: PdsStatus | None = None  # None: there are none
    waiting: int | None = (
        None  # messages that wait, for a key or for those before them; None: nothing may wait
    )

    @property
    def summary(self) -> str:
        """The one word, or sentence, that `/health` begins with."""
        if not self.log.writable:
            return "the log cannot be written: is the disk full?"
        return "degraded" if self.reasons else "ok"

    @property
    def last_event_age_s(self) -> float | None:
        """Seconds since the newest event; None while the log is empty."""
        newest = self.log.newest_us
        return None if newest is None else (self.now_us - newest) / 1e6

    @property
    def ahead_s(self) -> float:
        """Seconds by which the tip is ahead of the clock; 0 unless the clock was wrong."""
        return max(0, self.tip - self.now_us) / 1e6
