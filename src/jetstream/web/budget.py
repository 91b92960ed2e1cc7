"""How much one client may send: token buckets, pure.

A client sends pongs, and updates of its options: `wire.md` promises ten a second with 100 DIDs, one a second
with 10,000, and ten pings. The rates are a few times that. A burst is what a client may have sent while its
network, or the server, stood still for some seconds.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from jetstream.delivery.subscriber import Close
from jetstream.token_bucket import TokenBucket


class Rate(NamedTuple):
    """How much may come in a second in the long run, and at once."""

    per_s: float
    burst: int


MESSAGES: Final = Rate(40, 200)
BYTES: Final = Rate(1 << 20, 6 << 20)  # 2.9 updates of 10,000 DIDs a second
CONTROL: Final = Rate(40, 200)
FRAGMENTS: Final = Rate(1_000, 4_000)  # 1 MB in pieces as small as a packet


class Flood(Exception):
    """A client sends more than its budget."""

    def __init__(self, what: str) -> None:
        self.close = Close(1008, "flood", f"flood: more {what} than a client may send")
        super().__init__(self.close.text)


class Budget:
    """What one client may still send. `now` is in monotonic seconds and never falls."""

    __slots__ = ("_bytes", "_control", "_fragments", "_messages")

    def __init__(self, now: float) -> None:
        # One bucket for each rate above; every frame is paid for in bytes, too.
        self._messages = TokenBucket(*MESSAGES, now)
        self._bytes = TokenBucket(*BYTES, now)
        self._control = TokenBucket(*CONTROL, now)
        self._fragments = TokenBucket(*FRAGMENTS, now)

    def take_message(self, size: int, now: float) -> None:
        """Pay for a message of `size` bytes. Raises Flood, as the others do."""
        self._take(self._messages, "messages", size, now)

    def take_control(self, size: int, now: float) -> None:
        """Pay for a ping, a pong or a close."""
        self._take(self._control, "control frames", size, now)

    def take_fragment(self, size: int, now: float) -> None:
        """Pay for a fragment of a message; the message is paid for when it is whole."""
        self._take(self._fragments, "fragments", size, now)

    def _take(self, bucket: TokenBucket, what: str, size: int, now: float) -> None:
        if not bucket.spend(now):
            raise Flood(what)
        if not self._bytes.spend(now, size):
            raise Flood("bytes")
