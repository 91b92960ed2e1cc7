"""Checkpoints: copying the write-ahead log into the database, without making a commit wait for the disk.

SQLite would do this inside some commit, on the event loop. Here it takes two steps in the upkeep thread:

1. `copy_pages` copies the pages and flushes the database, while commits go on. SQLite flushes by itself only
   if no commit came meanwhile, and at the rate of a busy server one always does.
2. `restart_wal` copies the little that was committed since, and empties the write-ahead log, while no commit
   runs. It is short, because step 1 has flushed nearly all: 28 ms in the median, and 42 without that.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final

from jetstream.eventlog.sqlite.connection import Transaction, open_reader, wal_bytes
from jetstream.eventlog.sqlite.reservation import Machine

# What a write-ahead log has at most since it was restarted, if nothing was committed: a page, and two heads.
RESTARTED_BYTES: Final = 2 * 4096


class Checkpointer:
    """Makes the checkpoints of one file through the upkeep connection, which it closes at the end."""

    def __init__(self, path: Path, connection: sqlite3.Connection, machine: Machine) -> None:
        """Open the two files beside `connection`. Raises sqlite3.DatabaseError or OSError."""
        # Upkeep's connection to the database.
        self._connection = connection
        # Flushes the database.
        self._machine = machine
        # Reads while pages are copied. A commit that found everything copied, and no reader, would restart
        # the write-ahead log itself, and wait for the disk on the event loop.
        self._pin = open_reader(path)
        # Opened once and closed after all connections: closing any descriptor of a file releases the POSIX
        # locks of the whole process on it, and SQLite's are such locks.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def copy_pages(self) -> None:
        """Copy pages into the database and wait for the disk, beside commits.

        Raises sqlite3.DatabaseError, or OSError from the flush. The pin stays until `empty_wal`.
        """
        if not self._pin.in_transaction:
            self._pin.execute("BEGIN")
        self._pin.execute("SELECT 1 FROM state").fetchone()
        self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        self._machine.sync(self._descriptor)

    def restart_wal(self, wait_ms: int) -> None:
        """Copy what was committed since, and restart the write-ahead log. Nobody else may write.

        Readers that have begun before are waited for, up to `wait_ms`: also those of other processes.

        A reader that does not end in time leaves the write-ahead log as it is, and it is tried again
        later. Raises sqlite3.DatabaseError.
        """
        self.empty_wal(wait_ms)
        with Transaction(self._connection):
            # The first commit to a restarted write-ahead log waits for the disk, so it is made here. It must
            # change something: SQLite does not write a page that stays as it was.
            self._connection.execute("UPDATE state SET checkpoints = checkpoints + 1")

    def empty_wal(self, wait_ms: int | None = None) -> None:
        """Copy the write-ahead log and truncate it, as far as readers allow. Nobody else may write.

        `wait_ms` is how long readers are waited for; None: as long as for any other lock.
        """
        self._pin.rollback()  # if it reads
        (usual_ms,) = self._connection.execute("PRAGMA busy_timeout").fetchone()
        self._connection.execute(f"PRAGMA busy_timeout = {usual_ms if wait_ms is None else wait_ms}")
        try:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            self._connection.execute(f"PRAGMA busy_timeout = {usual_ms}")

    def close(self) -> None:
        """Copy everything into the database, and close. All other connections are closed already."""
        self._pin.close()
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()
        os.close(self._descriptor)


def long_wal(path: Path, bound: int) -> str | None:
    """Say why the write-ahead log of a database has reached a size, None while it is smaller.

    `bound` is `LogLimits.wal_bytes_alarm`. The text is the reason of the condition `wal`.
    """
    size = wal_bytes(path)
    if size < bound:
        return None
    return (
        f"{path}-wal is {size >> 20} MiB, over its bound of {bound >> 20} MiB:"
        f" an edge or another program has read the database in one transaction for long; end it"
        f" (`fuser -v {path}` names it)"
    )
