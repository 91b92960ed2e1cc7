"""One server mirrors another one: the same messages with the same positions, nothing lost, nothing twice.

All run in this process, each with a log and sockets of its own. tests/foreign has them as processes that are
killed, with PostgreSQL, and with a Go server as the upstream.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.builders import DID, LIKE, REV, account, commit, create, delete, identity, sync
from tests.relay import Relay
from tests.scripted import Jetstream, refusal, send_just
from tests.serving import LOOPBACK, figures, get, health, reconnecting_at_once, running, until
from tests.subscriber import Subscriber
from tests.subscriber import subscribe as subscribe_to
from tests.unit.eventlog.trimming import trim

from jetstream.app import Service
from jetstream.delivery.renderers.v2 import V2 as V2_WIRE
from jetstream.delivery.renderers.v2 import info
from jetstream.eventlog import SourceCursor
from jetstream.limits import Limits, LogLimits, SourceLimits, UpstreamLimits
from jetstream.model.batch import Batch
from jetstream.model.event import CREATE, Event
from jetstream.settings import Settings
from jetstream.settings.values import LogUrl
from jetstream.upstream.mirror.source import MirrorSource
from jetstream.upstream.mirror.stream import OwnStream, Taken
from jetstream.upstreams import SUBSCRIBE_EVENTS_PATH, Upstream

V2 = SUBSCRIBE_EVENTS_PATH
CID = b"bafyreihdlrrfxc4l5few7lso3u36zf655omeuso3y3dnersr5mm3r7mbyu"
WIRES = ("/subscribe", "/v1/subscribe", V2)
LIMITS = reconnecting_at_once(
    Limits(
        log=LogLimits(segment_events=50, journal_bytes=0, upkeep_interval_s=3600.0),
        upstream=UpstreamLimits(backoff_max_s=0.02, unawaited_rest_s=0.001),
        sources=SourceLimits(fault_pause_s=0.001, fault_pause_max_s=0.02),
    )
)


# Messages that a test does not take do not keep a connection from being closed.
subscribe = partial(subscribe_to, queue=1_000)


def of(server: Service, path: str = V2, name: str = "above") -> tuple[Upstream, ...]:
    """Return the setting that mirrors a server."""
    return (Upstream(name, f"ws://127.0.0.1:{server.port}{path}", "jetstream"),)


class Run:
    """Runs servers, each with a directory of its own, that stop with the test or when they are told to."""

    def __init__(self, directory: Path, stack: AsyncExitStack) -> None:
        self.directory = directory
        self._stack = stack
        self._stacks: dict[Service, AsyncExitStack] = {}

    async def __call__(
        self, name: str, upstream: Any, *, limits: Limits = LIMITS, **settings: Any
    ) -> Service:
        given: dict[str, Any] = {
            "upstream": upstream,
            "data_dir": self.directory / name,
            "listen": LOOPBACK,
            "drain": 0.01,
        }
        service = Service(Settings(**given | settings), limits)
        stack = await self._stack.enter_async_context(AsyncExitStack())
        await stack.enter_async_context(running(service))
        self._stacks[service] = stack
        return service

    async def stop(self, service: Service) -> None:
        await self._stacks.pop(service).aclose()


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Run]:
    async with AsyncExitStack() as stack:
        yield Run(tmp_path, stack)


@pytest.fixture
async def above(relay: Relay, run: Run) -> Service:
    """A server that reads the relay from its beginning."""
    return await run("above", relay.url, upstream_cursor=0)


def frames(first: int, stop: int) -> list[tuple[int, bytes]]:
    """Return frames of all kinds."""
    found = []
    for seq in range(first, stop):
        match seq % 5:
            case 0:
                found.append((seq, identity(seq, handle=f"h{seq}.test")))
            case 1:
                found.append((seq, account(seq, active=True)))
            case 2:
                found.append((seq, sync(seq)))
            case 3:
                found.append((seq, commit(seq, [delete(f"{LIKE}/{seq}")])))
            case _:
                record = {"$type": LIKE, "text": f'{seq} "é"\u2028,"rev":"x"', "n": [seq, {"a": None}]}
                found.append((seq, commit(seq, [create(f"{LIKE}/{seq}", record)])))
    return found


async def level(below: Service, above: Service) -> None:
    """Return once a mirror has all that its upstream has, and has published it."""
    await until(lambda: above.log.tip and below.reader.tip == above.log.tip)


async def filled(relay: Relay, above: Service, count: int) -> None:
    """Publish so many frames more, and return once they are stored."""
    first = len(relay.history) + 1
    relay.publish(frames(first, first + count))
    await until(
        lambda: (each := next(iter(above.log.cursors.values()), None)) and each.seq >= first + count - 1
    )


async def filled_in_parts(relay: Relay, above: Service, count: int) -> None:
    """Do so in appends of ten, so that there are segments."""
    for _ in range(count // 10):
        await filled(relay, above, 10)


async def texts(server: Service, path: str, count: int, cursor: int = 0) -> list[str]:
    """Return the messages of a stream as they come."""
    async with subscribe(server.port, path, cursor=cursor) as subscriber:
        return [await text(subscriber) for _ in range(count)]


async def text(subscriber: Subscriber) -> str:
    async with asyncio.timeout(20):
        message = await subscriber.connection.recv()
    assert isinstance(message, str)
    return message


# The same stream


async def test_a_mirror_sends_the_same_messages_in_every_wire(relay: Relay, run: Run, above: Service) -> None:
    await filled(relay, above, 120)
    below = await run("below", of(above))
    await level(below, above)
    kinds = {"/subscribe": 4 * 24, "/v1/subscribe": 4 * 24, V2: 120}
    for path in WIRES:
        ours, theirs = await texts(below, path, kinds[path]), await texts(above, path, kinds[path])
        assert ours == theirs
    assert below.log.cursors == {"above": SourceCursor(above.log.tip)}
    async with subscribe(above.port, V2) as here, subscribe(below.port, V2) as there:
        await filled(relay, above, 20)
        assert [await text(here) for _ in range(20)] == [await text(there) for _ in range(20)]


async def test_a_client_changes_servers_with_nothing_but_its_cursor(
    relay: Relay, run: Run, above: Service
) -> None:
    """Also while the mirror is behind: then the client waits at its cursor."""
    await filled(relay, above, 10)
    below = await run("below", of(above))
    await level(below, above)
    servers, received, cursor = [above, below], list[dict[str, Any]](), 0
    for turn in range(20):
        await filled(relay, above, 5)
        server = servers[turn % 2]
        async with subscribe(server.port, "/v1/subscribe", cursor=cursor) as subscriber:
            received += await subscriber.events(4)
        cursor = received[-1]["time_us"] + 1
    times = [event["time_us"] for event in received]
    assert times == sorted(set(times))
    assert received == [json.loads(each) for each in await texts(above, "/v1/subscribe", len(received))]


class Stalled:
    """A mirror that stores nothing until it is told to go on."""

    def __init__(self, below: Service) -> None:
        intake = below._reading
        assert intake is not None
        self._appending = intake._ingest._appending

    async def stop(self) -> None:
        await self._appending.acquire()

    def go_on(self) -> None:
        self._appending.release()


async def stalled(relay: Relay, run: Run, above: Service) -> tuple[Service, Stalled]:
    """Return a mirror that has stopped, whose upstream has 20 events more."""
    below = await run("below", of(above))
    await filled(relay, above, 10)
    await level(below, above)
    await (stall := Stalled(below)).stop()
    await filled(relay, above, 20)
    return below, stall


@pytest.mark.parametrize("path", WIRES)
async def test_a_client_that_is_ahead_of_the_mirror_waits_at_its_cursor(
    path: str, relay: Relay, run: Run, above: Service
) -> None:
    below, stall = await stalled(relay, run, above)
    cursor = above.log.tip - 5
    assert cursor > below.log.tip + 1
    async with subscribe(below.port, path, cursor=cursor) as subscriber:
        assert subscriber.connection.response is not None
        assert subscriber.connection.response.headers["Jetstream-Cursor"] == str(cursor)
        stall.go_on()
        first = json.loads(await text(subscriber))
    assert first == json.loads((await texts(above, path, 1, cursor))[0])


async def test_a_cursor_of_the_future_starts_where_the_upstream_is(
    relay: Relay, run: Run, above: Service
) -> None:
    below, stall = await stalled(relay, run, above)
    async with subscribe(below.port, cursor=above.log.tip + 10**12) as subscriber:
        assert subscriber.connection.response is not None
        assert subscriber.connection.response.headers["Jetstream-Cursor"] == str(above.log.tip + 1)
        stall.go_on()
        await filled(relay, above, 1)
        assert await text(subscriber) == (await texts(above, "/subscribe", 1, above.log.tip))[0]


async def test_a_client_of_an_upstream_that_is_gone_is_served(relay: Relay, run: Run, above: Service) -> None:
    """What it has read and the mirror has not may come later."""
    below, stall = await stalled(relay, run, above)
    cursor, port = above.log.tip + 1, above.port
    await run.stop(above)
    async with subscribe(below.port, V2, cursor=cursor) as subscriber:
        stall.go_on()
        again = await run("above", relay.url, listen=LOOPBACK._replace(port=port))
        await filled(relay, again, 5)
        assert await text(subscriber) == (await texts(again, V2, 1, cursor))[0]


async def test_mirrors_of_mirrors(relay: Relay, run: Run, above: Service) -> None:
    middle = await run("middle", of(above), forget="deleted,takendown")
    below = await run("below", of(middle))
    await filled(relay, above, 50)
    await level(below, above)
    assert await texts(below, V2, 50) == await texts(above, V2, 50)
    # What the one in the middle does not have yet, it asks for.
    await (stall := Stalled(middle)).stop()
    await filled(relay, above, 10)
    async with subscribe(below.port, cursor=above.log.tip) as subscriber:
        assert subscriber.connection.response is not None
        assert subscriber.connection.response.headers["Jetstream-Cursor"] == str(above.log.tip)
        stall.go_on()
        assert await text(subscriber) == (await texts(above, "/subscribe", 1, above.log.tip))[0]
    # What one of them erases, those below it erase.
    assert (sorted(above.log.erases), sorted(below.log.erases)) == (["deleted"], ["deleted", "takendown"])


async def test_edges_of_a_mirror(relay: Relay, run: Run, above: Service, tmp_path: Path) -> None:
    log = LogUrl(tmp_path / "log")
    ingest = await run("ingest", of(above), role="ingest", log=log)
    edge = await run("edge", of(above), role="edge", log=log)
    await filled(relay, above, 30)
    await level(edge, above)
    assert await texts(edge, V2, 30) == await texts(above, V2, 30)
    assert ingest.log.watermark == ingest.log.tip + 1  # not the time: the stream may be behind it
    await until(lambda: edge.reader.tip - 256 < edge.reader.watermark <= edge.reader.tip + 1)
    await (stall := Stalled(ingest)).stop()
    await filled(relay, above, 10)
    cursor = above.log.tip
    async with subscribe(edge.port, V2, cursor=cursor) as subscriber:
        stall.go_on()
        assert await text(subscriber) == (await texts(above, V2, 1, cursor))[0]


# Accounts


def ended(seq: int, status: str) -> tuple[int, bytes]:
    return seq, account(seq, active=False, status=status)


@pytest.mark.parametrize(
    ("above_forgets", "status", "erased"),
    [("deleted", "deleted", True), ("deleted", "takendown", False), ("deleted,takendown", "takendown", True)],
)
async def test_an_account_that_the_upstream_forgets_is_forgotten(
    relay: Relay, run: Run, above_forgets: str, status: str, erased: bool
) -> None:
    above = await run("above", relay.url, upstream_cursor=0, forget=above_forgets)
    below = await run("below", of(above))
    relay.publish(
        [
            (seq, commit(seq, [create(f"{LIKE}/{seq}", {"$type": LIKE, "secret": seq})]))
            for seq in range(1, 20)
        ]
    )
    await filled(relay, above, 1)
    await level(below, above)
    relay.publish([ended(21, status), (22, identity(22))])
    await until(lambda: above.log.cursors and next(iter(above.log.cursors.values())).seq >= 22)
    await level(below, above)
    expected = 3 if erased else 22
    messages = await texts(below, V2, expected)
    assert messages == await texts(above, V2, expected)
    assert any("secret" in message for message in messages) is not erased


async def test_an_account_that_ended_while_the_mirror_was_away_is_forgotten(
    relay: Relay, run: Run, above: Service
) -> None:
    below = await run("below", of(above))
    relay.publish(
        [
            (seq, commit(seq, [create(f"{LIKE}/{seq}", {"$type": LIKE, "secret": seq})]))
            for seq in range(1, 20)
        ]
    )
    await until(lambda: above.log.statistics().events == 19)
    await level(below, above)
    await run.stop(below)
    relay.publish([ended(20, "deleted"), (21, identity(21))])
    await until(lambda: next(iter(above.log.cursors.values())).seq >= 21)
    below = await run("below", of(above))
    await level(below, above)
    assert await texts(below, V2, 2) == await texts(above, V2, 2)


# Ends and gaps


async def test_a_mirror_goes_on_after_its_newest_event(relay: Relay, run: Run, above: Service) -> None:
    for _ in range(3):
        below = await run("below", of(above))
        await filled(relay, above, 30)
        await level(below, above)
        await run.stop(below)
        await filled(relay, above, 7)
    below = await run("below", of(above))
    await level(below, above)
    count = len(relay.history)
    assert await texts(below, V2, count) == await texts(above, V2, count)
    assert below.log.statistics().events == count
    seen = await figures(below.port)
    assert seen["jetstream_upstream_gaps_total"] == 0
    assert seen['jetstream_dropped_total{reason="repeat"}'] == 1  # the one at which it goes on
    assert "mirror_gap" not in below.conditions.names


async def test_an_upstream_that_is_stopped_and_started_is_read_on(
    relay: Relay, run: Run, above: Service
) -> None:
    below = await run("below", of(above))
    await filled(relay, above, 20)
    await level(below, above)
    port = above.port
    await run.stop(above)
    await until(lambda: not below.intake.sources.connected)
    above = await run("above", relay.url, listen=LOOPBACK._replace(port=port))
    await filled(relay, above, 20)
    await level(below, above)
    assert await texts(below, V2, 40) == await texts(above, V2, 40)


async def test_what_the_upstream_does_not_keep_any_more_is_a_gap_that_is_told(
    relay: Relay, run: Run, above: Service
) -> None:
    below = await run("below", of(above))
    await filled(relay, above, 40)
    await level(below, above)
    tip = below.log.tip
    await run.stop(below)
    await filled_in_parts(relay, above, 200)
    await drop_before(above, await position(above, 120))
    oldest = above.log.oldest_us
    assert oldest is not None
    assert oldest > tip + 1
    with capture_logs() as lines:
        below = await run("below", of(above))
        await level(below, above)
    [line] = [line for line in lines if line["event"] == "upstream: gap, events are missing"]
    assert (line["after"], line["before"]) == (tip, oldest)
    seen = await figures(below.port)
    assert seen["jetstream_upstream_gaps_total"] == 1
    _, body = await health(below.port)
    assert "did not have the events before" in json.dumps(body)
    gap = {"from_us": tip, "to_us": oldest, "time_us": oldest, "cause": "upstream"}
    assert [json.loads(each) for each in (await get(below.port, "/gaps"))[1].splitlines()] == [gap]
    # It is told again by the next process, until the log has nothing from before it.
    await run.stop(below)
    below = await run("below", of(above))
    await until(lambda: "mirror_gap" in below.conditions.names)
    await filled_in_parts(relay, above, 80)
    await level(below, above)
    await drop_before(below, await position(below, below.log.statistics().events - 30))
    await filled(relay, above, 1)
    await until(lambda: "mirror_gap" not in below.conditions.names)


async def drop_before(server: Service, position: int) -> None:
    """Let retention remove the segments before a position."""
    await server.log.maintain()
    assert await trim(server.log, position)


async def position(server: Service, number: int) -> int:
    """Return the position of an event by its number, of those that are kept."""
    return int(json.loads((await texts(server, V2, number))[-1])["payload"]["seq"])


# What is not mirrored


async def test_a_log_with_positions_of_its_own_takes_over_none(
    relay: Relay, run: Run, above: Service
) -> None:
    await filled(relay, above, 10)
    below = await run("below", relay.url, upstream_cursor=0)
    await until(lambda: below.log.statistics().events == 10)
    await run.stop(below)
    below = await run("below", of(above))
    await until(lambda: "not_mirrored" in below.conditions.names)
    assert "A mirror needs a log of its own" in below.conditions.reasons["not_mirrored above"]
    assert below.log.statistics().events == 10
    async with subscribe(below.port, cursor=1) as subscriber:  # what it has, it serves
        assert len(await subscriber.events(8)) == 8


async def test_a_mirror_whose_upstream_is_none_any_more_takes_nothing(
    relay: Relay, run: Run, above: Service
) -> None:
    below = await run("below", of(above))
    await filled(relay, above, 10)
    await level(below, above)
    await run.stop(below)
    below = await run("below", of(above, "/v1/subscribe"))
    await until(lambda: "not_mirrored" in below.conditions.names)
    assert (
        "is no Jetstream whose positions can be taken over" in below.conditions.reasons["not_mirrored above"]
    )
    await run.stop(below)
    below = await run("below", of(above, name="renamed"))
    await filled(relay, above, 5)
    await level(below, above)
    assert below.log.cursors == {"renamed": SourceCursor(above.log.tip)}


async def test_a_mirror_starts_after_a_position_that_is_given(relay: Relay, run: Run, above: Service) -> None:
    await filled(relay, above, 10)
    first = json.loads((await texts(above, V2, 4))[3])["payload"]["seq"]
    below = await run("below", of(above), upstream_cursor=first)
    await level(below, above)
    assert await texts(below, V2, 6) == (await texts(above, V2, 10))[4:]


async def test_a_mirror_says_that_nothing_is_verified(run: Run, above: Service) -> None:
    with capture_logs() as lines:
        await run("below", of(above), verify="full", verify_workers=2)
    [line] = [line for line in lines if "--verify does not apply" in line["event"]]
    assert line["ignored"] == ["--verify", "--verify-workers"]
    [listening] = [line for line in lines if line["event"] == "listening"]
    assert "verify" not in listening


# Other servers. The path of the v1 wire is that of a v1 server.


async def taking_foreign(run: Run, name: str, above: Service, **settings: Any) -> Service:
    """Run a server that reads another one as if that had the v1 wire only; return it when it is connected."""
    with capture_logs() as lines:
        server = await run(name, of(above, "/v1/subscribe"), **settings)
        await until(lambda: "upstream: events get positions of this server" in str(lines))
    return server


def keys(lines: list[str]) -> list[Any]:
    events = [json.loads(line) for line in lines]
    return [{name: value for name, value in event.items() if name != "time_us"} for event in events]


async def test_events_of_another_server_get_positions_here_each_once(
    relay: Relay, run: Run, above: Service
) -> None:
    below = await taking_foreign(run, "below", above)
    await filled(relay, above, 50)
    await until(lambda: below.log.statistics().events == 40)  # without syncs
    await run.stop(below)
    await filled(relay, above, 50)
    below = await taking_foreign(run, "below", above)
    await until(lambda: below.log.statistics().events == 80)
    await filled(relay, above, 50)
    await until(lambda: below.log.statistics().events == 120)
    ours, theirs = await texts(below, "/v1/subscribe", 120), await texts(above, "/v1/subscribe", 120)
    assert keys(ours) == keys(theirs)
    assert ours != theirs
    seen = await figures(below.port)
    assert seen['jetstream_dropped_total{reason="repeat"}'] > 0
    assert seen["jetstream_upstream_gaps_total"] == 0


async def test_another_server_begins_live_unless_a_position_is_given(
    relay: Relay, run: Run, above: Service
) -> None:
    await filled(relay, above, 10)
    below = await taking_foreign(run, "below", above)
    all_of_it = await taking_foreign(run, "all", above, upstream_cursor=0)
    await until(lambda: all_of_it.log.statistics().events == 8)
    await filled(relay, above, 10)
    await until(lambda: below.log.statistics().events == 8)


async def test_a_gap_in_another_server_is_told(relay: Relay, run: Run, above: Service) -> None:
    below = await taking_foreign(run, "below", above, upstream_cursor=0)
    await filled(relay, above, 40)
    await until(lambda: below.log.statistics().events == 32)
    await run.stop(below)
    await filled_in_parts(relay, above, 200)
    await drop_before(above, await position(above, 120))
    below = await taking_foreign(run, "below", above)
    await filled(relay, above, 1)
    await until(lambda: "mirror_gap" in below.conditions.names)


async def test_a_server_that_was_read_so_before_is_read_so_again(
    relay: Relay, run: Run, above: Service
) -> None:
    """Its positions cannot be taken over any more when it turns out to have some."""
    below = await run("below", of(above, "/v1/subscribe"), upstream_cursor=0)
    await filled(relay, above, 10)
    await until(lambda: below.log.statistics().events == 8)
    await run.stop(below)
    with capture_logs() as lines:
        below = await run("below", of(above))
        await filled(relay, above, 10)
        await until(lambda: below.log.statistics().events == 20)  # with the syncs of those that come again
    assert "the log has positions of this server" in str(lines)


# An upstream that breaks the rules


FIRST = 1_725_516_666_000_000


def ours(number: int) -> str:
    """Return the message of an event, which is told by its position."""
    path = (LIKE.encode(), b"%d" % number, REV.encode(), CID)
    event = Event(CREATE, DID.encode(), *path, b'{"n":%d}' % number)
    return V2_WIRE.render(Batch.of([event], [FIRST + number]), range(1))[0].decode()


@pytest.fixture
def scripted(jetstream: Jetstream) -> Jetstream:
    """A server that says that it is one of ours, and does what a test says."""
    jetstream.headers.update(
        {"Jetstream-Wire": "v2", "Jetstream-Cursor": str(FIRST), "Jetstream-Forget": "none"}
    )
    return jetstream


def mirrored(scripted: Jetstream) -> tuple[Upstream, ...]:
    return (Upstream("above", scripted.url, "jetstream"),)


async def test_bad_messages_are_dropped_and_counted_and_the_stream_goes_on(
    scripted: Jetstream, run: Run
) -> None:
    future = ours(0).replace(str(FIRST), str(10**17))
    heartbeat = info("Heartbeat", "a").decode()
    scripted.script.append(
        send_just(ours(1), "{", ours(1), b"\x00" * 20, ours(3), ours(2), future, heartbeat, ours(4))
    )
    below = await run("below", mirrored(scripted), retention=10**9)
    await until(lambda: below.log.statistics().events == 3)
    assert [json.loads(each)["payload"]["seq"] - FIRST for each in await texts(below, V2, 3)] == [1, 3, 4]
    seen = await figures(below.port)
    drops = {"message_form": 1, "repeat": 1, "position": 2, "frame_text": 1}
    assert {name: seen[f'jetstream_dropped_total{{reason="{name}"}}'] for name in drops} == drops


async def test_a_message_that_a_mirror_fails_at_stops_neither_it_nor_anything_before_the_message(
    relay: Relay, run: Run, above: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the server itself, and not of a parser, which costs its message only."""
    await filled(relay, above, 6)
    acts, read = [True], OwnStream.read

    def failing(stream: OwnStream, *messages: Any) -> Taken:
        if acts:
            raise OverflowError("a fault of ours")
        return read(stream, *messages)

    monkeypatch.setattr(OwnStream, "read", failing)
    below = await run("below", of(above), limits=LIMITS)
    await until(lambda: "upstream_stuck above" in below.conditions.reasons)
    assert (await health(below.port))[0] == 200
    acts.clear()
    await level(below, above)
    assert await texts(below, V2, 6) == await texts(above, V2, 6)


