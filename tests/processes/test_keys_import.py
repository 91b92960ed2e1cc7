"""`jetstream keys import` as a process: two runs, an interrupt, a full disk."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
from aiohttp import web
from tests.full_disk import fill, small_disk
from tests.integration.test_keys_import import has
from tests.plc import PlcExport, http_server
from tests.programs import Program, program

from jetstream.identity.cache import KeyCache
from jetstream.identity.store import KeyStore


@asynccontextmanager
async def importing(path: Path, port: int) -> AsyncIterator[Program]:
    url = f"http://127.0.0.1:{port}"
    command = (sys.executable, "-m", "jetstream", "keys", "import", "--plc-url", url, "--data-dir", path)
    async with program(*command) as running:
        yield running


async def keys_in(path: Path, numbers: range) -> list[int]:
    """Return the accounts whose key is in the file, and is right."""
    async with KeyCache(KeyStore(path)) as cache:
        return [number for number in numbers if await has(cache, number)]


async def test_it_fetches_all_keys_and_the_next_run_what_is_new(tmp_path: Path) -> None:
    plc = PlcExport(2_500, 1_000)
    async with http_server(plc.handle) as port:
        async with importing(tmp_path, port) as command:
            code, _, log = await command.ended()
        assert code == 0
        assert '"operations": 2500' in log
        assert await keys_in(tmp_path, range(1, 2_502)) == list(range(1, 2_501))
        plc.operations = 2_501
        async with importing(tmp_path, port) as command:
            code, _, _ = await command.ended()
        assert code == 0
    assert await keys_in(tmp_path, range(2_501, 2_502)) == [2_501]
    assert plc.asked == ["0", "1000", "2000", "2500", "2501"]


async def test_it_says_how_many_lines_cannot_be_read(tmp_path: Path) -> None:
    plc = PlcExport(3, 1_000)
    plc.replies = [web.Response(body=b"\n".join([plc.line(1), b"<br>", b"{}", plc.line(2)]))]
    async with http_server(plc.handle) as port, importing(tmp_path, port) as command:
        code, _, log = await command.ended()
    assert code == 0
    warning, last = map(orjson.loads, log.splitlines()[-2:])
    assert (warning["lines"], warning["example"]) == (2, "b'{}': is no operation of a did:plc")
    assert (last["operations"], last["unreadable"]) == (5, 2)
    assert last["event"] == "all signing keys are there, except those in lines that cannot be read"


async def test_a_full_disk_ends_it_and_the_next_run_goes_on(tmp_path: Path) -> None:
    plc = PlcExport(12_000, 1_000)
    with small_disk(tmp_path / "disk", "6m") as disk:
        filler = fill(disk, leave=300_000)
        async with http_server(plc.handle) as port:
            async with importing(disk, port) as command:
                code, _, log = await command.ended()
            assert code == 1
            assert log.splitlines()[-1].endswith(
                "keys.sqlite3: database or disk is full: free some space and run the command again"
            )
            filler.unlink()
            async with importing(disk, port) as command:
                code, _, log = await command.ended()
        assert code == 0
        assert '"operations": 12000' in log


async def test_after_an_interrupt_it_goes_on(tmp_path: Path) -> None:
    plc = PlcExport(2_500, 1_000)
    plc.answered = 1
    async with http_server(plc.handle) as port:
        async with importing(tmp_path, port) as command:
            await plc.waiting.wait()
            command.interrupt()
            code, _, log = await command.ended()
        assert code == 130
        assert "interrupted: run the command again to go on" in log
        plc.answered = None
        async with importing(tmp_path, port) as command:
            assert (await command.ended())[0] == 0
    assert plc.asked == ["0", "1000", "1000", "2000"]
    assert await keys_in(tmp_path, range(1, 2_501)) == list(range(1, 2_501))
