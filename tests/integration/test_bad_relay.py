"""Relays that are broken or hostile: what they send costs little, is told of once, and ends in time."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.builders import account, commit, error, frame, identity
from tests.relay import Act, Connection, Relay, follow, refuse, send, serve
from tests.serving import (
    LOOPBACK,
    Start,
    cursor,
    figures,
    get,
    health,
    published,
    quick,
    running,
    source,
    until,
)
from tests.subscriber import subscribe

from jetstream.app import Service
from jetstream.eventlog import SourceCursor
from jetstream.settings import Settings
from jetstream.token_bucket import Rate
from jetstream.upstream.inbox import ReadThrottle

INFO = frame("#info", {"name": "OutdatedCursor", "message": "Possibly missing events"})


def raw(data: bytes, times: int = 1) -> Act:
    """Accept, then send bytes as they are, so many times."""

    async def act(connection: Connection) -> None:
        await connection.accept()
        for _ in range(times):
            await connection.send_raw(data)
        await connection.over.wait()

    return act


def message(payload: bytes, opcode: int = 0x82) -> bytes:
    """Write one unmasked WebSocket frame."""
    size = len(payload)
    head = bytes((opcode, size)) if size < 126 else struct.pack(">BBH", opcode, 126, size)
    return head + payload


async def rkeys(service: Service, count: int) -> list[str]:
    """Return the rkeys of all commits, once there are so many, and see that no more follow."""
    async with subscribe(service.port, cursor=1) as subscriber:
        found = [event["commit"]["rkey"] for event in await subscriber.events(count)]
    assert service.log.statistics().events == count
    return found


async def conditions(service: Service) -> list[str]:
    status, body = await health(service.port)
    assert status == 200
    assert (body["status"] == "degraded") == bool(body["reasons"])
    return list(service.conditions.names)


@pytest.mark.parametrize(
    "text",
    [
        "Wed, 21 Oct 99999999999 07:28:00 GMT",
        "Wed, 21 Oct 2015 07:28:00 +99999999999999999999",
        "9" * 3_000 + "x",
        "soon",
    ],
)
async def test_a_time_to_come_back_that_is_none_ends_nothing(text: str, relay: Relay, start: Start) -> None:
    relay.script += [refuse(429, Retry_After=text), refuse(503, Retry_After=text)]
    relay.publish([(1, commit(1))])
    service = await start(upstream_cursor=0, limits=quick(backoff_max_s=0.01))
    assert await rkeys(service, 1) == ["1"]
    assert (await figures(service.port))['jetstream_internal_errors_total{doing="upstream"}'] == 0


# Floods


FLOODS = [
    ("control", raw(message(b"", 0x89) * 20_000, 10)),
    ("control", raw(message(b"x" * 125, 0x89) * 2_000, 10)),
    ("control", raw(message(b"", 0x8A) * 20_000, 10)),
    ("tiny", raw(message(b"") * 20_000, 10)),
    ("tiny", raw(message(b"x" * 15) * 20_000, 10)),
    ("tiny", raw(message(b"x", 0x02) + message(b"x", 0x00) * 20_000, 10)),
    ("tiny", raw(message(b"", 0x02) + message(b"", 0x00) * 20_000, 10)),
    ("tiny", raw(message(b"x", 0x01) + message(b"x", 0x00) * 20_000, 10)),
    ("tiny", raw(message(b"{", 0x01) + message(b"x" * 16, 0x00) * 20_000, 10)),
    ("text", raw(message(b"{}", 0x81) * 20_000, 10)),
    ("unreadable", raw(message(b"x" * 16) * 20_000, 2)),
    ("unreadable", raw(message(INFO) * 20_000, 1)),
]


@pytest.mark.parametrize(("kind", "flood"), FLOODS)
async def test_a_flood_ends_its_connection_and_the_next_is_followed(
    kind: str, flood: Act, relay: Relay, start: Start
) -> None:
    relay.publish([(1, commit(1)), (2, commit(2))])
    relay.script.append(flood)
    with capture_logs() as logs:
        service = await start(upstream_cursor=0)
        assert await rkeys(service, 2) == ["1", "2"]
    assert [line["kind"] for line in logs if line["event"].startswith("upstream: flood")] == [kind]
    assert (await figures(service.port))[f'jetstream_upstream_floods_total{{kind="{kind}"}}'] == 1
    assert len(relay.asked) == 2
    assert len([line for line in logs if line["event"].startswith("upstream:")]) < 10


async def test_a_relay_that_does_not_read_its_pongs_is_disconnected(relay: Relay, start: Start) -> None:
    async def act(connection: Connection) -> None:
        await connection.accept()
        await connection.send(commit(1))
        connection._writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(100):
            await connection.send_raw(message(b"x" * 125, 0x89) * 2_000)

    relay.publish([(1, commit(1)), (2, commit(2))])
    relay.script.append(act)
    service = await start(upstream_cursor=0, limits=quick(control=Rate(1e9, 1_000_000)))
    assert await rkeys(service, 2) == ["1", "2"]
    assert (await figures(service.port))['jetstream_upstream_floods_total{kind="pongs"}'] == 1
    assert [asked.cursor for asked in relay.asked] == [0, 1]


DISORDER = [message(b"", 0x80), message(b"x" * 200, 0x80), message(b"x" * 16, 0x02), message(b"x", 0x02)]


@pytest.mark.parametrize("data", DISORDER)
async def test_parts_in_no_order_end_their_connection_and_the_next_is_followed(
    data: bytes, relay: Relay, start: Start
) -> None:
    relay.publish([(1, commit(1))])
    relay.script.append(raw(data * 20_000, 10))
    with capture_logs() as logs:
        service = await start(upstream_cursor=0)
        assert await rkeys(service, 1) == ["1"]
    (line,) = (line for line in logs if line["event"] == "upstream: connection failed")
    assert "RFC 6455 section 5.4" in line["error"]
    assert len(relay.asked) == 2


@pytest.mark.parametrize("opcode", [0x89, 0x8A])
async def test_some_pings_are_answered_and_pongs_borne(opcode: int, relay: Relay, start: Start) -> None:
    async def act(connection: Connection) -> None:
        await connection.accept()
        for seq in range(1, 101):
            await connection.send_raw(message(b"%d" % seq, opcode))
            await connection.send(commit(seq))
        await connection.over.wait()

    relay.script.append(act)
    service = await start(upstream_cursor=0)
    assert len(await rkeys(service, 100)) == 100
    assert len(relay.asked) == 1


async def test_a_ping_is_answered_with_its_payload(relay: Relay, start: Start) -> None:
    pongs: list[bytes] = []
    answered = asyncio.Event()

    async def act(connection: Connection) -> None:
        protocol_received = connection._protocol.receive_data

        def receive(data: bytes | bytearray) -> None:
            pongs.append(bytes(data))
            answered.set()
            protocol_received(data)

        connection._protocol.receive_data = receive  # type: ignore[method-assign]
        await connection.accept()
        await connection.send_raw(message(b"are you there?", 0x89))
        await connection.over.wait()

    relay.script.append(act)
    await start(upstream_cursor=0)
    async with asyncio.timeout(10):
        await answered.wait()
    (pong,) = pongs
    mask = pong[2:6]
    assert pong[0] == 0x8A
    assert bytes(byte ^ mask[i % 4] for i, byte in enumerate(pong[6:])) == b"are you there?"


async def test_messages_in_parts_of_a_kilobyte_are_no_flood(relay: Relay, start: Start) -> None:
    async def act(connection: Connection) -> None:
        await connection.accept()
        for seq in range(1, 31):
            one = commit(seq, padding=b"x" * 400_000)
            await connection.send_parts(*(one[at : at + 1_000] for at in range(0, len(one), 1_000)))
        await connection.over.wait()

    relay.script.append(act)
    service = await start(upstream_cursor=0)
    assert len(await rkeys(service, 30)) == 30
    assert len(relay.asked) == 1


async def test_a_read_of_the_socket_is_bounded(
    relay: Relay, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    updated = ReadThrottle.buffer_updated

    def noted(self: ReadThrottle, nbytes: int) -> None:
        reads.append(nbytes)
        updated(self, nbytes)

    monkeypatch.setattr(ReadThrottle, "buffer_updated", noted)
    relay.publish((seq, commit(seq, padding=b"x" * 300_000)) for seq in range(1, 20))
    service = await start(limits=quick(read_bytes_max=50_000), upstream_cursor=0)
    assert len(await rkeys(service, 19)) == 19
    assert max(reads) == 50_000


async def test_a_turn_that_has_parsed_enough_is_followed_by_one_of_others(relay: Relay, start: Start) -> None:
    relay.publish((seq, commit(seq)) for seq in range(1, 301))
    service = await start(limits=quick(turn_s=-1.0), upstream_cursor=0)
    assert len(await rkeys(service, 300)) == 300
    # What was decoded in one turn was stored by itself.
    assert (await figures(service.port))["jetstream_commit_seconds_count"] == 300


# Frames, and none that is taken


GARBAGE: list[tuple[str, Callable[[int], bytes]]] = [
    ("frame_cbor", lambda n: b"garbage of a relay %d" % n),
    ("info", lambda _: INFO),
    ("malformed", lambda _: identity(None)),
    ("repeat", lambda _: commit(1)),
]


@pytest.mark.parametrize(("reason", "garbage"), GARBAGE)
async def test_an_operator_is_told_when_nothing_is_taken(
    reason: str, garbage: Callable[[int], bytes], relay: Relay, start: Start
) -> None:
    told = asyncio.Event()

    async def act(connection: Connection) -> None:
        await connection.accept()
        await connection.send(commit(1))
        while not told.is_set():
            await connection.send(garbage(1))
            await asyncio.sleep(0.001)  # so that they come in several batches
        await connection.send(commit(2))
        await connection.over.wait()

    relay.script.append(act)
    service = await start(limits=quick(none_accepted_s=0.0), upstream_cursor=0)
    await until(lambda: "frames_not_taken" in service.conditions.names)
    assert await conditions(service) == ["frames_not_taken"]
    assert reason in service.conditions.reasons[f"frames_not_taken {source(service).name}"]
    assert (await figures(service.port))['jetstream_condition{condition="frames_not_taken"}'] == 1
    told.set()
    await published(service, 2)
    assert await conditions(service) == []


async def test_frames_are_not_called_untaken_before_their_time(relay: Relay, start: Start) -> None:
    relay.script.append(send(commit(1), b"garbage of a relay", b"garbage of a relay", commit(2)))
    service = await start(upstream_cursor=0)
    with capture_logs() as logs:
        await published(service, 2)
    assert [line for line in logs if "degraded" in line["event"]] == []


@pytest.mark.parametrize("bad", [b"garbage of a relay", INFO, commit(7), error("ConsumerTooSlow")])
async def test_a_relay_that_sends_nothing_of_use_is_asked_less_and_less_often(
    bad: bytes, relay: Relay, start: Start
) -> None:
    relay.script.append(send(commit(7), wait=False))
    relay.script += [send(bad, wait=False)] * 5
    service = await start(upstream_cursor=6)
    await relay.wait_accepted(7)
    assert source(service)._attempts == 6


async def test_what_upstream_says_is_logged_once_a_minute_for_each_kind(relay: Relay, start: Start) -> None:
    relay.script.append(send(*[INFO] * 500, commit(1), error("ConsumerTooSlow")))
    relay.script += [send(error("ConsumerTooSlow")), serve]
    relay.publish([(2, commit(2))])
    with capture_logs() as logs:
        service = await start(upstream_cursor=0)
        assert await rkeys(service, 2) == ["1", "2"]
    events = [line["event"] for line in logs if line["event"].startswith("upstream:")]
    assert len(set(events)) == len(events)
    found = await figures(service.port)
    assert found['jetstream_upstream_frames_total{type="info"}'] == 500
    assert found['jetstream_upstream_frames_total{type="error"}'] == 2


# What is no firehose


async def test_a_jetstream_in_the_place_of_a_relay_is_named(relay: Relay, start: Start) -> None:
    event = '{"did":"did:plc:x","time_us":1,"kind":"commit","commit":{}}'

    async def talk(connection: Connection) -> None:
        await connection.accept()
        for _ in range(20):
            await connection.send_text(event)
        await asyncio.sleep(0)

    relay.script += [talk] * 3 + [serve]
    with capture_logs() as logs:
        service = await start(upstream_cursor=0)
        await relay.wait_accepted(4)
        assert await conditions(service) == ["not_a_firehose"]
        assert len([line for line in logs if "is it a Jetstream" in line.get("hint", "")]) == 1
        assert len([line for line in logs if "degraded" in line["event"]]) == 1
        relay.publish([(1, commit(1))])
        await published(service, 1)
    assert await conditions(service) == []
    assert (await figures(service.port))['jetstream_dropped_total{reason="frame_text"}'] == 60


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (200, "web page"),
        (301, "moved"),
        (401, "credentials"),
        (404, "no firehose"),
        (426, "protocol"),
        (503, "unavailable"),
    ],
)
async def test_an_answer_that_is_no_firehose_is_explained_once(
    status: int, hint: str, relay: Relay, start: Start
) -> None:
    relay.script += [refuse(status)] * 3
    with capture_logs() as logs:
        await start()
        await relay.wait_accepted(1)
    (line,) = (line for line in logs if line["event"] == "upstream: refused")
    assert line["status"] == status
    assert hint in line["hint"]


async def test_a_socket_that_closes_at_once_is_explained_once(relay: Relay, start: Start) -> None:
    async def close(connection: Connection) -> None:
        await connection.accept()
        await connection.close(1000, "bye")

    relay.script += [close] * 3
    with capture_logs() as logs:
        await start()
        await relay.wait_accepted(4)
    (line,) = (line for line in logs if line["event"] == "upstream: connection closed")
    assert line["reason"] == "1000 bye"
    assert "no frame came" in line["hint"]


async def test_a_connection_that_ends_without_a_close_frame_is_said_to_do_so(
    relay: Relay, start: Start
) -> None:
    relay.script.append(send(commit(1), wait=False))
    with capture_logs() as logs:
        await start()
        await relay.wait_accepted(2)
    lines = [line for line in logs if line["event"].startswith("upstream: connection ")]
    assert lines
    for line in lines:
        assert line.get("error") or line["reason"] == "no close frame came"


# Secrets


async def test_neither_password_nor_query_is_shown_anywhere(relay: Relay, start: Start) -> None:
    url = relay.url.replace("ws://", "ws://me:hunter2@") + "?token=hunter2"
    location = "http://me:hunter2@127.0.0.1:1/x?token=hunter2#y"
    relay.script += [refuse(403), refuse(302, Location=location), send(commit(1), error("X")), serve]
    with capture_logs() as logs:
        service = await start(upstream=url)
        await relay.wait_accepted(2)
        _, body = await health(service.port)
    assert "hunter2" not in str(logs)
    assert "hunter2" not in str(body)
    for page in ("/", "/status.json", "/metrics", "/ready"):
        assert "hunter2" not in (await get(service.port, page))[1]
    assert body["upstream"]["url"] == relay.url
    assert len(relay.asked) >= 3


# Numbers, over real sockets


async def test_a_number_that_is_stored_as_provisional_is_not_resumed_from(
    relay: Relay, tmp_path: Path, start: Start
) -> None:
    outlier = commit(300_000)
    relay.script.append(send(commit(1), commit(2), outlier))
    settings = Settings(upstream=relay.url, listen=LOOPBACK, data_dir=tmp_path, upstream_cursor=0)
    async with running(Service(settings, quick())) as service:
        await published(service, 300_000)
        assert cursor(service) == SourceCursor(2, 300_000)
    relay.publish(
        [(1, commit(1)), (2, commit(2)), (300_000, outlier), *((n, commit(n)) for n in range(3, 9))]
    )
    service = await start()
    assert await rkeys(service, 9) == ["1", "2", "300000", *"345678"]
    assert [asked.cursor for asked in relay.asked] == [0, 2]


@pytest.mark.parametrize("first", [1, 4_850, 4_949])
async def test_a_sequence_that_restarted_is_followed_though_it_goes_silent(
    first: int, relay: Relay, start: Start
) -> None:
    relay.publish((seq, identity(seq)) for seq in range(4_900, 4_950))
    service = await start(upstream_cursor=4_899)
    await published(service, 4_949)
    new = [
        account(first),
        identity(first + 1, handle="new.example"),
        commit(first + 2),
        commit(first + 3, []),
    ]
    relay.history.clear()
    relay.script.append(send(*new, commit(first + 4)))
    await relay.cut()
    await until(lambda: service.log.statistics().events == 54)
    async with subscribe(service.port, cursor=1) as subscriber:
        kinds = [event["type"] for event in await subscriber.events(54)]
    assert kinds == ["id"] * 50 + ["acc", "id", "com", "com"]


async def test_a_relay_that_ignores_cursors_is_followed_without_a_repeat(relay: Relay, start: Start) -> None:
    frames = [commit(seq) for seq in range(1, 3_001)]
    relay.publish(enumerate(frames[:2_500], 1))

    async def everything(connection: Connection) -> None:
        await connection.accept()
        for one in frames:
            await connection.send(one)
        connection.cursor = -1
        relay.history.clear()
        await follow(connection)

    service = await start(upstream_cursor=0)
    await published(service, 2_500)
    relay.script += [everything]
    await relay.cut()
    await published(service, 3_000)
    assert await rkeys(service, 3_000) == [str(seq) for seq in range(1, 3_001)]


async def test_a_relay_that_numbers_what_is_known_another_way_is_followed(relay: Relay, start: Start) -> None:
    def like(seq: int, number: int) -> bytes:
        return commit(seq).replace(b"", b"") if seq == number else renumbered(number, seq)

    def renumbered(number: int, seq: int) -> bytes:
        old, new = (b"cseq\x19" + struct.pack(">H", n) for n in (number, seq))
        whole = commit(number)
        assert old in whole
        return whole.replace(old, new)

    relay.publish((seq, commit(seq)) for seq in range(20_000, 20_100))
    service = await start(upstream_cursor=19_999)
    await published(service, 20_099)
    relay.history.clear()
    relay.script.append(send(*(like(seq, 20_050 - 1_000 + seq) for seq in range(1_000, 1_100))))
    await relay.cut()
    await until(lambda: service.log.statistics().events == 150)
    assert await rkeys(service, 150) == [str(seq) for seq in range(20_000, 20_150)]
