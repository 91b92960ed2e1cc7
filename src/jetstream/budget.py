"""A token bucket: so many at once, so many a second, and no more."""

from __future__ import annotations

import time
from collections.abc import Callable


class TokenBucket:
    """Tells when a peer sends more of something than `per_second`, after `burst` at once.

    `clock` gives monotonic seconds.
    """

    def __init__(
        self, per_second: float, burst: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._tokens = burst  # at `_at`; never above the burst
        self._at = clock()

    def spend(self, cost: float = 1.0) -> bool:
        """Take tokens for one more; False, and none taken, when there are too few."""
        if self._tokens < cost:
            self._fill()
            if self._tokens < cost:
                return False
        self._tokens -= cost
        return True

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second)
        self._at = now