async def test_a_stream_in_which_nothing_can_be_taken_is_a_condition(scripted: Jetstream, run: Run) -> None:
    limits = replace(LIMITS, upstream=replace(LIMITS.upstream, none_accepted_s=0.0))
    scripted.script.append(send_just("{", "["))
    below = await run("below", mirrored(scripted), limits=limits)
    await until(lambda: "frames_not_taken" in below.conditions.names)
    assert "dropped for: message_form" in below.conditions.reasons["frames_not_taken above"]


async def test_it_connects_again_after_its_newest_event_and_after_as_long_as_it_is_asked_to_wait(
    scripted: Jetstream, run: Run
) -> None:
    scripted.events = []
    scripted.script += [
        refusal(503, "full", Retry_After="0"),
        send_and_cut(ours(1), ours(2)),
        send_and_cut('{"$type":"error","error":"ConsumerTooSlow","message":"too slow"}'),
        send_just(ours(2), ours(3)),
    ]
    with capture_logs() as lines:
        below = await run("below", mirrored(scripted), retention=10**9)
        await until(lambda: below.log.statistics().events == 3)
    assert scripted.cursors[:4] == [0, 0, FIRST + 2, FIRST + 2]
    assert [line["status"] for line in lines if line["event"] == "upstream: refused"] == [503]
    assert [line["name"] for line in lines if line["event"] == "upstream: error"] == ["ConsumerTooSlow"]


