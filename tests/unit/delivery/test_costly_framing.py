"""Compressed messages: each event is compressed once, for all readers, and only if one of them wants it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import cycle, islice

import zstandard
from tests.unit.delivery.encodings import CLASSIC, frames_of, message
from tests.unit.delivery.fakes import (
    LIKE,
    LIMITS,
    POST,
    SMALL,
    THING,
    Clock,
    FakeSink,
    MemoryLog,
    flushed,
    join,
    served,
    until,
)
from tests.unit.delivery.framing.test_zstd import DICTIONARY
from websockets.frames import Opcode

from jetstream.delivery.framing.zstd import ZstdFraming
from jetstream.delivery.renderers import RENDERERS
from jetstream.delivery.subscriber import Encoding, Subscriber, SubscriberOptions
from jetstream.model.did_set import DidSet
from jetstream.model.filter import Filter

DIDS = [b"did:plc:repo%d" % number for number in range(5)]
SUBSCRIBERS = 1_000
# Ten filters that want neither creates of things by most repos, nor long messages of repo 4.
FILTERS = [
    *(SubscriberOptions(Filter(collections=frozenset(names))) for names in ({LIKE}, {POST}, {LIKE, POST})),
    *(SubscriberOptions(Filter(dids=DidSet({did}), collections=frozenset({LIKE}))) for did in DIDS),
    SubscriberOptions(Filter(dids=DidSet({DIDS[1], DIDS[2]}), collections=frozenset({THING}))),
    SubscriberOptions(Filter(dids=DidSet({DIDS[4]})), message_bytes_max=150),
]


class Counting(ZstdFraming):
    """Counts how often each message is compressed."""

    def __init__(self) -> None:
        super().__init__(DICTIONARY)
        self.compressed = Counter[bytes]()

    def frames(self, messages: list[bytes], times: Iterable[int] | None = None) -> list[bytes]:
        self.compressed.update(each for each in messages if each)
        return super().frames(messages, times)


def encoding(wire: str = "classic") -> tuple[Encoding, Counting]:
    framing = Counting()
    return Encoding(RENDERERS[wire], framing), framing


def wanted(log: MemoryLog, options: SubscriberOptions, wire: Encoding = CLASSIC) -> list[bytes]:
    """Return what a subscriber must get of the whole log, as JSON."""
    return [
        made
        for batch in log.batches
        for i in options.wanted.select(batch, 0, len(batch))
        if (made := message(wire, batch, i))
        if not options.message_bytes_max or len(made) <= options.message_bytes_max
    ]


def received(sink: FakeSink) -> list[bytes]:
    """Return the compressed messages of a subscriber, as JSON."""
    decompress = zstandard.ZstdDecompressor(zstandard.ZstdCompressionDict(DICTIONARY)).decompress
    return [decompress(bytes(f.data)) for f in frames_of(bytes(sink.sent)) if f.opcode is Opcode.BINARY]


async def caught_up(*subscribers: Subscriber) -> None:
    await until(lambda: all(subscriber.group for subscriber in subscribers))


def once(messages: Sequence[bytes]) -> Counter[bytes]:
    return Counter(dict.fromkeys(messages, 1))


async def test_live_events_are_compressed_once_for_all_and_only_if_wanted() -> None:
    compressed, framing = encoding()
    async with served(limits=replace(LIMITS, lane_subscribers=SUBSCRIBERS // 4)) as (delivery, log):
        filters = list(islice(cycle(FILTERS), SUBSCRIBERS))
        pairs = [join(delivery, encoding=compressed, options=options) for options in filters]
        plain = join(delivery)
        for _ in range(12):
            log.grow(40)
            await flushed(delivery, log, *(subscriber for subscriber, _ in pairs), plain[0])
        assert len(delivery._lanes) == 4
        for options, (_, sink) in list(zip(filters, pairs, strict=True))[:: SUBSCRIBERS // 50 - 1]:
            assert received(sink) == wanted(log, options)
        some = once([each for options in FILTERS for each in wanted(log, options)])
        assert framing.compressed == some
        assert len(some) < len(log.times)
        assert len(plain[1].messages()) == len(log.times)


async def test_replayed_events_are_compressed_once_for_all_and_only_if_wanted() -> None:
    compressed, framing = encoding()
    async with served(events=400) as (delivery, log):
        filters = list(islice(cycle(FILTERS), 100))
        pairs = [join(delivery, 1, encoding=compressed, options=options) for options in filters]
        await caught_up(*(subscriber for subscriber, _ in pairs))
        for options, (_, sink) in zip(filters, pairs, strict=True):
            assert received(sink) == wanted(log, options)
        assert framing.compressed == once([each for options in FILTERS for each in wanted(log, options)])


async def test_what_was_sent_live_is_not_compressed_again_for_a_replay() -> None:
    compressed, framing = encoding()
    async with served() as (delivery, log):
        live, _ = join(delivery, encoding=compressed)
        log.grow(100)
        await flushed(delivery, log, live)
        behind, sink = join(delivery, 1, encoding=compressed, options=FILTERS[0])
        await caught_up(behind)
        assert received(sink) == wanted(log, FILTERS[0])
        assert framing.compressed == once(wanted(log, SubscriberOptions()))


async def test_encodings_are_independent_of_each_other() -> None:
    (classic, classic_framing), (v1, v1_framing) = encoding("classic"), encoding("v1")
    async with served() as (delivery, log):
        likes = [join(delivery, encoding=classic, options=FILTERS[0]) for _ in range(10)]
        posts = [join(delivery, encoding=v1, options=FILTERS[1]) for _ in range(10)]
        log.grow(100)
        await flushed(delivery, log, *(subscriber for subscriber, _ in likes + posts))
        assert classic_framing.compressed == once(wanted(log, FILTERS[0], classic))
        assert v1_framing.compressed == once(wanted(log, FILTERS[1], v1))


async def test_nothing_is_compressed_when_its_readers_have_gone() -> None:
    compressed, framing = encoding()
    async with served() as (delivery, log):
        reader, _ = join(delivery, encoding=compressed)
        other, _ = join(delivery)
        log.grow(10)
        await flushed(delivery, log, reader, other)
        delivery.remove(reader)
        before = framing.compressed.total()
        log.grow(10)
        await flushed(delivery, log, other)
        assert framing.compressed.total() == before == 10


async def test_limits_on_messages_decide_what_is_compressed_for_each_filter() -> None:
    """Two filters with limits of their own: what one leaves out is not compressed because the other is."""
    short = SubscriberOptions(Filter(collections=frozenset({LIKE})), message_bytes_max=150)
    long = SubscriberOptions(Filter(collections=frozenset({POST})))
    for cursor in (None, 1):
        compressed, framing = encoding()
        async with served(limits=SMALL) as (delivery, log):
            log.grow(50)
            pairs = [join(delivery, cursor, encoding=compressed, options=each) for each in (short, long)]
            log.grow(150)
            await caught_up(*(subscriber for subscriber, _ in pairs))
            await flushed(delivery, log, *(subscriber for subscriber, _ in pairs))
            sent = [received(sink) for _, sink in pairs]
            assert framing.compressed.keys() == set(sent[0]) | set(sent[1])
            assert sent[0] == wanted(log, short)[-len(sent[0]) :]
            assert max(map(len, sent[0])) <= 150 < max(map(len, sent[1]))


async def test_a_reader_with_a_higher_limit_comes_later() -> None:
    compressed, framing = encoding()
    options = [SubscriberOptions(message_bytes_max=most) for most in (150, 200, 0)]
    async with served(events=100) as (delivery, log):
        for each in options:
            reader, sink = join(delivery, 1, encoding=compressed, options=each)
            await caught_up(reader)
            assert received(sink) == wanted(log, each)
            assert framing.compressed == once(wanted(log, each))
            delivery.remove(reader)


async def test_a_turn_of_a_reader_that_is_behind_ends_when_its_chunks_took_long() -> None:
    clock = Clock()

    def take_long(_: FakeSink) -> None:
        clock.now += 0.4 * LIMITS.costly_s

    limits = replace(LIMITS, chunk_events=2, chunks_per_turn=100)
    async with served(events=100, limits=limits, clock=clock, sleep=clock.sleep) as (delivery, _):
        _, sink = join(delivery, 1, on_write=take_long)
        await until(lambda: sink.writes)
        assert len(sink.writes) == 3


async def test_a_flush_leaves_the_loop_a_turn_between_two_costly_encodings() -> None:
    clock = Clock()

    class Slow(Counting):
        def frames(self, messages: list[bytes], times: Iterable[int] | None = None) -> list[bytes]:
            clock.now += 1.1 * LIMITS.costly_s
            return super().frames(messages, times)

    async with served(clock=clock, sleep=clock.sleep) as (delivery, log):
        sinks = [join(delivery, encoding=Encoding(RENDERERS["v1"], Slow()))[1] for _ in range(3)]
        log.grow(1)
        await until(lambda: sinks[0].writes)
        assert [bool(sink.writes) for sink in sinks] == [True, False, False]
        await until(lambda: sinks[1].writes)
        assert not sinks[2].writes
        await until(lambda: sinks[2].writes)
