"""`Filter`: which events a reader wants, by collection and by repo. Pure.

A filter is used in three places, each with its own question:

    parsing a request        `Filter.parse_steps`: are these names and DIDs valid, and at most so many?
    delivery, at the tip     equal filters are one group; `wants_collection` and `wants` fill its index
    delivery, and the log    `select`: which events of a batch are wanted?
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from jetstream.errors import InvalidParameter
from jetstream.model.batch import Batch
from jetstream.model.did_set import NO_DIDS, DidSet
from jetstream.model.event import ACCOUNT, IDENTITY
from jetstream.model.syntax import is_did, is_nsid, is_nsid_prefix
from jetstream.steps import Steps, finish

# What `docs/api.md` allows in one filter.
COLLECTIONS_MAX: Final = 100
DIDS_MAX: Final = 10_000
# How many DIDs are parsed, or put into an index, between two turns of the event loop: 0.3 ms.
DIDS_PER_STEP: Final = 500


@dataclass(frozen=True, slots=True)
class Filter:
    """A set of events, in normal form: two filters that ask for the same compare equal.

    An event must pass both the collections and the DIDs. Identity and account events have no collection and
    pass any.
    """

    # Full NSIDs, without those that a prefix covers; empty together with `prefixes`: every collection.
    collections: frozenset[bytes] = frozenset()
    # Each ends in its dot and is covered by no other.
    prefixes: frozenset[bytes] = frozenset()
    # Empty: every repo.
    dids: DidSet = NO_DIDS

    @classmethod
    def parse(cls, collections: Sequence[str], dids: Sequence[str]) -> Filter:
        """Do all of `parse_steps` at once."""
        return finish(cls.parse_steps(collections, dids))

    @classmethod
    def parse_steps(cls, collections: Sequence[str], dids: Sequence[str]) -> Steps[Filter]:
        """Parse `wantedCollections` and `wantedDids`, in steps of well under a millisecond.

        Raises InvalidParameter for more than 100 collections or 10,000 DIDs, for a collection that is neither
        an NSID nor NSID segments followed by `.*`, and for what is not a DID.
        """
        if len(collections) > COLLECTIONS_MAX:
            raise InvalidParameter(
                "wantedCollections", str(len(collections)), f"are too many: at most {COLLECTIONS_MAX}"
            )
        if len(dids) > DIDS_MAX:
            raise InvalidParameter("wantedDids", str(len(dids)), f"are too many: at most {DIDS_MAX}")
        named: dict[bytes, None] = {}
        for start in range(0, len(dids), DIDS_PER_STEP):
            for did in dids[start : start + DIDS_PER_STEP]:
                if not is_did(did):
                    raise InvalidParameter("wantedDids", did, "is not a DID, such as did:plc:…")
                named[did.encode()] = None
            yield
        full, prefixes = _split(collections)
        return cls(
            frozenset(name.encode() for name in full if not name.startswith(prefixes)),
            frozenset(prefix.encode() for prefix in prefixes if not prefix[:-1].startswith(prefixes)),
            DidSet(named),
        )

    @property
    def every_collection(self) -> bool:
        """Whether commits of every collection are wanted."""
        return not self.collections and not self.prefixes

    @property
    def everything(self) -> bool:
        """Whether every event is wanted."""
        return not self.dids and self.every_collection

    def wants_collection(self, collection: bytes) -> bool:
        """Tell whether commits to `collection` pass the collections."""
        return (
            collection in self.collections
            or any(map(collection.startswith, self.prefixes))
            or self.every_collection
        )

    def wants(self, kind: bytes, did: bytes, collection: bytes) -> bool:
        """Tell whether one event is wanted."""
        if self.dids and did not in self.dids.members:
            return False
        return kind == IDENTITY or kind == ACCOUNT or self.wants_collection(collection)

    def select(self, batch: Batch, start: int, stop: int) -> Sequence[int]:
        """Return the indices of the wanted events of `batch[start:stop]`, rising; a range if all are wanted.

        One pass over the column that leaves out most: the DIDs, or else the distinct collections.
        """
        if self.everything:
            return range(start, stop)
        if self.dids:
            dids, named_dids = batch.dids, self.dids.members
            named = [i for i in range(start, stop) if dids[i] in named_dids]
            return [i for i in named if self.wants(batch.kinds[i], dids[i], batch.collections[i])]
        column = batch.collections[start:stop]
        # An empty name is that of identity and account events.
        names = set(column)
        wanted = {name for name in names if not name or self.wants_collection(name)}
        if len(wanted) == len(names):
            return range(start, stop)
        return [i for i, name in enumerate(column, start) if name in wanted]


def _split(collections: Iterable[str]) -> tuple[list[str], tuple[str, ...]]:
    """Separate full NSIDs from prefixes. A prefix keeps its dot and loses its star."""
    full: list[str] = []
    prefixes: list[str] = []
    for name in collections:
        if is_nsid(name):
            full.append(name)
        elif name.endswith("*") and is_nsid_prefix(name[:-1]):
            prefixes.append(name[:-1])
        else:
            raise InvalidParameter(
                "wantedCollections",
                name,
                "is neither a collection, such as app.bsky.feed.like, nor a prefix, such as app.bsky.feed.*",
            )
    return full, tuple(prefixes)


EVERYTHING: Final = Filter()
