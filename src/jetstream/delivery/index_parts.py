"""`ByCollection`, `ByKind`, `BySample` and `ByContent`: parts of the index `Groups`. Pure.

Each holds some of the groups, and finds those that want an event by its collection, by its kind, by the hash
of its DID, or by what its record has. `Parts` (in `parts`) has one of each.

The same question is asked for many events, so `ByCollection` and `BySample` remember the answers. A group
that comes or goes clears all of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Final, Protocol
from zlib import crc32

from jetstream.delivery.feature_cache import FeatureCache
from jetstream.delivery.phrases import PhraseIndex, Search
from jetstream.delivery.subscriber import Group
from jetstream.model.batch import Batch
from jetstream.model.content import Content, Features
from jetstream.model.filter import RECORDS
from jetstream.model.sample import hashes_below
from jetstream.steps import Budget, Steps

# Groups that are remembered, of all collections together: 4 MB. Collections that upstream makes up must not
# fill the memory when many groups want all of them.
_HELD_MAX: Final = 500_000

# To match a record with a content filter takes as long as to judge so many groups by collection.
_CONTENT_GROUPS: Final = 4
# To put so many groups that stand under a term to others takes as long.
_MERGED_PER_GROUP: Final = 4
# Groups whose content filters are judged before it is looked at what that has cost.
_PER_LOOK: Final = 200

Picked = dict[Group, list[int]]  # the indices that each group wants, rising


class Part(Protocol):
    """A part of the index. It judges all of a group's filter but what its docstring names."""

    @property
    def groups(self) -> Mapping[Group, None]:
        """The groups that were added and not removed."""

    def add(self, group: Group) -> None:
        """Add a group that is not there."""

    def remove(self, group: Group) -> None:
        """Remove a group that is there."""

    def pick(self, batch: Batch, indices: Sequence[int], picked: Picked) -> Steps[None] | None:
        """Add those of `indices`, rising, that each group wants to `picked`, or return steps that do so.

        Where this returns steps, groups may come and go between two of them.
        """


class ByCollection:
    """Groups by the collections that they want. Their kinds and DIDs are not looked at.

    What was found is remembered for `remembered_max` collections: there are few.
    """

    __slots__ = ("_held", "_held_max", "_remembered_max", "groups", "remembered")

    def __init__(self, remembered_max: int, held_max: int = _HELD_MAX) -> None:
        self._remembered_max = remembered_max
        self._held_max = held_max
        # How many groups are remembered, of all collections.
        self._held = 0
        # A dict without values is a set that keeps its order.
        self.groups: dict[Group, None] = {}
        # Of collections that events had: the groups that want it. Cleared when a group comes or goes, and
        # when it is full.
        self.remembered: dict[bytes, tuple[Group, ...]] = {}

    def add(self, group: Group) -> None:
        """Add a group that is not there."""
        self.groups[group] = None
        self._forget()

    def remove(self, group: Group) -> None:
        """Remove a group that is there."""
        del self.groups[group]
        self._forget()

    def _forget(self) -> None:
        """Forget what was found. The dict stays the same one: `pick` has it at hand."""
        self.remembered.clear()
        self._held = 0

    def find(self, collection: bytes) -> tuple[Group, ...]:
        """Return the groups that want a collection, empty for events that are no commits; remember them."""
        if len(self.remembered) >= self._remembered_max or self._held >= self._held_max:
            self._forget()
        groups = tuple(group for group in self.groups if group.options.wanted.wants_collection(collection))
        self.remembered[collection] = groups
        self._held += len(groups)
        return groups

    def wanting(self, collection: bytes) -> tuple[Group, ...]:
        """Return the groups that want a collection, as `find` does; from memory if they are remembered."""
        groups = self.remembered.get(collection)
        return self.find(collection) if groups is None else groups

    def pick(self, batch: Batch, indices: Sequence[int], picked: Picked) -> None:
        """Add those of `indices`, rising, that each group wants to `picked`."""
        collections, remembered = batch.collections, self.remembered
        for i in indices:
            groups = remembered.get(collections[i])
            if groups is None:
                groups = self.find(collections[i])
            for group in groups:
                picked.setdefault(group, []).append(i)


