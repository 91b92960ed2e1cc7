"""Token buckets: a rate in the long run, with bursts. Pure.

A bucket holds up to `burst` tokens and gains `per_s` of them each second. Each use takes some; when there are
too few, the sender is over its budget.
"""

from __future__ import annotations

from typing import NamedTuple


class Rate(NamedTuple):
    """How much a peer may send: `per_s` a second in the long run, and `burst` at once."""

    per_s: float
    burst: int


class TokenBucket:
    """Tells when a peer sends more of something than `per_second`, after `burst` at once.

    `now` is in monotonic seconds and never falls.
    """

    __slots__ = ("_at", "_burst", "_per_second", "_tokens")

    def __init__(self, per_second: float, burst: float, now: float) -> None:
        self._per_second = per_second  # tokens that are added each second
        self._burst = burst  # the most tokens that the bucket holds; it starts full
        self._tokens = burst  # tokens that were left at `_at`
        self._at = now  # time of the last `spend`

    def spend(self, now: float, cost: float = 1.0) -> bool:
        """Take `cost` tokens. Return False, and take none, when there are fewer."""
        tokens = min(self._tokens + (now - self._at) * self._per_second, self._burst)
        enough = tokens >= cost
        self._tokens = tokens - cost if enough else tokens
        self._at = now
        return enough
