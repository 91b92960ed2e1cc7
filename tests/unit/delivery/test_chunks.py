"""Chunks: all that is wanted, once, in order, in bounded pieces that readers share."""

from __future__ import annotations

from collections.abc import Iterable
from unittest.mock import create_autospec

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.delivery import fakes
from tests.unit.delivery.encodings import CLASSIC, COSTLY, V1, message

from jetstream.delivery.chunks import Rendering, cut, flush_end
from jetstream.delivery.feature_cache import FeatureCache
from jetstream.delivery.framing.websocket import WebSocketFraming
from jetstream.delivery.render_cache import Chunk, RenderCache
from jetstream.delivery.subscriber import Bounds, Encoding, Group, Sink, Subscriber, SubscriberOptions
from jetstream.limits import DeliveryLimits
from jetstream.model.batch import Batch
from jetstream.model.content import Content
from jetstream.model.did_set import DidSet
from jetstream.model.event import CREATE, Event
from jetstream.model.filter import Filter

LIKE, POST = b"app.bsky.feed.like", b"app.bsky.feed.post"
LIMITS = DeliveryLimits()
FEATURES = FeatureCache(LIMITS.feature_cache_bytes)
SMALL = DeliveryLimits(
    chunk_events=5,
    chunk_bytes=1500,
    judged_events=7,
    parsed_events=3,
    parsed_bytes=2000,
    searched_cost=2,
)
OPTIONS = [
    SubscriberOptions(),
    SubscriberOptions(message_bytes_max=200),
    SubscriberOptions(Filter(collections=frozenset({LIKE}))),
    SubscriberOptions(Filter(dids=DidSet({b"did:plc:one"})), message_bytes_max=200),
    SubscriberOptions(Filter(kinds=frozenset({CREATE})), content=Content.parse(lang=["en"])),
    SubscriberOptions(content=Content.parse(lang=["en"], text=["hay", "straw"])),
]


class Costly(WebSocketFraming):
    """Frames that are made once, and counted."""

    costly = True
    made = 0

    def frames(self, messages: list[bytes], times: Iterable[int] | None = None) -> list[bytes]:
        self.made += len(messages)
        return super().frames(messages, times)


def event(size: int) -> Event:
    did, collection = (b"did:plc:one", b"did:plc:two")[size % 2], (LIKE, POST)[size % 3 == 0]
    lang = (b"en", b"de")[size % 5 == 0]
    return Event(
        CREATE,
        did,
        collection,
        b"k",
        b"rev",
        b"cid",
        b'{"langs":["%b"],"text":"hay","t":"%b"}' % (lang, b"x" * size),
    )


def batch_of(sizes: list[int]) -> Batch:
    return Batch.of([event(size) for size in sizes], [10 * (n + 1) for n in range(len(sizes))])


def reader(encoding: Encoding = CLASSIC, options: SubscriberOptions = OPTIONS[0]) -> Subscriber:
    return Subscriber(create_autospec(Sink, instance=True), encoding, options, 0, 0.0)


def pieces(
    batch: Batch,
    first: int,
    last: int,
    encoding: Encoding,
    options: SubscriberOptions,
    cache: RenderCache,
    limits: DeliveryLimits = LIMITS,
) -> list[Chunk]:
    """Cut all there is, as a reader does."""
    made = []
    while first < last:
        made.append(cut(batch, first, last, reader(encoding, options), cache, FeatureCache(1 << 20), limits))
        assert first < made[-1].reached <= last
        first = made[-1].reached
    return made