class ByKind:
    """Groups with kinds, under each of them, and then by collection. Exceptions of DIDs are not looked at."""

    __slots__ = ("_parts", "_remembered_max", "groups")

    def __init__(self, remembered_max: int) -> None:
        self._remembered_max = remembered_max
        # All groups, each under one kind or more in `_parts`.
        self.groups: dict[Group, None] = {}
        # By kind; only of kinds that a group names, so that other events cost next to nothing.
        self._parts: dict[bytes, ByCollection] = {}

    def add(self, group: Group) -> None:
        """Add a group that is not there."""
        self.groups[group] = None
        for kind in group.options.wanted.kinds:
            self._parts.setdefault(kind, ByCollection(self._remembered_max)).add(group)

    def remove(self, group: Group) -> None:
        """Remove a group that is there."""
        del self.groups[group]
        for kind in group.options.wanted.kinds:
            self._parts[kind].remove(group)
            if not self._parts[kind].groups:
                del self._parts[kind]

    def pick(self, batch: Batch, indices: Sequence[int], picked: Picked) -> None:
        """Add those of `indices`, rising, that each group wants to `picked`."""
        kinds, collections, parts = batch.kinds, batch.collections, self._parts
        for i in indices:
            part = parts.get(kinds[i])
            if part is not None:
                for group in part.wanting(collections[i]):
                    picked.setdefault(group, []).append(i)


class BySample:
    """Groups with a sample of repos, by kind and collection, and then by the hash of an event's DID.

    Exceptions of DIDs are not looked at. What was found is remembered for `remembered_max` pairs of a kind
    and a collection.
    """

    __slots__ = ("_below", "_held", "_held_max", "_remembered_max", "groups", "remembered")

    def __init__(self, remembered_max: int, held_max: int = _HELD_MAX) -> None:
        self._remembered_max = remembered_max
        self._held_max = held_max
        self.groups: dict[Group, None] = {}
        # How many groups are remembered, of all kinds and collections.
        self._held = 0
        # The bound of the hashes of the largest sample; None when groups have changed since it was found.
        self._below: int | None = None
        # Of kinds and collections that events had: the groups that want them, the smallest sample first, and
        # the bounds of their hashes. Cleared when a group comes or goes, and when it is full.
        self.remembered: dict[tuple[bytes, bytes], tuple[list[int], list[Group]]] = {}

    def add(self, group: Group) -> None:
        """Add a group that is not there."""
        self.groups[group] = None
        self._forget()

    def remove(self, group: Group) -> None:
        """Remove a group that is there."""
        del self.groups[group]
        self._forget()

    def _forget(self) -> None:
        """Forget what was found, and how large the largest sample is."""
        self._below = None
        self._held = 0
        self.remembered.clear()

    def find(self, kind: bytes, collection: bytes) -> tuple[list[int], list[Group]]:
        """Return the groups that want events of a kind and a collection, with bounds; remember them.

        Bounds rise with the samples: of the groups whose bound is above the hash of an event's DID, `pick`
        finds the first by bisection, and takes all that follow.
        """
        if len(self.remembered) >= self._remembered_max or self._held >= self._held_max:
            self.remembered.clear()
            self._held = 0
        groups = [group for group in self.groups if group.options.wanted.wants_of_repo(kind, collection)]
        groups.sort(key=_sample)
        self._held += len(groups)
        found = self.remembered[kind, collection] = [hashes_below(_sample(each)) for each in groups], groups
        return found

    def pick(self, batch: Batch, indices: Sequence[int], picked: Picked) -> None:
        """Add those of `indices`, rising, that each group wants to `picked`."""
        kinds, dids, collections, remembered = batch.kinds, batch.dids, batch.collections, self.remembered
        if self._below is None:  # a larger sample has all of a smaller one
            self._below = hashes_below(max(map(_sample, self.groups)))
        below = self._below
        for i in indices:
            hashed = crc32(dids[i])
            if hashed < below:
                found = remembered.get((kinds[i], collections[i]))
                bounds, groups = found or self.find(kinds[i], collections[i])
                for group in groups[bisect_right(bounds, hashed) :]:
                    picked.setdefault(group, []).append(i)


