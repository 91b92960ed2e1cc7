"""Parts of the index: what is remembered is bounded. What they find is tested with the whole index."""

from __future__ import annotations

from tests.unit.delivery.encodings import CLASSIC

from jetstream.delivery.index_parts import ByCollection, BySample
from jetstream.delivery.subscriber import Group, SubscriberOptions
from jetstream.model.batch import Batch
from jetstream.model.event import CREATE, Event
from jetstream.model.filter import Filter


def test_many_collections_with_many_groups_do_not_fill_the_memory() -> None:
    part = ByCollection(1_000, held_max=100)
    for n in range(30):
        part.add(Group(CLASSIC, SubscriberOptions(Filter.parse([], [], kinds=["commit"]), n)))
    for n in range(200):
        assert len(part.wanting(b"com.example.c%d" % n)) == 30
        assert len(part.remembered) <= 4


def test_many_collections_with_many_samples_do_not_either() -> None:
    part = BySample(1_000, held_max=100)
    for n in range(30):
        part.add(Group(CLASSIC, SubscriberOptions(Filter(sample=9_000 + n))))
    for n in range(200):
        assert len(part.find(CREATE, b"com.example.c%d" % n)[1]) == 30
        assert len(part.remembered) <= 4
    for n in range(40):
        collection = b"com.example.c%d" % n
        batch = Batch.of([Event(CREATE, b"did:plc:%d" % n, collection, b"k", b"r", b"c", b"{}")], [1])
        part.pick(batch, range(1), {})
        assert len(part.remembered) <= 5
