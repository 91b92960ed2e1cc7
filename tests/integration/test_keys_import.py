"""Reading the export of a directory, and following it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from structlog.testing import capture_logs
from tests.plc import PlcExport, http_server
from tests.serving import until
from tests.unit.identity.accounts import did_of, key_of

from jetstream.errors import ExportError, KeyCacheReplaced
from jetstream.identity.cache import KeyCache
from jetstream.identity.export import Progress
from jetstream.identity.fetch import Fetcher
from jetstream.identity.follower import ExportFollower
from jetstream.identity.store import FILE, KeyStore
from jetstream.limits import ExportLimits

LIMITS = ExportLimits(stage_ops=150, fold_ops=40)


async def read_to_end(port: int, cache: KeyCache, slept: list[float] | None = None) -> Progress:
    """Read the export of a directory at a port to its end. Pauses are not made, but appended to `slept`."""

    async def sleep(seconds: float) -> None:
        if slept is not None:
            slept.append(seconds)

    fetcher = Fetcher(1)
    try:
        follower = ExportFollower(f"http://127.0.0.1:{port}", fetcher, cache, LIMITS, sleep=sleep)
        return await follower.read_to_end()
    finally:
        await fetcher.close()


async def has(cache: KeyCache, number: int) -> bool:
    await cache.load([did_of(number)])
    held = cache.get(did_of(number))
    return held is not None and held.key == key_of(number % 50)


@pytest.fixture
async def cache(tmp_path: Path) -> AsyncIterator[KeyCache]:
    async with KeyCache(KeyStore(tmp_path)) as cache:
        yield cache


async def test_an_error_of_the_server_itself_does_not_end_following(cache: KeyCache) -> None:
    class Faulty:
        async def get(self, _url: str, _bytes_max: int, _timeout_s: float) -> bytes:
            raise OverflowError("too large")

    async def sleep(_seconds: float) -> None:
        if len(problems) == 2:
            raise asyncio.CancelledError

    problems: list[str] = []
    follower = ExportFollower("http://127.0.0.1", Faulty(), cache, LIMITS, sleep=sleep)
    with pytest.raises(asyncio.CancelledError), capture_logs() as lines:
        await follower.run(problems.append)
    assert len(problems) == 2
    assert "OverflowError('too large')" in problems[0]
    assert [line["log_level"] for line in lines] == ["error"]


async def test_what_is_no_directory_ends_an_import_at_once(cache: KeyCache) -> None:
    async def no_export(_request: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>a page")

    async with http_server(no_export) as port:
        fetcher = Fetcher(1)
        with pytest.raises(ExportError, match="export cannot be read: malformed: it is no export; it begins"):
            await ExportFollower(f"http://127.0.0.1:{port}", fetcher, cache, LIMITS).read_to_end()
        await fetcher.close()


async def test_an_import_that_is_cancelled_continues_where_it_was(cache: KeyCache) -> None:
    plc = PlcExport(1_000, 100)
    async with http_server(plc.handle) as port:
        fetcher = Fetcher(1)
        url = f"http://127.0.0.1:{port}"

        def stop_after_four(progress: Progress) -> None:
            if progress.operations == 400:
                task.cancel()

        task = asyncio.create_task(ExportFollower(url, fetcher, cache, LIMITS, stop_after_four).read_to_end())
        await asyncio.wait([task])
        assert task.cancelled()
        assert cache.progress.operations == 400
        assert not cache.progress.complete_s
        assert not await has(cache, 1)  # until the end
        await ExportFollower(url, fetcher, cache, LIMITS).read_to_end()
        await fetcher.close()
    # The request that was cancelled may have been sent.
    assert list(dict.fromkeys(plc.asked)) == [str(after) for after in range(0, 1_001, 100)]
    assert plc.asked.count("300") == 1
    assert cache.progress.complete_s
    assert all([await has(cache, number) for number in range(1, 1_001)])


async def test_a_damaged_file_does_not_undo_an_interrupt(
    cache: KeyCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plc = PlcExport(1_000, 100)

    def replaced(*_: object) -> None:
        raise KeyCacheReplaced(tmp_path / FILE, "was damaged")

    def interrupt(_progress: Progress) -> None:
        task.cancel()

    async with http_server(plc.handle) as port:
        fetcher = Fetcher(1)
        follower = ExportFollower(f"http://127.0.0.1:{port}", fetcher, cache, LIMITS, interrupt)
        monkeypatch.setattr(cache._store, "stage", replaced)
        task = asyncio.create_task(follower.read_to_end())
        await asyncio.wait([task], timeout=10)
        await fetcher.close()
    assert task.cancelled()


async def test_a_directory_that_fails_now_and_then(cache: KeyCache) -> None:
    plc = PlcExport(300, 100)
    plc.replies = [
        web.Response(status=429, headers={"Retry-After": "7"}),
        web.Response(status=503, headers={"Retry-After": "200"}),
        web.Response(status=500),
    ]
    slept: list[float] = []
    async with http_server(plc.handle) as port:
        await read_to_end(port, cache, slept)
    assert slept == [7.0, 200.0, 8.0]
    assert all([await has(cache, number) for number in range(1, 301)])


async def test_a_directory_that_wants_patience_gets_it(cache: KeyCache) -> None:
    plc = PlcExport(100, 100)
    plc.replies = [web.Response(status=429) for _ in range(20)]
    slept: list[float] = []
    async with http_server(plc.handle) as port:
        await read_to_end(port, cache, slept)
    assert slept == [2.0, 4.0, 8.0, 16.0, *[30.0] * 16]


async def test_asking_for_patience_is_no_failure(cache: KeyCache) -> None:
    plc = PlcExport(100, 100)
    plc.replies = [web.Response(status=status) for status in [*[429] * 8, 502, *[429] * 8, 502]]
    async with http_server(plc.handle) as port:
        await read_to_end(port, cache)
    assert await has(cache, 100)


async def test_a_directory_that_has_never_answered_gets_two_attempts(cache: KeyCache) -> None:
    plc = PlcExport(100, 100)
    async with http_server(plc.handle) as port:
        pass
    slept: list[float] = []
    with pytest.raises(ExportError, match="cannot be read: unreachable: Connection refused"):
        await read_to_end(port, cache, slept)
    assert slept == [2.0]
    async with http_server(plc.handle) as port:
        await read_to_end(port, cache)
    slept.clear()
    with pytest.raises(ExportError, match="cannot be read: unreachable: Connection refused"):
        await read_to_end(port, cache, slept)  # it has answered in an earlier run
    assert len(slept) == LIMITS.page_failures_max - 1


async def test_a_directory_that_fails_for_good_ends_an_import_and_keeps_what_was_read(
    cache: KeyCache,
) -> None:
    plc = PlcExport(300, 100)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    def fail(progress: Progress) -> None:
        plc.replies = [web.Response(status=500) for _ in range(100)]

    async with http_server(plc.handle) as port:
        fetcher = Fetcher(1)
        follower = ExportFollower(f"http://127.0.0.1:{port}", fetcher, cache, LIMITS, fail, sleep)
        with pytest.raises(ExportError, match="status: HTTP 500"):
            await follower.read_to_end()
        await fetcher.close()
    assert len(slept) == LIMITS.page_failures_max - 1
    assert cache.progress.after == "100"


async def test_following_makes_new_keys_count_at_once(cache: KeyCache) -> None:
    plc = PlcExport(100, 100)
    polls: list[float] = []
    enough = asyncio.Event()

    async def sleep(seconds: float) -> None:
        polls.append(seconds)
        if len(polls) == 4:
            enough.set()
            await asyncio.Event().wait()
        plc.operations += 1
        if len(polls) == 2:
            plc.replies = [web.Response(status=404)]

    async with http_server(plc.handle) as port:
        fetcher = Fetcher(1)
        follower = ExportFollower(f"http://127.0.0.1:{port}", fetcher, cache, LIMITS, sleep=sleep)
        with capture_logs() as logs:
            task = asyncio.create_task(follower.run())
            await enough.wait()
        task.cancel()
        await asyncio.wait([task])
        await fetcher.close()
    assert polls == [LIMITS.poll_s] * 4
    assert [line["event"] for line in logs] == ["the export is not followed: keys are fetched"]
    assert all([await has(cache, number) for number in range(1, 104)])


async def test_a_directory_without_sequence_numbers(cache: KeyCache) -> None:
    """It refuses `after=0`, and gives what was created after a date."""
    plc = PlcExport(250, 100)
    asked: list[str | None] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        after = request.query.get("after")
        asked.append(after)
        if after == "0":
            return web.Response(status=400)
        lines = [plc.line(number).replace(b'"seq"', b'"other"') for number in range(1, 251)]
        found = [
            line for line in lines if after is None or line.split(b'"createdAt":"')[1][:24] > after.encode()
        ]
        return web.Response(body=b"\n".join(found[:100]))

    async with http_server(handle) as port:
        fetcher = Fetcher(1)
        await ExportFollower(f"http://127.0.0.1:{port}", fetcher, cache, LIMITS).read_to_end()
        await fetcher.close()
        operations = cache.progress.operations
        await read_to_end(port, cache)
        assert operations < cache.progress.operations  # some seconds of them come again
    assert asked[:2] == ["0", None]
    assert all([await has(cache, number) for number in range(1, 251)])


async def test_another_directory_is_read_from_the_beginning(cache: KeyCache) -> None:
    plc, other = PlcExport(500, 100), PlcExport(300, 100)
    other.first_account = 1_001
    async with http_server(plc.handle) as first, http_server(other.handle) as second:
        await read_to_end(first, cache)
        with capture_logs() as logs:
            await read_to_end(second, cache)
            await read_to_end(second, cache)
    assert [(line["event"], line["before"]) for line in logs] == [
        ("another directory than before: it is read from the beginning", f"http://127.0.0.1:{first}")
    ]
    assert all([await has(cache, number) for number in (1, 500, 1_001, 1_300)])
    assert cache.progress.directory == f"http://127.0.0.1:{second}"
    assert cache.progress.operations == 300


async def test_another_directory_that_cannot_be_read_changes_nothing(cache: KeyCache) -> None:
    plc = PlcExport(100, 100)
    async with http_server(plc.handle) as first:
        before = await read_to_end(first, cache)
        async with http_server(PlcExport(0, 100).handle) as second:
            with pytest.raises(ExportError, match="export is empty"):
                await read_to_end(second, cache)
    assert cache.progress == before


async def test_a_directory_with_less_than_was_read_from_it(cache: KeyCache) -> None:
    plc = PlcExport(100, 100)
    async with http_server(plc.handle) as port:
        before = await read_to_end(port, cache)
        plc.operations = 99
        with pytest.raises(ExportError, match="export ends before 100, up to which it was read: run the"):
            await read_to_end(port, cache)
        assert cache.progress == before
        plc.operations = 101
        await read_to_end(port, cache)
    assert await has(cache, 101)


async def test_an_empty_answer_is_no_directory(cache: KeyCache) -> None:
    async with http_server(PlcExport(0, 100).handle) as port:
        with pytest.raises(ExportError, match=r"/export is empty: is this a PLC directory\?"):
            await read_to_end(port, cache)
    assert cache.progress == Progress()


async def test_a_file_that_is_damaged_during_an_import_begins_again(tmp_path: Path) -> None:
    plc = PlcExport(300, 100)
    async with KeyCache(KeyStore(tmp_path)) as cache, http_server(plc.handle) as port:
        fetcher = Fetcher(1)
        waits = 0

        async def sleep(_seconds: float) -> None:
            nonlocal waits
            waits += 1
            if waits == 1:
                plc.operations = 301
                for pragma in ("wal_checkpoint(TRUNCATE)", "shrink_memory"):
                    await cache.call(cache._store._connection.execute, f"PRAGMA {pragma}")
                with (tmp_path / FILE).open("r+b") as file:
                    file.seek(4096)
                    file.write(b"\xff" * 40_000)
            if waits == 2:
                await asyncio.Event().wait()

        follower = ExportFollower(f"http://127.0.0.1:{port}", fetcher, cache, LIMITS, sleep=sleep)
        task = asyncio.create_task(follower.run())
        await until(lambda: waits >= 2)
        task.cancel()
        await asyncio.wait([task])
        await fetcher.close()
        assert all([await has(cache, number) for number in range(1, 302)])
    assert (tmp_path / f"{FILE}.damaged").exists()