def send_and_cut(*messages: str) -> Any:
    async def act(connection: Any, _jetstream: Jetstream) -> None:
        for message in messages:
            await connection.send(message)
        await connection.close(1012, "going")

    return act


async def test_a_stream_that_ends_below_the_newest_event_is_told(scripted: Jetstream, run: Run) -> None:
    may_send = asyncio.Event()

    async def send_later(connection: Any, _jetstream: Jetstream) -> None:
        await may_send.wait()
        await send_just(ours(999), ours(1_001))(connection, _jetstream)

    scripted.events = []
    scripted.script += [send_and_cut(ours(1_000)), send_later]
    below = await run("below", mirrored(scripted), retention=10**9)
    await until(lambda: below.log.statistics().events == 1)
    await until(lambda: "not_mirrored" in below.conditions.names)
    assert "Nothing is taken up to there" in below.conditions.reasons["not_mirrored above"]
    may_send.set()
    await until(lambda: below.log.statistics().events == 2)
    assert "not_mirrored" not in below.conditions.names
    [gap] = (await get(below.port, "/gaps"))[1].splitlines()
    assert json.loads(gap)["to_us"] == FIRST + 1_001


async def test_another_stream_is_not_taken(scripted: Jetstream, run: Run) -> None:
    """It has another event at the position of the newest one here."""
    other = ours(1).replace('{"n":1}', '{"n":2}')
    scripted.events = []
    del scripted.headers["Jetstream-Cursor"]
    scripted.headers["Jetstream-Cursor"] = str(FIRST + 1)
    scripted.script += [send_and_cut(ours(1)), send_just(other, ours(2))]
    below = await run("below", mirrored(scripted), retention=10**9)
    await until(lambda: "not_mirrored" in below.conditions.names)
    assert "has another event at" in below.conditions.reasons["not_mirrored above"]
    assert below.log.statistics().events == 1


