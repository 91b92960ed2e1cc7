"""Room on the disk for getting out of a full one.

Trimming makes room, but needs some: each transaction is written to the write-ahead log first, and that
becomes shorter only after it was copied into the database, which may have to grow for it. So

* a file keeps `size` bytes in reserve, which are released when the disk is full and taken back when it is
not.
  It holds off other programs, too;
* events are refused, while the disk is not quite full yet, from where the write-ahead log could no longer be
copied.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from jetstream.eventlog.sqlite.schema import DATABASE, wal_bytes

FILE: Final = "jetstream.reserve"
# As long as the write-ahead log becomes by itself, so that this much can always be copied.
BYTES_MAX: Final = 16 * 1024 * 1024
SHARE_MAX: Final = 8  # of a small disk no more than an eighth
# For one step: a transaction that trims or shrinks (1 MiB), and the index of the write-ahead log.
STEP_BYTES: Final = 1024 * 1024
UNKNOWN_BYTES: Final = 1 << 60
# Left by commits for sealing the next block, which frees three quarters of what its events take.
SEAL_BYTES: Final = 1024 * 1024


class Space:
    """The disk under a log's directory: what is free, and what is in reserve.

    `size` is how much should be in reserve, in bytes; `held` is how much is.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / FILE
        self._database = directory / DATABASE
        disk = os.statvfs(directory)
        self.size = min(BYTES_MAX, disk.f_blocks * disk.f_frsize // SHARE_MAX)
        self.held = 0
        with suppress(OSError):
            self.held = self._file.stat().st_blocks * 512

    def free(self) -> int:
        """Return how many bytes may still be written; very many where the file system does not say."""
        disk = os.statvfs(self._directory)
        return disk.f_bavail * disk.f_frsize if disk.f_blocks else UNKNOWN_BYTES

    def room(self) -> int:
        """Return how many bytes may be added to the write-ahead log so that it can be copied in the end.

        Each of them takes a byte from the disk, and may need another one in the database. It is the same
        whether the reserve is held or released; but what is in reserve cannot be written before it is
        released.
        """
        free = self.free()
        return min(free, (free + self.held - wal_bytes(self._database)) // 2 - STEP_BYTES)

    def room_for_events(self) -> int:
        """Return how many bytes may be committed so that there is room for sealing."""
        return self.room() - min(SEAL_BYTES, self.size)

    @property
    def cramped(self) -> bool:
        """Whether the write-ahead log cannot become as long as it may twice: what can be freed must be."""
        return self.room() < 2 * self.size

    def take(self) -> bool:
        """Put what is missing in reserve, if there is room; return whether all of it is in reserve."""
        if self.held < self.size and self.free() + self.held >= self.size + STEP_BYTES:
            with suppress(OSError):
                self._allocate()
        return self.held >= self.size

    def _allocate(self) -> None:
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(descriptor, 0, self.size)
            self.held = self.size
        except OSError:
            os.ftruncate(descriptor, self.held)
            raise
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Give the reserve to the disk."""
        with suppress(OSError):
            self._file.unlink(missing_ok=True)
            self.held = 0
