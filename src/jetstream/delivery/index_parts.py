"""`ByCollection` and `ByContent`: the groups that want an event, by its collection or by its record. Pure.

Parts of `index.Groups`.
"""

from __future__ import annotations

from jetstream.delivery.feature_cache import FeatureCache
from jetstream.delivery.subscriber import Group
from jetstream.model.batch import Batch
from jetstream.model.content import Content, Features
from jetstream.model.filter import RECORDS

Picked = dict[Group, list[int]]  # the indices that each group wants, rising


class ByCollection:
    """Some groups, and which of them want an event by its collection.

    That is remembered for `remembered_max` collections.
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
        """Add a group."""
        self.groups[group] = None
        self.remembered.clear()

    def remove(self, group: Group) -> None:
        """Remove a group."""
        del self.groups[group]
        self.remembered.clear()

    def find(self, collection: bytes) -> tuple[Group, ...]:
        """Return the groups that want a collection, empty for events that are no commits; remember them."""
        if len(self.remembered) >= self._remembered_max:
            self.remembered.clear()
        groups = tuple(group for group in self.groups if group.options.wanted.wants_collection(collection))
        self.remembered[collection] = groups
        return groups


class ByContent:
    """Groups with a content filter. Their other filters are tested for what the content filter finds.

    A group stands under each term of one clause, since every record that it wants has one of them.
    """

    __slots__ = ("_all", "_by_term", "_features")

    def __init__(self, remembered_max: int, features: FeatureCache) -> None:
        # All groups. A record is parsed only if some group wants its collection.
        self._all = ByCollection(remembered_max)
        self._by_term: dict[str, dict[Group, None]] = {}
        self._features = features

    @property
    def groups(self) -> dict[Group, None]:
        """The groups that were added and not removed."""
        return self._all.groups

    def add(self, group: Group) -> None:
        """Add a group that has a content filter."""
        self._all.add(group)
        for term in _keys(group):
            self._by_term.setdefault(term, {})[group] = None

    def remove(self, group: Group) -> None:
        """Remove a group."""
        self._all.remove(group)
        for term in _keys(group):
            del self._by_term[term][group]
            if not self._by_term[term]:
                del self._by_term[term]

    def pick(self, batch: Batch, start: int, stop: int, picked: Picked) -> None:
        """Add the indices of `batch[start:stop]` that each group wants to `picked`."""
        kinds, dids, collections, everyone = batch.kinds, batch.dids, batch.collections, self._all
        parsed = self._features.parsed(batch)
        for i in range(start, stop):
            kind, collection = kinds[i], collections[i]
            groups = everyone.remembered.get(collection)
            if groups is None:
                groups = everyone.find(collection)
            if not groups:
                continue
            if kind in RECORDS:
                groups = self._matching(parsed.features(batch, i))
            for group in groups:
                if group.options.wanted.wants(kind, dids[i], collection):
                    indices = picked.setdefault(group, [])
                    if not indices or indices[-1] != i:  # see `_matching`
                        indices.append(i)

    def _matching(self, features: Features) -> tuple[Group, ...]:
        """Return the groups whose content filter a record matches; one twice if it has two of its terms."""
        return tuple(
            group
            for term in features.terms
            for group in self._by_term.get(term, ())
            if _content(group).matches(features)
        )


def _content(group: Group) -> Content:
    content = group.options.content
    assert content is not None
    return content


def _keys(group: Group) -> frozenset[str]:
    return _content(group).keys
