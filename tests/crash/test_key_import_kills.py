"""An import of keys that is killed again and again has every operation up to its position, and no other."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from tests.plc import PlcExport, http_server
from tests.unit.identity.accounts import did_of, key_of

from jetstream.atproto.compact_did import compact_did
from jetstream.identity.export import Progress
from jetstream.identity.held import unpack_key
from jetstream.identity.store import RECORD_BYTES, KeyStore

PAGE = 100
OPERATIONS = 9_000  # an uninterrupted import takes about half a second
RUN_S = (0.0, 0.25)


async def run_and_kill(url: str, directory: Path, plc: PlcExport, dice: random.Random) -> None:
    """Let an importer run for a moment, from its first request on."""
    asked = len(plc.asked)
    importer = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.crash.key_importer", url, str(directory))
    )
    while len(plc.asked) == asked:  # noqa: ASYNC110 - it is another process that asks
        await asyncio.sleep(0.002)
    await asyncio.sleep(dice.uniform(*RUN_S))
    importer.kill()
    await importer.wait()


def held(directory: Path) -> tuple[Progress, int, int]:
    """Return the progress, the staged operations, and the accounts that have a row."""
    store = KeyStore(directory)
    query = f"SELECT total(length(records)) / {RECORD_BYTES} FROM staged"
    (staged,) = store._connection.execute(query).fetchone()
    (rows,) = store._connection.execute("SELECT count(*) FROM key").fetchone()
    progress = store.progress()
    store.close()
    return progress, int(staged), rows


async def test_each_operation_is_there_once(tmp_path: Path, kills: int) -> None:
    dice = random.Random(15)
    plc = PlcExport(OPERATIONS, PAGE)
    async with http_server(plc.handle) as port:
        for _ in range(max(4, kills // 2)):
            await run_and_kill(f"http://127.0.0.1:{port}", tmp_path, plc, dice)
            progress, staged, rows = held(tmp_path)
            # Each operation of the directory is that of another account.
            assert staged + rows == progress.operations == int(progress.after)
            plc.operations += 37  # from now on, more comes while it is followed
    store = KeyStore(tmp_path)
    accounts = range(1, progress.operations + 1)
    found = store.read([compact_did(did_of(number)) for number in accounts])
    store.close()
    assert len(found) == rows
    for number in accounts if progress.complete_s else ():
        key, *_ = found[compact_did(did_of(number))]
        assert unpack_key(key) == key_of(number % 50)
