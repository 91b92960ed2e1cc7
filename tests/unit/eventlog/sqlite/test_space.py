"""A disk that the log fills, or that another program does, and what gets the log out of that again."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.full_disk import fill, small_disk
from tests.unit.eventlog.events import make_event

from jetstream.conditions import Conditions
from jetstream.errors import LogUnwritable
from jetstream.eventlog import Changes, SourceCursor
from jetstream.eventlog.sqlite.check import check
from jetstream.eventlog.sqlite.connection import open_writer, wal_bytes
from jetstream.eventlog.sqlite.repair import repair
from jetstream.eventlog.sqlite.reservation import Machine
from jetstream.eventlog.sqlite.schema import DATABASE
from jetstream.eventlog.sqlite.space import FILE, SEAL_BYTES, STEP_BYTES, Space
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.filter import EVERYTHING

CURSOR = {"relay.example:443": SourceCursor(7)}
SECOND = 1_000_000
BY_HAND = LogLimits(segment_events=200, upkeep_interval_s=3600.0)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "6m") as directory:
        yield directory


def nothing() -> None:
    pass


class Writer:
    """Stores a hundred events of 400 random letters each second of a clock of its own."""

    now = 1_700_000_000 * SECOND  # of all

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.dice = random.Random(1)
        self.stored = 0
        # What another program does when upkeep looks at the clock.
        self.meanwhile: Callable[[], object] = nothing
        self.log: SqliteLog

    async def open(self, **options: Any) -> None:
        self.log = await SqliteLog.open(
            self.directory,
            clock=self.clock,
            machine=Machine("this-boot", lambda: Writer.now),
            limits=BY_HAND,
            **options,
        )

    def clock(self) -> int:
        self.meanwhile()
        return self.now

    async def store(self, count: int = 100) -> None:
        Writer.now += SECOND
        bodies = [b'{"x":"%s"}' % self.dice.randbytes(200).hex().encode() for _ in range(count)]
        events = [make_event(self.stored + n)._replace(body=body) for n, body in enumerate(bodies)]
        await self.log.append(Batch.of(events, range(self.now, self.now + count)), Changes(CURSOR))
        self.stored += count

    async def upkeep(self) -> None:
        try:
            await self.log.maintain()
        except LogUnwritable:
            self.log._state.space.full = True

    async def store_soon(self) -> None:
        """Store as the server does: again after upkeep, three times at most."""
        for _ in range(3):
            try:
                await self.store()
            except LogUnwritable:
                await self.upkeep()
            else:
                return
        await self.store()

    async def fill(self) -> None:
        for _ in range(2_000):
            try:
                await self.store()
            except LogUnwritable:
                await self.upkeep()
                try:
                    await self.store()
                except LogUnwritable:
                    return
            await self.upkeep()
        raise AssertionError("the disk is never full")

    async def held(self) -> int:
        position, held = self.log.floor, 0
        while (batch := await self.log.read(position, 1 << 62, EVERYTHING)) is not None:
            held += len(batch) - batch.index(position)
            position = batch.last + 1
        assert held == self.log.statistics().events
        return held


@pytest.fixture
async def writer(disk: Path) -> Writer:
    writer = Writer(disk)
    await writer.open(retention_s=3600.0)
    await writer.fill()
    return writer


async def test_a_log_that_fills_the_disk_recovers_when_retention_is_due(writer: Writer) -> None:
    held = await writer.held()
    assert not writer.log.statistics().writable
    Writer.now += 3600 * SECOND
    for _ in range(20):
        await writer.store_soon()
    assert writer.log.statistics().writable
    assert 0 < await writer.held() < held
    await writer.upkeep()
    assert (writer.directory / FILE).stat().st_blocks * 512 == writer.log._state.space.reserve_size > 0
    await writer.log.close()


async def test_a_restart_with_less_retention_frees_the_disk(writer: Writer) -> None:
    await writer.log.close()
    await writer.open(retention_s=20.0)
    await writer.store_soon()
    await writer.upkeep()
    assert await writer.held() <= 2_200
    await writer.log.close()
    assert check(writer.directory).problems == []


async def test_a_process_that_is_killed_on_a_full_disk_comes_back_and_recovers(
    writer: Writer, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "copy", "6m") as copy:
        for path in writer.directory.iterdir():
            if path.name != FILE:
                shutil.copy(path, copy)
        fill(copy)
        (copy / "filler").unlink()
        again = Writer(copy)
        await again.open(retention_s=20.0)
        await again.store_soon()
        await again.upkeep()
        assert await again.held() <= 2_200
        await again.log.close()
    await writer.log.close()


async def test_a_log_on_a_full_disk_is_repaired_in_place(writer: Writer) -> None:
    await writer.log.close()
    with closing(open_writer(writer.directory / DATABASE)) as connection:
        (key,) = connection.execute(
            "SELECT last_us FROM segment ORDER BY last_us LIMIT 1 OFFSET 3"
        ).fetchone()
        connection.execute("UPDATE segment SET bodies = zeroblob(length(bodies)) WHERE last_us = ?", (key,))
    before = check(writer.directory)
    assert before.problems
    found, aside = repair(writer.directory)
    assert aside is None
    assert found.events == before.events
    assert check(writer.directory).problems == []
    assert [path.name for path in writer.directory.iterdir() if "new" in path.name] == []


async def test_a_whole_log_on_a_full_disk_is_left_alone(writer: Writer) -> None:
    await writer.log.close()
    fill(writer.directory)
    found, aside = repair(writer.directory)
    assert (found.problems, aside) == ([], None)


async def test_a_lost_reservation_is_made_again_on_a_full_disk(writer: Writer) -> None:
    await writer.log.close()
    (writer.directory / "jetstream.reserved").write_bytes(b"")
    fill(writer.directory)
    found, aside = repair(writer.directory)
    assert (len(found.problems), aside) == (1, None)
    assert check(writer.directory).problems == []


async def test_pages_that_are_damaged_on_a_full_disk_need_room_and_the_error_says_how_much(
    writer: Writer,
) -> None:
    await writer.log.close()
    path = writer.directory / DATABASE
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 8192 * 4096)
        file.write(b"\xff" * 8192)
    fill(writer.directory)
    with pytest.raises(LogUnwritable, match=r"takes up to [0-9]+ MiB"):
        repair(writer.directory)
    assert [path.name for path in writer.directory.iterdir() if "new" in path.name] == []


async def test_another_program_that_fills_the_disk_holds_nothing_back_when_it_is_gone(disk: Path) -> None:
    writer = Writer(disk)
    await writer.open(retention_s=3600.0)
    for _ in range(10):
        await writer.store()
        await writer.upkeep()
    filler = fill(disk)
    refused = 0
    for _ in range(200):
        try:
            await writer.store()
        except LogUnwritable:
            refused += 1
        await writer.upkeep()
    assert refused
    held = await writer.held()
    filler.unlink()
    await writer.upkeep()
    await writer.store()
    assert await writer.held() == held + 100
    await writer.log.close()


async def test_retention_is_kept_though_another_program_has_filled_the_disk(disk: Path) -> None:
    writer = Writer(disk)
    await writer.open(retention_s=10.0)
    for _ in range(50):
        await writer.store()
        await writer.upkeep()
    fill(disk)
    for _ in range(100):
        try:
            await writer.store()
        except LogUnwritable:
            writer.log._state.space.full = True
        await writer.upkeep()
    oldest_us = writer.log.statistics().oldest_us
    assert oldest_us is None or Writer.now - oldest_us <= 20 * SECOND
    assert await writer.held() <= 2_000
    await writer.log.close()


async def test_another_program_does_not_get_the_reserve_where_nothing_is_due(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "9m") as disk:
        writer = Writer(disk)
        await writer.open(retention_s=3600.0)
        await writer.fill()
        space = writer.log._state.space
        before = (disk / FILE).stat()
        writer.meanwhile = partial(fill, disk)  # whenever upkeep looks at the clock
        for _ in range(5):
            with suppress(LogUnwritable):
                await writer.store()
            await writer.upkeep()
        after = (disk / FILE).stat()
        assert (after.st_ino, after.st_blocks) == (before.st_ino, before.st_blocks)
        assert space.free() == 0

        writer.meanwhile = nothing
        held = await writer.held()
        Writer.now += 3600 * SECOND
        for _ in range(20):
            await writer.store_soon()
        assert 0 < await writer.held() < held
        await writer.upkeep()
        assert space.reserve_held == space.reserve_size
        await writer.log.close()


async def test_appends_go_on_with_what_the_log_does_not_need_of_the_reserve(tmp_path: Path) -> None:
    """Another program has filled the disk, and then takes what was cut and not used."""
    with small_disk(tmp_path / "disk", "64m") as disk:
        writer = Writer(disk)
        await writer.open(retention_s=3600.0)
        await writer.upkeep()
        space = writer.log._state.space
        fill(disk)
        assert (space.free(), space.reserve_held) == (0, 8 << 20)
        with suppress(LogUnwritable):
            while True:
                await writer.store()
                await writer.log.maintain()
        total = space.free() + space.reserve_held
        assert 2 * (STEP_BYTES + SEAL_BYTES) <= total < 5 << 20
        fill(disk)
        assert 2 * STEP_BYTES < space.reserve_held < total
        await writer.upkeep()

        Writer.now += 3600 * SECOND
        for _ in range(20):
            await writer.store_soon()
        assert await writer.held() == 2_000
        await writer.log.close()


async def test_a_long_write_ahead_log_is_copied_with_what_is_lent_of_the_reserve(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64m") as disk:
        writer = Writer(disk)
        await writer.open(retention_s=3600.0)
        await writer.store()
        await writer.upkeep()
        space = writer.log._state.space
        space.allowance = 0  # the file system is asked
        fill(disk)
        await writer.store(3_600)
        assert wal_bytes(disk / DATABASE) > space.free() > 0
        await writer.log.maintain()
        assert await writer.held() == 3_700
        assert space.reserve_held > 3 << 20
        await writer.log.close()


async def test_opening_a_log_on_a_full_disk_leaves_what_is_needed_in_reserve(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64m") as disk:
        writer = Writer(disk)
        await writer.open(retention_s=3600.0)
        await writer.store()
        await writer.upkeep()
        await writer.log.close()
        fill(disk)
        await writer.open(retention_s=3600.0)
        assert writer.log._state.space.reserve_held > 4 << 20
        await writer.store()
        assert await writer.held() == 200
        await writer.log.close()


def test_the_reserve_is_taken_released_and_taken_back(disk: Path) -> None:
    space = Space(disk)
    assert space.reserve_size == (6 << 20) // 8
    room = space.room()
    assert space.take_reserve()
    assert (disk / FILE).stat().st_blocks * 512 == space.reserve_size
    assert Space(disk).reserve_held == space.reserve_size
    assert abs(space.room() - room) <= 4096
    filler = fill(disk)
    assert space.free() == 0
    space.release_reserve()
    assert space.free() >= space.reserve_size
    assert not (disk / FILE).exists()
    assert not space.take_reserve()
    filler.unlink()
    assert space.take_reserve()


@pytest.mark.parametrize("wal_mib", [0, 1, 3])
def test_the_reserve_is_cut_to_what_copying_the_write_ahead_log_needs(tmp_path: Path, wal_mib: int) -> None:
    with small_disk(tmp_path / "disk", "64m") as disk:
        (disk / f"{DATABASE}-wal").write_bytes(bytes(wal_mib << 20))
        space = Space(disk)
        assert space.take_reserve()
        fill(disk)
        assert space.room() == 0
        room = (8 - wal_mib << 20) // 2 - STEP_BYTES
        assert space.make_room(room + 1) == 0
        assert space.reserve_held == 8 << 20
        assert space.make_room(1 << 19) == space.room() == room
        assert (disk / FILE).stat().st_blocks * 512 == space.reserve_held
        assert space.reserve_held >= (wal_mib << 20) + 2 * STEP_BYTES
        assert not space.take_reserve()
        assert space.room() == room


def test_what_is_lent_of_the_reserve_is_taken_back(disk: Path) -> None:
    space = Space(disk)
    space.take_reserve()
    filler = fill(disk, leave=8192)
    space.lend(4096)
    assert (space.free(), space.reserve_held) == (8192, space.reserve_size)
    space.lend(16_384)
    assert (space.free(), space.reserve_held) == (16_384, space.reserve_size - 8192)
    space.lend(1 << 30)
    assert (space.free(), space.reserve_held) == (space.reserve_size + 8192, 0)
    filler.unlink()
    assert space.take_reserve()


@pytest.mark.parametrize("left", [None, 0, 4096])
async def test_a_reserve_that_somebody_deletes_or_cuts_is_made_again(disk: Path, left: int | None) -> None:
    writer = Writer(disk)
    await writer.open(retention_s=3600.0)
    await writer.store()
    await writer.upkeep()
    if left is None:
        (disk / FILE).unlink()
    else:
        os.truncate(disk / FILE, left)
    await writer.upkeep()
    size = writer.log._state.space.reserve_size
    assert (disk / FILE).stat().st_blocks * 512 == writer.log._state.space.reserve_held == size > 0
    await writer.log.close()


def test_nothing_is_committed_while_room_is_made_with_the_reserve(tmp_path: Path) -> None:
    space = Space(tmp_path)
    space.spend(1_000)
    space.freeing = True
    with pytest.raises(LogUnwritable, match="the disk is full"):
        space.spend(1)
    space.freeing = False
    space.spend(1)


async def test_a_disk_without_room_for_the_reserve_is_a_condition_until_there_is_some(disk: Path) -> None:
    filling = fill(disk, leave=1 << 20)
    conditions = Conditions()
    with capture_logs() as lines:
        log = await SqliteLog.open(disk, conditions=conditions)
        await log.maintain()
        await log.maintain()
        assert f"the disk of {disk} has no room for " in conditions.reasons["disk_low"]
        filling.unlink()
        await log.maintain()
        await log.close()
    assert conditions.reasons == {}
    assert [line["event"] for line in lines if "the disk" in line["event"]] == [
        "degraded: the disk is nearly full",
        "recovered from: the disk is nearly full",
    ]


async def test_a_directory_that_is_gone_stops_appends_and_not_upkeep(tmp_path: Path) -> None:
    log = await SqliteLog.open(tmp_path / "log", limits=BY_HAND)
    await log.append(Batch.of([make_event(1)], [1]), Changes(CURSOR))
    (tmp_path / "log").rename(tmp_path / "away")
    log._state.space.allowance = 0
    with pytest.raises(LogUnwritable, match="No such file"):
        await log.append(Batch.of([make_event(2)], [2]), Changes(CURSOR))
    with pytest.raises(LogUnwritable, match="No such file"):
        await log.maintain()
    assert not log.statistics().writable
    (tmp_path / "away").rename(tmp_path / "log")
    await log.maintain()
    await log.append(Batch.of([make_event(2)], [2]), Changes(CURSOR))
    assert log.statistics().writable
    await log.close()


async def test_a_file_system_that_does_not_say_what_is_free_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.statvfs", lambda _path: SimpleNamespace(f_blocks=0, f_bavail=0, f_frsize=4096))
    writer = Writer(tmp_path)
    await writer.open()
    await writer.store()
    await writer.log.maintain()
    assert await writer.held() == 100
    await writer.log.close()


def test_a_large_disk_has_a_bounded_reserve(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    size = disk.f_blocks * disk.f_frsize
    assert Space(tmp_path).reserve_size == min(16 << 20, size // 8)


async def test_what_waits_in_the_journal_is_stored_with_the_reserve(tmp_path: Path) -> None:
    size = "32m"  # the reserve is large enough for opening to leave it alone
    with small_disk(tmp_path / "disk", size) as disk, small_disk(tmp_path / "copy", size) as copy:
        writer = Writer(disk)
        await writer.open()
        await writer.store()
        await writer.upkeep()
        for number in range(100, 180):
            Writer.now += SECOND
            body = b'{"x":"%s"}' % writer.dice.randbytes(1_000).hex().encode()
            event = make_event(number)._replace(body=body)
            await writer.log.append(Batch.of([event], [Writer.now]), Changes(CURSOR))
        for path in disk.iterdir():
            shutil.copy(path, copy)
        fill(copy, leave=96 << 10)
        again = Writer(copy)
        await again.open()
        assert await again.held() == 180
        await again.log.close()
        await writer.log.close()
