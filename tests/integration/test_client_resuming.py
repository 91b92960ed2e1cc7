"""The client resumes: from a store, and on another server."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
from tests.builders import DID as ALICE
from tests.scripted import (
    EVENTS,
    PATIENCE_S,
    Jetstream,
    Sleeps,
    close_after,
    cut_after,
    raws,
    refusal,
    send_just,
    take,
)
from tests.serving import until

from jetstream.client import (
    ClientLimits,
    CursorStore,
    FileCursor,
    NotJetstream,
    Refused,
    StoreError,
    subscribe,
)
from jetstream.errors import InvalidParameter


class MemoryStore:
    """A store that a user has written."""

    def __init__(self, cursor: int | None = None) -> None:
        self.saved: list[int] = []
        self._cursor = cursor

    def load(self) -> int | None:
        return self._cursor

    def save(self, cursor: int) -> None:
        self.saved.append(cursor)


ALWAYS = ClientLimits(save_every_s=0.0)


class TestStore:
    async def test_the_end_of_the_block_counts_the_last_event_as_done(
        self, jetstream: Jetstream, tmp_path: Path
    ) -> None:
        store = FileCursor(tmp_path / "x.cursor")
        async with subscribe(jetstream.url, cursor=0, store=store) as events:
            first = await anext(events)
            assert events.position == 0
            await anext(events)
            assert events.position == first.time_us + 1
        assert store.load() == events.position == 21
        assert raws(await take(subscribe(jetstream.url, store=store), 1)) == EVENTS[2:3]

    async def test_an_error_in_the_block_does_not(self, jetstream: Jetstream) -> None:
        store = MemoryStore()

        async def fail_at_the_third() -> None:
            async with subscribe(jetstream.url, cursor=0, store=store) as events:
                async for event in events:
                    _ = 1 / (event.time_us - 30)

        with pytest.raises(ZeroDivisionError):
            await fail_at_the_third()
        assert store.saved[-1] == 21

    async def test_neither_does_leaving_a_loop_without_a_block(self, jetstream: Jetstream) -> None:
        store = MemoryStore()
        async for event in subscribe(jetstream.url, cursor=0, store=store):
            if event.time_us == 30:
                break
        await until(lambda: 21 in store.saved)
        assert store.saved[-1] == 21

    async def test_what_is_stored_takes_precedence_over_the_cursor(self, jetstream: Jetstream) -> None:
        await take(subscribe(jetstream.url, cursor=0, store=MemoryStore(100)), 1)
        await take(subscribe(jetstream.url, cursor=0, store=MemoryStore()), 1)
        assert jetstream.cursors == [100, 0]

    async def test_a_live_stream_is_stored_from_its_beginning(self, jetstream: Jetstream) -> None:
        store = MemoryStore()
        jetstream.script.append(send_just())
        async with subscribe(jetstream.url, store=store, clock=lambda: 1000, limits=ALWAYS) as events:
            reading = asyncio.create_task(take(events, 1))
            await until(lambda: store.saved)
            reading.cancel()
            await asyncio.wait([reading])
        assert store.saved == [1000]

    async def test_while_no_event_comes_the_last_position_is_saved(self, jetstream: Jetstream) -> None:
        store = MemoryStore()
        jetstream.events = EVENTS[:5]
        limits = ClientLimits(save_every_s=0.02)
        async with subscribe(jetstream.url, cursor=0, store=store, limits=limits) as events:
            reading = asyncio.create_task(take(events, 6))
            await until(lambda: store.saved and store.saved[-1] == 51)
            reading.cancel()
            await asyncio.wait([reading])

    async def test_saves_are_few(self, jetstream: Jetstream) -> None:
        store = MemoryStore()
        limits = ClientLimits(save_every_s=3600.0)
        async with subscribe(jetstream.url, cursor=0, store=store, limits=limits) as events:
            for _ in EVENTS:
                await anext(events)
        assert store.saved == [0, 301]

    def test_a_file_with_something_else_in_it_is_an_error_at_once(self, tmp_path: Path) -> None:
        path = tmp_path / "x.cursor"
        path.write_text("yesterday")
        with pytest.raises(StoreError, match=f"{path}: has 'yesterday', which is not a time"):
            subscribe(store=FileCursor(path))

    async def test_a_store_that_fails_ends_the_subscription(
        self, jetstream: Jetstream, tmp_path: Path
    ) -> None:
        store: CursorStore = FileCursor(tmp_path / "none" / "x.cursor")
        with pytest.raises(StoreError, match="cannot be written"):
            await take(subscribe(jetstream.url, cursor=0, store=store), 2)
        await until(lambda: jetstream.closed)


def commits(shift: int) -> list[str]:
    """Return thirty commits, one second apart, on a server whose clock is ahead by `shift` microseconds."""
    return [
        json.dumps(
            {
                "did": ALICE,
                "time_us": 1_000_000_000 + n * 1_000_000 + shift,
                "kind": "commit",
                "commit": {"rev": f"rev{n}", "operation": "delete", "collection": "a.b.c", "rkey": "k"},
            }
        )
        for n in range(30)
    ]


class TestServers:
    @pytest.mark.parametrize("shift", [-4_000_000, -1, 0, 3_500_000])
    async def test_another_server_takes_over_without_loss_or_repetition(
        self, shift: int, jetstream: Jetstream, another: Jetstream, sleeps: Sleeps
    ) -> None:
        jetstream.events, another.events = commits(0), commits(shift)
        jetstream.script.extend([cut_after(12), *[refusal(503, "down")] * 9])
        another.script.extend([cut_after(3), cut_after(9), *[refusal(503, "down")] * 2])
        events = await take(subscribe([jetstream.url, another.url], cursor=0, sleep=sleeps), 30)
        assert [event["commit"]["rev"] for event in events] == [f"rev{n}" for n in range(30)]
        cursor = 1_011_000_001
        assert jetstream.cursors[:2] == [0, cursor]  # a restart: the same server at the same position
        assert another.cursors[0] == cursor - 5_000_000

    async def test_the_rewind_is_an_argument_and_without_one_repetitions_come_or_events_are_lost(
        self, jetstream: Jetstream, another: Jetstream, sleeps: Sleeps
    ) -> None:
        jetstream.events, another.events = commits(0), commits(2_000_000)
        jetstream.script.extend([cut_after(12), refusal(503, "down")])
        urls = [jetstream.url, another.url]
        events = await take(subscribe(urls, cursor=0, sleep=sleeps, rewind_s=0), 15)
        revs = [event["commit"]["rev"] for event in events]
        assert revs[12:] == ["rev10", "rev11", "rev12"]
        assert another.cursors == [1_011_000_001]

    async def test_a_stored_cursor_may_be_of_either_server(
        self, jetstream: Jetstream, another: Jetstream
    ) -> None:
        urls = [jetstream.url, another.url]
        jetstream.events = commits(0)
        store = MemoryStore(1_010_000_000)
        await take(subscribe(urls, store=store, rewind_s=7, limits=ALWAYS), 5)
        assert jetstream.cursors == [1_003_000_000]
        assert store.saved == []  # a crash now would begin there again, and not another rewind earlier
        await take(subscribe(urls, store=store, rewind_s=7, limits=ALWAYS), 10)
        assert store.saved == [1_010_000_001, 1_011_000_001]

    async def test_the_position_is_that_of_the_server_that_is_read(
        self, jetstream: Jetstream, another: Jetstream, sleeps: Sleeps
    ) -> None:
        jetstream.events, another.events = commits(0), commits(-3_000_000)
        jetstream.script.extend([cut_after(12), *[refusal(503, "down")] * 9])
        async with subscribe([jetstream.url, another.url], cursor=0, sleep=sleeps) as events:
            for _ in range(13):
                event = await anext(events)
        assert event["commit"]["rev"] == "rev12"
        assert events.position == event.time_us + 1 == 1_000_000_000 + 12_000_000 - 3_000_000 + 1

    async def test_a_server_that_refuses_for_good_is_left_and_all_of_them_are_an_error(
        self, jetstream: Jetstream, another: Jetstream, sleeps: Sleeps, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "jetstream.client")
        jetstream.script.extend([refusal(404, "no such page")] * 2)
        another.script.extend([cut_after(2), refusal(400, "no")])
        events = subscribe([jetstream.url, another.url], cursor=0, sleep=sleeps)
        assert raws([await anext(events), await anext(events)]) == EVENTS[:2]
        with pytest.raises(Refused, match="HTTP 404"):
            await take(events, 1)
        assert len(jetstream.queries) == len(another.queries) == 2
        assert caplog.messages[0] == (
            f"cannot connect to {jetstream.url}: refused, HTTP 404: no such page; trying again"
        )

    async def test_a_server_that_is_no_jetstream_is_left_too(
        self, jetstream: Jetstream, another: Jetstream, sleeps: Sleeps
    ) -> None:
        jetstream.script.append(send_just("hello"))
        assert (
            raws(await take(subscribe([jetstream.url, another.url], cursor=0, sleep=sleeps), 1)) == EVENTS[:1]
        )
        jetstream.script.append(send_just("hello"))
        another.script.append(send_just("hello"))
        with pytest.raises(NotJetstream):
            await take(subscribe([jetstream.url, another.url], cursor=0, sleep=sleeps), 1)

    async def test_servers_that_come_and_go_are_tried_in_turn(
        self, jetstream: Jetstream, another: Jetstream, sleeps: Sleeps
    ) -> None:
        await jetstream.stop()
        another.script.extend([refusal(503, "busy"), refusal(503, "busy"), close_after(1), close_after(1)])
        async with asyncio.timeout(PATIENCE_S):
            events = await take(subscribe([jetstream.url, another.url], cursor=0, sleep=sleeps), 3)
        assert [event.time_us for event in events] == [10, 20, 30]
        assert another.cursors == [0, 0, 0, 11, 21]
        await jetstream.start()

    def test_an_empty_list_or_a_negative_rewind_is_an_error_at_once(self) -> None:
        with pytest.raises(InvalidParameter, match="is an empty list"):
            subscribe([])
        with pytest.raises(InvalidParameter, match="rewind_s: '-1'"):
            subscribe(rewind_s=-1)
        with pytest.raises(InvalidParameter, match="url: 'ftp://x' is not"):
            subscribe(["localhost", "ftp://x"])
