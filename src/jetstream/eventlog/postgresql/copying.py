"""Copying a log from SQLite into a database that has none: `jetstream log copy`.

Positions stay, so the cursors of subscribers stay valid. All is one transaction: a copy that is interrupted
leaves nothing. The SQLite log is locked meanwhile, and stays as it is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from jetstream.errors import LogCorrupt, LogError, LogUnwritable
from jetstream.eventlog.cursors import cursor_row
from jetstream.eventlog.postgresql.connection import connect, drop, translated
from jetstream.eventlog.postgresql.leading import create_tables
from jetstream.eventlog.postgresql.schema import pack
from jetstream.eventlog.postgresql.term import AHEAD_US
from jetstream.eventlog.reader import Row
from jetstream.eventlog.segment import Segment
from jetstream.eventlog.sqlite.check import Findings, whole_rows
from jetstream.eventlog.sqlite.connection import TranslatedErrors, open_writer
from jetstream.eventlog.sqlite.journal import recover
from jetstream.eventlog.sqlite.lock import offline
from jetstream.eventlog.sqlite.repos import read_changes, whole_states
from jetstream.eventlog.sqlite.reservation import Reservation
from jetstream.eventlog.sqlite.schema import read_accounts, read_cursors, read_tip
from jetstream.urls import shown

# Whether nothing was ever appended. Locks the row of the term, so that no process leads meanwhile.
_IS_EMPTY = (
    "SELECT (SELECT max(id) FROM tail) = 0 AND NOT EXISTS (SELECT 1 FROM segment) FROM term FOR UPDATE"
)
_SEGMENT_COLUMNS = ("follows_us", "bytes", *Segment._fields)
_ROW_COLUMNS = ("id", "last_us", "follows_us", "first_us", "events", "appended", "nonce", "data")


class Copied(NamedTuple):
    """What was copied."""

    events: int
    segments: int
    tip_us: int


async def copy(directory: Path, address: str) -> Copied:
    """Copy the log in a directory into a database. The server that writes it must be stopped.

    Raises LogLocked while it runs, LogCorrupt if the log is damaged, LogError if the database has events
    already, LogUnreachable or LogUnwritable.

    `directory` is a `--data-dir`, and `address` has the password.
    The tables are created if there are none.
    """
    await create_tables(address)
    with offline(directory) as path, TranslatedErrors(path), closing(open_writer(path)) as source:
        recover(directory, source)
        connection = None
        with translated(address, LogUnwritable):
            try:
                connection = await connect(address, writes=True)
                async with connection.transaction():
                    if not await connection.fetchval(_IS_EMPTY):
                        raise LogError(shown(address), "has events already: copy into an empty database")
                    return await _copy(directory, source, connection)
            finally:
                await drop(connection)


async def _copy(directory: Path, source: sqlite3.Connection, target: asyncpg.Connection) -> Copied:
    """Copy table by table, inside the transaction of `target`.

    Segments come before the tail, since both are of one walk through the log. Events below the floor are
    left out. Positions go on above what the SQLite log has reserved.
    """
    (floor_us,) = source.execute("SELECT floor_us FROM state").fetchone()
    rows = _Rows(source, floor_us)
    await target.copy_records_to_table("segment", records=rows.segments(), columns=_SEGMENT_COLUMNS)
    await target.execute("DELETE FROM tail_a")
    await target.copy_records_to_table("tail_a", records=rows.tail(), columns=_ROW_COLUMNS)
    if rows.findings.problems:
        raise LogCorrupt(
            directory, f"is damaged ({rows.findings.problems[0]}); run `jetstream log repair` first"
        )
    cursors = [cursor_row(*each) for each in read_cursors(source).items()]
    await target.copy_records_to_table("cursor", records=cursors)
    await _copy_states(source, target)
    gaps = source.execute("SELECT time_us, did, after_rev, rev, cause FROM gap")
    await target.copy_records_to_table("gap", records=gaps)
    accounts = [(*key, state) for key, state in read_accounts(source).items()]
    await target.copy_records_to_table("account", records=accounts)
    tombstones = source.execute("SELECT did, before_us FROM tombstone")
    await target.copy_records_to_table("tombstone", records=tombstones)
    _, reserved_us = Reservation(directory).read()
    tip_us = read_tip(source)
    base_us = max(tip_us, reserved_us)
    await target.execute("UPDATE leader SET reserved_us = $1, base_us = $2", base_us + AHEAD_US, base_us)
    await target.execute("UPDATE state SET floor_us = $1, folded_id = $2", floor_us, rows.last_id)
    return Copied(rows.appended, rows.findings.segments, tip_us)


async def _copy_states(source: sqlite3.Connection, target: asyncpg.Connection) -> None:
    """Copy the states of repositories: the table, then the changes that are not folded yet.

    States that are damaged are left out. Raises Damaged if changes are.
    """
    damaged: list[bytes] = []
    states = ((did, state) for some in whole_states(source, damaged) for state, _, did in some)
    await target.copy_records_to_table("repo", records=states)
    changed, _, _ = read_changes(source)
    gone = [did for did, state in changed.items() if state is None]
    await target.execute("DELETE FROM repo WHERE did = ANY($1::bytea[])", gone)
    kept = [(did, state) for did, state in changed.items() if state is not None]
    await target.executemany(
        "INSERT INTO repo VALUES ($1, $2) ON CONFLICT (did) DO UPDATE SET state = excluded.state", kept
    )
    await target.execute("UPDATE state SET repos = (SELECT count(*) FROM repo)")


class _Rows:
    """Reads the rows of an SQLite log once, as records of the tables here."""

    def __init__(self, source: sqlite3.Connection, floor_us: int) -> None:
        """Read nothing yet. Each record follows the one before it: the first one follows the floor."""
        self.findings = Findings()
        self._rows = whole_rows(source, self.findings)
        # The end of the row before, the events so far, and the number of the last row of the tail.
        self._follows_us = floor_us - 1
        self.appended = self.last_id = 0
        # The first row of the tail, which ends the segments.
        self._first: Row | None = None

    def segments(self) -> Iterator[tuple[Any, ...]]:
        """Yield the segments above the floor. Ends at the first row of the tail, which `tail` begins with."""
        for row in self._rows:
            if isinstance(row, Row):
                self._first = row
                return
            if row.last_us <= self._follows_us:  # below the floor: it could not be deleted
                continue
            yield (self._follows_us, row.size, *row)
            self._follows_us, self.appended = row.last_us, self.appended + row.events

    def tail(self) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of the tail, after one without events that they follow."""
        yield (0, self._follows_us, self._follows_us, self._follows_us + 1, 0, self.appended, 0, b"")
        rows = [self._first] if self._first is not None else []
        for row in (*rows, *self._rows):
            assert isinstance(row, Row)
            self.last_id, self.appended = self.last_id + 1, self.appended + row.events
            data = pack(row.columns)
            yield (
                *(self.last_id, row.last_us, self._follows_us, row.first_us, row.events, self.appended, 0),
                data,
            )
            self._follows_us = row.last_us
