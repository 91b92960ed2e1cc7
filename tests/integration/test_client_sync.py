"""`subscribe_sync`: the same subscription without asyncio, in a thread of the test and in a script."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.builders import DID as ALICE
from tests.scripted import EVENTS, Jetstream, Sleeps, close_after, cut_after, raws, refusal, send_just
from tests.serving import until
from websockets.asyncio.server import ServerConnection

from jetstream.client import ClientLimits, FileCursor, Message, Refused, StoreError, subscribe_sync
from jetstream.errors import InvalidParameter

# How a server sees a client that leaves while more events come: where its socket holds some that it has not
# read, the kernel sends a reset, which may overtake its close frame.
LEFT = (1000, 1006)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "jetstream.client"]


async def in_thread(read: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(read)


async def test_events_come_in_order_across_lost_connections(jetstream: Jetstream, sleeps: Sleeps) -> None:
    jetstream.script.extend([cut_after(5), close_after(3), cut_after(0)])

    def read() -> list[Message]:
        return list(subscribe_sync(jetstream.url, cursor=0, limit=len(EVENTS), sleep=sleeps))

    assert raws(await in_thread(read)) == EVENTS
    assert jetstream.cursors == [0, 51, 81, 81]
    assert not readers()


@pytest.mark.usefixtures("only_new_objects")
async def test_break_closes_it(jetstream: Jetstream) -> None:
    def read() -> None:
        for _ in subscribe_sync(jetstream.url, cursor=0):
            break
        gc.collect()
        assert not readers()

    await in_thread(read)
    await until(lambda: jetstream.closed)
    assert jetstream.closed[0] in LEFT


async def test_the_end_of_the_block_closes_it_and_counts_the_last_event_as_done(
    jetstream: Jetstream, tmp_path: Path
) -> None:
    store = FileCursor(tmp_path / "x.cursor")

    def read() -> None:
        with subscribe_sync(jetstream.url, cursor=0, store=store) as events:
            assert next(events).time_us == 10
            assert events.position == 0
            assert next(events).time_us == 20
            assert events.position == 11
        assert not readers()
        assert list(events) == []

    await in_thread(read)
    assert store.load() == 21


async def test_an_error_in_the_block_does_not(jetstream: Jetstream, tmp_path: Path) -> None:
    store = FileCursor(tmp_path / "x.cursor")

    def read() -> None:
        with subscribe_sync(jetstream.url, cursor=0, store=store) as events:
            for event in events:
                _ = 1 / (event.time_us - 30)

    with pytest.raises(ZeroDivisionError):
        await in_thread(read)
    assert store.load() == 21
    assert not readers()


async def test_while_no_event_comes_the_last_position_is_saved(jetstream: Jetstream, tmp_path: Path) -> None:
    store = FileCursor(tmp_path / "x.cursor")
    jetstream.events = EVENTS[:5]
    events = subscribe_sync(jetstream.url, cursor=0, store=store, limits=ClientLimits(save_every_s=0.02))
    reading = asyncio.create_task(in_thread(lambda: list(events)))
    await until(lambda: store.load() == 51)
    jetstream.script.append(refusal(403, "enough"))
    await jetstream.stop()
    await jetstream.start()
    with pytest.raises(Refused, match="enough"):
        await reading


async def test_what_ends_it_is_raised_once(jetstream: Jetstream) -> None:
    jetstream.script.append(refusal(400, "no"))
    events = subscribe_sync(jetstream.url)

    def read() -> None:
        with pytest.raises(Refused, match="HTTP 400: no"):
            next(events)
        assert list(events) == []
        events.close()

    await in_thread(read)
    assert not readers()


async def test_heartbeats_move_the_position(jetstream: Jetstream) -> None:
    jetstream.script.append(send_just('{"time_us":55,"type":"hb","live":true}', EVENTS[9]))

    def read() -> tuple[int | None, bool]:
        with subscribe_sync(jetstream.url, cursor=0, heartbeat=5) as events:
            next(events)
            return events.position, events.live

    assert await in_thread(read) == (56, True)


async def test_a_slow_loop_stops_the_reader(jetstream: Jetstream) -> None:
    """What waits for the loop is bounded, and the rest stays on the server."""
    large = [f'{{"did":"{ALICE}","time_us":{n},"x":"{"x" * 100_000}"}}' for n in range(1, 301)]
    jetstream.events = large
    serving: list[ServerConnection] = []
    sent = 0

    async def count(connection: ServerConnection, jetstream: Jetstream) -> None:
        nonlocal sent
        serving.append(connection)
        for event in jetstream.events:
            await connection.send(event)
            sent += 1

    jetstream.script.append(count)
    limits = ClientLimits(queue_bytes_max=500_000)
    events = subscribe_sync(jetstream.url, cursor=0, limits=limits, limit=len(large))
    first = await in_thread(lambda: next(events))
    await until(serving[0].transport.get_write_buffer_size)  # the sockets are full
    assert sent < len(large)
    rest = await in_thread(lambda: list(events))
    assert [event.time_us for event in [first, *rest]] == list(range(1, 301))


def test_arguments_are_checked_at_once_and_nothing_is_started(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter):
        subscribe_sync("ftp://x")
    path = tmp_path / "x.cursor"
    path.write_text("?")
    with pytest.raises(StoreError):
        subscribe_sync(store=FileCursor(path))
    subscribe_sync().close()
    with subscribe_sync():
        pass
    assert not readers()
