"""What the client can ask a server for, and how it does without."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import zstandard
from tests.builders import DID as ALICE
from tests.builders import LIKE, Op, account, commit, create, delete, identity
from tests.relay import Relay, numbered
from tests.scripted import (
    EVENTS,
    PATIENCE_S,
    Act,
    Jetstream,
    Sleeps,
    close_after,
    cut_after,
    follow,
    raws,
    refusal,
    send,
    send_just,
    take,
)
from tests.serving import Start, published, until
from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Response

from jetstream.app import Service
from jetstream.client import ClientLimits, Message, NotJetstream, Refused, subscribe
from jetstream.clock import unix_us
from jetstream.errors import InvalidParameter

POST = "app.bsky.feed.post"


def heartbeat(time_us: int, *, live: bool, wire: str = "v1") -> str:
    kind = {"kind": "heartbeat"} if wire == "v1" else {"type": "hb"}
    return json.dumps({"time_us": time_us, **kind, "live": live})


class TestHeartbeat:
    @pytest.mark.parametrize("wire", ["v1", "classic"])
    async def test_it_moves_the_position_and_is_not_yielded(
        self, wire: str, jetstream: Jetstream, sleeps: Sleeps
    ) -> None:
        replayed = heartbeat(15, live=False, wire=wire)
        caught_up = heartbeat(995, live=True, wire=wire)
        jetstream.script.extend([send_just(EVENTS[0], replayed, EVENTS[1], caught_up)])
        async with subscribe(jetstream.url, cursor=0, heartbeat=5, sleep=sleeps) as events:
            seen = []
            for _ in range(2):
                event = await anext(events)
                seen.append((event.time_us, events.position, events.live))
            reading = asyncio.create_task(take(events, 1))
            await until(lambda: events.live)
            assert events.position == 996
            reading.cancel()
            await asyncio.wait([reading])
        assert seen == [(10, 0, False), (20, 16, False)]
        assert jetstream.queries == [{"cursor": ["0"], "heartbeat": ["5"]}]

    async def test_it_is_where_a_lost_connection_is_resumed_and_live_ends_with_it(
        self, jetstream: Jetstream, sleeps: Sleeps
    ) -> None:
        async def say_and_cut(connection: ServerConnection, _jetstream: Jetstream) -> None:
            await connection.send(heartbeat(204, live=True))
            connection.transport.abort()

        jetstream.script.append(say_and_cut)
        async with subscribe(jetstream.url, cursor=0, heartbeat=5, sleep=sleeps) as events:
            assert (await anext(events)).time_us == 210
            assert not events.live
        assert jetstream.cursors == [0, 205]

    async def test_a_server_that_falls_silent_is_left(
        self, jetstream: Jetstream, sleeps: Sleeps, caplog: pytest.LogCaptureFixture
    ) -> None:
        jetstream.script.append(send_just(heartbeat(204, live=True)))
        limits = ClientLimits(heartbeats_missed_max=1)
        events = await take(subscribe(jetstream.url, cursor=0, heartbeat=1, sleep=sleeps, limits=limits), 1)
        assert events[0].time_us == 210
        assert caplog.messages == [
            "connection lost: no heartbeat for 1 intervals of 1 s; reconnecting at cursor 205"
        ]


class TestEnd:
    async def test_the_servers_end_is_the_end(self, jetstream: Jetstream) -> None:
        jetstream.script.append(close_after(4, code=1000))
        async with subscribe(jetstream.url, cursor=0, until=45) as events:
            assert raws([event async for event in events]) == EVENTS[:4]
        assert events.position == 45
        assert jetstream.queries == [{"cursor": ["0"], "until": ["45"]}]

    async def test_a_server_that_does_not_know_of_an_end_is_read_up_to_it(self, jetstream: Jetstream) -> None:
        events = subscribe(jetstream.url, cursor=0, until=50)
        assert raws([event async for event in events]) == EVENTS[:4]
        assert events.position == 50
        await until(lambda: jetstream.closed)

    async def test_a_heartbeat_at_the_end_is_the_end(self, jetstream: Jetstream) -> None:
        jetstream.script.append(send_just(EVENTS[0], heartbeat(98, live=False), heartbeat(99, live=False)))
        events = subscribe(jetstream.url, cursor=0, until=100, heartbeat=1)
        assert raws([event async for event in events]) == EVENTS[:1]

    async def test_an_end_survives_lost_connections(self, jetstream: Jetstream, sleeps: Sleeps) -> None:
        jetstream.script.extend([cut_after(2), close_after(1, code=1001), close_after(1, code=1000)])
        events = subscribe(jetstream.url, cursor=0, until=45, sleep=sleeps)
        assert raws([event async for event in events]) == EVENTS[:4]

    async def test_without_an_end_1000_is_a_lost_connection(
        self, jetstream: Jetstream, sleeps: Sleeps
    ) -> None:
        jetstream.script.append(close_after(2, code=1000))
        assert raws(await take(subscribe(jetstream.url, cursor=0, sleep=sleeps), 3)) == EVENTS[:3]

    async def test_a_limit_counts_across_connections_and_the_last_event_is_done(
        self, jetstream: Jetstream, sleeps: Sleeps
    ) -> None:
        jetstream.script.extend([cut_after(2), cut_after(1)])
        events = subscribe(jetstream.url, cursor=0, limit=5, sleep=sleeps)
        assert raws([event async for event in events]) == EVENTS[:5]
        assert [query["limit"] for query in jetstream.queries] == [["5"], ["3"], ["2"]]
        assert events.position == 51

    def test_a_limit_of_none_is_an_error(self) -> None:
        with pytest.raises(InvalidParameter, match="limit: '0' is not a number of events"):
            subscribe(limit=0)


async def test_kinds_operations_and_the_wire_are_asked_for(jetstream: Jetstream) -> None:
    await take(
        subscribe(jetstream.url, kinds=["commit"], operations=["create", "update"], wire="v1", cursor=0), 1
    )
    assert jetstream.queries == [
        {"wire": ["v1"], "kinds": ["commit"], "operations": ["create", "update"], "cursor": ["0"]}
    ]


def dictionary(number: int) -> bytes:
    samples: list[bytes | bytearray | memoryview[int]] = [
        f'{{"did":"did:web:{n}","time_us":{n * number}}}'.encode() for n in range(1000)
    ]
    return zstandard.train_dictionary(2048, samples, dict_id=number).as_bytes()


def refuse(number: int) -> Response:
    return refusal(
        400, f"zstdDictionary: '{number}' is not a dictionary here: the current one is 9, at /zstd-dictionary"
    )


class TestCompression:
    @pytest.fixture(autouse=True)
    def _dictionary(self, jetstream: Jetstream) -> None:
        jetstream.dictionary = dictionary(7)

    async def test_events_are_decompressed_and_the_dictionary_is_requested_once(
        self, jetstream: Jetstream, sleeps: Sleeps
    ) -> None:
        jetstream.script.extend([cut_after(3), close_after(4)])
        events = await take(subscribe(jetstream.url, cursor=0, compress=True, sleep=sleeps), 10)
        assert raws(events) == EVENTS[:10]
        assert jetstream.dictionary_requests == [""]
        assert [query["zstdDictionary"] for query in jetstream.queries] == [["7"]] * 3

    async def test_plain_messages_among_them_are_read(self, jetstream: Jetstream) -> None:
        async def mix(connection: ServerConnection, jetstream: Jetstream) -> None:
            await connection.send(EVENTS[0])
            await connection.send(jetstream.compress(EVENTS[1]))
            await connection.wait_closed()

        jetstream.script.append(mix)
        assert raws(await take(subscribe(jetstream.url, compress=True), 2)) == EVENTS[:2]

    async def test_a_server_with_another_dictionary_than_before_is_asked_for_it_once(
        self, jetstream: Jetstream, sleeps: Sleeps
    ) -> None:
        async def change(connection: ServerConnection, jetstream: Jetstream) -> None:
            await send(connection, jetstream, 2)
            jetstream.dictionary = dictionary(9)
            jetstream.script.append(refuse(7))
            connection.transport.abort()

        jetstream.script.append(change)
        events = await take(subscribe(jetstream.url, cursor=0, compress=True, sleep=sleeps), 4)
        assert raws(events) == EVENTS[:4]
        assert jetstream.dictionary_requests == ["", "?id=9"]
        assert [query["zstdDictionary"] for query in jetstream.queries] == [["7"], ["7"], ["9"]]

    async def test_a_server_that_refuses_its_own_dictionary_is_an_error(self, jetstream: Jetstream) -> None:
        jetstream.script.extend([refuse(7)] * 2)
        with pytest.raises(Refused, match="the current one is 9"):
            await take(subscribe(jetstream.url, compress=True), 1)
        assert (len(jetstream.queries), jetstream.dictionary_requests) == (1, ["", "?id=9"])

    async def test_another_refusal_is_not_about_the_dictionary(self, jetstream: Jetstream) -> None:
        jetstream.script.append(refusal(400, "wantedDids: 'x' is not a DID"))
        with pytest.raises(Refused, match="is not a DID"):
            await take(subscribe(jetstream.url, compress=True), 1)
        assert jetstream.dictionary_requests == [""]

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (None, "HTTP 404 for"),
            (b"<html>", "is not a zstd dictionary"),
            (b"\x37\xa4\x30\xec" + bytes(2 << 20), "is longer than 1048576 bytes"),
        ],
    )
    async def test_a_server_without_a_dictionary_is_read_without_compression(
        self,
        answer: bytes | Response | None,
        reason: str,
        jetstream: Jetstream,
        sleeps: Sleeps,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        jetstream.dictionary = answer
        jetstream.script.append(cut_after(1))
        events = await take(subscribe(jetstream.url, cursor=0, compress=True, sleep=sleeps), 2)
        assert raws(events) == EVENTS[:2]
        assert jetstream.dictionary_requests == [""]
        [said] = [line for line in caplog.messages if "without compression" in line]
        assert f"{jetstream.url.replace('ws', 'http').replace('/subscribe', '/zstd-dictionary')}" in said
        assert reason in said

    async def test_a_server_that_is_busy_is_asked_again(self, jetstream: Jetstream, sleeps: Sleeps) -> None:
        busy = refusal(503, "later", Retry_After="7")
        jetstream.dictionary = busy

        async def recover(seconds: float) -> None:
            sleeps.append(seconds)
            jetstream.dictionary = dictionary(7)

        events = await take(subscribe(jetstream.url, cursor=0, compress=True, sleep=recover), 1)
        assert raws(events) == EVENTS[:1]
        assert sleeps == [7]
        assert jetstream.queries[0]["zstdDictionary"] == ["7"]

    @pytest.mark.parametrize("message", [b"\x28\xb5\x2f\xfd garbage", b"", b"{}"])
    async def test_a_message_that_cannot_be_decompressed_is_an_error(
        self, message: bytes, jetstream: Jetstream
    ) -> None:
        jetstream.script.append(send_just(message))
        with pytest.raises(NotJetstream, match="cannot be decompressed"):
            await take(subscribe(jetstream.url, compress=True), 1)

    async def test_each_server_has_its_own(
        self, jetstream: Jetstream, another: Jetstream, sleeps: Sleeps
    ) -> None:
        another.dictionary = dictionary(9)
        jetstream.script.extend([refusal(503, "down")])
        events = await take(subscribe([jetstream.url, another.url], cursor=0, compress=True, sleep=sleeps), 2)
        assert raws(events) == EVENTS[:2]
        assert [query["zstdDictionary"] for query in (*jetstream.queries, *another.queries)] == [["7"], ["9"]]


async def test_a_live_stream_resumes_where_the_server_says_that_it_began(
    jetstream: Jetstream, sleeps: Sleeps
) -> None:
    """The clock of the client may be wrong."""
    jetstream.script.append(cut_after(0))
    jetstream.headers = Headers({"Jetstream-Cursor": "145"})
    events = await take(subscribe(jetstream.url, sleep=sleeps, clock=lambda: 10**15), 1)
    assert events[0].time_us == 150
    assert jetstream.cursors == [None, 145]


@pytest.mark.parametrize("position", ["9" * 5_000, "-1", "soon", ""])
async def test_a_position_that_is_none_is_passed_over(
    position: str, jetstream: Jetstream, sleeps: Sleeps
) -> None:
    jetstream.script.append(cut_after(0))
    jetstream.headers = Headers({"Jetstream-Cursor": position})
    events = await take(subscribe(jetstream.url, sleep=sleeps, clock=lambda: 0), 1)
    assert raws(events) == EVENTS[:1]


async def send_for_ever(connection: ServerConnection, _jetstream: Jetstream) -> None:
    """Send, and read nothing, so that the client's close frame is not answered."""
    connection.transport.pause_reading()
    while True:
        await connection.send(EVENTS[0])
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("act", [follow, send_just(*EVENTS * 500), send_for_ever])
async def test_leaving_the_block_closes_the_connection_at_once(act: Act, jetstream: Jetstream) -> None:
    """Also when much is unread, behind which the server's close frame is."""
    jetstream.script.append(act)
    limits = ClientLimits(close_timeout_s=0.01)
    async with asyncio.timeout(PATIENCE_S), subscribe(jetstream.url, cursor=0, limits=limits) as events:
        await anext(events)


