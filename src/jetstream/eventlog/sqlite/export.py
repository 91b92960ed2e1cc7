"""Reading a whole log at once, while a server may write it: for the commands `stats` and `cat`.

Each scan and each load is a short snapshot, so a long export does not keep the server from restarting its
write-ahead log. Events that are trimmed meanwhile are left out; damage ends the export with an error.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from jetstream.errors import LogError
from jetstream.eventlog import SourceCursor
from jetstream.eventlog.sqlite.connection import (
    TranslatedErrors,
    bytes_on_disk,
    existing_database,
    open_reader,
)
from jetstream.eventlog.sqlite.reader import FileReader
from jetstream.eventlog.sqlite.schema import check_schema, read_cursors, read_tip
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.filter import EVERYTHING, Filter


@dataclass
class Contents:
    """What a log holds, counted event by event."""

    bytes_on_disk: int  # of the database and its write-ahead log
    floor: int
    tip: int
    cursors: dict[str, SourceCursor]  # by source
    segments: int
    # The positions of the oldest and the newest event, None in an empty log.
    oldest_us: int | None = None
    newest_us: int | None = None
    # Events by kind, and commits by collection.
    kinds: Counter[bytes] = field(default_factory=Counter)
    collections: Counter[bytes] = field(default_factory=Counter)
    # Uncompressed bytes of all values but the times.
    text_bytes: int = 0


def selected(
    directory: Path, position: int, stop: int | None, wanted: Filter
) -> Iterator[tuple[Batch, Sequence[int]]]:
    """Yield the wanted events in `[position, stop)`, as batches and the indices of the wanted events.

    The batches are as they are stored, and may exceed the range; the indices do not.
    `stop` None means up to the tip. Raises LogError.
    """
    path = existing_database(directory)
    with TranslatedErrors(path, LogError), closing(open_reader(path)) as connection:
        check_schema(path, connection)
        yield from _selected(connection, position, read_tip(connection) + 1 if stop is None else stop, wanted)


def contents(directory: Path) -> Contents:
    """Count what a log holds. Raises LogError."""
    path = existing_database(directory)
    with TranslatedErrors(path, LogError), closing(open_reader(path)) as connection:
        check_schema(path, connection)
        floor, tip = connection.execute("SELECT floor_us, tip_us FROM extent").fetchone()
        (segments,) = connection.execute("SELECT count(*) FROM segment").fetchone()
        counted = Contents(bytes_on_disk(path), floor, tip, read_cursors(connection), segments)
        for batch in _batches(connection, floor, tip + 1, EVERYTHING):
            _count(counted, batch)
        return counted


def _count(counted: Contents, batch: Batch) -> None:
    """Add the events of one batch."""
    if counted.oldest_us is None:
        counted.oldest_us = batch.first
    counted.newest_us = batch.last
    counted.kinds.update(batch.kinds)
    counted.collections.update(filter(None, batch.collections))
    for column in (batch.dids, batch.collections, batch.rkeys, batch.revs, batch.cids, batch.bodies):
        counted.text_bytes += sum(map(len, column))


def _selected(
    connection: sqlite3.Connection, position: int, stop: int, wanted: Filter
) -> Iterator[tuple[Batch, Sequence[int]]]:
    for batch in _batches(connection, position, stop, wanted):
        yield batch, wanted.select(batch, batch.index(position), batch.index(stop))
        position = max(position, batch.last + 1)


def _batches(connection: sqlite3.Connection, position: int, stop: int, wanted: Filter) -> Iterator[Batch]:
    """Yield the batches that may have wanted events, as they are stored: a batch may exceed the range."""
    reader = FileReader(connection, LogLimits())
    while position < stop:
        position, found = reader.scan(position, stop, wanted)
        batch = reader.load(found) if isinstance(found, int) else found
        if batch is not None:
            yield batch
