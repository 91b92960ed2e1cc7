"""Reading a whole log at once, while a server may write it: for the commands `stats` and `cat`.

Each scan and each load is a short snapshot, so a long export does not keep the server from restarting its
write-ahead log. Events that are trimmed meanwhile are left out; damage ends the export with an error.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from jetstream.eventlog.contents import Contents
from jetstream.eventlog.sqlite.connection import bytes_on_disk, reading
from jetstream.eventlog.sqlite.gaps import count_gaps
from jetstream.eventlog.sqlite.reader import FileReader
from jetstream.eventlog.sqlite.schema import DATABASE, read_cursors, read_tip
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.filter import EVERYTHING, Filter

# Rows are in the order of their ranges: the first one of each table is enough.
_OLDEST: Final = """
SELECT min(first_us) FROM (
    SELECT * FROM (SELECT first_us FROM segment ORDER BY last_us LIMIT 1)
    UNION ALL SELECT * FROM (SELECT first_us FROM tail ORDER BY last_us LIMIT 1)
)
"""


class Extent(NamedTuple):
    """The size of a log, without a look at its events. Positions are unix microseconds."""

    events: int
    bytes_on_disk: int  # of the database and its write-ahead log
    oldest_us: int | None  # of the oldest batch or segment; None: the log is empty
    tip_us: int

    @property
    def span_s(self) -> float:
        """The seconds from the oldest event to the tip."""
        return 0.0 if self.oldest_us is None else (self.tip_us - self.oldest_us) / 1e6


def extent(directory: Path) -> Extent:
    """Return the size of a log, in some milliseconds. Raises LogError.

    For `jetstream doctor`. What is only in the journal is not counted.
    """
    with reading(directory) as connection:
        tip, events = connection.execute("SELECT tip_us, events FROM extent").fetchone()
        (oldest,) = connection.execute(_OLDEST).fetchone()
        return Extent(events, bytes_on_disk(directory / DATABASE), oldest, tip)


def selected(
    directory: Path, position: int, stop: int | None, wanted: Filter
) -> Iterator[tuple[Batch, Sequence[int]]]:
    """Yield the wanted events in `[position, stop)`, as batches and the indices of the wanted events.

    The batches are as they are stored, and may exceed the range; the indices do not.
    `stop` None means up to the tip. Raises LogError.

    `position` and `stop` are unix microseconds. Lazy: the file is open until the iterator ends or is
    closed.
    """
    with reading(directory) as connection:
        reader = FileReader(connection, LogLimits(), strict=True)
        after_tip = read_tip(connection) + 1
        stop = after_tip if stop is None else min(stop, after_tip)
        while position < stop:
            after, found = reader.scan(position, stop, wanted)
            batch = reader.load(found) if isinstance(found, int) else found
            if batch is not None:
                yield batch, wanted.select(batch, batch.index(position), batch.index(stop))
            position = after


def contents(directory: Path) -> Contents:
    """Count what a log holds. Raises LogError.

    Reads every event, since kinds and collections are counted one by one. The other numbers are of
    slightly earlier moments.
    """
    with reading(directory) as connection:
        floor, tip = connection.execute("SELECT floor_us, tip_us FROM extent").fetchone()
        (segments,) = connection.execute("SELECT count(*) FROM segment").fetchone()
        size = bytes_on_disk(directory / DATABASE)
        counted = Contents(size, floor, tip, read_cursors(connection), segments, *_states(connection))
    for batch, _ in selected(directory, floor, tip + 1, EVERYTHING):
        counted.add(batch)
    return counted


def _states(connection: sqlite3.Connection) -> tuple[int, int, int]:
    """Return the numbers of states of repositories, of rows of their changes, and of gaps."""
    (repos,) = connection.execute("SELECT repos FROM state").fetchone()
    (changes,) = connection.execute("SELECT count(*) FROM repo_change").fetchone()
    return repos, changes, count_gaps(connection)
