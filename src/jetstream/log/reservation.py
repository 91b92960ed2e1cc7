"""Positions are never given out twice, though a commit does not wait for the disk.

When the machine loses power, the last commits may be lost: their events are read from upstream again, but
readers have already seen their positions. So a small file says, durably and ahead of time, up to where
positions may have been given out. A log that wakes up after another boot goes on above that.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from jetstream.errors import LogCorrupt
from jetstream.log.database import REMEDY

FILE: Final = "jetstream.reserved"
AHEAD_US: Final = 30_000_000
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def restored_tip(directory: Path, tip_us: int) -> int:
    """Return the highest position that may have been given out, if `tip_us` is the newest on disk.

    After a mere crash of the process nothing was lost, and that is `tip_us`. Raises LogCorrupt.
    """
    boot, reserved = read(directory)
    return tip_us if boot == _boot() != "unknown" else max(tip_us, reserved)


def read(directory: Path) -> tuple[str, int]:
    """Return the boot that reserved, and up to where; nothing and 0 if none did. Raises LogCorrupt."""
    path = directory / FILE
    try:
        boot, until_us = path.read_text().split()
        return boot, int(until_us)
    except FileNotFoundError:
        return "", 0
    except ValueError as error:
        raise LogCorrupt(path, f"is damaged; {REMEDY}") from error


def reserve(directory: Path, until_us: int) -> None:
    """Say durably that positions up to `until_us` may be given out. Raises OSError."""
    path = directory / FILE
    new = path.with_suffix(".new")
    with new.open("w") as file:
        file.write(f"{_boot()} {until_us}\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return "unknown"
