"""Opening a log. After a clean end, a crash and a loss of power, the steps are the same.

1. Take the lock. It shows that no other process writes.
2. Delete files that a killed process left half-written. On a full disk, release the reserve.
3. Open the database. SQLite replays the write-ahead log up to its last whole commit.
4. Read the state. The tip is the highest position that may have been given out: that of the last commit, or
   after another boot the reserved one.
5. Read the tail into memory, without records for which there is a tombstone. What is damaged in it is noted.

The segments are not read, so opening takes about the same time whatever the log holds. A restart after a
crash needs no more than this: events and cursors were committed together, and upstream is asked for what
follows the cursors.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from jetstream.conditions import Conditions
from jetstream.eventlog import Cursors
from jetstream.eventlog.hot_tail import HotTail
from jetstream.eventlog.sqlite import erase
from jetstream.eventlog.sqlite.ages import read_offset
from jetstream.eventlog.sqlite.checkpoint import Checkpointer
from jetstream.eventlog.sqlite.connection import TranslatedErrors, open_writer
from jetstream.eventlog.sqlite.damage import Damage, DamageRecord, damage_problem
from jetstream.eventlog.sqlite.lock import take_lock
from jetstream.eventlog.sqlite.machine import Machine
from jetstream.eventlog.sqlite.reader import FileReader
from jetstream.eventlog.sqlite.reservation import NEW_FILE, Reservation
from jetstream.eventlog.sqlite.schema import DATABASE, POSITION_MAX, oldest_us, read_cursors
from jetstream.eventlog.sqlite.space import Space
from jetstream.limits import LogLimits


@dataclass(slots=True)
class LogState:
    """An open log: its files, and what the event loop knows of what they hold.

    Only the event loop's thread changes it. `SqliteLog` does after each commit, `Upkeep` after each of its
    steps.
    """

    # The database.
    path: Path
    # The descriptor that holds the lock. Closed last.
    lock: int
    # The connection that appends: for the event loop's thread, with `writing` held.
    writer: sqlite3.Connection
    # The connection of upkeep, and what makes its checkpoints: for the upkeep thread.
    upkeep: sqlite3.Connection
    checkpointer: Checkpointer
    # Positions that are reserved on disk, room on the disk, and damage that was found.
    reservation: Reservation
    space: Space
    damages: DamageRecord
    limits: LogLimits
    # The highest position that may have been given out, 0 for none. Rises with each append.
    tip: int
    # The lowest position from which nothing is missing. Rises when events are trimmed.
    floor: int
    # Events that were ever appended. Rises with each append.
    appended: int
    # Events that are stored, and of those the ones that are not sealed.
    events: int
    tail_events: int
    # The position of the oldest event, None in an empty log.
    oldest_us: int | None
    # The cursor of each source, as of the last append.
    cursors: Cursors
    # The newest events in memory.
    hot_tail: HotTail
    # The offset of the clock that this boot has stored, see `ages`; None if it has stored none.
    stored_offset_us: int | None
    # False from an append that failed until one that succeeded.
    writable: bool = True
    # Held for one short transaction by each write to the database: an append, or an exclusive step of upkeep.
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)


def open_log(
    directory: Path, machine: Machine, now_us: int, conditions: Conditions, limits: LogLimits
) -> LogState:
    """Open the log in `directory`, or create one. Raises LogLocked, LogCorrupt or LogUnwritable."""
    lock = take_lock(directory)
    try:
        for name in (NEW_FILE, *(f"{DATABASE}.new{suffix}" for suffix in ("", "-wal", "-shm"))):
            with suppress(OSError):
                (directory / name).unlink()
        with TranslatedErrors(directory / DATABASE):
            space = Space(directory, limits)
            if space.room() <= 0:
                space.release_reserve()  # opening writes
            return _open(directory, lock, space, machine, now_us, conditions, limits)
    except BaseException:
        os.close(lock)
        raise


def _open(
    directory: Path,
    lock: int,
    space: Space,
    machine: Machine,
    now_us: int,
    conditions: Conditions,
    limits: LogLimits,
) -> LogState:
    path = directory / DATABASE
    is_new = not path.exists() or not path.stat().st_size
    writer = open_writer(path)
    tip, floor, events, removed = writer.execute(
        "SELECT extent.tip_us, extent.floor_us, events, removed FROM extent, state"
    ).fetchone()
    reservation = Reservation(directory, machine)
    restored = reservation.restored_tip(tip, now_us, is_new=is_new)
    if restored > tip:
        # Stored before a reservation of this boot replaces the one that tells.
        writer.execute("UPDATE state SET tip_us = ?", (restored,))
    upkeep = open_writer(path)
    # Upkeep makes no commit wait: a checkpoint that finds the file busy is tried again later.
    upkeep.execute(f"PRAGMA busy_timeout = {limits.checkpoint_wait_ms}")
    wal_bytes_max = min(limits.wal_bytes, space.reserve_size or limits.wal_bytes)
    damage: list[Damage] = []
    hot_tail = _hot_tail(FileReader(writer, limits, damage), floor)
    damages = DamageRecord(path, conditions, limits.damage_ranges)
    damages.add(damage)
    oldest, tail_events = read_extent(upkeep, floor)
    space.full = space.room() <= 0
    return LogState(
        path,
        lock,
        writer,
        upkeep,
        Checkpointer(path, upkeep, machine, wal_bytes_max),
        reservation,
        space,
        damages,
        limits,
        tip=restored,
        floor=floor,
        appended=events + removed,
        events=events,
        tail_events=tail_events,
        oldest_us=oldest,
        cursors=read_cursors(writer),
        hot_tail=hot_tail,
        stored_offset_us=read_offset(upkeep, machine),
    )


def _hot_tail(reader: FileReader, floor: int) -> HotTail:
    """Read all rows of the tail: they follow the last segment, or the floor if there is none."""
    (sealed_us,) = reader.connection.execute("SELECT max(last_us) FROM segment").fetchone()
    hot_tail = HotTail(floor if sealed_us is None else sealed_us + 1, reader.limits)
    for row in reader.tail_rows(0, POSITION_MAX):
        hot_tail.append(row.columns.batch())
    hot_tail.erase(erase.read_tombstones(reader.connection))
    return hot_tail


def read_extent(connection: sqlite3.Connection, floor: int) -> tuple[int | None, int]:
    """Return the position of the oldest event, None in an empty log, and how many events are not sealed.

    Where the oldest event cannot be read, its position counts as the floor.
    """
    (tail_events,) = connection.execute("SELECT ifnull(sum(events), 0) FROM tail").fetchone()
    try:
        return oldest_us(connection), tail_events
    except sqlite3.DatabaseError as error:
        if damage_problem(error) is None:
            raise
        return floor, tail_events
