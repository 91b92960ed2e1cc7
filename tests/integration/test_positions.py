"""Positions as a client is told them: in the handshake, at `/cursors`, in heartbeats, and at the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest
from tests.builders import DID as ALICE
from tests.builders import identity
from tests.relay import Relay
from tests.serving import LOOPBACK, Start, get, published, running, until
from tests.subscriber import Event, Subscriber, subscribe
from websockets.exceptions import ConnectionClosed

from jetstream.app import Service
from jetstream.limits import DeliveryLimits, Limits
from jetstream.settings import Settings
from jetstream.web.websocket import MESSAGE_BYTES_MAX

BOB = "did:plc:bobbobbobbobbobbobbobbob"
NOBODY = "did:plc:nobodynobodynobodynobody"
FUTURE = 32503680000000000  # the year 3000
PROMPT = Limits(delivery=DeliveryLimits(watch_interval_s=0.01))
UNWATCHED = Limits(delivery=DeliveryLimits(watch_interval_s=3600.0))
HANDSHAKE = {"Connection": "Upgrade", "Upgrade": "websocket"}
LIMIT_TEXT = "done: the limit is reached, to go on connect with this cursor"
UNTIL_TEXT = "done: until is reached, to go on connect with this cursor"


def identities(*seqs: int, did: str = ALICE) -> list[tuple[int, bytes]]:
    return [(seq, identity(seq, did=did)) for seq in seqs]


def numbers(events: list[Event]) -> list[int]:
    return [event["identity"]["seq"] for event in events if "identity" in event]


def headers(subscriber: Subscriber) -> dict[str, int | None]:
    """Return the positions of a handshake."""
    response = subscriber.connection.response
    assert response is not None
    named = {name: response.headers.get(f"Jetstream-{name}") for name in ("Cursor", "Oldest", "Latest")}
    return {name: None if value is None else int(value) for name, value in named.items()}


@pytest.fixture
async def service(relay: Relay, start: Start) -> Service:
    """A server whose log holds the identity events 1, 2 and 3, at a second's distance."""
    ticks = count(1_700_000_000_000_000, 1_000)
    relay.publish(identities(1, 2, 3))
    service = await start(upstream_cursor=0, limits=PROMPT, clock=lambda: next(ticks))
    await published(service, 3)
    return service


async def times(service: Service, number: int) -> list[int]:
    """Return the `time_us` of the first events."""
    async with subscribe(service.port, cursor=0) as subscriber:
        return [event["time_us"] for event in await subscriber.events(number)]


# The handshake, and /cursors


async def test_a_handshake_says_where_it_begins_and_what_is_kept(service: Service) -> None:
    first, second, third = await times(service, 3)
    held = {"Oldest": first, "Latest": third}
    for query, cursor in (
        ({}, third + 1),
        ({"cursor": ""}, third + 1),
        ({"cursor": FUTURE}, third + 1),
        ({"cursor": 0}, first),
        ({"cursor": "-1d"}, first),
        ({"cursor": "1970-01-01T00:00:00+02:00"}, first),
        ({"cursor": second}, second),
        ({"cursor": second + 1}, second + 1),
        ({"requireHello": "true", "cursor": second}, second),
    ):
        async with subscribe(service.port, **query) as subscriber:
            assert headers(subscriber) == held | {"Cursor": cursor}, query


async def test_an_empty_log_has_a_position_and_no_events(start: Start) -> None:
    service = await start()
    async with subscribe(service.port) as subscriber:
        assert headers(subscriber) == {"Cursor": 1, "Oldest": None, "Latest": None}
    body = json.loads((await get(service.port, "/cursors"))[1])
    assert (body["cursor_us"], body["oldest_us"], body["latest_us"], body["latest"]) == (1, None, None, None)


async def test_the_positions_are_a_page_too(service: Service) -> None:
    first, _, third = await times(service, 3)
    url = f"http://127.0.0.1:{service.port}/cursors"
    async with aiohttp.ClientSession() as session:
        async with session.get(url) as response:
            body = await response.json()
            assert response.headers["Jetstream-Oldest"] == str(first)
            assert response.headers["Access-Control-Allow-Origin"] == "*"
            assert response.headers["Access-Control-Expose-Headers"] == "*"
        async with session.head(url) as response:
            assert response.headers["Jetstream-Latest"] == str(third)
            assert await response.read() == b""
    assert (body["oldest_us"], body["latest_us"], body["cursor_us"]) == (first, third, third + 1)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    for name in ("oldest", "latest", "cursor", "now"):
        moment = datetime.fromisoformat(body[name])
        assert (moment - epoch) // timedelta(microseconds=1) == body[f"{name}_us"]


