"""The connection to a relay: resume, wait, step over, and never give up."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs
from tests.builders import (
    LIKE,
    Raw,
    commit,
    create,
    dag_cbor,
    delete,
    error,
    frame,
    head,
    identity,
    like,
    nested,
    sync,
)
from tests.fixtures import captured_frames, json_lines
from tests.relay import (
    Act,
    Connection,
    Relay,
    drop_after,
    follow,
    go_deaf,
    numbered,
    refuse,
    send,
)
from tests.serving import LOOPBACK, Figures, Start, cursor, figures, published, quick, running, source, until
from tests.subscriber import subscribe

from jetstream.app import Service
from jetstream.conditions import Conditions
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import UpstreamLimits
from jetstream.logging_setup import Throttled
from jetstream.metrics import Metrics
from jetstream.settings import Settings
from jetstream.upstream.connection import ConnectError, connect
from jetstream.upstream.inbox import Inbox
from jetstream.upstream.pipeline import DecodedBatch, Pipeline
from jetstream.upstream.reconnecting import Link
from jetstream.upstream.seq_tracker import SeqTracker
from jetstream.upstream.source import Source
from jetstream.upstreams import Upstream

MIB = 1 << 20


def identities(*seqs: int) -> list[tuple[int, bytes]]:
    return [(seq, identity(seq)) for seq in seqs]


async def seqs(service: Service, count: int) -> list[int]:
    """Return the seq of all identity events, once there are so many, and see that no more follow."""
    async with subscribe(service.port, cursor=1) as subscriber:
        numbers = [event["identity"]["seq"] for event in await subscriber.events(count)]
    assert service.log.statistics().events == count
    return numbers


async def cursors(relay: Relay, count: int) -> list[int | None]:
    """Return the cursors of the first requests, once there are so many."""
    await relay.wait_asked(count)
    return [asked.cursor for asked in relay.asked[:count]]


def dropped(found: Figures) -> dict[str, float]:
    """Return what was dropped, by reason."""
    prefix = 'jetstream_dropped_total{reason="'
    return {name[len(prefix) : -2]: n for name, n in found.items() if name.startswith(prefix) and n}


# Resuming


async def test_it_begins_live_and_asks_the_path_it_was_given(relay: Relay, start: Start) -> None:
    relay.publish(identities(1, 2))
    service = await start()
    await relay.wait_accepted(1)
    relay.publish(identities(3))
    assert await seqs(service, 1) == [3]
    assert [(asked.path, asked.cursor) for asked in relay.asked] == [
        ("/xrpc/com.atproto.sync.subscribeRepos", None)
    ]


async def test_a_cut_connection_is_resumed_after_the_last_frame(relay: Relay, start: Start) -> None:
    relay.publish(identities(*range(1, 11)))
    relay.script += [drop_after(3), drop_after(0), drop_after(4)]
    service = await start(upstream_cursor=0)
    assert await seqs(service, 10) == list(range(1, 11))
    assert await cursors(relay, 4) == [0, 3, 3, 7]
    assert (await figures(service.port))["jetstream_upstream_reconnects_total"] == 3


async def test_a_closed_connection_is_resumed_too(relay: Relay, start: Start) -> None:
    async def close(connection: Connection) -> None:
        await connection.accept()
        await follow(connection, 2)
        await connection.close(1008, "ConsumerTooSlow")

    relay.publish(identities(1, 2, 3))
    relay.script.append(close)
    with capture_logs() as logs:
        service = await start(upstream_cursor=0)
        assert await seqs(service, 3) == [1, 2, 3]
    assert "1008 ConsumerTooSlow" in [line.get("reason") for line in logs]


async def test_a_restart_resumes_from_the_log(relay: Relay, tmp_path: Path, start: Start) -> None:
    relay.publish(identities(1, 2, 3))
    settings = Settings(upstream=relay.url, listen=LOOPBACK, data_dir=tmp_path, upstream_cursor=0)
    async with running(Service(settings, quick())) as service:
        await published(service, 3)
    relay.publish(identities(4))
    service = await start()
    assert await seqs(service, 4) == [1, 2, 3, 4]
    assert await cursors(relay, 2) == [0, 3]


async def test_a_cursor_that_was_given_is_put_before_the_stored_one(
    relay: Relay, tmp_path: Path, start: Start
) -> None:
    relay.publish(identities(1, 2, 3))
    settings = Settings(upstream=relay.url, listen=LOOPBACK, data_dir=tmp_path, upstream_cursor=1)
    async with running(Service(settings, quick())) as service:
        await published(service, 3)
    service = await start(upstream_cursor=2)
    assert await seqs(service, 3) == [2, 3, 3]


async def test_another_upstreams_cursor_is_not_used(relay: Relay, tmp_path: Path, start: Start) -> None:
    async with Relay() as other:
        other.publish(identities(10, 11))
        settings = Settings(upstream=other.url, listen=LOOPBACK, data_dir=tmp_path, upstream_cursor=0)
        async with running(Service(settings, quick())) as service:
            await published(service, 11)
    with capture_logs() as logs:
        service = await start()
    await relay.wait_accepted(1)
    relay.publish(identities(1))
    assert await seqs(service, 3) == [10, 11, 1]
    assert await cursors(relay, 1) == [None]
    assert "stored cursor belongs to another upstream; starting at the live end" in [
        line["event"] for line in logs
    ]


async def test_a_cursor_is_added_to_a_query(relay: Relay, start: Start) -> None:
    await start(upstream=relay.url + "?flavour=plain", upstream_cursor=7)
    assert await cursors(relay, 1) == [7]


async def test_a_relay_that_repeats_the_cursors_own_frame_is_read_once(relay: Relay, start: Start) -> None:
    relay.inclusive = True
    relay.publish(identities(*range(1, 7)))
    relay.script += [drop_after(3), drop_after(3)]
    service = await start(upstream_cursor=0)
    assert await seqs(service, 6) == [1, 2, 3, 4, 5, 6]
    assert await cursors(relay, 3) == [0, 3, 5]
    assert dropped(await figures(service.port)) == {"repeat": 2}


# Waiting


async def test_a_relay_that_is_not_there_yet_is_waited_for(start: Start) -> None:
    async with Relay() as relay:
        pass
    service = await start(upstream=relay.url)
    await until(lambda: source(service)._attempts > 2)
    assert source(service).state == "reconnecting"
    async with relay:
        await relay.wait_accepted(1)
        relay.publish(identities(1))
        assert await seqs(service, 1) == [1]
        assert source(service)._attempts == 0


async def test_a_refusal_is_tried_again(relay: Relay, start: Start) -> None:
    relay.publish(identities(1))
    relay.script += [refuse(status) for status in (400, 404, 429, 500, 502, 503)]
    service = await start(upstream_cursor=0)
    assert await seqs(service, 1) == [1]
    assert await cursors(relay, 7) == [0] * 7


NO_WEBSOCKET = [
    b"",
    b"HTTP/1.1 101 Switching",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: bm90IHdoYXQgd2FzIGFza2VkIGZvcg==\r\n\r\n"
    ),
    b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: mailto:nobody\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 999 \xff\xfe\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"\x00" * 1_000,
    b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
]


def answer(raw: bytes) -> Act:
    async def act(connection: Connection) -> None:
        await connection.send_raw(raw)

    return act


async def test_what_is_no_websocket_is_tried_again(relay: Relay, start: Start) -> None:
    relay.publish(identities(1))
    relay.script += map(answer, NO_WEBSOCKET)
    service = await start(upstream_cursor=0)
    assert await seqs(service, 1) == [1]
    assert await cursors(relay, len(NO_WEBSOCKET) + 1) == [0] * (len(NO_WEBSOCKET) + 1)


@pytest.mark.parametrize(
    "raw",
    [
        *NO_WEBSOCKET,
        b"x" * 10_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 " + b"x" * 10_000 + b"\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n" + b"x" * 10_000 + b"\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: x:" + b"x" * 10_000 + b"\r\n\r\n",
    ],
    ids=range(len(NO_WEBSOCKET) + 4),
)
async def test_little_is_shown_of_what_is_no_websocket(raw: bytes, relay: Relay) -> None:
    relay.script.append(answer(raw))
    with pytest.raises(ConnectError) as caught:
        await connect(relay.url, lambda: None, lambda _: None, UpstreamLimits(), Inbox)
    assert 0 < len(str(caught.value)) <= 200


BREACHES = [
    b"\x83\x00",  # a reserved opcode
    b"\xc2\x00",  # a reserved bit
    b"\x82\x81\x00\x00\x00\x00x",  # masked, as no server may
    b"\x80\x01x",  # the rest of a message that was not begun
    b"\x02\x01x\x02\x01y",  # a message within a message
    b"\x89\x7e\x00\x80" + b"x" * 128,  # a long control frame
    b"\x88\x01\x03",  # half a close code
    b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff",  # longer than anything
    b"\x82\x05abc",  # cut in the middle
]


@pytest.mark.parametrize("breach", BREACHES)
async def test_a_breach_of_the_protocol_costs_a_connection_at_most(
    breach: bytes, relay: Relay, start: Start
) -> None:
    async def act(connection: Connection) -> None:
        await connection.accept()
        await connection.send(identity(1))
        await connection.send_raw(breach)

    relay.publish(identities(1, 2, 3))
    relay.script.append(act)
    service = await start(upstream_cursor=0)
    assert await seqs(service, 3) == [1, 2, 3]


@pytest.mark.parametrize(("header", "at_least", "at_most"), [("2", 2, 2), ("86400", 300, 300)])
async def test_retry_after_is_honoured(
    header: str, at_least: float, at_most: float, relay: Relay, start: Start
) -> None:
    relay.script.append(refuse(429, Retry_After=header))
    with capture_logs() as logs:
        await start()
        await until(lambda: any(line["event"] == "upstream: connecting again" for line in logs))
    (line,) = (line for line in logs if line["event"] == "upstream: connecting again")
    assert at_least <= line["in_s"] <= at_most
    (refused,) = (line for line in logs if line["event"] == "upstream: refused")
    assert refused["status"] == 429


async def test_an_idle_upstream_is_pinged_and_kept(relay: Relay, start: Start) -> None:
    service = await start(limits=quick(ping_after_s=0.05, pong_timeout_s=0.05))
    await relay.wait_pings(5)
    relay.publish(identities(1))
    assert await seqs(service, 1) == [1]
    assert len(relay.asked) == 1


async def test_an_upstream_that_answers_no_ping_is_connected_again(relay: Relay, start: Start) -> None:
    relay.publish(identities(1))
    relay.script.append(go_deaf)
    service = await start(limits=quick(ping_after_s=0.05, pong_timeout_s=0.05), upstream_cursor=0)
    assert await seqs(service, 1) == [1]
    assert await cursors(relay, 2) == [0, 0]


async def test_a_handshake_that_never_ends_is_given_up(relay: Relay, start: Start) -> None:
    async def say_nothing(connection: Connection) -> None:
        await connection.over.wait()

    relay.publish(identities(1))
    relay.script.append(say_nothing)
    service = await start(limits=quick(handshake_timeout_s=0.05), upstream_cursor=0)
    assert await seqs(service, 1) == [1]


async def test_a_flood_is_read_at_the_logs_pace(relay: Relay, start: Start) -> None:
    count = 3_000
    relay.publish(identities(*range(1, count + 1)))
    service = await start(limits=quick(buffer_bytes_max=10_000, batch_frames_max=7), upstream_cursor=0)
    assert await seqs(service, count) == list(range(1, count + 1))


async def test_a_frame_that_waits_is_dated_when_it_was_read(relay: Relay, tmp_path: Path) -> None:
    held, both_read, release = asyncio.Event(), asyncio.Event(), asyncio.Event()
    stored: list[tuple[int | None, float]] = []

    async def store(batch: DecodedBatch, received_at: float) -> None:
        stored.append((batch.seq, received_at))
        held.set()
        await release.wait()

    async def send_the_second_meanwhile(connection: Connection) -> None:
        await connection.accept()
        await connection.send(identity(1))
        await held.wait()
        await connection.send(identity(2))
        await connection.close(1001, "answered once both are read")
        both_read.set()

    relay.script.append(send_the_second_meanwhile)

    log = await SqliteLog.open(tmp_path)
    upstream = Upstream("relay", relay.url)
    link = Link(Throttled(structlog.get_logger()), partial(asyncio.sleep, 0), lambda: None)
    pipeline, metrics = Pipeline(SeqTracker(0), time.monotonic), Metrics().upstream("relay")
    source = Source(upstream, link, pipeline, store, metrics, Conditions().of("relay"), log)
    reading = asyncio.create_task(source.run())
    await both_read.wait()
    read_both_at = time.monotonic()
    release.set()
    await until(lambda: len(stored) == 2)
    reading.cancel()
    await log.close()
    (first, first_at), (second, second_at) = stored
    assert (first, second) == (1, 2)
    assert first_at < second_at < read_both_at


async def test_events_are_awaited_while_there_is_a_subscriber(relay: Relay, start: Start) -> None:
    service = await start()
    (source,) = service.intake.sources
    assert not source._link.is_awaited()
    async with subscribe(service.port):
        await until(source._link.is_awaited)
    await until(lambda: not source._link.is_awaited())


# What upstream says of itself


async def test_a_cursor_in_the_future_starts_at_the_live_end(relay: Relay, start: Start) -> None:
    relay.publish(identities(1, 2))
    relay.script.append(send(error("FutureCursor", message="Cursor in the future.")))
    service = await start(upstream_cursor=1_000_000)
    assert await cursors(relay, 2) == [1_000_000, None]
    await relay.wait_accepted(2)
    relay.publish(identities(3, 4))
    assert await seqs(service, 2) == [3, 4]
    stored = cursor(service)
    assert stored is not None
    assert stored.seq == 4
    found = await figures(service.port)
    assert found["jetstream_upstream_sequence_restarts_total"] == 1
    assert found['jetstream_upstream_frames_total{type="error"}'] == 1


async def test_an_upstream_with_lower_numbers_is_not_waited_for(relay: Relay, start: Start) -> None:
    relay.script += [*[send(error("ConsumerTooSlow"))] * 4, send(error("FutureCursor"))]
    service = await start(upstream_cursor=7)
    await relay.wait_accepted(6)
    assert source(service)._attempts == 1


@pytest.mark.parametrize("name", ["ConsumerTooSlow", "SomethingNew", ""])
async def test_any_other_error_connects_again_from_the_cursor(name: str, relay: Relay, start: Start) -> None:
    relay.publish(identities(1, 2))
    relay.script.append(send(identity(1), error(name)))
    service = await start(upstream_cursor=0)
    assert await seqs(service, 2) == [1, 2]
    assert await cursors(relay, 2) == [0, 1]


async def test_an_upstream_that_only_errs_is_asked_less_and_less_often(relay: Relay, start: Start) -> None:
    relay.script += [send(error("ConsumerTooSlow")), send(error("FutureCursor"))] * 3
    service = await start(upstream_cursor=7)
    await relay.wait_accepted(7)
    assert source(service)._attempts == 5  # the first FutureCursor has an answer: another connection
    relay.publish(identities(8))
    assert await seqs(service, 1) == [8]
    assert source(service)._attempts == 0


async def test_an_info_is_logged_and_counted(relay: Relay, start: Start) -> None:
    info = frame("#info", {"name": "OutdatedCursor", "message": "Possibly missing events"})
    relay.script.append(send(info, identity(5)))
    with capture_logs() as logs:
        service = await start(upstream_cursor=0)
        assert await seqs(service, 1) == [5]
    assert [line["name"] for line in logs if line["event"] == "upstream: notice"] == ["OutdatedCursor"]
    assert (await figures(service.port))['jetstream_upstream_frames_total{type="info"}'] == 1


# Numbers


async def test_a_gap_is_counted_and_passed(relay: Relay, start: Start) -> None:
    relay.publish(identities(1, 2, 5, 6, 9))
    service = await start(upstream_cursor=0)
    assert await seqs(service, 5) == [1, 2, 5, 6, 9]
    assert (await figures(service.port))["jetstream_upstream_gaps_total"] == 2


async def test_one_poisoned_number_does_not_become_the_cursor(relay: Relay, start: Start) -> None:
    poison = 1 << 40
    relay.script.append(send(*(identity(seq) for seq in (1, poison, 2)), wait=False))
    relay.publish(identities(1, 2, 3))
    service = await start(upstream_cursor=0)
    assert await seqs(service, 4) == [1, poison, 2, 3]
    assert await cursors(relay, 2) == [0, 2]
    assert (await figures(service.port))["jetstream_upstream_jumps_total"] == 1


async def test_a_relay_that_restarted_its_numbers_is_followed(relay: Relay, start: Start) -> None:
    relay.publish(identities(5_000_000))
    service = await start(upstream_cursor=4_999_999)
    await published(service, 5_000_000)
    relay.history.clear()

    relay.script.append(send(*(identity(seq) for seq in range(1, 8))))
    await relay.cut()
    await published_exactly(service, 7)
    assert await seqs(service, 8) == [5_000_000, 1, 2, 3, 4, 5, 6, 7]
    assert (await figures(service.port))["jetstream_upstream_sequence_restarts_total"] == 1


async def test_a_relay_that_renumbers_in_mid_connection_is_followed(relay: Relay, start: Start) -> None:
    relay.script.append(send(identity(5_000_000), *(identity(seq) for seq in range(1, 1_201))))
    service = await start(upstream_cursor=4_999_999)
    await published_exactly(service, 1_200)
    assert await seqs(service, 1_201) == [5_000_000, *range(1, 1_201)]
    assert await cursors(relay, 1) == [4_999_999]


async def published_exactly(service: Service, seq: int) -> None:
    """Return once the cursor is at `seq`, though it was above."""

    def is_so() -> bool:
        stored = cursor(service)
        return stored is not None and stored.seq == seq and service.delivery.position > service.log.tip

    await until(is_so)


# What cannot be used: the smallest part of it is dropped, and counted

GOOD = like(2)
BAD: list[tuple[str, str | bytes, int, list[str]]] = [
    # what it is, the frame, how many events are left of it, why the rest was dropped
    ("garbage", b"\xff\x00garbage", 0, ["frame_cbor"]),
    ("nothing", b"", 0, ["frame_cbor"]),
    ("one object", dag_cbor({"op": 1, "t": "#identity"}), 0, ["frame_cbor"]),
    ("three objects", identity(2) + dag_cbor({}), 0, ["frame_cbor"]),
    ("a list for a header", dag_cbor([]) + dag_cbor({"seq": 2}), 0, ["frame_header"]),
    ("an unknown op", dag_cbor({"op": 2, "t": "#identity"}) + dag_cbor({"seq": 2}), 0, ["frame_header"]),
    ("an unknown type", frame("#novelty", {"seq": 2}), 0, ["frame_type"]),
    ("five million bytes", identity(2, padding=b"x" * 5_000_000), 0, ["frame_size"]),
    ("a text message", "hello", 0, ["frame_text"]),
    ("a CAR that is none", commit(2, [GOOD, GOOD], blocks=b"\x01\x02\x03"), 0, ["car", "car"]),
    ("a bad collection", commit(2, [create("likes/1", {}), GOOD]), 1, ["op_collection"]),
    ("a bad rkey", commit(2, [create(f"{LIKE}/..", {}), GOOD]), 1, ["op_rkey"]),
    ("a record that is none", commit(2, [create(f"{LIKE}/1", []), GOOD]), 1, ["record_type"]),
    ("a deep record", commit(2, [create(f"{LIKE}/1", nested(3_000)), GOOD]), 1, ["record_depth"]),
    ("a record of many items", commit(2, [create(f"{LIKE}/1", nested(10_000)), GOOD]), 1, ["record_items"]),
    (
        "a record of much JSON",
        commit(2, [create(f"{LIKE}/1", {"x": "\0" * 200_000}), GOOD]),
        1,
        ["json_size"],
    ),
    ("a path that is no text", commit(2, [like(1), GOOD]).replace(b"like/1", b"like/\xff"), 1, ["op_cbor"]),
    ("too many ops", commit(2, [delete(f"{LIKE}/{n}") for n in range(1_001)]), 0, ["commit_ops"]),
    ("far too many ops", commit(2, ops=Raw(head(4, 1_000_000) + b"\xa0" * 1_000_000)), 0, ["frame_items"]),
    ("too many blocks", commit(2, [GOOD], blocks=b"x" * 2_000_001), 0, ["commit_size"]),
    ("a large sync", frame("#sync", {"seq": 2, "blocks": b"x" * 10_001}), 0, ["sync_size"]),
    ("a float", commit(2, [create(f"{LIKE}/1", {"n": 1.5}), GOOD]), 1, ["record_float"]),
    ("a large record", commit(2, [create(f"{LIKE}/1", {"x": "y" * MIB}), GOOD]), 1, ["record_size"]),
    ("a bad DID", identity(2, did="did:plc:"), 0, ["did"]),
    ("no time", identity(2, time=5), 0, ["malformed"]),
    ("a bad rev", commit(2, [GOOD], rev="1"), 0, ["rev"]),
    ("no seq", identity(None), 0, ["malformed"]),
    ("an old seq", identity(1), 0, ["repeat"]),
    ("a bad rev of a sync", sync(2, rev="r"), 0, ["rev"]),
    ("tombstone", frame("#tombstone", {"seq": 2, "did": "did:plc:x"}), 0, []),
]


@pytest.mark.parametrize(
    ("bad", "left", "reasons"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
async def test_bad_input_costs_itself_and_nothing_else(
    bad: bytes | str, left: int, reasons: list[str], relay: Relay, start: Start
) -> None:
    async def act(connection: Connection) -> None:
        await connection.accept()
        await connection.send(identity(1))
        await (connection.send_text(bad) if isinstance(bad, str) else connection.send(bad))
        await connection.send(identity(3))
        await connection.over.wait()

    relay.script.append(act)
    service = await start(upstream_cursor=0)
    await published(service, 3)
    async with subscribe(service.port, cursor=1) as subscriber:
        kinds = [event["type"] for event in await subscriber.events(2 + left)]
    assert kinds == ["id", *["com"] * left, "id"]
    assert service.log.statistics().events == 2 + left
    assert dropped(await figures(service.port)) == {reason: reasons.count(reason) for reason in reasons}
    assert len(relay.asked) == 1


async def test_a_sync_is_stored_and_is_on_no_other_wire(relay: Relay, start: Start) -> None:
    relay.publish([(1, identity(1)), (2, sync(2)), (3, identity(3))])
    service = await start(upstream_cursor=0)
    await published(service, 3)
    async with subscribe(service.port, cursor=1) as subscriber:
        seqs = [event["identity"]["seq"] for event in await subscriber.events(2)]
    assert (seqs, service.log.statistics().events) == ([1, 3], 3)


async def test_text_alone_is_counted_too(relay: Relay, start: Start) -> None:
    async def talk(connection: Connection) -> None:
        await connection.accept()
        for _ in range(3):
            await connection.send_text("hello")

    relay.script.append(talk)
    service = await start()
    await relay.wait_accepted(2)
    assert dropped(await figures(service.port)) == {"frame_text": 3}


async def test_a_message_in_parts_is_one_frame(relay: Relay, start: Start) -> None:
    async def act(connection: Connection) -> None:
        await connection.accept()
        one, three = identity(1), identity(3)
        await connection.send_parts(one[:5], one[5:10], one[10:])
        await connection.send(identity(2))
        await connection.send_parts(b"a text ", b"in ", b"parts", text=True)
        await connection.send_parts(three[:1], three[1:])
        await connection.over.wait()

    relay.script.append(act)
    service = await start(upstream_cursor=0)
    assert await seqs(service, 3) == [1, 2, 3]
    assert dropped(await figures(service.port)) == {"frame_text": 1}


async def test_real_frames_lose_one_event_to_one_flipped_bit(relay: Relay, start: Start) -> None:
    frames = numbered(captured_frames())
    expected = [event["commit"]["rkey"] for event in json_lines("firehose/events.v1.jsonl")]
    seq, whole = frames[40]
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x10
    frames[40] = (seq, bytes(flipped))
    relay.publish(frames)
    service = await start(upstream_cursor=0)
    await published(service, frames[-1][0])
    async with subscribe(service.port, cursor=1) as subscriber:
        events = await subscriber.events(service.log.statistics().events)
    rkeys = [event["commit"]["rkey"] for event in events]
    missing = [rkey for rkey in expected if rkey not in rkeys]
    assert len(missing) <= 1
    assert rkeys == [rkey for rkey in expected if rkey not in missing]
    assert len(relay.asked) == 1


# Beyond what can be received

HUGE = identity(2, padding=b"x" * (33 * MIB))


@pytest.mark.parametrize("parts", [1, 5])
async def test_a_message_that_cannot_be_received_is_stepped_over(
    parts: int, relay: Relay, start: Start
) -> None:
    relay.publish([(1, identity(1)), (2, HUGE), (3, identity(3)), (4, identity(4))])
    if parts > 1:
        size = len(HUGE) // parts + 1

        async def in_parts(connection: Connection) -> None:
            await connection.accept()
            if connection.cursor == 0:
                await connection.send(identity(1))
            await connection.send_parts(*(HUGE[at : at + size] for at in range(0, len(HUGE), size)))
            await connection.over.wait()

        relay.script += [in_parts, in_parts]
    service = await start(upstream_cursor=0)
    assert await seqs(service, 3) == [1, 3, 4]
    assert await cursors(relay, 3) == [0, 1, 2]
    assert dropped(await figures(service.port)) == {"frame_size": 2}


async def test_stepping_over_loses_nothing_else_where_the_cursors_own_frame_is_repeated(
    relay: Relay, start: Start
) -> None:
    relay.inclusive = True
    relay.publish([(1, identity(1)), (2, HUGE), (3, identity(3)), (4, identity(4))])
    service = await start(upstream_cursor=0)
    assert await seqs(service, 3) == [1, 3, 4]
