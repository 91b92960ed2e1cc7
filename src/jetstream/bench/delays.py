"""A histogram of delays: bounded memory, and percentiles that are exact to 1.6 %.

Buckets are logarithmic: each power of two is divided into 64 buckets of equal width.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

_STEPS_BITS: Final = 6  # 64 buckets to each power of two
_STEPS: Final = 1 << _STEPS_BITS
_BUCKETS: Final = (40 - _STEPS_BITS) * _STEPS  # up to 2^39 µs, six days
LARGEST_US: Final = (1 << 39) - 1
PENDING_MAX: Final = 1_000  # so many are sorted into buckets at once


class Delays:
    """Counts of delays in microseconds. A negative delay, from clocks that differ, counts as zero."""

    def __init__(self, pending_max: int = PENDING_MAX) -> None:
        self._pending_max = pending_max
        self._buckets = [0] * _BUCKETS  # how many delays fell into each bucket
        self._pending: list[int] = []  # added, but not yet in `_buckets`
        self._max_us = 0  # of those in `_buckets`

    def add(self, delay_us: int) -> None:
        """Add one delay."""
        self._pending.append(delay_us)
        if len(self._pending) == self._pending_max:
            self._count_pending()

    @property
    def count(self) -> int:
        """The number of delays."""
        self._count_pending()
        return sum(self._buckets)

    @property
    def max_us(self) -> int:
        """The longest delay, exactly; 0 if there is none."""
        self._count_pending()
        return self._max_us

    def _count_pending(self) -> None:
        """Move pending delays into buckets, sorted: finding each bucket once takes a quarter of the time."""
        pending = self._pending
        pending.sort()
        start = 0
        while start < len(pending):
            bucket = _bucket(pending[start])
            stop = bisect_right(pending, _upper_us(bucket), lo=start + 1)
            self._buckets[bucket] += stop - start
            start = stop
        self._max_us = max([self._max_us, *pending[-1:]])
        pending.clear()

    def percentile_us(self, percent: float) -> int:
        """Return the smallest bucket limit that `percent` of the delays do not exceed; 0 if there is none."""
        rank = self.count * percent / 100
        longest = self.max_us
        seen = 0
        for index, count in enumerate(self._buckets):
            seen += count
            if count and seen >= rank:
                return min(_upper_us(index), longest)
        return 0


def _bucket(delay_us: int) -> int:
    """Return the index of the bucket of a delay."""
    delay_us = min(max(delay_us, 0), LARGEST_US)
    if delay_us < _STEPS:
        return delay_us
    shift = delay_us.bit_length() - _STEPS_BITS - 1
    return (shift << _STEPS_BITS) + (delay_us >> shift)


def _upper_us(index: int) -> int:
    """Return the largest delay of a bucket."""
    if index < 2 * _STEPS:
        return index
    shift = (index >> _STEPS_BITS) - 1
    return ((index - (shift << _STEPS_BITS) + 1) << shift) - 1