async def test_a_date_of_the_page_is_a_cursor(service: Service) -> None:
    body = json.loads((await get(service.port, "/cursors"))[1])
    async with subscribe(service.port, cursor=body["latest"]) as subscriber:
        assert numbers(await subscriber.events(1)) == [3]


# Bounds


async def test_a_replay_ends_before_until(service: Service) -> None:
    _, _, third = await times(service, 3)
    async with subscribe(service.port, cursor=0, until=third) as subscriber:
        assert numbers(await subscriber.rest()) == [1, 2]
        assert await subscriber.ended_at() == (1000, UNTIL_TEXT, third)
    await until(lambda: service.metrics.disconnects["done"]._value.get() == 1)


async def test_a_limit_counts_what_is_sent_and_the_cursor_goes_on(service: Service, relay: Relay) -> None:
    relay.publish(identities(4, did=BOB) + identities(5) + identities(6, did=BOB))
    await published(service, 6)
    cursor, seen = 0, list[int]()
    while len(seen) < 4:
        async with subscribe(
            service.port, "/v1/subscribe", cursor=cursor, limit=2, wantedDids=ALICE
        ) as subscriber:
            seen += numbers(await subscriber.rest())
            code, text, cursor = await subscriber.ended_at()
            assert (code, text) == (1000, LIMIT_TEXT)
    assert seen == [1, 2, 3, 5]


async def test_a_live_subscription_may_have_a_limit(service: Service, relay: Relay) -> None:
    async with subscribe(service.port, limit=2) as subscriber:
        for seq in (4, 5, 6):
            relay.publish(identities(seq))
            await published(service, seq)
        assert numbers(await subscriber.rest()) == [4, 5]
        code, text, cursor = await subscriber.ended_at()
    async with subscribe(service.port, cursor=cursor) as subscriber:
        assert numbers(await subscriber.events(1)) == [6]
    assert (code, text) == (1000, LIMIT_TEXT)


async def test_until_in_the_future_ends_a_quiet_stream(relay: Relay, start: Start) -> None:
    now_us = 1_700_000_000_000_000
    relay.publish(identities(1))
    service = await start(upstream_cursor=0, limits=PROMPT, clock=lambda: now_us)
    await published(service, 1)
    async with subscribe(service.port, cursor=0, until=now_us + 10_000_000) as subscriber:
        assert numbers(await subscriber.events(1)) == [1]
        now_us += 5_000_000
        relay.publish(identities(2))
        assert numbers(await subscriber.events(1)) == [2]
        tip = service.log.tip
        now_us += 5_000_000
        assert await subscriber.ended_at() == (1000, UNTIL_TEXT, tip + 1)


async def test_until_in_the_future_ends_at_the_first_event_from_it_on(relay: Relay, start: Start) -> None:
    now_us = 1_700_000_000_000_000
    service = await start(upstream_cursor=0, limits=UNWATCHED, clock=lambda: now_us)
    end = now_us + 10_000_000
    async with subscribe(service.port, until=end) as subscriber:
        await until(lambda: len(service.delivery) == 1)
        relay.publish(identities(1))
        assert numbers(await subscriber.events(1)) == [1]
        now_us = end
        relay.publish(identities(2))
        assert await subscriber.ended_at() == (1000, UNTIL_TEXT, end)
    async with subscribe(service.port, cursor=end) as subscriber:
        assert numbers(await subscriber.events(1)) == [2]


async def test_bounds_wait_for_a_hello(service: Service) -> None:
    async with subscribe(service.port, requireHello="true", cursor=0, limit=1) as subscriber:
        await subscriber.update()
        assert numbers(await subscriber.rest()) == [1]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("until=soon", "until: 'soon' is not a time: give unix microseconds, RFC 3339"),
        ("cursor=soon", "cursor: 'soon' is not a time: give unix microseconds, RFC 3339"),
        ("cursor=5&until=4", "until: '4' is before the cursor, 5"),
        ("until=-10m", "until: '-10m' is before the present, where it starts: give a cursor"),
        ("until=1&until=2", "until: '1, 2' is given more than once"),
        ("limit=0", "limit: '0' is not a number of events from 1 on"),
        ("limit=few", "limit: 'few' is not a number of events from 1 on"),
        ("heartbeat=0", "heartbeat: '0' is not a whole number of seconds from 1 to 300"),
        ("heartbeat=301", "heartbeat: '301' is not a whole number of seconds from 1 to 300"),
        ("heartbeat=1s", "heartbeat: '1s' is not a whole number of seconds from 1 to 300"),
    ],
)
async def test_what_is_bad_is_refused(query: str, sentence: str, service: Service) -> None:
    status, text = await get(service.port, f"/subscribe?{query}", **HANDSHAKE)
    assert (status, text.startswith(sentence)) == (400, True), text