@given(
    st.lists(st.one_of(st.integers(0, 90), st.integers(0, 4000)), min_size=1, max_size=40),
    st.lists(st.tuples(st.sampled_from(OPTIONS), st.integers(0, 40), st.integers(0, 40)), min_size=1),
    st.sampled_from([CLASSIC, V1, COSTLY]),
)
def test_chunks_are_what_is_wanted_in_bounded_pieces(
    sizes: list[int], readers: list[tuple[SubscriberOptions, int, int]], encoding: Encoding
) -> None:
    """Whatever other readers of the batch there were before."""
    batch, cache = batch_of(sizes), RenderCache(20_000)
    for options, start, end in readers:
        first, last = sorted((min(start, len(batch)), min(end, len(batch))))
        limit = options.message_bytes_max
        messages = [
            message(encoding, batch, i)
            for i in options.wanted.select(batch, first, last)
            if options.content is None or b'"en"' in batch.bodies[i]
        ]
        wanted = encoding.framing.frames([each for each in messages if not limit or len(each) <= limit])
        made = pieces(batch, first, last, encoding, options, cache, SMALL)
        assert b"".join(one.data for one in made) == b"".join(wanted)
        assert sum(one.messages for one in made) == len(wanted)
        for one in made:
            assert one.messages <= SMALL.chunk_events
            assert one.messages <= 1 or len(one.data) <= SMALL.chunk_bytes


def test_readers_of_everything_come_to_share_their_bytes() -> None:
    batch, cache = batch_of([20] * 1000), RenderCache(LIMITS.render_cache_bytes)
    one = pieces(batch, 3, 1000, CLASSIC, SubscriberOptions(), cache)
    other = pieces(batch, 150, 1000, CLASSIC, SubscriberOptions(), cache)
    assert [each.reached for each in other] == [200, 400, 600, 800, 1000]
    assert [each.reached for each in one] == [each.reached for each in other]
    assert all(a.data is b.data for a, b in zip(one[1:], other[1:], strict=True))
    assert pieces(batch, 0, 1000, V1, SubscriberOptions(), cache)[1].data is not one[1].data


def test_a_shared_chunk_has_no_frames_beside_it() -> None:
    """A reader that is alone takes half the memory, and none of what it has read is gone through again."""
    batch, cache = batch_of([20] * 1000), RenderCache(LIMITS.render_cache_bytes)
    made = pieces(batch, 0, 1000, CLASSIC, SubscriberOptions(), cache)
    size = sum(len(one.data) for one in made)
    assert size <= cache.size < 1.1 * size
    some = cut(batch, 0, 1000, reader(options=OPTIONS[3]), cache, FEATURES, LIMITS)
    assert some.messages
    assert cache.size > 1.1 * size


def test_frames_that_there_are_make_the_chunk() -> None:
    """As of a batch that was at the tip a moment ago."""
    batch, cache = batch_of([20] * 200), RenderCache(LIMITS.render_cache_bytes)
    frames = cache.render(batch, range(200), CLASSIC).frames(range(200))
    before = cache.size
    assert cut(batch, 0, 200, reader(), cache, FEATURES, LIMITS).data == b"".join(frames)
    assert cache.size - before < 1.1 * len(b"".join(frames))


def test_costly_frames_are_kept_for_readers_with_filters() -> None:
    framing = Costly()
    costly = Encoding(CLASSIC.renderer, framing)
    batch, cache = batch_of([20] * 200), RenderCache(LIMITS.render_cache_bytes)
    assert cut(batch, 0, 200, reader(costly), cache, FEATURES, LIMITS).messages == 200
    assert cut(batch, 0, 200, reader(costly, OPTIONS[3]), cache, FEATURES, LIMITS).messages
    assert framing.made == 200


def test_shared_chunks_make_room_for_others() -> None:
    cache = RenderCache(100_000)
    batches = [batch_of([200] * 1000) for _ in range(3)]
    for batch in batches:
        pieces(batch, 0, 1000, CLASSIC, SubscriberOptions(), cache)
    assert not cache.get(batches[0], CLASSIC).chunks
    assert cache.get(batches[2], CLASSIC).chunks


def test_a_shared_chunk_that_goes_too_far_is_cut_again() -> None:
    batch, cache = batch_of([20] * 1000), RenderCache(LIMITS.render_cache_bytes)
    assert cut(batch, 0, 1000, reader(), cache, FeatureCache(1 << 20), LIMITS).reached == 200
    assert cut(batch, 0, 150, reader(), cache, FeatureCache(1 << 20), LIMITS).reached == 150


