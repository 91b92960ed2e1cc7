"""Repairing a damaged log while no server runs: keep every undamaged row, and the damaged file beside it.

A new file is written from every row that can be reached and is undamaged, and the old file is renamed. Lost
rows leave a hole, which the findings name: readers skip it from then on. A lost state of a repository is
adopted from its next message.

0. Refuse a log of another format, which is not damaged.
1. Take the lock, release the reserve, and check. If nothing is damaged, change nothing.
2. If only the reservation is damaged, write that again.
3. Write the new file. If the disk has no room for it and SQLite's pages are undamaged, delete the damaged
   rows from the old file instead.
4. Link the old file under a new name, then rename the new file over it. A crash leaves one of the two in
   place, never neither.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from jetstream.errors import LogCorrupt, LogError, LogFormat, LogUnwritable
from jetstream.eventlog.columns import Damaged
from jetstream.eventlog.cursors import named_cursor
from jetstream.eventlog.sqlite import schema
from jetstream.eventlog.sqlite.check import Findings, check, whole_rows
from jetstream.eventlog.sqlite.connection import (
    Transaction,
    TranslatedErrors,
    bytes_on_disk,
    database_files,
    open_reader,
    open_writer,
    reading,
)
from jetstream.eventlog.sqlite.damage import is_damage
from jetstream.eventlog.sqlite.lock import offline
from jetstream.eventlog.sqlite.repos import (
    count_states,
    delete_states,
    forget_all,
    insert_states,
    read_changes,
    whole_states,
)
from jetstream.eventlog.sqlite.reservation import AHEAD_US, Reservation, unused_name


def repair(directory: Path) -> tuple[Findings, Path | None]:
    """Keep every undamaged row of the log in `directory`; return the findings and the old file's new path.

    That is None when the file stayed in place: nothing is damaged, or the disk has no room for another file
    and the damaged rows were deleted from it. The reserve is released; the server takes it back.

    Raises LogLocked while a server runs, LogFormat for a log of another version, LogUnwritable if the disk
    has no room and the file's pages are damaged.
    """
    _refuse_other_format(directory)
    with offline(directory) as path:
        try:
            found = check(directory)
        except LogError as error:
            found = Findings(problems=[error.problem])
        if not found.problems:
            return found, None
        with TranslatedErrors(path):
            kept, aside = _repair(directory, found)
        kept.problems = found.problems
        return kept, aside


def _refuse_other_format(directory: Path) -> None:
    """Raise LogFormat for a log of another version, before anything is locked or released."""
    try:
        with reading(directory):
            pass
    except LogFormat as error:
        raise LogFormat(error.path, f"{error.problem}. Nothing was changed") from error
    except LogError:
        pass  # a check tells what is wrong


def _repair(directory: Path, found: Findings) -> tuple[Findings, Path | None]:
    """Do what the findings need; return what was kept, and the old file's new path.

    There are three ways: write the reservation again, write a new file, or delete rows in place. Raises
    LogUnwritable where the disk has no room, or what SQLite raises for the new file.
    """
    path = directory / schema.DATABASE
    states_lost = found.lost_states or found.forget_states
    if found.has_whole_pages and not found.lost and not states_lost:  # so the problem is with the reservation
        with closing(open_reader(path)) as connection:
            _repair_reservation(directory, schema.read_tip(connection))
        return found, None
    new = path.with_name(f"{schema.DATABASE}.new")
    _remove(new)
    try:
        kept = _rebuild(directory, new)
    except (sqlite3.DatabaseError, OSError) as error:
        _remove(new)
        if not _is_full(error):
            raise
        if not found.has_whole_pages:
            raise LogUnwritable(path, f"cannot be repaired: {_missing_room(path)}") from error
        _delete_damaged_rows(directory, found)
        return found, None
    return kept, _swap(path, new)


def _is_full(error: Exception) -> bool:
    """Tell whether an error of SQLite or of the system means that the disk is full."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code == sqlite3.SQLITE_FULL or getattr(error, "errno", 0) == errno.ENOSPC


def _missing_room(path: Path) -> str:
    """Say how much room a repair needs, and how much there is."""
    disk = os.statvfs(path.parent)
    free, needed = disk.f_bavail * disk.f_frsize >> 20, bytes_on_disk(path) >> 20
    return f"its pages are damaged, and a copy takes up to {needed} MiB, of which {free} are free: make room"


