"""Two hundred readers on every transport, wire and coding, with every filter, across a restart.

Each connection asks for something else: it begins somewhere, may end at a limit or at a time, has heartbeats,
and changes its filter while events flow. The next one begins where the reason of the close said. In the
middle the server is restarted. EVERYTHING_SEED chooses all of it. The readers' filters are judged by
`test_many_readers.Filter`, which shares no code with the server.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple, Protocol

import aiohttp
import zstandard
from tests.builders import sync
from tests.event_streams import EventStream, event_stream
from tests.load.test_many_readers import (
    DIDS,
    LAST,
    LIMITS,
    Filter,
    Stretch,
    Subject,
    first_breach,
    identity_frame,
    random_filter,
    random_frame,
    subject_of,
)
from tests.relay import Relay
from tests.serving import LOOPBACK, published, reconnecting_at_once, running
from tests.subscriber import Subscriber, subscribe
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from jetstream.app import Service
from jetstream.settings import Settings

SEED: Final = os.environ.get("EVERYTHING_SEED", "1")
READERS: Final = 200
PATIENCE_S: Final = 30.0

FRAMES_BEFORE: Final = 150  # a past for the first readers to begin in
FRAMES: Final = 500  # then, before the restart, and again after it
TICK_FRAMES: Final = 10
TICK_S: Final = 0.05

V2: Final = "/xrpc/network.bsky.jetstream.subscribeEvents"
V2_NAMES: Final = {"wantedCollections": "collections", "wantedDids": "dids"}
DID_LISTS: Final = [DIDS[:70], DIDS[50:130], [*DIDS[100:], LAST]]
HEARTBEAT: Final = re.compile(r"up to seq (\d+) has been considered")
CURSOR: Final = re.compile(r"; cursor=(\d+)$")


class Transport(NamedTuple):
    """How a reader is connected: the path of a WebSocket, or none; the wire, and the coding."""

    path: str
    wire: str
    coding: str = ""
    sse: bool = False

    @property
    def updates(self) -> bool:
        return self.path not in ("", V2)


TRANSPORTS: Final = [
    *(
        Transport(path, wire, coding)
        for path, wire in (("/subscribe", "classic"), ("/v1/subscribe", "v1"), (V2, "v2"))
        for coding in ("", "zstd")
    ),
    *(
        Transport("", wire, coding, sse)
        for wire in ("classic", "v1", "v2")
        for coding in ("", "gzip", "zstd")
        for sse in (False, True)
    ),
]


# Messages


class Message(NamedTuple):
    """An event or a heartbeat, as any wire has it: its position, and the DID of an event."""

    time_us: int
    did: str  # empty: a heartbeat


def read_message(text: str) -> Message | None:
    """Read a message of any wire; None for one without a position."""
    message = json.loads(text)
    if "payload" not in message:
        return Message(message["time_us"], message.get("did", ""))
    payload = message["payload"]
    if "seq" in payload:
        return Message(payload["seq"], payload["did"])
    found = HEARTBEAT.search(payload["message"])
    assert found or payload["name"] == "OutdatedCursor", text
    return Message(int(found[1]), "") if found else None


class Source(Protocol):
    """One connection of a client, of either transport."""

    def position(self) -> int: ...

    async def text(self) -> str | None: ...

    def ended(self) -> tuple[int, int] | None: ...


class WebSocket:
    """A WebSocket, whose messages may be compressed."""

    def __init__(self, subscriber: Subscriber, decompress: Callable[[bytes], bytes]) -> None:
        self.connection = subscriber.connection
        self.subscriber = subscriber
        self._decompress = decompress

    def position(self) -> int:
        response = self.connection.response
        assert response is not None
        return int(response.headers["Jetstream-Cursor"])

    async def text(self) -> str | None:
        try:
            message = await self.connection.recv()
        except ConnectionClosed:
            return None
        return message if isinstance(message, str) else self._decompress(message).decode()

    def ended(self) -> tuple[int, int] | None:
        """Return the close code and the cursor of the reason."""
        code, found = self.connection.close_code, CURSOR.search(self.connection.close_reason or "")
        return (code, int(found[1])) if code is not None and found else None


class Stream:
    """A response of `/events`."""

    def __init__(self, stream: EventStream, sse: bool) -> None:
        self._stream = stream
        self._sse = sse
        self._end: tuple[int, int] | None = None

    def position(self) -> int:
        return int(self._stream.headers["jetstream-cursor"])

    async def text(self) -> str | None:
        if not self._sse:
            return await self._stream.line()
        event = await self._stream.event()
        if event is None or event.type == "message":
            return event and event.data
        reason = json.loads(event.data)
        found = CURSOR.search(reason["reason"])
        assert found, reason
        self._end = reason["code"], int(found[1])
        return await self.text()

    def ended(self) -> tuple[int, int] | None:
        return self._end


# Readers


@dataclass
class Visit:
    """One connection: what it asked for, where it began, what it was sent, and where it ended."""

    transport: Transport
    stretches: list[Stretch]
    limit: int | None
    until: int | None
    start: int = 0
    messages: list[Message] = field(default_factory=list)
    end: tuple[int, int] | None = None  # the close code and the cursor

    @property
    def events(self) -> list[int]:
        return [message.time_us for message in self.messages if message.did]

    @property
    def complete(self) -> bool:
        """Whether it has the last event."""
        return bool(self.messages) and self.messages[-1].did == LAST

    @property
    def resume_at(self) -> int:
        """The cursor of the next connection."""
        if self.end is not None:
            return self.end[1]
        return self.messages[-1].time_us + 1 if self.messages else self.start


class Run:
    """The server, before and after its restart, and what upstream has said."""

    def __init__(self, relay: Relay, data_dir: Path) -> None:
        self.service: Service
        self.lists: list[str] = []  # the IDs of `DID_LISTS`
        self.dictionary_id = 0
        self.decompress: Callable[[bytes], bytes]
        self.seq = 0
        self.up = asyncio.Event()
        self._relay = relay
        self._data_dir = data_dir
        self._rng = Random(f"{SEED} upstream")

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Run a server, and upload the lists to it."""
        settings = Settings(
            upstream=self._relay.url, listen=LOOPBACK, data_dir=self._data_dir, forget="none",
            subscriber_buffer=20_000, upstream_cursor=self.seq or 0,
        )  # fmt: skip
        self.service = Service(settings, reconnecting_at_once(LIMITS))
        async with running(self.service), aiohttp.ClientSession() as session:
            base = f"http://127.0.0.1:{self.service.port}"
            async with session.get(f"{base}/zstd-dictionary") as response:
                data = zstandard.ZstdCompressionDict(await response.read())
                self.dictionary_id = data.dict_id()
                self.decompress = zstandard.ZstdDecompressor(dict_data=data).decompress
            self.lists = []
            for dids in DID_LISTS:
                async with session.post(f"{base}/filters", data="\n".join(dids)) as response:
                    self.lists.append((await response.json())["id"])
            self.up.set()
            yield
            self.up.clear()

    def publish(self, count: int) -> None:
        for _ in range(count):
            self.seq += 1
            did = self._rng.choice(DIDS)
            frame = (
                sync(self.seq, did=did) if self._rng.random() < 0.03 else random_frame(self._rng, self.seq)[0]
            )
            self._relay.publish([(self.seq, frame)])

    async def publish_slowly(self, count: int) -> None:
        for _ in range(0, count, TICK_FRAMES):
            self.publish(TICK_FRAMES)
            await asyncio.sleep(TICK_S)

    def finish(self) -> None:
        self.seq += 1
        self._relay.publish([(self.seq, identity_frame(self.seq, LAST)[0])])


