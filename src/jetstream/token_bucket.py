"""A token bucket: so many at once, so many a second, and no more. Pure."""

from __future__ import annotations


class TokenBucket:
    """Tells when a peer sends more of something than `per_second`, after `burst` at once.

    `now` is in monotonic seconds, and never falls.
    """

    __slots__ = ("_at", "_burst", "_per_second", "_tokens")

    def __init__(self, per_second: float, burst: float, now: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._tokens = burst  # what was left at `_at`; never above the burst
        self._at = now  # when tokens were last asked for

    def spend(self, now: float, cost: float = 1.0) -> bool:
        """Take tokens for one more; False, and none taken, when there are too few."""
        tokens = min(self._tokens + (now - self._at) * self._per_second, self._burst)
        enough = tokens >= cost
        self._tokens = tokens - cost if enough else tokens
        self._at = now
        return enough