async def test_a_silent_upstream_is_pinged(scripted: Jetstream, run: Run) -> None:
    limits = replace(LIMITS, upstream=replace(LIMITS.upstream, ping_after_s=0.05, pong_timeout_s=0.05))
    pings: list[int] = []

    async def count(connection: Any, _jetstream: Jetstream) -> None:
        await until(lambda: connection.pings >= 2)
        pings.append(connection.pings)
        await connection.wait_closed()

    scripted.script.append(count)
    below = await run("below", mirrored(scripted), limits=limits)
    await until(lambda: pings)
    assert below.intake.sources.connected == ["above"]


# An upstream that means harm


def other(number: int, record: str = "{}", cid: str = CID.decode()) -> str:
    """Return the message of an event in the v1 wire, which any server has."""
    commit = (
        f'"operation":"create","collection":"{LIKE}","rkey":"{number}","rev":"{REV}","cid":"{cid}","record":'
    )
    return f'{{"did":"{DID}","time_us":{number},"kind":"commit","commit":{{{commit}{record}}}}}'


DEEP = "[" * 1_000 + "]" * 1_000
HOSTILE = (
    other(2, '{"a":' * 300 + "1" + "}" * 300),
    other(2, cid="b" + "a" * 3_000_000),
    other(2, cid="b" + "a" * 300),
    other(2, '{"a":[' + "[]," * 100_000 + "1]}"),
    "[" * 30_000_000,
    f'{{"did":"{DID}","time_us":2,"kind":"sync","sync":{{"did":"{DID}","rev":"{REV}","blocks":{DEEP}}}}}',
    f'{{"payload":{{"$type":"#info","name":{DEEP},"message":{DEEP}}}}}',
    f'{{"payload":{{"$type":"network.bsky.jetstream.subscribeEvents#info","name":{DEEP},"message":{DEEP}}}}}',
    f'{{"payload":{{"$type":"network.bsky.jetstream.subscribeEvents#info","name":"{"m" * 1_000_000}"}}}}',
)


