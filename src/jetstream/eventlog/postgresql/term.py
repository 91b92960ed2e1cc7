"""A term: the time for which this process, and no other, writes the log.

`leading` begins one. `appender` stores what is appended, `upkeep` does the rest, and `repo_states` has the
states of repositories. What this process has stored is read as by any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from functools import partial
from secrets import randbits
from typing import Any, Final, TypeVar

import orjson

from jetstream.errors import Fenced, LogError, LogUnreachable
from jetstream.eventlog import Changes, Cursors, Gap
from jetstream.eventlog.backpressure import Followers
from jetstream.eventlog.columns import Columns
from jetstream.eventlog.cursors import cursor_row
from jetstream.eventlog.erase import find_tombstones
from jetstream.eventlog.postgresql.appender import RETRY_S, Appender, Entry
from jetstream.eventlog.postgresql.beginning import Stored
from jetstream.eventlog.postgresql.repo_states import RepoStates
from jetstream.eventlog.postgresql.schema import Epoch, pack
from jetstream.eventlog.postgresql.store import PostgresLog
from jetstream.eventlog.states import pack as pack_states
from jetstream.model.batch import Batch
from jetstream.model.event import Key
from jetstream.model.filter import Filter
from jetstream.status import LogStatistics

Result = TypeVar("Result")

AHEAD_US: Final = 30_000_000  # positions are reserved this far ahead of the next one


class Term:
    """`LogReader` and `LogWriter` say what the methods promise.

    `erase` has the statuses of account events that erase the account's records.

    Every method belongs to the event loop's thread. It ends once, and is not begun again: `lead` makes
    the next one.
    """

    def __init__(self, log: PostgresLog, epoch: Epoch, stored: Stored, erase: frozenset[str]) -> None:
        """Take over what `read_beginning` has found. Nothing is written before the first append."""
        # What reads the same database.
        self.log = log
        self.epoch = epoch
        # What the database holds. `append` changes it, and upkeep what it has sealed, folded and moved.
        # The newest row of the tail, its end, the events ever, and the table in use.
        self.last_id, self.last_us = stored.last_id, stored.last_us
        self.appended = stored.appended
        self.tail = stored.tail
        # The end of what is sealed; how many events of the table in use are; how many gaps are kept.
        self.sealed_us = stored.sealed_us
        self.sealed_events = stored.sealed_events
        self.gap_rows = stored.gaps
        # Bytes of all segments; None: they are to be counted.
        self.segment_bytes: int | None = None
        # The highest position that may have been given out.
        self.tip = stored.begin_us
        # Positions up to this one are reserved in the database. Raised by appends and by upkeep.
        self.reserved_us = stored.reserved_us
        # As of the last append: the cursors, and what sources say of accounts, by source and DID.
        self.cursors: Cursors = stored.cursors
        self._accounts = stored.accounts
        # A mirror adds those of its upstream.
        self.erases = erase
        # Tells the lowest position that the next append may have. Set by what stamps events.
        self.next_position: Callable[[], int] = lambda: self.tip + 1
        # The states of repositories. Appends add to it, upkeep folds it.
        self.repos = RepoStates(log.name, log.fetch, stored.repos, stored.repo_rows, stored.folded_id)
        # Whether appends notify: not while a listener that is stuck fills the queue of notifications.
        self.notifies = True
        # Held during an append, and while upkeep changes tables.
        self.writing = asyncio.Lock()
        # Why the term is over; None: it is not. And set with it.
        self._failure: LogError | None = None
        self.ended = asyncio.Event()
        # Writes the rows of appends.
        self._appender = Appender(log.address, epoch, self.end, log.note_writer)
        # Closed with the term.
        self.on_close: list[Callable[[], Awaitable[None]]] = []

    # Reading

    @property
    def floor(self) -> int:
        """The lowest position from which nothing is missing."""
        return self.log.floor

    @property
    def oldest_us(self) -> int | None:
        """The position of the oldest event that is kept."""
        return self.log.oldest_us

    @property
    def followers(self) -> Followers:
        """The readers that the writer waits for."""
        return self.log.followers

    async def read(self, position: int, stop: int, wanted: Filter) -> Batch | None:
        """Return the batch with the first events in `[position, stop)` that `wanted` may want."""
        return await self.log.read(position, stop, wanted)

    @property
    def newest(self) -> int:
        """The highest position that the log is known to have."""
        return max(self.tip, self.log.newest)

    @property
    def cursor_max(self) -> int:
        """The highest cursor that is not of the future."""
        return self.newest + 1

    @property
    def watermark(self) -> int:
        """The position below which nothing more comes, as it was told."""
        return self.log.watermark

    async def look(self) -> None:
        """Learn the newest position. Raises LogError."""
        await self.log.look()

    async def wait(self, position: int) -> None:
        """Return once an event at or after `position` has been read back, and its append has returned."""
        await self.log.wait(position)
        async with self.writing:  # the append that has stored it, unless another process has
            pass

    async def gaps(self, since_us: int, count_max: int) -> list[Gap]:
        """Return the oldest gaps since a time, rising."""
        return await self.log.gaps(since_us, count_max)

    async def holds(self, keys: Collection[Key]) -> dict[Key, int]:
        """Return the keys of which an event is kept, each with a position."""
        return await self._answer(partial(self.log.holds, keys))

    async def keys_from(self, position: int, stop: int) -> set[Key]:
        """Return the keys of the oldest events in `[position, stop)`."""
        return await self._answer(partial(self.log.keys_from, position, stop))

    def statistics(self) -> LogStatistics:
        """Return what the log holds."""
        return self.log.statistics()

    def repo(self, did: bytes) -> bytes | None:
        """Return the state of a repository that is at hand. Raises LogError for any other."""
        return self.repos.get(did)

    def has_repo(self, did: bytes) -> bool:
        """Tell whether the state of a repository is at hand."""
        return did in self.repos

    async def load_repos(self, dids: Collection[bytes]) -> None:
        """Have states at hand, at least until the next call. Raises LogError.

        Waits while the database does not answer.
        """
        await self._answer(partial(self.repos.load, dids))

    async def _answer(self, ask: Callable[[], Awaitable[Result]]) -> Result:
        """Ask until the database answers, as an append does: an outage does not end the term.

        Raises LogError for what it refuses, and Fenced if the term is over.
        """
        while True:
            self.raise_failure()
            try:
                return await ask()
            except LogUnreachable:
                await asyncio.sleep(RETRY_S)

    def accounts(self) -> Mapping[tuple[str, str], bytes]:
        """Return what is stored of accounts, by source and DID."""
        return dict(self._accounts)

    # Writing

    async def append(self, batch: Batch, changes: Changes, received_at: float | None = None) -> None:
        """Store events and all changes together, or neither.

        Raises LogUnwritable with nothing stored, and Fenced if the term is over.

        A cancellation waits until the append is settled, for `ABANDONED_S` seconds or so; a term that is
        left in doubt is over.
        """
        async with self.writing:
            self.raise_failure()
            storing = asyncio.create_task(self._append(batch, changes, received_at))
            try:
                await asyncio.shield(storing)
            except asyncio.CancelledError:
                await self._appender.settle(storing)
                raise

    async def _append(self, batch: Batch, changes: Changes, received_at: float | None) -> None:
        """Store one append, with `writing` held, and let memory follow.

        It is a task of its own, which is not cancelled: see `appender`. Positions are reserved first.
        Readers of this process see the events once the database has confirmed them.
        """
        count = len(batch)
        assert not count or batch.first > self.tip
        tombstones = find_tombstones(batch, self.erases)
        if count and batch.last > self.reserved_us:
            self.reserved_us = await self._appender.reserve(batch.last + AHEAD_US)
        entry = Entry(self._rows(batch, changes), changes, tombstones)
        await self._appender.store(entry, self.tail, notify=self.notifies)
        follows_us = self.last_us
        self.last_id += len(entry.rows)
        self._take(changes)
        if count:
            self.tip = self.last_us = batch.last
            self.appended += count
            self.log.publish(batch, follows_us, self.appended)
            self.followers.append(self.tip, received_at)
        if tombstones:
            self.log.erase(tombstones)

    def _take(self, changes: Changes) -> None:
        """Let memory follow the changes of an append."""
        self.cursors = changes.cursors
        self.repos.note(changes.repos)
        self.gap_rows += len(changes.gaps)
        for key, state in changes.accounts.items():
            if state is None:
                self._accounts.pop(key, None)
            else:
                self._accounts[key] = state

    def _rows(self, batch: Batch, changes: Changes) -> list[tuple[Any, ...]]:
        """Return the rows of an append, the last one with the cursors and states.

        Nonces are random numbers of 63 bits. A batch with more text than `LogLimits.batch_bytes` is
        several rows.
        """
        parts: Iterable[Batch] = ()
        if len(batch):
            batch_bytes = self.log.limits.batch_bytes
            parts = batch.parts(batch_bytes) if batch.text_bytes() > batch_bytes else (batch,)
        number, last_us, appended = self.last_id, self.last_us, self.appended
        rows: list[tuple[Any, ...]] = []
        for part in parts:
            number, appended = number + 1, appended + len(part)
            data = pack(Columns.of(part))
            rows.append((number, part.last, last_us, part.first, len(part), appended, randbits(63), data))
            last_us = part.last
        if not rows:
            rows.append((number + 1, last_us, last_us, last_us + 1, 0, appended, randbits(63), b""))
        repos = pack_states(changes.repos) if changes.repos else None
        return [*((*row, None, None) for row in rows[:-1]), (*rows[-1], self._moved(changes.cursors), repos)]

    def _moved(self, cursors: Cursors) -> str | None:
        """Return the cursors that have moved, and the names of those that are gone, as JSON; or None.

        In the form that `cursors_after` reads. None: no cursor has moved.
        """
        if cursors == self.cursors:
            return None
        before = self.cursors
        moved = [cursor_row(source, each) for source, each in cursors.items() if before.get(source) != each]
        gone = [(source,) for source in before if source not in cursors]
        return orjson.dumps([*moved, *gone]).decode()

    def count_segments(self, more: int) -> None:
        """Note that upkeep has changed the bytes of all segments."""
        if self.segment_bytes is not None:
            self.segment_bytes += more

    # The end

    def end(self, problem: str) -> Fenced:
        """End the term, and return the error.

        Only the first reason counts. `ended` is set, on which `terms` ends the intake.
        """
        failure = Fenced(self.log.name, problem)
        if self._failure is None:
            self._failure = failure
            self.ended.set()
        return failure

    def raise_failure(self) -> None:
        """Raise the error that has ended the term, if one has.

        Raises Fenced. Called before each append and each run of upkeep.
        """
        if self._failure is not None:
            raise self._failure

    async def resign(self) -> None:
        """End the term, so that a standby may lead at once. The log stays open.

        Stops upkeep first, so that its last transaction is over. May be called again.
        """
        for close in self.on_close:
            await close()
        if self._failure is None:
            self.end("this process has resigned")
            await self._appender.resign()
        await self._appender.close()

    async def close(self) -> None:
        """Resign, and close the log."""
        await self.resign()
        await self.log.close()
