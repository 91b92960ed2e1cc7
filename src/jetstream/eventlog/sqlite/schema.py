"""The tables of the SQLite file, and the statements that several modules share.

    state       the whole log, in one row: the floor, counters, the tip as far as no cursor has a higher one,
                the revision of what is erased
    cursor      how far each upstream was read, with the tip of the commit that stored it
    extent      a view of both: floor, tip, number of events, number of commits
    tail        batches as they were committed
    segment     sealed segments
    tombstone   accounts whose records are still to be erased
    stored      when events were stored, where positions do not tell
    repo        the states of repositories (see `repos`)
    repo_change changes of these that are not in `repo` yet
    gap         gaps that were found in repositories
    account     what each source says of accounts
    append      a view of the writer's connection, to commit with one statement what nearly every commit has
    clock       the offset of the clock that this boot trusts

`docs/log-format.md` explains them. Rows of `tail` and `segment` have the position of their last event as key,
since that stays when events before it are erased. A change of a table also changes SCHEMA_VERSION: a file of
another version is refused.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from itertools import starmap
from pathlib import Path
from typing import Any, Final, NamedTuple

from jetstream import __version__
from jetstream.errors import LogCorrupt, LogFormat
from jetstream.eventlog import Cursors, SourceCursor
from jetstream.eventlog.columns import Columns, Damaged
from jetstream.eventlog.cursors import cursor_row, named_cursor
from jetstream.eventlog.reader import Row
from jetstream.eventlog.segment import Segment

DATABASE: Final = "jetstream.db"

# In the header of the file, where `file` and other programs look: "JETS", and the version of the tables.
# Both are 32-bit integers of SQLite's header: PRAGMA application_id and user_version.
APPLICATION_ID: Final = 0x4A455453
SCHEMA_VERSION: Final = 6
_VERSIONS_MAX: Final = 1_000  # a number above it is no version: the header of the file is damaged
# Executed in an empty file. Integers are positions in microseconds, or counts. The columns of events are
# blobs, as `columns` writes them for the tail, and `segment` for segments.
SCHEMA: Final = """
CREATE TABLE state (
    id        INTEGER PRIMARY KEY CHECK (id = 1),
    tip_us    INTEGER NOT NULL,
    floor_us  INTEGER NOT NULL,
    appended  INTEGER NOT NULL,
    removed   INTEGER NOT NULL,
    checkpoints INTEGER NOT NULL,
    repos     INTEGER NOT NULL,
    commits   INTEGER NOT NULL,
    erasures  INTEGER NOT NULL
) STRICT;
INSERT INTO state VALUES (1, 0, 0, 0, 0, 0, 0, 0, 0);
CREATE TABLE cursor (
    source    TEXT PRIMARY KEY,
    seq       INTEGER NOT NULL,
    provisional INTEGER,
    fell_from INTEGER,
    stored_to INTEGER,
    unstored  TEXT,
    tip_us    INTEGER NOT NULL,
    appended  INTEGER NOT NULL,
    commits   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE VIEW extent AS SELECT
    floor_us,
    max(tip_us, ifnull((SELECT max(tip_us) FROM cursor), 0)) AS tip_us,
    max(appended, ifnull((SELECT max(appended) FROM cursor), 0)) - removed AS events,
    max(commits, ifnull((SELECT max(commits) FROM cursor), 0)) AS commits
FROM state;
CREATE TABLE tail (
    last_us   INTEGER PRIMARY KEY,
    first_us  INTEGER NOT NULL,
    events    INTEGER NOT NULL,
    crc       INTEGER NOT NULL,
    times BLOB NOT NULL, kinds BLOB NOT NULL, dids BLOB NOT NULL, collections BLOB NOT NULL,
    rkeys BLOB NOT NULL, revs BLOB NOT NULL, cids BLOB NOT NULL, bodies BLOB NOT NULL
) STRICT;
CREATE TABLE segment (
    last_us   INTEGER PRIMARY KEY,
    first_us  INTEGER NOT NULL,
    events    INTEGER NOT NULL,
    collection_set BLOB NOT NULL, did_bits BLOB NOT NULL, accounts BLOB NOT NULL,
    times BLOB NOT NULL, kinds BLOB NOT NULL, dids BLOB NOT NULL, collections BLOB NOT NULL,
    rkeys BLOB NOT NULL, revs BLOB NOT NULL, cids BLOB NOT NULL, bodies BLOB NOT NULL
) STRICT;
CREATE TABLE tombstone (
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
CREATE TABLE repo (
    did       BLOB PRIMARY KEY,
    state     BLOB NOT NULL,
    crc       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE repo_change (
    id        INTEGER PRIMARY KEY,
    crc       INTEGER NOT NULL,
    records   BLOB NOT NULL
) STRICT;
CREATE TABLE gap (
    time_us   INTEGER NOT NULL,
    did       TEXT NOT NULL,
    after_rev TEXT NOT NULL,
    rev       TEXT NOT NULL,
    cause     TEXT NOT NULL,
    PRIMARY KEY (time_us, did, rev)
) STRICT, WITHOUT ROWID;
CREATE TABLE account (
    source    TEXT NOT NULL,
    did       TEXT NOT NULL,
    state     BLOB NOT NULL,
    PRIMARY KEY (source, did)
) STRICT, WITHOUT ROWID;
"""

# What nearly every commit stores is one row of the tail and one cursor. A row that is inserted into this view
# is stored as both. So the commit is one statement: each statement takes one to two microseconds. The view
# belongs to the connection; the file does not have it.
_APPEND: Final = """
CREATE TEMP VIEW append AS SELECT * FROM tail, cursor;
CREATE TEMP TRIGGER store_append INSTEAD OF INSERT ON append BEGIN
    INSERT INTO tail VALUES (
        NEW.last_us, NEW.first_us, NEW.events, NEW.crc,
        NEW.times, NEW.kinds, NEW.dids, NEW.collections, NEW.rkeys, NEW.revs, NEW.cids, NEW.bodies
    );
    INSERT OR REPLACE INTO cursor VALUES (
        NEW.source, NEW.seq, NEW.provisional, NEW.fell_from, NEW.stored_to, NEW.unstored,
        NEW.tip_us, NEW.appended, NEW.commits
    );
END;
"""


def for_each_table(statement: str) -> dict[str, str]:
    """Return a statement about `%s` for each table that has events, by the name of the table."""
    return {table: statement % table for table in ("segment", "tail")}


# A row by its key.
ROW: Final = for_each_table("SELECT * FROM %s WHERE last_us = ?")
DELETE_ROW: Final = for_each_table("DELETE FROM %s WHERE last_us = ?")
CURSORS: Final = "SELECT source, seq, provisional, fell_from, stored_to, unstored FROM cursor"
# What an operator can do about damage: the end of each such message.
REMEDY: Final = "`jetstream log repair` keeps every undamaged segment; or move it away to start a new log"


class Totals(NamedTuple):
    """What each commit of appends stores of the whole log.

    They stand in the row of each cursor that the commit stores, or in `state` if it stores none. The
    highest of each counts.
    """

    # The tip after the commit.
    tip_us: int
    appended: int  # events, ever
    # Commits of appends, this one included: entries of the journal say which number they continue.
    commits: int  # ever


def read_row(stored: Sequence[Any]) -> Row:
    """Take the values of a row of the tail. Raises Damaged.

    The values are all columns of the table `tail`, in order. The number of events is taken from the
    times.
    """
    last_us, first_us, _, crc, *texts = stored
    columns = Columns(*texts)
    try:
        matches = columns.checksum() == crc
    except TypeError as error:  # not even bytes
        raise Damaged(str(error)) from error
    if not matches:
        raise Damaged("its checksum does not match")
    return Row(last_us, first_us, columns.events, columns)


def create_or_check(path: Path, connection: sqlite3.Connection) -> None:
    """Create the tables in an empty file, refuse a file of another kind, and set up a writing connection.

    Raises LogCorrupt or sqlite3.DatabaseError.

    Each connection that writes is set up here, the one of upkeep as well: pragmas are of a connection.
    """
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if not tables:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    check_schema(path, connection)
    connection.execute("PRAGMA journal_mode = WAL")
    # A commit is a write into the page cache. Checkpoints wait for the disk, and run in the upkeep thread.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    # A SQLite that was built to overwrite deleted data would make trimming write as much as it frees.
    connection.execute("PRAGMA secure_delete = OFF")
    if not tables:
        connection.executescript(f"BEGIN; {SCHEMA} COMMIT;")
    connection.executescript(_APPEND)


def check_schema(path: Path, connection: sqlite3.Connection) -> None:
    """Raise LogFormat for a log of another version, LogCorrupt for what is no log.

    Takes two reads of the header, and reads no table.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise LogCorrupt(path, f"is not a Jetstream log; {REMEDY}")
    if version == SCHEMA_VERSION:
        return
    if not 0 < version < _VERSIONS_MAX:
        raise LogCorrupt(path, f"is damaged: {version} is no version of its format; {REMEDY}")
    readers = (
        "Only versions before 0.1.0, which were not released, read that one"
        if version < SCHEMA_VERSION
        else f"A version after {__version__} reads that one"
    )
    raise LogFormat(
        path,
        f"has format {version}, and this program ({__version__}) reads format {SCHEMA_VERSION}. {readers}:"
        " use the program that wrote the log, or another --data-dir",
    )


def insert_row(connection: sqlite3.Connection, first_us: int, last_us: int, columns: Columns) -> None:
    """Add a batch to the tail, with its checksum. Its range ends at `last_us`.

    Inside a transaction, or as one. Raises sqlite3.IntegrityError if there is a row with this end.
    """
    connection.execute(
        "INSERT INTO tail VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
        (last_us, first_us, columns.events, columns.checksum(), *columns),
    )


def commit_row(
    connection: sqlite3.Connection, first_us: int, columns: Columns, cursor: Sequence[Any], totals: Totals
) -> None:
    """Commit a batch of the tail, and the row of a cursor, with the totals.

    One statement, and so a transaction by itself: it is stored as a whole or not at all.
    """
    connection.execute(
        "INSERT INTO append VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (totals.tip_us, first_us, columns.events, columns.checksum(), *columns, *cursor, *totals),
    )


def insert(connection: sqlite3.Connection, stored: Segment | Row) -> None:
    """Add a row to its table. A segment replaces the one with the same key.

    Inside a transaction. What it replaces is not counted as removed: the caller does so.
    """
    if isinstance(stored, Row):
        insert_row(connection, stored.first_us, stored.last_us, stored.columns)
    else:
        connection.execute("INSERT OR REPLACE INTO segment VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)", stored)


def store_cursors(
    connection: sqlite3.Connection, cursors: Cursors, totals: Totals, *, same_sources: bool
) -> None:
    """Store cursors, with the totals of the log.

    Those stand in the rows of the cursors, so that a commit writes one page less; the view `extent` takes the
    highest of each. With `same_sources`, those of other sources stay. Else they go.

    Inside a transaction. Without cursors to store, the totals stand in `state`.
    """
    if not (same_sources and cursors):
        connection.execute("UPDATE state SET tip_us = ?, appended = ?, commits = ?", totals)
        connection.execute("DELETE FROM cursor")
    rows = [(*row, *totals) for row in starmap(cursor_row, cursors.items())]
    connection.executemany("INSERT OR REPLACE INTO cursor VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


def read_cursors(connection: sqlite3.Connection) -> dict[str, SourceCursor]:
    """Return the cursor of each source. Raises Damaged."""
    return dict(map(named_cursor, connection.execute(CURSORS)))


def store_accounts(connection: sqlite3.Connection, accounts: Mapping[tuple[str, str], bytes | None]) -> None:
    """Store what sources say of accounts, by source and DID; None deletes it."""
    kept = [(*key, state) for key, state in accounts.items() if state is not None]
    gone = [key for key, state in accounts.items() if state is None]
    connection.executemany("INSERT OR REPLACE INTO account VALUES (?, ?, ?)", kept)
    connection.executemany("DELETE FROM account WHERE source = ? AND did = ?", gone)


def read_accounts(connection: sqlite3.Connection) -> dict[tuple[str, str], bytes]:
    """Return what sources say of accounts."""
    return {(source, did): state for source, did, state in connection.execute("SELECT * FROM account")}


def read_tip(connection: sqlite3.Connection) -> int:
    """Return the position of the newest event that was stored, 0 for none.

    It is the end of the last commit: what is only in the journal is above it.
    """
    return int(connection.execute("SELECT tip_us FROM extent").fetchone()[0])


def read_totals(connection: sqlite3.Connection) -> Totals:
    """Return the totals as of the last commit."""
    query = "SELECT extent.tip_us, events + removed, extent.commits FROM extent, state"
    return Totals(*connection.execute(query).fetchone())


def count_erasure(connection: sqlite3.Connection) -> None:
    """Raise the revision of what is erased: what other processes have read before is not valid any more.

    Inside the transaction that adds tombstones, or that has rewritten something.
    """
    connection.execute("UPDATE state SET erasures = erasures + 1")


def count_removed(connection: sqlite3.Connection, events: int) -> None:
    """Count events that are no longer stored."""
    connection.execute("UPDATE state SET removed = removed + ?", (events,))


def oldest_us(connection: sqlite3.Connection) -> int | None:
    """Return the `time_us` of the oldest event, or None in an empty log.

    Of segments, only those above the floor count: one that could not be deleted may be below it.
    """
    found: int | None = connection.execute(
        "SELECT ifnull((SELECT first_us FROM segment WHERE last_us >= floor_us ORDER BY last_us LIMIT 1),"
        " (SELECT first_us FROM tail ORDER BY last_us LIMIT 1)) FROM state"
    ).fetchone()[0]
    return found
