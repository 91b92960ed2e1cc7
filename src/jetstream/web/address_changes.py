"""What changes of an address, for the other processes of a server. Pure.

    Addresses.note ──▶ Changes ── take, every `share_every_s` ──▶ supervisor ──▶ Addresses.add_elsewhere
    (one process)                                                                (each other process)

Only differences are sent, so that their order does not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

Key = tuple[int, int]  # the IP version, and the address or its network as a number


class Change(NamedTuple):
    """What has changed of one address: how many more or fewer, and what was taken from its buckets."""

    # Visits that were not refused: more of them, or fewer if it is below 0.
    connections: int = 0
    # Replays, counted in the same way.
    replays: int = 0
    # Tokens taken for connections that have begun.
    begun: int = 0
    # Tokens taken for replays that have begun.
    replayed: int = 0
    # Bytes that were sent to replays.
    sent: int = 0

    def plus(self, other: Change) -> Change:
        """Return both changes as one."""
        return Change(*map(sum, zip(self, other, strict=True)))


# What an address begins with.
NO_CHANGE: Final = Change()


class Changes:
    """Adds up what has changed since it was taken last. `noted` is called with each change."""

    def __init__(self, noted: Callable[[], None]) -> None:
        # Has the next `take` scheduled. It is called for each change, so it must be cheap.
        self._noted = noted
        # The sum of the changes of each address since the last `take`. Bounded by the connections of the
        # addresses.
        self._changes: dict[Key, Change] = {}

    def note(self, key: Key, change: Change) -> None:
        """Add a change."""
        self._changes[key] = self._changes.get(key, NO_CHANGE).plus(change)
        self._noted()

    def take(self) -> list[tuple[Key, Change]]:
        """Return what has changed since the last call.

        A change and its opposite add up to zeros, which are returned, too.
        """
        changes = list(self._changes.items())
        self._changes = {}
        return changes
