"""`DidIndex`: what stands under each DID. `ListIndex`: the lists of DIDs that many filters share. Pure.

A filter that names DIDs stands under each of them. A list of 100,000 DIDs, which clients upload once and use
beside any other parameters, stands under its DIDs once, however many groups of however many lanes use it:

    a DID ─▶ the groups that name it             `DidIndex`, one for each lane
          ─▶ the lists that have it              `ListIndex`, one for all lanes
                ─▶ the groups of a lane that use the list, by what else they want (`Groups`)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Generic, TypeVar

from jetstream.model.did_set import DidSet
from jetstream.model.filter import DIDS_PER_STEP
from jetstream.steps import Steps, finish

# What stands under a DID is a tuple up to this size, and a dict above. Most DIDs have one entry, and a dict
# takes five times the memory.
TUPLE_MAX: Final = 8
# The index is split into this many dicts: a dict of half a million entries takes 20 ms when it grows.
SHARDS: Final = 64

Entry = TypeVar("Entry")
# Runs work in steps, some time later and in the order in which it was given: `Worker.put`.
Defer = Callable[[Steps[None]], None]


class DidIndex(Generic[Entry]):
    """Entries under the DIDs that each names.

    An entry is a `Group` or a `Listed`, which are compared by identity. An entry can be looked up while it is
    being added or removed: it stands under some of its DIDs then.
    """

    __slots__ = ("shards",)

    def __init__(self) -> None:
        # The entries of a DID are in the shard of the DID's hash. Read where events are judged.
        self.shards: list[dict[bytes, tuple[Entry, ...] | dict[Entry, None]]] = [{} for _ in range(SHARDS)]

    def add(self, dids: Iterable[bytes], entry: Entry) -> Steps[None]:
        """Put an entry under DIDs, in steps of well under a millisecond; also one that was added in part."""
        alone = (entry,)  # one tuple for all DIDs that no other entry names
        for count, did in enumerate(dids, 1):
            self._add(did, alone)
            if count % DIDS_PER_STEP == 0:
                yield

    def remove(self, dids: Iterable[bytes], entry: Entry) -> Steps[None]:
        """Remove an entry from under DIDs, also one that was added in part, in steps as `add`."""
        for count, did in enumerate(dids, 1):
            self._remove(did, entry)
            if count % DIDS_PER_STEP == 0:
                yield

    def _add(self, did: bytes, alone: tuple[Entry]) -> None:
        """Put an entry under a DID, unless it is there. `alone` is the entry as a tuple of one."""
        shard = self.shards[hash(did) % SHARDS]
        entries = shard.get(did)
        if entries is None:
            shard[did] = alone
        elif isinstance(entries, dict):
            entries[alone[0]] = None
        elif alone[0] not in entries:  # else it was added in part before
            shard[did] = entries + alone if len(entries) < TUPLE_MAX else dict.fromkeys(entries + alone)

    def _remove(self, did: bytes, entry: Entry) -> None:
        """Remove an entry from under a DID, if it is there. A dict stays a dict when it gets smaller."""
        shard = self.shards[hash(did) % SHARDS]
        entries = shard.get(did, ())
        if entry not in entries:
            return
        if len(entries) == 1:
            del shard[did]
        elif isinstance(entries, dict):
            del entries[entry]
        else:
            shard[did] = tuple(each for each in entries if each is not entry)


class Listed:
    """A list of DIDs in the index. It is an entry of a `DidIndex`, and compared by identity."""

    __slots__ = ("dids", "ready", "users")

    def __init__(self, dids: DidSet) -> None:
        self.dids = dids
        # How many groups of all lanes use it; changed by `ListIndex`.
        self.users = 0
        # Whether it stands under all of its DIDs; set by `ListIndex`.
        self.ready = False


class ListIndex:
    """The lists that groups of all lanes use. `defer` removes the large ones, in steps."""

    def __init__(self, defer: Defer) -> None:
        self._defer = defer
        # Every list with users.
        self._lists: dict[DidSet, Listed] = {}
        # Those and, until they are removed, others without users.
        self.by_did: DidIndex[Listed] = DidIndex()

    def takes_steps(self, dids: DidSet) -> bool:
        """Tell whether a list is large and does not stand under all of its DIDs."""
        if len(dids) <= DIDS_PER_STEP:
            return False
        listed = self._lists.get(dids)
        return listed is None or not listed.ready

    def hold(self, dids: DidSet) -> Listed:
        """Count a user of a list, and return the list. It is in the index after `fill`.

        Each call needs one of `release`, also if `fill` was not run to its end.
        """
        listed = self._lists.get(dids)
        if listed is None:
            listed = self._lists[dids] = Listed(dids)
        listed.users += 1
        return listed

    def find(self, dids: DidSet) -> Listed:
        """Return a list that has users. Raises KeyError for any other."""
        return self._lists[dids]

    def fill(self, listed: Listed) -> Steps[None]:
        """Put a list under all of its DIDs, in steps, unless it is."""
        if not listed.ready:
            yield from self.by_did.add(listed.dids, listed)
            listed.ready = True

    def release(self, listed: Listed) -> None:
        """Count one user less; remove a list with its last one, a large one later.

        If it is used again before that, it is a new `Listed`: two stand under the DIDs for a while, and no
        group uses the old one.
        """
        listed.users -= 1
        if not listed.users:
            del self._lists[listed.dids]
            large = len(listed.dids) > DIDS_PER_STEP
            (self._defer if large else finish)(self.by_did.remove(listed.dids, listed))
