"""Who wants an event: groups of equal subscribers, and the index from an event to its groups.

Work grows with the groups that match, never with all there are: a DID leads to the groups that name
it, a collection to the groups without DIDs that want it.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from jetstream.events import Batch
from jetstream.hub.subscriber import Options, Subscriber
from jetstream.hub.wires import Wire, fitting

# Collections come from upstream: a hostile one may not fill the memory.
_COLLECTIONS_REMEMBERED: Final = 10_000


class Group:
    """Subscribers at the tip who get the same bytes: equal wire, equal options."""

    __slots__ = ("delivering", "members", "options", "wire")

    def __init__(self, wire: Wire, options: Options) -> None:
        self.wire = wire
        self.options = options
        self.members: dict[Subscriber, None] = {}
        self.delivering = False


class Groups:
    """The groups of one lane, indexed by what they want."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, Options], Group] = {}
        self._wires: Counter[Wire] = Counter()  # groups of each wire in use
        self._everything: dict[Group, None] = {}
        self._by_collection: dict[Group, None] = {}  # those with collections and no DIDs
        self._by_did: dict[bytes, dict[Group, None]] = {}
        self._resolved: dict[bytes, tuple[Group, ...]] = {}

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, subscriber: Subscriber) -> None:
        """Put a subscriber into the group of its wire and options."""
        key = (subscriber.wire.name, subscriber.options)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(subscriber.wire, subscriber.options)
            self._index(group)
        group.members[subscriber] = None
        subscriber.group = group

    def remove(self, subscriber: Subscriber) -> None:
        """Take a subscriber out of its group, and the group away with its last member."""
        group = subscriber.group
        assert group is not None
        del group.members[subscriber]
        subscriber.group = None
        if not group.members:
            del self._groups[group.wire.name, group.options]
            self._unindex(group)

    def _index(self, group: Group) -> None:
        self._wires[group.wire] += 1
        wanted = group.options.wanted
        if wanted.dids:
            for did in wanted.dids:
                self._by_did.setdefault(did, {})[group] = None
        elif wanted.everything:
            self._everything[group] = None
        else:
            self._by_collection[group] = None
            self._resolved.clear()

    def _unindex(self, group: Group) -> None:
        self._wires[group.wire] -= 1
        if not self._wires[group.wire]:
            del self._wires[group.wire]
        wanted = group.options.wanted
        if wanted.dids:
            for did in wanted.dids:
                groups = self._by_did[did]
                del groups[group]
                if not groups:
                    del self._by_did[did]
        elif wanted.everything:
            del self._everything[group]
        else:
            del self._by_collection[group]
            self._resolved.clear()

    def deliveries(self, batch: Batch, start: int, stop: int) -> dict[Group, list[bytes]]:
        """Return the frames of `batch[start:stop]` by the group that wants them, if it wants any."""
        frames = {wire.name: wire.frames(batch, stop) for wire in self._wires}
        picked = {group: frames[group.wire.name][start:stop] for group in self._everything}
        if self._by_collection:
            self._pick_by_collection(batch, start, stop, frames, picked)
        if self._by_did:
            self._pick_by_did(batch, start, stop, frames, picked)
        for group in [group for group in picked if group.options.message_bytes_max]:
            picked[group] = fitting(picked[group], group.options.message_bytes_max)
            if not picked[group]:
                del picked[group]
        return picked

    def _pick_by_collection(
        self,
        batch: Batch,
        start: int,
        stop: int,
        frames: dict[str, list[bytes]],
        picked: dict[Group, list[bytes]],
    ) -> None:
        collections, resolved = batch.collections, self._resolved
        for i in range(start, stop):
            collection = collections[i]
            groups = resolved.get(collection)
            if groups is None:
                groups = self._resolve(collection)
            for group in groups:
                picked.setdefault(group, []).append(frames[group.wire.name][i])

    def _resolve(self, collection: bytes) -> tuple[Group, ...]:
        """Return the groups without DIDs that want a collection; identity and account events have none."""
        if len(self._resolved) >= _COLLECTIONS_REMEMBERED:
            self._resolved.clear()
        groups = tuple(
            group
            for group in self._by_collection
            if not collection or group.options.wanted.wants_collection(collection)
        )
        self._resolved[collection] = groups
        return groups

    def _pick_by_did(
        self,
        batch: Batch,
        start: int,
        stop: int,
        frames: dict[str, list[bytes]],
        picked: dict[Group, list[bytes]],
    ) -> None:
        dids, by_did = batch.dids, self._by_did
        for i in range(start, stop):
            for group in by_did.get(dids[i], ()):
                wanted = group.options.wanted
                if wanted.every_collection or wanted.wants(batch.kinds[i], dids[i], batch.collections[i]):
                    picked.setdefault(group, []).append(frames[group.wire.name][i])
