"""Checking a log that may be damaged, and keeping what is whole of one that is.

Checking reads beside a writer, a row at a time, and changes nothing. Repairing builds a new file from every
row that can be reached and is whole, and puts the old one aside. What was in the rows that are lost is
missing from then on: a hole, which the findings name.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from jetstream.errors import LogCorrupt, LogError
from jetstream.log import reservation
from jetstream.log.block import Block, verify
from jetstream.log.columns import Damaged
from jetstream.log.database import (
    DATABASE,
    check_schema,
    explained,
    open_reader,
    open_writer,
    store_block,
    store_row,
    take_lock,
    transaction,
)
from jetstream.log.stored import Row

# Beyond a damaged page, rows are looked for in steps of a second, in which there are few blocks.
GRAIN_US: Final = 1_000_000
PROBES: Final = 256  # places looked at between two damaged pages
FAR_US: Final = 2**63 - 1
# How many of SQLite's own findings are repeated.
FINDINGS_MAX: Final = 10

_RISING: Final = {
    "block": "SELECT last_us FROM block WHERE last_us > ? AND last_us <= ? ORDER BY last_us",
    "tail": "SELECT last_us FROM tail WHERE last_us > ? AND last_us <= ? ORDER BY last_us",
}
_FALLING: Final = {table: f"{query} DESC" for table, query in _RISING.items()}
_ROW: Final = {
    "block": "SELECT * FROM block WHERE last_us = ?",
    "tail": "SELECT * FROM tail WHERE last_us = ?",
}


@dataclass
class Findings:
    """What a check or a repair found; `problems` are sentences for people."""

    blocks: int = 0
    events: int = 0
    problems: list[str] = field(default_factory=list)


def check(directory: Path) -> Findings:
    """Read everything and compare it with its checksums. Raises LogError when there is nothing to read."""
    path = existing(directory)
    findings = Findings()
    with explained(path, LogError), closing(open_reader(path)) as connection:
        check_schema(path, connection)
        findings.problems += _check_pages(connection)
        for row in _whole_rows(connection, findings):
            findings.events += row.events
            findings.blocks += isinstance(row, Block)
    try:
        reservation.read(directory)
    except LogCorrupt as error:
        findings.problems.append(str(error))
    return findings


def repair(directory: Path) -> tuple[Findings, Path | None]:
    """Keep every whole row of the log in `directory`; return what was found and where the old file is now.

    None when nothing is wrong, and nothing was done. Raises LogLocked while a server runs, LogUnwritable.
    """
    path = existing(directory)
    with ExitStack() as stack:
        stack.callback(os.close, take_lock(directory))
        try:
            problems = check(directory).problems
        except LogError as error:
            problems = [error.problem]
        if not problems:
            return check(directory), None
        new = path.with_name(f"{DATABASE}.new")
        new.unlink(missing_ok=True)
        with explained(path):
            kept = _rebuild(directory, new)
            aside = _swap(path, new)
        kept.problems = problems
        return kept, aside


def existing(directory: Path) -> Path:
    """Return the path of the log's file. Raises LogError when there is none."""
    path = directory / DATABASE
    if not path.exists():
        raise LogError(path, "is not there: no log was written in this directory")
    return path


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
    stored = connection.execute(_ROW[table], (key,)).fetchone()
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
        floor_us, *upstream = _state(old) or (oldest_us or tip_us + 1, None, None, None)
        with transaction(writer):
            writer.execute(
                "UPDATE state SET tip_us = ?, floor_us = ?, events = ?, origin = ?, seq = ?, provisional = ?",
                (tip_us, floor_us, kept.events, *upstream),
            )
            writer.executemany("INSERT INTO gone VALUES (?, ?)", _gone(old))
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return kept


def _mend_reservation(directory: Path, newest_us: int) -> int:
    """Return up to where positions may have been given out."""
    try:
        return reservation.read(directory)[1]
    except LogCorrupt:
        until_us = newest_us + reservation.AHEAD_US
        reservation.reserve(directory, until_us)
        return until_us


def _state(old: sqlite3.Connection) -> tuple[int, str | None, int | None, int | None] | None:
    try:
        state: tuple[int, str | None, int | None, int | None] | None = old.execute(
            "SELECT floor_us, origin, seq, provisional FROM state"
        ).fetchone()
    except sqlite3.DatabaseError:
        return None
    return state


def _gone(old: sqlite3.Connection) -> list[tuple[bytes, int]]:
    try:
        return old.execute("SELECT did, before_us FROM gone").fetchall()
    except sqlite3.DatabaseError:
        return []


def _swap(path: Path, new: Path) -> Path:
    """Put the new file in the place of the old one; return where that is now."""
    number = 1
    while (aside := path.with_name(f"{DATABASE}.damaged-{number}")).exists():
        number += 1
    for suffix in ("-wal", "-shm"):
        old = path.with_name(path.name + suffix)
        if old.exists():
            old.rename(aside.with_name(aside.name + suffix))
    path.rename(aside)
    new.rename(path)
    return aside
