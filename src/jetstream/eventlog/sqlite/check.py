"""Checking a log that may be damaged, while a server may write it; and reading every row that is undamaged.

A check reads one row at a time, compares it with its checksums, and changes nothing. It looks for damage on
three levels:

    pages     SQLite's own structure: PRAGMA integrity_check
    rows      the checksums of each segment and each row of the tail, the order of their ranges, and for a
              segment that its index is that of its events; the checksums of the states of repositories
    files     the reservation beside the database

Where pages are damaged, SQLite cannot walk a table from one end to the other. `row_keys` then approaches each
damaged page from both sides, and probes the range between:

    keys that can be read ──▶ xxx damaged xxx ? xxx damaged xxx ◀── keys that can be read ──▶ …
                              position        probes            behind
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from jetstream.errors import LogCorrupt
from jetstream.eventlog.columns import Damaged
from jetstream.eventlog.reader import POSITION_MAX, Row
from jetstream.eventlog.segment import Segment, verify
from jetstream.eventlog.sqlite.connection import reading
from jetstream.eventlog.sqlite.damage import GRAIN_US, next_readable
from jetstream.eventlog.sqlite.repos import read_changes, whole_states
from jetstream.eventlog.sqlite.reservation import Reservation
from jetstream.eventlog.sqlite.schema import DATABASE, REMEDY, ROW, for_each_table, read_row

PROBES: Final = 256  # places that are tried between two damaged pages
FINDINGS_MAX: Final = 10  # of SQLite's own messages

# The keys of a table in a range, in both directions. SQLite walks them page by page: each query ends with an
# error at the first damaged page.
_RISING: Final = for_each_table("SELECT last_us FROM %s WHERE last_us > ? AND last_us <= ? ORDER BY last_us")
_FALLING: Final = {table: f"{query} DESC" for table, query in _RISING.items()}


@dataclass
class Findings:
    """What a check has found, or what a repair has kept."""

    # Undamaged segments, and the events in them and in undamaged rows of the tail.
    segments: int = 0
    events: int = 0
    # What is damaged, as sentences for people. Empty if nothing is.
    problems: list[str] = field(default_factory=list)
    # The damaged rows: of each its table and its key.
    lost: list[tuple[str, int]] = field(default_factory=list)
    # Repositories whose state is damaged, and whether all states are to be forgotten, since it is not known
    # which are the newest.
    lost_states: list[bytes] = field(default_factory=list)
    forget_states: bool = False
    # Whether SQLite's structure is undamaged, whatever the rows hold. Then damaged rows can be deleted.
    has_whole_pages: bool = False


def check(directory: Path) -> Findings:
    """Read everything and compare it with its checksums.

    Raises LogError if there is nothing to read: no file, another program's file, or one without tables.

    Takes as long as reading the file and decompressing all of it. Needs no lock. The journal is not read:
    what is only there is not counted.
    """
    findings = Findings()
    with reading(directory) as connection:
        _require_tables(directory / DATABASE, connection)
        findings.problems += _check_pages(connection)
        findings.has_whole_pages = not findings.problems
        for _ in whole_rows(connection, findings):
            pass
        _check_states(connection, findings)
    try:
        Reservation(directory).read()
    except LogCorrupt as error:
        findings.problems.append(str(error))
    return findings


def _require_tables(path: Path, connection: sqlite3.Connection) -> None:
    """Raise LogCorrupt if the tables are missing: those of a young log may be in a lost WAL alone."""
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    if not {"state", "cursor", "extent", "segment", "tail"} <= names:
        raise LogCorrupt(path, f"has lost its tables; {REMEDY}")


def _check_pages(connection: sqlite3.Connection) -> Iterator[str]:
    """Yield what SQLite finds wrong with its pages and indexes: some messages, not all.

    SQLite's own check: PRAGMA integrity_check, which reads every page.
    """
    try:
        for (finding,) in connection.execute(f"PRAGMA integrity_check({FINDINGS_MAX})"):
            if finding != "ok":
                yield from str(finding).splitlines()
    except sqlite3.DatabaseError as error:
        yield str(error)


def _check_states(connection: sqlite3.Connection, findings: Findings) -> None:
    """Note what is damaged of the states of repositories."""
    try:
        read_changes(connection)
        for _ in whole_states(connection, findings.lost_states):
            pass
    except (Damaged, sqlite3.DatabaseError) as error:
        findings.forget_states = True
        findings.problems.append(f"states of repositories are lost: {error}")
    if findings.lost_states:
        findings.problems.append(f"the states of {len(findings.lost_states)} repositories are lost")


def whole_rows(connection: sqlite3.Connection, findings: Findings) -> Iterator[Segment | Row]:
    """Yield every undamaged row of both tables, in order. Counts them in `findings`, and notes the others.

    A server may seal and trim meanwhile. Rows that it deletes are not damaged. What it appends is found,
    since the tail is read last. But what it seals after the keys of the segments were read is in neither
    list: such events are not read, and not counted.
    """
    end_us = -1
    for table in ("segment", "tail"):
        for key in row_keys(connection, table):
            try:
                row = _read(connection, table, key)
                if row is not None and row.first_us <= end_us:
                    raise Damaged("it starts before the end of the one before")  # noqa: TRY301
            except (Damaged, sqlite3.DatabaseError) as error:
                findings.problems.append(f"the {table} that ends at {key} is lost: {error}")
                findings.lost.append((table, key))
                continue
            if row is not None:
                end_us = row.last_us
                findings.events += row.events
                findings.segments += isinstance(row, Segment)
                yield row


def _read(connection: sqlite3.Connection, table: str, key: int) -> Segment | Row | None:
    """Return one row, or None if it was deleted since its key was read. Raises Damaged."""
    stored = connection.execute(ROW[table], (key,)).fetchone()
    if stored is None:
        return None
    if table == "tail":
        return read_row(stored)
    segment = Segment(*stored)
    verify(segment)
    return segment


def row_keys(connection: sqlite3.Connection, table: str) -> list[int]:
    """Return the keys of all rows that can be reached, rising, whatever pages between them are damaged.

    Each turn of the loop gets past one damaged range: up to it, down to it from behind, and by probes into
    what is left between. A page of the tree can hide pages that are undamaged; probes find some of them.

    `table` is `segment` or `tail`. Without damage it is one query.
    """
    rising, falling = _RISING[table], _FALLING[table]
    reached: set[int] = set()
    position = -1
    while position < POSITION_MAX:
        keys, whole = _walk(connection, rising, position, POSITION_MAX)
        reached.update(keys)
        if whole:
            break
        position = keys[-1] if keys else position
        behind = next_readable(connection, position + 1, table)
        back, _ = _walk(connection, falling, position, behind)
        reached.update(back)
        lowest = back[-1] if back else behind
        step = max(GRAIN_US, (lowest - position) // PROBES)
        for probe in range(position + step, lowest, step):
            reached.update(_walk(connection, rising, probe, lowest)[0])
        position = behind
    return sorted(reached)


def _walk(connection: sqlite3.Connection, query: str, low: int, high: int) -> tuple[list[int], bool]:
    """Return the keys in a range up to the first damage, and whether there was none."""
    keys: list[int] = []
    try:
        keys.extend(key for (key,) in connection.execute(query, (low, high)))
    except sqlite3.DatabaseError:
        return keys, False
    return keys, True
