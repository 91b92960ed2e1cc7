"""Reading a whole log at once, while a server may write it: for the commands `stats`, `cat` and `check`.

Synchronous: each statement is run to its end. Each is a short snapshot, so that a long export holds nothing
back. Events that are trimmed meanwhile are left out; damage ends the export with an error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import asyncpg

from jetstream.errors import LogCorrupt, LogError
from jetstream.eventlog.columns import Damaged
from jetstream.eventlog.contents import Checked, Contents
from jetstream.eventlog.erase import without_erased
from jetstream.eventlog.postgresql.beginning import CURSORS, MOVED, cursors_after
from jetstream.eventlog.postgresql.connection import connect, drop, translated
from jetstream.eventlog.postgresql.reader import DatabaseReader
from jetstream.eventlog.postgresql.schema import SEALED, check_version, read_row
from jetstream.eventlog.reader import Hole
from jetstream.eventlog.segment import Segment, unpack_times, verify
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.filter import EVERYTHING, Filter
from jetstream.urls import shown

HOLE_S: Final = 10.0  # for which what is missing may be on its way
_EXTENT: Final = "SELECT floor_us, greatest((SELECT max(last_us) FROM tail), 0) FROM state"
_SIZE: Final = (
    "SELECT sum(pg_total_relation_size(name::regclass))::bigint"
    " FROM unnest(ARRAY['tail_a', 'tail_b', 'segment', 'repo', 'gap', 'account']) AS name"
)
_COUNTS: Final = (
    "SELECT (SELECT count(*) FROM segment), (SELECT repos FROM state),"
    " (SELECT count(*) FROM tail WHERE repos IS NOT NULL AND id > (SELECT folded_id FROM state)),"
    " (SELECT count(*) FROM gap)"
)
_KEYS: Final = "SELECT last_us FROM segment WHERE last_us > $1 ORDER BY last_us LIMIT 1000"
_SEGMENT: Final = f"SELECT follows_us, {', '.join(Segment._fields)} FROM segment WHERE last_us = $1"
# Not sealed, and with events: in pieces of a thousand.
_ROWS: Final = (
    f"SELECT last_us, first_us, events, data, follows_us FROM tail WHERE last_us > greatest($1, {SEALED})"
    " AND first_us <= last_us ORDER BY last_us LIMIT 1000"
)

Fetch = Callable[..., list[Any]]


@contextmanager
def reading(address: str) -> Iterator[Fetch]:
    """Connect to an existing log; give what runs a statement. Raises LogError.

    It runs an event loop of its own, so it is for commands, not for a server. The connection is closed at
    the end. Damage inside becomes LogCorrupt.
    """
    with asyncio.Runner() as runner:
        connection: asyncpg.Connection | None = None
        try:
            with translated(address):
                connection = runner.run(connect(address))
                runner.run(check_version(connection, address))

                def fetch(statement: str, *values: object) -> list[Any]:
                    """Run one statement to its end, and return its rows."""
                    rows: list[Any] = runner.run(connection.fetch(statement, *values))
                    return rows

                yield fetch
        except Damaged as error:
            raise LogCorrupt(shown(address), f"is damaged ({error}); restore it from a backup") from error
        finally:
            runner.run(drop(connection))


def selected(
    address: str, position: int, stop: int | None, wanted: Filter
) -> Iterator[tuple[Batch, Sequence[int]]]:
    """Yield the wanted events in `[position, stop)`, as batches and the indices of the wanted events.

    The batches are as they are stored, and may exceed the range; the indices do not.
    `stop` None means up to the tip. Raises LogError.

    Lazy, like that of SQLite. Records that are still to be erased are left out. What is missing is waited
    for, `HOLE_S` seconds: it may be between two tables just now, or a replica may be behind.
    """
    with reading(address) as fetch:
        ((floor, tip),) = fetch(_EXTENT)
        tombstones = dict(fetch("SELECT did, before_us FROM tombstone"))
        position, stop = max(position, floor), tip + 1 if stop is None else min(stop, tip + 1)
        reader = DatabaseReader(fetch, LogLimits(), 0, strict=True)
        missing_since: float | None = None
        while position < stop:
            try:
                after, found = reader.scan(position, stop, wanted)
                batch = reader.load(found) if isinstance(found, int) else found
            except Hole:
                ((floor, _),) = fetch(_EXTENT)
                position = max(position, floor)
                now = time.monotonic()
                missing_since = missing_since or now
                if now - missing_since > HOLE_S:
                    raise LogError(shown(address), f"what follows position {position} is missing") from None
                time.sleep(0.1)
                continue
            missing_since = None
            if batch is not None:
                kept = without_erased(batch, tombstones) if tombstones else None
                batch = batch if kept is None else kept
                yield batch, wanted.select(batch, batch.index(position), batch.index(stop))
            position = after


def contents(address: str) -> Contents:
    """Count what a log holds. Raises LogError.

    Kinds and collections are counted event by event. The other numbers are of slightly earlier moments.
    """
    with reading(address) as fetch:
        ((floor, tip),) = fetch(_EXTENT)
        ((size,),) = fetch(_SIZE)
        ((segments, repos, changes, gaps),) = fetch(_COUNTS)
        cursors = cursors_after(fetch(CURSORS), (text for (text,) in fetch(MOVED)))
        counted = Contents(size, floor, tip, cursors, segments, repos, changes, gaps)
    for batch, _ in selected(address, floor, tip + 1, EVERYTHING):
        if len(batch):
            counted.add(batch)
    return counted


def check(address: str) -> Checked:
    """Read everything and compare it with its checksums. Raises LogError if there is nothing to read."""
    with reading(address) as fetch:
        return checked(fetch)


def checked(fetch: Fetch) -> Checked:
    """Check a log while a server may write. `fetch` runs a statement, each with a snapshot of its own.

    Ends when it has reached the tip. Segments come first, then rows of the tail by the thousand; before
    each of these, it looks whether some were sealed meanwhile.
    """
    check = _Check(fetch)
    check.segments()
    while True:
        rows = fetch(_ROWS, check.end_us)
        # What was sealed since the segments were read is among them now.
        if (not rows or rows[0]["follows_us"] > check.end_us) and check.segments():
            continue
        if not rows:
            return check.found
        for row in rows:
            check.row(row)


class _Check:
    """Follows the log from its floor to its tip, part by part."""

    def __init__(self, fetch: Fetch) -> None:
        self.found = Checked()
        self._fetch = fetch
        # The end of the part that was checked last.
        self.end_us: int = self._floor_us() - 1

    def segments(self) -> int:
        """Check the segments that follow; return how many there were."""
        count = 0
        while keys := self._fetch(_KEYS, self.end_us):
            for (key,) in keys:
                self._segment(key)
            count += len(keys)
        return count

    def _segment(self, key: int) -> None:
        """Check one segment, unless it was deleted meanwhile."""
        for follows_us, *stored in self._fetch(_SEGMENT, key):
            self._check_order(f"segment that ends at {key}", follows_us)
            segment = Segment(*stored)
            if not segment.events:
                continue
            try:
                verify(segment)
                times = unpack_times(segment.times)
            except Damaged as error:
                self.found.problems.append(f"the segment that ends at {key} is lost: {error}")
            else:
                self.found.segments += 1
                # Some may have been checked as rows, before they were sealed.
                self.found.events += sum(time_us > self.end_us for time_us in times)
        self.end_us = key

    def row(self, stored: Any) -> None:
        """Check one row of the tail."""
        last_us, *_, follows_us = stored
        self._check_order(f"row of the tail that ends at {last_us}", follows_us)
        try:
            self.found.events += read_row(stored).events
        except Damaged as error:
            self.found.problems.append(f"the row of the tail that ends at {last_us} is lost: {error}")
        self.end_us = last_us

    def _check_order(self, what: str, follows_us: int) -> None:
        """Note what is missing before a part, unless it was trimmed meanwhile.

        `what` names the part, and `follows_us` is the end of the one before it.
        """
        if follows_us > self.end_us and follows_us >= self._floor_us():
            self.found.problems.append(f"the {what} follows {follows_us}, and what ends there is missing")

    def _floor_us(self) -> int:
        """Return the floor as of now: it rises while a check runs."""
        ((floor_us, _),) = self._fetch(_EXTENT)
        return int(floor_us)
