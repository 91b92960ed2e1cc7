from __future__ import annotations

import weakref
from collections.abc import Callable
from random import Random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from jetstream.eventlog.columns import NAMES, Columns, Damaged
from jetstream.eventlog.segment import (
    SURGE_US,
    Segment,
    compress,
    decompress,
    holds_collection,
    holds_did,
    may_hold_did,
    seal,
    text_bytes,
    unpack_accounts,
    unseal,
    verify,
)
from jetstream.model.batch import Batch
from jetstream.model.did_set import DidSet
from jetstream.model.event import SYNC, Event
from jetstream.model.filter import Filter

BatchOf = Callable[[range], Batch]
BLOBS = ("collection_set", "did_bits", "accounts", "times", *NAMES)


def rows(batch: Batch) -> list[object]:
    return [(batch.times[i], batch.event(i)) for i in range(len(batch))]


def read(segment: Segment) -> Batch:
    return unseal(segment.events, segment.times, [getattr(segment, name) for name in NAMES])


@pytest.fixture
def batch(batch_of: BatchOf) -> Batch:
    return batch_of(range(1_000_000, 1_000_400))


@pytest.fixture
def sealed(batch: Batch) -> Segment:
    return seal(Columns.of(batch), batch.last)


def test_a_segment_gives_its_events_back(batch: Batch, sealed: Segment) -> None:
    assert rows(read(sealed)) == rows(batch)
    assert (sealed.first_us, sealed.last_us, sealed.events) == (batch.first, batch.last, 400)


def test_the_columns_tell_how_long_their_values_are(batch: Batch, sealed: Segment) -> None:
    assert text_bytes(sealed.events, [getattr(sealed, name) for name in NAMES]) == batch.text_bytes()


def test_a_segment_that_filled_fast_takes_more_room_and_gives_the_same(batch: Batch) -> None:
    words, random = [f"word{n}" for n in range(50)], Random(1)
    batch.bodies[:] = [b'{"text":"%b"}' % " ".join(random.choices(words, k=40)).encode() for _ in batch.times]
    segments = []
    for span in (SURGE_US - 1, SURGE_US):
        batch.times[-1] = batch.first + span
        segments.append(seal(Columns.of(batch), batch.last))
        assert rows(read(segments[-1])) == rows(batch)

    assert len(segments[0].bodies) > len(segments[1].bodies)


def test_identity_and_account_events_can_be_read_alone(batch: Batch, sealed: Segment) -> None:
    accounts = unpack_accounts(sealed.accounts)
    assert accounts is not None
    expected = [row for row, collection in zip(rows(batch), batch.collections, strict=True) if not collection]
    assert rows(accounts.batch()) == expected
    assert len(expected) > 10


def test_syncs_are_among_them(batch_of: BatchOf) -> None:
    sync = Event(SYNC, b"did:plc:a", b"", b"", b"", b"", b'{"blocks":{"$bytes":""}}')
    batch = batch_of(range(1, 5))
    batch.extend(Batch.of([sync], [5]))
    segment = seal(Columns.of(batch), 5)
    accounts = unpack_accounts(segment.accounts)
    assert accounts is not None
    assert rows(accounts.batch()) == rows(Batch.of([sync], [5]))
    verify(segment)


def test_a_segment_without_them_says_so(batch_of: BatchOf) -> None:
    assert unpack_accounts(seal(Columns.of(batch_of(range(1, 5))), 4).accounts) is None


@given(st.sets(st.sampled_from(["app.bsky.feed.like", "app.bsky.feed.*", "com.*", "org.nobody.thing"])))
def test_its_collections_tell_what_a_filter_finds(names: set[str]) -> None:
    held = compress(b"app.bsky.feed.like\napp.bsky.feed.post")
    wanted = Filter.parse(sorted(names), [])
    expected = not names or bool(names & {"app.bsky.feed.like", "app.bsky.feed.*"})
    assert holds_collection(held, wanted) is expected


def test_a_did_of_the_segment_is_never_missed(batch: Batch, sealed: Segment) -> None:
    for did in set(batch.dids):
        wanted = Filter.parse([], [did.decode(), "did:plc:nobody"])
        assert may_hold_did(sealed.did_bits, wanted)
        assert holds_did(sealed.dids, wanted)


def test_a_did_of_a_list_is_not_missed_and_a_list_is_forgotten_when_it_ends(
    batch: Batch, sealed: Segment
) -> None:
    for did in set(batch.dids):
        wanted = Filter.parse([], ["did:plc:nobody"], listed=DidSet([did, b"did:plc:noone"]))
        assert may_hold_did(sealed.did_bits, wanted)
        assert holds_did(sealed.dids, wanted)
    assert not holds_did(sealed.dids, Filter.parse([], [], listed=DidSet([b"did:plc:noone"])))
    listed = weakref.ref(wanted.listed)
    del wanted
    assert listed() is None


def test_other_dids_are_mostly_told_by_the_bits_and_surely_by_the_column(sealed: Segment) -> None:
    others = [Filter.parse([], [f"did:plc:other{n}"]) for n in range(200)]
    assert sum(may_hold_did(sealed.did_bits, other) for other in others) <= 2
    assert not any(holds_did(sealed.dids, other) for other in others)


def test_what_was_sealed_is_whole(sealed: Segment) -> None:
    verify(sealed)


@pytest.mark.parametrize("name", BLOBS)
@pytest.mark.parametrize("place", [0.2, 0.5, 0.99])
def test_a_changed_byte_is_noticed(sealed: Segment, name: str, place: float) -> None:
    data = bytearray(getattr(sealed, name))
    data[int(len(data) * place)] ^= 0x10
    with pytest.raises(Damaged):
        verify(Segment(**{**sealed._asdict(), name: bytes(data)}))


@pytest.mark.parametrize("name", BLOBS)
def test_a_blob_of_another_segment_is_noticed(batch_of: BatchOf, sealed: Segment, name: str) -> None:
    other = seal(Columns.of(batch_of(range(3_000_000, 3_000_001))), 3_000_000)
    with pytest.raises(Damaged):
        verify(Segment(**{**sealed._asdict(), name: getattr(other, name)}))


def test_a_range_that_its_events_leave_is_noticed(sealed: Segment) -> None:
    for wrong in (sealed._replace(last_us=sealed.last_us - 1), sealed._replace(first_us=sealed.first_us + 1)):
        with pytest.raises(Damaged):
            verify(wrong)


def test_a_frame_that_claims_to_be_huge_is_not_decompressed() -> None:
    with pytest.raises(Damaged, match="more than 1000"):
        decompress(zstandard.compress(b"x" * 1001), 1000)
    assert decompress(zstandard.compress(b"x" * 1000), 1000) == b"x" * 1000
