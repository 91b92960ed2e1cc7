"""The log in one SQLite file, for one machine.

    append ──▶ tail (a row per batch) ──seal──▶ block (4,000 events, compressed) ──trim──▶ gone
       └─────▶ recent (in memory)

A batch is committed as one row of `tail`, in the transaction that moves the upstream's cursor, on the event
loop's thread: a commit is 30 to 170 us of writing into the page cache, less than it costs to hand it to a
thread. All that waits for the disk happens elsewhere: reading in reader threads with connections of their
own, and sealing, trimming, forgetting and checkpoints in one maintenance thread. Whoever writes holds
`_writing`; nobody holds it for longer than one short transaction takes.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Final, NamedTuple, TypeVar

import structlog

from jetstream.clock import STEP_US, boot_id, elapsed_us, unix_us
from jetstream.conditions import Conditions
from jetstream.errors import LogCorrupt, LogError, LogUnwritable, SettingError
from jetstream.eventlog import Cursors
from jetstream.eventlog.backpressure import Followers
from jetstream.eventlog.columns import Columns
from jetstream.eventlog.erase import gone_accounts
from jetstream.eventlog.hot_tail import BATCH_BYTES, Recent
from jetstream.eventlog.segment import BLOCK_EVENTS, Block
from jetstream.eventlog.segment_cache import CACHE_BYTES, BlockCache
from jetstream.eventlog.sqlite import ages, lookup
from jetstream.eventlog.sqlite.damage import FAR_US, Damage, Damages
from jetstream.eventlog.sqlite.reader import load, scan, tail_rows
from jetstream.eventlog.sqlite.reservation import AHEAD_US, NEW_FILE, reserve, restored_tip
from jetstream.eventlog.sqlite.schema import (
    DATABASE,
    bytes_on_disk,
    explained,
    open_reader,
    open_writer,
    read_cursors,
    store_cursors,
    store_row,
    take_lock,
    transaction,
    wal_bytes,
)
from jetstream.eventlog.sqlite.space import Space
from jetstream.eventlog.sqlite.upkeep import WAL_BYTES, Maintenance, Scrubbed
from jetstream.model.batch import Batch
from jetstream.model.event import Key
from jetstream.model.filter import Filter
from jetstream.scheduling import Notifier, short_switch_interval
from jetstream.status import LogStatistics

# Readers wait for the disk and for zstd, both without the interpreter lock; more would only compete for it.
READERS: Final = 2
# How often the background looks whether something is due, beside when a block is full.
MAINTAIN_EVERY_S: Final = 1.0
# Not sealed yet: above this sealing is behind. Waiting for a busy loop it manages ten blocks a second.
BACKLOG_EVENTS: Final = 2 * BLOCK_EVENTS
# Blocks rewritten before sealing has its turn again.
FORGET_STEPS: Final = 8

# Above this the write-ahead log is not emptied as it should be: a foreign reader holds on to it.
WAL_BYTES_BOUND: Final = 2 * WAL_BYTES
# What a commit writes beside the batch: a few pages of the tables' trees, each as a whole.
COMMIT_BYTES: Final = 32 * 1024
# An offset of the clock that has drifted by less is not noted again.
CLOCK_DRIFT_US: Final = 1_000_000

# The write-ahead log and the tail take up to half of it.
RETENTION_BYTES_MIN: Final = 64 * 1024 * 1024

FORGET_DELETED: Final = frozenset({"deleted"})

Result = TypeVar("Result")
logger = structlog.get_logger(__name__)


class Opened(NamedTuple):
    """The files of a log, and what they held."""

    directory: Path
    lock: int
    writer: sqlite3.Connection
    maintenance: Maintenance
    tip: int
    floor: int
    events: int
    appended: int
    cursors: Cursors
    oldest: int | None
    tail_events: int
    recent: Recent
    space: Space
    damage: list[Damage]
    clock_offset_us: int | None


class SqliteLog:
    """A log in one directory. `LogReader` and `LogWriter` say what the methods promise; `open` makes one."""

    def __init__(
        self,
        opened: Opened,
        *,
        retention_s: float | None,
        retention_bytes: int | None,
        forget: frozenset[str],
        cache_bytes: int,
        clock: Callable[[], int],
        conditions: Conditions,
    ) -> None:
        self._directory = opened.directory
        self._path = opened.directory / DATABASE
        self._lock = opened.lock
        self._writer = opened.writer
        self._maintenance = opened.maintenance
        self._tip = self._reserved = opened.tip
        self._floor = opened.floor
        self._events = opened.events
        self._appended = opened.appended  # events that were ever appended: rises with each append
        self.cursors: Cursors = opened.cursors  # as of the last append
        self.followers = Followers()
        self._oldest = opened.oldest
        self._tail_events = opened.tail_events
        self._recent = opened.recent
        self._retention_s = retention_s
        self._retention_bytes = retention_bytes
        self._forget_statuses = forget
        self._clock = clock
        self._conditions = conditions
        self._writable = True
        self._space = opened.space
        # True from a write that the disk refused until the background has freed what it can.
        self._full = self._space.room() <= 0
        # True while the background does so: the reserve is released, and is not for events.
        self._freeing = False
        # False from when there was no room for the reserve until there is.
        self._reserve_is_whole = True
        # Bytes that may still be committed before the disk is looked at again.
        self._room = 0
        self._damages = Damages(self._path, conditions)
        for damage in opened.damage:
            self._damages.note(damage)
        # What this boot's clock was trusted to be ahead of `elapsed_us`, as the file has it; None: nothing is
        # known.
        self.clock_offset_us = opened.clock_offset_us
        # The same as of the last upkeep, or of the start.
        self._offset_us = clock() - elapsed_us() if self.clock_offset_us is None else self.clock_offset_us
        self._noted_us = (0, 0)  # the position that ages were noted for last, and when
        self._writing = asyncio.Lock()
        self._grown = Notifier()
        self._idle: LifoQueue[sqlite3.Connection] = LifoQueue()
        self._reader_threads = ThreadPoolExecutor(READERS, thread_name_prefix="log-reader")
        self._blocks = BlockCache(lambda key: self._in_reader(lambda c, met: load(c, key, met)), cache_bytes)
        self._maintenance_thread = ThreadPoolExecutor(1, thread_name_prefix="log-maintenance")
        self._upkeep = asyncio.Lock()
        self._forgetting: dict[bytes, int] = {}
        self._scrubbed_to = 0
        self._due = asyncio.Event()
        self._maintaining = asyncio.get_running_loop().create_task(self._maintain_forever())

    @classmethod
    async def open(
        cls,
        directory: Path,
        *,
        retention_s: float | None = None,
        retention_bytes: int | None = None,
        forget: frozenset[str] = FORGET_DELETED,
        cache_bytes: int = CACHE_BYTES,
        clock: Callable[[], int] = unix_us,
        conditions: Conditions | None = None,
    ) -> SqliteLog:
        """Open the log in `directory`, or begin one there.

        Events are kept for `retention_s` and while the files take `retention_bytes`, both without limit when
        None. Accounts that become inactive with a status in `forget` have their records removed. `clock`
        gives unix microseconds, and does not follow leaps. `conditions` is told of `damage` and `wal`.

        Raises LogLocked when another process writes it, LogCorrupt when the file is not what was written,
        LogUnwritable when the directory cannot be written, SettingError for a bound that cannot be kept.
        """
        if retention_bytes is not None and retention_bytes < RETENTION_BYTES_MIN:
            raise SettingError("--retention-bytes", retention_bytes, f"is below {RETENTION_BYTES_MIN}")
        return cls(
            await asyncio.to_thread(_open, directory, clock()),
            retention_s=retention_s,
            retention_bytes=retention_bytes,
            forget=forget,
            cache_bytes=cache_bytes,
            clock=clock,
            conditions=conditions or Conditions(),
        )

    # The writer

    @property
    def floor(self) -> int:
        """The lowest position from which nothing is missing."""
        return self._floor

    @property
    def tip(self) -> int:
        """The highest position that may have been given out; 0 if none was."""
        return self._tip

    async def append(self, batch: Batch, cursors: Cursors, received_at: float | None = None) -> None:
        """Store events and the cursors of all sources together, or neither.

        Raises LogUnwritable, or LogCorrupt when the background found the file damaged.
        """
        assert not len(batch) or batch.first > self._tip
        if self._maintaining.done():
            self._maintaining.result()
        gone = gone_accounts(batch, self._forget_statuses)
        async with self._writing:
            try:
                columns = Columns.of(batch) if len(batch) else None
                self._take_room(COMMIT_BYTES + (0 if columns is None else columns.size))
                if len(batch) and batch.last > self._reserved:
                    with short_switch_interval():
                        await asyncio.to_thread(self._reserve, batch.last)
                with explained(self._path), transaction(self._writer):
                    self._store(batch, columns, cursors, gone)
            except LogUnwritable:
                self._writable = False
                self._full = True
                self._due.set()
                raise
            self._writable = True
            self.cursors = cursors
            if len(batch):
                self._publish(batch, gone, received_at)

    def _take_room(self, size: int) -> None:
        """Count bytes that are about to be committed. Raises LogUnwritable when there is no room for them."""
        if self._freeing:
            raise LogUnwritable(self._path, "the disk is full")
        self._room -= size
        if self._room < 0:
            room = self._space.room_for_events()
            self._room = room // 2 - size
            if self._space.cramped:
                self._due.set()
            if room < size:
                raise LogUnwritable(self._path, "the disk is full but for what getting out of that takes")

    def _store(
        self,
        batch: Batch,
        columns: Columns | None,
        cursors: Cursors,
        gone: dict[bytes, int],
    ) -> None:
        tip = self._tip
        if columns is not None:
            tip = batch.last
            if len(columns.bodies) <= BATCH_BYTES:
                store_row(self._writer, batch.first, tip, columns)
            else:  # no reader need take more into memory at once
                for part in batch.parts(BATCH_BYTES):
                    store_row(self._writer, part.first, part.last, Columns.of(part))
        if gone:
            self._writer.executemany("INSERT OR REPLACE INTO gone VALUES (?, ?)", gone.items())
        same_sources = cursors.keys() == self.cursors.keys()
        store_cursors(self._writer, cursors, tip, self._appended + len(batch), same_sources=same_sources)

    def _publish(self, batch: Batch, gone: dict[bytes, int], received_at: float | None) -> None:
        self._tip = batch.last
        self._appended += len(batch)
        self._events += len(batch)
        self._tail_events += len(batch)
        if self._oldest is None:
            self._oldest = batch.first
        self._recent.append(batch)
        if gone:
            self._recent.forget(gone)
        if self._tail_events >= BLOCK_EVENTS:
            self._due.set()
        self.followers.append(self._tip, received_at)
        self._grown.notify()

    def _reserve(self, position: int) -> None:
        with explained(self._path):
            reserve(self._directory, position + AHEAD_US)
        self._reserved = position + AHEAD_US

    # Readers

    async def read(self, position: int, stop: int, wanted: Filter) -> Batch | None:
        """Return the batch with the first events in `[position, stop)` that `wanted` may want."""
        position = max(position, self._floor)
        stop = min(stop, self._tip + 1)
        while position < stop:
            start = self._recent.start
            if position >= start:
                return self._recent.at(position, stop)
            position, batch = await self._read_stored(position, min(stop, start), wanted)
            if batch is not None:
                return batch
        return None

    async def _read_stored(self, position: int, stop: int, wanted: Filter) -> tuple[int, Batch | None]:
        """Return where to look on, and what was found before that."""
        beyond = self._damages.beyond(position)
        if beyond != position:
            return min(beyond, stop), None
        after, found = await self._in_reader(lambda c, met: scan(c, position, stop, wanted, met))
        batch = await self._load(found) if isinstance(found, int) else found
        # A block may be trimmed before it is loaded, or have nothing in this part of its range.
        if batch is not None and batch.index(position) == batch.index(stop):
            batch = None
        return after, batch

    async def holds(self, keys: Collection[Key]) -> dict[Key, int]:
        """Return those of a few keys of which an event is kept, and about where."""
        start = self._recent.start
        found = lookup.in_batches(self._recent.newest_first(), keys)
        missing = set(keys) - found.keys()
        if missing:
            found |= await self._in_reader(lambda c, _met: lookup.in_file(c, missing, start))
        return found

    async def keys_from(self, position: int, stop: int) -> set[Key]:
        """Return the keys of the oldest events in `[position, stop)`."""
        position = max(position, self._floor)
        return await self._in_reader(lambda c, _met: lookup.keys_from(c, position, stop))

    async def _load(self, last_us: int) -> Batch | None:
        return None if last_us in self._damages.by_end else await self._blocks.get(last_us)

    async def _in_reader(self, work: Callable[[sqlite3.Connection, list[Damage]], Result]) -> Result:
        """Do something with a connection in a reader thread, and note the damage that it adds to the list."""
        met: list[Damage] = []
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(self._reader_threads, self._borrow, lambda c: work(c, met))
        self._note(met)
        return result

    def _note(self, met: list[Damage]) -> None:
        for damage in met:
            self._damages.note(damage)

    def _borrow(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Do something with a connection that nobody else uses meanwhile."""
        with explained(self._path, LogError):
            try:
                connection = self._idle.get_nowait()
            except Empty:
                connection = open_reader(self._path)
            try:
                return work(connection)
            finally:
                self._idle.put(connection)

    async def wait(self, position: int) -> None:
        """Return once an event at or after `position` has been appended."""
        while self._tip < position:
            await self._grown.wait()

    def statistics(self) -> LogStatistics:
        """Say what the log holds."""
        return LogStatistics(
            events=self._events,
            bytes_on_disk=bytes_on_disk(self._path),
            oldest_us=self._oldest,
            newest_us=None if self._oldest is None else self._tip,
            writable=self._writable,
            wal_bytes=wal_bytes(self._path),
            damaged=self._damages.count,
        )

    # The background

    async def trim(self, before_us: int) -> int:
        """Forget events older than `before_us`, in whole blocks; return how many went."""
        # To the end, even if the caller is cancelled: the floor in memory must follow the one on disk.
        return await asyncio.shield(asyncio.ensure_future(self._trim_alone(before_us)))

    async def _trim_alone(self, before_us: int) -> int:
        async with self._upkeep:
            return await self._trim(before_us)

    async def maintain(self) -> None:
        """Do all that is due now. The background calls this by itself.

        Raises LogUnwritable when the disk refuses; what was not done stays due.
        """
        async with self._upkeep:
            await (self._free_disk() if self._full else self._keep_time())
            await self._seal()
            for step in (self._forget, self._retain, self._empty_wal, self._shrink):
                await self._despite_damage(step)
            if self._tip + AHEAD_US // 2 > self._reserved:
                await self._in_maintenance(self._reserve, self._tip)
            self._tell_wal()
            await self._take_reserve()

    async def _despite_damage(self, step: Callable[[], Awaitable[object]]) -> None:
        """Do what can wait; damage that it does not get past is noted, and hinders no storing."""
        try:
            await step()
        except LogCorrupt as error:
            self._note([Damage(self._floor, self._floor, error.problem)])

    async def _free_disk(self) -> None:
        """Free what the settings let go, and the write-ahead log, with what is in reserve; take that back."""
        self._freeing = True
        try:
            async with self._writing:
                self._space.release()
            await self._exclusively(self._maintenance.empty_wal)
            await self._keep_time()
            await self._despite_damage(self._retain)
            await self._exclusively(self._maintenance.empty_wal)
            while self._space.cramped and await self._shrink():
                await self._exclusively(self._maintenance.empty_wal)
            self._full = False
        finally:
            await self._take_reserve()
            self._room = 0
            self._freeing = False

    async def _take_reserve(self) -> None:
        whole = await self._in_maintenance(self._space.take)
        if not whole and self._reserve_is_whole:
            logger.warning(
                "log: no room on the disk to keep a reserve, make some",
                bytes_missing=self._space.size - self._space.held,
                directory=str(self._directory),
            )
        self._reserve_is_whole = whole

    async def _shrink(self) -> bool:
        """Make the file smaller if it should be; return whether that was so."""
        cramped = self._space.cramped
        if not await self._in_maintenance(self._maintenance.shrinks, self._retention_bytes, cramped):
            return False
        await self._exclusively(self._maintenance.shrink)
        return True

    def _tell_wal(self) -> None:
        """Begin or end the condition `wal`."""
        size = wal_bytes(self._path)
        if size < WAL_BYTES_BOUND:
            self._conditions.end("wal")
            return
        self._conditions.begin(
            "wal",
            f"{self._path}-wal is {size >> 20} MiB, over its bound of {WAL_BYTES_BOUND >> 20} MiB:"
            f" another program has read the database in one transaction for long; end it"
            f" (`fuser -v {self._path}` names it)",
        )

    async def _keep_time(self) -> None:
        """Note what positions do not say: when events that are ahead were stored, and steps of the clock."""
        now_us = self._clock()
        offset_us = now_us - elapsed_us()
        if abs(shift_us := offset_us - self._offset_us) > STEP_US:
            await self._exclusively(self._maintenance.shift_ages, shift_us, self._tip, now_us)
        self._offset_us = offset_us
        if self.clock_offset_us is None or abs(offset_us - self.clock_offset_us) > CLOCK_DRIFT_US:
            await self._exclusively(self._maintenance.note_clock, boot_id(), offset_us)
            self.clock_offset_us = offset_us
        position, at_us = self._noted_us
        every_us = max(ages.EVERY_US_MIN, int((self._retention_s or 0) * 1_000_000) // ages.SHARE)
        if self._tip > now_us + STEP_US and self._tip > position and abs(now_us - at_us) >= every_us:
            await self._exclusively(self._maintenance.note_stored, self._tip, now_us)
            self._noted_us = (self._tip, now_us)

    async def _maintain_forever(self) -> None:
        failing = False
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(MAINTAIN_EVERY_S):
                    await self._due.wait()
            self._due.clear()
            try:
                await self.maintain()
            except LogUnwritable as error:
                self._full = True
                if not failing:
                    logger.warning("log: upkeep failed, trying again", error=str(error))
                failing = True
                await asyncio.sleep(MAINTAIN_EVERY_S)
            except LogError:
                logger.exception("log: upkeep stopped, the next commit will fail")
                raise
            else:
                if failing:
                    logger.info("log: upkeep works again")
                failing = False

    async def _seal(self) -> None:
        while (block := await self._next_block()) is not None:
            await self._require_room(block.size * 5 // 4)
            lost = await self._exclusively(self._maintenance.store_block, block)
            self._tail_events -= block.events + lost
            self._events -= lost
            await self._empty_wal()

    async def _next_block(self) -> Block | None:
        """Compress the oldest of the tail, at the loop's cost when sealing has fallen behind."""
        with short_switch_interval() if self._tail_events > BACKLOG_EVENTS else nullcontext():
            return await self._in_maintenance(self._maintenance.next_block)

    async def _require_room(self, size: int) -> None:
        """Make room for a step that writes so many bytes. Raises LogUnwritable."""
        if self._space.room() < size:
            await self._exclusively(self._maintenance.empty_wal)
            if self._space.room() < size:
                raise LogUnwritable(self._path, f"the disk has no room for rewriting {size} bytes")

    async def _forget(self) -> None:
        """Rewrite some of the blocks with records of accounts that are gone, and in the end the tail."""
        # Who goes while a pass is under way has the next one: this one has left their first blocks behind.
        self._forgetting = self._forgetting or await self._in_maintenance(self._maintenance.gone)
        gone = self._forgetting
        if not gone:
            return
        for _ in range(FORGET_STEPS):
            step = await self._in_maintenance(self._maintenance.next_scrubbed, gone, self._scrubbed_to)
            if step is None:
                rows = await self._in_maintenance(self._maintenance.scrubbed_tail, gone)
                await self._exclusively(self._maintenance.replace_tail, rows, gone)
                self._forgetting, self._scrubbed_to = {}, 0
                await self._count_gone(sum(row[1] for row in rows))
                return
            if isinstance(step, Scrubbed):
                if step.block is not None:
                    await self._require_room(3 * step.block.size)  # the old one is overwritten with zeros
                await self._exclusively(self._maintenance.replace_block, step)
                self._blocks.drop(step.last_us)
                await self._count_gone(step.events_gone)
                self._scrubbed_to = step.last_us + 1
            else:
                self._scrubbed_to = step
        self._due.set()

    async def _retain(self) -> None:
        if self._retention_s is not None:
            before_us = self._clock() - int(self._retention_s * 1_000_000)
            await self._trim(await self._in_maintenance(self._maintenance.position_stored_before, before_us))
        if self._retention_bytes is not None:
            await self._trim(
                await self._in_maintenance(self._maintenance.position_within, self._retention_bytes)
            )

    async def _trim(self, before_us: int) -> int:
        gone = 0
        while (trimmed := await self._exclusively(self._maintenance.trim, before_us)) is not None:
            gone += trimmed.events
            self._floor = trimmed.floor
            self._recent.drop_before(trimmed.floor)
            self._damages.drop_before(trimmed.floor)
            await self._count_gone(trimmed.events)
        return gone

    async def _count_gone(self, events: int) -> None:
        self._events -= events
        self._oldest, self._tail_events = await self._exclusively(self._maintenance.extent)

    async def _empty_wal(self) -> None:
        if self._space.cramped or await self._in_maintenance(self._maintenance.checkpoint_is_due):
            await self._in_maintenance(self._maintenance.copy_pages)
            await self._exclusively(self._maintenance.restart_wal)

    async def _exclusively(self, work: Callable[..., Result], *arguments: object) -> Result:
        async with self._writing:
            with short_switch_interval():
                return await self._in_maintenance(work, *arguments)

    async def _in_maintenance(self, work: Callable[..., Result], *arguments: object) -> Result:
        def run() -> Result:
            with explained(self._path):
                return work(*arguments)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._maintenance_thread, run)
        finally:
            met, self._maintenance.met = self._maintenance.met, []
            self._note(met)

    async def close(self) -> None:
        """Write what is pending and give the files back."""
        self._maintaining.cancel()
        await asyncio.gather(self._maintaining, return_exceptions=True)
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._reader_threads.shutdown()
        self._maintenance_thread.shutdown()
        while not self._idle.empty():
            self._idle.get_nowait().close()
        self._writer.close()
        with suppress(LogError), explained(self._path):
            self._maintenance.close()
            reserve(self._directory, self._tip)
        os.close(self._lock)


def _open(directory: Path, now_us: int) -> Opened:
    lock = take_lock(directory)
    try:
        for left in (NEW_FILE, *(f"{DATABASE}.new{suffix}" for suffix in ("", "-wal", "-shm"))):
            with suppress(OSError):
                (directory / left).unlink()  # by a process that was killed
        space = Space(directory)
        if space.room() <= 0:
            space.release()  # opening writes
        with explained(directory / DATABASE):
            return _restore(directory, lock, space, now_us)
    except BaseException:
        os.close(lock)
        raise


def _restore(directory: Path, lock: int, space: Space, now_us: int) -> Opened:
    """Read the state, and take the tail into memory."""
    path = directory / DATABASE
    is_new = not path.exists() or not path.stat().st_size
    writer = open_writer(path)
    tip, floor, events, removed = writer.execute(
        "SELECT extent.tip_us, extent.floor_us, events, removed FROM extent, state"
    ).fetchone()
    restored = restored_tip(directory, tip, now_us, is_new=is_new)
    if restored > tip:
        # Before a reservation of this boot takes the place of the one that says so.
        writer.execute("UPDATE state SET tip_us = ?", (restored,))
    (sealed_us,) = writer.execute("SELECT max(last_us) FROM block").fetchone()
    recent = Recent(floor if sealed_us is None else sealed_us + 1)
    damage: list[Damage] = []
    for row in tail_rows(writer, 0, FAR_US, damage):
        recent.append(row.columns.batch())
    maintenance = Maintenance(path, space.size)
    recent.forget(maintenance.gone())
    oldest, tail_events = maintenance.extent()
    boot, offset_us = maintenance.clock() or ("", None)
    return Opened(
        directory=directory,
        lock=lock,
        writer=writer,
        maintenance=maintenance,
        tip=restored,
        floor=floor,
        events=events,
        appended=events + removed,
        cursors=read_cursors(writer),
        oldest=oldest,
        tail_events=tail_events,
        recent=recent,
        space=space,
        damage=damage,
        clock_offset_us=offset_us if boot == boot_id() != "unknown" else None,
    )
