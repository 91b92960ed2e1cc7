"""`/subscribe` as a client meets it: where it begins, what it may say, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import json
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from operator import methodcaller
from typing import Any

import pytest
from tests.builders import DID as ALICE
from tests.builders import LIKE, commit, create, identity, like
from tests.relay import Relay
from tests.serving import Start, figures, get, published, until
from tests.subscriber import Event, subscribe
from tests.unit.eventlog.trimming import trim
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from jetstream.app import Service
from jetstream.dictionary.choice import Dictionaries
from jetstream.limits import DeliveryLimits, Limits, WebLimits
from jetstream.web.dialect import SubscribeDialect
from jetstream.web.server import Routes, Server
from jetstream.web.sink import SocketSink
from jetstream.web.subscribe import Subscribe

BOB = "did:plc:bobbobbobbobbobbobbobbob"
POST = "app.bsky.feed.post"
FUTURE = 32503680000000000  # the year 3000
UPDATE_BYTES_MAX = 1_000_000
WATCHED = DeliveryLimits(watch_interval_s=0.01)


def numbers(events: list[Event]) -> list[int]:
    """Return the seq of identity events: which they are, in a word."""
    return [event["identity"]["seq"] for event in events]


def identities(*seqs: int) -> list[tuple[int, bytes]]:
    return [(seq, identity(seq)) for seq in seqs]


@pytest.fixture
async def service(relay: Relay, start: Start) -> Service:
    """A server whose log holds the identity events 1, 2 and 3."""
    relay.publish(identities(1, 2, 3))
    service = await start(upstream_cursor=0)
    await published(service, 3)
    return service


async def disconnects(service: Service, reason: str, count: int = 1) -> None:
    """Wait until so many connections have ended for a reason."""
    label = service.metrics.disconnects[reason]
    await until(lambda: label._value.get() == count)


# Where it begins


@pytest.mark.parametrize("query", [{}, {"cursor": ""}, {"cursor": FUTURE}, {"cursor": "9" * 20}])
async def test_without_a_cursor_in_the_past_it_begins_with_the_next_event(
    query: dict[str, Any], service: Service, relay: Relay
) -> None:
    async with subscribe(service.port, **query) as subscriber:
        relay.publish(identities(4, 5))
        assert numbers(await subscriber.events(2)) == [4, 5]


@pytest.mark.parametrize("cursor", [0, 1, "00000000000000000001"])
async def test_a_cursor_older_than_the_log_begins_at_its_oldest_event(
    cursor: str | int, service: Service, relay: Relay
) -> None:
    async with subscribe(service.port, cursor=cursor) as subscriber:
        relay.publish(identities(4))
        assert numbers(await subscriber.events(4)) == [1, 2, 3, 4]


async def test_a_cursor_is_where_its_own_event_comes_again(service: Service, relay: Relay) -> None:
    async with subscribe(service.port, cursor=1) as subscriber:
        times = [event["time_us"] for event in await subscriber.events(3)]
    relay.publish(identities(4))
    for cursor, expected in ((times[1], [2, 3, 4]), (times[1] + 1, [3, 4]), (times[2], [3, 4])):
        async with subscribe(service.port, cursor=cursor) as subscriber:
            assert numbers(await subscriber.events(len(expected))) == expected


async def test_a_cursor_after_the_last_event_of_a_quiet_stream_waits_for_the_next(
    service: Service, relay: Relay
) -> None:
    async with subscribe(service.port, cursor=service.log.tip + 1) as subscriber:
        relay.publish(identities(4))
        assert numbers(await subscriber.events(1)) == [4]


async def test_a_cursor_after_the_last_event_misses_nothing_when_the_clock_steps_back(
    relay: Relay, start: Start
) -> None:
    now = [2_000]
    relay.publish(identities(1))
    service = await start(upstream_cursor=0, clock=lambda: now[0])
    await published(service, 1)
    now[0] = 1_000
    async with subscribe(service.port, cursor=FUTURE) as subscriber:
        relay.publish(identities(2))
        event = await subscriber.event()
    assert (event["identity"]["seq"], event["time_us"]) == (2, service.log.tip)


async def test_what_is_no_longer_kept_is_passed_over(service: Service, relay: Relay) -> None:
    await trim(service.log, service.log.tip + 1)
    relay.publish(identities(4))
    async with subscribe(service.port, cursor=1) as subscriber:
        assert numbers(await subscriber.events(1)) == [4]


async def test_a_client_that_resumes_at_its_last_event_plus_one_misses_nothing(
    service: Service, relay: Relay
) -> None:
    cursor, seen = 1, []
    for seq in range(4, 24):
        relay.publish(identities(seq))
        async with subscribe(service.port, cursor=cursor) as subscriber:
            event = await subscriber.event()
        seen.append(event["identity"]["seq"])
        cursor = event["time_us"] + 1
    assert seen == list(range(1, 21))


# What it may ask for

GOOD = [
    "",
    "wantedCollections=app.bsky.feed.like",
    "wantedCollections=app.*",
    "wantedCollections=app.bsky.*",
    "wantedCollections=app.bsky.feed.like,app.bsky.graph.*&wantedCollections=com.example.thing",
    "&".join(f"wantedCollections=com.example.thing{chr(97 + n % 26) * (1 + n // 26)}" for n in range(100)),
    f"wantedDids={ALICE}",
    f"wantedDids={ALICE},{BOB}&wantedDids=did:web:example.com",
    "cursor=",
    "cursor=0",
    "cursor=18446744073709551616",
    "cursor=99999999999999999999",
    "maxMessageSizeBytes=",
    "maxMessageSizeBytes=0",
    "maxMessageSizeBytes=1048576",
    "maxSize=1048576",
    "wire=",
    "wire=classic",
    "wire=v1",
    "compress=false",
    "compress=",
    "requireHello=false",
    "requireHello=true",
    "requireHello=",
    "unknown=1&another",
]
BAD = [
    ("wantedCollections=", "wantedCollections", "''"),
    ("wantedCollections=*", "wantedCollections", "'*'"),
    ("wantedCollections=likes", "wantedCollections", "'likes'"),
    ("wantedCollections=app.bsky", "wantedCollections", "'app.bsky'"),
    ("wantedCollections=app.bsky.graph.fo*", "wantedCollections", "'app.bsky.graph.fo*'"),
    ("wantedCollections=app.bsky.*.like", "wantedCollections", "'app.bsky.*.like'"),
    ("wantedCollections=app.bsky.feed.like,", "wantedCollections", "''"),
    ("&".join(["wantedCollections=app.bsky.feed.like"] * 101), "wantedCollections", "'101'"),
    ("wantedDids=", "wantedDids", "''"),
    ("wantedDids=alice.example.com", "wantedDids", "'alice.example.com'"),
    (f"wantedDids={ALICE}&wantedDids=did:", "wantedDids", "'did:'"),
    ("wantedDids=" + ",".join([ALICE] * 10_001), "wantedDids", "'10001'"),
    ("cursor=-1", "cursor", "'-1'"),
    ("cursor=1.5", "cursor", "'1.5'"),
    ("cursor=now", "cursor", "'now'"),
    ("cursor=%201", "cursor", "' 1'"),
    ("cursor=1%0A", "cursor", r"'1\n'"),
    ("cursor=%D9%A1", "cursor", "'\u0661'"),
    ("cursor=100000000000000000000", "cursor", "'100000000000000000000'"),
    ("cursor=1&cursor=2", "cursor", "'1, 2'"),
    ("maxMessageSizeBytes=-1", "maxMessageSizeBytes", "'-1'"),
    ("maxMessageSizeBytes=1k", "maxMessageSizeBytes", "'1k'"),
    ("maxMessageSizeBytes=1&maxMessageSizeBytes=2", "maxMessageSizeBytes", "'1, 2'"),
    ("compress=1", "compress", "'1'"),
    ("maxSize=1k", "maxSize", "'1k'"),
    ("wire=v3", "wire", "'v3'"),
    ("wire=v1&wire=v1", "wire", "'v1, v1'"),
    ("requireHello=yes", "requireHello", "'yes'"),
    ("requireHello=true&requireHello=true", "requireHello", "'true, true'"),
]


@pytest.mark.parametrize("path", ["/subscribe", "/v1/subscribe"])
async def test_good_parameters_are_taken(path: str, service: Service) -> None:
    for query in GOOD:
        async with subscribe(service.port, f"{path}?{query}"):
            pass
    await disconnects(service, "client", len(GOOD))


@pytest.mark.parametrize("path", ["/subscribe", "/v1/subscribe"])
async def test_a_bad_parameter_is_refused_by_name_and_value(path: str, service: Service) -> None:
    for query, name, value in BAD:
        status, text = await get(service.port, f"{path}?{query}", Upgrade="websocket", Connection="upgrade")
        assert (status, text.startswith(f"{name}: {value} ")) == (400, True), (query, text)
        assert text.endswith("\n")
        assert len(text) < 300
    assert (await figures(service.port))['jetstream_refused_total{reason="parameter"}'] == len(BAD)


async def test_the_longest_request_is_served(relay: Relay, start: Start) -> None:
    dids = [f"did:plc:{n:024d}" for n in range(10_000)]
    collections = [f"com.example.{'x' * 50}.collection{chr(97 + n % 26) * (1 + n // 26)}" for n in range(100)]
    relay.publish(
        [
            (1, commit(1, [like()], repo=dids[-1])),
            (2, commit(2, [create(f"{collections[-1]}/self", {})], repo=BOB)),
            (3, commit(3, [create(f"{collections[-1]}/self", {})], repo=dids[-1])),
        ]
    )
    service = await start(upstream_cursor=0)
    async with subscribe(
        service.port,
        wantedCollections=collections,
        wantedDids=dids,
        cursor="00000000000000000001",
        maxMessageSizeBytes="00000000000001048576",
        compress="false",
        requireHello="false",
    ) as subscriber:
        event = await subscriber.event()
    assert (event["did"], event["commit"]["collection"]) == (dids[-1], collections[-1])


async def test_a_request_line_beyond_all_limits_is_refused(service: Service) -> None:
    status, _ = await get(service.port, "/subscribe?wantedDids=" + "x" * (1 << 20))
    assert status == 414


async def test_when_all_places_are_taken_a_newcomer_is_asked_to_come_again(start: Start) -> None:
    service = await start(max_subscribers=1)
    async with subscribe(service.port):
        headers = {"Upgrade": "websocket", "Connection": "upgrade"} | {
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        status, text = await get(service.port, "/subscribe", **headers)
        assert (status, text) == (
            503,
            "1 subscribers are connected, and that is the limit: try again later\n",
        )
    await disconnects(service, "client")
    async with subscribe(service.port):
        pass


UPLOAD = b"POST /filters HTTP/1.1\r\nHost: here\r\nContent-Length: 9\r\n\r\n"


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"G",
        b"GET /subscribe HT",
        b"GET /subscribe HTTP/1.1\r\nHost: here\r\n",
        UPLOAD,
        UPLOAD + b"did:plc:",
    ],
)
async def test_a_request_that_does_not_end_is_closed(said: bytes, start: Start) -> None:
    service = await start(limits=Limits(web=WebLimits(request_timeout_s=0.05, deadline_check_s=0.01)))
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(said)
    async with asyncio.timeout(20):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 408 ") if said else answer == b""
    writer.close()


# Hello


async def test_before_a_hello_nothing_is_sent(service: Service, relay: Relay) -> None:
    async with subscribe(service.port, requireHello="true") as subscriber:
        relay.publish(identities(4, 5))
        await published(service, 5)
        await subscriber.say({"type": "something else"})
        await subscriber.update()
        await until(lambda: len(service.delivery) == 1)
        relay.publish(identities(6))
        assert numbers(await subscriber.events(1)) == [6]


async def test_after_a_hello_the_cursor_counts(service: Service, relay: Relay) -> None:
    async with subscribe(service.port, requireHello="true", cursor=1) as subscriber:
        relay.publish(identities(4))
        await subscriber.update(wantedDids=[ALICE])
        assert numbers(await subscriber.events(4)) == [1, 2, 3, 4]


async def test_a_hello_brings_the_filter(service: Service, relay: Relay) -> None:
    async with subscribe(service.port, requireHello="true", cursor=1, wantedDids=ALICE) as subscriber:
        await subscriber.update(wantedDids=[BOB])
        relay.publish([(4, identity(4, did=BOB))])
        assert numbers(await subscriber.events(1)) == [4]


async def test_without_a_hello_in_time_the_connection_is_closed(service: Service) -> None:
    subscribe_route = Subscribe(
        service.delivery,
        service.metrics,
        buffer_bytes=1 << 20,
        subscribers_max=10,
        limits=WebLimits(hello_timeout_s=0.01),
    )
    dialect = SubscribeDialect("classic", Dictionaries(None).framing)
    server = Server(service.metrics, Routes({}, {"/subscribe": subscribe_route.on(dialect)}))
    port = await server.start("127.0.0.1", 0)
    try:
        async with subscribe(port, requireHello="true") as subscriber:
            code, text, cursor = await subscriber.ended_at()
            assert (code, text) == (
                1008,
                "no options_update within 0.01 s: send one, or leave requireHello out",
            )
            assert cursor == service.log.tip + 1
        await disconnects(service, "no_hello")
    finally:
        await server.close()


async def test_a_bad_hello_closes_the_connection(service: Service) -> None:
    async with subscribe(service.port, requireHello="true", cursor=1) as subscriber:
        await subscriber.update(wantedDids="all")
        code, text, cursor = await subscriber.ended_at()
        assert (code, text) == (1008, "wantedDids: '\"all\"' is not a list")
        assert cursor == service.log.oldest_us
    await disconnects(service, "bad_options")


# What it may say

IGNORED = [
    {"type": "subscriber_sourced_event"},
    {"type": None},
    {"type": ["options_update"]},
    {},
    {"payload": {"wantedDids": "bad"}},
    b'{"type":"other"}',
]
NO_JSON = ["", "hello", "{", '{"type":"options_update","payload":{}', "NaN", "'{}'", b"\xff{}"]
BAD_MESSAGES: list[tuple[object, str]] = [
    ([], "message: '[]' is not an object"),
    ("1", "message: '1' is not an object"),
    ({"type": "options_update"}, "payload: 'null' is not an object"),
    ({"type": "options_update", "payload": []}, "payload: '[]' is not an object"),
]
BAD_PAYLOADS: list[tuple[dict[str, object], str]] = [
    ({"wantedCollections": LIKE}, f"wantedCollections: '\"{LIKE}\"' is not a list"),
    ({"wantedCollections": [1]}, "wantedCollections: '1' is not a string"),
    ({"wantedCollections": ["*"]}, "wantedCollections: '*' is neither a collection"),
    ({"wantedCollections": [LIKE] * 101}, "wantedCollections: '101' are too many"),
    ({"wantedDids": ["alice"]}, "wantedDids: 'alice' is not a DID"),
    ({"wantedDids": {"0": ALICE}}, "wantedDids: "),
    ({"wantedDids": [ALICE] * 10_001}, "wantedDids: '10001' are too many"),
    ({"maxMessageSizeBytes": "1"}, "maxMessageSizeBytes: '\"1\"' is not a number"),
    ({"maxMessageSizeBytes": -1}, "maxMessageSizeBytes: '-1' is not a number"),
    ({"maxMessageSizeBytes": 1.5}, "maxMessageSizeBytes: '1.5' is not a number"),
    ({"maxMessageSizeBytes": True}, "maxMessageSizeBytes: 'true' is not a number"),
]


async def test_unknown_types_are_ignored(service: Service, relay: Relay) -> None:
    async with subscribe(service.port) as subscriber:
        for message in IGNORED:
            await subscriber.say(message)
        await (await subscriber.connection.ping())
        relay.publish(identities(4))
        assert numbers(await subscriber.events(1)) == [4]


@pytest.mark.parametrize("message", NO_JSON)
async def test_what_is_no_json_closes_with_1007(message: str | bytes, service: Service) -> None:
    async with subscribe(service.port) as subscriber:
        await subscriber.say(message)
        code, reason = await subscriber.ended()
    assert (code, reason.startswith("a message is not JSON: ")) == (1007, True)
    await disconnects(service, "bad_json")


async def test_text_that_is_not_utf_8_closes_with_1007(service: Service) -> None:
    async with subscribe(service.port) as subscriber:
        await subscriber.connection.send(b'{"type":"\xff"}', text=True)
        code, reason = await subscriber.ended()
    assert (code, reason.startswith("a message is not JSON: ")) == (1007, True)
    await disconnects(service, "bad_json")


async def test_a_bad_update_closes_with_1008_and_says_what_is_wrong(service: Service) -> None:
    messages = BAD_MESSAGES + [
        ({"type": "options_update", "payload": payload}, reason) for payload, reason in BAD_PAYLOADS
    ]
    for message, reason in messages:
        async with subscribe(service.port) as subscriber:
            await subscriber.say(message)
            code, said = await subscriber.ended()
        assert (code, said.startswith(reason)) == (1008, True), (message, said)
    await disconnects(service, "bad_options", len(messages))


async def test_a_long_reason_is_cut_to_what_a_close_frame_holds(service: Service) -> None:
    async with subscribe(service.port) as subscriber:
        await subscriber.update(wantedDids=["é" * 200])
        code, reason = await subscriber.ended()
    assert (code, reason.startswith("wantedDids: 'éé")) == (1008, True)
    assert len(reason.encode()) in {122, 123}
    assert reason.endswith(f"; cursor={service.log.tip + 1}")


def padded(size: int) -> str:
    """Return a good update of so many bytes."""
    message = json.dumps({"type": "options_update", "payload": {"wantedDids": [BOB]}, "padding": ""})
    return message[:-2] + "x" * (size - len(message)) + message[-2:]


async def test_an_update_of_a_million_bytes_is_taken(service: Service, relay: Relay) -> None:
    async with subscribe(service.port, cursor=FUTURE) as subscriber:
        await subscriber.say(padded(UPDATE_BYTES_MAX))
        await (await subscriber.connection.ping())
        relay.publish([(4, identity(4)), (5, identity(5, did=BOB))])
        assert numbers(await subscriber.events(1)) == [5]


@pytest.mark.parametrize("size", [UPDATE_BYTES_MAX + 1, 2 * UPDATE_BYTES_MAX + 1])
async def test_a_longer_message_closes_with_1009(size: int, service: Service) -> None:
    async with subscribe(service.port) as subscriber:
        with suppress(ConnectionClosed):  # before all of it was sent
            await subscriber.say(padded(size))
        text = "a message is longer than 1000000 bytes: send less"
        assert await subscriber.ended_at() == (1009, text, service.log.tip + 1)
    await disconnects(service, "message_too_big")


async def test_pings_are_answered(service: Service) -> None:
    async with subscribe(service.port) as subscriber:
        await (await subscriber.connection.ping())


async def test_the_server_pings(relay: Relay, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    service = await start(limits=Limits(delivery=replace(WATCHED, ping_interval_s=0.05)))
    pings: list[Frame] = []
    async with subscribe(service.port) as subscriber:
        protocol = subscriber.connection.protocol
        receive = protocol.recv_frame

        def note(frame: Frame) -> None:
            pings.append(frame)
            receive(frame)

        monkeypatch.setattr(protocol, "recv_frame", note)
        await until(lambda: len(pings) >= 2)
        assert {(frame.opcode, bytes(frame.data)) for frame in pings} == {(Opcode.PING, b"")}
        relay.publish(identities(1))
        assert numbers(await subscriber.events(1)) == [1]


# How it ends

MASK = b"\x00\x00\x00\x00"
GOODBYE = b"\x88\x82" + MASK + b"\x03\xe8"


async def test_a_client_that_says_goodbye_is_counted_as_such(service: Service) -> None:
    async with subscribe(service.port):
        pass
    await disconnects(service, "client")
    assert len(service.delivery) == 0


@pytest.mark.parametrize("hello", ["false", "true"])
@pytest.mark.parametrize("how", ["abort", "close"])
async def test_a_client_that_vanishes_is_counted_as_lost(how: str, hello: str, service: Service) -> None:
    async with subscribe(service.port, requireHello=hello) as subscriber:
        methodcaller(how)(subscriber.connection.transport)
        await disconnects(service, "lost")
    assert len(service.delivery) == 0


async def test_a_client_that_says_goodbye_and_is_gone_is_counted_as_such(service: Service) -> None:
    async with AsyncExitStack() as all_of_them:
        for _ in range(20):
            subscriber = await all_of_them.enter_async_context(subscribe(service.port))
            subscriber.connection.transport.write(GOODBYE)
            subscriber.connection.transport.close()
        await disconnects(service, "client", 20)


async def test_clients_that_vanish_together_are_removed_in_turns(start: Start) -> None:
    service = await start(limits=Limits(web=WebLimits(removals_turn_s=0)))
    async with AsyncExitStack() as all_of_them:
        subscribers = [await all_of_them.enter_async_context(subscribe(service.port)) for _ in range(20)]
        for subscriber in subscribers:
            subscriber.connection.transport.abort()
        counts = {20}
        while len(service.subscribe):
            await asyncio.sleep(0)
            counts.add(len(service.subscribe))
    assert counts == set(range(21))  # one in each turn of the event loop
    await disconnects(service, "lost", 20)


@pytest.mark.usefixtures("only_new_objects")
@pytest.mark.parametrize("how", ["abort", "close", "goodbye"])
async def test_a_connection_that_has_ended_is_no_work_for_the_garbage_collector(
    how: str, service: Service
) -> None:
    """Collecting thousands of them at once would hold everyone up for half a second."""
    gc.collect()
    gc.disable()
    try:
        async with subscribe(service.port, cursor=1) as subscriber:
            assert _sinks() == 1
            await subscriber.events(3)
            if how != "goodbye":
                methodcaller(how)(subscriber.connection.transport)
                await disconnects(service, "lost")
        await until(lambda: _sinks() == 0)
    finally:
        gc.enable()


def _sinks() -> int:
    return sum(isinstance(each, SocketSink) for each in gc.get_objects())


async def test_a_client_that_vanishes_in_its_handshake_leaves_nothing_behind(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    request = (
        b"GET /subscribe?cursor=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    for turns in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(request)
        for _ in range(turns):
            await asyncio.sleep(0)
        writer.transport.abort()
    async with subscribe(service.port, cursor=1) as subscriber:
        await subscriber.events(3)
        await until(lambda: len(service.delivery) == len(service.subscribe) == 1)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


BREACHES = [
    b"\x83\x80" + MASK,  # a reserved opcode
    b"\xc1\x80" + MASK,  # compressed, which nobody agreed on
    b"\x80\x81" + MASK + b"x",  # the rest of a message that was not begun
    b"\x09\x80" + MASK,  # a ping in parts
    b"\x89\xfe\x00\x80" + MASK + b"x" * 128,  # a long ping
    b"\x88\x81" + MASK + b"x",  # half a close code
    b"\x88\x82" + MASK + b"\x03\xed",  # a close code that may not be sent
]


@pytest.mark.parametrize("hello", ["false", "true"])
async def test_a_breach_of_the_protocol_closes_with_1002(
    hello: str, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    for breach in BREACHES:
        async with subscribe(service.port, requireHello=hello) as subscriber:
            subscriber.connection.transport.write(breach)
            code, text, _ = await subscriber.ended_at()
            assert (code, text) == (1002, "not the WebSocket protocol: use a WebSocket client"), breach
    await disconnects(service, "protocol", len(BREACHES))
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_message_in_parts_is_one_message(service: Service, relay: Relay) -> None:
    message = json.dumps({"type": "options_update", "payload": {"wantedDids": [BOB]}})
    async with subscribe(service.port) as subscriber:
        await subscriber.connection.send([message[:10], message[10:20], message[20:]])
        await (await subscriber.connection.ping())
        relay.publish([(4, identity(4)), (5, identity(5, did=BOB))])
        assert numbers(await subscriber.events(1)) == [5]


@pytest.mark.parametrize("query", [{}, {"cursor": 1}, {"requireHello": "true"}])
async def test_a_shutdown_closes_with_1001(query: dict[str, Any], service: Service) -> None:
    async with subscribe(service.port, **query) as subscriber:
        if "requireHello" not in query:
            await until(lambda: len(service.delivery) == 1)
        service.stop()
        code, text, _ = await subscriber.ended_at()
        assert (code, text) == (1001, "the server is shutting down: connect again")
    await disconnects(service, "shutdown")


async def test_our_own_fault_closes_with_1011(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise OSError("the disk is on fire")

    monkeypatch.setattr(service.log, "read", fail)
    async with subscribe(service.port, cursor=1) as subscriber:
        text = "the server failed to read its log: connect again"
        assert await subscriber.ended_at() == (1011, text, 1)
    await disconnects(service, "error")


# Slow readers


BIG = "x" * 50_000
BIG_COUNT = 400


def big(first: int, count: int = BIG_COUNT) -> list[tuple[int, bytes]]:
    """Return commits of 50 kB: together more than the kernel keeps for a reader that does not read."""
    seqs = range(first, first + count)
    return [(seq, commit(seq, [create(f"{POST}/{seq}", {"text": BIG})])) for seq in seqs]


def rkeys(events: list[Event]) -> list[int]:
    return [int(event["commit"]["rkey"]) for event in events]


async def test_a_slow_reader_misses_nothing(relay: Relay, start: Start) -> None:
    service = await start(subscriber_buffer=100_000)
    await relay.wait_accepted(1)
    async with subscribe(service.port, receive_buffer=4096) as subscriber:
        relay.publish(big(1))
        await published(service, BIG_COUNT)
        assert rkeys(await subscriber.events(BIG_COUNT)) == list(range(1, BIG_COUNT + 1))
        relay.publish(big(BIG_COUNT + 1, 1))
        assert rkeys(await subscriber.events(1)) == [BIG_COUNT + 1]


async def test_a_reader_that_reads_nothing_is_closed_with_1008_and_gets_what_was_sent(
    relay: Relay, start: Start
) -> None:
    service = await start(limits=Limits(delivery=WATCHED), subscriber_buffer=100_000, slow_timeout=0.2)
    await relay.wait_accepted(1)
    async with subscribe(service.port, receive_buffer=4096) as subscriber:
        await until(lambda: len(service.delivery) == 1)
        (member,) = service.delivery._subscribers
        relay.publish(big(1))
        await until(lambda: member.sink.closing)
        events = await subscriber.rest()
        assert 0 < len(events) < BIG_COUNT
        assert rkeys(events) == list(range(1, len(events) + 1))
        assert subscriber.connection.close_code == 1008
        cursor = events[-1]["time_us"] + 1
        assert subscriber.connection.close_reason == f"read nothing for 0 s: read faster; cursor={cursor}"
        assert cursor == member.position
    await disconnects(service, "slow")


async def test_a_reader_that_the_retention_overtakes_is_closed_with_1008(relay: Relay, start: Start) -> None:
    service = await start(subscriber_buffer=100_000)
    await relay.wait_accepted(1)
    async with subscribe(service.port, receive_buffer=4096) as subscriber:
        relay.publish(big(1))
        await published(service, BIG_COUNT)
        await until(lambda: next(iter(service.delivery._subscribers)).sink.full)
        await trim(service.log, service.log.tip + 1)
        events = await subscriber.rest()
        assert 0 < len(events) < BIG_COUNT
        assert rkeys(events) == list(range(1, len(events) + 1))
        assert subscriber.connection.close_code == 1008
        reason = subscriber.connection.close_reason
        position = events[-1]["time_us"] + 1
        floor = service.log.floor
        assert reason == (
            f"position {position} is no longer kept: go on at the oldest, and read faster; cursor={floor}"
        )
    await disconnects(service, "overtaken")


async def test_a_slow_reader_gets_what_was_sent_before_the_shutdown(relay: Relay, start: Start) -> None:
    service = await start(subscriber_buffer=100_000)
    await relay.wait_accepted(1)
    async with subscribe(service.port, receive_buffer=4096) as subscriber:
        relay.publish(big(1))
        await until(lambda: next(iter(service.delivery._subscribers)).sink.full)
        (member,) = service.delivery._subscribers
        service.stop()
        await until(lambda: member.sink.closing)
        events = await subscriber.rest()
        assert rkeys(events) == list(range(1, len(events) + 1))
        assert events[-1]["time_us"] + 1 == member.position
        assert subscriber.connection.close_code == 1001


@pytest.mark.parametrize(("slow_timeout", "reason"), [(0.2, "slow"), (600, "client")])
async def test_a_reader_that_says_goodbye_and_reads_nothing_is_cut(
    slow_timeout: float, reason: str, relay: Relay, start: Start
) -> None:
    limits = Limits(delivery=WATCHED, web=WebLimits(close_timeout_s=0.1))
    service = await start(limits=limits, subscriber_buffer=100_000, slow_timeout=slow_timeout)
    await relay.wait_accepted(1)
    async with subscribe(service.port, receive_buffer=4096) as subscriber:
        transport = subscriber.connection.transport
        relay.publish(big(1))
        await until(lambda: next(iter(service.delivery._subscribers)).sink.full)
        (member,) = service.delivery._subscribers
        transport.pause_reading()
        if reason == "slow":
            await until(lambda: member.sink.closing)
        transport.write(GOODBYE)
        await disconnects(service, reason)

        def is_cut() -> bool:
            transport.write(GOODBYE)
            return transport.is_closing()

        await until(is_cut)


async def test_a_slow_reader_that_vanishes_is_lost_and_not_our_fault(relay: Relay, start: Start) -> None:
    service = await start(subscriber_buffer=100_000)
    await relay.wait_accepted(1)
    async with subscribe(service.port, receive_buffer=4096) as subscriber:
        relay.publish(big(1))
        await until(lambda: next(iter(service.delivery._subscribers)).sink.full)
        subscriber.connection.transport.abort()
        await disconnects(service, "lost")
    assert (await figures(service.port))['jetstream_disconnects_total{reason="error"}'] == 0
