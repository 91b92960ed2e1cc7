"""Finding events by their content, wherever in the log they are."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from tests.logs.contract import EVENTS
from tests.unit.eventlog.trimming import trim

from jetstream.eventlog import Changes, SourceCursor
from jetstream.eventlog.sqlite.schema import DATABASE
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch

CURSOR = {"relay.example:443": SourceCursor(1)}
SMALL = LogLimits(
    segment_events=20, batch_events=7, hot_tail_events=40, scan_segments=2, lookup_keys=40, journal_bytes=0
)
# No segment is ever full, so the background seals nothing while a test looks at the tail.
UNSEALED = replace(SMALL, segment_events=10_000)


async def filled(path: Path, limits: LogLimits = SMALL) -> SqliteLog:
    log = await SqliteLog.open(path, limits=limits)
    for at in range(0, len(EVENTS), 10):
        events = EVENTS[at : at + 10]
        await log.append(Batch.of(events, range(at + 1, at + 1 + len(events))), Changes(CURSOR))
    return log


async def test_the_newest_are_found_without_the_file(tmp_path: Path) -> None:
    log = await filled(tmp_path)
    keys = {event.key for event in EVENTS[-10:]}
    log._stored.readers.close()  # no thread can read the file
    assert (await log.holds(keys)).keys() == keys
    await log.close()


async def test_a_damaged_segment_is_passed_over(tmp_path: Path) -> None:
    log = await filled(tmp_path)
    await log.maintain()
    with closing(sqlite3.connect(tmp_path / DATABASE)) as connection, connection:
        connection.execute(
            "UPDATE segment SET dids = zeroblob(40) WHERE last_us = (SELECT min(last_us) FROM segment)"
        )
        connection.execute(
            "UPDATE segment SET did_bits = x'00' WHERE last_us = (SELECT max(last_us) FROM segment)"
        )
    found = await log.holds({event.key for event in EVENTS})
    assert EVENTS[0].key not in found
    assert EVENTS[100].key in found
    await log.close()


async def test_what_cannot_be_searched_holds_nothing_and_ends_nothing(tmp_path: Path) -> None:
    log = await filled(tmp_path)
    await log.maintain()
    with closing(sqlite3.connect(tmp_path / DATABASE)) as connection, connection:
        connection.execute("ALTER TABLE segment RENAME TO lost")
    assert (await log.holds([EVENTS[0].key, EVENTS[-1].key])).keys() == {EVENTS[-1].key}
    log._upkeep._task.cancel()
    await log.close()


# Where an event is, and what comes after it


async def test_the_oldest_kept_keys_follow_the_floor_and_pass_over_damage(
    tmp_path: Path,
) -> None:
    log = await filled(tmp_path, replace(SMALL, scan_segments=4))
    await log.maintain()
    await trim(log, 100)
    with closing(sqlite3.connect(tmp_path / DATABASE)) as connection, connection:
        connection.execute(
            "UPDATE segment SET dids = zeroblob(40) WHERE last_us = (SELECT min(last_us) FROM segment)"
        )
    keys = await log.keys_from(0, 1_000)
    assert EVENTS[50].key not in keys
    assert len({event.key for event in EVENTS[100:180]} & keys) >= 40
    await log.close()
