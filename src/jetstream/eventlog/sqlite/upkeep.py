"""Upkeep: what is done to the file in the background, beside appends and readers.

    journal      move small appends to the database
    seal         compress the oldest rows of the tail into segments
    fold         write the states of repositories to their table
    erase        rewrite segments that have records of deleted accounts
    trim         delete what is past retention
    checkpoint   copy the write-ahead log into the database, and restart it
    shrink       give free pages back to the file system
    reserve      reserve positions ahead of the tip, and room on the disk

All of it runs in one thread with one connection, as short synchronous steps. A step that writes is
*exclusive*: while it runs, no append may. So it does nothing but write. What takes long (reading,
compressing, waiting for the disk) is done by a step before it, beside appends.

Upkeep runs once a second, and at once when there is enough for a segment, when the disk is low, or while
erasing is not finished.

    event loop         append   append  append          append        append
    upkeep thread   [compress a segment] [write it] [copy pages, flush] [restart the WAL]
                     beside appends       exclusive  beside appends      exclusive

A refused write is tried again a second later: if it makes room, with the reserve, see `space`. Damaged
events are skipped, and so is what stops any step but sealing. A page that sealing cannot write ends upkeep,
and the next append raises its error: the log must not grow behind a tail that is never sealed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TypeVar

import structlog

from jetstream.errors import LogCorrupt, LogError, LogUnwritable
from jetstream.eventlog.damage import Damage
from jetstream.eventlog.erase import Tombstones
from jetstream.eventlog.rewrite import Rewritten, next_rewritten, next_segment
from jetstream.eventlog.segment import Segment
from jetstream.eventlog.sqlite import rewrite, trim
from jetstream.eventlog.sqlite.ages import position_stored_before
from jetstream.eventlog.sqlite.checkpoint import RESTARTED_BYTES, long_wal
from jetstream.eventlog.sqlite.connection import TranslatedErrors, wal_bytes
from jetstream.eventlog.sqlite.gaps import drop_oldest_gaps
from jetstream.eventlog.sqlite.reader import FileReader
from jetstream.eventlog.sqlite.recovery import LogState, read_extent
from jetstream.eventlog.sqlite.repos import PAGE_BYTES, delete_folded, fold, forget_some, warm
from jetstream.eventlog.sqlite.reservation import AHEAD_US
from jetstream.eventlog.sqlite.space import COMMIT_BYTES, Space
from jetstream.eventlog.states import in_steps
from jetstream.scheduling import short_switch_interval

Result = TypeVar("Result")
logger = structlog.get_logger(__name__)


class Upkeep:
    """Keeps one open log in order. Its methods belong to the event loop's thread.

    `drop_segment` is called with the key of each segment that was rewritten.
    """

    def __init__(self, state: LogState, drop_segment: Callable[[int], None]) -> None:
        """Begin to run once a second. `state` is open. Needs a running event loop."""
        # What the event loop knows of the log. It follows the file: changed after each step.
        self._state = state
        self._drop_segment = drop_segment
        # Reads through upkeep's connection. Both belong to the thread while a step runs.
        self._reader = FileReader(state.upkeep, state.limits)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="log-upkeep")
        # The tombstones of the current pass over the segments, and the position that it has reached. Empty
        # between two passes.
        self._tombstones: dict[bytes, int] = {}
        self._erased_to = 0
        # Held during a run.
        self._running = asyncio.Lock()
        # Set when there is something to do before the next second.
        self._due = asyncio.Event()
        # Runs until `close`, or until an error that cannot be tried again.
        self._task = asyncio.get_running_loop().create_task(self._run_forever())

    def wake(self) -> None:
        """Run soon."""
        self._due.set()

    def raise_failure(self) -> None:
        """Raise the error that has ended upkeep, if one has."""
        if self._task.done():
            self._task.result()

    async def run(self) -> None:
        """Do all that is due now.

        Raises LogUnwritable if the disk refuses: what was not done stays due. Raises LogCorrupt if the tail
        cannot be sealed.

        The order is that of the head of this module. `SqliteLog.maintain` calls it too: two runs follow
        each other.
        """
        state = self._state
        async with self._running:
            await (self._free_disk() if state.space.full else self._keep_time())
            async with state.writing:
                self._empty_journal()
            await self._seal()
            await self._fold()
            for step in (self._erase, self._retain, self._checkpoint, self._shrink):
                await self._despite_damage(step)
            if state.tip + AHEAD_US // 2 > state.reservation.until_us:
                state.space.lend(COMMIT_BYTES)
                await self._in_thread(state.reservation.extend, state.tip)
            # Only a foreign transaction lets it grow above its bound.
            state.options.conditions.set("wal", long_wal(state.path, state.limits.wal_bytes_alarm))
            await self._take_reserve()

    async def close(self) -> None:
        """Stop, and wait until the step that runs has ended."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)

    async def _run_forever(self) -> None:
        """Run once a second, and whenever `wake` was called."""
        failing = False
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._state.limits.upkeep_interval_s):
                    await self._due.wait()
            self._due.clear()
            try:
                await self.run()
            except LogUnwritable as error:
                self._state.space.full = True
                if not failing:
                    logger.warning("log: upkeep failed, trying again", error=str(error))
                failing = True
                await asyncio.sleep(self._state.limits.upkeep_interval_s)
            except LogError:
                logger.exception("log: upkeep stopped, the next commit will fail")
                raise
            else:
                if failing:
                    logger.info("log: upkeep works again")
                failing = False

    # Running a step

    async def _exclusively(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Run a step in the thread while nobody else writes.

        Appends wait for it, so the thread gets the GIL quickly. The step finds all appends in the database,
        except on a full disk.

        What `work` returns is returned; what it raises of SQLite becomes LogUnwritable or LogCorrupt.
        """
        async with self._state.writing:
            if not self._state.space.full:
                self._empty_journal()
            with short_switch_interval():
                return await self._in_thread(work, *arguments)

    def _empty_journal(self) -> None:
        """Move appends to the database, with `writing` held: some tenths of a millisecond."""
        with TranslatedErrors(self._state.path):
            self._state.empty_journal()

    async def _in_thread(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Run a step in the thread. Raises LogUnwritable or LogCorrupt.

        Damage that the step has met is added to the record, also if the step fails.
        """
        try:
            with TranslatedErrors(self._state.path):
                return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
        finally:
            self._state.damages.add(self._reader.damage)
            self._reader.damage.clear()

    async def _despite_damage(self, step: Callable[[], Awaitable[object]]) -> None:
        """Do a step that may be left undone: damage that stops it is noted."""
        try:
            await step()
        except LogCorrupt as error:
            self._state.damages.add([Damage(self._state.floor, self._state.floor, error.problem)])

    # The clock

    async def _keep_time(self) -> None:
        """Write what keeps the ages of events right, if the clock was set or is behind the tip."""
        ages, options = self._state.ages, self._state.options
        now_us = options.clock()
        reading = (now_us, now_us - options.machine.elapsed_us(), self._state.tip)
        if ages.is_due(*reading):
            await self._exclusively(ages.write, *reading)

    # Sealing

    async def _seal(self) -> None:
        """Seal while there is enough for a segment. A backlog can fill the write-ahead log meanwhile."""
        while (segment := await self._next_segment()) is not None:
            await self._require_room(segment.size * 5 // 4)
            lost = await self._exclusively(rewrite.store_segment, self._state.upkeep, segment)
            self._state.tail_events -= segment.events + lost
            self._state.events -= lost
            await self._checkpoint()

    async def _next_segment(self) -> Segment | None:
        """Compress the next segment; at the expense of the event loop if sealing has fallen behind."""
        behind = self._state.tail_events > self._state.limits.seal_backlog_events
        with short_switch_interval() if behind else nullcontext():
            return await self._in_thread(next_segment, self._reader)

    # Folding

    async def _fold(self) -> None:
        """Write the states of repositories to their table when many have changed. See `repos`."""
        repos, connection, limits = self._state.repos, self._state.upkeep, self._state.limits
        if not repos.is_due:
            return
        async with self._state.writing:
            self._empty_journal()
            changes = repos.begin_fold()
        for step in await self._in_thread(in_steps, changes, limits.fold_repos):
            await self._require_room(2 * PAGE_BYTES * len(step))
            await self._in_thread(warm, connection, step)
            repos.stored += await self._exclusively(fold, connection, step)
            await self._checkpoint()
        while await self._exclusively(delete_folded, connection, repos.folded_to):
            await self._checkpoint()
        repos.end_fold()
        while repos.stored > repos.states_max:
            repos.stored -= await self._exclusively(forget_some, connection)
            await self._checkpoint()

    # Erasing

    async def _erase(self) -> None:
        """Rewrite some segments that have erased records, and at the end of a pass the tail.

        A tombstone that comes during a pass has the next one, since this pass is beyond its first segments.
        """
        self._tombstones = self._tombstones or await self._in_thread(
            rewrite.read_tombstones, self._state.upkeep
        )
        if not self._tombstones:
            return
        for _ in range(self._state.limits.erase_segments):
            after, rewritten = await self._in_thread(
                next_rewritten, self._reader, self._tombstones, self._erased_to
            )
            if after is None:  # the tail ends the pass: its tombstones are deleted in the same transaction
                await self._replace(rewritten, self._tombstones)
                async with self._state.writing:
                    self._empty_journal()
                    self._state.journal.wipe()
                self._tombstones, self._erased_to = {}, 0
                return
            if rewritten:
                await self._replace(rewritten, {})
            self._erased_to = after
        self.wake()

    async def _replace(self, rewritten: list[Rewritten], done: Tombstones) -> None:
        """Put what was rewritten in the place of the old."""
        for each in rewritten:
            if isinstance(each.left, Segment):
                # The old one is overwritten with zeros, which is written as well.
                await self._require_room(3 * each.left.size)
        await self._exclusively(rewrite.replace, self._state.upkeep, rewritten, done)
        for each in rewritten:
            self._drop_segment(each.last_us)
        await self._count_removed(sum(each.erased for each in rewritten))

    # Retention

    async def _retain(self) -> None:
        """Trim what is past retention, by age and by the size of the files."""
        state, options = self._state, self._state.options
        if options.retention_s is not None:
            before_us = options.clock() - int(options.retention_s * 1_000_000)
            await self._trim(await self._in_thread(position_stored_before, state.upkeep, before_us))
        if (size := options.retention_bytes) is not None:
            await self._trim(await self._in_thread(trim.position_within, self._reader, state.floor, size))
        if state.gaps > (most := state.limits.gap_rows):
            state.gaps = await self._exclusively(drop_oldest_gaps, state.upkeep, most)

    async def _trim(self, before_us: int) -> None:
        """Delete step by step what ends before a position, and let memory follow after each step."""
        state = self._state
        if state.oldest_us is None or state.oldest_us >= before_us:
            return
        while (done := await self._exclusively(trim.trim, self._reader, state.floor, before_us)) is not None:
            events, state.floor = done
            state.hot_tail.drop_before(state.floor)
            state.damages.drop_before(state.floor)
            await self._count_removed(events)

    async def _count_removed(self, events: int) -> None:
        """Subtract deleted events, and read again what remains: exclusively, so that no append is missed.

        On a full disk, some may be in the journal.

        Called after each step that trims or erases. `events` is how many are gone.
        """
        state, journal = self._state, self._state.journal
        state.events -= events
        oldest_us, tail_events = await self._exclusively(read_extent, state.upkeep, state.floor)
        state.oldest_us = journal.first_us if oldest_us is None else oldest_us
        state.tail_events = tail_events + journal.events

    # The write-ahead log

    async def _checkpoint(self) -> None:
        """Copy and restart the write-ahead log when it is long, or grows while the disk is low."""
        space, checkpointer, limits = self._state.space, self._state.checkpointer, self._state.limits
        bytes_max = min(limits.wal_bytes, space.reserve_size or limits.wal_bytes)
        size = wal_bytes(self._state.path)
        if size >= bytes_max or (size > RESTARTED_BYTES and space.low):
            is_long = size >= limits.wal_bytes_patience  # readers have come in the way before
            wait_ms = limits.checkpoint_wait_long_ms if is_long else limits.checkpoint_wait_ms
            space.lend(size)  # the database may grow by as much, before the write-ahead log is shorter
            try:
                await self._in_thread(checkpointer.copy_pages)
                await self._exclusively(checkpointer.restart_wal, wait_ms)
            finally:
                await self._take_reserve()

    # The disk

    async def _free_disk(self) -> None:
        """Free what the settings allow, and the write-ahead log, with the reserve if the disk refuses.

        Where nothing can be freed, nothing is written, so the reserve stays: another program would take it.
        Appends are refused meanwhile, since they would use up the reserve. Afterwards the disk counts as no
        longer full; if nothing could be freed, the next append finds that out.
        """
        space = self._state.space
        space.freeing = True
        try:
            try:
                await self._free()
            except LogUnwritable:
                async with self._state.writing:
                    space.release_reserve()
                await self._free()
            space.full = False
        finally:
            await self._take_reserve()
            space.allowance = 0
            space.freeing = False

    async def _free(self) -> None:
        """Copy the write-ahead log, trim and shrink. Raises LogUnwritable."""
        empty_wal = self._state.checkpointer.empty_wal
        await self._exclusively(empty_wal)
        await self._keep_time()
        await self._despite_damage(self._retain)
        await self._exclusively(empty_wal)
        while self._state.space.low and await self._shrink():
            await self._exclusively(empty_wal)

    async def _require_room(self, size: int) -> None:
        """Make room for a step that writes so many bytes. Raises LogUnwritable."""
        space = self._state.space
        if space.make_room(size) < size:
            await self._exclusively(self._state.checkpointer.empty_wal)
            if space.make_room(size) < size:
                raise LogUnwritable(self._state.path, f"the disk has no room for rewriting {size} bytes")

    async def _shrink(self) -> bool:
        """Make the file smaller if it should be; return whether that was so."""
        bytes_max, low = self._state.options.retention_bytes, self._state.space.low
        is_due = await self._in_thread(trim.should_shrink, self._reader, bytes_max, low)
        if is_due:
            await self._exclusively(trim.shrink, self._reader)
        return is_due

    async def _take_reserve(self) -> None:
        """Complete the reserve; the condition `disk_low` holds while there is no room for all of it.

        Appends wait for it, since they may cut it.
        """
        space = self._state.space
        space.find_reserve()
        whole = space.reserve_held >= space.reserve_size
        if not whole:
            async with self._state.writing:
                whole = await self._in_thread(space.take_reserve)
        self._state.options.conditions.set(
            "disk_low", None if whole else _low(space, self._state.path.parent)
        )


def _low(space: Space, directory: Path) -> str:
    """Return the reason of the condition `disk_low`."""
    missing = space.reserve_size - space.reserve_held
    return f"the disk of {directory} has no room for {missing:,} bytes of the log's reserve"
