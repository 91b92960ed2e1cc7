"""Token buckets: a rate in the long run, with bursts. Pure.

A bucket holds up to `burst` tokens and gains `per_s` of them each second. Each use takes some; when
there are too few, the sender is over its budget.

Nothing runs between two uses: what was gained since the last one is added when the bucket is used next.
The caller gives the time, so a bucket needs no clock.
"""

from __future__ import annotations

from typing import NamedTuple


class Rate(NamedTuple):
    """How much a peer may send: `per_s` a second in the long run, and `burst` at once.

    `per_s` is above 0. `burst` is also what a bucket holds at first.
    """

    per_s: float
    burst: int


class TokenBucket:
    """Tells when a peer sends more of something than `per_second`, after `burst` at once.

    `now` is in monotonic seconds and never falls.

    `per_second` must not be 0. A cost is a number of messages, bytes or requests: the unit is the
    user's.
    """

    __slots__ = ("_at", "_burst", "_per_second", "_tokens")

    def __init__(self, per_second: float, burst: float, now: float) -> None:
        self._per_second = per_second  # tokens that are added each second
        self._burst = burst  # the most tokens that the bucket holds; it starts full
        self._tokens = burst  # tokens that were left at `_at`; below 0: so many are owed
        self._at = now  # time of the last change

    def spend(self, now: float, cost: float = 1.0) -> bool:
        """Take `cost` tokens. Return False, and take none, when there are fewer.

        A cost above the burst is never granted.
        """
        self._gain(now)
        enough = self._tokens >= cost
        if enough:
            self._tokens -= cost
        return enough

    def overspend(self, now: float, cost: float) -> float:
        """Take `cost` tokens, even if the bucket has fewer. Return the seconds until its balance is 0.

        For what has happened already, such as bytes that were received: the sender is then read no
        further for so long.
        """
        self._gain(now)
        self._tokens -= cost
        return max(0.0, -self._tokens / self._per_second)

    def wait_s(self, now: float, cost: float = 1.0) -> float:
        """Return the seconds until there are `cost` tokens.

        It takes none. 0: they are there. A cost above the burst is never reached, whatever this
        returns.
        """
        self._gain(now)
        return max(0.0, (cost - self._tokens) / self._per_second)

    @property
    def full_at(self) -> float:
        """When the bucket is full again, if nothing is taken. Then it is like a new one."""
        return self._at + (self._burst - self._tokens) / self._per_second

    def _gain(self, now: float) -> None:
        """Add what was gained since the last change, up to the burst. `now` never falls."""
        self._tokens = min(self._tokens + (now - self._at) * self._per_second, self._burst)
        self._at = now
