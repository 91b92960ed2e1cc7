"""A set of DIDs: a `frozenset` in all but what it costs the garbage collector."""

from __future__ import annotations

import gc

from hypothesis import given
from hypothesis import strategies as st

from jetstream.model.did_set import DidSet

DIDS = st.frozensets(st.sampled_from([b"did:plc:a", b"did:plc:b", b"did:plc:c", b"did:web:d"]))


@given(DIDS, DIDS)
def test_it_is_a_set(one: frozenset[bytes], other: frozenset[bytes]) -> None:
    mine, theirs = DidSet(one), DidSet(other)
    assert (len(mine), frozenset(mine), bool(mine)) == (len(one), one, bool(one))
    assert (mine == theirs) == (one == other)
    assert mine == DidSet(reversed(list(one)))
    assert hash(mine) == hash(DidSet(reversed(list(one))))
    assert all((did in mine) == (did in one) for did in other)
    assert mine.isdisjoint(other) == mine.isdisjoint(list(other)) == one.isdisjoint(other)
    assert set(mine - theirs) == one - other
    assert set(mine | theirs) == one | other


def test_the_garbage_collector_does_not_traverse_it() -> None:
    dids = DidSet(b"did:plc:%d" % n for n in range(1000))
    assert not gc.is_tracked(dids.members)
    assert gc.is_tracked(frozenset(dids))  # why it is not a set
