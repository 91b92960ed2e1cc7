"""`Groups`: the subscribers at the tip of a lane, and which of them want an event. Pure.

Subscribers with equal encoding and options are one group: their bytes are the same, so they are put together
once. The work for an event grows with the groups that want it, never with all there are:

    an event ─▶ all groups that want everything
             ─▶ its DID         ─▶ the groups that name this DID; the rest of each filter is tested
             ─▶ its collection  ─▶ the groups without DIDs that want it; remembered, collections are few
             ─▶ its kind        ─▶ the groups without DIDs that name this kind; then by collection, as above
             ─▶ its DID's hash  ─▶ the groups with a sample; then by collection, as above
             ─▶ its record      ─▶ the groups without DIDs whose content filter one of its terms meets

Two things are judged after that: a content filter beside DIDs, and DIDs that are excluded.

A filter may name 10,000 DIDs. Putting it into the index takes 5 ms, so that is a generator of steps, and its
owner runs it in turns of the event loop (`takes_steps`, `index`). Taking it out is deferred in the same way.
Until then the group stays in the index without members, and is written to nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from jetstream.delivery.feature_cache import FeatureCache
from jetstream.delivery.index_parts import ByCollection, ByContent, ByKind, BySample, Part, Picked
from jetstream.delivery.subscriber import Encoding, Group, Subscriber, SubscriberOptions
from jetstream.model.batch import Batch
from jetstream.model.filter import DIDS_PER_STEP, SAMPLE_WHOLE
from jetstream.steps import Steps, finish

# The groups of a DID are a tuple up to this size, and a dict above. Most DIDs have one group, and a dict
# takes five times the memory.
_TUPLE_GROUPS_MAX: Final = 8
# The index of DIDs is split into this many dicts: a dict of half a million entries takes 20 ms when it grows.
_SHARDS: Final = 64

Defer = Callable[[Steps[None]], None]  # runs work in steps, some time later


class Groups:
    """The groups of one lane, indexed by what they want.

    `collections_remembered` bounds the memory for collections, `defer` runs what takes long, `features`
    parses records for content filters.
    """

    def __init__(self, collections_remembered: int, defer: Defer, features: FeatureCache) -> None:
        self._defer = defer
        # Every group with members.
        self._groups: dict[tuple[Encoding, SubscriberOptions], Group] = {}
        # The index. Groups without DIDs that want every collection and kind:
        self._everything = ByCollection(collections_remembered)
        # Others without DIDs, and without kinds:
        self._by_collection = ByCollection(collections_remembered)
        # Those with kinds:
        self._by_kind = ByKind(collections_remembered)
        # Those with a sample, whatever else they have:
        self._by_sample = BySample(collections_remembered)
        # Those with a content filter, whatever else they have:
        self._by_content = ByContent(collections_remembered, features)
        self._features = features
        # Groups with DIDs, under each of them, in the shard of the DID's hash.
        self._by_did: list[dict[bytes, tuple[Group, ...] | dict[Group, None]]] = [{} for _ in range(_SHARDS)]
        # Of all these, those that `_refine` judges.
        self._refined: dict[Group, None] = {}

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
        if _needs_refining(group.options):
            self._refined[group] = None
        if wanted.dids:
            alone = (group,)  # one tuple for all DIDs that no other group names
            for count, did in enumerate(wanted.dids, 1):
                self._index_did(did, alone)
                if count % DIDS_PER_STEP == 0:
                    yield
        else:
            self._part(group.options).add(group)

    def _unindex(self, group: Group) -> Steps[None]:
        """Take a group out of the index, also one that was indexed in part."""
        self._refined.pop(group, None)
        wanted = group.options.wanted
        if wanted.dids:
            for count, did in enumerate(wanted.dids, 1):
                self._unindex_did(did, group)
                if count % DIDS_PER_STEP == 0:
                    yield
        else:
            self._part(group.options).remove(group)

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
        if self._by_collection.groups:
            self._by_collection.pick(batch, start, stop, picked)
        if self._by_kind.groups:
            self._by_kind.pick(batch, start, stop, picked)
        if self._by_sample.groups:
            self._by_sample.pick(batch, start, stop, picked)
        if self._by_content.groups:
            self._by_content.pick(batch, start, stop, picked)
        if any(self._by_did):
            self._pick_by_did(batch, start, stop, picked)
        found = {**dict.fromkeys(self._everything.groups, range(start, stop)), **picked}
        return self._refine(batch, found) if self._refined else found

    def _part(self, options: SubscriberOptions) -> Part:
        """Return the part of the index for groups with these options, if they have no DIDs."""
        wanted = options.wanted
        if options.content is not None:
            return self._by_content
        if wanted.sample != SAMPLE_WHOLE:
            return self._by_sample
        if wanted.kinds:
            return self._by_kind
        return self._everything if wanted.dids_only else self._by_collection

    def _pick_by_did(self, batch: Batch, start: int, stop: int, picked: Picked) -> None:
        dids, by_did = batch.dids, self._by_did
        for i in range(start, stop):
            did = dids[i]
            for group in by_did[hash(did) % _SHARDS].get(did, ()):
                wanted = group.options.wanted
                if wanted.dids_only or wanted.wants_of_repo(batch.kinds[i], batch.collections[i]):
                    picked.setdefault(group, []).append(i)

    def _refine(self, batch: Batch, found: dict[Group, Sequence[int]]) -> dict[Group, Sequence[int]]:
        """Judge what was found by what the index does not look at: excluded DIDs, content beside DIDs."""
        for group in self._refined.keys() & found.keys():
            wanted, content = group.options.wanted, group.options.content
            if wanted.excluded_dids:
                found[group] = wanted.leave_out_dids(batch, found[group])
            if content is not None:
                found[group] = self._features.select(content, batch, found[group])
        return {group: indices for group, indices in found.items() if indices}


def _needs_refining(options: SubscriberOptions) -> bool:
    """Tell whether a group has something that its part of the index does not look at."""
    wanted = options.wanted
    if options.content is not None:
        return bool(wanted.dids)
    return bool(wanted.excluded_dids) and wanted.sample == SAMPLE_WHOLE
