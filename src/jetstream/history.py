"""Figures over time: counters that are read every second become rates, and a history of an hour. Pure.

    counters ──every second──▶ Sample ──▶ the last minute of them ──▶ Interval: rates, quantiles
                                 └──every 10 s──▶ Step: an hour of them

Nothing is counted for this: a `Sample` is what the metrics hold anyway.

`figures` makes the samples, `web/status_page` shows intervals and steps, and `supervisor/past` adds the
histories of several processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

# Seconds of a step, and steps of an hour.
STEP_S: Final = 10
STEPS_MAX: Final = 360
# Samples of a minute, one before it, and one that is late.
_SAMPLES_MAX: Final = 62
# Seconds by which an interval may be shorter than asked for: samples do not come at the same fraction
# of each second.
_SLACK_S: Final = 0.5

# The cumulative counts of a histogram: (upper bound, how many are not above it), rising.
Distribution = Sequence[tuple[float, float]]


class Sample(NamedTuple):
    """Counters at one moment, as they have risen since the start of the process."""

    # When it was taken, in monotonic seconds.
    at: float
    # Events stored, by kind; of an edge, those that it has read from the log.
    events: Mapping[str, float]
    # Events sent to subscribers, each once for each subscriber, and their bytes as they were written.
    messages: float
    bytes: float
    # Frames received, by the name of the upstream; without those of the upstreams file.
    frames: Mapping[str, int]
    # CPU seconds of this process, of all threads.
    cpu_s: float
    # Bytes that this process has caused to be written to disk; None: the system does not say.
    written_bytes: int | None
    # Seconds from reading a frame to the last live write of its events, and delays of the event loop.
    delivery: Distribution
    loop_delay: Distribution
    # The next two are no counters, but what there is at this moment. The lag is in seconds; None: not
    # known.
    subscribers: int = 0
    lag_s: float | None = None  # now


class Interval(NamedTuple):
    """What happened between two samples.

    `after` is later than `before`, so no rate divides by 0.
    """

    before: Sample
    after: Sample

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.after.at - self.before.at

    def per_s(self, count: Callable[[Sample], float | None]) -> float | None:
        """Return the mean rate of what `count` returns; None where it is not known.

        `count` is given each of the two samples, and must only rise from one to the other.
        """
        before, after = count(self.before), count(self.after)
        return None if before is None or after is None else (after - before) / self.seconds

    def quantile(self, of: Callable[[Sample], Distribution], share: float) -> float | None:
        """Return an estimate of a quantile of what was observed; None if nothing was.

        `share` is between 0 and 1, such as 0.99. Only what was observed between the two samples counts.
        """
        return quantile(_difference(of(self.before), of(self.after)), share)


class Step(NamedTuple):
    """The figures of a step of the history; None: not known.

    Rates are means over the step. The other figures are those at its end, but for the delay of the
    event loop: that is the 99th percentile of the step, in milliseconds.
    """

    events_per_s: float | None = None
    messages_per_s: float | None = None
    subscribers: int | None = None
    lag_s: float | None = None
    loop_delay_p99_ms: float | None = None


class Statistics:
    """The samples of the last minute, and the history of the last hour.

    `step_s` is how many seconds a step has, and `steps_max` how many steps are kept. Both are the same in all
    processes of a server. For the event loop's thread.
    """

    def __init__(self, step_s: int = STEP_S, steps_max: int = STEPS_MAX) -> None:
        self.step_s = step_s
        # The last samples, the newest at the end.
        self._samples: deque[Sample] = deque(maxlen=_SAMPLES_MAX)
        # The steps that are over, the newest at the end.
        self._steps: deque[Step] = deque(maxlen=steps_max)
        # The first sample of the step in progress; None before the first one.
        self._step_began: Sample | None = None
        # The number of the newest step, and when it ended, in unix microseconds; None before the first one.
        self.newest_step: int | None = None
        self._end_us: int | None = None

    def add(self, sample: Sample, now_us: int) -> None:
        """Take a sample; one that is not later than the last is ignored. `now_us` is unix microseconds.

        A step ends with the first sample after it, which is the first one of the next step as well. So
        rates lose nothing between two steps.
        """
        if self._samples and sample.at <= self._samples[-1].at:
            return
        self._samples.append(sample)
        if self._step_began is None:
            self._step_began = sample
        elif (passed := self._step(sample) - self._step(self._step_began)) > 0:
            self._end_step(Interval(self._step_began, sample), passed)
            self.newest_step = self._step(sample) - 1
            self._end_us = now_us - int(sample.at % self.step_s * 1e6)
            self._step_began = sample

    def over(self, seconds: float) -> Interval | None:
        """Return the interval up to the newest sample that has so many seconds, or all there is.

        None until there are two samples.

        An interval is at most `_SLACK_S` seconds shorter than asked for, unless there are fewer
        samples.
        """
        if len(self._samples) < 2:
            return None
        *earlier, newest = self._samples
        began = [each for each in earlier if newest.at - each.at >= seconds - _SLACK_S]
        return Interval(began[-1] if began else earlier[0], newest)

    def history(self) -> dict[str, object]:
        """Return the history for JSON: one list for each figure, oldest first.

        `step_s` is the length of a step in seconds, `end_us` when the last one ended, in unix microseconds;
        None: there is no step yet. The lists have the same length, and None where a figure is not known.
        """
        columns = zip(*self._steps, strict=True) if self._steps else ((),) * len(Step._fields)
        figures = {name: list(column) for name, column in zip(Step._fields, columns, strict=True)}
        return {"step_s": self.step_s, "end_us": self._end_us, **figures}

    def _step(self, sample: Sample) -> int:
        """Return the number of the step that a sample is in: steps do not drift with late samples.

        All processes of a machine have the same monotonic clock, and thus the same numbers.
        """
        return int(sample.at // self.step_s)

    def _end_step(self, step: Interval, passed: int) -> None:
        """Note the figures of a step. Steps without a sample, while the process stood still, have none.

        `passed` is by how many the number of the step has risen: 1, unless samples were late.
        """
        for _ in range(min(passed - 1, self._steps.maxlen or 0)):
            self._steps.append(Step())
        delay_s = step.quantile(_loop_delay, 0.99)
        self._steps.append(
            Step(
                events_per_s=rounded(step.per_s(events_of), 2),
                messages_per_s=rounded(step.per_s(_messages), 2),
                subscribers=step.after.subscribers,
                lag_s=rounded(step.after.lag_s, 3),
                loop_delay_p99_ms=None if delay_s is None else round(delay_s * 1000, 2),
            )
        )


def events_of(sample: Sample) -> float:
    """Return how many events were stored."""
    return sum(sample.events.values())


def _messages(sample: Sample) -> float:
    """Return how many events were sent to subscribers."""
    return sample.messages


def _loop_delay(sample: Sample) -> Distribution:
    """Return the delays of the event loop."""
    return sample.loop_delay


def rounded(value: float | None, digits: int = 3) -> float | None:
    """Return a figure as it is shown; None stays what is not known.

    Digits are those after the point.
    """
    return None if value is None else round(value, digits)


def _difference(before: Distribution, after: Distribution) -> Distribution:
    """Return what was observed between two samples of one histogram. Both have the same bounds."""
    return [(bound, late - early) for (bound, early), (_, late) in zip(before, after, strict=False)]


def quantile(distribution: Distribution, share: float) -> float | None:
    """Return an estimate of a quantile, as Prometheus' `histogram_quantile` does; None without a value.

    Values are taken to be spread evenly between two bounds. Above the last finite bound it is that
    bound.

    `distribution` is cumulative, with rising bounds, of which the last may be infinite. `share` is
    between 0 and 1. So a quantile is exact up to the width of a bucket.
    """
    count = distribution[-1][1] if distribution else 0
    if count <= 0:
        return None
    rank, low, below = share * count, 0.0, 0.0
    for bound, total in distribution:
        if total >= rank and total > below:
            return low if bound == float("inf") else low + (bound - low) * (rank - below) / (total - below)
        low, below = min(bound, low if bound == float("inf") else bound), total
    return low
