"""The events that were stored last, by content: a server may send them again with other numbers. Pure."""

from __future__ import annotations

from typing import Final

from jetstream.model.event import Key

# A server that is killed sends again what it has sent in the last seconds. So many take 5 MB.
_EVENTS_MAX: Final = 50_000
# Of the log, so much is read when a server starts, in microseconds.
READ_AGAIN_US: Final = 60_000_000


class Recent:
    """Remembers events by their keys, up to `events_max`; the oldest are forgotten first."""

    def __init__(self, events_max: int = _EVENTS_MAX) -> None:
        self._events_max = events_max
        # By hash: two events in ten quadrillions have the same.
        self._hashes: dict[int, None] = {}

    def __contains__(self, key: Key) -> bool:
        return hash(key) in self._hashes

    def add(self, key: Key) -> None:
        """Remember an event."""
        self._hashes[hash(key)] = None
        if len(self._hashes) > self._events_max:
            del self._hashes[next(iter(self._hashes))]
