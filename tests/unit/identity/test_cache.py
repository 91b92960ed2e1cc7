"""Keys in memory before those in the file."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.serving import until
from tests.unit.identity.accounts import did_of, key_of
from tests.unit.identity.fakes import NOW_S, Clock

from jetstream.errors import KeyCacheError, KeyCacheFull
from jetstream.identity.cache import KeyCache
from jetstream.identity.documents import Declared
from jetstream.identity.export import Progress
from jetstream.identity.held import Held
from jetstream.identity.store import FILE, KeyStore, Row
from jetstream.limits import KeyLimits

LIMITS = KeyLimits(memory_entries=10, write_s=0.001)


def open_cache(path: Path, limits: KeyLimits = LIMITS) -> KeyCache:
    clock = Clock()
    return KeyCache(KeyStore(path, clock.now), limits, clock.now)


class Refusing(KeyStore):
    """A file on a disk that is full."""

    is_full = True
    refused = 0  # writes

    def write(self, rows: Iterable[Row], forgotten: Iterable[bytes] = ()) -> None:
        if self.is_full:
            self.refused += 1
            raise KeyCacheFull(self.path, "database or disk is full")
        super().write(rows, forgotten)


@pytest.fixture
async def cache(tmp_path: Path) -> AsyncIterator[KeyCache]:
    async with open_cache(tmp_path) as cache:
        yield cache


async def loaded(cache: KeyCache, number: int) -> Held | None:
    await cache.load([did_of(number)])
    return cache.get(did_of(number))


async def test_a_key_is_in_memory_at_once_and_in_the_file_after_the_end(tmp_path: Path) -> None:
    async with open_cache(tmp_path) as cache:
        cache.put(did_of(1), key_of(1))
        cache.put("did:web:a.com", key_of(2))
        assert cache.get(did_of(1)) == Held(key_of(1), int(NOW_S))
    async with open_cache(tmp_path) as again:
        assert again.get(did_of(1)) is None
        assert await loaded(again, 1) == Held(key_of(1), int(NOW_S))
        await again.load(["did:web:a.com", "did:web:b.com"])
        assert again.get("did:web:a.com") == Held(key_of(2), int(NOW_S))
        assert again.get("did:web:b.com") is None


async def test_what_memory_has_forgotten_is_in_the_file(cache: KeyCache) -> None:
    for number in range(40):
        cache.put(did_of(number), key_of(number % 5))
    assert len(cache) <= 10
    await until(lambda: cache._writing is None)
    for number in range(40):
        held = await loaded(cache, number)
        assert held is not None
        assert held.key == key_of(number % 5)


async def test_what_is_forgotten_is_forgotten_in_the_file_too(tmp_path: Path) -> None:
    async with open_cache(tmp_path) as cache:
        cache.put(did_of(1), key_of(1))
    async with open_cache(tmp_path) as cache:
        await cache.load([did_of(1)])
        cache.forget(did_of(1))
        assert await loaded(cache, 1) is None
    async with open_cache(tmp_path) as cache:
        assert await loaded(cache, 1) is None


async def test_reads_of_one_moment_are_one_query(cache: KeyCache, monkeypatch: pytest.MonkeyPatch) -> None:
    queries: list[int] = []
    read = cache._store.read

    def counted(dids: list[bytes]) -> dict[bytes, tuple[bytes, int, str | None]]:
        queries.append(len(dids))
        return read(dids)

    monkeypatch.setattr(cache._store, "read", counted)
    await asyncio.gather(*(cache.load([did_of(number), did_of(0)]) for number in range(50)))
    assert queries == [50]


async def test_a_caller_that_gives_up_does_not_disturb_the_others(cache: KeyCache, tmp_path: Path) -> None:
    cache.put(did_of(1), key_of(1))
    cache.forget_memory()
    await cache._write()
    first, second = (asyncio.create_task(loaded(cache, 1)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    held = await second
    assert held is not None


async def test_a_key_that_was_fetched_while_the_file_was_read_is_the_newer_one(tmp_path: Path) -> None:
    async with open_cache(tmp_path) as cache:
        cache.put(did_of(1), key_of(1))
    async with open_cache(tmp_path) as cache:
        reading = asyncio.create_task(cache.load([did_of(1)]))
        await asyncio.sleep(0)
        cache.put(did_of(1), key_of(2))
        await reading
        held = cache.get(did_of(1))
        assert held is not None
        assert held.key == key_of(2)


async def test_a_page_of_the_export_replaces_keys_in_memory_that_are_older(cache: KeyCache) -> None:
    now = int(NOW_S)
    for number in (1, 2):
        cache.put(did_of(number), key_of(1))
    page = {did_of(1): Declared(key_of(7), "pds.test"), did_of(3): Declared(None, "")}
    await cache.apply(page, now, Progress(after="9"))
    await cache.apply({did_of(2): Declared(key_of(7), "")}, now - 1, Progress(after="10"))
    assert cache.progress.after == "10"
    assert cache.get(did_of(1)) == Held(key_of(7), now, "pds.test")
    assert cache.get(did_of(2)) == Held(key_of(1), now)
    assert cache.get(did_of(3)) is None
    assert await loaded(cache, 3) == Held(None, now, "")


async def test_without_a_disk_it_goes_on_in_memory(cache: KeyCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyCacheError(Path(FILE), "database or disk is full")

    monkeypatch.setattr(cache._store, "write", fail)
    monkeypatch.setattr(cache._store, "read", fail)
    with capture_logs() as logs:
        for number in range(4):
            cache.put(did_of(number), key_of(1))
            await cache._write()
            assert cache.get(did_of(number)) is not None
            await cache.load([did_of(100 + number)])
    assert [line["event"] for line in logs] == [
        "signing keys cannot be written: they are kept in memory until they can",
        "signing keys cannot be read: they are fetched",
    ]


async def test_what_a_full_disk_has_refused_is_written_when_there_is_room(tmp_path: Path) -> None:
    store = Refusing(tmp_path)
    async with KeyCache(store, replace(LIMITS, write_keys=2)) as cache:
        for number in range(5):
            cache.put(did_of(number), key_of(1))
        cache.forget(did_of(4))
        await until(lambda: store.refused > 2)
        cache.put(did_of(0), key_of(2))
        store.is_full = False
        await until(lambda: cache._writing is None)
    async with open_cache(tmp_path) as again:
        keys = {number: await loaded(again, number) for number in range(5)}
    assert {number: held and held.key for number, held in keys.items()} == {
        0: key_of(2),
        1: key_of(1),
        2: key_of(1),
        3: key_of(1),
        4: None,
    }


async def test_keys_that_are_lost_at_the_end_are_counted(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with KeyCache(Refusing(tmp_path), replace(LIMITS, unwritten_max=3)) as cache:
            for number in range(5):
                cache.put(did_of(number), key_of(1))
    assert [(line["event"].split(":")[0], line.get("keys")) for line in logs] == [
        ("too many signing keys wait to be written", None),
        ("signing keys cannot be written", None),
        ("signing keys are not in the file", 3),
    ]


async def test_a_disk_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    ends = threading.Event()
    async with open_cache(tmp_path, KeyLimits(read_s=0.01)) as cache:
        hanging = asyncio.create_task(cache.call(ends.wait))
        await cache.load([did_of(1)])
        assert cache.get(did_of(1)) is None
        ends.set()
        await hanging


async def test_what_waits_to_be_written_is_bounded(tmp_path: Path) -> None:
    async with open_cache(tmp_path, KeyLimits(unwritten_max=5, write_s=60.0)) as cache:
        for number in range(20):
            cache.put(did_of(number), key_of(1))
        assert len(cache._unwritten) == 5


async def test_a_call_is_made_though_its_caller_is_cancelled(tmp_path: Path) -> None:
    async with open_cache(tmp_path) as cache:
        writing = asyncio.create_task(cache.save(Progress(after="7")))
        await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait([writing])
    async with open_cache(tmp_path) as cache:
        assert cache.progress.after == "7"


async def test_a_file_that_turns_out_to_be_damaged_at_the_start_is_an_empty_one(tmp_path: Path) -> None:
    async with open_cache(tmp_path) as cache:
        await cache.save(Progress(after="7"))
    with (tmp_path / FILE).open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 40_000)
    async with open_cache(tmp_path) as cache:
        assert cache.progress == Progress()
    assert (tmp_path / f"{FILE}.damaged").exists()
