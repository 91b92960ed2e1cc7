"""How much one WebSocket client may send: a token bucket for each kind of thing. Pure.

A client sends pongs, pings and updates of its options. The server promises to take 10 updates a second with
100 DIDs each, one a second with 10,000 DIDs, and 10 pings a second. The rates in `WebLimits` are a few times
that. A burst is what a client may have sent while its network, or the server, did not move for some seconds.
"""

from __future__ import annotations

from jetstream.delivery.subscriber import Close
from jetstream.limits import WebLimits
from jetstream.token_bucket import TokenBucket


class RateLimitExceeded(Exception):
    """A client sends more than it may; `close` is what its connection is closed with."""

    def __init__(self, what: str) -> None:
        self.close = Close(1008, "flood", f"flood: more {what} than a client may send")
        super().__init__(self.close.text)


class RateLimiter:
    """What one client may still send. `now` is in monotonic seconds and never falls.

    Each frame takes a token of its kind, and its size in bytes. Each method raises RateLimitExceeded when
    there are too few.
    """

    __slots__ = ("_bytes", "_control", "_fragments", "_messages")

    def __init__(self, now: float, limits: WebLimits = WebLimits()) -> None:
        # One bucket for each rate of `WebLimits`.
        self._messages = TokenBucket(*limits.messages, now)
        # Payload bytes of all frames.
        self._bytes = TokenBucket(*limits.message_bytes, now)
        self._control = TokenBucket(*limits.control_frames, now)
        self._fragments = TokenBucket(*limits.fragments, now)

    def take_message(self, size: int, now: float) -> None:
        """Take a message whose last frame has `size` bytes."""
        self._take(self._messages, "messages", size, now)

    def take_control(self, size: int, now: float) -> None:
        """Take a ping, a pong or a close frame."""
        self._take(self._control, "control frames", size, now)

    def take_fragment(self, size: int, now: float) -> None:
        """Take a fragment of a message. The message itself is taken when it is complete."""
        self._take(self._fragments, "fragments", size, now)

    def _take(self, bucket: TokenBucket, what: str, size: int, now: float) -> None:
        if not bucket.spend(now):
            raise RateLimitExceeded(what)
        if not self._bytes.spend(now, size):
            raise RateLimitExceeded("bytes")
