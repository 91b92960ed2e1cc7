"""Delays as a histogram: bounded memory however many there are, percentiles to within 1.6 %."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

_STEPS_BITS: Final = 6  # 64 buckets to each power of two
_STEPS: Final = 1 << _STEPS_BITS
_BUCKETS: Final = (40 - _STEPS_BITS) * _STEPS  # up to 2^39 µs, six days
LARGEST_US: Final = (1 << 39) - 1
_NOTED_MAX: Final = 1_000


class Delays:
    """Counts of delays in microseconds. One below zero, out of two clocks that differ, counts as zero."""

    def __init__(self) -> None:
        self._buckets = [0] * _BUCKETS
        self._noted: list[int] = []
        self._max_us = 0

    def add(self, delay_us: int) -> None:
        """Count one delay."""
        self._noted.append(delay_us)
        if len(self._noted) == _NOTED_MAX:
            self._count_noted()

    @property
    def count(self) -> int:
        """How many were counted."""
        self._count_noted()
        return sum(self._buckets)

    @property
    def max_us(self) -> int:
        """The longest delay, exactly; 0 where nothing was counted."""
        self._count_noted()
        return self._max_us

    def _count_noted(self) -> None:
        """Count what was noted, sorted, so that each bucket is looked for once: a quarter of the work."""
        noted = self._noted
        noted.sort()
        start = 0
        while start < len(noted):
            bucket = _bucket(noted[start])
            stop = bisect_right(noted, _upper_us(bucket), lo=start + 1)
            self._buckets[bucket] += stop - start
            start = stop
        self._max_us = max([self._max_us, *noted[-1:]])
        noted.clear()

    def percentile_us(self, percent: float) -> int:
        """Return the delay that so many percent are not above; 0 where nothing was counted."""
        rank = self.count * percent / 100
        longest = self.max_us
        seen = 0
        for index, count in enumerate(self._buckets):
            seen += count
            if count and seen >= rank:
                return min(_upper_us(index), longest)
        return 0


def _bucket(delay_us: int) -> int:
    """Return which bucket counts a delay."""
    delay_us = min(max(delay_us, 0), LARGEST_US)
    if delay_us < _STEPS:
        return delay_us
    shift = delay_us.bit_length() - _STEPS_BITS - 1
    return (shift << _STEPS_BITS) + (delay_us >> shift)


def _upper_us(index: int) -> int:
    """Return the largest delay that a bucket holds."""
    if index < 2 * _STEPS:
        return index
    shift = (index >> _STEPS_BITS) - 1
    return ((index - (shift << _STEPS_BITS) + 1) << shift) - 1
