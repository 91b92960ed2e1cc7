"""What the network did: one `Event`, and `Batch`, a run of stamped events as columns.

Everything here is text that is ready to be put into JSON: identifiers have been checked against
their syntax (so none needs an escape), bodies are JSON already. Nothing downstream parses them again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

CREATE: Final = b"c"
UPDATE: Final = b"u"
DELETE: Final = b"d"
IDENTITY: Final = b"i"
ACCOUNT: Final = b"a"

KIND_NAMES: Final = {
    CREATE: "create",
    UPDATE: "update",
    DELETE: "delete",
    IDENTITY: "identity",
    ACCOUNT: "account",
}


# What an event is known by, whatever its number: the DID, collection, rkey and rev of a commit's, and in the
# place of the rev the body of an identity or account event.
Key = tuple[bytes, bytes, bytes, bytes]


class Event(NamedTuple):
    """One record operation, identity change or account change, not yet stamped.

    `collection`, `rkey` and `rev` are empty for identity and account events, `cid` for everything but
    creates and updates. `body` is JSON: the record, or the identity or account object; empty for deletes.
    """

    kind: bytes
    did: bytes
    collection: bytes
    rkey: bytes
    rev: bytes
    cid: bytes
    body: bytes

    @property
    def key(self) -> Key:
        """What tells this event from every other: no commit makes two of one path."""
        return (self.did, self.collection, self.rkey, self.rev or self.body)


class Batch:
    """Consecutive events of one log, as columns of equal length; `times` rises strictly.

    A batch only ever grows at its end, so a range of it that was seen once stays as it was, and readers
    may share it. `frames` holds what the hub rendered of it, by wire, and `slices` what it put
    together of that; both live as long as the batch.
    """

    __slots__ = (
        "bodies",
        "cids",
        "collections",
        "dids",
        "frames",
        "kinds",
        "revs",
        "rkeys",
        "slices",
        "times",
    )

    def __init__(
        self,
        times: Sequence[int],
        kinds: Sequence[bytes],
        dids: Sequence[bytes],
        collections: Sequence[bytes],
        rkeys: Sequence[bytes],
        revs: Sequence[bytes],
        cids: Sequence[bytes],
        bodies: Sequence[bytes],
    ) -> None:
        self.times = list(times)
        self.kinds = list(kinds)
        self.dids = list(dids)
        self.collections = list(collections)
        self.rkeys = list(rkeys)
        self.revs = list(revs)
        self.cids = list(cids)
        self.bodies = list(bodies)
        self.frames: dict[str, list[bytes]] = {}
        self.slices: dict[tuple[str, int], bytes] = {}

    @classmethod
    def of(cls, events: Sequence[Event], times: Iterable[int]) -> Batch:
        """Give each event its time, in order."""
        kinds, dids, collections, rkeys, revs, cids, bodies = (
            zip(*events, strict=True) if events else ((),) * 7
        )
        return cls(list(times), kinds, dids, collections, rkeys, revs, cids, bodies)

    def __len__(self) -> int:
        return len(self.times)

    @property
    def first(self) -> int:
        """The `time_us` of the first event. Raises IndexError on an empty batch."""
        return self.times[0]

    @property
    def last(self) -> int:
        """The `time_us` of the last event. Raises IndexError on an empty batch."""
        return self.times[-1]

    def index(self, position: int) -> int:
        """Return the index of the first event at or after `position`; the length if there is none."""
        return bisect_left(self.times, position)

    def event(self, index: int) -> Event:
        """Return one event as a value."""
        return Event(
            self.kinds[index],
            self.dids[index],
            self.collections[index],
            self.rkeys[index],
            self.revs[index],
            self.cids[index],
            self.bodies[index],
        )

    def extend(self, later: Batch) -> None:
        """Append events that follow this batch's."""
        assert not self.times or not later.times or later.first > self.last
        self.times += later.times
        self.kinds += later.kinds
        self.dids += later.dids
        self.collections += later.collections
        self.rkeys += later.rkeys
        self.revs += later.revs
        self.cids += later.cids
        self.bodies += later.bodies
