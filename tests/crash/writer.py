"""A process that appends numbered events to the log in a directory, until it is killed.

It goes on from what the log says was stored, and says of each append that came back which event was its last,
and that one's position. What else is stored follows from the numbers of the events: states of repositories,
which are folded again and again, gaps and accounts. Few appends have a gap or an account: most others are for
the journal.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from hashlib import sha256
from pathlib import Path

from tests.unit.eventlog.events import make_event

from jetstream.errors import LogUnwritable
from jetstream.eventlog import Changes, Gap, SourceCursor
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.ingest import Stamper
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch

RATE = 5_000
SOURCE = "relay.example:443"
# Small enough for many folds in each run, of many steps.
LIMITS = LogLimits(repo_changes=300, fold_repos=10)


def repo_of(number: int) -> bytes:
    """Return the compact DID of the repository that an event changes: one of five hundred."""
    return sha256(b"%d" % (number * number % 1_009)).digest()[:15]


def state_of(number: int) -> bytes | None:
    """Return the state that an event leaves; every seventh one's is forgotten."""
    return number.to_bytes(24, "big") if number % 7 else None


def has_gap(number: int) -> bool:
    """Tell whether an event is behind a gap."""
    return number % 503 == 0


def accounts_of(numbers: range) -> dict[tuple[str, str], bytes | None]:
    """Return what events change of the accounts, by source and DID."""
    return {
        ("relay", f"did:plc:{number % 17}"): b"%d" % number if number % 5 else None
        for number in numbers
        if number % 499 == 0
    }


def changes_of(numbers: range, time_us: int) -> Changes:
    """Return what events change, the first of which is at a position."""
    gaps = [
        Gap(time_us + at, f"did:plc:{number}", "a", "b", "commit")
        for at, number in enumerate(numbers)
        if has_gap(number)
    ]
    last = numbers.stop - 1
    return Changes(
        {SOURCE: SourceCursor(last, stored_to=last + 9, unstored=(last + 2, last + 7))},
        {repo_of(number): state_of(number) for number in numbers},
        gaps,
        accounts_of(numbers),
    )


async def append(log: SqliteLog, batch: Batch, changes: Changes) -> None:
    """Append. Like the server, try again while upkeep, for which a busy machine has no time, is behind."""
    while True:
        try:
            return await log.append(batch, changes)
        except LogUnwritable as error:
            if "too many states" not in str(error):
                raise
            await log.maintain()


async def write(directory: Path) -> None:
    log = await SqliteLog.open(directory, limits=LIMITS)
    stamper = Stamper(log.tip, lambda: time.time_ns() // 1000)
    number = log.cursors[SOURCE].seq if log.cursors else 0
    began, begun = time.monotonic(), number
    while True:
        numbers = range(number + 1, number + random.randint(1, 60))
        number += len(numbers)
        batch = stamper.stamp(list(map(make_event, numbers)))
        await append(log, batch, changes_of(numbers, batch.first if numbers else 0))
        os.write(sys.stdout.fileno(), b"%d %d\n" % (number, log.tip))
        await asyncio.sleep(began + (number - begun) / RATE - time.monotonic())


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1])))
