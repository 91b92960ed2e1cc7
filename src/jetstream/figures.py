"""What the server tells about itself as time goes by: samples of its counters, and lines of its log.

`Figures.take` is called every second. It reads counters that there are anyway, feeds `Statistics`, and logs

    once a minute               events in, messages out, lag, subscribers, size of the log
    while behind upstream       how far, and when it will have caught up (`catching_up`)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog
from prometheus_client import Histogram

from jetstream.catching_up import BEHIND_S, CatchingUp, spoken
from jetstream.history import Distribution, Interval, Sample, Statistics, events_of
from jetstream.limits import RuntimeLimits
from jetstream.metrics import Metrics, by_label
from jetstream.status import Status

# A lag says how far behind the server is only while frames come: after so many seconds without one,
# nothing is logged of it.
_FRESH_S: Final = 10.0
_MIB: Final = 1 << 20

logger = structlog.get_logger(__name__)


class Figures:
    """The statistics of one server. `status` returns its state, `clock` monotonic seconds.

    `cpu_s` returns the CPU time of the process in seconds. Nothing is counted here: each figure is the
    difference of two counters that exist for `/metrics`.
    """

    def __init__(
        self,
        metrics: Metrics,
        status: Callable[[], Status],
        limits: RuntimeLimits = RuntimeLimits(),
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu_s: Callable[[], float] = time.process_time,
    ) -> None:
        # The samples of the last minute, and the history of an hour. `/status.json` reads it.
        self.statistics = Statistics()
        self._metrics = metrics
        self._status = status
        self._limits = limits
        self._clock = clock
        self._cpu_s = cpu_s
        # What is said while the server is behind upstream.
        self._catching_up = CatchingUp()
        # When the last line with all figures was logged, in monotonic seconds; at first, when the server
        # was built.
        self._reported_at = clock()

    def take(self) -> None:
        """Take a sample, and log what is due. Nothing happens while the disk fails: the log reports that.

        It also begins another second of `metrics.collections`, so it must be called once a second.
        """
        try:
            # One status for everything that follows, so that sample and log line agree.
            now, status = self._clock(), self._status()
        except OSError:
            return
        self._metrics.collections.tick(now)
        self.statistics.add(self._sample(now, status), status.now_us)
        self._follow(now, status)
        if now - self._reported_at >= self._limits.report_every_s:
            self._report(now, status)

    def _sample(self, now: float, status: Status) -> Sample:
        """Return the counters as they are now. Reading them changes none."""
        metrics = self._metrics
        return Sample(
            at=now,
            events=by_label(metrics.events.family, "kind"),
            messages=sum(by_label(metrics.messages.family, "wire").values()),
            bytes=sum(by_label(metrics.bytes.family, "wire").values()),
            frames={each.name: each.frames for each in status.upstreams},
            cpu_s=self._cpu_s(),
            written_bytes=status.written_bytes,
            delivery=_distribution(metrics.delivery),
            loop_delay=_distribution(metrics.loop_delay),
            subscribers=status.subscribers,
            lag_s=status.lag_s,
        )

    def _follow(self, now: float, status: Status) -> None:
        """Log how far behind upstream the server is, while it is."""
        # An old lag is not a lag: while upstream is silent, the last message says nothing of the
        # present.
        lag_s, age_s = status.lag_s, status.last_frame_age_s
        if lag_s is None or age_s is None or age_s > _FRESH_S:
            return
        line = self._catching_up.observe(now, lag_s)
        if line is not None:
            logger.info(line.event, **line.fields)

    def _report(self, now: float, status: Status) -> None:
        """Log one line with all figures. Rates are means since the last one.

        A figure is None where it is not known: a rate before the second sample, a lag before the first
        message.
        """
        interval = self.statistics.over(now - self._reported_at)
        self._reported_at = now
        log = status.log
        logger.info(
            "figures",
            events_per_s=_rate(interval, events_of),
            messages_per_s=_rate(interval, lambda sample: sample.messages),
            lag_s=None if status.lag_s is None else round(status.lag_s, 1),
            subscribers=status.subscribers,
            log_mib=round(log.bytes_on_disk / _MIB, 1),
            log_span=spoken(span_s(status) or 0),
            upstreams=_connected(status),
        )


def span_s(status: Status) -> float | None:
    """Return the time between the oldest and the newest event, in seconds; None: the log is empty."""
    oldest, newest = status.log.oldest_us, status.log.newest_us
    return None if oldest is None or newest is None else (newest - oldest) / 1e6


def log_ends(newest_us: int | None, now_us: int) -> dict[str, str]:
    """Return what the first lines of a server say of a log whose newest event is not of now.

    Empty if it is less than `BEHIND_S` old, and for an empty log: then there is nothing to catch up.
    """
    behind_s = 0.0 if newest_us is None else (now_us - newest_us) / 1e6
    return {"log_ends": f"{spoken(behind_s)} ago"} if behind_s >= BEHIND_S else {}


def _connected(status: Status) -> str:
    """Return how many upstreams have a connection, of how many."""
    states = [each.state for each in status.upstreams]
    if status.pds is not None:
        states += status.pds.states.elements()
    return f"{sum(state != 'reconnecting' for state in states)} of {len(states)} connected"


def _rate(interval: Interval | None, count: Callable[[Sample], float]) -> float | None:
    """Return a mean rate a second, with one decimal; None if there is no interval or no value in it."""
    rate = None if interval is None else interval.per_s(count)
    return None if rate is None else round(rate, 1)


def _distribution(histogram: Histogram) -> Distribution:
    """Return the cumulative counts of a histogram: pairs of an upper bound and how many were not above it.

    The client library has no method for this. The last bound is infinite.
    """
    (metric,) = histogram.collect()
    samples = (each for each in metric.samples if each.name.endswith("_bucket"))
    return [(float(each.labels["le"]), each.value) for each in samples]
