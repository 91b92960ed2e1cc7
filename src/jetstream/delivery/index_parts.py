"""`ByCollection`, `ByKind`, `BySample` and `ByContent`: parts of the index `Groups`. Pure.

Each holds some of the groups, and finds those that want an event by its collection, by its kind, by the hash
of its DID, or by what its record has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Protocol
from zlib import crc32

from jetstream.delivery.feature_cache import FeatureCache
from jetstream.delivery.subscriber import Group
from jetstream.model.batch import Batch
from jetstream.model.content import Content, Features
from jetstream.model.filter import RECORDS, hashes_below

Picked = dict[Group, list[int]]  # the indices that each group wants, rising


class Part(Protocol):
    """A part of the index."""

    @property
    def groups(self) -> Mapping[Group, None]:
        """The groups that were added and not removed."""

    def add(self, group: Group) -> None:
        """Add a group that is not there."""

    def remove(self, group: Group) -> None:
        """Remove a group that is there."""

    def pick(self, batch: Batch, start: int, stop: int, picked: Picked) -> None:
        """Add the indices of `batch[start:stop]` that each group wants to `picked`."""


class ByCollection:
    """Groups by the collections that they want. Their kinds and DIDs are not looked at.

    What was found is remembered for `remembered_max` collections: there are few.
    """

    __slots__ = ("_remembered_max", "groups", "remembered")

    def __init__(self, remembered_max: int) -> None:
        self._remembered_max = remembered_max
        # A dict without values is a set that keeps its order.
        self.groups: dict[Group, None] = {}
        # Of collections that events had: the groups that want it. Cleared when a group comes or goes, and
        # when it is full.
        self.remembered: dict[bytes, tuple[Group, ...]] = {}

    def add(self, group: Group) -> None:
        """Add a group that is not there."""
        self.groups[group] = None
        self.remembered.clear()

    def remove(self, group: Group) -> None:
        """Remove a group that is there."""
        del self.groups[group]
        self.remembered.clear()

    def find(self, collection: bytes) -> tuple[Group, ...]:
        """Return the groups that want a collection, empty for events that are no commits; remember them."""
        if len(self.remembered) >= self._remembered_max:
            self.remembered.clear()
        groups = tuple(group for group in self.groups if group.options.wanted.wants_collection(collection))
        self.remembered[collection] = groups
        return groups

    def wanting(self, collection: bytes) -> tuple[Group, ...]:
        """Return the groups that want a collection."""
        groups = self.remembered.get(collection)
        return self.find(collection) if groups is None else groups

    def pick(self, batch: Batch, start: int, stop: int, picked: Picked) -> None:
        """Add the indices of `batch[start:stop]` that each group wants to `picked`."""
        collections, remembered = batch.collections, self.remembered
        for i in range(start, stop):
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

    def pick(self, batch: Batch, start: int, stop: int, picked: Picked) -> None:
        """Add the indices of `batch[start:stop]` that each group wants to `picked`."""
        kinds, collections, parts = batch.kinds, batch.collections, self._parts
        for i in range(start, stop):
            part = parts.get(kinds[i])
            if part is not None:
                for group in part.wanting(collections[i]):
                    picked.setdefault(group, []).append(i)


class BySample:
    """Groups with a sample of repos, by the hash of an event's DID, and then by collection."""

    __slots__ = ("_all", "_samples", "groups")

    def __init__(self, remembered_max: int) -> None:
        self._all = ByCollection(remembered_max)
        self.groups = self._all.groups
        # How many groups have each sample. There is one, as a rule.
        self._samples = Counter[int]()

    def add(self, group: Group) -> None:
        """Add a group that is not there."""
        self._all.add(group)
        self._samples[group.options.wanted.sample] += 1

    def remove(self, group: Group) -> None:
        """Remove a group that is there."""
        self._all.remove(group)
        self._samples -= Counter({group.options.wanted.sample: 1})

    def pick(self, batch: Batch, start: int, stop: int, picked: Picked) -> None:
        """Add the indices of `batch[start:stop]` that each group wants to `picked`."""
        kinds, dids, collections = batch.kinds, batch.dids, batch.collections
        below = hashes_below(max(self._samples))  # a larger sample has all of a smaller one
        for i in range(start, stop):
            if crc32(dids[i]) < below:
                for group in self._all.wanting(collections[i]):
                    if group.options.wanted.wants(kinds[i], dids[i], collections[i]):
                        picked.setdefault(group, []).append(i)


class ByContent:
    """Groups with a content filter and without DIDs. What the content filter finds is judged by the others.

    A group stands under each of its content filter's keys, since every record that it wants has one of them.
    """

    __slots__ = ("_all", "_by_key", "_features", "_with_words", "groups")

    def __init__(self, remembered_max: int, features: FeatureCache) -> None:
        # All groups. A record is parsed only if some group wants its collection.
        self._all = ByCollection(remembered_max)
        self.groups = self._all.groups
        self._by_key: dict[str, dict[Group, None]] = {}
        # How many groups stand under words.
        self._with_words = 0
        self._features = features

    def add(self, group: Group) -> None:
        """Add a group that is not there."""
        self._all.add(group)
        self._with_words += _content(group).by_words
        for key in _content(group).keys:
            self._by_key.setdefault(key, {})[group] = None

    def remove(self, group: Group) -> None:
        """Remove a group that is there."""
        self._all.remove(group)
        self._with_words -= _content(group).by_words
        for key in _content(group).keys:
            del self._by_key[key][group]
            if not self._by_key[key]:
                del self._by_key[key]

    def pick(self, batch: Batch, start: int, stop: int, picked: Picked) -> None:
        """Add the indices of `batch[start:stop]` that each group wants to `picked`."""
        kinds, dids, collections, everyone = batch.kinds, batch.dids, batch.collections, self._all
        parsed = self._features.parsed(batch)
        for i in range(start, stop):
            kind, collection = kinds[i], collections[i]
            groups = everyone.wanting(collection)
            if not groups or (collection and kind not in RECORDS):
                continue
            if kind in RECORDS:
                groups = self._matching(parsed.features(batch, i))
            for group in groups:
                if group.options.wanted.wants(kind, dids[i], collection):
                    indices = picked.setdefault(group, [])
                    if not indices or indices[-1] != i:  # see `_matching`
                        indices.append(i)

    def _matching(self, features: Features) -> tuple[Group, ...]:
        """Return the groups whose content filter a record matches; one twice if it has two of its keys."""
        found = self._by_key
        words = features.words.split() if self._with_words else ()
        return tuple(
            group
            for key in (*features.terms, *words)
            if key in found
            for group in found[key]
            if _content(group).matches(features)
        )


def _content(group: Group) -> Content:
    content = group.options.content
    assert content is not None
    return content
