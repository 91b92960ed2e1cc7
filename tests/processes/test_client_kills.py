"""A program that reads with the client is killed, and goes on from its store."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
from tests.builders import DID as ALICE
from tests.programs import program
from tests.scripted import Jetstream
from tests.serving import until

# Writes each event to a file, which is its work; whatever it has not saved it does again.
CONSUMER = """
import asyncio, os, sys
from jetstream.client import ClientLimits, FileCursor, subscribe

async def main(url, store, work):
    done = os.open(work, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    limits = ClientLimits(save_every_s=0.02)
    async with subscribe(url, cursor=0, store=FileCursor(store), limits=limits) as events:
        async for event in events:
            os.write(done, b"%d\\n" % event.time_us)
            await asyncio.sleep(0.002)

asyncio.run(main(*sys.argv[1:]))
"""
SYNC_CONSUMER = """
import os, sys, time
from jetstream.client import ClientLimits, FileCursor, subscribe_sync

url, store, work = sys.argv[1:]
done = os.open(work, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for event in subscribe_sync(url, cursor=0, store=FileCursor(store), limits=ClientLimits(save_every_s=0.02)):
    os.write(done, b"%d\\n" % event.time_us)
    time.sleep(0.002)
"""


def works_until(work: Path, goal: int) -> bool:
    """Tell whether a consumer has done so many events."""
    return len(set(work.read_text().splitlines()[:-1])) >= goal - 1


@pytest.mark.parametrize("consumer", [CONSUMER, SYNC_CONSUMER], ids=["async", "sync"])
async def test_after_kills_no_event_is_missed(consumer: str, jetstream: Jetstream, tmp_path: Path) -> None:
    jetstream.events = [f'{{"did":"{ALICE}","time_us":{n * 10}}}' for n in range(1, 201)]
    store, work = tmp_path / "x.cursor", tmp_path / "work"
    work.touch()
    for goal in (2, 60, 120, 200):
        async with program(sys.executable, "-c", consumer, jetstream.url, store, work):
            await until(partial(works_until, work, goal))
            # At the end of this block it is killed, while it reads, works and saves.
        done = [int(line) for line in work.read_text().splitlines()]
        assert set(done) == set(range(10, max(done) + 1, 10))
    assert max(done) >= 1990
    saved = [int(query["cursor"][0]) for query in jetstream.queries]
    assert saved == sorted(saved)
    assert saved[-1] > 0