def _delete_damaged_rows(directory: Path, found: Findings) -> None:
    """Repair a file in place whose pages are undamaged: delete each row that is not whole."""
    # `open_writer` uses the old file as it is: its tables are there, since its pages are undamaged.
    with closing(open_writer(directory / schema.DATABASE)) as writer:
        for table, key in found.lost:
            with Transaction(writer):
                writer.execute(schema.DELETE_ROW[table], (key,))
        with Transaction(writer):
            if found.forget_states:
                forget_all(writer)
            else:
                count_states(writer, -delete_states(writer, found.lost_states))
            writer.execute(
                "UPDATE state SET removed = removed + (SELECT events FROM extent) - ?", (found.events,)
            )
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        _repair_reservation(directory, schema.read_tip(writer))


def _remove(path: Path) -> None:
    """Delete a database with the files that SQLite keeps beside it."""
    for file in database_files(path):
        file.unlink(missing_ok=True)


def _rebuild(directory: Path, new: Path) -> Findings:
    """Write every undamaged row of the log to a new file, and what else of the old one can be read.

    The new tip is above every position that may have been given out, so that the positions of lost events are
    not used again.

    Raises sqlite3.DatabaseError or OSError: a disk without room among them.
    """
    kept = Findings()
    with closing(open_writer(new)) as writer, closing(open_reader(directory / schema.DATABASE)) as old:
        # Without this, SQLite reads nothing of a file that was cut off.
        old.execute("PRAGMA writable_schema = ON")
        newest_us = 0
        for row in whole_rows(old, kept):
            with Transaction(writer):
                schema.insert(writer, row)
            newest_us = row.last_us
        tip_us = max(newest_us, _repair_reservation(directory, newest_us))
        # Without a floor, the oldest event is it.
        floor = _rows(old, "SELECT floor_us FROM state") or [(schema.oldest_us(writer) or tip_us + 1,)]
        cursors = dict(map(named_cursor, _rows(old, schema.CURSORS)))
        tombstones = _rows(old, "SELECT * FROM tombstone")
        stored, gaps = _rows(old, "SELECT * FROM stored"), _rows(old, "SELECT * FROM gap")
        accounts = _rows(old, "SELECT * FROM account")
        erasures = _rows(old, "SELECT erasures + 1 FROM state") or [(1,)]
        with Transaction(writer):
            writer.execute("UPDATE state SET floor_us = ?, erasures = ?", floor[0] + erasures[0])
            totals = schema.Totals(tip_us, kept.events, commits=0)
            schema.store_cursors(writer, cursors, totals, same_sources=False)
            writer.executemany("INSERT INTO tombstone VALUES (?, ?)", tombstones)
            writer.executemany("INSERT INTO stored VALUES (?, ?)", stored)
            writer.executemany("INSERT INTO gap VALUES (?, ?, ?, ?, ?)", gaps)
            writer.executemany("INSERT INTO account VALUES (?, ?, ?)", accounts)
        _keep_states(old, writer)
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return kept


def _keep_states(old: sqlite3.Connection, writer: sqlite3.Connection) -> None:
    """Keep the states of repositories that are undamaged, if all changes that are not folded yet are.

    Else any state may be an old one, and all are forgotten.
    """
    try:
        read_changes(old)
        changes = old.execute("SELECT id, crc, records FROM repo_change").fetchall()
    except (Damaged, sqlite3.DatabaseError):
        return
    with Transaction(writer):
        writer.executemany("INSERT INTO repo_change VALUES (?, ?, ?)", changes)
    for falling in (False, True):
        try:
            for rows in whole_states(old, [], falling=falling):
                with Transaction(writer):
                    count_states(writer, insert_states(writer, rows))
        except (Damaged, sqlite3.DatabaseError) as error:
            if not is_damage(error):  # of the new file
                raise
        else:
            return


def _repair_reservation(directory: Path, newest_us: int) -> int:
    """Return up to where positions may have been given out, and write the reservation if it is damaged."""
    reservation = Reservation(directory)
    try:
        return reservation.read()[1]
    except LogCorrupt:
        reservation.restore(newest_us + AHEAD_US)
        return reservation.until_us


def _rows(old: sqlite3.Connection, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of a small table, none if it is damaged.

    A table that is damaged counts as empty: what it had is lost, and the repair goes on.
    """
    try:
        return old.execute(query).fetchall()
    except sqlite3.DatabaseError:
        return []


def _swap(path: Path, new: Path) -> Path:
    """Put the new file in the place of the old one; return where the old one is."""
    aside = unused_name(path)
    for old, kept in zip(database_files(path)[1:], database_files(aside)[1:], strict=True):
        if old.exists():
            old.rename(kept)
    # A hard link and a rename: at no moment is there no file, else a server would start a new log.
    os.link(path, aside)
    new.replace(path)
    return aside