def is_of_v2(wanted: Filter) -> bool:
    """Tell whether the v2 wire takes all prefixes of a filter."""
    return not {"app.*", "com.*"} & {*wanted.collections}


class Reader:
    """Connects again and again until it has the last event."""

    def __init__(self, number: int, run: Run) -> None:
        self.number = number
        self.visits: list[Visit] = []  # those that are over
        self.now: Visit | None = None  # the last one
        self.transport = TRANSPORTS[number % len(TRANSPORTS)]
        self._run = run
        self._rng = Random(f"{SEED} {number}")

    async def run(self) -> None:
        await asyncio.sleep(self._rng.random() * 1.5)
        cursor = self._first_cursor()
        while not self.complete:
            await self._run.up.wait()
            visit = self.now = self._plan(cursor)
            with suppress(ConnectionError, InvalidHandshake, asyncio.IncompleteReadError, EOFError):
                await self._visit(visit, cursor)
            if visit.start:  # else the server had gone
                self.visits.append(visit)
                cursor = visit.resume_at
            else:
                await asyncio.sleep(0.02)

    @property
    def complete(self) -> bool:
        return bool(self.visits) and self.visits[-1].complete

    def _first_cursor(self) -> int | None:
        log = self._run.service.log.statistics()
        assert log.oldest_us is not None
        assert log.newest_us is not None
        past = log.oldest_us + int(self._rng.random() * (log.newest_us - log.oldest_us))
        return self._rng.choice((None, None, 0, past, past))

    def _random_filter(self) -> Filter:
        """Return a filter that the wire takes, sometimes with an uploaded list."""
        wanted = random_filter(self._rng)
        while self.transport.wire == "v2" and not is_of_v2(wanted):
            wanted = random_filter(self._rng)
        if wanted.dids or {"excludeDids", "sample"} & {*dict(wanted.more)} or self._rng.random() < 0.7:
            return wanted
        number = self._rng.randrange(len(DID_LISTS))
        named = (*self._rng.sample(DIDS, 3), LAST)
        dids = tuple({*DID_LISTS[number], *named})
        return Filter(wanted.collections, dids, (*wanted.more, ("filter", number), ("named", named)))

    def _payload(self, wanted: Filter) -> dict[str, Any]:
        """Return the parameters of a filter: a list by its ID."""
        payload = wanted.payload
        number = payload.pop("filter", None)
        if number is not None:
            payload |= {"filter": self._run.lists[number], "wantedDids": payload.pop("named")}
        return payload

    def _plan(self, cursor: int | None) -> Visit:
        rng, log = self._rng, self._run.service.log
        wanted = self._random_filter()
        limit = rng.choice((None, None, None, 1, rng.randrange(1, 60)))
        until = rng.choice((None, None, None, log.tip - 50_000, log.tip + 300_000))
        if until is not None and (cursor is None or until < max(cursor, log.oldest_us or 0)):
            until = None
        return Visit(self.transport, [Stretch(wanted, 0, latest=0)], limit, until)

    def _query(self, visit: Visit, cursor: int | None) -> dict[str, Any]:
        query = self._payload(visit.stretches[0].filter)
        query = {name: "true" if value is True else value for name, value in query.items()}
        ends = {"cursor": cursor, "limit": visit.limit, "until": visit.until}
        query |= {name: value for name, value in ends.items() if value is not None}
        if self._rng.random() < 0.4:
            query["heartbeat"] = self._rng.choice((1, 2, 300))
        transport = visit.transport
        if transport.path and transport.coding:
            query["zstdDictionary"] = self._run.dictionary_id
        if not transport.path:
            query["wire"] = transport.wire
        if transport.path == V2:
            query = {V2_NAMES.get(name, name): value for name, value in query.items()}
        return query

    async def _visit(self, visit: Visit, cursor: int | None) -> None:
        async with self._connect(visit, self._query(visit, cursor)) as source:
            visit.start = source.position()
            if cursor:  # below the oldest event if the last visit ended before it was sent anything
                log = self._run.service.log
                assert visit.start == max(cursor, log.oldest_us or 0) or visit.start < cursor > log.tip
            visit.stretches[0] = Stretch(visit.stretches[0].filter, visit.start, latest=visit.start)
            if isinstance(source, WebSocket) and visit.transport.updates:
                for _ in range(self._rng.choice((0, 0, 1, 2, 4))):
                    await self._read(visit, source, self._rng.randrange(20))
                    await self._update(visit, source)
            await self._read(visit, source, sys.maxsize)
            visit.end = source.ended()

    @asynccontextmanager
    async def _connect(self, visit: Visit, query: dict[str, Any]) -> AsyncIterator[Source]:
        transport, port = visit.transport, self._run.service.port
        if transport.path:
            async with subscribe(port, transport.path, **query) as subscriber:
                yield WebSocket(subscriber, self._run.decompress)
        else:
            async with event_stream(port, sse=transport.sse, coding=transport.coding, **query) as stream:
                if stream.status == 503:
                    raise ConnectionRefusedError
                assert stream.status == 200, (query, await stream.rest())
                assert stream.headers.get("content-encoding", "") == transport.coding
                yield Stream(stream, transport.sse)

    async def _read(self, visit: Visit, source: Source, count: int) -> None:
        """Read so many messages, up to the end of the connection and to the last event."""
        while count and not visit.complete and (text := await source.text()) is not None:
            count -= 1
            message = read_message(text)
            if message is not None:
                visit.messages.append(message)

    async def _update(self, visit: Visit, source: WebSocket) -> None:
        """Change the filter, and note between which positions the new one begins to judge."""
        service = self._run.service
        stretch = Stretch(self._random_filter(), visit.resume_at)
        payload = self._payload(stretch.filter)
        if self._rng.random() < 0.3:
            payload["heartbeat"] = 5

        def note_taken(pong: asyncio.Future[float]) -> None:
            if not pong.cancelled() and pong.exception() is None:  # else the connection ended before
                stretch.latest = service.delivery._lanes.highest.position

        with suppress(ConnectionClosed):
            await source.subscriber.update(**payload)
            visit.stretches.append(stretch)
            pong = await source.connection.ping()
            asyncio.ensure_future(pong).add_done_callback(note_taken)


