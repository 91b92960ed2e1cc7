"""Two hundred readers of a live run: whatever they do, each sees every event it wants exactly once.

Each reader joins somewhere, reads at its own speed, changes its filter, cuts its connection and resumes
at its last `time_us` + 1. READERS_SEED chooses what they do.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from operator import methodcaller
from random import Random
from typing import Any, NamedTuple
from zlib import crc32

from tests.builders import REV, TIME, Op, account, commit, identity
from tests.relay import Relay
from tests.serving import Start, published
from tests.subscriber import Event, Subscriber, subscribe
from websockets.exceptions import ConnectionClosed

from jetstream.app import Service
from jetstream.limits import DeliveryLimits, Limits, LogLimits, WebLimits

SEED = int(os.environ.get("READERS_SEED", "1"))
READERS = 200
PATIENCE_S = 90.0

FRAMES_BEFORE = 200  # a past for the first readers to begin in
FRAMES_MIN = 3_000  # while the readers do what they do; as many more as they need for it
FRAMES_AFTER = 100  # after the last filter change: here the new filter must judge
TICK_FRAMES = 50  # about 80 events: bursts, so that readers behind reach the tip before the next one
TICK_S = 0.05
JOIN_FRAMES = 1_000  # within so many frames the readers join, one by one

# Small enough for filters to change in the middle of a flush or a chunk, for sockets to be full soon, and for
# the past to be read from the file: from segments, and from what is not sealed yet.
LIMITS = Limits(
    delivery=DeliveryLimits(lane_subscribers=10, writes_per_look=8, turn_s=0.0, chunk_events=100),
    log=LogLimits(segment_events=300, batch_events=50, hot_tail_events=500),
    web=WebLimits(unsent_bytes_max=4096),
)

RARE = "com.example.rare"  # what some segments do not have
COLLECTIONS = (
    "app.bsky.feed.like",
    "app.bsky.feed.post",
    "app.bsky.feed.repost",
    "app.bsky.graph.block",
    "app.bsky.graph.follow",
    "app.bskyx.feed.like",  # begins as `app.bsky` does, but not as `app.bsky.` does
    "com.example.thing",
    "com.example.thing.part",
    RARE,
)
PREFIXES = ("app.bsky.feed.*", "app.bsky.graph.*", "app.bsky.*", "app.*", "com.example.thing.*", "com.*")
DIDS = [f"did:plc:{n:024d}" for n in range(200)]
NOBODY = "did:plc:nobody"
LANGS = ("de", "en", "en-us", "pt-br")
WORDS = ("good morning", "good evening", "Guten Morgen", "bonjour")
# Who has the last event, an identity, which every filter passes: its hash is in every sample.
LAST = "did:plc:last20"
LAST_MESSAGE = f'{{"did":"{LAST}",'

LEAVING = ("abort", "close", "goodbye")
LEAST = {"received": 100_000, "reconnects": 150, "changes": 1_000, "changes_cut_off": 30}


# What upstream says


def random_collection(rng: Random) -> str:
    return RARE if rng.random() < 0.001 else rng.choice(COLLECTIONS[:-1])


def random_op(rng: Random, path: str) -> Op:
    action = rng.choice(("create", "create", "create", "update", "delete"))
    return Op(action, path, None if action == "delete" else random_record(rng))


def random_record(rng: Random) -> dict[str, Any]:
    """Make a record with something for each content filter."""
    record: dict[str, Any] = {"text": f"{rng.choice(WORDS)} {'x' * rng.randrange(1_500)}"}
    if rng.random() < 0.5:
        record["langs"] = rng.sample(LANGS, rng.randrange(1, 3))
    if rng.random() < 0.3:
        record["subject"] = rng.choice(
            (rng.choice(DIDS), {"uri": f"at://{rng.choice(DIDS)}/com.example.a/1"})
        )
    if rng.random() < 0.2:
        record["embed"] = {"$type": rng.choice(("app.bsky.embed.video", "app.bsky.embed.external"))}
    return record


def op_event(did: str, op: Op) -> Event:
    collection, rkey = op.path.split("/")
    record = {} if op.action == "delete" else {"record": op.record}
    body = {"rev": REV, "type": op.action[0], "collection": collection, "rkey": rkey, **record}
    return {"did": did, "type": "com", "commit": body}


def random_frame(rng: Random, seq: int) -> tuple[bytes, list[Event]]:
    """Make a frame, and the events that must come of it, without their `time_us`."""
    did, kind = rng.choice(DIDS), rng.random()
    if kind < 0.02:
        return identity_frame(seq, did)
    if kind < 0.04:
        fields: dict[str, Any] = rng.choice(({"active": True}, {"active": False, "status": "deleted"}))
        body = {"did": did, "seq": seq, "time": TIME, **fields}
        return account(seq, did=did, **fields), [{"did": did, "type": "acc", "account": body}]
    count = rng.choice((1, 1, 1, 2, 3))
    ops = [random_op(rng, f"{random_collection(rng)}/{seq}-{n}") for n in range(count)]
    return commit(seq, ops, repo=did), [op_event(did, op) for op in ops]


def identity_frame(seq: int, did: str) -> tuple[bytes, list[Event]]:
    body = {"did": did, "seq": seq, "time": TIME}
    return identity(seq, did=did), [{"did": did, "type": "id", "identity": body}]


class Upstream:
    """Publishes random frames, and remembers the events that must come of them."""

    def __init__(self, relay: Relay, rng: Random) -> None:
        self.events: list[Event] = []
        self.seq = 0
        self._relay = relay
        self._rng = rng

    def publish(self, count: int) -> None:
        for _ in range(count):
            self._say(*random_frame(self._rng, self.seq + 1))

    def finish(self) -> None:
        self._say(*identity_frame(self.seq + 1, LAST))

    async def publish_until(self, condition: Callable[[], bool]) -> None:
        """Publish at some pace until a condition holds, at least `FRAMES_MIN`; then a little more."""
        while self.seq < FRAMES_MIN or not condition():
            self.publish(TICK_FRAMES)
            await asyncio.sleep(TICK_S)
        self.publish(FRAMES_AFTER)
        self.finish()

    async def passed(self, count: int) -> None:
        """Return once so many more frames are published: how readers pause, whatever the clock says."""
        goal = self.seq + count
        while self.seq < goal:
            await self._relay.changed()

    def _say(self, frame: bytes, events: list[Event]) -> None:
        self.seq += 1
        self.events += events
        self._relay.publish([(self.seq, frame)])


# What readers want


class Subject(NamedTuple):
    """What filters may ask of an event."""

    did: str
    kind: str  # `identity` or `account`, or the operation of a commit
    collection: str = ""
    terms: frozenset[str] = frozenset()  # what the record has, as parameters with a value


def subject_of(event: Event) -> Subject:
    """Return what filters may ask of an event of the classic wire."""
    commit = event.get("commit")
    if commit is None:
        return Subject(event["did"], "identity" if "identity" in event else "account")
    operation = {"c": "create", "u": "update", "d": "delete"}[commit["type"]]
    terms = frozenset(record_terms(commit.get("record", {})))
    return Subject(event["did"], operation, commit["collection"], terms)


def record_terms(record: dict[str, Any]) -> Iterable[str]:
    for lang in record.get("langs", ()):
        yield from (f"lang={lang}", f"lang={lang[:2]}")
    about = record.get("subject")
    if about is not None:
        yield f"subject={about if isinstance(about, str) else about['uri'].split('/')[2]}"
    if record.get("embed") == {"$type": "app.bsky.embed.video"}:
        yield "hasMedia=True"
    yield from (f"text={phrase}" for phrase in PHRASES if record.get("text", "").lower().startswith(phrase))


PHRASES = ("good", "good morning", "guten morgen")


@dataclass(frozen=True)
class Filter:
    """A filter as the documentation describes it, judged here without the server's code."""

    collections: tuple[str, ...] = ()
    dids: tuple[str, ...] = ()
    # The other parameters, as an update has them, with tuples for lists.
    more: tuple[tuple[str, Any], ...] = ()

    @property
    def payload(self) -> dict[str, Any]:
        return {"wantedCollections": self.collections, "wantedDids": self.dids, **dict(self.more)}

    def passes(self, subject: Subject) -> bool:
        if subject.did not in self._dids or subject.kind not in self._kinds:
            return False
        if not subject.collection:
            return True
        return subject.collection in self._collections and all(
            not terms.isdisjoint(subject.terms) for terms in self._content
        )

    @cached_property
    def _content(self) -> list[frozenset[str]]:
        """Of each parameter for content, the terms of which a record must have one."""
        names = ("lang", "subject", "text", "hasMedia")
        given = [(name, value) for name, value in self.more if name in names]
        return [
            frozenset(f"{name}={each}" for each in (value if isinstance(value, tuple) else (value,)))
            for name, value in given
        ]

    @cached_property
    def _dids(self) -> frozenset[str]:
        asked = dict(self.more)
        below = asked.get("sample", 100) / 100 * 2**32
        left = set(self.dids or (*DIDS, LAST)) - set(asked.get("excludeDids", ()))
        return frozenset(did for did in left if crc32(did.encode()) < below)

    @cached_property
    def _kinds(self) -> frozenset[str]:
        asked = dict(self.more)
        kinds = asked.get("kinds", ("commit",) if self._content else ("commit", "identity", "account"))
        operations = asked.get("operations", OPERATIONS) if "commit" in kinds else ()
        return frozenset({*kinds, *operations} - ({"delete"} if self._content else set()))

    @cached_property
    def _collections(self) -> frozenset[str]:
        """The collections it passes."""
        excluded = dict(self.more).get("excludeCollections", ())
        return frozenset(
            name
            for name in COLLECTIONS
            if (not self.collections or is_listed(name, self.collections)) and not is_listed(name, excluded)
        )


