"""The index by DID, compared with a dict of sets; lists that many use."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jetstream.delivery.did_index import TUPLE_MAX, DidIndex, ListIndex
from jetstream.model.did_set import DidSet
from jetstream.model.filter import DIDS_PER_STEP
from jetstream.steps import Steps, finish

DIDS = (b"did:plc:a", b"did:plc:b", b"did:plc:c")
ENTRIES = st.tuples(st.integers(0, 2 * TUPLE_MAX), st.frozensets(st.sampled_from(DIDS), min_size=1))
LARGE = DidSet(b"did:plc:%d" % n for n in range(3 * DIDS_PER_STEP))


def standing(index: DidIndex[int]) -> dict[bytes, set[int]]:
    return {did: set(entries) for shard in index.shards for did, entries in shard.items()}


@given(st.lists(ENTRIES, max_size=40))
def test_an_entry_stands_under_its_dids_until_it_is_removed(
    program: list[tuple[int, frozenset[bytes]]],
) -> None:
    """Each that is there already is removed; few and many entries may name one DID."""
    index, there = DidIndex[int](), dict[int, frozenset[bytes]]()
    for entry, dids in program:
        if entry in there:
            finish(index.remove(there.pop(entry), entry))
        else:
            there[entry] = dids
            finish(index.add(dids, entry))
        model = {did: {each for each, named in there.items() if did in named} for did in DIDS}
        assert standing(index) == {did: entries for did, entries in model.items() if entries}


def test_a_large_list_is_put_in_and_removed_in_steps_once_for_all_who_use_it() -> None:
    deferred = list[Steps[None]]()
    index = ListIndex(deferred.append)
    assert index.takes_steps(LARGE)
    one = index.hold(LARGE)
    assert len(list(index.fill(one))) == 3
    assert not index.takes_steps(LARGE)
    other = index.hold(DidSet(LARGE))  # an equal one
    assert other is one is index.find(LARGE)
    assert list(index.fill(other)) == []
    index.release(one)
    assert deferred == []
    index.release(other)
    assert index.takes_steps(LARGE)
    (steps,) = deferred
    assert len(list(steps)) == 3
    assert not any(index.by_did.shards)


def test_a_list_in_use_again_is_not_part_of_what_is_being_removed() -> None:
    deferred = list[Steps[None]]()
    index = ListIndex(deferred.append)
    finish(index.fill(first := index.hold(LARGE)))
    index.release(first)
    finish(index.fill(second := index.hold(LARGE)))
    assert second is not first
    finish(deferred[0])
    assert all(entries == (second,) for shard in index.by_did.shards for entries in shard.values())
    assert sum(map(len, index.by_did.shards)) == len(LARGE)


def test_a_small_list_takes_no_steps() -> None:
    index, small = ListIndex(finish), DidSet(DIDS)
    assert not index.takes_steps(small)
    listed = index.hold(small)
    assert list(index.fill(listed)) == []
    index.release(listed)
    assert not any(index.by_did.shards)
