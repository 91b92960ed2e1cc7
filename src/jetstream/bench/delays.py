"""Delays as a histogram: bounded memory however many there are, percentiles to within 1.6 %."""

from __future__ import annotations

from typing import Final

_STEPS_BITS: Final = 6  # 64 buckets to each power of two
_STEPS: Final = 1 << _STEPS_BITS
_BUCKETS: Final = (40 - _STEPS_BITS) * _STEPS  # up to 2^39 µs, six days
LARGEST_US: Final = (1 << 39) - 1


class Delays:
    """Counts of delays in microseconds. One below zero, out of two clocks that differ, counts as zero."""

    def __init__(self) -> None:
        self.count = 0
        self.max_us = 0
        self._buckets = [0] * _BUCKETS

    def add(self, delay_us: int) -> None:
        """Count one delay."""
        if delay_us < _STEPS:
            self._buckets[max(delay_us, 0)] += 1
        else:
            shift = min(delay_us, LARGEST_US).bit_length() - _STEPS_BITS - 1
            self._buckets[(shift << _STEPS_BITS) + (min(delay_us, LARGEST_US) >> shift)] += 1
        self.count += 1
        self.max_us = max(self.max_us, delay_us)

    def percentile_us(self, percent: float) -> int:
        """Return the delay that so many percent are not above; 0 where nothing was counted."""
        rank = self.count * percent / 100
        seen = 0
        for index, count in enumerate(self._buckets):
            seen += count
            if count and seen >= rank:
                return min(_upper_us(index), self.max_us)
        return 0


def _upper_us(index: int) -> int:
    """Return the largest delay that a bucket holds."""
    if index < 2 * _STEPS:
        return index
    shift = (index >> _STEPS_BITS) - 1
    return ((index - (shift << _STEPS_BITS) + 1) << shift) - 1