OPERATIONS = ("create", "update", "delete")


def is_listed(collection: str, names: Iterable[str]) -> bool:
    return any(
        collection.startswith(name[:-1]) if name.endswith("*") else collection == name for name in names
    )


NOTHING = Filter(dids=(NOBODY,))


def random_filter(rng: Random) -> Filter:
    """Want few of the events, mostly: what two hundred readers are sent takes most of the test's time."""
    full = tuple(rng.sample(COLLECTIONS, rng.randrange(1, 3)))
    dids = (*rng.sample(DIDS, rng.randrange(10, 40)), LAST)
    choices = (
        Filter(),
        Filter(full),
        Filter(full),
        Filter((RARE,)),
        Filter((rng.choice(PREFIXES),)),
        Filter((rng.choice(PREFIXES), *full)),
        Filter(dids=dids),
        Filter(dids=dids),
        Filter((rng.choice(PREFIXES), *full), dids),
        random_rest(rng, full, dids),
        random_rest(rng, full, dids),
        random_content(rng, full),
        random_content(rng, full),
    )
    return rng.choice(choices)


def random_rest(rng: Random, full: tuple[str, ...], dids: tuple[str, ...]) -> Filter:
    """Want some kinds, all but some collections or repos, or a sample of the repos."""
    operations = tuple(rng.sample(OPERATIONS, rng.randrange(1, 3)))
    return rng.choice(
        (
            Filter(more=(("kinds", ("identity", "account")),)),
            Filter(full, more=(("kinds", ("commit", "identity")), ("operations", operations))),
            Filter((rng.choice(PREFIXES), *full), dids, more=(("operations", operations),)),
            Filter(more=(("excludeCollections", ("app.*", *full)),)),
            Filter(("app.*",), more=(("excludeCollections", ("app.bsky.feed.*", "app.bsky.graph.block")),)),
            Filter(dids=dids, more=(("excludeDids", dids[:7]),)),
            Filter((RARE,), more=(("excludeDids", dids[:-1]),)),
            Filter(full, more=(("sample", 20), ("excludeDids", dids[:-1]))),
            Filter(dids=dids, more=(("sample", 33.3),)),
        )
    )


