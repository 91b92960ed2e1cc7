"""Following a log that another process writes: what of it is in memory, and up to where it was read.

    snapshot ──▶ floor, tip, revision, rows of the tail ─┐
    journal ───▶ what was appended since ────────────────┴──▶ hot tail

A snapshot is complete: whatever the writer has committed up to its tip is in it, as rows of the tail or in
segments. So nothing is stepped over. Where the tail begins after the position up to which the log was read,
the events between are in segments by now. Then the hot tail is dropped, and all that it had is read from the
file.

Used by the event loop's thread only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import structlog

from jetstream.errors import LogCorrupt, LogError
from jetstream.eventlog.damage import DamageRecord
from jetstream.eventlog.erase import without_erased
from jetstream.eventlog.hot_tail import HotTail
from jetstream.eventlog.sqlite.connection import TranslatedErrors
from jetstream.eventlog.sqlite.schema import DATABASE
from jetstream.eventlog.sqlite.tailing import DatabaseReader, JournalReader, Snapshot
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch

# No log has this revision. No entry of a journal continues this number of commits and this tip.
NO_REVISION: Final = -1
NOWHERE: Final = (-1, -1)

logger = structlog.get_logger(__name__)


class FollowedLog:
    """What was read of a log that another process writes.

    `on_read` is called with the events that were read, once for each. `on_erased` is called when what was
    read of the file before may have been erased, `on_sign` when there is a sign of the writer.

    Events that were sealed before this process has seen them go to no `on_read`: they are in segments,
    and only readers meet them.
    """

    def __init__(
        self,
        directory: Path,
        database: DatabaseReader,
        damages: DamageRecord,
        limits: LogLimits,
        on_read: Callable[[Batch], None],
        on_erased: Callable[[], None],
        on_sign: Callable[[], None],
    ) -> None:
        """Take over `database`, which is closed with this object. Nothing is read before the first `step`."""
        self._path = directory / DATABASE
        self._limits = limits
        self._on_read = on_read
        self._on_erased = on_erased
        self._on_sign = on_sign
        # Reads what is new; another one takes its place when the file is replaced.
        self._database = database
        self._journal = JournalReader(directory)
        # What is found damaged is added, what is trimmed is removed.
        self._damages = damages
        # The newest events, and the position up to which they are there: below the tip only for a moment.
        # Another one takes its place when it is dropped.
        self.hot_tail = HotTail(0, limits)
        self.hot_to = 0
        # The position up to which the log was read, and up to which all is in the database. They rise.
        self.tip = 0
        self.stored_to = 0
        # As of the last snapshot: the lowest position, the oldest event, how many there are, the revision of
        # what is erased, and what is still to be erased.
        self.floor = 0
        self.oldest_us: int | None = None
        self._stored = 0
        self.revision = NO_REVISION
        self._tombstones: Mapping[bytes, int] = {}
        # Which commits and which tip the journal continues, and how many events it has.
        self._continued = NOWHERE
        self._journaled = 0
        # Whether the first snapshot was taken; whether the last one was not whole, or could not be taken.
        self._is_open = self._behind = False
        # Whether another file has taken the place of the database, and could not be opened yet.
        self._must_reopen = False
        # The commit at which the log seemed to end before what was read of it; None: it does not.
        self._set_back: tuple[int, int] | None = None

    @property
    def events(self) -> int:
        """How many events there are."""
        return self._stored + self._journaled

    @property
    def is_replaced(self) -> bool:
        """Whether another file has taken the place of the database, and is to be opened."""
        return self._must_reopen or self._database.is_replaced

    def step(self, *, database: bool) -> bool:
        """Read some of what is new, also of the database; return whether it was all. Raises LogError.

        One step reads a bounded part, so a reader that is far behind calls it in turns. `database` False
        reads the journal alone. Raises LogCorrupt for a log that was set back.
        """
        with TranslatedErrors(self._path, LogError):
            self._take_entries()
            if database and (self._database.changed() or self._behind):
                self._behind = True  # also if this fails
                self._behind = not self._take(self._snapshot())
                self._take_entries()
                self._refuse_set_back()
        return not self._behind

    def _take_entries(self) -> None:
        """Take what has come in the journal, or all of it again for a hot tail that was dropped."""
        for tip, columns in self._journal.read():
            batch = None if columns is None else self.without_erased(columns.batch())
            if batch is not None:
                self._journaled += len(batch)
                if batch.last > self.hot_to:
                    self.hot_tail.append(batch.since(self.hot_to + 1))
                if batch.last > self.tip:
                    self._on_read(batch.since(self.tip + 1))
            self.hot_to = max(self.hot_to, tip)
            self.tip = max(self.tip, tip)
            self._on_sign()

    def _snapshot(self) -> Snapshot:
        """Take a snapshot behind the tip, or of the whole tail at the first time; pass on damage."""
        found = self._database.snapshot(self.tip if self._is_open else -1)
        self._damages.add(self._database.take_damage())
        return found

    def _take(self, found: Snapshot) -> bool:
        """Take what a snapshot has; return whether that is all up to its tip.

        The order matters: erasing first, so that no batch is passed on that has erased records; then the
        floor; then the events.
        """
        erased = found.erasures != self.revision
        self.revision, self._tombstones = found.erasures, found.tombstones
        self._move_floor(found)
        self._stored, self.stored_to = found.events, found.tip
        batches = [batch.since(self.tip + 1) for batch in self._read_rows(found)]
        for batch in batches:
            self._on_read(batch)
        if not self._is_open:
            self._is_open = True
            self.hot_tail = HotTail(max(found.floor, found.sealed_us + 1), self._limits)
        else:
            self._on_sign()
            if erased:
                self._on_erased()
            if erased or found.sealed_us > self.tip or self.hot_to < self.tip:
                self._drop_hot_tail(found)
                return True
        for batch in batches:
            self.hot_tail.append(batch)
        self.tip = self.hot_to = max(self.tip, found.tip if found.whole else found.rows[-1].last_us)
        if not found.whole:
            self._follow_journal(NOWHERE)  # what it has now is in the database as well
        elif (found.commits, found.tip) != self._continued:
            self._follow_journal((found.commits, found.tip))
        return found.whole

    def _drop_hot_tail(self, found: Snapshot) -> None:
        """Have everything read from the file, and from the journal again, that was read before."""
        self.hot_tail, self.hot_to = HotTail(found.tip + 1, self._limits), found.tip
        self.tip = max(self.tip, found.tip)
        self._follow_journal((found.commits, found.tip))

    def _follow_journal(self, continued: tuple[int, int]) -> None:
        """Read the journal from its start, for the entries that continue this commit and tip."""
        self._continued, self._journaled = continued, 0
        self._journal.follow(*continued)

    def _refuse_set_back(self) -> None:
        """Raise LogCorrupt for a log that ends before what was read of it, at two looks at the same commit.

        At one look, the writer may have moved the journal to the database after the snapshot.
        """
        if self._behind or self._journal.tip >= self.tip:
            self._set_back = None
            return
        self._behind = True  # so that it is found again
        first, self._set_back = self._set_back, self._continued
        if first == self._continued:
            raise LogCorrupt(
                self._path,
                f"ends at {self._journal.tip}, and was read up to {self.tip} before: it was set back, or"
                " another log has taken its place; start this edge again",
            )

    def _read_rows(self, found: Snapshot) -> Iterator[Batch]:
        """Yield what rows of the tail have above the tip, without what is to be erased."""
        for row in found.rows:
            batch = self.without_erased(row.columns.batch())
            if batch is not None and batch.last > self.tip:
                yield batch

    def _move_floor(self, found: Snapshot) -> None:
        """Take over floor and oldest event; a floor that has risen drops what is below it from memory."""
        self.oldest_us = found.oldest_us
        if found.floor > self.floor:
            self.floor = found.floor
            self.hot_tail.drop_before(found.floor)
            self._damages.drop_before(found.floor)

    def reopen(self) -> None:
        """Read another file that has taken the place of this one. Raises LogError.

        If it fails, `is_replaced` stays true, and the next call tries again. What is in memory stays
        until the first snapshot of the new file, which has another revision.
        """
        self._must_reopen = True
        self.revision, self._behind = NO_REVISION, True
        with TranslatedErrors(self._path, LogError):
            self._database.close()
            self._database = DatabaseReader(self._path, self._limits)
            if not self._database.has_tables():
                raise LogError(self._path, "has no tables yet")
        self._must_reopen = False
        logger.info("log: another file has taken its place, and is read now", path=str(self._path))

    def without_erased(self, batch: Batch) -> Batch | None:
        """Return a batch of the file without the records that are still to be erased there."""
        if not self._tombstones:
            return batch
        kept = without_erased(batch, self._tombstones)
        return batch if kept is None else kept if len(kept) else None

    def close(self) -> None:
        """Close the files."""
        self._journal.close()
        self._database.close()
