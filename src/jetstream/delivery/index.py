"""`Groups`: the subscribers at the tip of a lane, and which of them want an event. Pure.

Subscribers with equal encoding and options are one group: their bytes are the same, so they are put together
once. The work for an event grows with the groups that want it, never with all there are:

    an event ─▶ all groups that want everything
             ─▶ its DID         ─▶ the groups that name this DID; their collections are tested one by one
             ─▶ its collection  ─▶ the groups without DIDs that want it; remembered, collections are few

A filter may name 10,000 DIDs. Putting it into the index takes 5 ms, so that is a generator of steps, and its
owner runs it in turns of the event loop (`takes_steps`, `index`). Taking it out is deferred in the same way.
Until then the group stays in the index without members, and is written to nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from jetstream.delivery.subscriber import Encoding, Group, Subscriber, SubscriberOptions
from jetstream.model.batch import Batch
from jetstream.model.filter import DIDS_PER_STEP
from jetstream.steps import Steps, finish

# The groups of a DID are a tuple up to this size, and a dict above. Most DIDs have one group, and a dict
# takes five times the memory.
_TUPLE_GROUPS_MAX: Final = 8
# The index of DIDs is split into this many dicts: a dict of half a million entries takes 20 ms when it grows.
_SHARDS: Final = 64

Defer = Callable[[Steps[None]], None]  # runs work in steps, some time later
Picked = dict[Group, list[int]]


class Groups:
    """The groups of one lane, indexed by what they want.

    `collections_remembered` bounds the memory for collections, `defer` runs what takes long.
    """

    def __init__(self, collections_remembered: int, defer: Defer) -> None:
        self._collections_remembered = collections_remembered
        self._defer = defer
        # Every group with members.
        self._groups: dict[tuple[Encoding, SubscriberOptions], Group] = {}
        # The index: each group is in one of these. A dict without values is a set that keeps its order.
        self._everything: dict[Group, None] = {}
        self._by_collection: dict[Group, None] = {}  # the groups with collections and no DIDs
        # The groups that name a DID, in the shard of the DID's hash.
        self._by_did: list[dict[bytes, tuple[Group, ...] | dict[Group, None]]] = [{} for _ in range(_SHARDS)]
        # Of collections that events had: the groups of `_by_collection` that want it. Cleared when a group
        # without DIDs comes or goes, and when it is full.
        self._resolved: dict[bytes, tuple[Group, ...]] = {}

    def takes_steps(self, subscriber: Subscriber) -> bool:
        """Tell whether the group of a subscriber is large and must be indexed first, in steps."""
        large = len(subscriber.options.wanted.dids) > DIDS_PER_STEP
        return large and (subscriber.encoding, subscriber.options) not in self._groups

    def add(self, subscriber: Subscriber, indexed: Group | None = None) -> None:
        """Put a subscriber into its group: the one there is, else `indexed`, else a new one."""
        key = (subscriber.encoding, subscriber.options)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = indexed or Group(*key)
            if indexed is None:
                finish(self.index(group))
        elif indexed is not None:
            self.forget(indexed)
        group.members[subscriber] = None
        subscriber.group = group

    def remove(self, subscriber: Subscriber) -> None:
        """Take a subscriber out of its group, and remove the group with its last member."""
        group = subscriber.group
        assert group is not None
        del group.members[subscriber]
        subscriber.group = None
        if not group.members:
            del self._groups[group.encoding, group.options]
            self.forget(group)

    def forget(self, group: Group) -> None:
        """Take a group without members out of the index; a large one later, in steps."""
        large = len(group.options.wanted.dids) > DIDS_PER_STEP
        (self._defer if large else finish)(self._unindex(group))

    def index(self, group: Group) -> Steps[None]:
        """Put a group without members into the index, in steps of well under a millisecond."""
        wanted = group.options.wanted
        if wanted.dids:
            alone = (group,)  # one tuple for all DIDs that no other group names
            for count, did in enumerate(wanted.dids, 1):
                self._index_did(did, alone)
                if count % DIDS_PER_STEP == 0:
                    yield
        else:
            (self._everything if wanted.everything else self._by_collection)[group] = None
            self._resolved.clear()

    def _unindex(self, group: Group) -> Steps[None]:
        """Take a group out of the index, also one that was indexed in part."""
        wanted = group.options.wanted
        if wanted.dids:
            for count, did in enumerate(wanted.dids, 1):
                self._unindex_did(did, group)
                if count % DIDS_PER_STEP == 0:
                    yield
        else:
            del (self._everything if wanted.everything else self._by_collection)[group]
            self._resolved.clear()

    def _index_did(self, did: bytes, alone: tuple[Group]) -> None:
        shard = self._by_did[hash(did) % _SHARDS]
        groups = shard.get(did, ())
        if isinstance(groups, dict):
            groups[alone[0]] = None
        elif len(groups) < _TUPLE_GROUPS_MAX:
            shard[did] = groups + alone if groups else alone
        else:
            shard[did] = dict.fromkeys(groups + alone)

    def _unindex_did(self, did: bytes, group: Group) -> None:
        shard = self._by_did[hash(did) % _SHARDS]
        groups = shard.get(did, ())
        if group not in groups:
            return
        if len(groups) == 1:
            del shard[did]
        elif isinstance(groups, dict):
            del groups[group]
        else:
            shard[did] = tuple(each for each in groups if each is not group)

    def wanted(self, batch: Batch, start: int, stop: int) -> dict[Group, Sequence[int]]:
        """Return the indices of `batch[start:stop]` that each group wants, without groups that want none."""
        picked: Picked = {}
        if self._by_collection:
            self._pick_by_collection(batch, start, stop, picked)
        if any(self._by_did):
            self._pick_by_did(batch, start, stop, picked)
        return {**dict.fromkeys(self._everything, range(start, stop)), **picked}

    def _pick_by_collection(self, batch: Batch, start: int, stop: int, picked: Picked) -> None:
        collections, resolved = batch.collections, self._resolved
        for i in range(start, stop):
            groups = resolved.get(collections[i])
            if groups is None:
                groups = self._resolve(collections[i])
            for group in groups:
                picked.setdefault(group, []).append(i)

    def _resolve(self, collection: bytes) -> tuple[Group, ...]:
        """Return the groups without DIDs that want a collection.

        Identity and account events have no collection. They pass every filter of collections.
        """
        if len(self._resolved) >= self._collections_remembered:
            self._resolved.clear()
        groups = self._by_collection
        if collection:
            groups = {group: None for group in groups if group.options.wanted.wants_collection(collection)}
        self._resolved[collection] = tuple(groups)
        return self._resolved[collection]

    def _pick_by_did(self, batch: Batch, start: int, stop: int, picked: Picked) -> None:
        dids, by_did = batch.dids, self._by_did
        for i in range(start, stop):
            did = dids[i]
            for group in by_did[hash(did) % _SHARDS].get(did, ()):
                wanted = group.options.wanted
                if wanted.every_collection or wanted.wants(batch.kinds[i], did, batch.collections[i]):
                    picked.setdefault(group, []).append(i)