# Heartbeats


async def test_a_narrow_filter_advances_and_resumes_without_a_loss(service: Service, relay: Relay) -> None:
    async with subscribe(service.port, wantedDids=NOBODY, heartbeat=1) as subscriber:
        first = await subscriber.event()
        assert first == {"time_us": service.log.tip, "type": "hb", "live": True}
        relay.publish(identities(4, did=BOB))
        await published(service, 4)
        beat = await subscriber.event()
        assert beat == {"time_us": service.log.tip, "type": "hb", "live": True}
    relay.publish(identities(5, did=NOBODY))
    await published(service, 5)
    async with subscribe(
        service.port, "/v1/subscribe", wantedDids=NOBODY, cursor=beat["time_us"] + 1, heartbeat=1
    ) as subscriber:
        assert numbers([event := await subscriber.event()]) == [5]
        assert await subscriber.event() == {"time_us": event["time_us"], "kind": "heartbeat", "live": True}


async def test_a_replay_is_told_at_once_that_it_is_live(service: Service, relay: Relay) -> None:
    async with subscribe(service.port, "/v1/subscribe", cursor=0, heartbeat=300) as subscriber:
        events = await subscriber.events(4)
        relay.publish(identities(4))
        events += await subscriber.events(1)
    assert [event["kind"] for event in events] == [*["identity"] * 3, "heartbeat", "identity"]
    assert events[3] == {"time_us": events[2]["time_us"], "kind": "heartbeat", "live": True}


async def test_an_update_changes_the_heartbeat_and_is_answered_by_one(service: Service, relay: Relay) -> None:
    async with subscribe(service.port, "/v1/subscribe") as subscriber:
        await subscriber.update(wantedDids=[BOB], heartbeat=300)
        assert await subscriber.event() == {"time_us": service.log.tip, "kind": "heartbeat", "live": True}
        relay.publish(identities(4) + identities(5, did=BOB))
        assert numbers(await subscriber.events(1)) == [5]
        await subscriber.update(wantedDids=[BOB])  # without: that of the URL, which has none
        await (await subscriber.connection.ping())
        relay.publish(identities(6, did=BOB))
        assert numbers(await subscriber.events(1)) == [6]


async def test_an_update_without_a_heartbeat_keeps_that_of_the_url(service: Service) -> None:
    async with subscribe(service.port, "/v1/subscribe", heartbeat=300) as subscriber:
        assert (await subscriber.event())["live"]
        await subscriber.update(wantedDids=[BOB])
        assert (await subscriber.event())["live"]


async def test_a_bad_heartbeat_closes_with_1008(service: Service) -> None:
    async with subscribe(service.port) as subscriber:
        await subscriber.update(heartbeat=0)
        text = "heartbeat: '0' is not a whole number of seconds from 1 to 300"
        assert await subscriber.ended_at() == (1008, text, service.log.tip + 1)


async def test_clients_that_resume_wherever_they_were_lose_and_repeat_nothing(
    service: Service, relay: Relay
) -> None:
    """At an event or at a heartbeat, from connections that are cut at any time."""
    chance, last = Random(14), 400
    dids = [ALICE, BOB, NOBODY]
    owners = {seq: chance.choice(dids) for seq in range(4, last + 1)}

    async def publish() -> None:
        for seq, did in owners.items():
            relay.publish(identities(seq, did=did))
            await asyncio.sleep(chance.random() * 0.01)
        for extra, did in enumerate(dids, last + 1):  # an end for each filter
            relay.publish(identities(extra, did=did))

    async def read(did: str, wire: str, seen: list[int]) -> None:
        cursor: int | None = None
        while not seen or seen[-1] <= last:
            query: dict[str, Any] = {} if cursor is None else {"cursor": cursor}
            async with subscribe(
                service.port, queue=last, wire=wire, wantedDids=did, heartbeat=1, **query
            ) as subscriber:
                cursor = headers(subscriber)["Cursor"]
                for _ in range(chance.randrange(1, 20)):
                    message = await subscriber.event()
                    cursor = message["time_us"] + 1
                    seen += numbers([message])
                    if seen and seen[-1] > last:
                        break

    received = {(did, wire): list[int]() for did in dids for wire in ("classic", "v1")}
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for (did, wire), seen in received.items():
            tasks.create_task(read(did, wire, seen))
        await until(lambda: len(service.delivery) == len(received))
        tasks.create_task(publish())
    for (did, _), seen in received.items():
        assert seen == [*(seq for seq, owner in owners.items() if owner == did), last + 1 + dids.index(did)]