def random_content(rng: Random, full: tuple[str, ...]) -> Filter:
    """Want what a record has; and other kinds, so that a reader does not wait for long."""
    asked = {
        "lang": tuple(rng.sample(LANGS, rng.randrange(1, 3))),
        "subject": tuple(rng.sample(DIDS, 20)),
        "text": tuple(rng.sample(PHRASES, rng.randrange(1, 3))),
        "hasMedia": True,
    }
    chosen = tuple((name, asked[name]) for name in rng.sample([*asked], rng.randrange(1, 3)))
    more = (("kinds", ("commit", "identity", "account", "sync")), *chosen)
    return rng.choice((Filter(full, more=more), Filter((RARE, "app.bsky.*"), more=more), Filter(more=more)))


# What readers do


@dataclass
class Stretch:
    """A filter, and between which positions it began to judge; `latest` is known once the server took it."""

    filter: Filter
    earliest: int
    latest: int | None = None


@dataclass
class Connection:
    """One connection: where it began, what it asked for, and what it was sent."""

    subscriber: Subscriber
    start: int
    stretches: list[Stretch]
    messages: list[str] = field(default_factory=list)

    @property
    def position(self) -> int:
        """Behind the last event that was read, or where the connection began."""
        return time_us(self.messages[-1]) + 1 if self.messages else self.start

    @property
    def complete(self) -> bool:
        return bool(self.messages) and self.messages[-1].startswith(LAST_MESSAGE)

    async def read(self) -> None:
        message = await self.subscriber.connection.recv()
        assert isinstance(message, str)
        self.messages.append(sys.intern(message))  # two hundred readers keep each but once

    async def leave(self, how: str) -> None:
        """Go away; what is on its way counts as not received."""
        websocket = self.subscriber.connection
        if how != "goodbye":
            methodcaller(how)(websocket.transport)
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(websocket.close())
            with suppress(ConnectionClosed):
                while True:  # the server's answer is behind what it has sent
                    await websocket.recv()