def _sample(group: Group) -> int:
    """Return a group's sample, in ten-thousandths of all repos."""
    return group.options.wanted.sample


class ByContent:
    """Groups with a content filter and without DIDs. What the content filter finds is judged by the others.

    A group stands under its phrases or under terms, since every record that it wants has one of them. What a
    step of `pick` judges is at most `per_step`, in groups.
    """

    __slots__ = ("_all", "_by_phrase", "_by_term", "_features", "_per_step", "groups")

    def __init__(self, remembered_max: int, features: FeatureCache, per_step: int) -> None:
        # All groups. A record is parsed only if some group wants its collection.
        self._all = ByCollection(remembered_max)
        self.groups = self._all.groups
        # Subscribers whose content filter asks for phrases first (`Content.by_phrases`).
        self._by_phrase = PhraseIndex()
        # The others, by each term of their first clause. No dict in it is empty.
        self._by_term: dict[str, dict[Group, None]] = {}
        self._features = features
        self._per_step = per_step

    def add(self, group: Group) -> None:
        """Add a group that is not there."""
        self._all.add(group)
        content = _content(group)
        if content.by_phrases:
            self._by_phrase.add(content.phrases, group)
        else:
            for term in content.terms:
                self._by_term.setdefault(term, {})[group] = None

    def remove(self, group: Group) -> None:
        """Remove a group that is there."""
        self._all.remove(group)
        content = _content(group)
        if content.by_phrases:
            self._by_phrase.remove(content.phrases, group)
        else:
            for term in content.terms:
                del self._by_term[term][group]
                if not self._by_term[term]:
                    del self._by_term[term]

    def pick(self, batch: Batch, indices: Sequence[int], picked: Picked) -> Steps[None]:
        """Add those of `indices`, rising, that each group wants to `picked`, in steps.

        Deletes are wanted by none. Events without a collection have no record: they are judged without the
        content filter. So identity events pass if the kinds of a group name them.
        """
        kinds, dids, collections, everyone = batch.kinds, batch.dids, batch.collections, self._all
        parsed, budget = self._features.parsed(batch), Budget(self._per_step)
        for i in indices:
            kind, collection = kinds[i], collections[i]
            groups: Sequence[Group] = everyone.wanting(collection)
            if not groups or (collection and kind not in RECORDS):  # nobody wants it; a delete
                continue
            if kind in RECORDS:
                groups = yield from self._matching(parsed.features(batch, i), budget)
            for group in groups:
                if group.options.wanted.wants(kind, dids[i], collection):
                    picked.setdefault(group, []).append(i)
            if budget.spend(len(groups)):
                yield

    def _matching(self, features: Features, budget: Budget) -> Steps[Sequence[Group]]:
        """Return the groups whose content filter a record matches, in steps.

        The clauses are judged first, which costs little. Phrases are searched for where all clauses are met.
        """
        search, terms = Search(features, budget), frozenset(features.terms)
        matching, standing = [], (yield from self._standing(search, terms, budget))
        for at in range(0, len(standing), _PER_LOOK):
            some = standing[at : at + _PER_LOOK]
            for group in some:
                content = _content(group)
                if content.meets(terms):
                    # One that stands under its phrases was found by one of them.
                    found = not content.phrases or content.by_phrases
                    if found or (yield from search.of(content.phrases)):
                        matching.append(group)
            if budget.spend(_CONTENT_GROUPS * len(some)):
                yield
        return matching

    def _standing(self, search: Search, terms: frozenset[str], budget: Budget) -> Steps[tuple[Group, ...]]:
        """Return the groups that want a phrase of a record, or stand under one of its terms, each once."""
        standing: dict[Group, None] = {}
        if self._by_phrase:
            standing = yield from self._by_phrase.find(search, budget)
        for term in terms:
            wanting = self._by_term.get(term)
            if wanting is not None:
                standing |= wanting
                if budget.spend(len(wanting) // _MERGED_PER_GROUP):
                    yield
        return tuple(standing)


def _content(group: Group) -> Content:
    """Return the content filter of a group that has one."""
    content = group.options.content
    assert content is not None
    return content
