"""Retention by time goes by when an event was stored, also where positions do not say it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from jetstream.conditions import Conditions
from jetstream.eventlog import Changes, SourceCursor
from jetstream.eventlog.sqlite.ages import ROWS_MAX
from jetstream.eventlog.sqlite.reservation import Machine
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.filter import EVERYTHING

BatchOf = Callable[[range], Batch]
CURSOR = {"a:1": SourceCursor(7)}
SECOND = 1_000_000
HOUR = 3600 * SECOND
YEAR = 365 * 24 * HOUR
BEGAN = 1_700_000_000 * SECOND


class WrongClock:
    """A log on a machine whose clock can be set; events are stored as a stamper stamps them."""

    def __init__(self, directory: Path, batch_of: BatchOf) -> None:
        self.directory = directory
        self.batch_of = batch_of
        self.elapsed = 0
        self.offset = BEGAN
        self.boot = "this-boot"
        self.log: SqliteLog

    async def open(self, retention_s: float = 60.0) -> None:
        self.log = await SqliteLog.open(
            self.directory,
            retention_s=retention_s,
            clock=lambda: self.elapsed + self.offset,
            machine=Machine(self.boot, lambda: self.elapsed),
            limits=LogLimits(segment_events=20, upkeep_interval_s=3600.0),
        )

    async def open_again(self, retention_s: float = 60.0) -> None:
        await self.log.close()
        await self.open(retention_s)

    async def run(self, seconds: int, events: int = 10) -> None:
        """Store some events each second, and do the upkeep."""
        for _ in range(seconds):
            self.elapsed += SECOND
            if events:
                first = max(self.elapsed + self.offset, self.log.tip + 1)
                await self.log.append(self.batch_of(range(first, first + events)), Changes(CURSOR))
            await self.log.maintain()

    @property
    def kept(self) -> int:
        return self.log.statistics().events


@pytest.fixture
async def machine(tmp_path: Path, batch_of: BatchOf) -> WrongClock:
    machine = WrongClock(tmp_path, batch_of)
    await machine.open()
    return machine


async def test_with_a_right_clock_nothing_is_noted(machine: WrongClock) -> None:
    await machine.run(90)
    assert 590 <= machine.kept <= 640
    assert machine.log._state.writer.execute("SELECT count(*) FROM stored").fetchone() == (0,)
    await machine.log.close()


@pytest.mark.parametrize("step", [2 * HOUR, YEAR, 70 * YEAR])
async def test_positions_in_the_future_are_trimmed_by_when_they_were_stored(
    machine: WrongClock, step: int
) -> None:
    """The process began with a wrong clock; then it is set right."""
    machine.offset += step
    await machine.run(20)
    machine.offset -= step
    await machine.run(50)
    assert machine.kept >= 600
    await machine.run(60)
    assert 590 <= machine.kept <= 640
    await machine.run(80, events=0)
    assert machine.kept == 0
    await machine.log.close()


async def test_events_of_before_the_wrong_time_are_not_kept_for_longer(machine: WrongClock) -> None:
    await machine.run(50)
    machine.offset += 2 * HOUR
    await machine.run(3)
    machine.offset -= 2 * HOUR
    await machine.run(30)
    assert 590 <= machine.kept <= 660
    await machine.log.close()


@pytest.mark.parametrize("step", [90 * SECOND, 2 * HOUR, 54 * YEAR])
async def test_a_clock_that_is_set_ahead_makes_no_event_older(machine: WrongClock, step: int) -> None:
    """The machine booted in 1970, say, and NTP has set its clock since; the clock given has followed."""
    await machine.run(50)
    machine.offset += step
    await machine.run(5)
    assert machine.kept == 550
    await machine.run(40)
    assert 590 <= machine.kept <= 660
    await machine.log.close()


async def test_a_clock_that_is_set_ahead_and_back_changes_no_age(machine: WrongClock) -> None:
    for _ in range(3):
        await machine.run(15)
        machine.offset += 2 * HOUR
        await machine.run(5)
        machine.offset -= 2 * HOUR
    await machine.run(40)
    assert 560 <= machine.kept <= 700
    await machine.run(80, events=0)
    assert machine.kept == 0
    await machine.log.close()


async def test_ages_survive_a_restart(machine: WrongClock) -> None:
    machine.offset += YEAR
    await machine.run(20)
    machine.offset -= YEAR
    await machine.run(20)
    await machine.log.close()
    machine.elapsed += 30 * SECOND
    await machine.open()
    assert machine.log.clock_offset_us == machine.offset
    await machine.run(1)
    assert machine.kept > 200
    await machine.run(15)
    assert machine.kept <= 400
    await machine.log.close()


async def test_a_clock_that_is_set_while_no_process_runs_changes_no_age_in_the_same_boot(
    machine: WrongClock,
) -> None:
    await machine.run(20)
    await machine.log.close()
    machine.offset += YEAR
    await machine.open()
    await machine.run(1)
    assert machine.kept == 210
    await machine.log.close()


async def test_another_boot_has_no_offset_to_go_on_with(machine: WrongClock) -> None:
    await machine.run(3)
    await machine.log.close()
    machine.boot = "another"
    await machine.open()
    assert machine.log.clock_offset_us is None
    await machine.log.close()


async def test_what_is_noted_is_bounded(machine: WrongClock) -> None:
    await machine.open_again(retention_s=10_000.0)
    machine.offset += YEAR
    await machine.run(3)
    machine.offset -= YEAR
    await machine.run(100)
    (rows,) = machine.log._state.writer.execute("SELECT count(*) FROM stored").fetchone()
    assert rows <= 12  # one in ten seconds, a thousandth of the retention
    await machine.open_again(retention_s=5.0)
    await machine.run(20)
    (rows,) = machine.log._state.writer.execute("SELECT count(*) FROM stored").fetchone()
    assert rows <= 20
    machine.offset += YEAR
    await machine.run(1)
    assert machine.log._state.writer.execute("SELECT count(*) FROM stored").fetchone()[0] <= ROWS_MAX
    await machine.log.close()


async def test_everything_that_is_kept_can_be_read(machine: WrongClock) -> None:
    machine.offset += YEAR
    await machine.run(20)
    machine.offset -= YEAR
    await machine.run(70)
    position, times = machine.log.floor, []
    while (batch := await machine.log.read(position, 1 << 62, EVERYTHING)) is not None:
        times += batch.times[batch.index(position) :]
        position = batch.last + 1
    assert len(times) == machine.kept
    assert times == sorted(set(times))
    await machine.log.close()


async def test_a_write_ahead_log_that_is_held_is_a_condition_until_it_is_let_go(
    tmp_path: Path, batch_of: BatchOf
) -> None:
    limits = LogLimits(wal_bytes=100_000, wal_bytes_alarm=200_000)
    conditions = Conditions()
    log = await SqliteLog.open(tmp_path, conditions=conditions, limits=limits)
    await log.append(batch_of(range(1, 10)), Changes(CURSOR))
    other = sqlite3.connect(tmp_path / "jetstream.db", isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM state").fetchone()
    for start in range(10, 3_000, 50):
        await log.append(batch_of(range(start, start + 50)), Changes(CURSOR))
        await log.maintain()
    assert log.statistics().wal_bytes > 200_000
    assert "jetstream.db-wal is" in conditions.reasons["wal"]
    assert "another program" in conditions.reasons["wal"]
    other.close()
    await log.maintain()
    await log.maintain()
    assert log.statistics().wal_bytes < 200_000
    assert not conditions.reasons
    await log.close()
