"""The SQLite file: its schema, its connections, its lock, and what its errors mean."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from jetstream.errors import LogCorrupt, LogError, LogLocked, LogUnwritable
from jetstream.eventlog import Cursors, SourceCursor
from jetstream.eventlog.columns import Columns, Damaged
from jetstream.eventlog.segment import Block

DATABASE: Final = "jetstream.db"
LOCK: Final = "jetstream.lock"

APPLICATION_ID: Final = 0x4A455453  # "JETS", as `file` shows it
SCHEMA_VERSION: Final = 2
SCHEMA: Final = """
CREATE TABLE state (
    id        INTEGER PRIMARY KEY CHECK (id = 1),
    tip_us    INTEGER NOT NULL,
    floor_us  INTEGER NOT NULL,
    appended  INTEGER NOT NULL,
    removed   INTEGER NOT NULL,
    checkpoints INTEGER NOT NULL
) STRICT;
INSERT INTO state VALUES (1, 0, 0, 0, 0, 0);
CREATE TABLE cursor (
    source    TEXT PRIMARY KEY,
    seq       INTEGER NOT NULL,
    provisional INTEGER,
    fell_from INTEGER,
    tip_us    INTEGER NOT NULL,
    appended  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE VIEW extent AS SELECT
    floor_us,
    max(tip_us, ifnull((SELECT max(tip_us) FROM cursor), 0)) AS tip_us,
    max(appended, ifnull((SELECT max(appended) FROM cursor), 0)) - removed AS events
FROM state;
CREATE TABLE tail (
    last_us   INTEGER PRIMARY KEY,
    first_us  INTEGER NOT NULL,
    events    INTEGER NOT NULL,
    crc       INTEGER NOT NULL,
    times BLOB NOT NULL, kinds BLOB NOT NULL, dids BLOB NOT NULL, collections BLOB NOT NULL,
    rkeys BLOB NOT NULL, revs BLOB NOT NULL, cids BLOB NOT NULL, bodies BLOB NOT NULL
) STRICT;
CREATE TABLE block (
    last_us   INTEGER PRIMARY KEY,
    first_us  INTEGER NOT NULL,
    events    INTEGER NOT NULL,
    collection_set BLOB NOT NULL, did_bits BLOB NOT NULL, accounts BLOB NOT NULL,
    times BLOB NOT NULL, kinds BLOB NOT NULL, dids BLOB NOT NULL, collections BLOB NOT NULL,
    rkeys BLOB NOT NULL, revs BLOB NOT NULL, cids BLOB NOT NULL, bodies BLOB NOT NULL
) STRICT;
CREATE TABLE gone (
    did       BLOB PRIMARY KEY,
    before_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE stored (
    last_us   INTEGER PRIMARY KEY,
    at_us     INTEGER NOT NULL
) STRICT;
CREATE TABLE clock (
    id        INTEGER PRIMARY KEY CHECK (id = 1),
    boot      TEXT NOT NULL,
    offset_us INTEGER NOT NULL
) STRICT;
"""

# Nobody else writes: a lock that is held for longer is a foreign program's.
BUSY_TIMEOUT_S: Final = 0.1
# Rows by their key, by table.
ROW: Final = {
    "block": "SELECT * FROM block WHERE last_us = ?",
    "tail": "SELECT * FROM tail WHERE last_us = ?",
}
DELETE_ROW: Final = {
    "block": "DELETE FROM block WHERE last_us = ?",
    "tail": "DELETE FROM tail WHERE last_us = ?",
}
REMEDY: Final = "`jetstream log repair` keeps every whole block of it; or move it away to begin anew"

_CORRUPT: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}


def take_lock(directory: Path) -> int:
    """Become the one writer of `directory`, which is made if need be; return the lock's descriptor.

    The lock goes with the process, however that ends. Raises LogLocked or LogUnwritable.
    """
    path = directory / LOCK
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise LogUnwritable(path, str(error)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = _holder(descriptor)
        os.close(descriptor)
        raise LogLocked(
            path, f"process {holder} writes this log; stop it, or use another directory"
        ) from error
    with suppress(OSError):  # a full disk: the number is for people only
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    return descriptor


def _holder(descriptor: int) -> str:
    try:
        return os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
    except OSError:
        return "unknown"


def open_writer(path: Path) -> sqlite3.Connection:
    """Connect for writing; a file that is not there is made. The caller holds the lock."""
    connection = sqlite3.connect(
        path, isolation_level=None, timeout=BUSY_TIMEOUT_S, check_same_thread=False, cached_statements=32
    )
    try:
        _prepare(path, connection)
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """Connect for reading only, beside whoever writes."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
    )


def _prepare(path: Path, connection: sqlite3.Connection) -> None:
    (made,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if not made:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    check_schema(path, connection)
    connection.execute("PRAGMA journal_mode = WAL")
    # A commit is a write into the page cache; checkpoints, made elsewhere, are what waits for the disk.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    # Where SQLite was built to overwrite what is deleted, trimming would write as much as it frees.
    connection.execute("PRAGMA secure_delete = OFF")
    if not made:
        connection.executescript(f"BEGIN; {SCHEMA} COMMIT;")


def check_schema(path: Path, connection: sqlite3.Connection) -> None:
    """Raise LogCorrupt unless the file is a log of this version."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise LogCorrupt(path, f"is not a Jetstream log; {REMEDY}")
    if version != SCHEMA_VERSION:
        raise LogCorrupt(
            path, f"has format {version}, this program reads {SCHEMA_VERSION}: use the program that wrote it"
        )


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what happens inside, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def explained(path: Path, otherwise: type[LogError] = LogUnwritable) -> Iterator[None]:
    """Turn errors of the file into ours: LogCorrupt if it is not what was written, else `otherwise`."""
    try:
        yield
    except Damaged as error:
        raise LogCorrupt(path, f"is damaged ({error}); {REMEDY}") from error
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _CORRUPT:
            raise LogCorrupt(path, f"is damaged ({error}); {REMEDY}") from error
        raise otherwise(path, str(error)) from error
    except OSError as error:
        raise otherwise(path, str(error)) from error


def store_cursors(
    connection: sqlite3.Connection,
    cursors: Cursors,
    tip_us: int,
    appended: int,
    *,
    same_sources: bool,
) -> None:
    """Store the cursors of all sources, and what the log is with them.

    The tip and the number of events that were ever appended stand in the rows of the cursors, so that a
    commit writes one page less. The view `extent` has the greatest of each.
    """
    values = [(*cursor, tip_us, appended, source) for source, cursor in cursors.items()]
    if same_sources and values:
        connection.executemany(
            "UPDATE cursor SET seq = ?, provisional = ?, fell_from = ?, tip_us = ?, appended = ?"
            " WHERE source = ?",
            values,
        )
        return
    connection.execute("UPDATE state SET tip_us = ?, appended = ?", (tip_us, appended))
    connection.execute("DELETE FROM cursor")
    connection.executemany(
        "INSERT INTO cursor (seq, provisional, fell_from, tip_us, appended, source)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        values,
    )


def read_cursors(connection: sqlite3.Connection) -> dict[str, SourceCursor]:
    """Return the cursor of each source."""
    rows = connection.execute("SELECT source, seq, provisional, fell_from FROM cursor")
    return {source: SourceCursor(*cursor) for source, *cursor in rows}


def store_row(connection: sqlite3.Connection, first_us: int, last_us: int, columns: Columns) -> None:
    """Add a batch to the tail."""
    connection.execute(
        "INSERT INTO tail VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
        (last_us, first_us, columns.events, columns.checksum(), *columns),
    )


def store_block(connection: sqlite3.Connection, block: Block) -> None:
    """Add a block, or put it in the place of one with the same key."""
    connection.execute("INSERT OR REPLACE INTO block VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)", block)


def oldest(connection: sqlite3.Connection) -> int | None:
    """Return the `time_us` of the oldest event, or None."""
    (oldest_us,) = connection.execute(
        "SELECT ifnull((SELECT first_us FROM block WHERE last_us >= floor_us ORDER BY last_us LIMIT 1),"
        " (SELECT first_us FROM tail ORDER BY last_us LIMIT 1)) FROM state"
    ).fetchone()
    return None if oldest_us is None else int(oldest_us)


def wal_bytes(path: Path) -> int:
    """Return the length of the write-ahead log."""
    return _size(path.with_name(path.name + "-wal"))


def bytes_on_disk(path: Path) -> int:
    """Return what the database takes on disk, its write-ahead log included."""
    return sum(_size(path.with_name(path.name + suffix)) for suffix in ("", "-wal", "-shm"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