class TestOverThisServer:
    """Everything that the client can ask for, of a server that has it."""

    @pytest.fixture
    async def service(self, relay: Relay, start: Start) -> Service:
        """Serve seven events: an identity, two posts, a like, a delete, an update, an account."""
        relay.publish(
            numbered(
                [
                    identity(1),
                    commit(2, [create(f"{POST}/one", {"text": "eins"}), create(f"{LIKE}/two", {})]),
                    commit(3, [create(f"{POST}/three", {"text": "drei"}), delete(f"{POST}/four")]),
                    commit(4, [Op("update", f"{POST}/one", {"text": "uno"})]),
                    account(5, active=False, status="deactivated"),
                ]
            )
        )
        service = await start(upstream_cursor=0)
        await published(service, 5)
        return service

    async def all_of(self, service: Service, **options: Any) -> list[Message]:
        until_now = options.pop("until", service.log.tip + 1)
        async with asyncio.timeout(20):
            return [
                event
                async for event in subscribe(
                    f"127.0.0.1:{service.port}", cursor=0, until=until_now, **options
                )
            ]

    @pytest.mark.parametrize("wire", [None, "classic", "v1"])
    async def test_compressed_events_are_the_same(self, wire: Any, service: Service) -> None:
        plain = await self.all_of(service, wire=wire)
        compressed = await self.all_of(service, wire=wire, compress=True)
        assert raws(compressed) == raws(plain)
        assert len(plain) == 7

    async def test_kinds_and_operations_are_selected(self, service: Service) -> None:
        events = await self.all_of(service, kinds=["commit", "account"], operations=["update"], wire="v1")
        assert [event["kind"] for event in events] == ["commit", "account"]
        posts = await self.all_of(service, kinds=["commit"], operations=["create"], collections=[POST])
        assert [event["commit"]["rkey"] for event in posts] == ["one", "three"]

    async def test_a_long_filter_has_kinds_too(self, service: Service) -> None:
        dids = [ALICE, *(f"did:plc:{n:024}" for n in range(1000))]
        events = await self.all_of(service, kinds=["identity"], dids=dids, compress=True, heartbeat=5)
        assert [event["type"] for event in events] == ["id"]

    async def test_the_filters_of_a_url_are_in_force_beside_a_long_one(self, service: Service) -> None:
        dids = [ALICE, *(f"did:plc:{n:024}" for n in range(1000))]
        url = f"127.0.0.1:{service.port}?excludeCollections={LIKE}&operations=create&kinds=commit"
        events = [event async for event in subscribe(url, dids=dids, cursor=0, until=service.log.tip + 1)]
        assert [event["commit"]["rkey"] for event in events] == ["one", "three"]

    async def test_an_end_in_the_future_is_waited_for(self, service: Service) -> None:
        events = await self.all_of(service, until=unix_us() + 300_000, heartbeat=1)
        assert len(events) == 7

    async def test_times_are_texts_too(self, service: Service) -> None:
        events = await self.all_of(service, until="2100-01-01T00:00:00Z", limit=3)
        assert len(events) == 3

    async def test_a_narrow_filter_is_told_its_position_and_when_it_is_live(
        self, service: Service, relay: Relay
    ) -> None:
        url = f"127.0.0.1:{service.port}"
        async with subscribe(url, dids=["did:web:nobody"], cursor=0, heartbeat=1, compress=True) as events:
            reading = asyncio.create_task(take(events, 1))
            await until(lambda: events.live)
            before = service.log.tip
            assert events.position == before + 1
            relay.publish(numbered([identity(6)]))
            await published(service, 6)
            await until(lambda: (events.position or 0) > before + 1)
            assert events.position == service.log.tip + 1
            reading.cancel()
            await asyncio.wait([reading])

    async def test_a_live_stream_begins_where_the_server_says(self, service: Service) -> None:
        async with subscribe(f"127.0.0.1:{service.port}", clock=lambda: 1) as events:
            reading = asyncio.create_task(take(events, 1))
            await until(lambda: events.position)
            assert events.position == service.log.tip + 1
            reading.cancel()
            await asyncio.wait([reading])