def test_few_records_are_parsed_for_one_chunk() -> None:
    batch, cache, features = batch_of([20] * 1000), RenderCache(1 << 20), FeatureCache(1 << 20)
    nothing = SubscriberOptions(Filter(kinds=frozenset({CREATE})), content=Content.parse(lang=["fr"]))
    chunk = cut(batch, 10, 1000, reader(options=nothing), cache, features, LIMITS)
    assert chunk == Chunk(b"", 0, 10 + LIMITS.parsed_events)
    assert len(features.parsed(batch)._features) == LIMITS.parsed_events


@pytest.mark.parametrize("left", [1, 50, 199, 200, 201, 1_000])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_limit_of_events_cuts_also_what_others_share(left: int, options: SubscriberOptions) -> None:
    batch, cache = batch_of([20] * 1000), RenderCache(LIMITS.render_cache_bytes)
    whole = pieces(batch, 0, 1000, CLASSIC, options, cache)
    limited = reader(options=options)
    limited.bounds = Bounds(None, left)
    first, sent = 0, []
    while first < 1000 and limited.bounds.left:
        chunk = cut(batch, first, 1000, limited, cache, FEATURES, LIMITS)
        limited.bounds.left -= chunk.messages
        assert limited.bounds.left >= 0
        assert chunk.reached > first
        first = chunk.reached
        sent.append(chunk)
    most = sum(each.messages for each in whole)
    assert sum(each.messages for each in sent) == min(left, most)
    assert b"".join(each.data for each in whole).startswith(b"".join(each.data for each in sent))


def test_what_is_too_long_for_one_chunk_is_not_kept() -> None:
    batch, cache = batch_of([4000] * LIMITS.chunk_events), RenderCache(LIMITS.render_cache_bytes)
    made = pieces(batch, 0, len(batch), CLASSIC, SubscriberOptions(), cache)
    assert len(made) > 1
    assert not cache.get(batch, CLASSIC).chunks


def test_filters_are_not_mixed_up_with_everything() -> None:
    batch, cache = batch_of([20] * 400), RenderCache(LIMITS.render_cache_bytes)
    everything = cut(batch, 0, 400, reader(), cache, FeatureCache(1 << 20), LIMITS)
    assert everything.messages == LIMITS.chunk_events
    limited = cut(
        batch,
        0,
        400,
        reader(options=SubscriberOptions(message_bytes_max=1)),
        cache,
        FeatureCache(1 << 20),
        LIMITS,
    )
    assert (limited.data, limited.messages) == (b"", 0)


# What a flush takes


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=30), st.data())
def test_one_flush_is_bounded_by_bytes_and_takes_at_least_one_event(
    sizes: list[int], data: st.DataObject
) -> None:
    events = [event(size)._replace(body=b"x" * size) for size in sizes]
    batch = Batch.of(events, range(len(sizes)))
    first = data.draw(st.integers(0, len(sizes) - 1))
    last = flush_end(batch, first, len(sizes), DeliveryLimits(flush_bytes=4_000))
    assert first < last <= len(sizes)
    assert last == first + 1 or sum(sizes[first:last]) <= 4_000
    assert last == len(sizes) or sum(sizes[first : last + 1]) > 4_000


def test_one_flush_of_small_events_is_bounded_by_their_number() -> None:
    batch = batch_of([1] * 3_000)
    assert flush_end(batch, 7, len(batch), LIMITS) == 7 + LIMITS.flush_events


def test_what_many_groups_want_compressed_is_gathered_in_steps() -> None:
    batch = Batch.of([fakes.event(n) for n in range(1, 101)], range(100))
    wanted = {Group(COSTLY, SubscriberOptions()): range(n % 2, 99) for n in range(300)}
    wanted |= {Group(CLASSIC, SubscriberOptions()): range(100) for _ in range(3_000)}
    rendering = Rendering(RenderCache(1 << 20), batch, range(100), wanted)
    first = next(iter(wanted))
    assert len(list(rendering.gather(first))) >= 2
    assert list(rendering.gather(first)) == []
    assert rendering.of(first).has(98)
    assert not rendering.of(first).has(99)
