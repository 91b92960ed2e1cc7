"""What changes of an address, for the other processes of a server. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

Key = tuple[int, int]  # the IP version, and the address or its network as a number


class Change(NamedTuple):
    """What has changed of one address: how many more or fewer, and what was taken from its buckets."""

    connections: int = 0
    replays: int = 0
    begun: int = 0
    replayed: int = 0
    sent: int = 0

    def plus(self, other: Change) -> Change:
        """Return both changes as one."""
        return Change(*map(sum, zip(self, other, strict=True)))


NO_CHANGE: Final = Change()


class Changes:
    """Adds up what has changed since it was taken last. `noted` is called with each change."""

    def __init__(self, noted: Callable[[], None]) -> None:
        self._noted = noted
        # By address. Bounded by the connections of the addresses.
        self._changes: dict[Key, Change] = {}

    def note(self, key: Key, change: Change) -> None:
        """Add a change."""
        self._changes[key] = self._changes.get(key, NO_CHANGE).plus(change)
        self._noted()

    def take(self) -> list[tuple[Key, Change]]:
        """Return what has changed since the last call."""
        changes = list(self._changes.items())
        self._changes = {}
        return changes
