"""The journal: small appends, in a file of their own until upkeep moves them to the database.

A transaction of SQLite writes whole pages: 10 kB for one event of 500 bytes. So an append of a few events is
written to the end of `jetstream.journal` instead, and about once a second all of them become one transaction.

    append ──small──▶ journal ──about once a second──▶ tail, cursor, repo_change
       └──────── large, or with rare changes ───────────▲

The file has a fixed size, and is overwritten from its start after each such transaction. It holds entries,
one for each append:

    crc size   commits before_us first_us last_us   sizes     parts
    4   4      8       8         8        8         10 of 4   …
               └── size bytes, of which crc is the CRC-32 ────┘

The parts are the eight columns, empty without an event; the cursors as JSON, with the values of their rows;
and the changed states of repositories, as in a row of `repo_change`.

An entry counts if it continues what is stored: `commits` is the number of commits that the database has, and
`before_us` the tip of the database or of the entry before. So an entry that was torn, that is in the database
by now, or that follows a lost commit is left out, and so are those behind it. What is lost with them is read
from the upstream again, as after any lost commit.

An append to the journal survives the process like a commit does: both are in the page cache, and neither
waits for the disk.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

import orjson
import structlog

from jetstream.eventlog import Cursors
from jetstream.eventlog.columns import Columns
from jetstream.eventlog.cursors import cursor_row, named_cursor
from jetstream.eventlog.sqlite.connection import Transaction
from jetstream.eventlog.sqlite.repos import insert_changes
from jetstream.eventlog.sqlite.schema import (
    Totals,
    insert_row,
    read_totals,
    store_cursors,
)
from jetstream.eventlog.states import Repos, pack, records_of
from jetstream.model.batch import Batch

FILE: Final = "jetstream.journal"
# Little-endian; the diagram above names the fields. A change of them changes `docs/log-format.md`.
_CHECKED: Final = Struct("<II")  # the checksum of all that follows, and its size
_HEAD: Final = Struct("<Qqqq10I")  # commits, positions, sizes of the parts

logger = structlog.get_logger(__name__)


class Raw(NamedTuple):
    """An entry as it is stored: its bytes without the checksum, and where the next one begins.

    `sizes` has the sizes of the ten parts. `first_us` is above `last_us` in an entry without events.
    """

    first_us: int
    last_us: int
    body: bytes
    sizes: Sequence[int]
    end: int

    @property
    def parts(self) -> list[bytes]:
        """The parts, in order."""
        parts, at = [], _HEAD.size
        for size in self.sizes:
            parts.append(self.body[at : at + size])
            at += size
        return parts

    @property
    def columns(self) -> Columns | None:
        """The events; None without any."""
        *columns, _, _ = self.parts
        return Columns(*columns) if columns[0] else None


class Entry(NamedTuple):
    """What one append has stored: events if it had some, the cursors and the states that have changed.

    `last_us` is the tip after it.
    """

    # The first event's position; one above the tip in an entry without events.
    first_us: int
    last_us: int
    columns: Columns | None
    # Only the cursors that have moved, but at least one if the log has any.
    cursors: Cursors
    repos: Repos

    @property
    def events(self) -> int:
        """The number of events."""
        return 0 if self.columns is None else self.columns.events


class Journal:
    """The journal of one log. It belongs to the event loop's thread.

    It takes up to `size` bytes and `events_max` events, which become one row of the tail. With a size of 0,
    or on a disk without room for it, which is a warning, it takes nothing. Old entries must be in the
    database: they are overwritten.

    The file is written with pwrite(2), without a wait for the disk, and never read again by the process
    that wrote it.
    """

    def __init__(self, directory: Path, size: int, events_max: int) -> None:
        """Open the file, or make one of `size` bytes, and overwrite what it has."""
        self._path = directory / FILE
        # The file, None without one; how many bytes it may have.
        self._file: int | None = None
        self._size = 0
        self._open(size)
        # Where the next entry goes, and up to where there may be old ones. `wipe` overwrites these.
        self._end = 0
        self._used = self._size
        # The entries that are not in the database, oldest first, and how many events they have.
        self.entries: list[Entry] = []
        self.events = 0
        self._events_max = events_max
        # A process may have been killed before it could wipe what is erased in the database.
        self.wipe()

    def _open(self, size: int) -> None:
        """Open or make the file, with all of its blocks allocated, so that no append finds the disk full.

        What it had stays. Without room, `_file` or `_size` stay as they were, and `append` takes nothing.
        """
        if not size:
            return
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            os.posix_fallocate(self._file, 0, size)
            self._size = size
        except OSError as error:
            logger.warning("log: without a journal, each append is committed", problem=str(error))

    def append(self, entry: Entry, commits: int, before_us: int) -> bool:
        """Write an entry, which continues so many commits and that tip.

        Returns False if it has no room, or the disk refuses: the entry must be committed instead.

        `commits` is the number of commits that the database has, and `before_us` the tip before this
        entry. Other values than those that `walk` expects would end recovery at this entry.
        """
        if self._file is None or self.events + entry.events > self._events_max:
            return False
        data = _packed(entry, commits, before_us)
        end = self._end + len(data)
        if end > self._size:
            return False
        self._used = max(self._used, end)  # also when the disk refuses: some may be written
        if not _written(self._file, data, self._end):
            return False
        self._end = end
        self.events += entry.events
        self.entries.append(entry)
        return True

    def clear(self) -> None:
        """Forget the entries, which are in the database now.

        Called after the commit that has stored them, never before. The bytes stay in the file until
        overwritten.
        """
        self.entries = []
        self._end = self.events = 0

    def renew(self) -> None:
        """Take the file that has the name now, or make one, if this one has lost it. There are no entries.

        Somebody has deleted it, or copied an old one into its place. What was written to it from then on, no
        process could find.
        """
        assert not self.entries
        if self._file is None or _has_name(self._file, self._path):
            return
        logger.warning("log: the journal was deleted or replaced, and is made again", path=str(self._path))
        size, self._size = self._size, 0
        os.close(self._file)
        self._file = None
        self._open(size)
        self._used = self._size
        self.wipe()

    def wipe(self) -> None:
        """Overwrite old entries with zeros. There are no others.

        So what is erased in the database is not left here. Upkeep calls it at the end of a pass. A disk
        that refuses it is asked again at the next call.
        """
        assert not self.entries
        if self._file is not None and _written(self._file, bytes(self._used), 0):
            self._used = 0

    @property
    def first_us(self) -> int | None:
        """The position of the first event that is only here; None: there is none.

        For the oldest event of a log of which nothing is in the database.
        """
        return next((entry.first_us for entry in self.entries if entry.events), None)

    def batches(self) -> Iterator[Batch]:
        """Yield the events that are only here."""
        return (entry.columns.batch() for entry in self.entries if entry.columns is not None)

    def starts_below(self, position: int) -> bool:
        """Tell whether an event below a position is only here."""
        return bool(self.entries) and self.entries[0].first_us < position

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)


def store_entries(
    connection: sqlite3.Connection, entries: Sequence[Entry], appended: int, commits: int
) -> int | None:
    """Write at least one entry to the tables, inside a transaction.

    `appended` and `commits` are the totals with them. Returns the row of the states of repositories, if some
    have changed.

    All events become one row of the tail. Of each cursor and each state, the last one counts.
    """
    runs = [(entry, entry.columns) for entry in entries if entry.columns is not None]
    if runs:
        columns = Columns.joined(columns for _, columns in runs)
        insert_row(connection, runs[0][0].first_us, runs[-1][0].last_us, columns)
    cursors = {source: cursor for entry in entries for source, cursor in entry.cursors.items()}
    totals = Totals(entries[-1].last_us, appended, commits)
    store_cursors(connection, cursors, totals, same_sources=True)
    repos = {did: state for entry in entries for did, state in entry.repos.items()}
    return insert_changes(connection, repos) if repos else None


def recover(directory: Path, connection: sqlite3.Connection) -> None:
    """Store what the journal has beyond the database, in one transaction.

    Raises sqlite3.DatabaseError, and OSError for a journal that cannot be read.

    Called before anything else is written, by a process that holds the lock. Entries that do not continue
    the database are left out without a word: they are old or torn.
    """
    try:
        data = (directory / FILE).read_bytes()
    except FileNotFoundError:
        return
    totals = read_totals(connection)
    entries = list(map(_entry, walk(data, totals.commits, totals.tip_us)))
    if entries:
        appended = totals.appended + sum(entry.events for entry in entries)
        with Transaction(connection):
            store_entries(connection, entries, appended, totals.commits + 1)


def _has_name(file: int, path: Path) -> bool:
    """Tell whether a file is the one at a path."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(file), path.stat())
    return False


