"""A process that appends numbered events to the log in a database whenever it leads, until it is killed.

It is `tests.crash.writer` for PostgreSQL: what is stored beside the events follows from their numbers.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from dataclasses import replace

import structlog
from tests.crash.writer import LIMITS, SOURCE, changes_of
from tests.unit.eventlog.events import make_event

from jetstream.errors import Fenced, LogUnwritable
from jetstream.eventlog.postgresql.leading import Candidate, lead
from jetstream.eventlog.postgresql.store import PostgresLog, PostgresOptions
from jetstream.eventlog.postgresql.term import Term
from jetstream.eventlog.postgresql.upkeep import Upkeep
from jetstream.ingest import Stamper

LIMITS = replace(LIMITS, segment_events=500, upkeep_interval_s=0.1)
RATE = 2_000


async def write(address: str) -> None:
    log = await PostgresLog.open(address, PostgresOptions(LIMITS, primary=True))
    while True:
        term = await lead(log, Candidate(takeover_s=1.0))
        Upkeep(term)
        try:
            await write_term(term)
        except Fenced:
            await term.resign()


async def write_term(term: Term) -> None:
    stamper = Stamper(term.tip, lambda: time.time_ns() // 1000)
    number = term.cursors[SOURCE].seq if term.cursors else 0
    began, begun = time.monotonic(), number
    while True:
        numbers = range(number + 1, number + random.randint(1, 60))
        batch = stamper.stamp(list(map(make_event, numbers)))
        while True:
            try:
                await term.append(batch, changes_of(numbers, batch.first if numbers else 0))
                break
            except LogUnwritable:
                await asyncio.sleep(0.1)
        number += len(numbers)
        os.write(sys.stdout.fileno(), b"%d %d\n" % (number, term.tip))
        await asyncio.sleep(began + (number - begun) / RATE - time.monotonic())


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for the test
    asyncio.run(write(sys.argv[1]))
