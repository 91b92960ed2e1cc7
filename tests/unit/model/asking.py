"""What clients may ask of a filter, and what that means: a model that filters are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

from hypothesis import strategies as st
from tests.builders import event

from jetstream.errors import InvalidParameter
from jetstream.model.did_set import NO_DIDS, DidSet
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, KIND_NAMES, UPDATE, Event
from jetstream.model.filter import Filter

POST, LIKE, FOLLOW = "app.bsky.feed.post", "app.bsky.feed.like", "app.bsky.graph.follow"
ANN, BOB = "did:plc:ann", "did:web:bob.example"

_OPERATIONS = {"create", "update", "delete"}


class Asked(NamedTuple):
    """The parameters of a filter."""

    collections: Sequence[str] = ()
    dids: Sequence[str] = ()
    kinds: Sequence[str] = ()
    operations: Sequence[str] = ()
    exclude_collections: Sequence[str] = ()
    exclude_dids: Sequence[str] = ()
    sample: str = ""
    listed: DidSet = NO_DIDS

    def parse(self) -> Filter:
        return Filter.parse(**self._asdict())

    def wants(self, one: Event) -> bool:
        """Tell whether an event is wanted, parameter by parameter."""
        did, name, kind = one.did.decode(), one.collection.decode(), KIND_NAMES[one.kind]
        named = {*self.dids, *(each.decode() for each in self.listed)}
        if (named and did not in named) or did in self.exclude_dids:
            return False
        if self.sample and crc32(one.did) / 2**32 >= float(self.sample) / 100:
            return False
        if kind not in _OPERATIONS:
            return not self.kinds or kind in self.kinds
        return (
            (not self.kinds or "commit" in self.kinds)
            and (not self.operations or kind in self.operations)
            and (not self.collections or _listed(name, self.collections))
            and not _listed(name, self.exclude_collections)
        )


def _listed(name: str, collections: Sequence[str]) -> bool:
    return any(name.startswith(each[:-1]) if each.endswith("*") else name == each for each in collections)


def _is_good(asked: Asked) -> bool:
    try:
        asked.parse()
    except InvalidParameter:
        return False
    return True


def _some(*values: str, most: int = 3) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), max_size=most)


NAMES = (POST, LIKE, FOLLOW, "app.*", "app.bsky.*", "app.bsky.graph.*", "com.example.a")
# Large lists of DIDs, which clients upload and share.
LISTS = (
    DidSet([ANN.encode(), BOB.encode(), b"did:plc:nobody"]),
    DidSet([b"did:plc:dan", BOB.encode()]),
    DidSet([b"did:plc:eve"]),
)


def _asked(lists: st.SearchStrategy[DidSet]) -> st.SearchStrategy[Asked]:
    return st.builds(
        Asked,
        _some(*NAMES, most=4),
        _some(ANN, BOB, "did:plc:eve"),
        _some("commit", "identity", "account", "sync"),
        _some("create", "update", "delete"),
        _some(*NAMES),
        _some(ANN, BOB, "did:plc:dan"),
        st.sampled_from(["", "", "", "100", "50", "20.5"]),
        lists,
    )


ANYTHING = _asked(st.sampled_from([NO_DIDS, NO_DIDS, *LISTS]))
GOOD = ANYTHING.filter(_is_good)
WITHOUT_LIST = _asked(st.just(NO_DIDS)).filter(_is_good)
EVENTS = st.builds(
    event,
    st.sampled_from([CREATE, UPDATE, DELETE, IDENTITY, ACCOUNT]),
    st.sampled_from([ANN, BOB, "did:plc:dan"]),
    st.sampled_from([POST, LIKE, FOLLOW, "app.other.thing", "com.example.a", "com.example.a.b"]),
)
