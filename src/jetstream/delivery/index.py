"""`Groups`: the subscribers at the tip of a lane, and which of them want an event. Pure.

Subscribers with equal encoding and options are one group: their bytes are the same, so they are put together
once. The work for an event grows with the groups that want it, never with all there are:

    an event ─▶ all groups that want everything
             ─▶ its DID         ─▶ the groups that name this DID; the rest of each filter is tested
             ─▶ its DID         ─▶ the lists that have it ─▶ the groups that use the list, found as below
             ─▶ its collection  ─▶ the groups without DIDs that want it; remembered, collections are few
             ─▶ its kind        ─▶ the groups without DIDs that name this kind; then by collection, as above
             ─▶ its DID's hash  ─▶ the groups whose sample has it, of those that want its kind and collection
             ─▶ its record      ─▶ the groups without DIDs whose content filter one of its terms meets

Two things are judged after that: a content filter beside DIDs, and DIDs that are excluded.

A filter may name 10,000 DIDs. Putting it into the index takes 5 ms, so that is a generator of steps, and its
owner runs it in turns of the event loop (`takes_steps`, `index`). Taking it out is deferred in the same way.
Until then the group stays in the index without members, and is written to nobody. The same is true of a list.

Events are judged in steps, too: a flush of 1,000 events that 400 groups want takes 20 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from jetstream.delivery.did_index import SHARDS, TUPLE_MAX, Defer, DidIndex, Listed, ListIndex
from jetstream.delivery.feature_cache import FeatureCache
from jetstream.delivery.index_parts import Picked
from jetstream.delivery.parts import Parts, parsing
from jetstream.delivery.phrases import Search
from jetstream.delivery.subscriber import Encoding, Group, Subscriber, SubscriberOptions
from jetstream.limits import DeliveryLimits
from jetstream.model.batch import Batch
from jetstream.model.content import Content
from jetstream.model.filter import DIDS_PER_STEP, RECORDS
from jetstream.steps import Budget, Steps, finish

_PER_STEP: Final = DeliveryLimits().judged_per_step

# Collections that are remembered for the groups of one list.
_REMEMBERED_OF_LIST: Final = 100

Found = dict[Group, Sequence[int]]  # the indices that each group wants, rising


class Groups:
    """The groups of one lane, indexed by what they want. Used by the event loop's thread only.

    `collections_remembered` bounds the memory for collections, `defer` runs what takes long, `features`
    parses records for content filters. `lists` has the lists of all lanes; None: there are no others. In one
    step of judging, events times groups is at most `per_step`.
    """

    def __init__(
        self,
        collections_remembered: int,
        defer: Defer,
        features: FeatureCache,
        lists: ListIndex | None = None,
        per_step: int = _PER_STEP,
    ) -> None:
        self._defer = defer
        self._features = features
        self._per_step = per_step
        # Every group with members.
        self._groups: dict[tuple[Encoding, SubscriberOptions], Group] = {}
        # The index. Groups without DIDs:
        self._parts = Parts(collections_remembered, features, per_step)
        # Groups with DIDs, under each of them:
        self._by_did: DidIndex[Group] = DidIndex()
        # all of them, from the first step of indexing on:
        self._with_dids: dict[Group, None] = {}
        # Groups with a list of DIDs, by the list, whatever other DIDs they name:
        self._lists = ListIndex(defer) if lists is None else lists
        self._by_list: dict[Listed, Parts] = {}
        # There may be many lists, so each remembers few collections.
        self._remembered_of_list = min(collections_remembered, _REMEMBERED_OF_LIST)
        # Of all these, those that `_refine` judges.
        self._refined: dict[Group, None] = {}

    def takes_steps(self, subscriber: Subscriber) -> bool:
        """Tell whether the group of a subscriber is large and must be indexed first, in steps."""
        wanted = subscriber.options.wanted
        large = len(wanted.dids) > DIDS_PER_STEP or (wanted.listed and self._lists.takes_steps(wanted.listed))
        return bool(large) and (subscriber.encoding, subscriber.options) not in self._groups

    def add(self, subscriber: Subscriber, indexed: Group | None = None) -> None:
        """Put a subscriber into its group: the one there is, else `indexed`, else a new one.

        `indexed` is a group of its encoding and options that has been through `index`. If it is not needed,
        it is forgotten. A new group is indexed at once, so it should not be large: see `takes_steps`. The
        subscriber is at the lane's position.
        """
        key = (subscriber.encoding, subscriber.options)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = indexed or Group(*key)
            if indexed is None:
                finish(self.index(group))
        elif indexed is not None:
            self.forget(indexed)
        group.members[subscriber] = None
        # Messages are counted for the group as a whole: what it had before is not this subscriber's.
        subscriber.messages -= group.messages
        subscriber.group = group

    def remove(self, subscriber: Subscriber) -> None:
        """Take a subscriber out of its group, and remove the group with its last member."""
        group = subscriber.group
        assert group is not None
        del group.members[subscriber]
        subscriber.messages += group.messages
        subscriber.group = None
        if not group.members:
            del self._groups[group.encoding, group.options]
            self.forget(group)

    def forget(self, group: Group) -> None:
        """Take a group without members out of the index; a large one later, in steps."""
        large = len(group.options.wanted.dids) > DIDS_PER_STEP
        (self._defer if large else finish)(self._unindex(group))

    def index(self, group: Group) -> Steps[None]:
        """Put a group without members into the index, in steps of well under a millisecond.

        From the first step on `judge` may find it, for some of its DIDs. The caller must add a member or call
        `forget`, also if it does not run all steps.
        """
        wanted = group.options.wanted
        if _needs_refining(group.options):
            self._refined[group] = None
        if wanted.dids:
            self._with_dids[group] = None
        if wanted.listed:
            listed = self._lists.hold(wanted.listed)
            if listed not in self._by_list:
                self._by_list[listed] = Parts(self._remembered_of_list, self._features, self._per_step)
            self._by_list[listed].add(group)
            yield from self._lists.fill(listed)
        elif not wanted.dids:
            self._parts.add(group)
        if wanted.dids:
            yield from self._by_did.add(wanted.dids, group)

    def _unindex(self, group: Group) -> Steps[None]:
        """Take a group out of the index, also one that was indexed in part."""
        self._refined.pop(group, None)
        wanted = group.options.wanted
        if wanted.listed:
            self._leave_list(group)
        elif not wanted.dids:
            self._parts.remove(group)
        if wanted.dids:
            yield from self._by_did.remove(wanted.dids, group)
            del self._with_dids[group]

    def _leave_list(self, group: Group) -> None:
        """Take a group out of those of its list, and count one user of the list less."""
        listed = self._lists.find(group.options.wanted.listed)
        parts = self._by_list[listed]
        parts.remove(group)
        if not parts:
            del self._by_list[listed]
        self._lists.release(listed)

    def wanted(self, batch: Batch, start: int, stop: int) -> Found:
        """Do all of `judge` at once."""
        return finish(self.judge(batch, start, stop))

    def judge(self, batch: Batch, start: int, stop: int) -> Steps[Found]:
        """Return the indices of `batch[start:stop]` that each group wants, without groups that want none.

        It is done in steps. Groups may come and go between two of them: one that comes gets some events, or
        none, and one that goes may be found. The publisher writes to no member that joined meanwhile.
        """
        whole, picked = range(start, stop), Picked()
        # Groups of `_parts` have no DIDs, and those of `_by_did` have no part: no group is picked twice.
        if self._parts.used:
            yield from self._parts.judge(batch, whole, picked)
        if self._with_dids:
            yield from self._pick_by_did(batch, whole, picked)
        found: Found = {**dict.fromkeys(self._parts.everything, whole), **picked}
        if self._by_list:
            yield from self._pick_by_list(batch, whole, found)
        if self._refined:
            yield from self._refine(batch, found)
            return {group: indices for group, indices in found.items() if indices}
        return found

    def _pick_by_did(self, batch: Batch, whole: range, picked: Picked) -> Steps[None]:
        """Add what groups want that name the DID of an event. The rest of each filter is tested here."""
        dids, shards, budget = batch.dids, self._by_did.shards, Budget(self._per_step)
        for i in whole:
            did = dids[i]
            if groups := shards[hash(did) % SHARDS].get(did):
                for group in groups:
                    if group.dids_only or _wants_of_repo(group, batch, i):
                        picked.setdefault(group, []).append(i)
                # A few groups for each event of a flush are little work, and need not be counted.
                if len(groups) > TUPLE_MAX and budget.spend(len(groups)):
                    yield

    def _pick_by_list(self, batch: Batch, whole: range, found: Found) -> Steps[None]:
        """Add what groups with a list want. Those that name other DIDs, too, may be there."""
        of_lists: dict[Listed, list[int]] = {}
        budget = Budget(self._per_step)
        for i in whole:
            did = batch.dids[i]
            if lists := self._lists.by_did.shards[hash(did) % SHARDS].get(did):
                for listed in lists:
                    of_lists.setdefault(listed, []).append(i)
                if budget.spend(len(lists)):
                    yield
        for listed, indices in of_lists.items():
            parts, picked = self._by_list.get(listed), Picked()
            if parts is not None:  # else the list is of another lane
                yield from parts.judge(batch, indices, picked)
                # `indices` is shared by all of `everything`: what is found is replaced, and never changed.
                for group, more in {**dict.fromkeys(parts.everything, indices), **picked}.items():
                    found[group] = sorted([*found[group], *more]) if group in found else more
                yield

    def _refine(self, batch: Batch, found: Found) -> Steps[None]:
        """Judge what was found by what the index does not look at: excluded DIDs, content beside DIDs."""
        budget = Budget(self._per_step)
        # A new set, because groups may come and go between two steps.
        for group in self._refined.keys() & found.keys():
            wanted, content = group.options.wanted, group.options.content
            if wanted.excluded_dids:
                found[group] = wanted.leave_out_dids(batch, found[group])
            if budget.spend(len(found[group])):
                yield
            if content is not None:
                found[group] = yield from self._select(content, batch, found[group], budget)

    def _select(
        self, content: Content, batch: Batch, chosen: Sequence[int], budget: Budget
    ) -> Steps[Sequence[int]]:
        """Return those of `chosen` whose record matches, or that are no commits, in steps."""
        matching: list[int] = []
        parsed, kinds = self._features.parsed(batch), batch.kinds
        for i in chosen:
            if kinds[i] in RECORDS:
                features = parsed.features(batch, i)
                if budget.spend(parsing(batch, i)):
                    yield
                if not content.meets(features.terms):
                    continue
                if content.phrases and not (yield from Search(features, budget).of(content.phrases)):
                    continue
            matching.append(i)
        return matching


def _wants_of_repo(group: Group, batch: Batch, i: int) -> bool:
    """Tell whether a group that names the DID of an event wants its kind and collection."""
    return group.options.wanted.wants_of_repo(batch.kinds[i], batch.collections[i])


def _needs_refining(options: SubscriberOptions) -> bool:
    """Tell whether a group has something that its part of the index does not look at."""
    wanted = options.wanted
    if options.content is not None:
        return bool(wanted.dids)
    return bool(wanted.excluded_dids)