async def test_nothing_that_another_server_sends_stops_this_one_or_fills_its_log(
    jetstream: Jetstream, run: Run
) -> None:
    numbers = '{"a":[1e20,18446744073709551616,-18446744073709551616]}'
    error = f'{{"$type":"error","error":{DEEP},"message":"{"m" * 1_000_000}"}}'
    jetstream.events = []
    jetstream.script += [
        send_just(other(1), *HOSTILE, other(3, numbers), error),
        send_just(other(4)),
    ]
    with capture_logs() as lines:
        below = await run("below", mirrored(jetstream), upstream_cursor=0)
        await until(lambda: below.log.statistics().events == 3)
    records = [json.loads(each)["commit"]["record"] for each in await texts(below, "/v1/subscribe", 3)]
    assert records == [{}, {"a": [10**20, 2**64, -(2**64)]}, {}]
    assert max(len(json.dumps(line, default=str)) for line in lines) < 1_000
    seen = await figures(below.port)
    drops = {"record_depth": 1, "frame_size": 2, "malformed": 2, "frame_items": 1, "message_form": 1}
    assert {name: seen[f'jetstream_dropped_total{{reason="{name}"}}'] for name in drops} == drops


async def test_an_upstream_that_only_sends_errors_is_asked_ever_more_rarely(
    scripted: Jetstream, run: Run
) -> None:
    error = '{"$type":"error","error":"a","message":"b"}'
    may_send = asyncio.Event()

    async def send_later(connection: Any, _jetstream: Jetstream) -> None:
        await may_send.wait()
        await send_just(ours(1))(connection, _jetstream)

    scripted.script += [send_just(error), send_just(info("a", "b").decode(), error), send_just("{", error)]
    scripted.script.append(send_later)
    below = await run("below", mirrored(scripted), retention=10**9)
    [source] = below.intake.sources
    await until(lambda: len(scripted.queries) == 4)
    assert source._attempts == 3
    may_send.set()
    await until(lambda: below.log.statistics().events == 1)
    assert source._attempts == 0


