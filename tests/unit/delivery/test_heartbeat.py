"""Heartbeats: when they come, and what a client may rely on that resumes at one."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import orjson
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.delivery.encodings import CLASSIC, CREATES, V1, frames_of, message
from tests.unit.delivery.fakes import (
    LIKE,
    LIMITS,
    SMALL,
    STEP_US,
    THING,
    UNBOUNDED,
    FakeSink,
    MemoryLog,
    event,
    flushed,
    is_judging,
    join,
    reading,
    running,
    served,
    until,
)

from jetstream.delivery.delivery import Delivery
from jetstream.delivery.framing.zstd import ZstdFraming
from jetstream.delivery.heartbeat import Heartbeat
from jetstream.delivery.subscriber import Bounds, Encoding, Subscriber, SubscriberOptions
from jetstream.metrics import Metrics
from jetstream.model.batch import Batch
from jetstream.model.did_set import DidSet
from jetstream.model.filter import DIDS_PER_STEP, Filter

# Only the tests check.
UNWATCHED = replace(LIMITS, watch_interval_s=3_600.0)
DICTIONARY = zstandard.train_dictionary(
    4096, [b'{"time_us":%d,"kind":"commit"}' % n for n in range(2_000)], dict_id=40_000
).as_bytes()
NOBODY = SubscriberOptions(Filter(dids=DidSet({b"did:plc:nobody"})))


# When one is due


def test_one_is_due_an_interval_after_the_last_event() -> None:
    heartbeat = Heartbeat(5)
    assert [heartbeat.due(0, now) for now in (100.0, 104.5, 105.0)] == [False, False, True]
    assert heartbeat.due(0, 105.5)  # until one is sent
    heartbeat.restart()
    assert [heartbeat.due(0, now) for now in (106.0, 110.9, 111.0)] == [False, False, True]
    assert [heartbeat.due(7, now) for now in (111.5, 116.4, 116.5)] == [False, False, True]


# What is sent


async def test_a_live_subscriber_is_told_its_start_at_once() -> None:
    async with served(events=20, limits=UNWATCHED) as (delivery, _):
        _, sink = join(delivery, heartbeat_s=5)
    assert sink.messages() == [b'{"time_us":200,"type":"hb","live":true}']


async def test_v1_has_another_spelling() -> None:
    async with served(events=20, limits=UNWATCHED) as (delivery, _):
        _, sink = join(delivery, encoding=V1, heartbeat_s=5)
    assert sink.messages() == [b'{"time_us":200,"kind":"heartbeat","live":true}']


async def test_a_compressed_subscriber_gets_a_compressed_one() -> None:
    encoding = Encoding(V1.renderer, ZstdFraming(DICTIONARY))
    async with served(events=20, limits=UNWATCHED) as (delivery, _):
        _, sink = join(delivery, encoding=encoding, heartbeat_s=5)
    (frame,) = frames_of(bytes(sink.sent))
    dictionary = zstandard.ZstdCompressionDict(DICTIONARY)
    message = zstandard.ZstdDecompressor(dictionary).decompress(bytes(frame.data))
    assert message == b'{"time_us":200,"kind":"heartbeat","live":true}'


async def test_an_empty_log_begins_at_0() -> None:
    async with served(limits=UNWATCHED) as (delivery, log):
        _, sink = join(delivery, heartbeat_s=5)
        _, from_the_oldest = join(delivery, 0, heartbeat_s=5)
        await until(from_the_oldest.messages)
        log.grow(1)
        await until(lambda: len(sink.messages()) == 2)
    assert sink.heartbeats() == from_the_oldest.heartbeats() == [(0, True)]
    assert sink.times() == [0, STEP_US]


async def test_a_quiet_subscriber_is_told_how_far_the_log_was_judged() -> None:
    async with served(events=20, limits=UNWATCHED) as (delivery, log):
        subscriber, sink = join(delivery, options=NOBODY, heartbeat_s=2)
        for now in (0.0, 1.5, 2.0, 2.5, 4.0, 4.5):
            log.grow(1)
            await flushed(delivery, log, subscriber)
            await delivery.check(now, ping=False)
            sink.drain()
    assert sink.heartbeats() == [(200, True), (230, True), (260, True)]


async def test_an_event_puts_it_off_and_a_ping_does_not() -> None:
    async with served(events=20, limits=UNWATCHED) as (delivery, log):
        subscriber, sink = join(delivery, heartbeat_s=45)
        sink.drain()
        for now, grown in ((0.0, 0), (30.0, 0), (44.0, 1), (60.0, 0), (88.5, 0), (89.0, 0)):
            if grown:
                log.grow(grown)
                await flushed(delivery, log, subscriber)
            await delivery.check(now, ping=now % 30 == 0)
            sink.drain()
    assert sink.times() == [200, 210, 210]
    assert sink.sent.count(CLASSIC.framing.keep_alive) == 3


async def test_nothing_is_said_while_something_waits_for_the_socket() -> None:
    async with served(events=20, limits=UNWATCHED) as (delivery, log):
        subscriber, sink = join(delivery, heartbeat_s=1)
        sink.drain()
        log.grow(1)
        await flushed(delivery, log, subscriber)
        for now in (0.0, 1.0, 2.0):
            await delivery.check(now, ping=False)
        assert len(sink.heartbeats()) == 1
        sink.drain()
        await delivery.check(3.0, ping=False)
    assert sink.heartbeats() == [(200, True), (210, True)]


async def test_a_full_socket_is_not_written_to() -> None:
    async with served(events=20, limits=UNWATCHED) as (delivery, _):
        subscriber, sink = join(delivery, 1, limit=8, heartbeat_s=1)
        await until(lambda: sink.full)
        delivery.change(subscriber, SubscriberOptions(), 5)
        assert sink.heartbeats() == []


async def test_one_comes_at_once_when_a_replay_has_caught_up() -> None:
    async with served(events=40, limits=UNWATCHED) as (delivery, log):
        log.patience = 3
        subscriber, sink = join(delivery, 1, options=NOBODY, heartbeat_s=5)
        await until(lambda: log.reads)
        await delivery.check(0.0, ping=False)
        await delivery.check(5.0, ping=False)
        await until(lambda: subscriber.group)
    assert sink.heartbeats() == [(0, False), (400, True)]


async def test_one_comes_at_once_when_a_large_filter_is_indexed() -> None:
    large = Filter(dids=DidSet(b"did:plc:other%d" % n for n in range(3 * DIDS_PER_STEP)))
    async with served(events=20, limits=UNWATCHED) as (delivery, _):
        subscriber, sink = join(delivery, options=SubscriberOptions(large), heartbeat_s=5)
        assert not sink.messages()
        await until(lambda: subscriber.group)
    assert sink.heartbeats() == [(200, True)]


async def test_a_subscriber_that_fell_behind_is_told_of_it_once_at_most() -> None:
    async with served(events=20, limits=UNWATCHED) as (delivery, log):
        subscriber, sink = join(delivery, limit=100, heartbeat_s=5)
        for _ in range(3):
            log.grow(5)
            await until(lambda: sink.full)
            await reading(lambda: subscriber.group, sink)
    assert sink.heartbeats() == [(200, True)]


async def test_a_change_of_options_is_answered_with_its_position() -> None:
    async with served(events=20, limits=UNWATCHED) as (delivery, log):
        subscriber, sink = join(delivery, heartbeat_s=5)
        log.grow(1)
        await flushed(delivery, log, subscriber)
        delivery.change(subscriber, NOBODY, 5)
        log.grow(1)
        await flushed(delivery, log, subscriber)
        delivery.change(subscriber, SubscriberOptions())
        log.grow(1)
        await flushed(delivery, log, subscriber)
    assert sink.heartbeats() == [(200, True), (210, True)]
    assert sink.times() == [200, 210, 210, 230]


async def test_heartbeats_begin_with_a_change() -> None:
    async with served(events=20, limits=UNWATCHED) as (delivery, _):
        subscriber, sink = join(delivery)
        delivery.change(subscriber, SubscriberOptions(), 1)
        sink.drain()
        await delivery.check(0.0, ping=False)
        await delivery.check(1.0, ping=False)
    assert sink.heartbeats() == [(200, True), (200, True)]


async def test_a_wire_may_have_an_interval_of_its_own() -> None:
    class Chatty:
        name, heartbeat_s = "v1", 45
        render = V1.renderer.render
        heartbeat = V1.renderer.heartbeat

    encoding = Encoding(Chatty(), V1.framing)
    async with served(events=20, limits=UNWATCHED) as (delivery, _):
        subscriber, sink = join(delivery, encoding=encoding)
        assert subscriber.heartbeat is not None
        assert subscriber.heartbeat.interval_s == 45
        assert sink.heartbeats() == []  # not at once: it did not ask
        for now in (0.0, 44.0):
            await delivery.check(now, ping=False)
        assert sink.heartbeats() == []
        await delivery.check(45.0, ping=False)
        assert sink.heartbeats() == [(200, True)]


async def test_a_wire_may_have_none() -> None:
    async with served(events=20, limits=UNWATCHED) as (delivery, _):
        _, sink = join(delivery, encoding=CREATES, heartbeat_s=1)
        await delivery.check(0.0, ping=False)
        await delivery.check(1.0, ping=False)
    assert not sink.sent


async def test_in_the_middle_of_a_flush_it_says_what_was_written() -> None:
    """Of two members, the second has not been written to, and is checked."""
    one_by_one = replace(UNWATCHED, turn_s=0.0, writes_per_look=1)
    async with served(events=20, limits=one_by_one) as (delivery, log):
        (_, first), (later, second) = [join(delivery, heartbeat_s=1) for _ in range(2)]
        log.grow(1)
        await until(lambda: len(first.messages()) == 2)
        assert len(second.messages()) == 1
        second.drain()
        await delivery.check(0.0, ping=False)
        await delivery.check(1.0, ping=False)
        await flushed(delivery, log, later)
    assert first.times() == [200, 210]
    assert second.times() == [200, 200, 210]


# The law


@dataclass
class Client:
    """A client that reconnects at what it has received last, with one filter all the time."""

    options: SubscriberOptions
    encoding: Encoding
    limit: int  # of the buffer
    cursor: int
    subscriber: Subscriber
    sink: FakeSink
    events: list[int] = field(default_factory=list)  # those received on earlier connections

    def received(self) -> list[dict[str, Any]]:
        return [orjson.loads(each) for each in self.sink.messages()]


class World:
    """Clients of one delivery that come back after every loss."""

    def __init__(self, lanes: int = 1) -> None:
        self.now = 0.0
        self.log = MemoryLog()
        self.log.grow(40)
        self.delivery = Delivery(
            self.log,
            Metrics(("classic", "v1")),
            replace(SMALL, lane_subscribers=1, lanes_max=lanes, watch_interval_s=3_600.0),
        )
        self.clients: list[Client] = []

    def join(self, options: SubscriberOptions, encoding: Encoding, cursor: int, limit: int) -> None:
        cursor = self.delivery.positions(cursor).cursor  # as the handshake says
        subscriber, sink = join(
            self.delivery, cursor, limit=limit, encoding=encoding, options=options, heartbeat_s=1
        )
        self.clients.append(Client(options, encoding, limit, cursor, subscriber, sink))

    def lose(self, which: int, part: float) -> None:
        """Lose a connection, of which only a part of the messages has been received."""
        client = self._pick(which)
        received = client.received()
        received = received[: round(len(received) * part)]
        client.events += [each["time_us"] for each in received if "live" not in each]
        self._reconnect(client, received[-1]["time_us"] + 1 if received else client.cursor)

    def close(self, which: int) -> None:
        """Close a connection with a reason, which the client receives behind everything else."""
        client = self._pick(which)
        client.events += [each["time_us"] for each in client.received() if "live" not in each]
        self._reconnect(client, self.delivery.resume_at(client.subscriber))

    def _reconnect(self, client: Client, cursor: int) -> None:
        client.sink.closing = True
        self.delivery.remove(client.subscriber)
        client.cursor = cursor
        client.subscriber, client.sink = join(
            self.delivery,
            cursor,
            limit=client.limit,
            encoding=client.encoding,
            options=client.options,
            heartbeat_s=1,
        )

    def drain(self, which: int) -> None:
        self._pick(which).sink.drain()

    def grow(self, count: int) -> None:
        self.log.grow(count)

    async def turn(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async def check(self, seconds: float) -> None:
        self.now += seconds
        await self.delivery.check(self.now, ping=False)

    async def settle(self) -> None:
        async with asyncio.timeout(20):
            while not all(
                client.subscriber.group is not None
                and not client.subscriber.group.flushing
                and not is_judging(self.delivery)
                and self.delivery.position > self.log.tip
                for client in self.clients
            ):
                for client in self.clients:
                    client.sink.drain()
                await asyncio.sleep(0)

    def _pick(self, which: int) -> Client:
        return self.clients[which % len(self.clients)]


FILTERS = st.sampled_from(
    [
        SubscriberOptions(),
        NOBODY,
        SubscriberOptions(message_bytes_max=150),
        SubscriberOptions(Filter(collections=frozenset({LIKE}))),
        SubscriberOptions(Filter(dids=DidSet({b"did:plc:repo1"}))),
        SubscriberOptions(Filter(frozenset({THING}), dids=DidSet({b"did:plc:repo1"}))),
    ]
)
WHICH = st.integers(0, 3)
JOINS = st.tuples(
    st.just("join"),
    FILTERS,
    st.sampled_from([CLASSIC, V1]),
    st.integers(0, 450),
    st.sampled_from([200, 2_000, UNBOUNDED]),
)
TURNS = st.tuples(st.just("turn"), st.integers(0, 5))
ACTIONS = st.one_of(
    st.tuples(st.just("grow"), st.integers(1, 20)),
    st.tuples(st.just("check"), st.sampled_from([0.5, 1.0, 3.0])),
    st.tuples(st.just("drain"), WHICH),
    st.tuples(st.just("lose"), WHICH, st.floats(0, 1)),
    st.tuples(st.just("close"), WHICH),
)


@settings(max_examples=200)
@given(
    st.lists(JOINS, min_size=1, max_size=4),
    st.lists(st.tuples(ACTIONS, TURNS), min_size=5, max_size=30),
    st.integers(0, 4),
    st.integers(1, 2),
    st.booleans(),
)
def test_a_client_that_resumes_at_any_position_loses_and_repeats_nothing(
    joins: list[tuple[Any, ...]],
    actions: list[tuple[tuple[Any, ...], ...]],
    patience: int,
    lanes: int,
    alike: bool,
) -> None:
    """At the last event or heartbeat that it has received, or at the cursor of a close.

    `alike`: all are in one group at the tip at first, which is flushed member by member.
    """
    if alike:
        joins = [("join", *joins[0][1:3], cursor, UNBOUNDED) for *_, cursor, _ in joins] * 2

    async def play() -> None:
        world = World(lanes)
        world.log.patience = patience
        async with running(world.delivery):
            starts = [world.delivery.positions(cursor).cursor for *_, cursor, _ in joins]
            for name, *arguments in [*joins, *([("settle",)] if alike else ()), *chain(*actions)]:
                if (waiting := getattr(world, name)(*arguments)) is not None:
                    await waiting
            await world.settle()
        whole = Batch.of([event(time // STEP_US) for time in world.log.times], world.log.times)
        for client, start in zip(world.clients, starts, strict=True):
            got = client.events + [each["time_us"] for each in client.received() if "live" not in each]
            assert got == _wanted(whole, client.options, client.encoding, start, sys.maxsize)
            _check_order(client)

    asyncio.run(play())


@settings(max_examples=100)
@given(
    st.one_of(st.none(), st.integers(0, 450)),
    st.lists(st.tuples(FILTERS, st.integers(0, 20), st.integers(0, 6)), min_size=1, max_size=8),
    st.integers(0, 3),
    st.booleans(),
)
def test_the_answer_to_a_change_is_where_the_new_options_begin(
    cursor: int | None, changes: list[tuple[SubscriberOptions, int, int]], patience: int, bounded: bool
) -> None:
    """Also behind, in the middle of a flush, and for a subscriber with bounds."""

    async def play() -> None:
        world = World()
        world.log.patience = patience
        bounds = Bounds(None, 10_000) if bounded else None
        async with running(world.delivery):
            begin = world.delivery.positions(cursor).cursor
            for _ in range(2):  # more members of its first group
                join(world.delivery)
            subscriber, sink = join(world.delivery, cursor, bounds=bounds, heartbeat_s=300)
            stretches, since = [], (begin, SubscriberOptions(), 0)
            for options, grown, turns in changes:
                if grown:
                    world.log.grow(grown)
                await world.turn(turns)
                before = len(sink.messages())
                world.delivery.change(subscriber, options, 300)
                answer = orjson.loads(sink.messages()[before])
                assert "live" in answer
                stretches.append((*since, answer["time_us"] + 1, before))
                since = (answer["time_us"] + 1, options, before)
            await until(lambda: subscriber.live and world.delivery.resume_at(subscriber) > world.log.tip)
            stretches.append((*since, world.log.tip + 1, len(sink.messages())))
        received = [orjson.loads(each) for each in sink.messages()]
        whole = Batch.of([event(time // STEP_US) for time in world.log.times], world.log.times)
        for start, options, first, stop, last in stretches:
            got = [each["time_us"] for each in received[first:last] if "live" not in each]
            assert got == _wanted(whole, options, CLASSIC, start, stop)

    asyncio.run(play())


def _wanted(whole: Batch, options: SubscriberOptions, encoding: Encoding, start: int, stop: int) -> list[int]:
    limit = options.message_bytes_max
    wanted = options.wanted.select(whole, whole.index(start), whole.index(max(start, stop)))
    sizes = {i: len(message(encoding, whole, i)) for i in wanted}
    return [whole.times[i] for i in wanted if sizes[i] and (not limit or sizes[i] <= limit)]


def _check_order(client: Client) -> None:
    """Positions never fall, and no event comes at or below a heartbeat that was before it."""
    judged = -1
    for each in client.received():
        assert each["time_us"] > judged or ("live" in each and each["time_us"] == judged)
        judged = each["time_us"]


@pytest.mark.parametrize("position", [0, 1])
def test_positions_are_never_negative(position: int) -> None:
    assert orjson.loads(V1.renderer.heartbeat(position, live=False)) == {
        "time_us": 0,
        "kind": "heartbeat",
        "live": False,
    }