class Reader:
    """Comes, reads, changes its mind, goes, and comes again: all of it decided by a seed."""

    def __init__(self, number: int, service: Service, upstream: Upstream) -> None:
        self.number = number
        self.connections: list[Connection] = []
        self._rng = rng = Random(f"{SEED} {number}")
        self._service = service
        self._upstream = upstream
        self._filter = random_filter(rng)
        count = rng.choice((1, 1, 1, 2, 3, 4, 5))
        self._changes = [rng.randrange(8) for _ in range(count)]  # of the filter, in each connection
        self._at_rest = False
        self._pause = rng.choice((0, 0, 0, 100, 200))  # up to so many frames, between two readings
        # A smaller one would be less than a segment of the loopback, and TCP would only trickle.
        self._receive_buffer = 16_384 if self._pause else None

    @property
    def settled(self) -> bool:
        """Whether it only reads any more, and the server has taken its last filter."""
        return self._at_rest and self.connections[-1].stretches[-1].latest is not None

    @property
    def complete(self) -> bool:
        """Whether it has read the last event."""
        return bool(self.connections) and self.connections[-1].complete

    async def run(self) -> None:
        await self._upstream.passed(self._rng.randrange(1, JOIN_FRAMES))
        cursor = self._first_cursor()
        for changes in self._changes:
            async with self._connect(cursor) as connection:
                await self._read_and_change(connection, changes)
                if len(self.connections) < len(self._changes):
                    await connection.leave(self._rng.choice(LEAVING))
                else:
                    await self._read_to_the_end(connection)
            if connection.messages:
                cursor = connection.position

    def _first_cursor(self) -> int | None:
        """Begin live, at the oldest event, at the newest, or at any moment between."""
        log = self._service.log.statistics()
        assert log.oldest_us is not None
        assert log.newest_us is not None
        past = log.oldest_us + int(self._rng.random() * (log.newest_us - log.oldest_us))
        return self._rng.choice((None, None, None, None, None, 0, 1, log.newest_us, past, past))

    @asynccontextmanager
    async def _connect(self, cursor: int | None) -> AsyncIterator[Connection]:
        position = self._service.delivery.position
        query: dict[str, Any] = {
            name: "true" if value is True else value for name, value in self._filter.payload.items()
        }
        if cursor is not None:
            query["cursor"] = cursor
        async with subscribe(self._service.port, receive_buffer=self._receive_buffer, **query) as subscriber:
            if cursor is None:  # before the server has begun, nothing is wanted
                connection = Connection(subscriber, position, [Stretch(NOTHING, position)])
                await self._note_stretch(connection, position)
            else:
                connection = Connection(subscriber, cursor, [Stretch(self._filter, cursor, latest=cursor)])
            self.connections.append(connection)
            yield connection

    async def _read_and_change(self, connection: Connection, changes: int) -> None:
        await self._read_some(connection)
        for _ in range(changes):
            self._filter = random_filter(self._rng)
            earliest = connection.position  # what was read before the message goes out was judged without it
            await connection.subscriber.update(**self._filter.payload)
            await self._note_stretch(connection, earliest)
            await self._read_some(connection)

    async def _note_stretch(self, connection: Connection, earliest: int) -> None:
        """Note where the filter just sent may begin to judge, and where it must have once a pong is there."""
        stretch = Stretch(self._filter, earliest)
        connection.stretches.append(stretch)

        def note_taken(pong: asyncio.Future[float]) -> None:
            if pong.exception() is None:  # else the connection ended before
                stretch.latest = self._service.delivery._lanes.highest.position

        pong = await connection.subscriber.connection.ping()
        asyncio.ensure_future(pong).add_done_callback(note_taken)

    async def _read_some(self, connection: Connection) -> None:
        await self._upstream.passed(self._rng.randrange(self._pause + 1))
        for _ in range(int(60 * self._rng.random() ** 3)):
            await connection.read()

    async def _read_to_the_end(self, connection: Connection) -> None:
        self._at_rest = True
        while not connection.complete:
            await connection.read()


# The law


def time_us(message: str) -> int:
    time: int = json.loads(message)["time_us"]
    return time


class Truth(NamedTuple):
    """All messages, in order, as one reader gets them that wants everything."""

    messages: list[str]
    events: list[Event]  # without their `time_us`
    times: list[int]
    subjects: list[Subject]

    @classmethod
    def of(cls, messages: list[str]) -> Truth:
        events: list[Event] = [json.loads(message) for message in messages]
        times = [event.pop("time_us") for event in events]
        return cls(messages, events, times, [subject_of(event) for event in events])


