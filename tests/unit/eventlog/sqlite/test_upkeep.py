"""Upkeep seals, trims, erases and checkpoints, and an append waits for none of what takes long."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.eventlog.events import make_event
from tests.unit.eventlog.reading import times_from
from tests.unit.eventlog.trimming import trim

from jetstream.conditions import Conditions
from jetstream.errors import LogCorrupt
from jetstream.eventlog import Changes, Cursors
from jetstream.eventlog.columns import Damaged
from jetstream.eventlog.segment import Segment
from jetstream.eventlog.sqlite import rewrite
from jetstream.eventlog.sqlite.reservation import FILE, Machine
from jetstream.eventlog.sqlite.rewrite import read_tombstones
from jetstream.eventlog.sqlite.schema import DATABASE
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.did_set import DidSet
from jetstream.model.event import ACCOUNT, CREATE, Event
from jetstream.model.filter import Filter

BatchOf = Callable[[range], Batch]
SMALL = LogLimits(segment_events=100, journal_bytes=0)
BY_HAND = LogLimits(segment_events=100, upkeep_interval_s=3600.0)
LEAVER = b"did:plc:leaver"
ALL_OF_LEAVER = Filter(dids=DidSet({LEAVER}))
SECRET = b'{"text":"what only this account said"}'
DELETED = b'{"active":false,"status":"deleted"}'


def account_deleted() -> Event:
    return Event(ACCOUNT, LEAVER, b"", b"", b"", b"", DELETED)


async def filled(
    directory: Path,
    batch_of: BatchOf,
    cursor: Cursors,
    last: int,
    limits: LogLimits = SMALL,
    **options: Any,
) -> SqliteLog:
    """Open a log of events from 1 to `last`, sealed but for the end."""
    log = await SqliteLog.open(directory, limits=limits, **options)
    for start in range(1, last, 50):
        await log.append(batch_of(range(start, start + 50)), Changes(cursor))
    await log.maintain()
    return log


async def erased(log: SqliteLog) -> None:
    """Let upkeep erase all that is to be erased."""
    await log.maintain()
    while read_tombstones(log._state.writer):
        await log.maintain()


# Trimming


async def test_the_files_stay_within_their_bound(tmp_path: Path, cursor: Cursors) -> None:
    limits = LogLimits(wal_bytes=1 << 20, segment_events=500, retention_bytes_min=0)
    bound = 8 << 20
    dice = random.Random(3)
    log = await SqliteLog.open(tmp_path, retention_bytes=bound, limits=limits)
    largest = 0
    for start in range(1, 60_000, 1000):
        bodies = [b'{"x":"%s"}' % dice.randbytes(150).hex().encode() for _ in range(1000)]
        events = [make_event(start + n)._replace(body=body) for n, body in enumerate(bodies)]
        await log.append(Batch.of(events, range(start, start + 1000)), Changes(cursor))
        await log.maintain()
        largest = max(largest, log.statistics().bytes_on_disk)
    held = await times_from(log, log.floor)
    await log.close()
    assert bound * 0.7 < largest <= bound
    assert held == list(range(log.floor, 60_001))
    assert len(held) > 5_000


# Erasing


async def test_what_was_erased_from_the_tail_is_overwritten_in_the_file(
    tmp_path: Path, cursor: Cursors
) -> None:
    log = await SqliteLog.open(tmp_path)
    await log.append(
        Batch.of([Event(CREATE, LEAVER, b"a.b.c", b"k", b"r", b"bafy", SECRET)], [1]), Changes(cursor)
    )
    await log.append(Batch.of([account_deleted()], [2]), Changes(cursor))
    await erased(log)
    await log.close()
    stored = (tmp_path / DATABASE).read_bytes()
    assert DELETED in stored
    assert SECRET not in stored


# Failing


async def test_damage_that_hinders_sealing_ends_upkeep_and_the_next_append_says_so(
    tmp_path: Path, batch_of: BatchOf, cursor: Cursors, monkeypatch: pytest.MonkeyPatch
) -> None:
    def store_segment(_connection: sqlite3.Connection, _segment: Segment) -> int:
        raise Damaged("a page of the tail")

    monkeypatch.setattr(rewrite, "store_segment", store_segment)
    log = await SqliteLog.open(tmp_path, limits=BY_HAND)
    await log.append(batch_of(range(1, 200)), Changes(cursor))
    await asyncio.wait([log._upkeep._task])
    with pytest.raises(LogCorrupt, match=r"a page of the tail.*log repair"):
        await log.append(batch_of(range(6000, 6001)), Changes(cursor))
    await log.close()


async def test_damage_that_hinders_trimming_is_told_and_all_else_goes_on(
    tmp_path: Path, batch_of: BatchOf, cursor: Cursors, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise Damaged("a page of the oldest segments")

    monkeypatch.setattr("jetstream.eventlog.sqlite.trim.trim", fail)
    conditions = Conditions()
    log = await filled(
        tmp_path, batch_of, cursor, 300, retention_s=1.0, clock=lambda: 10**12, conditions=conditions
    )
    assert "a page of the oldest segments" in conditions.reasons["damage"]
    await log.append(batch_of(range(301, 401)), Changes(cursor))
    await log.maintain()
    assert await times_from(log) == list(range(1, 401))
    await log.close()


# What an append waits for


READING = ["SELECT * FROM tail"]


class Statements:
    """The statements of a connection, and whether threads got the GIL quickly while each ran."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._usual_s = sys.getswitchinterval()
        self._seen: list[tuple[str, bool]] = []
        connection.set_trace_callback(
            lambda statement: self._seen.append((statement, sys.getswitchinterval() < self._usual_s))
        )

    def quick(self, *starts: str) -> list[bool]:
        return [quick for statement, quick in self._seen if statement.startswith(starts)]


