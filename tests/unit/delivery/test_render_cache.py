from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import event
from tests.unit.delivery.encodings import CLASSIC, V1, message

from jetstream.delivery.framing.websocket import WEBSOCKET
from jetstream.delivery.render_cache import Chunk, RenderCache
from jetstream.delivery.renderers import RENDERERS
from jetstream.delivery.subscriber import Encoding
from jetstream.limits import Limits
from jetstream.model.batch import Batch
from jetstream.model.event import CREATE, DELETE, IDENTITY

UNBOUNDED = 1 << 40


@dataclass(eq=False)
class Noting:
    """Renders as the classic wire without identity events, and notes what it renders."""

    name: str = "noting"
    heartbeat_s: int = 0
    rendered: list[int] = field(default_factory=list)

    def render(self, batch: Batch, indices: Sequence[int]) -> list[bytes]:
        self.rendered += indices
        messages = RENDERERS["classic"].render(batch, indices)
        return [
            b"" if batch.kinds[i] == IDENTITY else each for i, each in zip(indices, messages, strict=True)
        ]

    def heartbeat(self, position: int, live: bool) -> bytes:
        return b""


def batch_of(count: int, size: int = 20, start: int = 0) -> Batch:
    """Return creates, with a delete and an identity event now and then."""
    kinds = [(IDENTITY, DELETE, CREATE, CREATE, CREATE)[n % 5] for n in range(count)]
    body = b'{"t":"%b"}' % (b"x" * size)
    events = [event(kind, rkey=str(n), body=b"" if kind == DELETE else body) for n, kind in enumerate(kinds)]
    return Batch.of(events, range(start, start + count))


RANGES = st.tuples(st.integers(0, 29), st.integers(1, 30)).map(lambda pair: range(pair[0], sum(pair)))
SOME = st.lists(st.integers(0, 59), min_size=1, unique=True).map(sorted)


@given(st.lists(st.one_of(RANGES, SOME), min_size=1), st.sampled_from([0, 170, 200]))
def test_each_event_is_rendered_once_and_as_it_is_by_itself(asked: list[Sequence[int]], limit: int) -> None:
    batch, renderer = batch_of(60), Noting()
    encoding, cache = Encoding(renderer, WEBSOCKET), RenderCache(UNBOUNDED)
    for indices in asked:
        frames = cache.render(batch, indices, encoding).frames(indices, limit)
        messages = [message(CLASSIC, batch, i) for i in indices if batch.kinds[i] != IDENTITY]
        assert frames == WEBSOCKET.frames([each for each in messages if not limit or len(each) <= limit])
    assert sorted(renderer.rendered) == sorted({i for indices in asked for i in indices})


def test_what_is_rendered_grows_with_its_batch() -> None:
    batch, cache = batch_of(3), RenderCache(UNBOUNDED)
    first = cache.render(batch, range(3), CLASSIC).frames(range(3))
    batch.extend(batch_of(1, start=3))
    more = cache.render(batch, range(4), CLASSIC).frames(range(4))

    assert len(more) == 4
    assert all(ours is theirs for ours, theirs in zip(first, more, strict=False))


def test_encodings_are_kept_apart() -> None:
    batch, cache = batch_of(3), RenderCache(UNBOUNDED)
    frames = [cache.render(batch, range(3), each).frames(range(3)) for each in (CLASSIC, V1)]

    assert frames[0] != frames[1]


@pytest.mark.parametrize("over", [0, 1])
def test_limits_are_on_the_json_and_held_to_the_byte(over: int) -> None:
    for size in (50, 125, 126, 4_000, 65_535, 65_536):
        batch, cache = Batch.of([event(IDENTITY, did="a", body=b'"%b"' % (b"x" * size))], [1]), RenderCache(1)
        limit = len(message(CLASSIC, batch, 0)) - over

        assert len(cache.render(batch, [0], CLASSIC).frames([0], limit)) == 1 - over


@given(st.lists(st.integers(0, 60), min_size=1, max_size=20), st.integers(0, 2_000))
def test_what_fits_is_bounded_but_at_least_one(sizes: list[int], bytes_max: int) -> None:
    events = [event(body=b'"%b"' % (b"x" * size)) for size in sizes]
    batch, every = Batch.of(events, range(len(sizes))), range(len(sizes))
    rendered = RenderCache(UNBOUNDED).render(batch, every, CLASSIC)
    count = len(rendered.fit(every, bytes_max))

    def size(count: int) -> int:
        return sum(map(len, rendered.frames(range(count))))

    assert 1 <= count <= len(sizes)
    assert count == 1 or size(count) <= bytes_max
    assert count == len(sizes) or size(count + 1) > bytes_max


# Memory


def held_bytes(cache: RenderCache) -> int:
    """Measure what a cache holds, object by object."""
    total = 0
    for rendered in cache._entries.values():
        kept = [frame for frame in rendered._frames if frame != b"not made"]
        total += sum(map(sys.getsizeof, [rendered._frames, rendered._lengths, rendered.chunks, *kept]))
        for chunk in rendered.chunks.values():
            total += sum(map(sys.getsizeof, [chunk, *chunk]))
    return total


@pytest.mark.parametrize(
    ("size", "count", "indices"),
    [(5, 1_000, range(1_000)), (400, 1_000, range(1_000)), (90_000, 50, range(50)), (400, 4_000, [1, 2_500])],
)
def test_it_measures_what_it_holds(size: int, count: int, indices: Sequence[int]) -> None:
    batch, cache = batch_of(count, size), RenderCache(UNBOUNDED)
    for encoding in (CLASSIC, V1):
        rendered = cache.render(batch, indices, encoding)
        rendered.keep(0, Chunk(b"".join(rendered.frames(indices)), len(indices), count))
    assert cache.size == pytest.approx(held_bytes(cache), rel=0.1, abs=4_000)


def test_events_in_memory_take_96_mib_with_all_that_is_rendered_of_them() -> None:
    limits = Limits()
    kept = limits.log.hot_tail_bytes + limits.log.segment_cache_bytes
    assert kept + limits.delivery.render_cache_bytes <= 96 << 20


def test_the_least_recently_used_makes_room() -> None:
    bytes_max = 5 * 10_000
    cache, batches = RenderCache(bytes_max), [batch_of(50, start=100 * n) for n in range(20)]
    for number, batch in enumerate(batches):
        cache.render(batch, range(50), CLASSIC)
        cache.render(batches[0], range(50), CLASSIC)
        assert cache.size <= bytes_max
        assert set(cache._entries) >= {(id(batches[0]), CLASSIC), (id(batch), CLASSIC)}
        assert len(cache._entries) >= min(number + 1, 3)


def test_what_was_dropped_is_rendered_again() -> None:
    one, other, cache = batch_of(50), batch_of(50, start=50), RenderCache(1)
    before = cache.render(one, range(50), CLASSIC).frames(range(50))
    cache.render(other, range(50), CLASSIC)
    assert len(cache._entries) == 1
    assert cache.render(one, range(10, 50), CLASSIC).frames(range(10, 50)) == before[10:]


@pytest.mark.usefixtures("only_new_objects")
def test_a_batch_that_ends_leaves_nothing_behind() -> None:
    gc.collect()
    gc.disable()
    try:
        batch, cache = batch_of(10), RenderCache(UNBOUNDED)
        for encoding in (CLASSIC, V1):
            cache.render(batch, range(10), encoding)
        ends = weakref.ref(batch)
        del batch
        assert ends() is None
        assert cache.size == len(cache._entries) == 0
    finally:
        gc.enable()
