"""Opening a log. After a clean end, a crash and a loss of power, the steps are the same.

1. Take the lock. It shows that no other process writes.
2. Delete files that a killed process left half-written. On a full disk, cut or release the reserve.
3. Open the database. SQLite replays the write-ahead log up to its last whole commit.
4. Store what the journal has beyond it, and overwrite the journal.
5. Read the state. The tip is the highest position that may have been given out: that of the last commit, or
   after another boot the reserved one. A mirror takes positions from elsewhere: it goes on after its last
   commit.
6. Read the tail into memory, without records for which there is a tombstone. What is damaged in it is noted.
7. Read the changes of the states of repositories that are not folded yet.

The segments are not read, so opening takes about the same time whatever the log holds. A restart after a
crash needs no more than this: events and cursors were committed together, and upstream is asked for what
follows the cursors.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from jetstream.conditions import Conditions
from jetstream.eventlog import Cursors
from jetstream.eventlog.damage import DamageRecord
from jetstream.eventlog.hot_tail import HotTail
from jetstream.eventlog.reader import POSITION_MAX
from jetstream.eventlog.sqlite.ages import Ages
from jetstream.eventlog.sqlite.checkpoint import Checkpointer
from jetstream.eventlog.sqlite.connection import Transaction, TranslatedErrors, database_files, open_writer
from jetstream.eventlog.sqlite.damage import is_damage
from jetstream.eventlog.sqlite.gaps import count_gaps
from jetstream.eventlog.sqlite.journal import Journal, recover, store_entries
from jetstream.eventlog.sqlite.lock import take_lock
from jetstream.eventlog.sqlite.reader import FileReader
from jetstream.eventlog.sqlite.repos import ROW_BYTES, RepoStates
from jetstream.eventlog.sqlite.reservation import NEW_FILE, Machine, Reservation
from jetstream.eventlog.sqlite.rewrite import read_tombstones
from jetstream.eventlog.sqlite.schema import DATABASE, oldest_us, read_cursors, read_totals
from jetstream.eventlog.sqlite.space import Space
from jetstream.limits import LogLimits
from jetstream.upstreams import is_mirror


class SqliteOptions(NamedTuple):
    """What a log is opened with: see `SqliteLog.open`."""

    # For how long events are kept, in seconds, and how many bytes the files may take; None: no bound.
    retention_s: float | None
    retention_bytes: int | None
    # Gives unix microseconds; and what is told of lasting states that an operator must know of.
    clock: Callable[[], int]
    conditions: Conditions
    limits: LogLimits
    # The boot and the disk; and whether positions come from another Jetstream.
    machine: Machine
    mirrors: bool = False


class LogState:
    """An open log: its files, and what the event loop knows of what they hold.

    Only the event loop's thread changes it. `SqliteLog` does after each commit, `Upkeep` after each of its
    steps.
    """

    def __init__(self, directory: Path, lock: int, options: SqliteOptions) -> None:
        """Open everything, in the order of the steps at the head of this module. Runs in a thread.

        `lock` is the descriptor that holds the lock. Raises Damaged, sqlite3.DatabaseError or OSError,
        which `open_log` translates.
        """
        # What the log was opened with.
        self.options = options
        self.limits = limits = options.limits
        # The database, and the descriptor that holds the lock. Closed last.
        self.path = directory / DATABASE
        self.lock = lock
        # Room on the disk.
        self.space = Space(directory, limits)
        needed = 2 * limits.journal_bytes  # what is in the journal is stored, with the pages around it
        if self.space.make_room(needed) < needed:
            self.space.release_reserve()
        is_new = not self.path.exists() or not self.path.stat().st_size
        # The connection that appends: for the event loop's thread, with `writing` held.
        self.writer = open_writer(self.path)
        recover(directory, self.writer)
        # Appends that are not in the database yet.
        size = min(limits.journal_bytes, limits.batch_bytes)
        self.journal = Journal(directory, size, limits.batch_events)
        tip, self.appended, self.commits = read_totals(self.writer)
        floor, events = self.writer.execute("SELECT floor_us, events FROM extent").fetchone()
        # Positions that are reserved on disk.
        self.reservation = Reservation(directory, options.machine)
        restored = self.reservation.restored_tip(tip, options.clock(), is_new=is_new)
        # The cursor of each source, as of the last append.
        self.cursors: Cursors = read_cursors(self.writer)
        # The highest position that may have been given out, 0 for none. Rises with each append. A mirror
        # gives out none.
        goes_on = options.mirrors and (is_new or is_mirror((each.seq for each in self.cursors.values()), tip))
        self.tip = tip if goes_on else restored
        if self.tip > tip:
            # Stored before a reservation of this boot replaces the one that tells.
            self.writer.execute("UPDATE state SET tip_us = ?", (self.tip,))
        # The lowest position from which nothing is missing. Rises when events are trimmed.
        self.floor: int = floor
        # Events that are stored. `appended` has all that ever were, `commits` counts those of the database.
        self.events: int = events
        # The connection of upkeep, for its thread.
        self.upkeep = open_writer(self.path)
        # Upkeep makes no commit wait: a checkpoint that finds the file busy is tried again later.
        self.upkeep.execute(f"PRAGMA busy_timeout = {limits.checkpoint_wait_ms}")
        # The newest events in memory.
        reader = FileReader(self.writer, limits)
        self.hot_tail = _hot_tail(reader, floor)
        # Damage that was found.
        self.damages = DamageRecord(self.path, options.conditions, limits.damage_ranges)
        self.damages.add(reader.damage)
        # The position of the oldest event, None in an empty log; how many events are not sealed.
        self.oldest_us, self.tail_events = read_extent(self.upkeep, floor)
        self.space.full = self.space.room() <= 0
        # What makes checkpoints and what watches the clock, through the connection of upkeep.
        self.checkpointer = Checkpointer(self.path, self.upkeep, options.machine)
        self.ages = Ages(self.upkeep, options.machine, options.clock(), options.retention_s)
        # The states of repositories.
        self.repos = RepoStates(self.writer, limits, _states_max(options))
        # Gaps that are kept, or some more: counted again when they are above their bound.
        self.gaps = count_gaps(self.writer)
        # False from an append that failed until one that succeeded.
        self.writable = True
        # Held for one short transaction by each write to the database: an append, or an exclusive step of
        # upkeep.
        self.writing = asyncio.Lock()

    def empty_journal(self) -> None:
        """Move all appends of the journal to the database, with `writing` held.

        Raises sqlite3.DatabaseError.

        Without entries it does nothing. A file that was deleted or replaced is noticed here: see
        `Journal.renew`.
        """
        entries = self.journal.entries
        if entries:
            self.space.make_room(2 * self.limits.journal_bytes)
            with Transaction(self.writer):
                row_id = store_entries(self.writer, entries, self.appended, self.commits + 1)
            self.commits += 1
            self.repos.note_row(row_id)
            self.journal.clear()
            self.journal.renew()


def open_log(directory: Path, options: SqliteOptions) -> LogState:
    """Open the log in `directory`, or create one. Raises LogLocked, LogCorrupt or LogUnwritable."""
    lock = take_lock(directory)
    try:
        for path in (directory / NEW_FILE, *database_files(directory / f"{DATABASE}.new")):
            with suppress(OSError):
                path.unlink()
        with TranslatedErrors(directory / DATABASE):
            return LogState(directory, lock, options)
    except BaseException:
        os.close(lock)
        raise


def _states_max(options: SqliteOptions) -> int:
    """Return how many states of repositories are kept.

    Of the smaller of two bounds: a number, and a share of `--retention-bytes`.
    """
    limits, size = options.limits, options.retention_bytes
    return min(limits.repo_states, int((size or 1 << 60) * limits.repo_states_share) // ROW_BYTES)


def _hot_tail(reader: FileReader, floor: int) -> HotTail:
    """Read all rows of the tail: they follow the last segment, or the floor if there is none."""
    (sealed_us,) = reader.connection.execute("SELECT max(last_us) FROM segment").fetchone()
    hot_tail = HotTail(floor if sealed_us is None else sealed_us + 1, reader.limits)
    for row in reader.tail_rows(0, POSITION_MAX):
        hot_tail.append(row.columns.batch())
    hot_tail.erase(read_tombstones(reader.connection))
    return hot_tail


def read_extent(connection: sqlite3.Connection, floor: int) -> tuple[int | None, int]:
    """Return the position of the oldest event, None in an empty log, and how many events are not sealed.

    Where the oldest event cannot be read, its position counts as the floor.

    Sums up the rows of the tail, which are some thousand events, and finds the first segment by its key.
    """
    (tail_events,) = connection.execute("SELECT ifnull(sum(events), 0) FROM tail").fetchone()
    try:
        return oldest_us(connection), tail_events
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return floor, tail_events
