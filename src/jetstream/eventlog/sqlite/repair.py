"""Checking a log that may be damaged, and keeping what is whole of one that is.

Checking reads beside a writer, a row at a time, and changes nothing. Repairing builds a new file from every
row that can be reached and is whole, and puts the old one aside. What was in the rows that are lost is
missing from then on: a hole, which the findings name.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from jetstream.errors import LogCorrupt, LogError, LogUnwritable
from jetstream.eventlog import SourceCursor
from jetstream.eventlog.columns import Damaged
from jetstream.eventlog.segment import Block, verify
from jetstream.eventlog.sqlite import reservation
from jetstream.eventlog.sqlite.damage import FAR_US
from jetstream.eventlog.sqlite.reader import Row
from jetstream.eventlog.sqlite.schema import (
    DATABASE,
    DELETE_ROW,
    REMEDY,
    ROW,
    bytes_on_disk,
    check_schema,
    explained,
    open_reader,
    open_writer,
    read_cursors,
    store_block,
    store_cursors,
    store_row,
    take_lock,
    transaction,
)
from jetstream.eventlog.sqlite.space import Space

# Beyond a damaged page, rows are looked for in steps of a second, in which there are few blocks.
GRAIN_US: Final = 1_000_000
PROBES: Final = 256  # places looked at between two damaged pages
# How many of SQLite's own findings are repeated.
FINDINGS_MAX: Final = 10

_RISING: Final = {
    "block": "SELECT last_us FROM block WHERE last_us > ? AND last_us <= ? ORDER BY last_us",
    "tail": "SELECT last_us FROM tail WHERE last_us > ? AND last_us <= ? ORDER BY last_us",
}
_FALLING: Final = {table: f"{query} DESC" for table, query in _RISING.items()}


@dataclass
class Findings:
    """What a check or a repair found; `problems` are sentences for people."""

    blocks: int = 0
    events: int = 0
    problems: list[str] = field(default_factory=list)
    has_whole_pages: bool = False  # whatever the rows on them hold
    is_whole: bool = False  # the database: a problem is beside it


def check(directory: Path) -> Findings:
    """Read everything and compare it with its checksums. Raises LogError when there is nothing to read."""
    path = existing(directory)
    findings = Findings()
    with explained(path, LogError), closing(open_reader(path)) as connection:
        check_schema(path, connection)
        _require_tables(path, connection)
        findings.problems += _check_pages(connection)
        findings.has_whole_pages = not findings.problems
        for row in _whole_rows(connection, findings):
            findings.events += row.events
            findings.blocks += isinstance(row, Block)
    findings.is_whole = not findings.problems
    try:
        reservation.read(directory)
    except LogCorrupt as error:
        findings.problems.append(str(error))
    return findings


def repair(directory: Path) -> tuple[Findings, Path | None]:
    """Keep every whole row of the log in `directory`; return what was found and where the old file is now.

    None when the file stayed: nothing is wrong with it, or the disk has no room for another one, and the rows
    that are not whole were deleted from it. The reserve is released; the server takes it back.

    Raises LogLocked while a server runs, LogUnwritable when the disk has no room and the file's pages are
    damaged.
    """
    path = existing(directory)
    with ExitStack() as stack:
        stack.callback(os.close, take_lock(directory))
        Space(directory).release()
        try:
            found = check(directory)
        except LogError as error:
            found = Findings(problems=[error.problem])
        if not found.problems:
            return found, None
        with explained(path):
            kept, aside = _mend(directory, found)
        kept.problems = found.problems
        return kept, aside


def _mend(directory: Path, found: Findings) -> tuple[Findings, Path | None]:
    path = directory / DATABASE
    if found.is_whole:
        _mend_reservation(directory, _tip(path))
        return found, None
    new = path.with_name(f"{DATABASE}.new")
    _remove(new)
    try:
        kept = _rebuild(directory, new)
    except (sqlite3.DatabaseError, OSError) as error:
        _remove(new)
        if not _is_full(error):
            raise
        if not found.has_whole_pages:
            raise LogUnwritable(path, f"cannot be repaired: {_missing(path)}") from error
        return _mend_in_place(directory), None
    return kept, _swap(path, new)


def _is_full(error: Exception) -> bool:
    return (
        getattr(error, "errno", 0) == errno.ENOSPC
        or getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
    )


def _missing(path: Path) -> str:
    disk = os.statvfs(path.parent)
    free, needed = disk.f_bavail * disk.f_frsize >> 20, bytes_on_disk(path) >> 20
    return f"its pages are damaged, and a copy takes up to {needed} MiB, of which {free} are free: make room"


def _mend_in_place(directory: Path) -> Findings:
    """Delete the rows that are not whole from a file whose pages are."""
    path = directory / DATABASE
    kept = Findings()
    with closing(open_writer(path)) as writer:
        whole = {(isinstance(row, Block), row.last_us): row.events for row in _whole_rows(writer, kept)}
        for table, is_block in (("block", True), ("tail", False)):
            for key in _keys(writer, table):
                if (is_block, key) not in whole:
                    with transaction(writer):
                        writer.execute(DELETE_ROW[table], (key,))
        kept.events, kept.blocks = sum(whole.values()), sum(is_block for is_block, _ in whole)
        with transaction(writer):
            writer.execute(
                "UPDATE state SET removed = removed + (SELECT events FROM extent) - ?", (kept.events,)
            )
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        _mend_reservation(directory, writer.execute("SELECT tip_us FROM extent").fetchone()[0])
    return kept


def _tip(path: Path) -> int:
    with closing(open_reader(path)) as connection:
        tip_us: int = connection.execute("SELECT tip_us FROM extent").fetchone()[0]
        return tip_us


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def existing(directory: Path) -> Path:
    """Return the path of the log's file. Raises LogError when there is none."""
    path = directory / DATABASE
    if not path.exists():
        raise LogError(path, "is not there: no log was written in this directory")
    return path


