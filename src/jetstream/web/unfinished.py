"""What clients have begun to send and not finished: how long it may take, and how much memory it may hold."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

BYTES_MAX: Final = 64 << 20  # of all clients together: sixty requests of the greatest length

Owner = TypeVar("Owner")


class Unfinished(Generic[Owner]):
    """The clients that are waited for, the longest first, and the bytes that are held for each.

    `timeout_s` is how long each may take, `bytes_max` how much all may hold together.
    """

    def __init__(self, timeout_s: float, bytes_max: int = BYTES_MAX) -> None:
        self._timeout_s = timeout_s
        self._bytes_max = bytes_max
        self._held: dict[Owner, tuple[float, int]] = {}  # since when, and how many bytes; in order of time
        self._total = 0  # bytes of all

    def __len__(self) -> int:
        return len(self._held)

    def begin(self, owner: Owner, now: float, size: int = 0) -> None:
        """Wait for an owner from now on, whether it was waited for before or not."""
        self.end(owner)
        self._held[owner] = (now, size)
        self._total += size

    def hold(self, owner: Owner, now: float, size: int) -> None:
        """Note how many bytes are held for an owner; one that is not waited for yet is from now on."""
        since, before = self._held.get(owner, (now, 0))
        self._held[owner] = (since, size)
        self._total += size - before

    def end(self, owner: Owner) -> None:
        """Wait for an owner no more."""
        held = self._held.pop(owner, None)
        if held is not None:
            self._total -= held[1]

    def longest(self) -> Owner | None:
        """Return the one that has been waited for the longest."""
        return next(iter(self._held), None)

    def excess(self) -> Owner | None:
        """Return the longest waiting one that holds bytes, while all hold too many together."""
        if self._total <= self._bytes_max:
            return None
        return next(owner for owner, (_, size) in self._held.items() if size)

    def expired(self, now: float) -> Owner | None:
        """Return one whose time is over."""
        owner = self.longest()
        return owner if owner is not None and now - self._held[owner][0] >= self._timeout_s else None
