"""How much one client may send: token buckets, pure.

A client sends pongs, and updates of its options: `wire.md` promises ten a second with 100 DIDs, one a second
with 10,000, and ten pings. The rates are a few times that. A burst is what a client may have sent while its
network, or the server, stood still for some seconds.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from jetstream.hub.subscriber import Close


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

    __slots__ = ("_bytes", "_control", "_fragments", "_messages", "_refilled_at")

    def __init__(self, now: float) -> None:
        # Tokens that are left, up to the burst of each rate; they come back as time passes.
        self._messages = float(MESSAGES.burst)
        self._bytes = float(BYTES.burst)
        self._control = float(CONTROL.burst)
        self._fragments = float(FRAGMENTS.burst)
        self._refilled_at = now

    def take_message(self, size: int, now: float) -> None:
        """Pay for a message of `size` bytes. Raises Flood, as the others do."""
        self._refill(now)
        self._messages -= 1
        self._bytes -= size
        if self._messages < 0:
            raise Flood("messages")
        self._check_bytes()

    def take_control(self, size: int, now: float) -> None:
        """Pay for a ping, a pong or a close."""
        self._refill(now)
        self._control -= 1
        self._bytes -= size
        if self._control < 0:
            raise Flood("control frames")
        self._check_bytes()

    def take_fragment(self, size: int, now: float) -> None:
        """Pay for a fragment of a message; the message is paid for when it is whole."""
        self._refill(now)
        self._fragments -= 1
        self._bytes -= size
        if self._fragments < 0:
            raise Flood("fragments")
        self._check_bytes()

    def _check_bytes(self) -> None:
        if self._bytes < 0:
            raise Flood("bytes")

    def _refill(self, now: float) -> None:
        passed_s = now - self._refilled_at
        self._refilled_at = now
        self._messages = min(self._messages + passed_s * MESSAGES.per_s, MESSAGES.burst)
        self._bytes = min(self._bytes + passed_s * BYTES.per_s, BYTES.burst)
        self._control = min(self._control + passed_s * CONTROL.per_s, CONTROL.burst)
        self._fragments = min(self._fragments + passed_s * FRAGMENTS.per_s, FRAGMENTS.burst)
