"""Positions are never given out twice, though a commit does not wait for the disk.

When the machine loses power, the last commits may be lost: their events are read from upstream again, but
readers have already seen their positions. So a small file says, durably and ahead of time, up to where
positions may have been given out. A log that wakes up after another boot goes on above that.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from jetstream.clock import boot_id, iso
from jetstream.errors import LogCorrupt
from jetstream.eventlog.sqlite.schema import DATABASE, REMEDY

FILE: Final = "jetstream.reserved"
NEW_FILE: Final = "jetstream.new"
AHEAD_US: Final = 30_000_000
# A reservation is ahead of the newest event or of the clock by AHEAD_US at most; but the clock may be wrong,
# and after a loss of power the newest event lost. One that is further ahead than this is not believed.
BELIEVED_US: Final = 366 * 86_400_000_000
POSITION_MAX: Final = 1 << 62  # SQLite's integers have 63 bits

logger = structlog.get_logger(__name__)


def restored_tip(directory: Path, tip_us: int, now_us: int = 0, *, is_new: bool = False) -> int:
    """Return the highest position that may have been given out, if `tip_us` is the newest on disk.

    After a mere crash of the process nothing was lost, and that is `tip_us`. A database that `is_new`,
    although positions were reserved, has lost everything. A reservation that cannot be read or believed is
    made again from the log and the clock, with a warning. Raises OSError.
    """
    try:
        boot, reserved = _believed(directory, max(tip_us, now_us))
    except LogCorrupt as error:
        restored = max(tip_us + AHEAD_US, now_us)
        logger.warning("log: the reservation is made again", problem=error.problem, up_to_us=restored)
        restore(directory, restored)
        return restored
    if is_new and reserved:
        logger.warning(
            "log: no events where some were stored, a new log begins",
            missing=str(directory / DATABASE),
            stored_up_to=iso(reserved),
            remedy="if this is not what you want, stop the server and put the files back",
        )
        return max(tip_us, reserved)
    return tip_us if boot == boot_id() != "unknown" else max(tip_us, reserved)


def _believed(directory: Path, newest_us: int) -> tuple[str, int]:
    boot, reserved = read(directory)
    if reserved > newest_us + BELIEVED_US:
        problem = f"reserves positions up to {reserved}, far beyond every event and the clock"
        raise LogCorrupt(directory / FILE, problem)
    return boot, reserved


def read(directory: Path) -> tuple[str, int]:
    """Return the boot that reserved, and up to where; nothing and 0 if none did. Raises LogCorrupt."""
    path = directory / FILE
    try:
        boot, until = path.read_text().split()
        until_us = int(until)
    except FileNotFoundError:
        return "", 0
    except (ValueError, OSError) as error:
        raise LogCorrupt(path, f"is damaged ({error}); {REMEDY}") from error
    if not 0 <= until_us < POSITION_MAX:
        raise LogCorrupt(path, f"is damaged ({until_us} is no position); {REMEDY}")
    return boot, until_us


def restore(directory: Path, until_us: int) -> None:
    """Put a reservation in the place of whatever is there. Raises OSError."""
    path = directory / FILE
    if path.is_dir():
        path.rename(unused(path))
    reserve(directory, until_us)


def unused(path: Path) -> Path:
    """Return a name to put a damaged file aside under."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return aside


def reserve(directory: Path, until_us: int) -> None:
    """Say durably that positions up to `until_us` may be given out. Raises OSError."""
    path = directory / FILE
    new = directory / NEW_FILE
    try:
        with new.open("w") as file:
            file.write(f"{boot_id()} {until_us}\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
