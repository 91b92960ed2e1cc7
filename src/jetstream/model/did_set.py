"""`DidSet`: a large set that the garbage collector does not traverse. Pure.

A collection of young objects looks at each element of each young `set`. With fifty filters of 10,000 DIDs
that are replaced every second, it held the event loop for 25 ms. CPython exempts a `dict` while nothing in it
can refer to other objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Final


class DidSet(AbstractSet[bytes]):
    """An immutable set of DIDs. Its hash is that of an equal `frozenset`, and computed once.

    It compares equal to any other set with the same DIDs. A dict that it is made from is copied.
    """

    __slots__ = ("__weakref__", "_hashed", "members")

    def __init__(self, dids: Iterable[bytes] = ()) -> None:
        # The DIDs, as the keys of a `dict` whose values are None. Never changed. The fastest way to look up
        # one of many: `did in members`. A `dict` is copied three times as fast as it is filled.
        self.members: dict[bytes, None] = dids.copy() if type(dids) is dict else dict.fromkeys(dids)
        # Compared first: unequal sets nearly always differ in it.
        self._hashed = hash(frozenset(self.members))

    def __contains__(self, did: object) -> bool:
        return did in self.members

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __hash__(self) -> int:
        return self._hashed

    def __eq__(self, other: object) -> bool:
        if isinstance(other, DidSet):
            return self is other or (
                self._hashed == other._hashed and self.members.keys() == other.members.keys()
            )
        return super().__eq__(other)

    def __sub__(self, other: AbstractSet[object]) -> DidSet:
        """Return what is left: itself, if nothing is left out. Takes no longer if `other` is large."""
        others = other.members if isinstance(other, DidSet) else other
        left = [did for did in self.members if did not in others] if others else self
        return self if len(left) == len(self) else DidSet(left)

    def isdisjoint(self, other: Iterable[object]) -> bool:
        """Tell whether none of `other` is in the set."""
        return self.members.keys().isdisjoint(other)


NO_DIDS: Final = DidSet()