# Reasons


def _stop(service: Service, _subscriber: Subscriber) -> Any:
    service.stop()


def _bad_options(_service: Service, subscriber: Subscriber) -> Any:
    return subscriber.update(wantedDids=["x" * 300])


def _no_json(_service: Service, subscriber: Subscriber) -> Any:
    return subscriber.say("hello")


def _too_long(_service: Service, subscriber: Subscriber) -> Any:
    return subscriber.say("x" * (MESSAGE_BYTES_MAX + 1))


def _breach(_service: Service, subscriber: Subscriber) -> Any:
    subscriber.connection.transport.write(b"\x81\x02{}")


@pytest.mark.parametrize(
    ("act", "code"),
    [(_stop, 1001), (_bad_options, 1008), (_no_json, 1007), (_too_long, 1009), (_breach, 1002)],
)
@pytest.mark.parametrize("query", [{}, {"cursor": 0}, {"limit": 1_000}])
async def test_every_close_ends_with_the_cursor_to_resume_at(
    act: Callable[[Service, Subscriber], Any],
    code: int,
    query: dict[str, Any],
    service: Service,
    relay: Relay,
) -> None:
    """A client that comes back with it gets what it has not been sent, and nothing else."""
    async with subscribe(service.port, **query) as subscriber:
        await until(lambda: len(service.delivery) == 1)
        seen = [] if "cursor" not in query else numbers(await subscriber.events(3))
        relay.publish(identities(4))
        seen += numbers(await subscriber.events(1))
        try:
            if (waiting := act(service, subscriber)) is not None:
                await waiting
        except ConnectionClosed:
            pass
        seen += numbers(await subscriber.rest())
        ended, _, cursor = await subscriber.ended_at()
    assert (ended, cursor) == (code, service.log.tip + 1)
    assert seen[-1] == 4


class Returning:
    """A client that is cut by a restart, and goes on at the cursor of the close."""

    def __init__(self, query: dict[str, Any]) -> None:
        self.query = query
        self.seen: list[int] = []
        self.connected = False
        self.cursor = 0

    async def read_to_the_end(self, port: int) -> None:
        async with subscribe(port, receive_buffer=4096, **self.query) as subscriber:
            self.connected = True
            self.seen += numbers(await subscriber.rest())
            code, _, self.cursor = await subscriber.ended_at()
            assert code == 1001

    async def go_on(self, port: int, last: int) -> None:
        query = {name: value for name, value in self.query.items() if name == "wantedDids"}
        async with subscribe(port, cursor=self.cursor, **query) as subscriber:
            while not self.seen or self.seen[-1] != last:
                self.seen += numbers(await subscriber.events(1))


async def test_a_restart_under_load_loses_and_repeats_nothing_at_the_cursors_of_the_closes(
    relay: Relay, tmp_path: Path
) -> None:
    """At the tip and in replay, with sockets that are full and with bounds."""
    last = 3_000
    dids = {seq: (ALICE, BOB)[seq % 3 == 0] for seq in range(1, last + 1)}
    queries: list[dict[str, Any]] = [{}, {"cursor": 0}, {"limit": last}, {"wantedDids": BOB}] * 5
    clients = [Returning(query) for query in queries]
    settings = Settings(upstream=relay.url, listen=LOOPBACK, data_dir=tmp_path, subscriber_buffer=10_000)

    async with running(Service(settings, PROMPT)) as service, asyncio.TaskGroup() as tasks:
        for client in clients:
            tasks.create_task(client.read_to_the_end(service.port))
        await relay.wait_accepted(1)
        await until(lambda: all(client.connected for client in clients))
        await until(lambda: len(service.delivery) == len(clients))
        relay.publish([(seq, identity(seq, did=did)) for seq, did in dids.items()])
        await until(lambda: service.log.tip)
        service.stop()
    async with running(Service(settings, PROMPT)) as service, asyncio.TaskGroup() as tasks:
        for client in clients:
            tasks.create_task(client.go_on(service.port, last))
    for client in clients:
        assert client.seen == [seq for seq, did in dids.items() if client.query.get("wantedDids", did) == did]
