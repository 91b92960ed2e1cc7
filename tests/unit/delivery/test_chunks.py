"""Slices: all that is wanted, once, in order, in bounded pieces that readers share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.delivery import chunks as slices
from jetstream.delivery.chunks import Slice, cut
from jetstream.delivery.subscriber import SubscriberOptions
from jetstream.delivery.wires import CLASSIC, V1, Wire, message_bytes
from jetstream.model.batch import Batch
from jetstream.model.event import CREATE, Event
from jetstream.model.filter import EVERYTHING, Filter

LIKE, POST = b"app.bsky.feed.like", b"app.bsky.feed.post"
EVENTS_MAX, BYTES_MAX = 5, 1500
OPTIONS = [
    SubscriberOptions(),
    SubscriberOptions(message_bytes_max=200),
    SubscriberOptions(Filter(collections=frozenset({LIKE}))),
    SubscriberOptions(Filter(dids=frozenset({b"did:plc:one"})), message_bytes_max=200),
]


def event(size: int) -> Event:
    did, collection = (b"did:plc:one", b"did:plc:two")[size % 2], (LIKE, POST)[size % 3 == 0]
    return Event(CREATE, did, collection, b"k", b"rev", b"cid", b'{"t":"%b"}' % (b"x" * size))


def batch_of(sizes: list[int]) -> Batch:
    return Batch.of([event(size) for size in sizes], [10 * (n + 1) for n in range(len(sizes))])


def pieces(batch: Batch, first: int, last: int, wire: Wire, options: SubscriberOptions) -> list[Slice]:
    """Cut all there is, as a reader does."""
    made = []
    while first < last:
        made.append(cut(batch, first, last, wire, options))
        assert first < made[-1].reached <= last
        first = made[-1].reached
    return made


@given(
    st.lists(st.one_of(st.integers(0, 90), st.integers(0, 4000)), min_size=1, max_size=40),
    st.sampled_from(OPTIONS),
    st.sampled_from([CLASSIC, V1]),
    st.data(),
)
def test_they_are_what_is_wanted_in_bounded_pieces(
    sizes: list[int], options: SubscriberOptions, wire: Wire, data: st.DataObject
) -> None:
    batch = batch_of(sizes)
    first = data.draw(st.integers(0, len(batch)))
    last = data.draw(st.integers(first, len(batch)))
    every = wire.frames(batch_of(sizes), len(batch))
    wanted = [every[i] for i in options.wanted.select(batch, first, last)]
    limit = options.message_bytes_max
    wanted = [frame for frame in wanted if not limit or message_bytes(len(frame)) <= limit]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "SLICE_EVENTS_MAX", EVENTS_MAX)
        patch.setattr(slices, "SLICE_BYTES_MAX", BYTES_MAX)
        patch.setattr(slices, "JUDGED_EVENTS_MAX", 7)
        made = pieces(batch, first, last, wire, options)
    assert b"".join(one.data for one in made) == b"".join(wanted)
    assert sum(one.messages for one in made) == len(wanted)
    for one in made:
        assert one.messages <= EVENTS_MAX
        assert one.messages <= 1 or len(one.data) <= BYTES_MAX


def test_readers_of_everything_come_to_share_their_bytes() -> None:
    batch = batch_of([20] * 1000)
    one = pieces(batch, 3, 1000, CLASSIC, SubscriberOptions())
    other = pieces(batch, 150, 1000, CLASSIC, SubscriberOptions())
    assert [each.reached for each in other] == [200, 400, 600, 800, 1000]
    assert [each.reached for each in one] == [each.reached for each in other]
    assert all(a.data is b.data for a, b in zip(one[1:], other[1:], strict=True))
    assert pieces(batch, 0, 1000, V1, SubscriberOptions())[1].data is not one[1].data


def test_what_is_too_long_for_one_slice_is_not_kept() -> None:
    batch = batch_of([4000] * slices.SLICE_EVENTS_MAX)
    made = pieces(batch, 0, len(batch), CLASSIC, SubscriberOptions())
    assert len(made) > 1
    assert not batch.slices


def test_filters_are_not_mixed_up_with_everything() -> None:
    batch = batch_of([20] * 400)
    assert cut(batch, 0, 400, CLASSIC, SubscriberOptions(EVERYTHING)).messages == slices.SLICE_EVENTS_MAX
    limited = cut(batch, 0, 400, CLASSIC, SubscriberOptions(message_bytes_max=1))
    assert (limited.data, limited.messages) == (b"", 0)