async def read_truth(service: Service) -> Truth:
    async with asyncio.timeout(PATIENCE_S), subscribe(service.port, cursor=1) as subscriber:
        connection = Connection(subscriber, 0, [])
        while not connection.complete:
            await connection.read()
    return Truth.of(connection.messages)


def first_breach(
    stretches: Sequence[Stretch],
    position: int,
    received: set[int],
    times: Sequence[int],
    subjects: Sequence[Subject],
    passes: Callable[[Filter, Subject], bool] = Filter.passes,
) -> int | None:
    """Return the first event from a position on that no filter explains, wherever each began.

    An event is explained when the filter that judged it passes it, and it came; or does not, and it did not.
    `times` and `subjects` are of all events in order, up to the last that is judged.
    """
    judging = {0}
    start = bisect_left(times, position)
    if min(received, default=start) < start:
        return min(received)
    for i, subject in enumerate(subjects[start:], start):
        for n, stretch in enumerate(stretches[1:]):
            if n in judging and stretch.earliest <= times[i]:
                judging.add(n + 1)
            if stretch.latest is not None and stretch.latest <= times[i]:
                judging.discard(n)
        judging = {n for n in judging if passes(stretches[n].filter, subject) == (i in received)}
        if not judging:
            return i
    return None


def breaches(reader: Reader, truth: Truth, numbers: dict[str, int]) -> Iterable[str]:
    """Tell what a reader was sent, or was not, against the law."""
    received = [
        [numbers.get(message, -1) for message in connection.messages] for connection in reader.connections
    ]
    together = [*chain(*received)]
    if not all(a < b for a, b in pairwise(together)) or -1 in together:
        yield f"reader {reader.number}: repeated, out of order or unknown"
    for n, (connection, indices) in enumerate(zip(reader.connections, received, strict=True)):
        last = connection is reader.connections[-1]
        stop = len(truth.times) if last else max(indices, default=-1) + 1
        judged = truth.times, truth.subjects[:stop]
        breach = first_breach(connection.stretches, connection.start, set(indices), *judged)
        if breach is not None:
            yield (
                f"reader {reader.number}, connection {n}, event {breach}, {truth.subjects[breach]}, "
                f"received: {breach in indices}, asked for: {connection.stretches}"
            )


# The run


async def run_readers(readers: list[Reader], upstream: Upstream) -> None:
    """Publish until all readers have done what they will, and return once each has read the last event."""
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
            for reader in readers:
                tasks.create_task(reader.run())
            await upstream.publish_until(lambda: all(reader.settled for reader in readers))


def counts(readers: list[Reader]) -> Counter[str]:
    """Count what has happened, so that a run of little is no proof."""
    connections = [connection for reader in readers for connection in reader.connections]
    changes = [
        stretch
        for connection in connections
        for before, stretch in pairwise(connection.stretches)
        if before.filter is not NOTHING
    ]
    return Counter(
        received=sum(len(connection.messages) for connection in connections),
        reconnects=len(connections) - len(readers),
        changes=len(changes),
        changes_cut_off=sum(stretch.latest is None for stretch in changes),
    )


async def test_each_of_many_readers_sees_what_it_wants_exactly_once(relay: Relay, start: Start) -> None:
    service = await start(limits=LIMITS, upstream_cursor=0, forget="none", subscriber_buffer=10_000)
    upstream = Upstream(relay, Random(f"{SEED} upstream"))
    upstream.publish(FRAMES_BEFORE)
    await published(service, FRAMES_BEFORE)
    readers = [Reader(number, service, upstream) for number in range(READERS)]
    await run_readers(readers, upstream)
    late = [reader.number for reader in readers if not reader.complete]
    assert not late, f"seed {SEED}: these did not see the last event in {PATIENCE_S} s: {late}"

    truth = await read_truth(service)
    assert truth.events == upstream.events, f"seed {SEED}"
    assert all(a < b for a, b in pairwise(truth.times)), f"seed {SEED}"
    assert truth.times[-1] == service.log.tip, f"seed {SEED}"
    numbers = {message: number for number, message in enumerate(truth.messages)}
    against = [breach for reader in readers for breach in breaches(reader, truth, numbers)]
    assert not against, f"seed {SEED}: {len(against)} breaches, the first: {against[0]}"
    found = counts(readers)
    few = {name: found[name] for name, least in LEAST.items() if found[name] < least}
    assert not few, f"seed {SEED}: too little happened: {few}"
