from __future__ import annotations

from tests.builders import event
from tests.unit.model.asking import LIKE

from jetstream.delivery.feature_cache import FeatureCache
from jetstream.model.batch import Batch
from jetstream.model.content import Content
from jetstream.model.event import ACCOUNT, CREATE, IDENTITY, UPDATE

ENGLISH = Content((frozenset({"lang:en"}),))


def batch_of(*bodies: bytes) -> Batch:
    return Batch.of([event(CREATE, collection=LIKE, body=body) for body in bodies], range(1, len(bodies) + 1))


def test_records_that_match_are_selected_and_events_without_a_record_pass() -> None:
    events = [
        event(CREATE, body=b'{"langs":["en"]}'),
        event(UPDATE, body=b'{"langs":["de"]}'),
        event(IDENTITY, body=b"not a record"),
        event(ACCOUNT, body=b"not a record"),
        event(UPDATE, body=b'{"langs":["en"]}'),
    ]
    batch = Batch.of(events, range(5))
    assert FeatureCache(1 << 20).select(ENGLISH, batch, range(5)) == ([0, 2, 3, 4], 5)
    assert FeatureCache(1 << 20).select(ENGLISH, batch, [1, 3]) == ([3], 2)


def test_a_record_is_parsed_once_also_when_the_batch_grows() -> None:
    cache, batch = FeatureCache(1 << 20), batch_of(b'{"langs":["en"]}')
    first = cache.parsed(batch).features(batch, 0)
    batch.extend(Batch.of([event(body=b"{}")], [2]))
    assert cache.parsed(batch).features(batch, 0) is first
    assert cache.select(ENGLISH, batch, [0, 1]) == ([0], 2)
    assert len(cache.parsed(batch)._features) == 2


def test_the_cache_is_bounded_and_drops_what_was_used_least_recently() -> None:
    cache, batches = FeatureCache(3_000), [batch_of(b"{}", b"{}", b"{}") for _ in range(4)]
    for batch in batches:
        cache.select(ENGLISH, batch, range(3))
    cache.parsed(batches[3])
    assert cache.size <= 3_000
    assert list(cache._entries) == [id(batch) for batch in batches[2:]]
    large = batch_of(*[b"{}"] * 20)
    cache.select(ENGLISH, large, range(20))
    cache.parsed(large)
    assert list(cache._entries) == [id(large)]


def test_what_was_parsed_ends_with_its_batch() -> None:
    cache, batch = FeatureCache(1 << 20), batch_of(b"{}")
    cache.select(ENGLISH, batch, [0])
    assert cache.size
    del batch
    assert not cache._entries


def test_judging_ends_where_the_search_for_phrases_has_cost_enough() -> None:
    content = Content.parse(text=["needle", "pin"])
    assert content is not None
    batch = batch_of(*[b'{"text":"%b needle"}' % (b"hay " * 700)] * 5, b"{}")
    cache = FeatureCache(1 << 20)
    one = content.search_cost(cache.parsed(batch).features(batch, 0))
    assert cache.select(content, batch, range(6), one) == ([0], 1)
    assert cache.select(content, batch, range(1, 6), 1) == ([1], 1)  # one is judged in any case
    assert cache.select(content, batch, range(6), one + 1) == ([0, 1], 2)
    assert cache.select(content, batch, range(6)) == ([0, 1, 2, 3, 4], 6)
    # A record without text costs nothing.
    assert cache.select(content, batch, [5] * 3 + [0], 1) == ([0], 4)