# The law


class Truth(NamedTuple):
    """All events, in order."""

    times: list[int]
    subjects: list[Subject]

    def has_any(self, start: int, stop: int) -> bool:
        """Tell whether there is an event in `[start, stop)`."""
        return bisect_left(self.times, start) < bisect_left(self.times, stop)


async def read_truth(service: Service) -> Truth:
    """Read all events: syncs, which are in the v2 wire only, and the others."""
    found: dict[int, Subject] = {}
    async with subscribe(service.port, V2, cursor=0, kinds="sync", until=service.log.tip) as subscriber:
        for event in await subscriber.rest():
            found[event["payload"]["seq"]] = Subject(event["payload"]["did"], "sync")
    async with subscribe(service.port, cursor=0, until=service.log.tip + 1) as subscriber:
        found |= {event["time_us"]: subject_of(event) for event in await subscriber.rest()}
    return Truth(sorted(found), [found[time_us] for time_us in sorted(found)])


def wants(wire: str, wanted: Filter, subject: Subject) -> bool:
    """Tell whether a reader of a wire wants an event. Only v2 has syncs."""
    if subject.kind != "sync":
        return wanted.passes(subject)
    kinds = dict(wanted.more).get("kinds", ("commit",) if wanted._content else ("sync",))
    return wire == "v2" and "sync" in kinds and subject.did in wanted._dids


