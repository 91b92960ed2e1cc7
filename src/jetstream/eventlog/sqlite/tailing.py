"""Reading what another process has just written: first what the database holds, then the journal behind it.

    database   floor, tip, commits, revision, rows of the tail    in one snapshot
    journal    entries with the same `commits` that continue the tip

Both are on the event loop's thread: what is read was written a moment ago, and is in the page cache. The
place in the journal is remembered, so that the next entry costs one read of the file and no SQL. When the
writer has moved the entries to the database, those that follow have another `commits`, and a new snapshot
leads on.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from jetstream.errors import LogCorrupt, LogError
from jetstream.eventlog.columns import Columns
from jetstream.eventlog.damage import Damage
from jetstream.eventlog.reader import POSITION_MAX, Row
from jetstream.eventlog.sqlite.connection import BUSY_TIMEOUT_S, TranslatedErrors, open_reader, snapshot
from jetstream.eventlog.sqlite.damage import is_damage
from jetstream.eventlog.sqlite.journal import FILE, claimed_bytes, walk
from jetstream.eventlog.sqlite.reader import FileReader
from jetstream.eventlog.sqlite.rewrite import read_tombstones
from jetstream.eventlog.sqlite.schema import DATABASE, check_schema, oldest_us
from jetstream.limits import LogLimits

# Bytes of the journal that are read at once. Most entries have some hundred.
_READ_BYTES: Final = 32 << 10
# No entry has as many: its size is damaged.
_ENTRY_BYTES_MAX: Final = 64 << 20

_STATE: Final = (
    "SELECT extent.floor_us, extent.tip_us, extent.events, extent.commits, erasures,"
    " ifnull((SELECT max(last_us) FROM segment), -1) FROM extent, state"
)


logger = structlog.get_logger(__name__)


class Snapshot(NamedTuple):
    """What the database held at one moment.

    Positions are unix microseconds. `floor` to `erasures` are the values of the tables `state` and
    `cursor`.
    """

    floor: int
    tip: int
    # Events that are kept, and commits of appends ever: the journal's entries continue this commit.
    events: int
    commits: int
    erasures: int  # the revision of what is erased
    sealed_us: int  # where the last segment ends; -1 without one
    oldest_us: int | None
    # What is still to be erased: by DID, the position below which its records go.
    tombstones: Mapping[bytes, int]
    rows: list[Row]  # of the tail that end after the position that was asked for
    whole: bool  # whether these are all of them


class Appended(NamedTuple):
    """One entry of the journal: the tip after it, and its events."""

    tip: int
    columns: Columns | None


class JournalReader:
    """Reads the journal of a log that another process writes.

    It never writes, and needs no lock: an entry that is half written does not match its checksum.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        # The file, None until there is one; which one it is, since another one may take its place.
        self._file: int | None = None
        self._identity: tuple[int, int] | None = None
        # Where the next entry is expected, and what it continues: `tip` is that of the database, or after
        # the last entry. Set by `follow`, moved by `read`.
        self._at = self._commits = self.tip = 0

    def follow(self, commits: int, tip: int) -> None:
        """Begin with the entries that continue a database with so many commits and this tip.

        If another file has taken the place of the journal, they are in that one.
        """
        self._at, self._commits, self.tip = 0, commits, tip
        if self._file is not None and _identity(self._path) != self._identity:
            self.close()

    def read(self) -> list[Appended]:
        """Return the entries that have come, in order. Raises OSError.

        Each entry is returned once. Without a journal, or where what follows does not continue the last
        entry, the list is empty.
        """
        if self._file is None:
            self._open()
        found: list[Appended] = []
        size = _READ_BYTES if self._file is not None else 0
        while size:
            size = self._read_some(size, found)
        return found

    def _open(self) -> None:
        """Open the journal, if there is one, and remember which file that is."""
        with suppress(FileNotFoundError):
            self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(self._file)
            self._identity = status.st_dev, status.st_ino

    def _read_some(self, size: int, found: list[Appended]) -> int:
        """Read entries from so many bytes; return how many to read next, 0 if there is nothing more."""
        assert self._file is not None
        data, used = os.pread(self._file, size, self._at), 0
        for raw in walk(data, self._commits, self.tip):
            found.append(Appended(raw.last_us, raw.columns))
            self.tip, used = raw.last_us, raw.end
        self._at += used
        claimed = claimed_bytes(data, used)
        if len(data) < size or (claimed is not None and claimed <= len(data) - used):
            return 0  # the end of the file, or what follows does not continue
        needed = max(claimed or 0, _READ_BYTES)
        return needed if used or size < needed <= _ENTRY_BYTES_MAX else 0

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class DatabaseReader:
    """Reads the database of a log that another process writes. Raises sqlite3.DatabaseError."""

    def __init__(self, path: Path, limits: LogLimits) -> None:
        """Open the database. Raises sqlite3.OperationalError if there is none, or it cannot be opened."""
        # Without a long wait for a lock: the event loop would wait with it.
        self._connection = open_reader(path, BUSY_TIMEOUT_S)
        self._reader = FileReader(self._connection, limits)
        # Changes with each commit of another connection.
        self._version = -1
        # Which file this is: another one may take its place.
        self._identity = _identity(path)
        self._path = path

    @property
    def is_replaced(self) -> bool:
        """Whether another file has taken the place of this one, as `jetstream log repair` does."""
        return _identity(self._path) != self._identity

    def has_tables(self) -> bool:
        """Tell whether the writer has made the tables. Raises LogCorrupt for what is no log of ours."""
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if tables:
            check_schema(self._path, self._connection)
        return bool(tables)

    def changed(self) -> bool:
        """Tell whether something was committed since the last call."""
        before = self._version
        (self._version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return self._version != before

    def take_damage(self) -> list[Damage]:
        """Return the damage that was met since the last call."""
        damage = self._reader.damage[:]
        self._reader.damage.clear()
        return damage

    def snapshot(self, position: int) -> Snapshot:
        """Return what is there: of the tail what ends after a position, or the first of it.

        At most `LogLimits.batch_events` events or `batch_bytes` of bodies are taken, so that one look
        does not hold the event loop for long: then `whole` is False. Rows that are damaged are left out.
        """
        limits = self._reader.limits
        with snapshot(self._connection):
            state: Sequence[int] = self._connection.execute(_STATE).fetchone()
            rows, more = self._reader.tail_run(
                position + 1, POSITION_MAX, limits.batch_events, limits.batch_bytes
            )
            oldest, tombstones = self._oldest_us(state[0]), read_tombstones(self._connection)
        floor, tip, events, commits, erasures, sealed_us = state
        return Snapshot(
            floor, tip, events, commits, erasures, sealed_us, oldest, tombstones, rows, whole=not more
        )

    def _oldest_us(self, floor: int) -> int | None:
        """Return the position of the oldest event; the floor, where that cannot be read."""
        try:
            return oldest_us(self._connection)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            return floor

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


async def awaited_database(directory: Path, limits: LogLimits) -> DatabaseReader:
    """Return the database of a log, once there is one. Raises LogCorrupt for what is no log of ours.

    Looks every `LogLimits.poll_s` seconds, without a deadline, and says once in the log that it waits.
    """
    path, told, problem = directory / DATABASE, False, "there is no log yet"
    while True:
        try:
            if path.exists() and (database := _opened(path, limits)) is not None:
                return database
        except LogCorrupt:
            raise
        except LogError as error:
            problem = error.problem
        if not told:
            told = True
            event = "log: waiting for the process that writes it"
            logger.info(event, directory=str(directory), problem=problem)
        await asyncio.sleep(limits.poll_s)


def _opened(path: Path, limits: LogLimits) -> DatabaseReader | None:
    """Open a database; None if its tables are not made yet. Raises LogError."""
    with TranslatedErrors(path, LogError):
        database = DatabaseReader(path, limits)
        try:
            if database.has_tables():
                return database
        except BaseException:
            database.close()
            raise
    database.close()
    return None


def _identity(path: Path) -> tuple[int, int] | None:
    """Return the device and the inode of a file; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
