"""What is done to the file in the background: sealing, trimming, forgetting, checkpoints.

Each step is synchronous and runs in the one maintenance thread. Steps that write are marked *exclusive*:
while one runs, nobody else may write, so it is short and does nothing but write. What takes long, such as
compressing, reading and waiting for the disk, is done by a step before it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from jetstream.eventlog.columns import Columns
from jetstream.eventlog.erase import without
from jetstream.eventlog.segment import BLOCK_BYTES, BLOCK_EVENTS, Block, seal
from jetstream.eventlog.sqlite import ages
from jetstream.eventlog.sqlite.damage import FAR_US, Damage, next_block, problem, reachable
from jetstream.eventlog.sqlite.reader import load, scan, tail_rows
from jetstream.eventlog.sqlite.schema import (
    oldest,
    open_reader,
    open_writer,
    store_block,
    store_row,
    transaction,
    wal_bytes,
)
from jetstream.model.filter import Filter

# The write-ahead log is emptied when it is this long; a busy minute, and a quarter of a second of copying.
WAL_BYTES: Final = 16 * 1024 * 1024
BUSY_TIMEOUT_MS: Final = 10
# Blocks deleted in one transaction: about 2,000 pages put on the list of free ones.
TRIM_BLOCKS: Final = 16
# The file shrinks when this share of it has been free, in steps of 1 MiB.
FREE_SHARE_MAX: Final = 0.25
FREE_PAGES_MIN: Final = 4096
VACUUM_PAGES: Final = 256

_SIZES: Final = (
    "SELECT last_us, length(did_bits) + length(accounts) + length(times) + length(kinds)"
    " + length(dids) + length(collections) + length(rkeys) + length(revs) + length(cids) + length(bodies)"
    " FROM block WHERE last_us >= ? ORDER BY last_us"
)


class Trimmed(NamedTuple):
    """What one step took away."""

    events: int
    floor: int


class Scrubbed(NamedTuple):
    """A block that must be replaced: by what, if anything is left of it."""

    last_us: int
    events_gone: int
    block: Block | None


class Maintenance:
    """The background's own connection to the file.

    `met` is the damage that was met and passed over; who owns this takes it from there.
    """

    def __init__(self, path: Path, wal_bytes_max: int | None = None) -> None:
        self._path = path
        # The write-ahead log is emptied when it is this long: shorter on a small disk.
        self._wal_bytes_max = min(WAL_BYTES, wal_bytes_max or WAL_BYTES)
        self.met: list[Damage] = []
        self._connection = open_writer(path)
        # Nothing here is worth holding commits for: a checkpoint that meets a reader is tried again later.
        self._connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        # Rows below this were trimmed, or could not be: rises only.
        (self._trimmed_to,) = self._connection.execute("SELECT floor_us FROM state").fetchone()
        self._pin = open_reader(path)
        # Closing any descriptor of a file gives up the process's POSIX locks on it, and with them SQLite's:
        # this one is opened once, and closed when all connections are.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Copy all into the database file, durably, and let go of it. All others have."""
        self._pin.close()
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()
        os.close(self._descriptor)

    # Sealing

    def next_block(self) -> Block | None:
        """Compress the oldest of the tail, if there is enough for a block."""
        runs: list[Columns] = []
        events = size = 0
        for row in tail_rows(self._connection, 0, FAR_US, self.met):
            runs.append(row.columns)
            events += row.events
            size += len(row.columns.bodies)
            if events >= BLOCK_EVENTS or size >= BLOCK_BYTES:
                return seal(Columns.joined(runs), row.last_us)
        return None

    def store_block(self, block: Block) -> int:
        """Put a block in the place of its rows of the tail; return how many events were lost. Exclusive.

        Those are the events of rows that are damaged.
        """
        with transaction(self._connection):
            store_block(self._connection, block)
            rows = self._connection.execute(
                "DELETE FROM tail WHERE last_us <= ? RETURNING events", (block.last_us,)
            ).fetchall()
            lost: int = sum(events for (events,) in rows) - block.events
            if lost:
                self._count_gone(lost)
        return lost

    # Trimming

    def trim(self, before_us: int) -> Trimmed | None:
        """Delete some of what is older; None when nothing is. Exclusive.

        Blocks that cannot be deleted, for their pages are damaged, are left, and the floor passes them.
        """
        try:
            return self._trim(before_us, TRIM_BLOCKS)
        except sqlite3.DatabaseError as error:
            if problem(error) is None:
                raise
        try:
            return self._trim(before_us, 1)
        except sqlite3.DatabaseError as error:
            if problem(error) is None:
                raise
            return self._pass_over(before_us, str(error))

    def _trim(self, before_us: int, blocks_max: int) -> Trimmed | None:
        low = self._trimmed_to
        with transaction(self._connection):
            rows = (
                self._connection.execute(
                    "SELECT last_us, events FROM block WHERE last_us >= ? AND last_us < ?"
                    " ORDER BY last_us LIMIT ?",
                    (low, before_us, blocks_max),
                ).fetchall()
                or self._connection.execute(
                    "SELECT last_us, events FROM tail WHERE last_us < ? ORDER BY last_us", (before_us,)
                ).fetchall()
            )
            if not rows:
                return None
            gone, floor = sum(events for _, events in rows), rows[-1][0] + 1
            self._connection.execute("DELETE FROM block WHERE last_us >= ? AND last_us < ?", (low, floor))
            self._connection.execute("DELETE FROM tail WHERE last_us < ?", (floor,))
            self._move_floor(floor, gone)
        self._trimmed_to = floor
        return Trimmed(gone, floor)

    def _pass_over(self, before_us: int, found: str) -> Trimmed:
        """Move the floor over the next block, or over the keys that are lost, and leave what is there."""
        low, gone = self._trimmed_to, 0
        try:
            key = next_block(self._connection, low)
            floor = before_us if key is None else key + 1
            (gone,) = self._connection.execute(
                "SELECT events FROM block WHERE last_us = ?", (key,)
            ).fetchone() or (0,)
        except sqlite3.DatabaseError:
            floor = min(reachable(self._connection, low), before_us)
        self.met.append(Damage(low, floor - 1, found))
        with transaction(self._connection):
            self._move_floor(floor, gone)
        self._trimmed_to = floor
        return Trimmed(gone, floor)

    def _move_floor(self, floor: int, gone: int) -> None:
        self._connection.execute(
            "UPDATE state SET floor_us = max(floor_us, ?), removed = removed + ?", (floor, gone)
        )
        ages.drop_before(self._connection, floor)

    def position_within(self, bytes_max: int) -> int:
        """Return before which position blocks must go for the rest to take `bytes_max`; 0: none."""
        excess = self._used_bytes() + 2 * WAL_BYTES - bytes_max
        position = 0
        try:
            for last_us, size in self._connection.execute(_SIZES, (self._trimmed_to,)):
                if excess <= 0:
                    break
                excess -= size
                position = last_us + 1
        except sqlite3.DatabaseError as error:
            if problem(error) is None:
                raise
            position = reachable(
                self._connection, max(position, self._trimmed_to)
            )  # what is between goes too
        return position

    def position_stored_before(self, before_us: int) -> int:
        """Return before which position everything was stored before `before_us`."""
        return ages.position_stored_before(self._connection, before_us)

    def shrinks(self, bytes_max: int | None, cramped: bool) -> bool:
        """Tell whether the file should get smaller.

        So it is when too much of it is free, when it is above its bound, or when the disk is cramped.
        """
        free, pages = self._pragma("freelist_count"), self._pragma("page_count")
        if free and cramped:
            return True
        if bytes_max is not None and free and pages * self._pragma("page_size") + 2 * WAL_BYTES > bytes_max:
            return True
        return free > max(FREE_PAGES_MIN, FREE_SHARE_MAX * pages)

    def shrink(self) -> None:
        """Give some free pages back to the file system. Exclusive."""
        self._connection.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()

    # Forgetting

    def gone(self) -> dict[bytes, int]:
        """Return the repos whose records must go, and up to when."""
        return dict(self._connection.execute("SELECT did, before_us FROM gone"))

    def next_scrubbed(self, gone: Mapping[bytes, int], position: int) -> Scrubbed | int | None:
        """Rewrite the next block that has such records.

        Returns where to look on when there is none in a slice, None when there is none at all.
        """
        stop = max(gone.values())
        found = scan(self._connection, position, stop, Filter(dids=frozenset(gone)), self.met)
        if not isinstance(found.found, int):
            return None if found.position >= stop else found.position
        batch = load(self._connection, found.found, self.met)
        kept = None if batch is None else without(batch, gone)
        if batch is None or kept is None:
            return found.position
        last_us = found.found
        block = seal(Columns.of(kept), last_us) if len(kept) else None
        return Scrubbed(last_us, len(batch) - len(kept), block)

    def replace_block(self, scrubbed: Scrubbed) -> None:
        """Put a rewritten block in the place of the old one, of which nothing stays. Exclusive."""
        with self._overwriting(), transaction(self._connection):
            self._connection.execute("DELETE FROM block WHERE last_us = ?", (scrubbed.last_us,))
            if scrubbed.block is not None:
                store_block(self._connection, scrubbed.block)
            self._count_gone(scrubbed.events_gone)

    def scrubbed_tail(self, gone: Mapping[bytes, int]) -> list[tuple[int, int, Columns | None]]:
        """Rewrite what is not sealed yet: rows as `last_us`, events gone, and what is left of them."""
        rows = []
        for row in tail_rows(self._connection, 0, max(gone.values()), self.met):
            batch = row.columns.batch()
            kept = without(batch, gone)
            if kept is not None:
                left = Columns.of(kept) if len(kept) else None
                rows.append((row.last_us, len(batch) - len(kept), left))
        return rows

    def replace_tail(
        self, rows: Iterable[tuple[int, int, Columns | None]], gone: Mapping[bytes, int]
    ) -> None:
        """Put rewritten rows in the place of the old ones, which ends the forgetting of `gone`. Exclusive."""
        with self._overwriting(), transaction(self._connection):
            for last_us, events_gone, left in rows:
                first_us = self._connection.execute(
                    "DELETE FROM tail WHERE last_us = ? RETURNING first_us", (last_us,)
                ).fetchone()[0]
                if left is not None:
                    store_row(self._connection, first_us, last_us, left)
                self._count_gone(events_gone)
            self._connection.executemany("DELETE FROM gone WHERE did = ? AND before_us = ?", gone.items())

    def _count_gone(self, events: int) -> None:
        self._connection.execute("UPDATE state SET removed = removed + ?", (events,))

    @contextmanager
    def _overwriting(self) -> Iterator[None]:
        """Overwrite with zeros what is deleted inside."""
        self._connection.execute("PRAGMA secure_delete = ON")
        try:
            yield
        finally:
            self._connection.execute("PRAGMA secure_delete = OFF")

    # Time

    def clock(self) -> tuple[str, int] | None:
        """Return the boot and the offset of the clock that were noted last."""
        noted: tuple[str, int] | None = self._connection.execute(
            "SELECT boot, offset_us FROM clock"
        ).fetchone()
        return noted

    def note_clock(self, boot: str, offset_us: int) -> None:
        """Note what an offset of the clock a later process of the same boot is to trust. Exclusive."""
        self._connection.execute("INSERT OR REPLACE INTO clock VALUES (1, ?, ?)", (boot, offset_us))

    def note_stored(self, position: int, now_us: int) -> None:
        """Note that everything up to `position` was stored by now. Exclusive."""
        with transaction(self._connection):
            ages.note(self._connection, position, now_us)

    def shift_ages(self, by_us: int, tip_us: int, now_us: int) -> None:
        """Keep all ages although the clock was set. Exclusive."""
        with transaction(self._connection):
            ages.shift(self._connection, by_us, tip_us, now_us)

    # Checkpoints

    def checkpoint_is_due(self) -> bool:
        """Tell whether the write-ahead log has grown so long that it should begin again."""
        return wal_bytes(self._path) >= self._wal_bytes_max

    def copy_pages(self) -> None:
        """Copy the pages of the write-ahead log into the database file, and wait for the disk.

        A reader is held open meanwhile, and until `restart_wal`: else a commit that finds everything copied
        would begin the write-ahead log anew by itself, and wait for the disk on the event loop.
        """
        if not self._pin.in_transaction:
            self._pin.execute("BEGIN")
        self._pin.execute("SELECT 1 FROM state").fetchone()
        self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        os.fsync(self._descriptor)

    def restart_wal(self) -> None:
        """Copy what was committed since, and begin the write-ahead log anew. Exclusive."""
        self.empty_wal()
        with transaction(self._connection):
            # The first commit of a new write-ahead log waits for the disk: let it be this one. It must change
            # something, for SQLite writes no page that stays as it was.
            self._connection.execute("UPDATE state SET checkpoints = checkpoints + 1")

    def empty_wal(self) -> None:
        """Copy the write-ahead log and cut it off, as far as readers let it. Exclusive."""
        if self._pin.in_transaction:
            self._pin.execute("ROLLBACK")
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    # Sizes

    def extent(self) -> tuple[int | None, int]:
        """Return the `time_us` of the oldest event, or None, and how many events are not sealed."""
        (unsealed,) = self._connection.execute("SELECT ifnull(sum(events), 0) FROM tail").fetchone()
        try:
            return oldest(self._connection), unsealed
        except sqlite3.DatabaseError as error:
            if problem(error) is None:
                raise
            return self._trimmed_to, unsealed

    def _used_bytes(self) -> int:
        pages = self._pragma("page_count") - self._pragma("freelist_count")
        return pages * self._pragma("page_size")

    def _pragma(self, name: str) -> int:
        value: int = self._connection.execute(f"PRAGMA {name}").fetchone()[0]
        return value