def breach_of(visit: Visit, truth: Truth) -> str | None:
    """Return what one connection was sent or not sent against the law."""
    numbers = {time_us: number for number, time_us in enumerate(truth.times)}
    events = [numbers.get(time_us, -1) for time_us in visit.events]
    if -1 in events or any(not follows(*pair) for pair in pairwise(visit.messages)):
        return "unknown, repeated or out of order"
    if [truth.subjects[i].did for i in events] != [each.did for each in visit.messages if each.did]:
        return "other events"
    if not is_end_right(visit, truth):
        return "a wrong end"
    stop = bisect_left(truth.times, visit.resume_at)
    passes = partial(wants, visit.transport.wire)
    judged = truth.times, truth.subjects[:stop]
    at = first_breach(visit.stretches, visit.start, set(events), *judged, passes)
    return None if at is None else f"event {at}, {truth.subjects[at]}, received: {at in events}"


def follows(one: Message, other: Message) -> bool:
    """Tell whether a message may follow another. A heartbeat may have the position of the event before it."""
    return one.time_us < other.time_us or (one.time_us == other.time_us and not other.did)


def is_end_right(visit: Visit, truth: Truth) -> bool:
    """Tell whether a connection kept to its bounds, and ended at one of them or with the server.

    When `until` has passed and no event has come, the cursor of the close is behind the newest event.
    """
    count, last = len(visit.events), max(visit.events, default=0)
    if count > (visit.limit or sys.maxsize) or last >= (visit.until or sys.maxsize):
        return False
    if visit.end is None:
        return True
    code, cursor = visit.end
    if code == 1000:
        until = visit.until or 0
        return count == visit.limit or (last < cursor <= until and not truth.has_any(cursor, until))
    return code == (1012 if visit.transport.path == V2 else 1001)


