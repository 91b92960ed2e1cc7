"""The keys of all accounts, in an SQLite file of their own: `keys.sqlite3` in the data directory.

    key      one row an account: its DID (`atproto.compact_did`), its key (`held`), and when that was so
    staged   DIDs and keys of an import, in the order in which they were read, by the first byte of their DID
    state    how far the directory's export was read, as JSON

*Import.* DIDs are random, so each operation of an export belongs to another page of the table. An import
does not write to these pages: it appends to `staged`, and `fold` moves the operations to their places at the
end, one first byte after another, sorted.

*Which is newer.* A key that was fetched replaces any other. What a page of the export says replaces keys that
were fetched before the page: it has everything up to then. Both times are those of our clock. An import is as
new as its last page.

*Crashes.* A transaction is either there or not, with the state that belongs to it. After a power loss the
last ones may be missing; they are read or fetched again.

*Damage.* All that is in the file can be had again. So a damaged file is renamed to `keys.sqlite3.damaged`,
and a new one begins.

Every method may be called by any thread, by one at a time.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final

import orjson
import structlog

from jetstream.atproto.compact_did import PLC_BYTES
from jetstream.errors import KeyCacheError, KeyCacheFull, KeyCacheReplaced
from jetstream.identity.export import Progress, parse_progress
from jetstream.identity.held import KEY_BYTES

FILE: Final = "keys.sqlite3"
LOCK: Final = "keys.lock"
APPLICATION_ID: Final = 0x4A53_4B59  # "JSKY"
VERSION: Final = 1
RECORD_BYTES: Final = PLC_BYTES + KEY_BYTES  # of a staged operation
_BUSY_S: Final = 10.0  # an import by another process holds the file for a second at most
_READ_AT_ONCE: Final = 500  # SQLite allows 32,766 values in a statement
_SCHEMA: Final = f"""
    CREATE TABLE key (did BLOB PRIMARY KEY, key BLOB NOT NULL, at INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE staged (id INTEGER PRIMARY KEY, bucket INTEGER NOT NULL, records BLOB NOT NULL);
    CREATE INDEX staged_bucket ON staged (bucket);
    CREATE TABLE state (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    PRAGMA application_id = {APPLICATION_ID};
    PRAGMA user_version = {VERSION};
"""
_WRITE: Final = "INSERT OR REPLACE INTO key (did, key, at) VALUES (?, ?, ?)"
# A time that is ahead of the clock was given by a clock which was wrong.
_APPLY: Final = """
    INSERT INTO key (did, key, at) VALUES (?1, ?2, ?3)
    ON CONFLICT (did) DO UPDATE SET key = excluded.key, at = excluded.at
    WHERE key.at <= excluded.at OR key.at > ?4
"""
_DAMAGE: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}

logger = structlog.get_logger(__name__)
Row = tuple[bytes, bytes, int]  # a compact DID, a packed key, unix seconds


class KeyStore:
    """The file. Raises KeyCacheError if it cannot be used, and KeyCacheReplaced when it was damaged."""

    def __init__(self, directory: Path, now: Callable[[], float] = time.time) -> None:
        self.path = directory / FILE
        self._now = now  # unix seconds
        with suppress(KeyCacheReplaced), self._guarded():
            self._connection = self._open()  # replaced by `_replace`

    def close(self) -> None:
        """Close the file."""
        with suppress(sqlite3.Error):
            self._connection.close()

    def read(self, dids: Sequence[bytes]) -> dict[bytes, tuple[bytes, int]]:
        """Return the packed key and its time of each DID that has a row."""
        found: dict[bytes, tuple[bytes, int]] = {}
        with self._guarded():
            for start in range(0, len(dids), _READ_AT_ONCE):
                some = dids[start : start + _READ_AT_ONCE]
                marks = ",".join("?" * len(some))
                query = f"SELECT did, key, at FROM key WHERE did IN ({marks})"  # noqa: S608 - only marks
                found.update((did, (key, at)) for did, key, at in self._connection.execute(query, some))
        return found

    def write(self, rows: Iterable[Row], forgotten: Iterable[bytes] = ()) -> None:
        """Write keys that were fetched, and remove those of `forgotten` DIDs."""
        with self._transaction():
            self._connection.executemany(_WRITE, sorted(rows))
            self._connection.executemany("DELETE FROM key WHERE did = ?", ((did,) for did in forgotten))

    def apply(self, rows: Iterable[Row], progress: Progress) -> None:
        """Write the keys of a page, at the time when it was asked for, and how far the export was read."""
        with self._transaction():
            self._apply(rows)
            self._save(progress)

    def stage(self, records: Mapping[int, bytes], progress: Progress) -> None:
        """Append operations of an import: records of `RECORD_BYTES`, by the first byte of their DID."""
        with self._transaction():
            self._connection.executemany(
                "INSERT INTO staged (bucket, records) VALUES (?, ?)", sorted(records.items())
            )
            self._save(progress)

    def fold(self, operations_max: int, at_s: int) -> bool:
        """Move about `operations_max` staged operations to their places. Return whether there may be more.

        `at_s` is when the last page of the import was asked for, in unix seconds.
        """
        with self._transaction():
            (bucket,) = self._connection.execute("SELECT min(bucket) FROM staged").fetchone()
            if bucket is None:
                return False
            rows: list[Row] = []
            last = 0
            for number, records in self._connection.execute(
                "SELECT id, records FROM staged WHERE bucket = ? ORDER BY id", (bucket,)
            ):
                rows += _rows(records, at_s)
                last = number
                if len(rows) >= operations_max:
                    break
            # The sort is stable: of a DID's operations, the last one is applied last.
            self._apply(sorted(rows, key=lambda row: row[0]))
            self._connection.execute("DELETE FROM staged WHERE bucket = ? AND id <= ?", (bucket, last))
        return True

    def save(self, progress: Progress) -> None:
        """Write how far the export was read."""
        with self._transaction():
            self._save(progress)

    def progress(self) -> Progress:
        """Return how far the export was read."""
        with self._guarded():
            row = self._connection.execute("SELECT value FROM state WHERE name = 'export'").fetchone()
        return Progress() if row is None else parse_progress(row[0])

    def bytes_on_disk(self) -> int:
        """Return the size of the file and of its write-ahead log, which is emptied if nothing reads it."""
        with self._guarded():
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        paths = (self.path, self.path.with_name(FILE + "-wal"))
        return sum(path.stat().st_size for path in paths if path.exists())

    def _apply(self, rows: Iterable[Row]) -> None:
        now_s = int(self._now())
        self._connection.executemany(_APPLY, ((*row, now_s) for row in rows))

    def _save(self, progress: Progress) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO state VALUES ('export', ?)", (orjson.dumps(asdict(progress)),)
        )

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, isolation_level=None, timeout=_BUSY_S, check_same_thread=False
        )
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA cache_size = -16000")  # 16 MB
        connection.execute("BEGIN IMMEDIATE")
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if not tables:
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
        elif (application, version) != (APPLICATION_ID, VERSION):
            raise KeyCacheError(self.path, "is no cache of keys of this version: move it away, or delete it")
        connection.execute("COMMIT")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._guarded():
            self._connection.execute("BEGIN IMMEDIATE")
            with self._connection:  # commits, or rolls back
                yield

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Raise KeyCacheError for an error of SQLite; replace the file first if it is damaged."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in _DAMAGE:
                self._replace(error)
                raise KeyCacheReplaced(self.path, f"was damaged ({error})") from error
            full = code == sqlite3.SQLITE_FULL
            raise (KeyCacheFull if full else KeyCacheError)(self.path, str(error)) from error

    def _replace(self, problem: Exception) -> None:
        if hasattr(self, "_connection"):
            self.close()
        aside = self.path.with_name(FILE + ".damaged")
        try:
            os.replace(self.path, aside)
            for suffix in ("-wal", "-shm"):
                self.path.with_name(FILE + suffix).unlink(missing_ok=True)
            self._connection = self._open()
        except (sqlite3.Error, OSError) as error:
            raise KeyCacheError(self.path, f"is damaged, and cannot be replaced: {error}") from error
        logger.warning(
            "the cache of signing keys was damaged, and a new one begins: `jetstream keys import` fills it",
            problem=str(problem),
            damaged_file=str(aside),
        )


def _rows(records: bytes, at_s: int) -> Iterator[Row]:
    """Yield the operations of staged records."""
    for start in range(0, len(records) - RECORD_BYTES + 1, RECORD_BYTES):
        middle, end = start + PLC_BYTES, start + RECORD_BYTES
        yield records[start:middle], records[middle:end], at_s


@contextmanager
def export_lock(directory: Path) -> Iterator[None]:
    """Lock a directory for the one process that reads the export into it, while the block runs.

    Two of them would move each other's position. Processes that only look keys up and add some need no lock.
    The directory is created if it is missing. Raises KeyCacheError.
    """
    path = directory / LOCK
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise KeyCacheError(path, f"cannot be opened: {error.strerror}") from error
    try:
        _lock(path, descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(path: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise KeyCacheError(path, "another process imports keys into this directory") from error