def _written(file: int, data: bytes, offset: int) -> bool:
    """Write to a file; return whether all was written."""
    with suppress(OSError):
        return os.pwrite(file, data, offset) == len(data)
    return False


def _packed(entry: Entry, commits: int, before_us: int) -> bytes:
    """Return an entry as bytes, with its checksum and its size in front."""
    columns = entry.columns or (b"",) * 8
    cursors = orjson.dumps([cursor_row(*each) for each in entry.cursors.items()])
    parts = (*columns, cursors, pack(entry.repos))
    head = _HEAD.pack(commits, before_us, entry.first_us, entry.last_us, *map(len, parts))
    data = b"".join((head, *parts))
    return _CHECKED.pack(crc32(data), len(data)) + data


def walk(data: bytes, commits: int, tip_us: int) -> Iterator[Raw]:
    """Yield the entries that continue a database with so many commits and this tip.

    `data` begins with an entry. It ends at the first one that is cut off, does not match its checksum, or
    continues something else. The positions in `Raw.end` count from the start of `data`.
    """
    at = 0
    while (size := claimed_bytes(data, at)) is not None:
        body = data[at + _CHECKED.size : at + size]
        checksum, _ = _CHECKED.unpack_from(data, at)
        if len(body) < max(size - _CHECKED.size, _HEAD.size) or crc32(body) != checksum:
            return
        continued, before_us, first_us, last_us, *sizes = _HEAD.unpack_from(body)
        if (continued, before_us) != (commits, tip_us):
            return
        tip_us, at = last_us, at + size
        yield Raw(first_us, last_us, body, sizes, at)


def claimed_bytes(data: bytes, at: int) -> int | None:
    """Return how many bytes an entry has by its own word; None if not even its beginning is there."""
    if len(data) < at + _CHECKED.size:
        return None
    return _CHECKED.size + int(_CHECKED.unpack_from(data, at)[1])


def _entry(raw: Raw) -> Entry:
    """Read the parts of an entry back. Its checksum was right, so they are what was written."""
    *_, cursors, repos = raw.parts
    named = dict(map(named_cursor, orjson.loads(cursors)))
    return Entry(raw.first_us, raw.last_us, raw.columns, named, dict(records_of(repos)))
