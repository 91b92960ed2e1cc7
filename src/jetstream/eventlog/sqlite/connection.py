"""Connections to the SQLite file, their transactions, and what SQLite's errors mean.

Every connection is in autocommit mode (`isolation_level=None`), and may be used by any thread, but by one at
a time. A process has one *writer* on the event loop, one *upkeep* connection in the upkeep thread, and one
*reader* for each reader thread. The file is in WAL mode: readers see the last commit and block nobody.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from jetstream.errors import LogCorrupt, LogError, LogUnwritable
from jetstream.eventlog.columns import Damaged
from jetstream.eventlog.sqlite.schema import DATABASE, REMEDY, check_schema, create_or_check

# SQLite waits this long for a lock. No other server writes, so a lock that is held for longer belongs to a
# foreign program.
# The first is for the event loop and upkeep, the second for reader threads and commands.
BUSY_TIMEOUT_S: Final = 0.1
READ_TIMEOUT_S: Final = 5.0

# Errors that mean that the file is not what was written. The low byte of a code is its class.
_CORRUPT: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}


def existing_database(directory: Path) -> Path:
    """Return the path of the database in `directory`. Raises LogError if there is none."""
    path = directory / DATABASE
    if not path.exists():
        raise LogError(path, "does not exist: no log was written in this directory")
    return path


def open_writer(path: Path) -> sqlite3.Connection:
    """Connect for writing, and create the file if it is missing. The caller holds the lock of the directory.

    Raises LogCorrupt or sqlite3.DatabaseError.
    """
    connection = sqlite3.connect(
        path, isolation_level=None, timeout=BUSY_TIMEOUT_S, check_same_thread=False, cached_statements=32
    )
    try:
        create_or_check(path, connection)
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: Path, timeout_s: float = READ_TIMEOUT_S) -> sqlite3.Connection:
    """Connect for reading only, while another connection or process may write.

    A read waits up to `timeout_s` for another process, which recovers the write-ahead log when it starts.
    """
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        isolation_level=None,
        timeout=timeout_s,
        check_same_thread=False,
    )


@contextmanager
def reading(directory: Path) -> Iterator[sqlite3.Connection]:
    """Connect to an existing log for reading, while a server may write it. Raises LogError."""
    path = existing_database(directory)
    with TranslatedErrors(path, LogError), closing(open_reader(path)) as connection:
        check_schema(path, connection)
        yield connection


class Transaction:
    """Commits all statements inside, or none of them if one raises.

    IMMEDIATE takes the lock for writing at once, so no statement inside can fail because of another writer. A
    class, because each append has one: a generator takes a microsecond more. And a statement that commits,
    because the method of the connection parses it each time.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Take a connection that is in autocommit mode, and in no transaction when the block begins."""
        self._connection = connection

    def __enter__(self) -> None:
        """Begin. Raises sqlite3.OperationalError if another connection holds the lock for too long."""
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_error: object) -> None:
        """Commit, or roll back after an error inside or of the commit. The error is raised further."""
        try:
            if kind is None:
                self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.rollback()


@contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Let all statements inside read the same commit. Without it, sealing could move events between two.

    It begins with the first statement that reads. A long one keeps the write-ahead log from being
    restarted.
    """
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


class TranslatedErrors:
    """Raises LogCorrupt for an error inside that means damage, and `otherwise` for other errors of the file.

    `otherwise` is LogUnwritable for a connection that writes, and LogError for one that only reads.

    A class for the same reason as `Transaction`: each append enters one or two.
    """

    __slots__ = ("_otherwise", "_path")

    def __init__(self, path: Path, otherwise: type[LogError] = LogUnwritable) -> None:
        """Name `path` in the errors; it is not opened."""
        # The database, and the error for everything but damage.
        self._path = path
        self._otherwise = otherwise

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """Translate an error of the file. One of another kind, a LogError among them, passes as it is."""
        if error is None:
            return
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if isinstance(error, Damaged) or code in _CORRUPT:
            raise LogCorrupt(self._path, f"is damaged ({error}); {REMEDY}") from error
        if isinstance(error, sqlite3.DatabaseError | OSError):
            raise self._otherwise(self._path, str(error)) from error


def database_files(path: Path) -> list[Path]:
    """Return the path of a database, and those of its write-ahead log and of that one's index."""
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]


def wal_bytes(path: Path) -> int:
    """Return the size of the write-ahead log of a database."""
    return _size(path.with_name(path.name + "-wal"))


def bytes_on_disk(path: Path) -> int:
    """Return the size of a database with its write-ahead log and that one's index.

    Files that are missing count as 0. The journal and the reserve are not part of it.
    """
    return sum(map(_size, database_files(path)))


def _size(path: Path) -> int:
    """Return the size of a file, 0 for one that cannot be found: SQLite creates and deletes them."""
    with suppress(OSError):
        return path.stat().st_size
    return 0