def breaches(readers: Iterable[Reader], truth: Truth) -> Iterable[str]:
    for reader in readers:
        for n, visit in enumerate(reader.visits):
            breach = breach_of(visit, truth)
            if breach is not None:
                yield f"reader {reader.number}, connection {n}: {breach}; {visit}"
        for before, after in pairwise(reader.visits):
            if after.start != before.resume_at:
                yield f"reader {reader.number}: ended at {before.resume_at}, went on at {after.start}"


def counts(readers: Sequence[Reader]) -> Counter[str]:
    """Count what has happened, so that a run of little is no proof."""
    visits = [visit for reader in readers for visit in reader.visits]
    ends = Counter(visit.end[0] if visit.end is not None else 0 for visit in visits)
    return Counter(
        received=sum(len(visit.events) for visit in visits),
        heartbeats=sum(len(visit.messages) - len(visit.events) for visit in visits),
        changes=sum(len(visit.stretches) - 1 for visit in visits),
        done=ends[1000],
        restarted=ends[1001] + ends[1012],
    )


LEAST: Final = {"received": 30_000, "heartbeats": 50, "changes": 50, "done": 150, "restarted": 80}


async def test_everything_at_once_across_a_restart(relay: Relay, tmp_path: Path) -> None:
    run = Run(relay, tmp_path)
    readers = [Reader(number, run) for number in range(READERS)]
    async with asyncio.TaskGroup() as tasks:
        async with run.serving():
            run.publish(FRAMES_BEFORE)
            await published(run.service, run.seq)
            running_readers = [tasks.create_task(reader.run()) for reader in readers]
            await run.publish_slowly(FRAMES)
        async with run.serving():
            await run.publish_slowly(FRAMES)
            run.finish()
            await asyncio.wait(running_readers, timeout=PATIENCE_S)
            late = [reader for reader in readers if not reader.complete]
            assert not late, f"seed {SEED}: {len(late)} did not see the last event, such as {late[0].now}"
            truth = await read_truth(run.service)
            assert truth.times[-1] == run.service.log.tip
    against = list(breaches(readers, truth))
    assert not against, f"seed {SEED}: {len(against)} breaches, the first: {against[0]}"
    found = counts(readers)
    few = {name: found[name] for name, least in LEAST.items() if found[name] < least}
    assert not few, f"seed {SEED}: too little happened: {few}"
