"""Whether a source may still bring what another one has lost. Pure.

A source that has just lost its connection, or was just added, is about to have one. What it was sent before
comes then.

Of a repository without a state, nothing tells what is missing but the rev that its first message names as the
one before (`since`). If that is from after the time when reading began, its message should have come.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection
from typing import Final

# The revs that are remembered, and which of them counts. An account chooses its revs, so neither the lowest
# nor the first one tells when reading began.
_FIRST_REVS: Final = 20
_LOW: Final = 1


class Presence:
    """Which sources are connected, or were less than `grace_s` seconds ago."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        # The sources that are connected, and when each of the others was last: `update`.
        self._connected: set[str] = set()
        self._gone_at: dict[str, float] = {}

    def use(self, sources: Collection[str], now: float) -> None:
        """Set the sources that are in use."""
        sources = frozenset(sources)
        known = self._connected.union(self._gone_at)
        self._connected.intersection_update(sources)
        gone = {name: at for name, at in self._gone_at.items() if name in sources}
        self._gone_at = gone | {name: now for name in sources if name not in known}

    def update(self, connected: Collection[str], now: float) -> None:
        """Note which sources are connected. To be called when that changes."""
        for name in self._connected.difference(connected):
            self._gone_at[name] = now
        self._connected = set(connected)
        for name in self._connected.intersection(self._gone_at):
            del self._gone_at[name]

    def has_others(self, source: str, now: float) -> bool:
        """Return whether there is a source beside this one."""
        if len(self._connected) > (source in self._connected):
            return True
        return any(name != source and now - at < self._grace_s for name, at in self._gone_at.items())


class Beginning:
    """From which rev on messages were read: about that of the first ones that were passed on."""

    def __init__(self) -> None:
        # The revs of the first messages, rising.
        self._revs: list[str] = []

    def note(self, rev: str) -> None:
        """Note that a message was passed on."""
        if len(self._revs) < _FIRST_REVS:
            insort(self._revs, rev)

    def is_after(self, rev: str) -> bool:
        """Return whether a message of this rev should have been read."""
        return len(self._revs) > _LOW and rev > self._revs[_LOW]
