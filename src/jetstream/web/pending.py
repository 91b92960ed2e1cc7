"""Peers that have started something and not finished it: a deadline for each, a memory limit for all. Pure.

Three kinds of things are pending: a request that is not complete, a message that is not complete, and a
response that the client has not read. A client that sends one byte now and then must not hold a connection
or memory for ever, so the deadline counts from the start and is not moved by progress.

All entries of one `Pending` have the same timeout, and a `dict` keeps them in the order in which they were
started. So the first entry is the oldest, and it is also the first to expire: no heap is needed, and each
operation is O(1), except `over_limit`, which skips entries that hold no bytes.
"""

from __future__ import annotations

from typing import Generic, TypeVar

Owner = TypeVar("Owner")


class Pending(Generic[Owner]):
    """The owners of what is pending, the oldest first, and the bytes that are held for each.

    `timeout_s` is how long each may take; `bytes_max` is how many bytes all may hold together. `now` is in
    monotonic seconds and never falls.
    """

    def __init__(self, timeout_s: float, bytes_max: int) -> None:
        self._timeout_s = timeout_s
        self._bytes_max = bytes_max
        # By owner: when it started, and how many bytes are held for it. In the order of the start times.
        self._entries: dict[Owner, tuple[float, int]] = {}
        # Sum of the bytes of all entries.
        self._total = 0

    def __len__(self) -> int:
        return len(self._entries)

    def start(self, owner: Owner, now: float, size: int = 0) -> None:
        """Start the timeout of an owner; restart it for one that is pending already."""
        self.remove(owner)
        self._entries[owner] = (now, size)
        self._total += size

    def update(self, owner: Owner, now: float, size: int) -> None:
        """Set how many bytes are held for an owner. The timeout starts with the first call only."""
        since, before = self._entries.get(owner, (now, 0))
        self._entries[owner] = (since, size)
        self._total += size - before

    def remove(self, owner: Owner) -> None:
        """Stop the timeout of an owner, if it is pending: it has finished or has gone."""
        entry = self._entries.pop(owner, None)
        if entry is not None:
            self._total -= entry[1]

    def oldest(self) -> Owner | None:
        """Return the owner that has been pending the longest."""
        return next(iter(self._entries), None)

    def over_limit(self) -> Owner | None:
        """Return the owner to drop while all hold more than `bytes_max`: the oldest that holds any bytes."""
        if self._total <= self._bytes_max:
            return None
        return next(owner for owner, (_, size) in self._entries.items() if size)

    def expired(self, now: float) -> Owner | None:
        """Return the oldest owner if its timeout is over."""
        owner = self.oldest()
        return owner if owner is not None and now - self._entries[owner][0] >= self._timeout_s else None
