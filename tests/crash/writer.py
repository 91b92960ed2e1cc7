"""A process that appends numbered events to the log in a directory, until it is killed.

It goes on from what the log says was stored, and says of each append that came back which event was its last,
and that one's position.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from pathlib import Path

from tests.unit.eventlog.events import make_event

from jetstream.eventlog import Changes, SourceCursor
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.ingest import Stamper

RATE = 5_000


async def write(directory: Path) -> None:
    log = await SqliteLog.open(directory)
    stamper = Stamper(log.tip, lambda: time.time_ns() // 1000)
    number = log.cursors["relay.example:443"].seq if log.cursors else 0
    began, begun = time.monotonic(), number
    while True:
        events = [make_event(number + n) for n in range(1, random.randint(1, 60))]
        number += len(events)
        batch = stamper.stamp(events)
        await log.append(batch, Changes({"relay.example:443": SourceCursor(number)}))
        os.write(sys.stdout.fileno(), b"%d %d\n" % (number, log.tip))
        await asyncio.sleep(began + (number - begun) / RATE - time.monotonic())


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1])))
