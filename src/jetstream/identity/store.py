"""The keys of all accounts, in an SQLite file of their own: `keys.sqlite3` in the data directory.

    key      one row an account: its DID (`atproto.compact_did`), its key (`held`), when that was so, and the
             number of its PDS; 0: it is not known, since the row is from a file of version 1
    host     the numbers of PDSes, by host; the empty name stands for an account without one
    staged   operations of an import (`record`), in the order in which they were read, by the first byte of
             their DID
    state    how far the directory's export was read, as JSON

*Import.* DIDs are random, so each operation of an export belongs to another page of the table. An import
does not write to these pages: it appends to `staged`, and `fold` moves the operations to their places at the
end, one first byte after another, sorted.

*Which is newer.* A key that was fetched replaces any other. What a page of the export says replaces keys that
were fetched before the page: it has everything up to then. Both times are those of our clock. An import is as
new as its last page.

*Bounds.* Anybody can have any number of accounts that are no `did:plc`, each at a host of its own. Of these,
the rows that were fetched longest ago are deleted above `other_rows_max`, and hosts above `hosts_max` have no
number. What is missing is fetched again. The accounts of the directory are all kept.

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
from jetstream.atproto.encoded_key import EncodedKey
from jetstream.errors import KeyCacheError, KeyCacheFull, KeyCacheReplaced
from jetstream.identity.export import Progress, parse_progress
from jetstream.identity.held import KEY_BYTES, pack_key
from jetstream.limits import KeyLimits

FILE: Final = "keys.sqlite3"
LOCK: Final = "keys.lock"
APPLICATION_ID: Final = 0x4A53_4B59  # "JSKY"
# The format of the file. An earlier one is upgraded when it is opened, any other one is refused.
VERSION: Final = 2
_HOST_BYTES: Final = 4  # of its number, little-endian
RECORD_BYTES: Final = PLC_BYTES + KEY_BYTES + _HOST_BYTES  # of a staged operation
_BUSY_S: Final = 10.0  # an import by another process holds the file for a second at most
_READ_AT_ONCE: Final = 500  # SQLite allows 32,766 values in a statement
_HOSTS: Final = "CREATE TABLE host (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)"
_SCHEMA: Final = f"""
    CREATE TABLE key (
        did BLOB PRIMARY KEY, key BLOB NOT NULL, at INTEGER NOT NULL, pds INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    {_HOSTS};
    CREATE TABLE staged (id INTEGER PRIMARY KEY, bucket INTEGER NOT NULL, records BLOB NOT NULL);
    CREATE INDEX staged_bucket ON staged (bucket);
    CREATE TABLE state (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    PRAGMA application_id = {APPLICATION_ID};
    PRAGMA user_version = {VERSION};
"""
# From version 1. Its keys stay. An import that was not complete begins again, for its records are shorter.
_UPGRADE: Final = f"""
    ALTER TABLE key ADD COLUMN pds INTEGER NOT NULL DEFAULT 0;
    {_HOSTS};
    DELETE FROM state WHERE EXISTS (SELECT * FROM staged);
    DELETE FROM staged;
    PRAGMA user_version = {VERSION};
"""  # noqa: S608 - no value of anybody
_READ: Final = "SELECT did, key, at, name FROM key LEFT JOIN host ON host.id = key.pds WHERE did IN"
_WRITE: Final = "INSERT OR REPLACE INTO key (did, key, at, pds) VALUES (?, ?, ?, ?)"
# A time that is ahead of the clock was given by a clock which was wrong.
_APPLY: Final = """
    INSERT INTO key (did, key, at, pds) VALUES (?1, ?2, ?3, ?4)
    ON CONFLICT (did) DO UPDATE SET key = excluded.key, at = excluded.at, pds = excluded.pds
    WHERE key.at <= excluded.at OR key.at > ?5
"""
# Accounts that are no `did:plc`: their compact DIDs begin with a 1, as those of some others do.
_COUNT_OTHERS: Final = "SELECT count(*) FROM key WHERE did >= x'01' AND did < x'02' AND length(did) > 15"
_DELETE_OTHERS: Final = """
    DELETE FROM key WHERE did IN (
        SELECT did FROM key WHERE did >= x'01' AND did < x'02' AND length(did) > 15 ORDER BY at LIMIT ?
    )
"""
_DAMAGE: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}

logger = structlog.get_logger(__name__)
# A compact DID, a packed key, unix seconds, and the host of the PDS (`held.Held.pds`).
Row = tuple[bytes, bytes, int, str | None]
_Numbered = tuple[bytes, bytes, int, int]  # the same with the number of the host


class KeyStore:
    """The file. Raises KeyCacheError if it cannot be used, and KeyCacheReplaced when it was damaged.

    So does each method. After KeyCacheReplaced, the call had no effect, and there is a new and empty file,
    which the next call uses. Each method that writes is one transaction. `directory` must exist.
    """

    def __init__(
        self, directory: Path, now: Callable[[], float] = time.time, limits: KeyLimits = KeyLimits()
    ) -> None:
        self.path = directory / FILE
        self._now = now  # unix seconds
        self._limits = limits
        # Rows of accounts that are no `did:plc` that were written since these were last counted, and at the
        # beginning as many as if they were due.
        self._others_written = limits.other_rows_max
        # A damaged file is replaced at once. Then `_replace` has set the connection.
        with suppress(KeyCacheReplaced), self._guarded():
            self._connection = self._open()  # replaced by `_replace`

    def close(self) -> None:
        """Close the file."""
        with suppress(sqlite3.Error):
            self._connection.close()

    def read(self, dids: Sequence[bytes]) -> dict[bytes, tuple[bytes, int, str | None]]:
        """Return the packed key, its time and the host of the PDS of each DID that has a row.

        DIDs are compact. The time is in unix seconds. The host is empty for an account without a PDS, and
        None where it is not known.
        """
        found: dict[bytes, tuple[bytes, int, str | None]] = {}
        with self._guarded():
            for start in range(0, len(dids), _READ_AT_ONCE):
                some = dids[start : start + _READ_AT_ONCE]
                marks = ",".join("?" * len(some))
                query = f"{_READ} ({marks})"
                found.update((row[0], row[1:]) for row in self._connection.execute(query, some))
        return found

    def write(self, rows: Iterable[Row], forgotten: Iterable[bytes] = ()) -> None:
        """Write keys that were fetched, and remove those of `forgotten` DIDs. They replace any others."""
        with self._transaction():
            numbered = self._numbered(rows)
            self._connection.executemany(_WRITE, sorted(numbered))
            self._connection.executemany("DELETE FROM key WHERE did = ?", ((did,) for did in forgotten))
            self._others_written += sum(len(did) != PLC_BYTES for did, *_ in numbered)
            if self._others_written > self._limits.other_rows_max // 10:
                self._delete_oldest_others()
                self._others_written = 0

    def _delete_oldest_others(self) -> None:
        """Delete rows of accounts that are no `did:plc`, above their bound: those fetched longest ago."""
        (count,) = self._connection.execute(_COUNT_OTHERS).fetchone()
        self._connection.execute(_DELETE_OTHERS, (max(0, count - self._limits.other_rows_max),))

    def apply(self, rows: Iterable[Row], progress: Progress) -> None:
        """Write the keys of a page, at the time when it was asked for, and how far the export was read.

        Keys that were fetched after that time stay.
        """
        with self._transaction():
            self._apply(self._numbered(rows))
            self._save(progress)

    def number_hosts(self, names: Iterable[str]) -> dict[str, int]:
        """Return the numbers of hosts, for `record`. A new host is given one."""
        with self._transaction():
            return self._numbers(names)

    def stage(self, records: Mapping[int, bytes], progress: Progress) -> None:
        """Append operations of an import: records of `RECORD_BYTES`, by the first byte of their DID."""
        with self._transaction():
            self._connection.executemany(
                "INSERT INTO staged (bucket, records) VALUES (?, ?)", sorted(records.items())
            )
            self._save(progress)

    def fold(self, operations_max: int, at_s: int) -> bool:
        """Move about `operations_max` staged operations to their places. Return whether there may be more.

        `at_s` is when the last page of the import was asked for, in unix seconds. A crash between two calls
        loses nothing: what is in its place is no longer staged, and the rest is.
        """
        with self._transaction():
            (bucket,) = self._connection.execute("SELECT min(bucket) FROM staged").fetchone()
            if bucket is None:
                return False
            rows: list[_Numbered] = []
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
        """Return how far the export was read; the beginning if nothing was, or if the state is damaged."""
        with self._guarded():
            row = self._connection.execute("SELECT value FROM state WHERE name = 'export'").fetchone()
        return Progress() if row is None else parse_progress(row[0])

    def bytes_on_disk(self) -> int:
        """Return the size of the file and of its write-ahead log, which is emptied if nothing reads it."""
        with self._guarded():
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        paths = (self.path, self.path.with_name(FILE + "-wal"))
        return sum(path.stat().st_size for path in paths if path.exists())

    def _numbers(self, names: Iterable[str]) -> dict[str, int]:
        """Return the numbers of hosts, in a transaction.

        A new host is given one; none is ever removed. So their number is the highest one. Above the bound, a
        new host has 0, as one that is not known: it is kept in memory only.
        """
        numbers: dict[str, int] = {}
        (count,) = self._connection.execute("SELECT ifnull(max(id), 0) FROM host").fetchone()
        for name in sorted(names):
            row = self._connection.execute("SELECT id FROM host WHERE name = ?", (name,)).fetchone()
            if row is None and count < self._limits.hosts_max:
                count += 1
                self._connection.execute("INSERT INTO host (id, name) VALUES (?, ?)", (count, name))
                row = (count,)
            numbers[name] = 0 if row is None else row[0]
        return numbers

    def _numbered(self, rows: Iterable[Row]) -> list[_Numbered]:
        """Return rows with the numbers of their hosts."""
        rows = list(rows)
        numbers = self._numbers({pds for *_, pds in rows if pds is not None})
        return [(did, key, at, 0 if pds is None else numbers[pds]) for did, key, at, pds in rows]

    def _apply(self, rows: Iterable[_Numbered]) -> None:
        """Write rows of the export in their order, in a transaction. What is newer in the table stays."""
        now_s = int(self._now())
        self._connection.executemany(_APPLY, ((*row, now_s) for row in rows))

    def _save(self, progress: Progress) -> None:
        """Write how far the export was read, in the transaction of what was read."""
        self._connection.execute(
            "INSERT OR REPLACE INTO state VALUES ('export', ?)", (orjson.dumps(asdict(progress)),)
        )

    def _open(self) -> sqlite3.Connection:
        """Open the file, or create it. Raises sqlite3.Error, and KeyCacheError for another kind of file."""
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
        """Set up a connection; create or upgrade the tables. Raises sqlite3.Error and KeyCacheError.

        With `synchronous = NORMAL`, a commit does not wait for the disk: see *Crashes* above. The lock comes
        before the version is read, since two processes may open a new file.
        """
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA cache_size = -16000")  # 16 MB
        connection.execute("BEGIN IMMEDIATE")
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if not tables:
            _run(connection, _SCHEMA)
        elif (application, version) == (APPLICATION_ID, 1):
            _run(connection, _UPGRADE)
        elif (application, version) != (APPLICATION_ID, VERSION):
            raise KeyCacheError(self.path, "is no cache of keys of this version: move it away, or delete it")
        connection.execute("COMMIT")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Run a block as one transaction, which is rolled back when the block raises.

        `IMMEDIATE` takes the lock for writing at once: a transaction that has read first may not get it.
        """
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
        """Rename a damaged file, and begin a new one. An earlier damaged file is overwritten.

        Raises KeyCacheError when that is not possible.
        """
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


def _run(connection: sqlite3.Connection, statements: str) -> None:
    """Run statements in the transaction that is open, which `executescript` would commit first."""
    for statement in statements.split(";"):
        connection.execute(statement)


def record(did: bytes, key: EncodedKey | None, host: int) -> bytes:
    """Return a staged operation: the compact DID of a `did:plc`, a key, and the number of a host."""
    return did + pack_key(key) + host.to_bytes(_HOST_BYTES, "little")


def _rows(records: bytes, at_s: int) -> Iterator[_Numbered]:
    """Yield the operations of staged records. A record that is cut off at the end is left out."""
    for start in range(0, len(records) - RECORD_BYTES + 1, RECORD_BYTES):
        middle, end = start + PLC_BYTES, start + RECORD_BYTES
        host = end - _HOST_BYTES
        yield records[start:middle], records[middle:host], at_s, int.from_bytes(records[host:end], "little")


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
    """Lock an open file, until it is closed. Raises KeyCacheError at once if another process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise KeyCacheError(path, "another process imports keys into this directory") from error