async def test_an_error_of_a_parser_is_told_and_does_not_count_as_use(scripted: Jetstream, run: Run) -> None:
    """No message is known that causes one."""
    below = await run("below", mirrored(scripted), retention=10**9)
    [source] = below.intake.sources
    assert isinstance(source, MirrorSource)
    source._attempts = 3
    taken = Taken(problem="KeyError: 'a'")
    taken.drop("unforeseen")
    with capture_logs() as lines:
        source._count(taken)
    [line] = [line for line in lines if "an error in this server" in line["event"]]
    assert (line["problem"], line["log_level"]) == ("KeyError: 'a'", "warning")
    assert source._attempts == 3
    assert (await figures(below.port))['jetstream_dropped_total{reason="unforeseen"}'] == 1


async def test_a_stream_that_is_said_to_begin_in_the_future_is_no_gap(scripted: Jetstream, run: Run) -> None:
    async def send_and_lie(connection: Any, _jetstream: Jetstream) -> None:
        say_begins(scripted, "9" * 18)
        await send_and_cut(ours(1))(connection, _jetstream)

    scripted.events = []
    scripted.script.append(send_and_lie)
    below = await run("below", mirrored(scripted), retention=10**9)
    await until(lambda: "not_mirrored" in below.conditions.names)
    assert "mirror_gap" not in below.conditions.names
    assert not (await get(below.port, "/gaps"))[1]
    say_begins(scripted, str(FIRST))
    scripted.script += 3 * [send_just(ours(1), ours(2))]  # one that was accepted before takes the first
    await until(lambda: below.log.statistics().events == 2)
    assert "not_mirrored" not in below.conditions.names


def say_begins(scripted: Jetstream, position: str) -> None:
    del scripted.headers["Jetstream-Cursor"]
    scripted.headers["Jetstream-Cursor"] = position