def _require_tables(path: Path, connection: sqlite3.Connection) -> None:
    """Raise LogCorrupt for a database without our tables: those of a young log may be in the WAL alone."""
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    if not {"state", "block", "tail"} <= names:
        raise LogCorrupt(path, f"has lost its tables; {REMEDY}")


def _check_pages(connection: sqlite3.Connection) -> Iterator[str]:
    try:
        for (finding,) in connection.execute(f"PRAGMA integrity_check({FINDINGS_MAX})"):
            if finding != "ok":
                yield from str(finding).splitlines()
    except sqlite3.DatabaseError as error:
        yield str(error)


def _whole_rows(connection: sqlite3.Connection, findings: Findings) -> Iterator[Block | Row]:
    """Yield every whole row, in order, and note what is lost."""
    end_us = -1
    for table in ("block", "tail"):
        for key in _keys(connection, table):
            try:
                row = _read(connection, table, key)
                _require(row is None or row.first_us > end_us, "it begins before the end of the one before")
            except (Damaged, sqlite3.DatabaseError) as error:
                findings.problems.append(f"the {table} that ends at {key} is lost: {error}")
                continue
            if row is not None:
                end_us = row.last_us
                yield row


def _read(connection: sqlite3.Connection, table: str, key: int) -> Block | Row | None:
    """Return one row, or None when it has gone since its key was read. Raises Damaged."""
    stored = connection.execute(ROW[table], (key,)).fetchone()
    if stored is None:
        return None
    if table == "tail":
        return Row.read(stored)
    block = Block(*stored)
    verify(block)
    return block


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise Damaged(problem)


