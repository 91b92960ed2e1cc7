"""The Python client: with this server, and with one that fails in every way."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.builders import LIKE, account, commit, create, delete, identity
from tests.relay import Relay, numbered
from tests.scripted import (
    EVENTS,
    PATIENCE_S,
    SHUTDOWN,
    Act,
    Connection,
    Jetstream,
    Sleeps,
    close_after,
    cut_after,
    cut_within,
    follow,
    raws,
    refusal,
    send_just,
    take,
)
from tests.serving import LOOPBACK, Start, running, until
from tests.subscriber import subscribe as plain_subscribe
from websockets.asyncio.server import ServerConnection

from jetstream.app import Service
from jetstream.client import ClientLimits, NotJetstream, Refused, subscribe
from jetstream.settings import Address, Settings

BOB = "did:web:bob.example"
POST = "app.bsky.feed.post"
FOLLOW = "app.bsky.graph.follow"


class TestOverThisServer:
    @pytest.fixture(autouse=True)
    def _published(self, relay: Relay) -> None:
        relay.publish(
            numbered(
                [
                    identity(1, handle="alice.example"),
                    commit(2, [create(f"{POST}/one", {"text": "grüß dich"}), create(f"{LIKE}/two", {})]),
                    account(3, did=BOB, active=False, status="deleted"),
                    commit(4, [create(f"{FOLLOW}/three", {}), delete(f"{POST}/four")], repo=BOB),
                ]
            )
        )

    @pytest.mark.parametrize("path", ["/subscribe", "/v1/subscribe"])
    async def test_events_of_both_wires_come_as_dicts_and_as_they_were_sent(
        self, path: str, start: Start
    ) -> None:
        service = await start(upstream_cursor=0)
        async with plain_subscribe(service.port, path, cursor=1) as subscriber:
            sent = [await subscriber.connection.recv() for _ in range(6)]
        events = await take(subscribe(f"127.0.0.1:{service.port}{path}", cursor=1), 6)
        assert raws(events) == sent
        assert events == [json.loads(text) for text in sent]
        assert events[1]["commit"]["record"]["text"] == "grüß dich"

    async def test_a_filter_is_the_servers(self, start: Start) -> None:
        service = await start(upstream_cursor=0)
        url = f"http://127.0.0.1:{service.port}"
        of_graph = await take(subscribe(url, collections=["app.bsky.graph.*", LIKE], cursor=0), 4)
        assert [event["type"] for event in of_graph] == ["id", "com", "acc", "com"]
        assert [event["commit"]["collection"] for event in of_graph if event["type"] == "com"] == [
            LIKE,
            FOLLOW,
        ]
        of_bob = await take(subscribe(url, dids=[BOB], cursor=0), 3)
        assert [event["did"] for event in of_bob] == [BOB] * 3

    async def test_ten_thousand_dids_are_taken(self, start: Start) -> None:
        service = await start(upstream_cursor=0)
        dids = [BOB, *(f"did:plc:{n:024}" for n in range(9_999))]
        events = await take(subscribe(f"127.0.0.1:{service.port}", dids=dids, cursor=0), 3)
        assert [event["did"] for event in events] == [BOB] * 3

    async def test_a_restart_of_the_server_loses_and_repeats_nothing(
        self, relay: Relay, tmp_path: Path, sleeps: Sleeps
    ) -> None:
        settings = Settings(upstream=relay.url, listen=LOOPBACK, data_dir=tmp_path, upstream_cursor=0)
        async with running(Service(settings)) as service:
            events = subscribe(f"127.0.0.1:{service.port}", cursor=0, sleep=sleeps)
            before = [await anext(events) for _ in range(6)]
            reading = asyncio.create_task(take(events, 2))
        relay.publish(numbered([identity(5), identity(6)]))
        settings = replace(settings, listen=Address("127.0.0.1", service.port), upstream_cursor=None)
        async with running(Service(settings)) as service:
            after = await reading
            async with plain_subscribe(service.port, cursor=0) as subscriber:
                kept = await subscriber.events(8)
        assert before + after == kept
        assert sleeps

    async def test_a_refusal_has_the_servers_message(self, start: Start) -> None:
        service = await start()
        url = f"ws://127.0.0.1:{service.port}/subscribe"
        with pytest.raises(Refused) as raised:
            await take(subscribe(f"{url}?maxMessageSizeBytes=some"), 1)
        assert raised.value.status == 400
        assert raised.value.message == "maxMessageSizeBytes: 'some' is not a number of bytes"
        assert str(raised.value) == f"{url}: refused, HTTP 400: {raised.value.message}"


class TestOverAnyServer:
    @pytest.mark.parametrize("cut", [cut_after, cut_within, close_after])
    async def test_a_lost_connection_is_resumed_wherever_it_was_lost(
        self, cut: Callable[[int], Act], jetstream: Jetstream, sleeps: Sleeps
    ) -> None:
        jetstream.script.extend(map(cut, (0, 1, 0, 7, 2, 0, 0, 1)))
        events = await take(subscribe(jetstream.url, cursor=0, sleep=sleeps), len(EVENTS))
        assert raws(events) == EVENTS
        assert len(sleeps) == 8

    async def test_the_backoff_grows_until_an_event_is_received(
        self, jetstream: Jetstream, sleeps: Sleeps
    ) -> None:
        jetstream.script.extend(map(close_after, (0, 0, 1, 0, 0)))
        await take(subscribe(jetstream.url, cursor=0, sleep=sleeps, backoff=float), 2)
        assert sleeps == [0, 1, 0, 1, 2]

    async def test_without_a_cursor_the_stream_is_live(self, jetstream: Jetstream) -> None:
        await take(subscribe(jetstream.url), 1)
        assert jetstream.queries == [{}]

    async def test_a_live_stream_lost_before_its_first_event_is_resumed_from_its_beginning(
        self, jetstream: Jetstream, sleeps: Sleeps
    ) -> None:
        jetstream.script.extend([refusal(503, "busy"), cut_after(0), cut_after(2)])
        times = iter([100, 120, 140, 160])
        events = await take(subscribe(jetstream.url, sleep=sleeps, clock=times.__next__), 3)
        assert jetstream.cursors == [None, None, 120, 131]
        assert [event.time_us for event in events] == [120, 130, 140]

    @pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
    async def test_after_a_temporary_refusal_it_waits_as_long_as_retry_after_says(
        self, status: int, jetstream: Jetstream, sleeps: Sleeps
    ) -> None:
        jetstream.script.extend([refusal(status, "later", Retry_After="7"), refusal(status, "later")])
        events = await take(subscribe(jetstream.url, cursor=0, sleep=sleeps), 1)
        assert raws(events) == EVENTS[:1]
        assert sleeps[0] == 7
        assert 0 <= sleeps[1] <= 2

    @pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 426])
    async def test_a_permanent_refusal_raises_the_servers_message(
        self, status: int, jetstream: Jetstream
    ) -> None:
        jetstream.script.append(refusal(status, "not\n here\n"))
        with pytest.raises(Refused) as raised:
            await take(subscribe(f"{jetstream.url}?x=1"), 1)
        assert str(raised.value) == f"{jetstream.url}: refused, HTTP {status}: not here"
        assert (raised.value.url, raised.value.status) == (jetstream.url, status)

    async def test_a_refusal_without_a_body_raises_the_reason_of_its_status(
        self, jetstream: Jetstream
    ) -> None:
        jetstream.script.append(refusal(403, ""))
        with pytest.raises(Refused, match="HTTP 403: Forbidden"):
            await take(subscribe(jetstream.url), 1)

    @pytest.mark.parametrize("message", [b"\xa1\x61t\x67#commit", "hello", "[]", "{}"])
    async def test_a_server_that_is_not_a_jetstream_raises(
        self, message: str | bytes, jetstream: Jetstream
    ) -> None:
        jetstream.script.append(send_just(message))
        with pytest.raises(NotJetstream, match=r"is not an event .* is it a Jetstream"):
            await take(subscribe(jetstream.url), 1)

    async def test_a_server_that_does_not_listen_is_tried_until_it_does(
        self, jetstream: Jetstream, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "jetstream.client")
        await jetstream.stop()
        attempts = 0

        async def start_at_the_third(_seconds: float) -> None:
            nonlocal attempts
            attempts += 1
            if attempts == 3:
                await jetstream.start()

        events = await take(subscribe(jetstream.url, cursor=0, sleep=start_at_the_third), 1)
        assert raws(events) == EVENTS[:1]
        assert caplog.messages == [
            f"cannot connect to {jetstream.url}: Connection refused; trying again",
            f"connected to {jetstream.url}",
        ]

    async def test_an_outage_is_logged_once_and_its_end_once(
        self, jetstream: Jetstream, sleeps: Sleeps, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "jetstream.client")
        jetstream.script.extend([close_after(1), refusal(503, "busy"), refusal(503, "busy"), cut_after(1)])
        await take(subscribe(jetstream.url, cursor=0, sleep=sleeps), 3)
        assert caplog.messages == [
            f"connected to {jetstream.url}",
            f"connection lost: closed by the server, 1001 {SHUTDOWN}; reconnecting at cursor 11",
            f"reconnected to {jetstream.url}",
            "connection lost: closed without a close frame; reconnecting at cursor 21",
            f"reconnected to {jetstream.url}",
        ]

    async def test_a_silent_server_that_answers_pings_is_kept(self, jetstream: Jetstream) -> None:
        limits = ClientLimits(ping_after_s=0.001, pong_timeout_s=0.5)

        async def speak_when_pinged_twice(connection: ServerConnection, jetstream: Jetstream) -> None:
            assert isinstance(connection, Connection)
            await until(lambda: connection.pings == 2)
            await follow(connection, jetstream)

        jetstream.script.append(speak_when_pinged_twice)
        assert raws(await take(subscribe(jetstream.url, limits=limits), 1)) == EVENTS[:1]
        assert len(jetstream.queries) == 1

    async def test_a_server_that_does_not_answer_a_ping_is_disconnected(
        self, jetstream: Jetstream, sleeps: Sleeps, caplog: pytest.LogCaptureFixture
    ) -> None:
        limits = ClientLimits(ping_after_s=0.01, pong_timeout_s=0.01, close_timeout_s=0.01)

        async def hang(connection: ServerConnection, jetstream: Jetstream) -> None:
            connection.transport.pause_reading()
            await until(lambda: len(jetstream.queries) == 2)
            connection.transport.abort()

        jetstream.script.append(hang)
        events = await take(subscribe(jetstream.url, cursor=0, limits=limits, sleep=sleeps), 1)
        assert raws(events) == EVENTS[:1]
        assert "connection lost: no answer to a ping; reconnecting at cursor 0" in caplog.messages

    async def test_a_servers_ping_is_answered(self, jetstream: Jetstream) -> None:
        async def ping(connection: ServerConnection, jetstream: Jetstream) -> None:
            async with asyncio.timeout(PATIENCE_S):
                await (await connection.ping())
            await follow(connection, jetstream)

        jetstream.script.append(ping)
        assert raws(await take(subscribe(jetstream.url, cursor=0), 1)) == EVENTS[:1]

    async def test_leaving_the_loop_closes_the_connection(self, jetstream: Jetstream) -> None:
        async for _ in subscribe(jetstream.url, cursor=0):
            break
        await until(lambda: jetstream.closed)
        assert jetstream.closed == [1000]

    async def test_an_error_in_the_loop_is_not_mistaken_for_a_lost_connection(
        self, jetstream: Jetstream
    ) -> None:
        async def fail() -> None:
            async for _ in subscribe(jetstream.url, cursor=0):
                raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            await fail()
        await until(lambda: jetstream.closed)
        assert len(jetstream.queries) == 1
