"""Who wants an event: groups of equal subscribers, and the index from an event to its groups.

Work grows with the groups that match, never with all there are: a DID leads to the groups that name
it, a collection to the groups without DIDs that want it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from jetstream.delivery.encoding import Encoding
from jetstream.delivery.subscriber import Group, Subscriber, SubscriberOptions
from jetstream.model.batch import Batch
from jetstream.model.filter import DIDS_PER_STEP
from jetstream.scheduling import Worker
from jetstream.steps import Steps, finish

# The groups of a DID are a tuple up to so many, for most DIDs have one, and a dict is five times as large.
_TUPLE_GROUPS_MAX: Final = 8
# The index of DIDs is this many dicts: when one of half a million entries grows, that takes 20 ms in one go.
_SHARDS: Final = 64


class Groups:
    """The groups of one lane, indexed by what they want."""

    def __init__(self, collections_remembered: int) -> None:
        self._collections_remembered = collections_remembered
        self._groups: dict[tuple[Encoding, SubscriberOptions], Group] = {}
        self._encodings = Counter[Encoding]()  # groups of each encoding in use
        self._everything: dict[Group, None] = {}
        self._by_collection: dict[Group, None] = {}  # those with collections and no DIDs
        # By hash(DID) % _SHARDS: the groups that name a DID.
        self._by_did: tuple[dict[bytes, tuple[Group, ...] | dict[Group, None]], ...] = tuple(
            {} for _ in range(_SHARDS)
        )
        self._resolved: dict[bytes, tuple[Group, ...]] = {}
        self._worker = Worker(pause_ratio=1.0)  # takes large groups out of the index

    def __len__(self) -> int:
        return len(self._groups)

    def takes_steps(self, subscriber: Subscriber) -> bool:
        """Tell whether the group of a subscriber is to be indexed first, in steps."""
        large = len(subscriber.options.wanted.dids) > DIDS_PER_STEP
        return large and (subscriber.encoding, subscriber.options) not in self._groups

    def add(self, subscriber: Subscriber, indexed: Group | None = None) -> None:
        """Put a subscriber into the group of its encoding and options: `indexed`, unless there is one."""
        key = (subscriber.encoding, subscriber.options)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = indexed or Group(subscriber.encoding, subscriber.options)
            if indexed is None:
                finish(self.index(group))
        elif indexed is not None:
            self.forget(indexed)
        group.members[subscriber] = None
        subscriber.group = group

    def remove(self, subscriber: Subscriber) -> None:
        """Take a subscriber out of its group, and the group away with its last member."""
        group = subscriber.group
        assert group is not None
        del group.members[subscriber]
        subscriber.group = None
        if not group.members:
            del self._groups[group.encoding, group.options]
            self.forget(group)

    def forget(self, group: Group) -> None:
        """Take a group without members out of the index; a large one in steps, as the loop has time."""
        if len(group.options.wanted.dids) > DIDS_PER_STEP:
            self._worker.put(self._unindex(group))
        else:
            finish(self._unindex(group))

    def index(self, group: Group) -> Steps[None]:
        """Put a group into the index, in steps of well under a millisecond; no one is in it yet."""
        self._encodings[group.encoding] += 1
        wanted = group.options.wanted
        if wanted.dids:
            alone = (group,)  # one tuple for all DIDs that no other group names
            for count, did in enumerate(wanted.dids, 1):
                self._index_did(did, alone)
                if count % DIDS_PER_STEP == 0:
                    yield
        elif wanted.everything:
            self._everything[group] = None
        else:
            self._by_collection[group] = None
            self._resolved.clear()

    def _unindex(self, group: Group) -> Steps[None]:
        """Take a group out of the index, one that is not wholly in it, too."""
        self._encodings[group.encoding] -= 1
        if not self._encodings[group.encoding]:
            del self._encodings[group.encoding]
        wanted = group.options.wanted
        if wanted.dids:
            for count, did in enumerate(wanted.dids, 1):
                self._unindex_did(did, group)
                if count % DIDS_PER_STEP == 0:
                    yield
        elif wanted.everything:
            del self._everything[group]
        else:
            del self._by_collection[group]
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

    def encodings(self) -> list[Encoding]:
        """Return the encodings that the groups use."""
        return list(self._encodings)

    def wanted(self, batch: Batch, start: int, stop: int) -> dict[Group, Sequence[int]]:
        """Return the indices of `batch[start:stop]` that each group wants, without groups that want none."""
        picked: dict[Group, Sequence[int]] = dict.fromkeys(self._everything, range(start, stop))
        some: dict[Group, list[int]] = {}
        if self._by_collection:
            self._pick_by_collection(batch, start, stop, some)
        if any(self._by_did):
            self._pick_by_did(batch, start, stop, some)
        picked.update(some)
        return picked

    def _pick_by_collection(
        self, batch: Batch, start: int, stop: int, picked: dict[Group, list[int]]
    ) -> None:
        collections, resolved = batch.collections, self._resolved
        for i in range(start, stop):
            collection = collections[i]
            groups = resolved.get(collection)
            if groups is None:
                groups = self._resolve(collection)
            for group in groups:
                picked.setdefault(group, []).append(i)

    def _resolve(self, collection: bytes) -> tuple[Group, ...]:
        """Return the groups without DIDs that want a collection; identity and account events have none."""
        if len(self._resolved) >= self._collections_remembered:
            self._resolved.clear()
        groups = tuple(
            group
            for group in self._by_collection
            if not collection or group.options.wanted.wants_collection(collection)
        )
        self._resolved[collection] = groups
        return groups

    def _pick_by_did(self, batch: Batch, start: int, stop: int, picked: dict[Group, list[int]]) -> None:
        dids, by_did = batch.dids, self._by_did
        for i in range(start, stop):
            did = dids[i]
            for group in by_did[hash(did) % _SHARDS].get(did, ()):
                wanted = group.options.wanted
                if wanted.every_collection or wanted.wants(batch.kinds[i], did, batch.collections[i]):
                    picked.setdefault(group, []).append(i)