async def test_a_step_that_appends_wait_for_gets_the_gil_quickly_and_others_leave_it_to_the_loop(
    tmp_path: Path, batch_of: BatchOf, cursor: Cursors
) -> None:
    log = await SqliteLog.open(tmp_path, limits=BY_HAND)
    statements = Statements(log._state.upkeep)
    await log.append(batch_of(range(1, 100)), Changes(cursor))
    await log.append(batch_of(range(100, 200)), Changes(cursor))
    await log.maintain()
    await trim(log, 150)
    await log.close()
    writes = statements.quick("BEGIN", "INSERT", "DELETE", "COMMIT")
    assert len(writes) > 8
    assert all(writes)
    assert not any(statements.quick(*READING))


@pytest.mark.parametrize(("backlog_events", "quick"), [(150, True), (200, False)])
async def test_sealing_that_has_fallen_behind_gets_the_gil_quickly(
    tmp_path: Path, batch_of: BatchOf, cursor: Cursors, backlog_events: int, quick: bool
) -> None:
    limits = LogLimits(segment_events=100, upkeep_interval_s=3600.0, seal_backlog_events=backlog_events)
    log = await SqliteLog.open(tmp_path, limits=limits)
    statements = Statements(log._state.upkeep)
    await log.append(batch_of(range(1, 200)), Changes(cursor))
    await log.maintain()
    await log.close()
    first, *others = statements.quick(*READING)
    assert first is quick
    assert others
    assert not any(others)  # nothing is left to seal


async def test_an_append_that_must_reserve_positions_gets_the_gil_quickly(
    tmp_path: Path, batch_of: BatchOf, cursor: Cursors
) -> None:
    usual_s = sys.getswitchinterval()
    quick: list[bool] = []
    machine = Machine("this-boot", sync=lambda _: quick.append(sys.getswitchinterval() < usual_s))
    log = await SqliteLog.open(tmp_path, limits=BY_HAND, machine=machine)
    await log.append(batch_of(range(1, 10)), Changes(cursor))
    assert (tmp_path / FILE).exists()
    assert quick == [True, True]
    await log.close()


async def test_the_write_ahead_log_is_restarted_when_it_is_long(
    tmp_path: Path, batch_of: BatchOf, cursor: Cursors
) -> None:
    log = await SqliteLog.open(tmp_path, limits=LogLimits(wal_bytes=200_000))
    wal = tmp_path / f"{DATABASE}-wal"
    for start in range(1, 40_000, 100):
        await log.append(batch_of(range(start, start + 100)), Changes(cursor))
        await log.maintain()
    assert wal.stat().st_size < 300_000
    (checkpoints,) = log._state.writer.execute("SELECT checkpoints FROM state").fetchone()
    assert 10 < checkpoints < 400  # now and then, and not each time
    assert await times_from(log) == list(range(1, 40_001))
    await log.close()


async def test_a_checkpoint_flushes_what_it_has_copied_while_appends_go_on(
    tmp_path: Path, batch_of: BatchOf, cursor: Cursors
) -> None:
    """SQLite flushes before the write-ahead log is truncated, with appends waiting, if this has not."""
    appends_went_on: list[bool] = []

    def sync(descriptor: int) -> None:
        flushed = os.fstat(descriptor)
        if flushed.st_ino == (tmp_path / DATABASE).stat().st_ino:
            assert flushed.st_size > 100_000  # what the write-ahead log held
            appends_went_on.append(not log._state.writing.locked())

    limits = LogLimits(wal_bytes=200_000, upkeep_interval_s=3600.0, journal_bytes=0)
    log = await SqliteLog.open(tmp_path, limits=limits, machine=Machine("this-boot", sync=sync))
    for start in range(1, 2_000, 100):
        await log.append(batch_of(range(start, start + 100)), Changes(cursor))
    assert log.statistics().wal_bytes > 200_000
    await log.maintain()
    assert appends_went_on == [True]
    assert log.statistics().wal_bytes < 200_000
    await log.close()