def _keys(connection: sqlite3.Connection, table: str) -> list[int]:
    """Return the keys of all rows that can be reached, rising, whatever pages between are damaged."""
    rising, falling = _RISING[table], _FALLING[table]
    reached: set[int] = set()
    position = -1
    while position < FAR_US:
        keys, whole = _walk(connection, rising, position, FAR_US)
        reached.update(keys)
        if whole:
            break
        position = keys[-1] if keys else position
        beyond = _gallop(connection, rising, position)
        back, _ = _walk(connection, falling, position, beyond)
        reached.update(back)
        lowest = back[-1] if back else beyond
        step = max(GRAIN_US, (lowest - position) // PROBES)
        for probe in range(position + step, lowest, step):
            reached.update(_walk(connection, rising, probe, lowest)[0])
        position = beyond
    return sorted(reached)


def _gallop(connection: sqlite3.Connection, rising: str, position: int) -> int:
    """Return the first key that is found beyond the damage after `position`, in steps that double."""
    step = GRAIN_US
    while position + step < FAR_US:
        keys, whole = _walk(connection, rising, position + step, FAR_US)
        if keys:
            return keys[0]
        if whole:
            break
        step *= 2
    return FAR_US


def _walk(connection: sqlite3.Connection, query: str, low: int, high: int) -> tuple[list[int], bool]:
    """Return the keys up to the first damage, and whether there was none."""
    keys: list[int] = []
    try:
        keys.extend(key for (key,) in connection.execute(query, (low, high)))
    except sqlite3.DatabaseError:
        return keys, False
    return keys, True


def _rebuild(directory: Path, new: Path) -> Findings:
    """Write every whole row of the log to a new file."""
    kept = Findings()
    with closing(open_writer(new)) as writer, closing(open_reader(directory / DATABASE)) as old:
        # Without this, SQLite reads nothing of a file that was cut.
        old.execute("PRAGMA writable_schema = ON")
        oldest_us, newest_us = None, 0
        for row in _whole_rows(old, Findings()):
            with transaction(writer):
                if isinstance(row, Block):
                    store_block(writer, row)
                    kept.blocks += 1
                else:
                    store_row(writer, row.first_us, row.last_us, row.columns)
            kept.events += row.events
            oldest_us = row.first_us if oldest_us is None else oldest_us
            newest_us = row.last_us
        tip_us = max(newest_us, _mend_reservation(directory, newest_us))
        floor_us = _floor(old)
        floor_us = (oldest_us or tip_us + 1) if floor_us is None else floor_us
        with transaction(writer):
            writer.execute(
                "UPDATE state SET tip_us = ?, floor_us = ?, appended = ?", (tip_us, floor_us, kept.events)
            )
            store_cursors(writer, _cursors(old), tip_us, kept.events, same_sources=False)
            writer.executemany(
                "INSERT INTO gone VALUES (?, ?)", _pairs(old, "SELECT did, before_us FROM gone")
            )
            writer.executemany(
                "INSERT INTO stored VALUES (?, ?)", _pairs(old, "SELECT last_us, at_us FROM stored")
            )
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return kept


def _mend_reservation(directory: Path, newest_us: int) -> int:
    """Return up to where positions may have been given out."""
    try:
        return reservation.read(directory)[1]
    except LogCorrupt:
        until_us = newest_us + reservation.AHEAD_US
        reservation.restore(directory, until_us)
        return until_us


def _floor(old: sqlite3.Connection) -> int | None:
    with suppress(sqlite3.DatabaseError):
        for (floor_us,) in old.execute("SELECT floor_us FROM state"):
            return int(floor_us)
    return None


def _cursors(old: sqlite3.Connection) -> dict[str, SourceCursor]:
    with suppress(sqlite3.DatabaseError):
        return read_cursors(old)
    return {}


def _pairs(old: sqlite3.Connection, query: str) -> list[tuple[bytes | int, int]]:
    try:
        return old.execute(query).fetchall()
    except sqlite3.DatabaseError:
        return []


def _swap(path: Path, new: Path) -> Path:
    """Put the new file in the place of the old one; return where that is now."""
    aside = reservation.unused(path)
    for suffix in ("-wal", "-shm"):
        old = path.with_name(path.name + suffix)
        if old.exists():
            old.rename(aside.with_name(aside.name + suffix))
    # At no moment is there none: the server would begin a new log.
    os.link(path, aside)
    new.replace(path)
    return aside
