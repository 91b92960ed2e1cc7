"""Copies of the files of a log in SQLite."""

from __future__ import annotations

import shutil
from pathlib import Path

from jetstream.eventlog.sqlite import space
from jetstream.eventlog.sqlite.reservation import NEW_FILE


def copied(directory: Path, to: Path) -> Path:
    """Copy the files of a log, which may be open, as `kill -9` leaves them. Return where they are.

    What a server makes again is left out: the index of the write-ahead log; a reservation that is being
    written, which may be renamed meanwhile; and the reserve, which is 16 MiB of zeros.
    """
    ignored = shutil.ignore_patterns("*-shm", NEW_FILE, space.FILE)
    return Path(shutil.copytree(directory, to, ignore=ignored, dirs_exist_ok=True))
